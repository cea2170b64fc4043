"""A deadlock in words: who has what, and waits for what the next one has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from diagtool.leaks.crossings import TRAMPOLINES
from diagtool.leaks.own import is_internal, is_own
from diagtool.snapshot.model import Frame, Snapshot, Thing
from diagtool.snapshot.names import without_arguments

__all__ = ["circle_of", "in_words"]

_MOST_NAMED = 8  # threads of one circle


def circle_of(row: int, successor: Mapping[int, int]) -> list[int]:
    """The stacks of the circle that ``row`` waits in, in the order of who waits for whom."""
    out = [row]
    node = successor.get(row)
    while node is not None and node != row and len(out) <= len(successor):
        out.append(node)
        node = successor.get(node)
    return out


def in_words(snapshot: Snapshot, circle: Iterable[int]) -> str:
    """``thread 12 (io) in app::flush waits for the GIL, which thread 13 (main) has; …``"""
    rows = list(circle)
    parts = list(_parts(snapshot, rows[:_MOST_NAMED]))
    if len(rows) > _MOST_NAMED:
        parts.append(f"and so on, {len(rows)} in all")
    return "; ".join(parts)


def _parts(snapshot: Snapshot, rows: list[int]) -> Iterator[str]:
    for number, row in enumerate(rows):
        following = rows[(number + 1) % len(rows)]
        where = _place(snapshot, row)
        index = int(snapshot.stacks.thing[row])
        thing = snapshot.things[index] if 0 <= index < len(snapshot.things) else None
        place = f" in {where}" if where else ""
        yield f"{_who(snapshot, row)}{place} waits for {_what(thing)}, which {_who(snapshot, following)} has"


def _who(snapshot: Snapshot, row: int) -> str:
    stack = snapshot.stack(row)
    name = f" ({stack.name})" if stack.name else ""
    return f"{stack.kind} {stack.address if stack.kind == 'thread' else hex(stack.address)}{name}"


def _what(thing: Thing | None) -> str:
    if thing is None:
        return "something"
    if thing.type == "GIL":
        return "the GIL"
    if thing.type == "pthread_t":
        return "the end of a thread"
    return f"{thing.type} {thing.address:#x}" if thing.address else thing.type


def _place(snapshot: Snapshot, row: int) -> str:
    """The innermost function that is not the C library's or the interpreter's, the user's own if there is."""
    stack = snapshot.stack(row)
    frames = stack.merged or stack.frames
    own = next((f for f in frames if is_own(f) and f.library is None), None)
    own = own or next((f for f in frames if is_own(f)), None)
    inner = next((f for f in frames if f.library is not None and _says_something(f)), None)
    if inner is None or inner is own:
        return _words(own) if own is not None else ""
    before = own is None or frames.index(inner) < frames.index(own)
    words = [_words(f) for f in (inner if before else None, own) if f is not None]
    return ", called by ".join(words)


def _says_something(frame: Frame) -> bool:
    name = (frame.library or "").rpartition("/")[2]
    return not is_internal(frame) and not frame.function.startswith("+") and not name.startswith(TRAMPOLINES)


def _words(frame: Frame) -> str:
    library = f" of {frame.library.rpartition('/')[2]}" if frame.library else ""
    line = f" ({frame.file.rpartition('/')[2]}:{frame.line})" if frame.line and frame.file else ""
    # Of C++ without the arguments, which are long.
    name = without_arguments(frame.function)
    return f"{name}{library}{line}"
