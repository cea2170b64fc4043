/* C++: 500 objects of one class that are lost, one of another class that is kept. Prints READY pid. Without the
 * standard library's headers, to be built by gcc -x c++.
 */
extern "C" int printf(const char *, ...);
extern "C" int fflush(void *);
extern "C" int getpid(void);
extern "C" int pause(void);
extern "C" void *memset(void *, int, unsigned long);

namespace app {
struct Session {
    virtual ~Session() {}
    virtual long serve() { return state[0]; }
    long state[12];
};
struct Listener : Session {
    long serve() override { return 1; }
};
}

app::Session *kept;

static __attribute__((noinline)) long lose(int count)
{
    long sum = 0;
    for (int i = 0; i < count; i++) {
        app::Session *session = new app::Session;
        sum += ~(long)session;
    }
    return sum;
}

static __attribute__((noinline)) void scrub(void)
{
    volatile char room[65536];
    memset((void *)room, 0, sizeof room);
}

int main()
{
    static long sum;
    kept = new app::Listener;
    sum = lose(500);
    scrub();
    printf("READY %d\n", getpid());
    fflush(0);
    for (;;)
        pause();
    return (int)sum;
}
