"""Which lock a futex belongs to, and who owns it, of structures as glibc lays them out."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagtool.runtimes.native.called import called
from diagtool.runtimes.native.stacks import NativeFrame
from diagtool.runtimes.native.waits import NativeLock, lock_of

AT = 0x7F00_0000_1000
LIBC = "/lib/x86_64-linux-gnu/libc.so.6"
OWN = "/srv/app/engine.so"
#: pthread_self() -> tid
THREADS = {0x7F11_0000: 101, 0x7F22_0000: 102}


def memory(data: bytes, at: int = AT) -> Callable[[int, int], bytes | None]:
    def read(address: int, size: int) -> bytes | None:
        low = address - at
        return data[low : low + size] if low >= 0 and low + size <= len(data) else None

    return read


def frames(*names: str) -> list[NativeFrame]:
    """Names of functions, innermost first; those behind a colon are the program's own."""
    return [
        NativeFrame(0x1000 + i, 0x7000 + 16 * i, n.lstrip(":"), library=OWN if n.startswith(":") else LIBC)
        for i, n in enumerate(names)
    ]


def mutex(lock: int = 2, count: int = 0, owner: int = 101, users: int = 1, kind: int = 0) -> bytes:
    return struct.pack("<5i20x", lock, count, owner, users, kind)


def found(data: bytes, *names: str, futex: int = AT) -> NativeLock:
    lock = lock_of(frames(*names), futex, memory(data), THREADS)
    assert lock is not None
    return lock


LOCKED = ("__GI___lll_lock_wait", "___pthread_mutex_lock", ":app::flush")


@pytest.mark.parametrize(
    "names",
    [
        LOCKED,
        ("futex_wait", "__lll_lock_wait", "lll_mutex_lock_optimized", "pthread_mutex_lock", ":app::flush"),
        ("__lll_lock_wait", "__pthread_mutex_lock@GLIBC_2.2.5", ":f"),
        ("", "pthread_mutex_lock", ":f"),  # stripped: libc exports this one
    ],
)
def test_a_mutex_has_its_owner(names: tuple[str, ...]) -> None:
    lock = found(mutex(), *names)
    assert (lock.name, lock.address) == ("pthread_mutex_lock", AT)
    assert lock.state == {"locked": True, "owner": 101, "owner_alive": True}


def test_an_owner_that_is_no_thread_of_the_process_is_gone() -> None:
    assert found(mutex(owner=999), *LOCKED).state["owner_alive"] is False


@pytest.mark.parametrize(
    "data",
    [
        mutex(users=-5),  # no mutex counts so
        mutex(kind=1 << 20),
        mutex(lock=0),  # it was unlocked a moment ago
        mutex(owner=0),
        b"",
    ],
)
def test_what_does_not_look_like_a_mutex_has_no_owner(data: bytes) -> None:
    assert "owner" not in found(data, *LOCKED).state


def test_a_condition_variable_has_no_owner() -> None:
    data = struct.pack("<2Q8I", 8, 4, 2, 0, 1, 0, 0, 2 << 3, 0, 0)
    for group in (0, 1):
        lock = found(data, "futex_wait", "__pthread_cond_wait_common", ":f", futex=AT + 40 + 4 * group)
        assert (lock.name, lock.address, dict(lock.state)) == ("pthread_cond_wait", AT, {"waiters": 2})


@pytest.mark.parametrize("before", [0, 0x7F33_1234_5678], ids=["nothing", "a pointer"])
def test_a_condition_variable_of_glibc_2_41_has_no_references_of_groups(before: int) -> None:
    # 64-bit wseq and g1_start, g_size[2], g1_orig_size, wrefs, g_signals[2], two that are not used
    data = struct.pack("<3Q8I", before, 8, 4, 0, 1, 0, 3 << 3, 0, 0, 0, 0)
    for group in (0, 1):
        lock = found(data, "futex_wait", "__pthread_cond_wait_common", ":f", futex=AT + 40 + 4 * group)
        assert (lock.address, dict(lock.state)) == (AT + 8, {"waiters": 3})


MUSL = ("__syscall_cp_c", "__timedwait_cp")


def of_musl(data: bytes, *names: str, futex: int = AT) -> tuple[str, int, str, dict[str, Any]]:
    shared = [
        NativeFrame(0x1000 + i, 0x7000 + 16 * i, n, library="/lib/ld-musl-x86_64.so.1")
        for i, n in enumerate(names)
    ]
    static = frames(*(f":{n}" for n in (*MUSL, *names)))
    locks = [lock_of(f, futex, memory(data), THREADS) for f in (shared, static)]
    assert locks[0] is not None and locks[0] == locks[1]
    return locks[0].type, locks[0].address, locks[0].detail, dict(locks[0].state)


def test_locks_of_musl_are_read_as_musl_lays_them_out() -> None:
    held = {"owner": 101, "owner_alive": True}
    kind, address, words, state = of_musl(
        struct.pack("<3i", 0, 16, 1), "pthread_mutex_timedlock", futex=AT + 4
    )
    assert (kind, address, state) == ("pthread_mutex_t", AT, {}) and "by whom is not noted" in words
    recursive = struct.pack("<3i", 1, 101 - (1 << 31), 1)
    assert of_musl(recursive, "pthread_mutex_timedlock", futex=AT + 4)[1:] == (AT, "held by thread 101", held)
    # Who waits for a condition sleeps on a word of its own stack: nothing around that is the condition's.
    stack = struct.pack("<12I", *range(7, 19)) * 2
    assert of_musl(stack, "__pthread_cond_timedwait", futex=AT + 44) == ("pthread_cond_t", 0, "", {})
    assert of_musl(struct.pack("<2i", -1, 2), "sem_timedwait")[2] == "2 waiting"
    assert of_musl(struct.pack("<i", -1), "__pthread_rwlock_timedrdlock")[2] == "held by a writer"
    assert of_musl(struct.pack("<i", 3), "__pthread_rwlock_timedwrlock")[2] == "3 reading"
    joined = of_musl(b"", "__pthread_timedjoin_np", futex=0x7F11_0038)
    assert joined == ("pthread_t", 0x7F11_0000, "thread 101", held)


@pytest.mark.parametrize(
    ("functions", "name", "address"),
    [
        (["<std::sys::sync::mutex::futex::Mutex>::lock_contended", "app::f"], "std::sync::Mutex::lock", AT),
        (["std::sys::unix::locks::futex_mutex::Mutex::lock_contended"], "std::sync::Mutex::lock", AT),
        (["<std::sys::sync::rwlock::futex::RwLock>::read_contended"], "std::sync::RwLock::read", AT),
        (["<std::sys::sync::condvar::futex::Condvar>::wait"], "std::sync::Condvar::wait", AT),
        (
            ["<std::thread::thread::Thread>::park", "std::sync::mpmc::list::Channel<T>::recv::{{closure}}"],
            "std::sync::mpsc::Receiver::recv",
            0,
        ),
        (["std::thread::functions::park", "app::f"], "std::thread::park", 0),
        (["parking_lot::raw_mutex::RawMutex::lock_slow", "app::f"], "parking_lot::Mutex::lock", 0),
    ],
)
def test_locks_of_rust_are_told_by_its_functions(functions: list[str], name: str, address: int) -> None:
    stack = [NativeFrame(0x1000, 0x7000, f, library=OWN, language="rust") for f in functions]
    lock = lock_of(stack, AT, memory(struct.pack("<I", 2)), THREADS)
    assert lock is not None
    assert (lock.name, lock.address, dict(lock.state)) == (name, address, {})
    assert ("not noted" in lock.detail) == (name == "std::sync::Mutex::lock")


def test_a_semaphore_without_permits_says_how_many_wait() -> None:
    lock = found(struct.pack("<2I", 0, 3), "do_futex_wait", "__new_sem_wait_slow64.constprop.0", ":f")
    assert (lock.name, dict(lock.state)) == ("sem_wait", {"value": 0, "waiters": 3})


def test_the_writer_owns_a_read_write_lock() -> None:
    data = struct.pack("<8i", 1, 1, 1, 1, 0, 0, 102, 0)
    lock = found(
        data, "futex_wait", "__pthread_rwlock_rdlock_full64", "pthread_rwlock_rdlock", ":f", futex=AT + 8
    )
    assert (lock.name, lock.address, lock.state["owner"]) == ("pthread_rwlock_lock", AT, 102)


def test_who_joins_waits_for_the_thread() -> None:
    lock = found(struct.pack("<i", 102), "__futex_abstimed_wait_common", "__pthread_clockjoin_ex", ":f")
    assert (lock.name, lock.state["owner"]) == ("pthread_join", 102)

    lock = found(struct.pack("<i", 1), "syscall", "pthread_join", ":f", futex=0x7F11_0318)  # 2.43: a state
    assert (lock.name, lock.state["owner"]) == ("pthread_join", 101)


def test_a_stream_notes_its_owner() -> None:
    data = struct.pack("<2iQ", 2, 1, 0x7F22_0000)
    lock = found(data, "__lll_lock_wait_private", "_IO_puts", ":log")
    assert (lock.type, lock.state["owner"]) == ("a stdio stream", 102)
    lock = found(data, "__lll_lock_wait_private", "_int_free", "cfree", ":f")
    assert (lock.type, dict(lock.state)) == ("malloc's arena", {})


def test_what_is_done_once_names_the_function_that_does_it() -> None:
    lock = found(b"", "syscall", "__cxa_guard_acquire", ":app::settings()", ":main")
    assert (lock.name, lock.inside) == ("static initializer", (OWN, "app::settings()"))
    lock = found(b"", "futex_wait", "__pthread_once_slow", ":app::load()")
    assert (lock.name, lock.inside) == ("pthread_once", (OWN, "app::load()"))


def test_functions_that_say_nothing_are_no_lock() -> None:
    assert lock_of(frames("syscall", ":absl::Mutex::Lock()"), AT, memory(mutex()), THREADS) is None
    assert lock_of([], AT, memory(b""), THREADS) is None


SLOT, FUNCTION = AT + 0x100, 0x7F00_2000_0000
#: Calls that end at AT + 0x16, and stubs of the linkage table at AT + 0x80.
CALLS = {
    "direct": (b"\xe8" + struct.pack("<i", FUNCTION - AT - 0x16 & 0x7FFFFFFF), b""),
    "slot": (b"\xff\x15" + struct.pack("<i", SLOT - AT - 0x16), b""),
    "stub": (b"\xe8" + struct.pack("<i", 0x6A), b"\xff\x25" + struct.pack("<i", SLOT - AT - 0x86)),
    "stub with IBT": (
        b"\xe8" + struct.pack("<i", 0x6A),
        b"\xf3\x0f\x1e\xfa\xff\x25" + struct.pack("<i", SLOT - AT - 0x8A),
    ),
    "stub with BND": (
        b"\xe8" + struct.pack("<i", 0x6A),
        b"\xf3\x0f\x1e\xfa\xf2\xff\x25" + struct.pack("<i", SLOT - AT - 0x8B),
    ),
}


@pytest.mark.parametrize("kind", CALLS)
def test_what_was_called_is_read_from_the_call(kind: str) -> None:
    call, stub = CALLS[kind]
    data = bytearray(0x110)
    data[0x16 - len(call) : 0x16] = call
    data[0x80 : 0x80 + len(stub)] = stub
    struct.pack_into("<Q", data, 0x100, FUNCTION)
    expected = AT + 0x16 + (FUNCTION - AT - 0x16 & 0x7FFFFFFF) if kind == "direct" else FUNCTION
    assert called(AT + 0x16, memory(bytes(data))) == expected


@given(st.binary(max_size=64), st.integers(0, 64))
def test_a_call_that_is_none_leads_anywhere_or_nowhere(data: bytes, at: int) -> None:
    assert isinstance(called(AT + at, memory(data)), int)


NAMES = (
    "___pthread_mutex_lock",
    "pthread_cond_wait",
    "sem_wait",
    "__lll_lock_wait_private",
    "_IO_puts",
    ":f",
)
MORE = (
    "pthread_rwlock_wrlock",
    "pthread_join",
    "__cxa_guard_acquire",
    "gomp_team_barrier_wait_end",
    "puts",
    "",
)


@given(
    st.binary(max_size=80),
    st.lists(st.sampled_from(NAMES + MORE), max_size=6),
    st.integers(AT - 64, AT + 96) | st.integers(0, (1 << 64) - 1),
)
def test_garbage_gives_an_owner_among_the_threads_or_none(data: bytes, names: list[str], futex: int) -> None:
    lock = lock_of(frames(*[n or "?" for n in names]), futex, memory(data), THREADS)
    if lock is not None and lock.state.get("owner_alive"):
        assert lock.state["owner"] in THREADS.values()
