/* Floating-point work whose sum is known, in a thread that never stops, and threads that wait. The main thread answers:
 * for each line on its input one line "rounds wrong early": rounds of work, rounds with a wrong sum, timed sleeps that
 * ended too early. Prints READY pid. With an argument: so many MiB of memory, touched. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static volatile long rounds, wrong, early;

static volatile double seed = 1.0001; /* volatile: or the compiler takes the work out of the loop */

typedef double wide __attribute__((vector_size(32)));

/* Values live in vector registers all the time, in 256 bits where there is AVX. */
#define SUM                                                             \
    wide a = {1, 2, 3, 4}, b = {5, 6, 7, 8};                            \
    a *= seed;                                                          \
    b *= seed;                                                          \
    for (int n = 0; n < 200000; n++) {                                  \
        a = a * 0.999 + b * 0.25;                                       \
        b = b * 0.99 + n * 0.001;                                       \
    }                                                                   \
    a += b;                                                             \
    return a[0] + a[1] + a[2] + a[3];

__attribute__((noinline, target("avx"))) static double sum_avx(void)
{
    SUM
}

__attribute__((noinline)) static double sum_sse(void)
{
    SUM
}

static double sum(void)
{
    return __builtin_cpu_supports("avx") ? sum_avx() : sum_sse();
}

static void *work(void *unused)
{
    double expected = sum();
    for (;;) {
        if (sum() != expected)
            wrong++;
        rounds++;
    }
    return unused;
}

static void *sleeps(void *unused)
{
    struct timespec before, after, time = {0, 20000000};
    for (;;) {
        clock_gettime(CLOCK_MONOTONIC, &before);
        int result = nanosleep(&time, NULL);
        clock_gettime(CLOCK_MONOTONIC, &after);
        long gone = (after.tv_sec - before.tv_sec) * 1000000000L + after.tv_nsec - before.tv_nsec;
        if (result != 0 || gone < time.tv_nsec)
            early++;
    }
    return unused;
}

static void on_child(int signal)
{
    (void)signal;
    wrong += 1000000;
}

int main(int count, char **arguments)
{
    pthread_t thread;
    char line[64];

    signal(SIGCHLD, on_child);
    if (count > 1) {
        size_t size = (size_t)atol(arguments[1]) << 20;
        memset(malloc(size), 1, size);
    }
    pthread_create(&thread, NULL, work, NULL);
    pthread_create(&thread, NULL, sleeps, NULL);
    printf("READY %d\n", getpid());
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        printf("%ld %ld %ld\n", rounds, wrong, early);
        fflush(stdout);
    }
    return 0;
}
