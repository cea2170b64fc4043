"""What threads hold at the moment of the stop: registers, and what lies on the stack that each is on.

A thread without work still has on its stack what it last did. It will not use that again, so it holds
nothing:
it has neither a goroutine nor a processor (``m.curg``, ``m.p``), and no lock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from diagtool.capture.memory import U64
from diagtool.capture.model import CapturedThread
from diagtool.capture.plan import MappingOrder
from diagtool.runtimes.golang.model import GoRuntime, Status
from diagtool.runtimes.golang.pclntab import Functions

__all__ = ["Held", "held_by_threads"]

_BELOW = 128  # bytes below a stack pointer that C may use
_MOST = 8 << 20  # bytes of one thread's stack
_REGISTERS = {"x86_64": ("rip", "rsp", "fs_base"), "aarch64": ("pc", "sp", "tpidr")}


@dataclass(slots=True)
class Held:
    """``words``: registers, and words on stacks that are no goroutine's. ``pointers``: of all threads, by
    their
    stack pointer, where they are in the code. ``frames``: n x (pc, sp, low, high) of threads that are in the
    runtime's code, on a stack of its own. ``places``: where busy threads are in the code. ``wrong``: why not
    all of it is known."""

    words: U64
    pointers: dict[int, int]
    frames: U64
    places: list[int] = field(default_factory=list)
    wrong: str = ""


def held_by_threads(runtime: GoRuntime, functions: Functions) -> Held:
    """What the threads of a process hold, other than on the stacks of goroutines."""
    return _Reader(runtime, functions).read()


class _Reader:
    def __init__(self, runtime: GoRuntime, functions: Functions) -> None:
        self.runtime = runtime
        self.functions = functions
        self.order = MappingOrder(runtime.capture.mappings)
        every = runtime.goroutines
        self.by_low = np.argsort(every.lo)
        self.lows, self.highs = every.lo[self.by_low], every.hi[self.by_low]
        self.words: list[U64] = [np.zeros(0, np.uint64)]
        self.frames: list[tuple[int, int, int, int]] = []

    def read(self) -> Held:
        """Look at all threads."""
        program, stack, _ = _REGISTERS[self.runtime.machine]
        pointers: dict[int, int] = {}
        places = []
        wrong = ""
        for thread in self.runtime.capture.threads:
            if not thread.registers:
                wrong = f"thread {thread.tid} did not stop"
                continue
            place, pointer = thread.registers.get(program, 0), thread.registers.get(stack, 0)
            pointers[pointer] = place
            m = _m_of(self.runtime, thread)
            row = self._on(pointer)
            if (m and _is_idle(self.runtime, m)) or self._in_call(row):
                continue
            places.append(place)
            self.words.append(np.array([v & (1 << 64) - 1 for v in thread.registers.values()], np.uint64))
            vectors = thread.vectors
            self.words.append(np.frombuffer(vectors[: len(vectors) & -8], "<u8"))
            if row < 0:
                self._stack(m, place, pointer)
        frames = np.array(self.frames, np.uint64).reshape(-1, 4)
        return Held(np.concatenate(self.words), pointers, frames, places, wrong)

    # The goroutine whose stack an address is on, -1: none.
    def _on(self, pointer: int) -> int:
        i = int(np.searchsorted(self.lows, np.uint64(pointer), side="right")) - 1
        inside = i >= 0 and self.lows[i] and pointer < self.highs[i]
        return int(self.by_low[i]) if inside else -1

    # Whether a goroutine is in a system call: all that it needs is on its stack, further out.
    def _in_call(self, row: int) -> bool:
        g = self.runtime.goroutines
        return row >= 0 and g.status[row] == Status.SYSCALL and g.syscall_sp[row] != 0 and not g.scan[row]

    def _stack(self, m: int, place: int, pointer: int) -> None:
        runtime = self.runtime
        at = self.order.holding(pointer)
        if at is None:
            return
        mapping = self.order.mappings[at]
        low, high = mapping.start, min(mapping.end, pointer + _MOST)
        for name in ("g0", "gsignal"):
            g = runtime.word(m, "m", name) if m else 0
            lo, hi = (runtime.word(g, "g", f"stack.{part}") for part in ("lo", "hi")) if g else (0, 0)
            if lo <= pointer < hi:
                low, high = max(lo, low), min(hi, high)
                if name == "g0" and self.functions.at(place) is not None:
                    self.frames.append((place, pointer, low, high))
                    return
        start = max(low, pointer - _BELOW) & -8
        self.words.append(runtime.memory.load(np.arange(start, high & -8, 8, dtype=np.uint64))[0])


# The m of a thread: the word below its thread pointer is its g (runtime.tlsg), where it is one.
def _m_of(runtime: GoRuntime, thread: CapturedThread) -> int:
    own = thread.registers.get(_REGISTERS[runtime.machine][2], 0)
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
