"""What a native thread is blocked in: the lock that its futex belongs to, and who owns that.

Which kind of lock it is say the functions on its stack, as far as libraries export them: pthread_mutex_lock,
pthread_cond_wait, sem_wait … Then the structure is read around the futex: glibc's layouts for x86-64 and
aarch64, which are part of its ABI (bits/struct_mutex.h, bits/struct_rwlock.h, bits/thread-shared-types.h;
unchanged since 2.25, condition variables until 2.40), and those of other libraries, which note less
(``otherlocks``). What does not look like what it should be is told without an owner.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from diagtool.runtimes.native.otherlocks import is_musl, musl_lock, rust_lock
from diagtool.runtimes.native.stacks.libc import is_libc
from diagtool.runtimes.native.stacks.model import NativeFrame

__all__ = ["NativeLock", "lock_of"]

_INNERMOST = 12  # frames in which the function is looked for that waits
_MAX_TID = 1 << 22
#: Owners as glibc writes them while it recovers a robust mutex (nptl/pthreadP.h).
_DEAD_OWNERS = (0x7FFFFFFF, 0x7FFFFFFE)
_KIND_RECURSIVE = 1
_STRUCT_PTHREAD = 0xA00  # bytes, at most
_MOST_POSITIONS = 1 << 30  # in the groups of a condition variable: g1_orig_size has 30 bits

Read = Callable[[int, int], "bytes | None"]


@dataclass(frozen=True, slots=True)
class NativeLock:
    """``name``: of the wait, as the function is called that a program calls. ``address`` and ``type`` of what
    is waited on; ``state`` as in ``snapshot.model.Thing`` (``owner``: a tid as the process sees it).

    ``inside``: (library, function) that whoever works on it has on the stack, where nothing else tells who.
    """

    name: str
    type: str
    address: int
    detail: str = ""
    state: Mapping[str, Any] = field(default_factory=dict)
    inside: tuple[str | None, str] | None = None


#: How functions are called that wait, without leading underscores, innermost first where one calls another.
_FUNCTIONS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"(pthread_)?(timed|clock)?join(_np|_ex)?$|pthread_(timed|clock)join\w*$", "pthread_join"),
        (r"pthread_cond_\w*wait\w*$|cnd_(timed)?wait$", "pthread_cond_wait"),
        (r"pthread_mutex_\w*lock\w*$|lll_mutex_lock\w*$|mtx_(timed)?lock$", "pthread_mutex_lock"),
        (r"pthread_rwlock_\w*(rd|wr)lock\w*$", "pthread_rwlock_lock"),
        (r"(new_)?sem_(timed|clock)?wait\w*$", "sem_wait"),
        (r"pthread_barrier_wait$", "pthread_barrier_wait"),
        (r"pthread_once\w*$|call_once$", "pthread_once"),
        (r"cxa_guard_acquire$", "static initializer"),
        (r"lll_lock_wait_private$", "lll_lock"),
        (r"gomp_(team_)?barrier_wait\w*$|gomp_\w*wait\w*$|GOMP_barrier$", "omp barrier"),
        (r"kmp_\w*(barrier|wait|suspend)\w*$", "omp barrier"),
    )
)
#: What is done once, by one thread, while others wait.
_ONCE = ("pthread_once", "static initializer")
_GUARDS = frozenset({"cxa_guard_acquire", "gthread_once", "call_once"})
#: What a lock of glibc itself protects, by who waits for it.
_INTERNAL = (
    (re.compile(r"(libc_)?(malloc|free|calloc|realloc|memalign|int_malloc|int_free)\w*$"), "malloc's arena"),
    (re.compile(r"_?IO_\w+$|f?(puts|printf|write|flush|lockfile|getc|gets)\w*$"), "a stdio stream"),
    (re.compile(r"(run_)?exit(_handlers)?$|cxa_(atexit|finalize)$"), "exit handlers"),
    (re.compile(r"dl_\w+$|dlopen\w*$|dlsym\w*$"), "the dynamic linker"),
)


def lock_of(
    frames: Sequence[NativeFrame], futex: int, read: Read, threads: Mapping[int, int]
) -> NativeLock | None:
    """What a thread waits for that sleeps on ``futex``, None where its functions don't tell.

    ``threads``: pthread_self() of the threads -> their tids, as the process itself sees these.
    """
    rust = rust_lock(frames[:_INNERMOST], futex, read)
    if rust is not None:
        return NativeLock(*rust)
    names = [_plain(frame.function) for frame in frames[:_INNERMOST]]
    musl = is_musl(frames[:_INNERMOST], names)
    for number, bare in enumerate(names):
        name = next((wait for pattern, wait in _FUNCTIONS if pattern.match(bare)), None)
        if name is None:
            continue
        if musl and (told := musl_lock(name, futex, read, threads)) is not None:
            return _of_musl(name, *told, threads)
        found = _READERS[name](futex, read, threads, names[number:])
        if name in _ONCE:
            # The same function called it in the thread that is at work, or (a static) runs the initializer.
            own = [f for f in frames[number:] if not is_libc(f.library) and _plain(f.function) not in _GUARDS]
            if own and own[0].function:
                return replace(found, inside=(own[0].library, own[0].function))
        guarded = _guard(names[number:]) if name == "pthread_mutex_lock" else None
        if guarded is not None:
            found = NativeLock(name, found.type, found.address, f"{guarded}; {found.detail}", found.state)
        return found
    return None


def _of_musl(
    name: str, type_: str, address: int, detail: str, tid: int, threads: Mapping[int, int]
) -> NativeLock:
    if not tid:
        return NativeLock(name, type_, address, detail)
    words, state = _owned(tid, threads)
    return NativeLock(name, type_, address, f"thread {tid}" if name == "pthread_join" else words, state)


_CLONE = re.compile(r"\.(constprop|isra|part|cold|lto_priv)\b.*$")  # what GCC makes of a function


def _plain(function: str) -> str:
    function = _CLONE.sub("", function)
    bare = function.partition("(")[0].rpartition("::")[2] if "(" in function else function
    return bare.partition("@")[0].removeprefix("__GI_").lstrip("_").removeprefix("GI_").lstrip("_")


def _guard(names: Sequence[str]) -> str | None:
    return next((what for pattern, what in _INTERNAL[3:] if any(pattern.match(n) for n in names[1:4])), None)


def _ints(read: Read, address: int, count: int) -> tuple[int, ...] | None:
    raw = read(address, 4 * count) if address > 0 else None
    return None if raw is None else struct.unpack(f"<{count}i", raw)


def _owned(tid: int, threads: Mapping[int, int]) -> tuple[str, dict[str, Any]]:
    if tid in _DEAD_OWNERS:
        return "its owner has ended", {"owner_alive": False}
    if not 0 < tid < _MAX_TID:
        return "", {}
    if tid in threads.values():
        return f"held by thread {tid}", {"owner": tid, "owner_alive": True}
    return f"held by thread {tid}, which is not in this process", {"owner": tid, "owner_alive": False}


# int lock, unsigned count, int owner, unsigned nusers, int kind (bits/struct_mutex.h)
def _mutex(futex: int, read: Read, threads: Mapping[int, int], names: Sequence[str]) -> NativeLock:
    words = _ints(read, futex, 5)
    if words is None:
        return NativeLock("pthread_mutex_lock", "pthread_mutex_t", futex)
    lock, count, owner, users, kind = words
    state: dict[str, Any] = {"locked": lock != 0}
    detail = "locked" if lock else "not locked"
    # A normal mutex counts its users; one of another kind of lock (a spin lock's word, say) has garbage here.
    if lock and 0 < users < 1 << 20 and 0 <= count < 1 << 20 and 0 <= kind < 1 << 10:
        words_, more = _owned(owner, threads)
        detail = words_ or detail
        state.update(more)
        if kind & 3 == _KIND_RECURSIVE:
            state["count"] = count
    return NativeLock("pthread_mutex_lock", "pthread_mutex_t", futex, detail, state)


# 64-bit wseq and g1_start, g_refs[2], g_size[2], g1_orig_size, wrefs, g_signals[2] (thread-shared-types.h).
# Since 2.41 (and some builds of 2.38 to 2.40) without g_refs. The thread sleeps on one of g_signals.
def _condition(futex: int, read: Read, threads: Mapping[int, int], names: Sequence[str]) -> NativeLock:
    for group in (0, 1):
        for signals in (40, 32):
            address = futex - signals - 4 * group
            raw = read(address, signals + 8)
            if raw is None:
                continue
            sequence, start = struct.unpack_from("<2Q", raw)
            waiters = int(struct.unpack_from("<I", raw, signals - 4)[0] >> 3)
            # Both count positions of waiters; between them are those of the two groups.
            if 0 <= (sequence >> 1) - (start >> 1) < _MOST_POSITIONS and 0 < waiters < 1 << 20:
                state = {"waiters": waiters}
                return NativeLock(
                    "pthread_cond_wait", "pthread_cond_t", address, f"{waiters:,} waiting", state
                )
    return NativeLock("pthread_cond_wait", "pthread_cond_t", futex)


def _rwlock(futex: int, read: Read, threads: Mapping[int, int], names: Sequence[str]) -> NativeLock:
    # readers, writers, wrphase_futex, writers_futex, pad, pad, cur_writer (bits/struct_rwlock.h)
    for offset in (8, 12):
        words = _ints(read, futex - offset, 7)
        if words is not None and 0 < words[6] < _MAX_TID:
            detail, state = _owned(words[6], threads)
            if state.get("owner_alive"):
                return NativeLock("pthread_rwlock_lock", "pthread_rwlock_t", futex - offset, detail, state)
    return NativeLock("pthread_rwlock_lock", "pthread_rwlock_t", futex - 8)


def _semaphore(futex: int, read: Read, threads: Mapping[int, int], names: Sequence[str]) -> NativeLock:
    raw = read(futex, 8)
    if raw is None:
        return NativeLock("sem_wait", "sem_t", futex)
    value, waiters = struct.unpack("<2I", raw)  # of a private or shared one: sysdeps/nptl/internaltypes.h
    if value or not 0 < waiters < 1 << 20:
        return NativeLock("sem_wait", "sem_t", futex)
    return NativeLock(
        "sem_wait", "sem_t", futex, f"value 0, {waiters:,} waiting", {"value": 0, "waiters": waiters}
    )


# The kernel clears the tid in a thread's struct pthread when it ends: that is what a join waits for; from
# glibc 2.43 on it waits for a state in there (joinstate).
def _join(futex: int, read: Read, threads: Mapping[int, int], names: Sequence[str]) -> NativeLock:
    words = _ints(read, futex, 1)
    tid = words[0] if words is not None else 0
    if tid not in threads.values():
        below = max((base for base in threads if base <= futex < base + _STRUCT_PTHREAD), default=0)
        tid = threads.get(below, 0)
    if not 0 < tid < _MAX_TID or tid not in threads.values():
        return NativeLock("pthread_join", "pthread_t", futex)
    return NativeLock(
        "pthread_join", "pthread_t", futex, f"thread {tid}", {"owner": tid, "owner_alive": True}
    )


def _once(futex: int, read: Read, threads: Mapping[int, int], names: Sequence[str]) -> NativeLock:
    return NativeLock("pthread_once", "pthread_once_t", futex, "another thread runs it")


def _static(futex: int, read: Read, threads: Mapping[int, int], names: Sequence[str]) -> NativeLock:
    return NativeLock("static initializer", "__guard", futex, "another thread initialises the variable")


# A bare lock of glibc. That of a stdio stream is int lock, int count, void *owner: pthread_self()
# (sysdeps/nptl/stdio-lock.h).
def _internal(futex: int, read: Read, threads: Mapping[int, int], names: Sequence[str]) -> NativeLock:
    what = next((w for pattern, w in _INTERNAL if any(pattern.match(n) for n in names[1:5])), "")
    raw = read(futex, 16)
    if raw is not None and what == "a stdio stream":
        owner = struct.unpack("<2iQ", raw)[2]
        if owner in threads:
            tid = threads[owner]
            return NativeLock(
                "lll_lock", what, futex, f"held by thread {tid}", {"owner": tid, "owner_alive": True}
            )
    return NativeLock("lll_lock", what or "a lock of libc", futex)


def _barrier(futex: int, read: Read, threads: Mapping[int, int], names: Sequence[str]) -> NativeLock:
    return NativeLock("pthread_barrier_wait", "pthread_barrier_t", futex)


def _team(futex: int, read: Read, threads: Mapping[int, int], names: Sequence[str]) -> NativeLock:
    return NativeLock("omp barrier", "team", futex)


_READERS: dict[str, Callable[[int, Read, Mapping[int, int], Sequence[str]], NativeLock]] = {
    "pthread_mutex_lock": _mutex,
    "pthread_cond_wait": _condition,
    "pthread_rwlock_lock": _rwlock,
    "sem_wait": _semaphore,
    "pthread_join": _join,
    "pthread_once": _once,
    "static initializer": _static,
    "lll_lock": _internal,
    "pthread_barrier_wait": _barrier,
    "omp barrier": _team,
}
