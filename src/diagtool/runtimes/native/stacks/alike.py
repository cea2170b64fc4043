"""Stacks that are unwound as another one was: of a pool of threads one is looked at, the others compared.

Unwinding is a calculation. It begins with registers and goes on with the words that it reads: return
addresses and saved registers. Tables, by the return address alone, say where these are, from what points into
the stack. So a stack that lies somewhere else is unwound to the same frames if it begins at the same
instruction and each of these words is the same, or is as far away as the stack is where it points into it.
Nothing is guessed: a word that differs in any other way means that this stack is unwound by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import AddressSpace
from diagtool.capture.model import CapturedThread
from diagtool.runtimes.native.stacks.model import NativeFrame

__all__ = ["Unwound", "Waiting"]

_LARGEST = 16 << 20  # bytes of a stack, from its end to the outermost word that was read
_AROUND = 4096  # bytes around that in which a word is taken for one that points into it
_MOST_READS = 4096  # words; a stack of thousands of frames is like no other
_FRUITLESS = 32  # stacks with the same first instruction that may be compared in vain
#: Registers that a table may count from. What the kernel alone knows (orig_rax) and segments are none.
_REGISTERS = "rsp rbp rbx r12 r13 r14 r15 rax rcx rdx rsi rdi r8 r9 r10 r11".split()


class Unwound:
    """A stack that was unwound to its end: ``reads`` are (address, bytes) of all that was read for it."""

    def __init__(
        self, thread: CapturedThread, frames: Sequence[NativeFrame], reads: Sequence[tuple[int, bytes]]
    ) -> None:
        self.frames = frames
        self.stack = thread.registers["rsp"]
        self.fit = 0 < len(reads) <= _MOST_READS and all(len(word) == 8 for _, word in reads)
        addresses = sorted({address for address, _ in reads}) or [self.stack]
        self.fit &= self.stack <= addresses[0] and addresses[-1] - self.stack < _LARGEST
        if not self.fit:
            return
        known = {address: int.from_bytes(word, "little") for address, word in reads}
        self._low, self._high = self.stack - _AROUND, addresses[-1] + 8 + _AROUND
        self._places = np.array(addresses, np.uint64)
        self._words = np.array([known[a] for a in addresses], np.uint64)
        self._registers = _registers(thread)
        codes = np.array(sorted({frame.pc for frame in frames}), np.uint64)
        self._code = codes[np.minimum(np.searchsorted(codes, self._words), len(codes) - 1)] == self._words

    def same(self, memory: AddressSpace, registers: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which stacks, by their registers (n x _REGISTERS), are unwound to the same frames, elsewhere."""
        far = registers[:, :1] - self._registers[0]  # modulo 2**64: down as well as up
        good: NDArray[np.bool_] = (far[:, 0] & np.uint64(15)) == 0
        good &= self._moved(self._registers, registers, far).all(axis=1)
        if good.any():
            words, there = memory.load(self._places + far[good])
            moved = self._moved(self._words, words, far[good]) & (~self._code | (words == self._words))
            good[good] = (moved & there).all(axis=1)
        return good

    # What pointed into the stack points to the same place of the other one; what else it is does not matter.
    def _moved(
        self, ours: NDArray[np.uint64], theirs: NDArray[np.uint64], far: NDArray[np.uint64]
    ) -> NDArray[np.bool_]:
        inside = (ours >= np.uint64(max(self._low, 0))) & (ours < np.uint64(self._high))
        equal: NDArray[np.bool_] = ~inside | (theirs == ours + far)
        return equal

    def at(self, stack: int) -> list[NativeFrame]:
        """The frames of such a stack, where its stack pointer is this."""
        far = stack - self.stack
        return [replace(frame, sp=frame.sp + far) for frame in self.frames]


class Waiting:
    """The threads of a capture that are still to be unwound."""

    def __init__(self, memory: AddressSpace, threads: Sequence[CapturedThread]) -> None:
        self._memory = memory
        self._threads = threads
        self._registers = np.array([_registers(t) for t in threads], np.uint64).reshape(-1, len(_REGISTERS))
        self._code = np.array([t.registers["rip"] for t in threads], np.uint64)
        self._left = np.ones(len(threads), np.bool_)
        self._in_vain: dict[int, int] = {}

    def take(self, number: int) -> None:
        """This thread is unwound by itself."""
        self._left[number] = False

    def alike(self, number: int, unwound: Unwound) -> list[int]:
        """The numbers of the threads that ``unwound``, of thread ``number``, holds for. They are done now."""
        code = int(self._code[number])
        rows = np.flatnonzero(self._left & (self._code == self._code[number]))
        if not unwound.fit or not len(rows) or self._in_vain.get(code, 0) >= _FRUITLESS:
            return []
        found = rows[unwound.same(self._memory, self._registers[rows])]
        if not len(found):
            self._in_vain[code] = self._in_vain.get(code, 0) + 1
        self._left[found] = False
        out: list[int] = found.tolist()
        return out


def _registers(thread: CapturedThread) -> NDArray[np.uint64]:
    return np.array([thread.registers.get(name, 0) & (1 << 64) - 1 for name in _REGISTERS], np.uint64)
