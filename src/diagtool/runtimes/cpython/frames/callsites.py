"""What the source line of a suspended instruction names: to tell what is called from what was called before.

Up to 3.13 an evaluation stack does not say where it ends, and beyond its end lies what earlier calls left
there. A callee found on it is believed only if the line that is running loads an attribute of that name.
"""

from __future__ import annotations

from dataclasses import dataclass

from diagtool.capture.memory import MemoryFault
from diagtool.runtimes.cpython.context import Context

__all__ = ("CallSite", "call_site")

_MAX_LINE = 4096  # bytes of code of one line


@dataclass(frozen=True, slots=True)
class CallSite:
    """``enters``: the instruction begins a ``with`` block; ``iterates``: it is a step of a ``for`` loop;
    ``names``: the attributes that the line has loaded by then."""

    enters: bool
    iterates: bool
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Opcodes:
    """Numbers of a version: LOAD_ATTR and LOAD_METHOD with their specialised forms, the start of a ``with``
    block, FOR_ITER; and how far the argument of LOAD_ATTR is shifted."""

    attribute: frozenset[int]
    enter: int
    step: int
    shift: int = 0


# Include/opcode.h of each version, opcode_ids.h of 3.13. 3.14 needs none of this.
_OPCODES = {
    (3, 9): _Opcodes(frozenset({106, 160}), 143, 93),
    (3, 10): _Opcodes(frozenset({106, 160}), 143, 93),
    (3, 11): _Opcodes(frozenset({106, 160, *range(39, 44), *range(56, 60), 62, 63}), 53, 93),
    (3, 12): _Opcodes(frozenset({106, 70, 72, 73, *range(76, 83)}), 53, 93, 1),
    (3, 13): _Opcodes(frozenset({82, *range(191, 203)}), 2, 72, 1),
}


def call_site(ctx: Context, code: int, offset: int) -> CallSite | None:
    """The call site of an instruction; None where it can't be read, or needs not (3.14 and later)."""
    opcodes = _OPCODES.get(ctx.runtime.version)
    decoded = ctx.codes.get(code)
    if opcodes is None or decoded is None or offset < 0:
        return None
    line = ctx.codes.line(decoded, offset)
    ranges = [(start, end) for start, end, at in decoded.lines or [] if at == line and start <= offset]
    if not ranges:
        return None
    first = max(ranges[0][0], offset - _MAX_LINE)
    o, lay = ctx.objects, ctx.runtime.layout
    try:
        start = decoded.start
        if not start:
            start = o.memory.u64(code + lay["PyCodeObject.co_code"]) + lay["PyBytesObject.ob_sval"]
        text = o.memory.read(start + first, offset + 2 - first)
        names = o.tuple_items(o.memory.u64(code + lay["PyCodeObject.co_names"]), 1 << 12)
    except MemoryFault:
        return None
    loaded: set[str] = set()
    # Inline caches (3.11+) are read as if they were instructions: a name too many now and then.
    for i in range(0, len(text), 2):
        if text[i] in opcodes.attribute and any(low <= first + i < high for low, high in ranges):
            argument = text[i + 1] >> opcodes.shift
            if argument < len(names):
                loaded.add(o.text(names[argument]) or "")
    return CallSite(text[-2] == opcodes.enter, text[-2] == opcodes.step, frozenset(loaded))
