/* Threads that begin in two functions of the program, N of each; all sleep. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static pthread_barrier_t all;

void *reader(void *unused)
{
    (void)unused;
    pthread_barrier_wait(&all);
    for (;;)
        pause();
}

void *writer(void *unused)
{
    (void)unused;
    pthread_barrier_wait(&all);
    for (;;)
        pause();
}

int main(int argc, char **argv)
{
    int n = argc > 1 ? atoi(argv[1]) : 2;
    pthread_barrier_init(&all, NULL, 2 * n + 1);
    for (int i = 0; i < 2 * n; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, i % 2 ? writer : reader, NULL))
            return 1;
    }
    pthread_barrier_wait(&all);
    printf("READY %d\n", getpid());
    fflush(stdout);
    for (;;)
        pause();
}
