/* Four threads that start and join threads without end. With the argument "exec" it also replaces itself by
 * itself from a thread, every 10 ms; with "crowd" they don't join, and each new thread lives for 0.1 s.
 * Prints READY pid (once). */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void *nothing(void *unused)
{
    return unused;
}

static void *sleep_a_while(void *unused)
{
    usleep(100000);
    return unused;
}

static void *crowd(void *unused)
{
    pthread_t thread;
    for (;;) {
        usleep(1000);
        if (pthread_create(&thread, NULL, sleep_a_while, NULL) == 0)
            pthread_detach(thread);
    }
    return unused;
}

static void *churn(void *unused)
{
    pthread_t thread;
    for (;;)
        if (pthread_create(&thread, NULL, nothing, NULL) == 0)
            pthread_join(thread, NULL);
    return unused;
}

static void *replace(void *unused)
{
    char *arguments[] = {"churn", "exec", "again", NULL};
    usleep(10000);
    execv("/proc/self/exe", arguments);
    return unused;
}

int main(int count, char **arguments)
{
    pthread_t thread;

    for (int i = 0; i < 4; i++)
        pthread_create(&thread, NULL, count > 1 && arguments[1][0] == 'c' ? crowd : churn, NULL);
    if (count < 3) {
        printf("READY %d\n", getpid());
        fflush(stdout);
    }
    if (count > 1 && strcmp(arguments[1], "exec") == 0)
        pthread_create(&thread, NULL, replace, NULL);
    for (;;)
        pause();
}
