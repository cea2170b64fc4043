"""Whether a signal handler in C may call on the one that it replaced: does its code lead to where that is.

Nothing is disassembled. Every four bytes of the handler, and of the functions of its library that it leads
to, are taken for a displacement from the instruction pointer, as x86-64 code reaches variables, functions
and the global offset table; and every byte behind what may be a short jump. So more is found than there is,
never less, but for addresses that are computed: a "may" that is wrong makes a verdict milder.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diagtool.capture.elf import PF_X
from diagtool.capture.model import Capture
from diagtool.capture.modules import Module

__all__ = ["leads_to"]

_LONGEST = 4096  # bytes of one function that are looked at
_MOST = 100  # functions
_TABLE = 65 * 152  # bytes of an array of struct sigaction for all signals


def leads_to(capture: Capture, module: Module, handler: int, places: Sequence[int]) -> list[int]:
    """Those of ``places`` (addresses of words in the module's data) that the handler may read."""
    wanted = [(place, *_variable(module, place)) for place in places]
    found: set[int] = set()
    seen: set[int] = set()
    queue = [handler]
    while queue and len(found) < len(places):
        start = queue.pop()
        if start in seen:
            continue
        if len(seen) >= _MOST:
            return list(places)  # too much code to say no
        seen.add(start)
        code = capture.memory.try_read(start, _length(module, start))
        if code is None:
            return list(places)
        code = code.ljust(4, b"\0")
        at = np.arange(len(code) - 3, dtype=np.int64)
        raw = np.frombuffer(code, np.uint8).astype(np.uint32)
        steps = (raw[:-3] | raw[1:-2] << 8 | raw[2:-1] << 16 | raw[3:] << 24).astype(np.int32)
        targets = start + at + 4 + steps.astype(np.int64)
        # Short jumps have one byte: 0xEB, and 0x70 to 0x7F with a condition.
        short = np.flatnonzero((raw[:-1] == 0xEB) | (raw[:-1] >> 4 == 7))
        jumps = start + short + 2 + raw[short + 1].astype(np.uint8).astype(np.int8).astype(np.int64)
        targets = np.concatenate([targets, jumps])
        targets = targets[(targets >= module.start) & (targets < module.end)]
        words, ok = capture.memory.load(targets.astype(np.uint64))
        both = np.concatenate([targets, words[ok & (words < np.uint64(1 << 62))].astype(np.int64)])
        found.update(p for p, low, high in wanted if ((both >= low) & (both < high)).any())
        inside = np.unique(both[(both >= module.start) & (both < module.end)])
        queue += [_function(module, t) for t in inside.tolist() if module.flags_at(t) & PF_X]
    return sorted(found)


def _variable(module: Module, place: int) -> tuple[int, int]:
    """The variable that holds a word; without symbols whatever may be a table that it is in."""
    known = module.variable_at(place)
    return (known[1], known[1] + known[2]) if known is not None else (place - _TABLE, place + 8)


def _function(module: Module, address: int) -> int:
    known = module.symbol_at(address)
    return address - known[1] if known is not None else address


def _length(module: Module, start: int) -> int:
    """Bytes up to where another function begins."""
    known = module.symbol_at(start)
    if known is None:
        return _LONGEST
    low, high = 0, _LONGEST
    while high - low > 1:
        middle = (low + high) // 2
        if module.symbol_at(start + middle) == (known[0], known[1] + middle):
            low = middle
        else:
            high = middle
    return low + 1
