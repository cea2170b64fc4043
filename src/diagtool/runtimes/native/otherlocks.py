"""Locks of musl and of Rust's standard library: what they are, as far as these note it.

musl's structures are ``union``s of ints (src/internal/pthread_impl.h). A normal mutex has no owner in it, an
error-checking or recursive one has; a condition variable that is not shared between processes sleeps on the
stack of who waits, so its own address is not known. Rust's locks (library/std/src/sys/sync/…/futex.rs) are a
word or two without an owner: their functions on the stack say which kind of lock it is.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence

from diagtool.runtimes.native.stacks.model import NativeFrame

__all__ = ["is_musl", "musl_lock", "rust_lock"]

Read = Callable[[int, int], "bytes | None"]

_NO_OWNER = "locked; by whom is not noted in it"
_MOST_WAITING = 1 << 20

# -- musl -----------------------------------------------------------------------------------------------

_LIBRARIES = ("ld-musl", "libc.musl")
_FUNCTIONS = frozenset({"timedwait", "timedwait_cp", "syscall_cp", "syscall_cp_c", "syscall_cp_asm"})
_OWNER = 0x3FFFFFFF  # of _m_lock; the bits above say that others wait and that the owner has died
_NORMAL = 0
_MOST_STRUCT = 512  # bytes of struct pthread in which detach_state is


def is_musl(frames: Sequence[NativeFrame], names: Sequence[str]) -> bool:
    """Whether these frames are of musl, shared or static. ``names``: theirs, without leading underscores."""
    libraries = [(f.library or "").rpartition("/")[2] for f in frames]
    if any(n == "libc.so" or n.startswith(_LIBRARIES) for n in libraries):
        return True
    return not _FUNCTIONS.isdisjoint(names)


def musl_lock(
    name: str, futex: int, read: Read, threads: Mapping[int, int]
) -> tuple[str, int, str, int] | None:
    """(type, address or 0, detail, tid of the owner or 0) of what is waited on in ``name``.

    None for what needs no structure.
    """
    reader = _MUSL.get(name)
    return None if reader is None else reader(futex, read, threads)


def _ints(read: Read, address: int, count: int) -> tuple[int, ...]:
    raw = read(address, 4 * count) if address > 0 else None
    return (0,) * count if raw is None else struct.unpack(f"<{count}i", raw)


# _m_type, _m_lock, _m_waiters
def _mutex(futex: int, read: Read, threads: Mapping[int, int]) -> tuple[str, int, str, int]:
    kind, lock, _ = _ints(read, futex - 4, 3)
    owner = lock & _OWNER if kind & 3 != _NORMAL and lock & _OWNER != _OWNER else 0
    return "pthread_mutex_t", futex - 4, _NO_OWNER if lock else "", owner


def _condition(futex: int, read: Read, threads: Mapping[int, int]) -> tuple[str, int, str, int]:
    return "pthread_cond_t", 0, "", 0


# _rw_lock: readers, or all ones below the uppermost bit
def _rwlock(futex: int, read: Read, threads: Mapping[int, int]) -> tuple[str, int, str, int]:
    held = _ints(read, futex, 1)[0] & 0x7FFFFFFF
    words = "held by a writer" if held == 0x7FFFFFFF else f"{held:,} reading" if held < _MOST_WAITING else ""
    return "pthread_rwlock_t", futex, words if held else "", 0


# value, waiters
def _semaphore(futex: int, read: Read, threads: Mapping[int, int]) -> tuple[str, int, str, int]:
    _, waiters = _ints(read, futex, 2)
    return "sem_t", futex, f"{waiters:,} waiting" if 0 < waiters < _MOST_WAITING else "", 0


# detach_state is in the struct pthread of the thread that is waited for.
def _join(futex: int, read: Read, threads: Mapping[int, int]) -> tuple[str, int, str, int]:
    below = max((base for base in threads if base <= futex < base + _MOST_STRUCT), default=0)
    return "pthread_t", below or futex, "", threads.get(below, 0)


_MUSL: dict[str, Callable[[int, Read, Mapping[int, int]], tuple[str, int, str, int]]] = {
    "pthread_mutex_lock": _mutex,
    "pthread_cond_wait": _condition,
    "pthread_rwlock_lock": _rwlock,
    "sem_wait": _semaphore,
    "pthread_join": _join,
}

# -- Rust -----------------------------------------------------------------------------------------------

#: What programs call, by what waits for it; the first that fits is the outermost of what may be there.
_RUST = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"std::sync::(mpmc|mpsc)::.*\brecv\b", "std::sync::mpsc::Receiver::recv"),
        (r"std::sync::(mpmc|mpsc)::.*\bsend\b", "std::sync::mpsc::SyncSender::send"),
        (r"std::sync::(poison::)?barrier::", "std::sync::Barrier::wait"),
        (r"std::sys\b.*[Cc]ondvar\b.*::wait", "std::sync::Condvar::wait"),
        (r"std::sys\b.*[Mm]utex\b.*::lock_contended", "std::sync::Mutex::lock"),
        (r"std::sys\b.*::read_contended", "std::sync::RwLock::read"),
        (r"std::sys\b.*::write_contended", "std::sync::RwLock::write"),
        (r"std::sys\b.*[Oo]nce\b.*::(call|wait)\b", "std::sync::Once::call_once"),
        (r"std::thread\b.*::park(_timeout)?\b", "std::thread::park"),
        (r"parking_lot::raw_mutex::.*lock_slow", "parking_lot::Mutex::lock"),
        (r"parking_lot::raw_rwlock::.*_slow", "parking_lot::RwLock::lock"),
        (r"parking_lot::condvar::.*wait", "parking_lot::Condvar::wait"),
    )
)

#: Those that sleep on a word of their own; others on one of the thread that waits.
_PLACED = ("std::sync::Mutex", "std::sync::RwLock", "std::sync::Condvar", "std::sync::Once")


def rust_lock(frames: Sequence[NativeFrame], futex: int, read: Read) -> tuple[str, str, int, str] | None:
    """(name, type, address, detail) of a wait of Rust's standard library or parking_lot; None: it is none."""
    names = [f.function for f in frames if f.language == "rust"]
    found = next((wait for pattern, wait in _RUST if any(pattern.search(n) for n in names)), None)
    if found is None:
        return None
    kind = found.rpartition("::")[0]
    if kind not in _PLACED:
        return found, kind, 0, ""
    if found == "std::sync::Mutex::lock" and _ints(read, futex, 1)[0] in (1, 2):  # locked, and others wait
        return found, kind, futex, _NO_OWNER
    return found, kind, futex, ""
