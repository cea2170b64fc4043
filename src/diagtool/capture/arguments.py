"""The command line and environment that a process was started with, from its own stack.

execve leaves there, upwards: argc, the pointers to the arguments, a null, those to the environment, a null,
the auxiliary vector (x86-64 psABI, figure "Initial Process Stack"). A core has a copy of the auxiliary vector
in its notes, so the place can be found by its content.
"""

from __future__ import annotations

import struct

from diagtool.capture.memory import AddressSpace, Segment
from diagtool.capture.notes import AT_EXECFN, AT_RANDOM

__all__ = ["start_arguments", "string_at"]

_SEARCHED = (
    8 << 20
)  # bytes of stack below that: all strings may take a quarter of the stack limit (execve(2))
_MAX_POINTERS = 1 << 16
_MAX_STRING = 4096  # bytes of one string
_MAX_STRINGS = 1 << 20  # bytes of all strings


def start_arguments(
    memory: AddressSpace, auxv: dict[int, int], raw: bytes
) -> tuple[list[bytes], list[bytes]]:
    """(arguments, environment entries), both empty where they can't be found. ``raw``: the note's bytes."""
    above = auxv.get(AT_RANDOM) or auxv.get(AT_EXECFN)  # both point into the stack, above the vector
    if not above or len(raw) < 32:
        return [], []
    segment = next((s for s in memory.segments if s.start <= above < s.end), None)
    if segment is None:
        return [], []
    low = max(segment.start, above - _SEARCHED)
    stack = memory.peek(low, above - low)
    at = stack.rfind(raw[:256]) if stack else -1
    if stack is None or at < 0 or (low + at) % 8:
        return [], []
    pointers = stack[max(at % 8, at - 8 * _MAX_POINTERS) : at]
    words = struct.unpack(f"<{len(pointers) // 8}Q", pointers)
    # Backwards from the vector: null, environment, null, arguments, and the count that says where they begin.
    if not words or words[-1] != 0:
        return [], []
    end = len(words) - 1
    start = _after_null(words, end)
    if start is None:
        return [], []
    count = 0
    first = start - 1
    while first > 0 and words[first - 1] != count:
        first -= 1
        count += 1
    if first <= 0:
        return [], []
    return _strings(memory, segment, words[first : start - 1]), _strings(memory, segment, words[start:end])


# The index after the last null word before ``end``.
def _after_null(words: tuple[int, ...], end: int) -> int | None:
    for i in range(end - 1, -1, -1):
        if words[i] == 0:
            return i + 1
    return None


def string_at(memory: AddressSpace, address: int) -> bytes | None:
    """The NUL-terminated string at an address, cut at 4096 bytes, without asking the fault handler."""
    segment = next((s for s in memory.segments if s.start <= address < s.end), None)
    if segment is None:
        return None
    return (memory.peek(address, min(segment.end - address, _MAX_STRING)) or b"").split(b"\0", 1)[0]


# The strings lie in the same segment, one after the other.
def _strings(memory: AddressSpace, segment: Segment, pointers: tuple[int, ...]) -> list[bytes]:
    out: list[bytes] = []
    total = 0
    for pointer in pointers:
        if not segment.start <= pointer < segment.end or total > _MAX_STRINGS:
            break
        text = (memory.peek(pointer, min(segment.end - pointer, _MAX_STRING)) or b"").split(b"\0", 1)[0]
        total += len(text) + 1
        out.append(text)
    return out
