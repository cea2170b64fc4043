"""The views of ``diagtool heap``: what each asks of the target, how it is shown. One of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from diagtool.cli.target import Resolved
    from diagtool.report.terminal import View
    from diagtool.report.text import Line
    from diagtool.snapshot.model import Snapshot

_AGAIN = "Take another one with `diagtool snapshot PID --heap`, or name the process or its core."
_NAME_IT = "Name the process or its core."
_RECORD = (
    "Start the program with `python3 -X tracemalloc=10`, or have it call tracemalloc.start(). "
    "`diagtool snapshot PID --allocations 30s` watches a running process with memray."
)


class NotTold(Exception):
    """What is asked for, a snapshot does not hold: it was taken without."""

    def __init__(self, message: str, hint: str = _AGAIN) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user gave besides the view; ``which``: the value of the view's own option."""

    target: str
    pattern: str | None
    limit: int | None
    which: Any = True


def _document(snap: Snapshot, asked: Asked) -> dict[str, Any]:
    from diagtool.report import heap
    from diagtool.report import json as documents

    return documents.heap(snap, heap.counts(snap, asked.pattern))


@dataclass(frozen=True, slots=True)
class HeapView:
    """``looks``: arguments of :func:`diagtool.cli.target.resolve`, "TYPE" and "WHICH" stand for what the user
    gave. ``check`` raises NotTold. ``typed``: whether --type goes with it, None if it is needed."""

    looks: Mapping[str, Any]
    check: Callable[[Snapshot, Asked], None]
    lines: Callable[[Snapshot, Asked, View], Iterable[Line]]
    document: Callable[[Snapshot, Asked], dict[str, Any]] = _document
    typed: bool | None = True


def chosen(given: Mapping[str, Any], pattern: str | None) -> tuple[HeapView, Any]:
    """(the view that the options ask for, the value of its option). Raises click.UsageError for several."""
    names = [name for name, value in given.items() if value not in (None, False)]
    if len(names) > 1:
        every = [f"--{name}" for name in names]
        raise click.UsageError(
            f"{', '.join(every[:-1])} and {every[-1]} are views of their own: choose one of them."
        )
    name = names[0] if names else "types"
    view = VIEWS[name]
    if pattern is not None and view.typed is False:
        raise click.UsageError(f"--{name} shows what has no type, or is of all types: it has no --type.")
    if pattern is None and view.typed is None:
        raise click.UsageError(f"--{name} needs --type TYPE.")
    return view, given.get(name)


def show(
    view: HeapView,
    asked: Asked,
    look: Callable[..., Resolved],
    output_format: str,
    output: Path | None,
    verbose: bool,
) -> int:
    """Look at the target and print the view. Raises NotTold."""
    from diagtool.cli.output import print_lines, print_text, width
    from diagtool.report import allocations, heap, terminal
    from diagtool.report import json as documents

    places = {"TYPE": asked.pattern, "WHICH": asked.which}
    resolved = look(**{key: places.get(value, value) for key, value in view.looks.items()})
    if view is VIEWS["types"] and not heap.has_census(resolved.snapshot):
        if allocations.has_sites(resolved.snapshot):
            view = VIEWS["sites"]  # a file of tracemalloc has nothing else
        elif "go" in resolved.snapshot.target.runtime:
            view = VIEWS["go"]
            resolved = look(**view.looks)
    snap = resolved.snapshot
    view.check(snap, asked)
    if output_format == "json":
        print_text(documents.dumps(view.document(snap, asked)), output)
    else:
        shown = terminal.View(width(output), verbose, False, resolved.sources)
        print_lines(view.lines(snap, asked, shown), output)
    return 0


# -- all types, and who keeps them ----------------------------------------------------------------------


def _needs_census(snap: Snapshot, asked: Asked) -> None:
    from diagtool.report import heap

    if not heap.has_census(snap):
        raise NotTold(f"the objects were not counted when {asked.target} was taken")


def _types(snap: Snapshot, asked: Asked, view: View) -> Iterable[Line]:
    from diagtool.report import heap

    return heap.table(snap, heap.counts(snap, asked.pattern), asked.limit or heap.LIMIT, view)


def _types_document(snap: Snapshot, asked: Asked) -> dict[str, Any]:
    from diagtool.report import heap
    from diagtool.report import json as documents

    rows = heap.counts(snap, asked.pattern)
    return documents.heap(snap, rows[: asked.limit or len(rows)], heap.ways(snap))


def _needs_memory(snap: Snapshot, asked: Asked) -> None:
    from diagtool.report import heap

    _needs_census(snap, asked)
    if "heap_why" not in snap.tables and not heap.answer_from_paths(snap, asked.which):
        raise NotTold(f"{asked.target} holds no memory to find out in who keeps an object", _NAME_IT)


def _ways(snap: Snapshot, asked: Asked, view: View) -> Iterable[Line]:
    from diagtool.report import heap

    return heap.paths(snap, view)


# -- what keeps objects, and what some of them are ------------------------------------------------------


def _needs_details(snap: Snapshot, asked: Asked) -> None:
    from diagtool.report import heapdetails

    if heapdetails.VIEWS[asked.which] not in snap.tables:
        raise NotTold(f"{asked.target} does not tell its {asked.which}")


def _details(snap: Snapshot, asked: Asked, view: View) -> Iterable[Line]:
    from diagtool.report import heapdetails

    return heapdetails.lines(snap, asked.which, asked.pattern, asked.limit or heapdetails.LIMIT, view)


def _needs_values(snap: Snapshot, asked: Asked) -> None:
    from diagtool.report import heapdetails

    if not heapdetails.has_values(snap):
        raise NotTold(f"{asked.target} holds no memory to show values of")


def _values(snap: Snapshot, asked: Asked, view: View) -> Iterable[Line]:
    from diagtool.report import heapdetails

    return heapdetails.values(snap, view)


# -- where it was allocated -----------------------------------------------------------------------------


def _needs_sites(snap: Snapshot, asked: Asked) -> None:
    from diagtool.report import allocations

    if not allocations.has_sites(snap):
        said = next((f" ({w})" for w in snap.warnings if "tracemalloc" in w or "memray" in w), "")
        raise NotTold(f"nobody recorded where the memory of {asked.target} was allocated{said}", _RECORD)


def _sites(snap: Snapshot, asked: Asked, view: View) -> Iterable[Line]:
    from diagtool.report import allocations

    found = allocations.sites(snap, asked.pattern)
    return allocations.lines(snap, found, asked.limit or allocations.LIMIT, view)


def _sites_document(snap: Snapshot, asked: Asked) -> dict[str, Any]:
    from diagtool.report import allocations

    found = allocations.sites(snap, asked.pattern)
    return _document(snap, asked) | allocations.document(snap, found[: asked.limit or len(found)])


# -- the graph, and the heap of C -----------------------------------------------------------------------


def _needs_retained(snap: Snapshot, asked: Asked) -> None:
    from diagtool.report import retained

    if not retained.has_retained(snap):
        raise NotTold(f"what the objects of {asked.target} refer to is not known", _NAME_IT)


def _retained(snap: Snapshot, asked: Asked, view: View) -> Iterable[Line]:
    from diagtool.report import retained

    return retained.retained_lines(snap, asked.limit or retained.LIMIT, view)


def _needs_garbage(snap: Snapshot, asked: Asked) -> None:
    from diagtool.report import retained

    if not retained.has_garbage(snap):
        raise NotTold(f"what the objects of {asked.target} refer to is not known", _NAME_IT)


def _garbage(snap: Snapshot, asked: Asked, view: View) -> Iterable[Line]:
    from diagtool.report import retained

    return retained.garbage_lines(snap, asked.limit or retained.LIMIT, view)


def _needs_native(snap: Snapshot, asked: Asked) -> None:
    from diagtool.report import nativeheap

    if not nativeheap.has_native(snap):
        raise NotTold(f"the native heap was not read when {asked.target} was taken")


def _native(snap: Snapshot, asked: Asked, view: View) -> Iterable[Line]:
    from diagtool.report import nativeheap

    return nativeheap.lines(snap, asked.limit or nativeheap.LIMIT, view)


def _needs_go(snap: Snapshot, asked: Asked) -> None:
    from diagtool.report import goheap

    if not goheap.has_go_heap(snap):
        raise NotTold(f"{asked.target} has no heap of Go", "Without --go its Python objects are shown.")


def _go(snap: Snapshot, asked: Asked, view: View) -> Iterable[Line]:
    from diagtool.report import goheap

    return goheap.lines(snap, asked.limit or goheap.LIMIT, view)


_COUNT: Mapping[str, Any] = {"heap": True, "graph": False, "native": False}
_GRAPH: Mapping[str, Any] = {"heap": True, "graph": True, "native": False}

#: By the name of the option that asks for it.
VIEWS: Mapping[str, HeapView] = {
    "types": HeapView(_COUNT, _needs_census, _types, _types_document),
    "why": HeapView({**_COUNT, "why": "WHICH"}, _needs_memory, _ways, _types_document),
    "show": HeapView(_COUNT, _needs_details, _details),
    "values": HeapView({**_COUNT, "values": "TYPE"}, _needs_values, _values, typed=None),
    "sites": HeapView(_COUNT, _needs_sites, _sites, _sites_document),
    "retained": HeapView(_GRAPH, _needs_retained, _retained, typed=False),
    "garbage": HeapView(_GRAPH, _needs_garbage, _garbage, typed=False),
    "native": HeapView({"native": True}, _needs_native, _native, typed=False),
    "go": HeapView({"heap": False, "inventory": ("memory",)}, _needs_go, _go, typed=False),
}
