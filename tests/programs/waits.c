/* One thread for each kind of wait with a time limit. Each waits TIMEOUT again and again and counts: waits that
 * ended by time, that ended too early, that ended with an error. Prints READY pid; then, for each line on its input, one
 * line "kind ended early failed" for each kind and "." */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define TIMEOUT_NS 50000000L

struct kind {
    const char *name;
    int (*wait)(void);
    volatile long ended, early, failed;
};

static int pipes[2], epoll;
static unsigned word;

static int by_nanosleep(void)
{
    struct timespec time = {0, TIMEOUT_NS};
    return nanosleep(&time, NULL);
}

static int by_poll(void)
{
    struct pollfd fd = {pipes[0], POLLIN, 0};
    return poll(&fd, 1, TIMEOUT_NS / 1000000);
}

static int by_select(void)
{
    fd_set set;
    struct timeval time = {0, TIMEOUT_NS / 1000};
    FD_ZERO(&set);
    FD_SET(pipes[0], &set);
    return select(pipes[0] + 1, &set, NULL, NULL, &time);
}

static int by_futex(void)
{
    struct timespec time = {0, TIMEOUT_NS};
    int result = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &time, NULL, 0);
    return result < 0 && errno == ETIMEDOUT ? 0 : result;
}

static int by_epoll(void)
{
    struct epoll_event event;
    return epoll_wait(epoll, &event, 1, TIMEOUT_NS / 1000000);
}

static struct kind kinds[] = {
    {"nanosleep", by_nanosleep, 0, 0, 0}, {"poll", by_poll, 0, 0, 0},   {"select", by_select, 0, 0, 0},
    {"futex", by_futex, 0, 0, 0},         {"epoll", by_epoll, 0, 0, 0},
};

static long now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000L + time.tv_nsec;
}

static void *run(void *argument)
{
    struct kind *kind = argument;
    for (;;) {
        long start = now();
        if (kind->wait() != 0)
            kind->failed++;
        else if (now() - start < TIMEOUT_NS)
            kind->early++;
        else
            kind->ended++;
    }
    return NULL;
}

int main(void)
{
    pthread_t thread;
    char line[64];
    struct epoll_event event = {EPOLLIN, {0}};

    if (pipe(pipes) != 0)
        return 1;
    epoll = epoll_create1(0);
    epoll_ctl(epoll, EPOLL_CTL_ADD, pipes[0], &event);
    for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++)
        pthread_create(&thread, NULL, run, &kinds[i]);
    printf("READY %d\n", getpid());
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++)
            printf("%s %ld %ld %ld\n", kinds[i].name, kinds[i].ended, kinds[i].early, kinds[i].failed);
        printf(".\n");
        fflush(stdout);
    }
    return 0;
}
