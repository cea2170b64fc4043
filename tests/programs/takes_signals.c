/* A library that takes signals from Python: three ways to treat the handler that was there before. */
#include <signal.h>
#include <stddef.h>

static volatile int got;
static void (*before)(int);
static struct sigaction all_before[65];

/* Forgets it. */
static void forgets(int number) { got = number; }

/* Keeps it, and calls it on, two functions further down. */
__attribute__((noinline)) static void pass_on(int number) {
    if (before) before(number);
}
static void calls_on(int number) {
    got = number;
    pass_on(number);
}

/* Keeps all, in a table, and calls on the one of the signal. */
static void looks_up(int number) {
    got = number;
    if (all_before[number].sa_handler) all_before[number].sa_handler(number);
}

void take(int number) { signal(number, forgets); }
void take_and_call(int number) { before = signal(number, calls_on); }
void take_by_table(int number) {
    struct sigaction action = {.sa_handler = looks_up};
    sigaction(number, &action, &all_before[number]);
}
