"""Where a stack goes on behind something that can't be unwound: code made at run time, a smashed frame.

A return address is a word that points right behind a call instruction, into code of a module. The next one up
the stack is most likely a frame's, so unwinding is taken up there; what is found so is marked as guessed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from diagtool.capture.elf import PF_X
from diagtool.capture.memory import AddressSpace
from diagtool.capture.model import Mapping
from diagtool.capture.modules import Module

__all__ = ["CallSites"]

_SEARCHED = 64 << 10  # bytes of a stack that are looked through
_LONGEST_CALL = (
    7  # bytes of a call instruction that a compiler makes: ff /2 with a 32-bit displacement, and REX
)


class CallSites:
    """Return addresses of the modules of one process. ``modules`` ascend by address."""

    def __init__(
        self, memory: AddressSpace, modules: Sequence[Module], mappings: Sequence[Mapping] = ()
    ) -> None:
        self._memory = memory
        self._made = [(m.start, m.end) for m in mappings if "x" in m.permissions]
        self._modules = sorted(modules, key=lambda m: m.start)
        self._starts = [m.start for m in self._modules]

    def module_at(self, address: int) -> Module | None:
        """The module that an address lies in."""
        at = bisect_right(self._starts, address) - 1
        if at < 0 or address >= self._modules[at].end:
            return None
        return self._modules[at]

    def is_code(self, address: int) -> bool:
        """Whether an address is in executable memory, also in code that was made at run time."""
        return any(start <= address < end for start, end in self._made)

    def is_return(self, address: int) -> bool:
        """Whether an address is right behind a call instruction of a module."""
        module = self.module_at(address)
        return module is not None and bool(module.flags_at(address) & PF_X) and self._behind_call(address)

    def next_return(self, stack: int) -> tuple[int, int] | None:
        """(where it stands, return address) of the first one at ``stack`` or above; None: there is none."""
        stack = stack + 7 & -8
        raw = self._memory.try_read(stack, 8)
        size = _SEARCHED
        while raw is not None and size > 8:
            whole = self._memory.try_read(stack, size)
            if whole is not None:
                raw = whole
                break
            size //= 2
        if raw is None:
            return None
        words = np.frombuffer(raw[: len(raw) & -8], "<u8")
        low = self._starts[0] if self._starts else 0
        high = max((m.end for m in self._modules), default=0)
        for at in np.flatnonzero((words >= np.uint64(low)) & (words < np.uint64(high))).tolist():
            word = int(words[at])
            if self.is_return(word):
                return stack + 8 * at, word
        return None

    # e8 rel32; ff /2: a register, or memory with no, one or four bytes of displacement.
    def _behind_call(self, address: int) -> bool:
        code = self._memory.try_read(address - _LONGEST_CALL, _LONGEST_CALL)
        if code is None:
            return False
        if code[-5] == 0xE8:
            return True
        return any(
            code[-size] == 0xFF and code[1 - size] >> 3 & 7 == 2 for size in (2, 3, 6, 7) if size <= len(code)
        )
