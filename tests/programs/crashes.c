/* Ends by a signal, in the way that its argument names. Writes READY first, and a core if the system does. */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const int constants[1024] = {1, 2, 3};
static volatile int zero;

__attribute__((noinline)) int store(volatile int *where) { return *where = 5; }

__attribute__((noinline)) int deeper(int depth) {
    volatile char room[1000];
    room[0] = (char)depth;
    return deeper(depth + 1) + room[0];
}

__attribute__((noinline)) int divided(int by) { return 123456789 / by; }

static void *thread(void *unused) {
    deeper(0);
    return unused;
}

/* As faulthandler's does: it says something, and raises the signal again. */
static void handler(int number) {
    signal(number, SIG_DFL);
    raise(number);
}

int main(int count, char **words) {
    const char *how = count > 1 ? words[1] : "";
    printf("READY\n");
    fflush(stdout);
    if (!strcmp(how, "null")) store((int *)16);
    if (!strcmp(how, "freed")) {
        int *page = mmap(NULL, 4096 * 256, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        munmap(page, 4096 * 256);
        store(page + 1024 * 128);
    }
    if (!strcmp(how, "constant")) store((int *)constants);
    if (!strcmp(how, "deep")) deeper(0);
    if (!strcmp(how, "thread")) {
        pthread_t id;
        pthread_create(&id, NULL, thread, NULL);
        pthread_join(id, NULL);
    }
    if (!strcmp(how, "handled")) {
        static char stack[1 << 16];
        stack_t own = {.ss_sp = stack, .ss_size = sizeof stack};
        sigaltstack(&own, NULL);
        struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK | SA_NODEFER};
        sigaction(SIGSEGV, &action, NULL);
        store((int *)16);
    }
    if (!strcmp(how, "abort")) abort();
    if (!strcmp(how, "divide")) zero = divided(zero);
    alarm(60);
    pause();
    return 0;
}
