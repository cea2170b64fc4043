"""Goroutines as rows of a snapshot, the same from every source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diagtool.golang.names import is_machinery, package_of
from diagtool.golang.waits import state_of, wait_of
from diagtool.snapshot.model import KIND, STATE, Frame, SnapshotBuilder

__all__ = ["Goroutines", "Kind", "go_frame", "own_part"]

#: What every goroutine ends in; no program's frame.
_OUTERMOST = ("runtime.goexit", "runtime.main", "runtime.goexit0")

#: Profiles may say any number. More stacks than this are not made of one entry.
MAX_COUNT = 10_000_000


def go_frame(function: str, file: str, line: int | None) -> Frame:
    """A frame of Go. ``function`` as :func:`diagtool.golang.names.function_name` gives it."""
    return Frame(function, file, line, package_of(function) or None, "go")


def own_part(frames: Sequence[Frame]) -> Sequence[Frame]:
    """``frames`` (innermost first) without the runtime's: what is compared between sources.

    Where nothing else is there (``go wg.Wait()``) all that dumps show; all in the runtime's own goroutines.
    """
    first, last = 0, len(frames)
    while last and (frames[last - 1].function in _OUTERMOST or _is_wrapper(frames[last - 1].function)):
        last -= 1
    while first < last and is_machinery(frames[first].function):
        first += 1
    own = frames[first:last]
    if not own or any(map(_is_hidden, own)):
        own = [f for f in own or frames[:last] if not _is_hidden(f)]
    return own or frames


def _is_hidden(frame: Frame) -> bool:
    # In between (sigpanic between a deferred function and what failed) dumps leave out what is not exported.
    package, _, name = frame.function.partition(".")
    return package == "runtime" and not name[:1].isupper()


def _is_wrapper(function: str) -> bool:
    # What the compiler makes of `go f(x)`: the runtime's own tracebacks show it, dumps and profiles don't.
    head, found, number = function.rpartition(".gowrap")
    return bool(found and head) and number.isdigit()


@dataclass(frozen=True, slots=True)
class Kind:
    """What equal goroutines have in common, as codes of the builder; the rest of a row are numbers."""

    state: int
    wait: int
    trace: int  # without the runtime's frames
    merged: int  # with all of them; 0 where these are the same
    created_by: int


class Goroutines:
    """Adds goroutines to a builder: :meth:`kind` once for equal ones, then :meth:`add`, which is quick."""

    def __init__(self, builder: SnapshotBuilder) -> None:
        self.builder = builder

    def kind(self, reason: str, frames: Sequence[Frame], created_by: Frame | None = None) -> Kind:
        """The kind of goroutines that are in ``reason`` with ``frames``.

        ``reason``: status or wait reason as the runtime prints it; "" where the source has none: the frames
        tell. ``frames``: innermost first, with the runtime's where the source has them. ``created_by``: the
        go statement.
        """
        builder = self.builder
        functions = [f.function for f in frames]
        wait = wait_of(reason or "waiting", functions)
        wait = "" if wait == "waiting" else wait
        state = state_of(reason) if reason else "waiting" if wait else "unknown"
        own = own_part(frames)
        return Kind(
            STATE[state],
            builder.wait(wait),
            builder.trace(list(own)[::-1]),
            builder.trace(list(frames)[::-1]) if len(own) < len(frames) else 0,
            builder.trace([created_by]) if created_by is not None else 0,
        )

    def add(
        self,
        kind: Kind,
        *,
        goid: int = 0,
        parent: int = 0,
        count: int = 1,
        wait_seconds: float = float("nan"),
        thread: int = 0,
        thing: int = -1,
        leaked: bool = False,
        name: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> int:
        """Add ``count`` equal goroutines; the first one's row. ``leaked``: the runtime itself proved it.

        For very many use ``builder.add`` with columns, as this does.
        """
        count = max(0, min(count, MAX_COUNT))
        first = self.builder.add(
            [name] * count,
            kind=KIND["goroutine"],
            state=kind.state,
            address=goid,
            trace=kind.trace,
            wait=kind.wait,
            thing=thing,
            thread=thread,
            created_by=kind.created_by,
            parent=parent,
            merged=kind.merged,
            stuck=int(leaked),
            wait_seconds=wait_seconds,
        )
        if labels:
            rows = range(first, first + count)
            self.builder.snapshot.labels += [(row, k, v) for row in rows for k, v in labels.items()]
        return first
