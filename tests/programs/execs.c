/* Three threads: the main one and a second one pause, the third reads a line and then replaces the program by
 * itself, which prints AGAIN. Prints READY tid-of-the-third. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

static void *wait_for_ever(void *unused)
{
    for (;;)
        pause();
    return unused;
}

static void *replace(void *unused)
{
    char byte, *arguments[] = {"execs", "again", NULL};
    printf("READY %ld\n", syscall(SYS_gettid));
    fflush(stdout);
    (void)!read(0, &byte, 1);
    execv("/proc/self/exe", arguments);
    return unused;
}

int main(int count, char **arguments)
{
    pthread_t thread;

    (void)arguments;
    if (count > 1) {
        printf("AGAIN\n");
        fflush(stdout);
        wait_for_ever(NULL);
    }
    pthread_create(&thread, NULL, wait_for_ever, NULL);
    pthread_create(&thread, NULL, replace, NULL);
    wait_for_ever(NULL);
}
