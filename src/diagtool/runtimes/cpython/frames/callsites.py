"""What the source line of a suspended instruction names: to tell what is called from what was called before.

Up to 3.13 an evaluation stack does not say where it ends, and beyond its end lies what earlier calls left
there. A callee found on it is believed only if the line that is running loads an attribute of that name.
"""

from __future__ import annotations

from dataclasses import dataclass

from diagtool.capture.memory import MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.layouts import opcodes

__all__ = ("CallSite", "call_site", "names_of_line")

_MAX_LINE = 4096  # bytes of code of one line


@dataclass(frozen=True, slots=True)
class CallSite:
    """``enters``: the instruction begins a ``with`` block; ``iterates``: it is a step of a ``for`` loop;
    ``names``: the attributes that the line has loaded by then."""

    enters: bool
    iterates: bool
    names: frozenset[str]


# What call_site() tells by its number: the start of a ``with`` block, FOR_ITER. Include/opcode.h of each
# version, opcode_ids.h of 3.13. 3.14 needs none of this.
_ENTER_STEP = {(3, 9): (143, 93), (3, 10): (143, 93), (3, 11): (53, 93), (3, 12): (53, 93), (3, 13): (2, 72)}


@dataclass(frozen=True, slots=True)
class _Line:
    """A line up to an instruction: attributes and globals that it loads, and the number of its last step."""

    attributes: frozenset[str]
    globals: frozenset[str]
    last: int


def names_of_line(ctx: Context, code: int, offset: int) -> frozenset[str]:
    """Names of attributes and globals that the line of an instruction has loaded by then; empty: unknown."""
    line = _line(ctx, code, offset)
    return line.attributes | line.globals if line is not None else frozenset()


def call_site(ctx: Context, code: int, offset: int) -> CallSite | None:
    """The call site of an instruction; None where it can't be read, or needs not (3.14 and later)."""
    numbers = _ENTER_STEP.get(ctx.runtime.version)
    line = _line(ctx, code, offset) if numbers is not None else None
    if numbers is None or line is None:
        return None
    return CallSite(line.last == numbers[0], line.last == numbers[1], line.attributes)


def _line(ctx: Context, code: int, offset: int) -> _Line | None:
    decoded = ctx.codes.get(code)
    if decoded is None or offset < 0:
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
    table = opcodes("{}.{}".format(*ctx.runtime.version))
    caches: dict[str, int] = table["caches"]
    loaded: dict[str, set[int]] = {"attribute": set(), "name": set()}
    i = 0
    while i < len(text):
        if any(low <= first + i < high for low, high in ranges):
            for kind, found in loaded.items():
                if text[i] in table[kind]:
                    found.add(text[i + 1] >> table[f"{kind}_shift"])
        i += 2 + 2 * caches.get(str(text[i]), 0)
    attributes, plain = (
        frozenset(o.text(names[n]) or "" for n in found if n < len(names)) for found in loaded.values()
    )
    return _Line(attributes, plain, text[-2])
