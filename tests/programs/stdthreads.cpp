// Threads of std::thread: one runs a function, one a method, one a lambda. All sleep.
#include <cstdio>
#include <thread>
#include <unistd.h>

static void work(int)
{
    for (;;)
        pause();
}

struct Pool {
    void loop()
    {
        for (;;)
            pause();
    }
};

int main()
{
    Pool pool;
    std::thread function(work, 3);
    std::thread method(&Pool::loop, &pool);
    std::thread lambda([] { work(1); });
    std::printf("READY %d\n", getpid());
    std::fflush(stdout);
    for (;;)
        pause();
}
