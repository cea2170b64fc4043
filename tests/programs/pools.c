/* A library with a pool of OpenMP threads that are busy for ever, or sleep when their work is done. */
#include <omp.h>
#include <sys/resource.h>

static volatile long sink[1024 * 8];
static volatile int started;

static void begun(void)
{
    setpriority(PRIO_PROCESS, 0, 19); /* of this thread: the machine is for others, too */
    __atomic_add_fetch(&started, 1, __ATOMIC_SEQ_CST);
}

void burn(int threads)
{
    omp_set_dynamic(0);
#pragma omp parallel num_threads(threads)
    {
        int me = omp_get_thread_num() % 1024;
        begun();
        for (;;)
            sink[me * 8]++;
    }
}

void rest(int threads)
{
    omp_set_dynamic(0);
#pragma omp parallel num_threads(threads)
    begun();
}

int count(void)
{
    return started;
}
