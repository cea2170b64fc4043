/* Counts queued signals (SIGRTMIN) and adds up their values, with threads that compute and threads that sleep.
 * Prints READY pid; then, for each line on its input, how many there were and their sum. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

static volatile long got, sum;

static void handler(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    (void)context;
    __sync_fetch_and_add(&got, 1);
    __sync_fetch_and_add(&sum, info->si_value.sival_int);
}

static void *work(void *sleeps)
{
    volatile unsigned long n = 0;
    for (;;) {
        for (int i = 0; i < 1000; i++)
            n++;
        if (sleeps)
            usleep(300);
    }
    return NULL;
}

int main(void)
{
    struct sigaction action = {0};
    pthread_t thread;
    char line[64];

    action.sa_sigaction = handler;
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    sigaction(SIGRTMIN, &action, NULL);
    for (long i = 0; i < 4; i++)
        pthread_create(&thread, NULL, work, (void *)(i % 2));
    printf("READY %d\n", getpid());
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        printf("%ld %ld\n", got, sum);
        fflush(stdout);
    }
    return 0;
}
