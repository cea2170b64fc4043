/* A thread that writes a, then b, for ever: at any instant a is b or one more.
 * The two lie 24 MiB apart, so that they are copied by different calls. Prints: READY pid &a &b */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile unsigned long *a, *b;

static void *count(void *unused)
{
    for (;;) {
        *a = *a + 1;
        __sync_synchronize();
        *b = *b + 1;
        __sync_synchronize();
    }
    return unused;
}

int main(void)
{
    size_t size = 24 << 20;
    char *memory = malloc(size + 4096);
    pthread_t thread;

    memset(memory, 1, size + 4096);
    a = (volatile unsigned long *)memory;
    b = (volatile unsigned long *)(memory + size);
    *a = *b = 0;
    pthread_create(&thread, NULL, count, NULL);
    printf("READY %d %lu %lu\n", getpid(), (unsigned long)a, (unsigned long)b);
    fflush(stdout);
    for (;;)
        pause();
}
