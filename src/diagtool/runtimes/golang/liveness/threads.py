"""What threads hold at the moment of the stop: registers, and what lies on the stack that each is on.

A thread without work still has on its stack what it last did. It will not use that again, so it holds
nothing:
it has neither a goroutine nor a processor (``m.curg``, ``m.p``), and no lock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.capture.model import CapturedThread
from diagtool.capture.plan import MappingOrder
from diagtool.runtimes.golang.model import GoRuntime

__all__ = ["Held", "held_by_threads"]

_BELOW = 128  # bytes below a stack pointer that C may use
_MOST = 8 << 20  # bytes of one thread's stack
_PROGRAM = {"x86_64": ("rip", "rsp", "fs_base"), "aarch64": ("pc", "sp", "tpidr")}


@dataclass(slots=True)
class Held:
    """``words``: registers, and words on stacks that are no goroutine's. ``pointers``: by thread, its stack
    pointer, of all threads. ``places``: where busy threads are in the code. ``wrong``: why not all of it
    is known."""

    words: U64
    pointers: dict[int, int]
    places: list[int] = field(default_factory=list)
    wrong: str = ""


def held_by_threads(runtime: GoRuntime) -> Held:
    """What the threads of a process hold, other than on the stacks of goroutines."""
    capture = runtime.capture
    program, stack, _ = _PROGRAM[runtime.machine]
    order = MappingOrder(capture.mappings)
    words: list[U64] = [np.zeros(0, np.uint64)]
    pointers: dict[int, int] = {}
    places = []
    every = runtime.goroutines
    by_start = np.argsort(every.lo)
    lows, highs = every.lo[by_start], every.hi[by_start]
    wrong = ""
    for thread in capture.threads:
        if not thread.registers:
            wrong = f"thread {thread.tid} did not stop"
            continue
        pointer = thread.registers.get(stack, 0)
        pointers[pointer] = thread.registers.get(program, 0)
        m = _m_of(runtime, thread)
        if m and _is_idle(runtime, m):
            continue
        places.append(thread.registers.get(program, 0))
        values = [v & (1 << 64) - 1 for v in thread.registers.values()]
        words.append(np.array(values, np.uint64))
        vectors = thread.vectors
        words.append(np.frombuffer(vectors[: len(vectors) & -8], "<u8"))
        i = int(np.searchsorted(lows, np.uint64(pointer), side="right")) - 1
        if i >= 0 and lows[i] and pointer < highs[i]:
            continue  # a goroutine's: it is looked at there
        words.append(_stack(runtime, order, m, pointer))
    return Held(np.concatenate(words), pointers, places, wrong)


def _stack(runtime: GoRuntime, order: MappingOrder, m: int, pointer: int) -> U64:
    place = order.holding(pointer)
    if place is None:
        return np.zeros(0, np.uint64)
    end = min(order.mappings[place].end, pointer + _MOST)
    for name in ("g0", "gsignal"):
        g = runtime.word(m, "m", name) if m else 0
        low, high = (runtime.word(g, "g", f"stack.{part}") for part in ("lo", "hi")) if g else (0, 0)
        if low <= pointer < high:
            end = min(end, high)
    start = max(order.mappings[place].start, pointer - _BELOW & -8)
    values, _ = runtime.memory.load(np.arange(start, end & -8, 8, dtype=np.uint64))
    found: NDArray[np.uint64] = values
    return found


# The m of a thread: the word below its thread pointer is its g (runtime.tlsg), where it is one.
def _m_of(runtime: GoRuntime, thread: CapturedThread) -> int:
    own = thread.registers.get(_PROGRAM[runtime.machine][2], 0)
    if runtime.machine != "x86_64" or not own:
        return 0
    data = runtime.memory.try_read(own - 8, 8)
    g = int.from_bytes(data, "little") if data else 0
    m = runtime.word(g, "g", "m") if g else 0
    if not m or runtime.word(m, "m", "procid") not in (thread.tid, thread.ns_tid):
        return 0
    return m if g in (runtime.word(m, "m", n) for n in ("g0", "curg", "gsignal")) else 0


def _is_idle(runtime: GoRuntime, m: int) -> bool:
    busy = [runtime.word(m, "m", name) for name in ("curg", "p", "lockedg")]
    locks = runtime.memory.try_read(m + runtime.o("m", "locks"), 4)
    spinning = runtime.memory.try_read(m + runtime.o("m", "spinning"), 1)
    return not any(busy) and locks == b"\0\0\0\0" and spinning == b"\0"
