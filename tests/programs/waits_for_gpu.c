/* Simulated: what waits for a GPU, without one. With -DDRIVER the library, which is built as libcuda.so.1; else
 * the program, which calls it. */
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

int cuCtxSynchronize(void);

#ifdef DRIVER
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t done = PTHREAD_COND_INITIALIZER;

int cuCtxSynchronize(void)
{
    pthread_mutex_lock(&mutex);
    printf("READY %d\n", getpid());
    fflush(stdout);
    for (;;)
        pthread_cond_wait(&done, &mutex);
    return 0;
}
#else
int main(void)
{
    return cuCtxSynchronize();
}
#endif
