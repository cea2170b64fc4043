"""Which memory of a process is what: data of modules, stacks and their live parts, everything else."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diagtool.capture.elf import PF_W
from diagtool.capture.memory import PAGE, U64, AddressSpace
from diagtool.capture.model import Capture, Mapping
from diagtool.capture.modules import Module
from diagtool.capture.plan import RED_ZONE, MappingOrder, is_anonymous, is_writable_private
from diagtool.capture.segments import merged

__all__ = [
    "Ranges",
    "code_made",
    "data_of_modules",
    "is_libc",
    "private_memory",
    "sealed",
    "stacks_of",
    "thread_stacks",
]

#: Address ranges [start, end), sorted and disjoint.
Ranges = list[tuple[int, int]]

_PTHREAD = 0x1000  # bytes of struct pthread that are looked at (0x900 with glibc 2.36)
_MOST_STACK = 1 << 30  # bytes
_LOOKED_AT = 256  # bytes of a stack, from its pointer upwards
_MOST_SEALED = 64 << 20  # bytes of one mapping
_MOST_CODE = 64 << 20  # bytes in all


def is_libc(module: Module) -> bool:
    """Whether a module goes by the name of the C library (libc.so.6, libc-2.31.so)."""
    name = module.path.rpartition("/")[2]
    return name.startswith(("libc.so", "libc-2."))


def data_of_modules(capture: Capture) -> Ranges:
    """The writable data of modules with their .bss, the C library's first; the others by address."""
    modules = sorted(capture.modules, key=lambda m: m.start)
    starts = [m.start for m in modules]
    first: Ranges = []
    others: Ranges = []
    for m in capture.mappings:
        i = bisect_right(starts, m.start) - 1
        if i < 0 or not is_writable_private(m):
            continue
        module = modules[i]
        if m.start < module.end and module.flags_at(m.start) & PF_W:
            part = (m.start, min(m.end, module.end))
            (first if is_libc(module) else others).append(part)
    return first + others


def private_memory(mappings: Sequence[Mapping]) -> Ranges:
    """Everything that is writable and private, neighbours joined."""
    return merged((m.start, m.end) for m in mappings if is_writable_private(m))


def sealed(capture: Capture) -> Ranges:
    """Private memory that may be written to no more: data protected after relocation, or by the program."""
    out = []
    for m in capture.mappings:
        if m.permissions[:2] != "r-" or not m.permissions.endswith("p") or m.end - m.start > _MOST_SEALED:
            continue
        if m.path.startswith("["):
            continue
        if is_anonymous(m) or any(
            x.contains(m.start) and x.flags_at(m.start) & PF_W for x in capture.modules
        ):
            out.append((m.start, m.end))
    return merged(out)


def code_made(capture: Capture) -> Ranges:
    """Code that the process made itself: of just-in-time compilers, with addresses between instructions."""
    out, room = [], _MOST_CODE
    for m in capture.mappings:
        if m.permissions[0] == "r" and m.permissions[2:] == "xp" and is_anonymous(m) and m.path[:1] != "[":
            out.append((m.start, min(m.end, m.start + room)))
            room -= out[-1][1] - m.start
    return merged(out)


@dataclass(frozen=True, slots=True)
class Stack:
    """The stack of a thread, from ``low`` to ``high``, and its stack pointer."""

    tid: int
    low: int
    high: int
    pointer: int


def stacks_of(capture: Capture) -> tuple[Ranges, Ranges]:
    """(whole stacks, the parts of them that no thread will read again: below the stack pointer)."""
    stacks = thread_stacks(capture)
    # Two threads on one stack: neither's dead part is dead for the other one.
    lows = [s.low for s in stacks]
    dead = [(s.low, s.pointer - RED_ZONE) for s in stacks if lows.count(s.low) == 1]
    return merged((s.low, s.high) for s in stacks), merged((a & -PAGE, b & -8) for a, b in dead if a < b)


def thread_stacks(capture: Capture) -> list[Stack]:
    """The stacks that are known, one for each thread with registers."""
    order = MappingOrder(capture.mappings)
    stacks = []
    _fetch_heads(capture)
    for thread in capture.threads:
        pointer = thread.registers.get("rsp", 0)
        place = order.holding(pointer)
        if place is None or not is_writable_private(order.mappings[place]):
            continue
        found = _by_pthread(capture.memory, thread.registers.get("fs_base", 0), pointer)
        if found is None and order.is_stack(place):
            found = order.mappings[place].start, order.mappings[place].end
        if found is not None:
            stacks.append(Stack(thread.tid, max(found[0], order.mappings[place].start), found[1], pointer))
    return stacks


# What describes each thread, read for all of them at once where it was not copied.
def _fetch_heads(capture: Capture) -> None:
    pointers: U64 = np.array([t.registers.get("fs_base", 0) & -PAGE for t in capture.threads], np.uint64)
    pages = np.unique(np.concatenate([pointers, pointers + np.uint64(PAGE)]))
    if len(capture.threads) > 1:
        capture.memory.load(pages[pages > 0], "u1")


def without_stack(capture: Capture) -> list[int]:
    """Threads of a core whose stacks are not in it.

    gcore reads a mapping as a whole, and leaves all of it zero where a page can't be read: since glibc 2.42
    guard pages are inside of the mappings of stacks (MADV_GUARD_INSTALL), so those of all threads but the
    main one are missing then. No living thread has nothing on its stack and no pointer to itself.
    """
    if capture.kind != "core":
        return []
    missing = []
    for thread in capture.threads:
        stack = capture.memory.try_read(thread.registers.get("rsp", 0), _LOOKED_AT)
        own = capture.memory.try_read(thread.registers.get("fs_base", 0), 8)
        if not any(stack or b"") and not any(own or b""):
            missing.append(thread.tid)
    return missing


# struct pthread holds ``stackblock`` and ``stackblock_size`` side by side (nptl/descr.h), at an offset that
# differs between versions: the pair of words that describes whole pages around both pointers.
def _by_pthread(memory: AddressSpace, thread: int, pointer: int) -> tuple[int, int] | None:
    raw = memory.try_read(thread, _PTHREAD) if thread else None
    if raw is None:
        raw = memory.try_read(thread, PAGE - thread % PAGE & -8) if thread else None
    if raw is None:
        return None
    words = np.frombuffer(raw, dtype="<u8")
    low, size = words[:-1], words[1:]
    good = (low % np.uint64(PAGE) == 0) & (size % np.uint64(PAGE) == 0) & (size > 0) & (size <= _MOST_STACK)
    good &= (low > 0) & (low <= pointer) & (np.uint64(pointer) - low < size)
    good &= np.uint64(thread) - low < size
    for i in np.flatnonzero(good)[:1].tolist():
        return int(low[i]), int(low[i]) + int(size[i])
    return None
