/* Its main thread sits in vfork, which no tracer can stop, until a byte comes on its input; two others pause.
 * Prints READY pid, then BACK when the vfork is over. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

static void *wait_for_ever(void *unused)
{
    for (;;)
        pause();
    return unused;
}

int main(void)
{
    pthread_t thread;

    for (int i = 0; i < 2; i++)
        pthread_create(&thread, NULL, wait_for_ever, NULL);
    if (vfork() == 0) {
        char byte;
        dprintf(1, "READY %d\n", getppid());
        (void)!read(0, &byte, 1);
        _exit(0);
    }
    printf("BACK\n");
    fflush(stdout);
    for (;;)
        pause();
}
