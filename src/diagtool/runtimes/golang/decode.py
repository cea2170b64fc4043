"""From the Go runtime of a capture to the goroutines of a snapshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.model import Capture
from diagtool.golang.goroutines import Goroutines, Kind, go_frame
from diagtool.runtimes.golang.clock import now_of, wait_seconds
from diagtool.runtimes.golang.find import find_go
from diagtool.runtimes.golang.labels import read_labels
from diagtool.runtimes.golang.model import GoRuntime, Status
from diagtool.runtimes.golang.pclntab import Function, Functions
from diagtool.runtimes.golang.starts import Owners, owners, starts_of
from diagtool.runtimes.golang.unwind import MOST_FRAMES, Trie, unwind
from diagtool.runtimes.merge import native_frames
from diagtool.runtimes.native.stacks.model import NativeFrame
from diagtool.snapshot.model import KIND, Frame, SnapshotBuilder

__all__ = ["DecodedGo", "add_goroutines", "read_go"]

_MOST_LABELS = 2_000_000  # rows
_MOST_KIND_FRAMES = 300_000  # frames of all stacks that differ; then fewer of each are kept
_FEWER_FRAMES = 100
_MAIN = 1  # goid of the goroutine that runs main


@dataclass(slots=True)
class DecodedGo:
    """A Go runtime with the stacks of its goroutines: ``alive`` are rows of ``runtime.goroutines``."""

    runtime: GoRuntime
    functions: Functions
    owners: Owners
    trie: Trie
    alive: NDArray[np.int64]
    no_stack: NDArray[np.bool_]  # of all rows: it ran, and nobody knows where
    system: NDArray[np.bool_]  # of all rows: one of the runtime's own
    first: int = -1  # the row of the snapshot that the first of ``alive`` has


def read_go(capture: Capture) -> DecodedGo:
    """Find Go in a capture and unwind all goroutines. Raises NoRuntime or NotSupported."""
    runtime = find_go(capture)
    functions = Functions(runtime)
    if not functions.readable:
        runtime.warnings.append("Go's function tables could not be read: goroutines have no frames")
    who = owners(runtime)
    starts, no_stack = starts_of(runtime, functions, who)
    g = runtime.goroutines
    dead = np.isin(g.status, (Status.DEAD, Status.DEADEXTRA, Status.IDLE))
    starts.pc[dead] = 0
    trie = unwind(runtime, functions, starts)
    alive = np.flatnonzero(~dead).astype(np.int64)
    cut = int(trie.cut[alive].sum())
    if cut:
        runtime.warnings.append(
            f"the outermost frames of {cut:,} of {len(alive):,} goroutines are missing: their stacks "
            f"can't be read to the end, or have more than {MOST_FRAMES:,} frames"
        )
    return DecodedGo(runtime, functions, who, trie, alive, no_stack, _system(runtime, functions))


def _system(runtime: GoRuntime, functions: Functions) -> NDArray[np.bool_]:
    """Which goroutines are the runtime's own, by the function that they began with."""
    distinct, inverse = np.unique(runtime.goroutines.startpc, return_inverse=True)
    own = np.array([_is_system(functions.at(pc)) for pc in distinct.tolist()], np.bool_)
    return own[inverse] if len(distinct) else np.zeros(0, np.bool_)


def _is_system(function: Function | None) -> bool:
    if function is None or not function.name.startswith("runtime."):
        return False
    return function.name not in ("runtime.main", "runtime.handleAsyncEvent", "runtime.corostart")


def add_goroutines(
    builder: SnapshotBuilder, go: DecodedGo, native: Mapping[int, Sequence[NativeFrame]]
) -> None:
    """Add all goroutines that are alive to a snapshot, and the tables ``go_runtime`` and ``go_threads``.

    ``native``: native frames by tid, for goroutines that are in a call of C.
    """
    runtime, rows = go.runtime, go.alive
    g = runtime.goroutines.take(rows)
    number, kinds = _kinds(builder, go)
    now, estimated = now_of(runtime)
    tids = go.owners.of(np.where(g.m != 0, g.m, g.locked))
    merged = np.array([k.merged for k in kinds], np.int32)[number] if len(rows) else np.zeros(0, np.int32)
    for at in np.flatnonzero((g.syscall_sp != 0) & (tids != 0)).tolist():
        both = _with_native(go, int(rows[at]), native.get(int(tids[at]), ()))
        if both:
            merged[at] = builder.trace(both[::-1])
    builder.snapshot.warnings += runtime.warnings

    def column(name: str) -> NDArray[np.int64]:
        values = np.array([getattr(k, name) for k in kinds], np.int64)
        return values[number] if len(kinds) else np.zeros(len(rows), np.int64)

    go.first = builder.add(
        [""] * len(rows),
        kind=KIND["goroutine"],
        state=column("state"),
        address=g.goid,
        trace=column("trace"),
        wait=column("wait"),
        thread=tids,
        created_by=column("created_by"),
        parent=g.parent,
        merged=merged,
        stuck=g.status == Status.LEAKED,
        wait_seconds=wait_seconds(runtime, now, estimated)[rows],
    )
    _add_labels(builder, go)
    _add_tables(builder, go, estimated)


def _kinds(builder: SnapshotBuilder, go: DecodedGo) -> tuple[NDArray[np.int64], list[Kind]]:
    """(which kind each goroutine that is alive is of, the kinds)."""
    runtime, rows = go.runtime, go.alive
    g = runtime.goroutines.take(rows)
    waits = np.isin(g.status, (Status.WAITING, Status.LEAKED))
    how = g.status.astype(np.int64) << 16 | g.scan.astype(np.int64) << 8 | np.where(waits, g.waitreason, 0)
    makers, maker = np.unique(np.where(g.goid == _MAIN, np.uint64(0), g.gopc), return_inverse=True)
    hows, how = np.unique(how, return_inverse=True)
    stack = go.trie.leaf[rows] << 1 | go.no_stack[rows]
    key = stack * (len(makers) * len(hows) + 1) + maker * len(hows) + how
    _, first, number = np.unique(key, return_index=True, return_inverse=True)
    goroutines = Goroutines(builder)
    creators = [_creator(go.functions, pc) for pc in makers.tolist()]
    frames = _Frames(go)
    kinds = []
    for at in first.tolist():
        row = int(rows[at])
        kinds.append(goroutines.kind(_reason(runtime, row), frames.of(row), creators[int(maker[at])]))
    return number.astype(np.int64), kinds


def _reason(runtime: GoRuntime, row: int) -> str:
    """Status or wait reason as the runtime's own header of a goroutine has it."""
    g = runtime.goroutines
    status = int(g.status[row])
    if status in (Status.WAITING, Status.LEAKED):
        return runtime.wait_reason(int(g.waitreason[row])) or "waiting"
    return Status.NAMES.get(status, "")


def _creator(functions: Functions, pc: int) -> Frame | None:
    """The go statement: the function that it is in, with the line of what is inlined there, if anything."""
    if not pc:
        return None
    function = functions.at(pc)
    if function is None:
        return None
    lines = functions.lines(pc - 1 if pc > function.entry else pc)
    return go_frame(lines[-1].function, lines[0].file, lines[0].line or None) if lines else None


class _Frames:
    """Frames of goroutines, those of each place made once."""

    def __init__(self, go: DecodedGo) -> None:
        self._go = go
        self._made: dict[int, list[Frame]] = {}
        self._left = _MOST_KIND_FRAMES
        self._short = False

    def of(self, row: int) -> list[Frame]:
        """The frames of a row of the runtime's table, innermost first, without what tracebacks leave out."""
        trie = self._go.trie
        out: list[Frame] = []
        node = int(trie.leaf[row])
        while node and (self._left > 0 or len(out) < _FEWER_FRAMES):
            out += self._at(trie.place[node])
            node = trie.parent[node]
            self._left -= 1
        if node and not self._short:
            self._short = True
            self._go.runtime.warnings.append(
                f"so many goroutines have long stacks of their own that of some "
                f"only {_FEWER_FRAMES} frames are kept"
            )
        return out

    def _at(self, place: int) -> list[Frame]:
        known = self._made.get(place)
        if known is None:
            lines = self._go.functions.lines(place)
            known = [go_frame(w.function or "?", w.file, w.line or None) for w in lines if not w.wrapper]
            self._made[place] = known
        return known


def _with_native(go: DecodedGo, row: int, native: Sequence[NativeFrame]) -> list[Frame]:
    """Innermost first: the frames of C that a goroutine is in, then its own; nothing where there are none."""
    pcs = np.array([f.pc for f in native], np.uint64)
    inside = np.flatnonzero(go.functions.contains(pcs)) if len(pcs) else np.zeros(0, np.int64)
    outer = int(inside[0]) if len(inside) else len(native)
    if not outer:
        return []
    return [*native_frames(native[:outer]), *_Frames(go).of(row)]


def _add_labels(builder: SnapshotBuilder, go: DecodedGo) -> None:
    where = go.runtime.goroutines.labels[go.alive]
    known = read_labels(go.runtime, where)
    if not known:
        return
    labels = builder.snapshot.labels
    for at in np.flatnonzero(np.isin(where, np.array(list(known), np.uint64))).tolist():
        if len(labels) > _MOST_LABELS:
            go.runtime.warnings.append(
                f"more than {_MOST_LABELS:,} labels of goroutines: the rest is left out"
            )
            break
        labels += [(go.first + at, key, value) for key, value in known[int(where[at])]]


def _add_tables(builder: SnapshotBuilder, go: DecodedGo, estimated: bool) -> None:
    runtime = go.runtime
    g = runtime.goroutines
    tables = builder.snapshot.tables
    tables["go_runtime"] = [
        {
            "version": runtime.version,
            "modules": [m.path for m in runtime.modules],
            "goroutines": len(go.alive),
            "system": int(go.system[go.alive].sum()),
            "dead": len(g) - len(go.alive),
            "times": "estimated" if estimated else "measured",
        }
    ]
    on_thread = go.alive[(g.m[go.alive] != 0) | (g.locked[go.alive] != 0)]
    rows = []
    for row in on_thread.tolist():
        running, locked = int(g.m[row]), int(g.locked[row])
        tid = go.owners.tids.get(running or locked, 0)
        rows.append(
            {"tid": tid, "goroutine": int(g.goid[row]), "running": running != 0, "locked": locked != 0}
        )
    tables["go_threads"] = sorted(rows, key=lambda r: (r["tid"], r["goroutine"]))
