/* A heap of all kinds of blocks, told on demand. Arguments: what to do ("leak", "healthy" or "smash"), blocks for
 * the main thread, threads. Each thread has 2,000 blocks, frees a third of them, and keeps 20 that are linked.
 * With "smash", once it has told all, it writes to block 1,000 until 1,000 bytes beyond its end.
 * With "leak" 1,000 blocks of 1,000 bytes are lost, whose first word points to the function `retire`.
 * Prints READY pid; for each line of input the path of a file, into which it writes what mallinfo2 says, then
 * one line a block in use: its address and what malloc_usable_size says. Blocks in use are kept in a table
 * that is static; those that were lost are kept there too, but written backwards.
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST (1 << 22)
#define LOST 1000

struct link {
    long payload[3];
    struct link *next;
};

static void *kept[MOST];
static uintptr_t lost[LOST];
static struct link *list;
static int used, losses;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t barrier;

void retire(void *block)
{
    free(block);
}

static void keep(void *block)
{
    pthread_mutex_lock(&mutex);
    kept[used++] = block;
    pthread_mutex_unlock(&mutex);
}

static unsigned size_of(unsigned *state)
{
    *state = *state * 1103515245 + 12345;
    return (*state >> 16) % 600 + 1;
}

static __attribute__((noinline)) void lose(void)
{
    for (int i = 0; i < LOST; i++) {
        void **block = malloc(1000);
        memset(block, 0, 1000);
        block[0] = (void *)retire;
        lost[losses++] = ~(uintptr_t)block;
    }
}

/* Nothing that looks like an address stays behind in what was stack. */
static __attribute__((noinline)) void scrub(void)
{
    volatile char room[65536];
    memset((void *)room, 0, sizeof room);
}

static __attribute__((noinline)) void fill(unsigned seed, int count)
{
    void **own = malloc(count * sizeof *own);
    for (int i = 0; i < count; i++)
        own[i] = malloc(size_of(&seed));
    for (int i = 0; i < count; i++)
        if (i % 3)
            keep(own[i]);
    for (int i = 0; i < count; i += 3)
        free(own[i]);
    free(own);
}

static void *work(void *number)
{
    fill((unsigned)(uintptr_t)number, 2000);
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < 20; i++) {
        struct link *new = malloc(sizeof *new);
        new->next = list;
        list = new;
    }
    pthread_mutex_unlock(&mutex);
    scrub();
    pthread_barrier_wait(&barrier);
    for (;;)
        pause();
    return NULL;
}

static __attribute__((noinline)) void tell(char *path)
{
    FILE *out = fopen(path, "w");
    static char buffer[1 << 16];
    setvbuf(out, buffer, _IOFBF, sizeof buffer);
    struct mallinfo2 info = mallinfo2();
    fprintf(out, "arena=%zu ordblks=%zu hblks=%zu hblkhd=%zu fsmblks=%zu uordblks=%zu fordblks=%zu\n",
            info.arena, info.ordblks, info.hblks, info.hblkhd, info.fsmblks, info.uordblks, info.fordblks);
    for (int i = 0; i < used; i++)
        fprintf(out, "%p %zu\n", kept[i], malloc_usable_size(kept[i]));
    for (struct link *at = list; at; at = at->next)
        fprintf(out, "%p %zu\n", (void *)at, malloc_usable_size(at));
    for (int i = 0; i < losses; i++)
        fprintf(out, "%p %zu\n", (void *)~lost[i], malloc_usable_size((void *)~lost[i]));
    fclose(out);
}

int main(int count, char **arguments)
{
    static char line[4096], out[64];
    static pthread_t threads[64];
    int blocks = count > 2 ? atoi(arguments[2]) : 3000, workers = count > 3 ? atoi(arguments[3]) : 3;

    setvbuf(stdin, line, _IOFBF, sizeof line);
    setvbuf(stdout, out, _IOFBF, sizeof out);
    pthread_barrier_init(&barrier, NULL, workers + 1);
    if (strcmp(arguments[1], "leak") == 0)
        lose();
    fill(7, blocks);
    keep(malloc(300000));
    keep(malloc(2000000));
    keep(memalign(64, 400000));
    keep(memalign(1 << 16, 500000));
    for (int i = 0; i < 30; i++)
        keep(memalign(256, 100));
    for (int i = 0; i < workers; i++)
        pthread_create(&threads[i], NULL, work, (void *)(uintptr_t)(i + 1));
    pthread_barrier_wait(&barrier);
    scrub();
    printf("READY %d\n", getpid());
    fflush(stdout);
    for (;;) {
        static char path[4096];
        if (!fgets(path, sizeof path, stdin))
            pause();
        path[strcspn(path, "\n")] = 0;
        tell(path);
        if (strcmp(arguments[1], "smash") == 0)
            memset((char *)kept[1000] + malloc_usable_size(kept[1000]), 'A', 1000);
        scrub();
        printf("TOLD\n");
        fflush(stdout);
    }
}
