"""The views of ``diagtool stacks`` for a person: a table of clusters, and the await tree.

 count  kind    state    wait               where
10,000  task    waiting  asyncio.Queue.get  worker.py:41 in leaf
     4  thread  waiting  Lock.acquire       pool.py:12 in work
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from diagtool.leaks.model import Cluster, Report
from diagtool.leaks.own import is_own
from diagtool.report.terminal import View, closing, doing, ended_by, frames, place, warnings
from diagtool.report.text import Line, cells, clean, count, cut, pad
from diagtool.report.tree import Node
from diagtool.snapshot.model import Frame, Snapshot, Stack

#: Clusters shown before the rest is only counted (all with --all).
MAX_CLUSTERS = 100

#: Nodes of the tree shown before the rest is only counted, and how deep they are indented.
MAX_NODES = 500
_MAX_INDENT = 24

_MAX_WAIT = 40


def table(report: Report, view: View, more: Iterable[Line] = ()) -> Iterator[Line]:
    """The clusters, largest first. Idle ones only when the view asks for them. ``more`` is shown below."""
    yield from ended_by(report.target, view)
    clusters = [c for c in report.clusters if view.idle or not c.idle]
    hidden = [c for c in report.clusters if c.idle and not view.idle]
    shown = clusters if view.idle else clusters[:MAX_CLUSTERS]
    rows = [_row(c) for c in shown]
    header = ("count", "kind", "state", "wait", "where")
    widths = [max(cells(row[i]) for row in [header, *rows]) for i in range(4)]
    if rows:
        yield [(_join(header, widths), "label")]
    for cluster, row in zip(shown, rows, strict=True):
        style = "idle" if cluster.idle else ""
        line = _join(row, widths)
        if cluster.idle and cluster.template:
            line += f"  (idle: {clean(cluster.template)})"
        yield [(line, style)]
        if view.verbose:
            yield from frames(cluster.frames, view)
    if len(clusters) > len(shown):
        yield [(f"… {count(len(clusters) - len(shown), 'cluster')} more (--all)", "label")]
    if hidden:
        idle = sum(c.count for c in hidden)
        text = f"… {count(idle, 'stack')} in {count(len(hidden), 'cluster')} idle as they should be (--all)"
        yield [(text, "label")]
    if shown or hidden:
        yield []
    yield from more
    yield from warnings(report.warnings, view)
    yield from _last(report, view)


def tree(snapshot: Snapshot, report: Report, nodes: Iterable[Node], view: View) -> Iterator[Line]:
    """The await tree: a task, and below it, indented, what it awaits."""
    yield from ended_by(report.target, view)
    shown = 0
    left_out = 0
    for node in nodes:
        if shown >= MAX_NODES and not view.idle:
            left_out += 1
            continue
        shown += 1
        yield _node(snapshot.stack(node.stack), node, view)
    if left_out:
        yield [(f"… {count(left_out, 'line')} more (--all)", "label")]
    if shown:
        yield []
    else:
        yield [("No task awaits anything.", "")]
        yield []
    yield from warnings(report.warnings, view)
    yield from _last(report, view)


def _node(stack: Stack, node: Node, view: View) -> Line:
    indent = "  " * min(node.depth, _MAX_INDENT)
    if node.depth > _MAX_INDENT:
        indent += f"[{node.depth}] "
    branch = "└ " if node.depth else ""
    name = ""
    if node.count == 1:
        named = clean(stack.name, 60) or f"0x{stack.address:x}"
        what = f"{stack.kind} {named}"
    else:
        what = count(node.count, stack.kind)
        if stack.name:
            name = f" ({clean(stack.name, 40)} …)"
    line: Line = [(indent + branch, "label"), (what, "count"), (name, "label")]
    if node.mark == "cycle":
        line.append(("  cycle: awaits itself, see above", "warning"))
        return line
    line.append(("  " + doing(stack.state, stack.wait), ""))
    where = _where(stack.frames)
    if where:
        room = view.width - sum(cells(text) for text, _ in line) - 2
        line.append(("  " + (cut(where, room) if room > 20 else where), "own"))
    if node.mark == "shown":
        line.append(("  … as above", "label"))
    return line


def _row(cluster: Cluster) -> tuple[str, str, str, str, str]:
    wait = cut(clean(cluster.wait or "-"), _MAX_WAIT)
    return f"{cluster.count:,}", cluster.kind, cluster.state, wait, _where(cluster.frames)


def _join(row: Sequence[str], widths: Sequence[int]) -> str:
    number = " " * (widths[0] - cells(row[0])) + row[0]
    return "  ".join([number, *(pad(text, w) for text, w in zip(row[1:4], widths[1:], strict=True)), row[4]])


def _where(stack: Sequence[Frame]) -> str:
    # The innermost frame of the user's own code, else the innermost.
    frame = next((f for f in stack if is_own(f)), stack[0] if stack else None)
    if frame is None:
        return ""
    return f"{place(frame)} in {clean(frame.function.rpartition('<locals>.')[2] or '?', 80)}"


def _last(report: Report, view: View) -> Iterator[Line]:
    summary = report.summary
    totals = f"{count(summary.clusters, 'cluster')}, {count(summary.stacks, 'stack')}"
    yield from closing(totals, report.target, report.pause_ms, view)
