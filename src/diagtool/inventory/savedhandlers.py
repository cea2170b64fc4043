"""Who keeps the address of Python's signal handler: a library that replaced it and may call it on.

``signal()`` and ``sigaction()`` give back the handler that was there before. A library that keeps it, in a
variable of its own, has replaced it at some time, and may put it back or call it. One that does not can do
neither. Only the data of libraries is looked through: what lies on stacks are remains of calls.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diagtool.capture.model import Capture
from diagtool.capture.modules import Module

__all__ = ["Saved", "saved_handlers"]

_MAX_DATA = 256 << 20  # bytes of data that are looked through
_MAX_PLACES = 64
#: They take handlers for as long as a line is read, and forget nothing.
_FOR_A_WHILE = (
    "libreadline",
    "readline.",
    "libedit",
    "libncurses",
    "libtinfo",
    "ld-linux",
    "libc.so",
    "libc-",
)


@dataclass(frozen=True, slots=True)
class Saved:
    """One place: the library, the address, and both in words."""

    path: str
    address: int
    text: str


def saved_handlers(capture: Capture, handler: int, python: str) -> list[Saved]:
    """Places in the data of libraries, Python's own left out, that hold the address ``handler``."""
    ranges = []
    room = _MAX_DATA
    for module in capture.modules:
        name = module.path.rpartition("/")[2]
        if module.path == python or name.startswith(_FOR_A_WHILE):
            continue
        for low, high in _data(capture, module):
            size = min(high - low, room)
            room -= size
            if size > 0:
                ranges.append((low, low + size))
    out: list[Saved] = []
    if not ranges:
        return out
    for start, words in capture.memory.blocks(ranges):
        for place in np.flatnonzero(words == np.uint64(handler)).tolist()[:_MAX_PLACES]:
            address = start + 8 * place
            owner = max((m for m in capture.modules if m.start <= address), key=lambda m: m.start)
            text = f"{owner.path.rpartition('/')[2]}+{address - owner.bias:#x}"
            out.append(Saved(owner.path, address, text))
        if len(out) >= _MAX_PLACES:
            break
    return out


def _data(capture: Capture, module: Module) -> list[tuple[int, int]]:
    """Writable mappings of a module's file, and the anonymous one right behind it (.bss), as far as the
    module goes: somebody else's memory may follow without a gap."""
    own = [m for m in capture.mappings if m.path == module.path and module.start <= m.start <= module.end]
    end = max((m.end for m in own), default=module.end)
    out = [(m.start, m.end) for m in own if m.writable]
    out += [
        (m.start, min(m.end, module.end))
        for m in capture.mappings
        if m.start == end < module.end and m.writable and not m.path
    ]
    return out
