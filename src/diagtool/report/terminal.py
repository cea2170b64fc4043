"""The report of ``diagtool leaks`` for a person: a paragraph a finding, worst first.

    PROVEN  10,000 tasks  waiting in asyncio.Queue.get                    asyncio-queue-get-starved
            worker.py:41    in leaf            item = await q.get()
            worker.py:44    in fetch_all       … 2 library frames folded (-v)
            waits on asyncio.Queue 0x7f3a… (empty, 10,000 getters)
            held by  __main__.background_tasks (set, 10,000 items)
            fix      give every consumer a way to stop: a sentinel, Queue.shutdown() (3.13), or cancel()
            runbook  docs/runbooks/asyncio-queue-get-starved.md

    1 finding (1 proven), 7 clusters, 10,052 stacks · cpython 3.12.1, pid 4242 · stopped for 3.1 ms

Readable in 80 columns and without colour.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from diagtool.leaks.model import (
    NO_STACKS,
    VERDICTS,
    BaselineUse,
    Cluster,
    Finding,
    Ignored,
    Report,
    WaitingOn,
)
from diagtool.leaks.own import is_own
from diagtool.report.sources import Sources
from diagtool.report.text import MIN_WIDTH, Line, cells, clean, count, cut, duration, pad, size, wrap
from diagtool.snapshot.model import Frame, Target, Thing
from diagtool.snapshot.names import without_arguments

#: Findings shown before the rest is only counted.
MAX_FINDINGS = 50

#: Frames of one stack that are shown: a recursion of 20,000 frames fits on the screen, too.
MAX_FRAMES = 12
MAX_FRAMES_VERBOSE = 1000

#: Library frames shown for a stack that has no others.
_LIBRARY_FRAMES = 3

_MAX_WARNINGS = 5
_MAX_ALIKE = 3  # warnings that differ in numbers only
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d[\d,.]*")
_MAX_EVIDENCE = 4

_INDENT = " " * 8
_LABEL = 9

_STATES = {
    "waiting": "waiting in {wait}",
    "running": "running",
    "ready": "ready to run",
    "done": "done, but still referenced",
    "created": "created, but never started",
    "suspended": "suspended, and nobody drives them",
    "cancelling": "being cancelled, in {wait}",
    "unknown": "in {wait}",
}


@dataclass(frozen=True, slots=True)
class View:
    """How to show a report. ``width`` in columns; ``idle``: also clusters that are as they should be."""

    width: int = MIN_WIDTH
    verbose: bool = False
    idle: bool = False
    sources: Sources | None = None


def leaks(report: Report, view: View) -> Iterator[Line]:
    """The lines of the whole report."""
    yield from ended_by(report.target, view)
    for finding in report.findings[:MAX_FINDINGS]:
        yield from paragraph(finding, view)
        yield []
    hidden = len(report.findings) - MAX_FINDINGS
    if hidden > 0:
        yield [(f"… {count(hidden, 'finding')} more; --format json has all of them", "warning")]
        yield []
    if view.idle:
        idle = [c for c in report.clusters if c.idle]
        for cluster in idle:
            yield from _idle(cluster, view)
        if idle:
            yield []
    if view.verbose and report.ignored:
        for known in report.ignored[:MAX_FINDINGS]:
            yield from _ignored(known, view)
        yield []
    yield from warnings(report.warnings, view)
    yield [(totals(report), "count"), (about(report.target, report.pause_ms), "")]


def ended_by(target: Target, view: View) -> Iterator[Line]:
    """Which signal ended the process that left a core, and where; then an empty line."""
    crash = target.details.get("crash")
    text = crash.get("text") if isinstance(crash, dict) else None
    if isinstance(text, str):
        for i, part in enumerate(wrap(clean(text, 1000), view.width - 9)):
            yield [("" if i else "ENDED BY ", "proven"), (" " * 9 * bool(i) + part, "")]
        yield []


def frames(stack: Sequence[Frame], view: View) -> Iterator[Line]:
    """Lines for frames (innermost first): the user's own with their source, the library's folded."""
    shown = list(stack) if view.verbose else [f for f in stack if is_own(f)]
    if not shown:
        shown = list(stack[:_LIBRARY_FRAMES])
    yield from frame_lines(shown, view, len(stack) - len(shown))


def frame_lines(shown: Sequence[Frame], view: View, folded: int = 0) -> Iterator[Line]:
    """Lines for these frames, and how many others are ``folded``."""
    limit = MAX_FRAMES_VERBOSE if view.verbose else MAX_FRAMES
    left_out = max(len(shown) - limit, 0)
    # The innermost frames say where it hangs, the outermost ones where it came from.
    head = list(shown) if not left_out else list(shown[: limit * 2 // 3])
    tail = [] if not left_out else list(shown[-(limit - limit * 2 // 3) :])
    places = max((cells(place(f, view.verbose)) for f in head + tail), default=0)
    names = max((cells(_function(f, view.verbose)) for f in head + tail), default=0)
    places, names = min(places, 40), min(names, 32)
    lines = [_frame(f, view, places, names) for f in head]
    if tail:
        lines.append([(_INDENT + f"… {count(left_out, 'frame')} left out", "label")])
        lines.extend(_frame(f, view, places, names) for f in tail)
    if folded:
        note = f"… {count(folded, 'library frame')} folded (-v)"
        room = view.width - sum(cells(text) for text, _ in lines[-1]) - 2 if lines else 0
        if lines and cells(note) <= room:
            lines[-1].append(("  " + note, "label"))
        else:
            lines.append([(_INDENT + note, "label")])
    yield from lines


def place(frame: Frame, full: bool = False) -> str:
    """Where a frame is: ``worker.py:41``, the whole path when ``full``."""
    file = frame.file or frame.library or "?"
    if not full and not file.startswith("<"):
        folder, base = posixpath.split(file)
        # __init__.py alone says nothing.
        file = posixpath.join(posixpath.basename(folder), base) if base.startswith("__") else base
    return clean(file) if frame.line is None else f"{clean(file)}:{frame.line}"


def thing(waiting_on: WaitingOn | Thing) -> str:
    """What is waited on, in words: ``asyncio.Queue 0x7f3a… (empty, 10,000 getters)``."""
    if not waiting_on.address and waiting_on.detail.startswith(waiting_on.type):
        return clean(waiting_on.detail, 500)  # fd 3 …
    text = clean(waiting_on.type)
    if waiting_on.address:
        text += f" 0x{waiting_on.address:x}"
    return f"{text} ({clean(waiting_on.detail, 500)})" if waiting_on.detail else text


def doing(state: str, wait: str | None) -> str:
    """What stacks of a state do: ``waiting in asyncio.Queue.get``."""
    pattern = _STATES.get(state, "in {wait}")
    if "{wait}" not in pattern:
        return f"{pattern} (in {clean(wait)})" if wait else pattern
    if wait:
        return pattern.format(wait=clean(wait))
    return {"unknown": "in an unknown state", "cancelling": "being cancelled"}.get(state, state)


def about(target: Target, pause_ms: float | None) -> str:
    """The end of the last line: what was looked at, and what it cost the process."""
    parts = [target.runtime or "unknown runtime"]
    if target.flavour not in ("", "release"):
        parts[0] += f" ({target.flavour})"
    if target.pid is not None:
        parts.append(("core of " if target.kind == "core" else "") + f"pid {target.pid}")
    text = " · " + clean(", ".join(parts))
    if target.signal:
        text += f" · killed by signal {target.signal}"
    if pause_ms is not None:
        text += f" · stopped for {pause_ms:.1f} ms"
    return text


def closing(said: str, target: Target, pause_ms: float | None, view: View) -> Iterator[Line]:
    """The last line of a report: what was counted (``said``), and of what. Two where one is too short."""
    text = about(target, pause_ms)
    if cells(said) + cells(text) <= view.width:
        yield [(said, "count"), (text, "")]
        return
    for part in wrap(said, view.width):
        yield [(part, "count")]
    for part in wrap(text.removeprefix(" · "), view.width):
        yield [(part, "")]


def warnings(texts: Sequence[str], view: View) -> Iterator[Line]:
    """What could not be read, then an empty line. Of those that differ in numbers only, the first few."""
    folded = _folded(texts)
    shown = folded if view.verbose else folded[:_MAX_WARNINGS]
    for text, more in shown:
        text = clean(text, 1000) + (f" (and {more:,} more like this one)" if more else "")
        for i, part in enumerate(wrap(text, view.width - 9)):
            yield [("warning: " if not i else " " * 9, "warning"), (part, "")]
    if len(folded) > len(shown):
        yield [(f"… {count(len(folded) - len(shown), 'warning')} more (-v)", "warning")]
    if texts:
        yield []


def _folded(texts: Sequence[str]) -> list[tuple[str, int]]:
    """(warning, how many more like it are not shown), in their order."""
    alike: dict[str, list[str]] = {}
    for text in texts:
        alike.setdefault(_NUMBER.sub("#", text), []).append(text)
    out: list[tuple[str, int]] = []
    for same in alike.values():
        shown = same if len(same) <= _MAX_ALIKE else same[: _MAX_ALIKE - 1]
        out += [(text, 0) for text in shown[:-1]]
        out.append((shown[-1], len(same) - len(shown)))
    return out


def paragraph(finding: Finding, view: View) -> Iterator[Line]:
    """The lines of one finding."""
    verdict = f"{finding.verdict.upper():<8}"
    number = count(finding.count, finding.kind)
    does = doing(finding.state, finding.wait)
    if finding.bytes is not None:
        number += f", {size(finding.bytes)}"
    head: Line = [(verdict, finding.verdict), (number, "count"), ("  " + does, "")]
    template = clean(finding.template or "no template")
    used = sum(cells(text) for text, _ in head)
    if used + 2 + cells(template) <= view.width:
        head.append((" " * (view.width - used - cells(template)) + template, "template"))
        yield head
    else:
        yield head
        yield [(_INDENT + template, "template")]
    if view.verbose and finding.title:
        yield from labelled("what", finding.title, view)
    yield from frames(finding.frames, view)
    if finding.waiting_on is not None:
        label = "object" if finding.kind in NO_STACKS else "waits on"
        yield from labelled(label, thing(finding.waiting_on), view)
    yield from _times(finding, view)
    if finding.created_by:
        own = next((f for f in finding.created_by if is_own(f)), finding.created_by[0])
        yield from labelled("created", f"{place(own, view.verbose)} in {_name(own)}", view)
    names = [clean(name, 60) for name in finding.examples if name]
    if names:
        more = finding.count - len(names)
        yield from labelled("named", ", ".join(names) + (" …" if more > 0 else ""), view)
    for i, holder in enumerate(finding.held_by[: None if view.verbose else 1]):
        yield from labelled("" if i else "held by", holder, view)
    yield from _source(finding, view)
    for i, reason in enumerate(finding.evidence[: None if view.verbose else _MAX_EVIDENCE]):
        yield from labelled("" if i else "why", reason, view)
    if view.verbose and finding.cause:
        yield from labelled("cause", finding.cause, view)
    if finding.fix:
        yield from labelled("fix", finding.fix, view, "fix")
    if finding.runbook:
        yield from labelled("runbook", finding.runbook, view)


def _source(finding: Finding, view: View) -> Iterator[Line]:
    """Lines of the target's source that explain the finding, each with what it says."""
    for i, line in enumerate(finding.source):
        file = line.file if view.verbose else posixpath.basename(line.file)
        text = f"{clean(file, 200)}:{line.line}: {clean(line.text, 200)}".rstrip(": ")
        label = "" if i else "source"
        yield [(_INDENT + pad(label, _LABEL), "label"), (cut(text, view.width - 17), "source")]
        yield from labelled("", line.says, view)


def _times(finding: Finding, view: View) -> Iterator[Line]:
    since = []
    if finding.wait_seconds is not None:
        since.append(f"waiting for up to {duration(finding.wait_seconds)}")
    if finding.age_seconds is not None:
        since.append(f"the oldest is {duration(finding.age_seconds)} old")
    if since:
        yield from labelled("since", ", ".join(since), view)
    if finding.trend is not None:
        counts = " → ".join(f"{n:,}" for n in finding.trend.counts[-6:])
        text = counts  # rows of tables are not told apart
        if finding.kind not in NO_STACKS and finding.trend.persisted is not None:
            text += f", {finding.trend.persisted:,} of them in all snapshots"
        last = finding.trend.seconds[-1] if finding.trend.seconds else float("nan")
        if last == last:
            text += f", over {duration(last)}"
        yield from labelled("trend", text, view)


def _idle(cluster: Cluster, view: View) -> Iterator[Line]:
    head: Line = [
        ("IDLE    ", "idle"),
        (count(cluster.count, cluster.kind), "count"),
        ("  " + doing(cluster.state, cluster.wait), ""),
    ]
    if cluster.template:
        head.append(("  " + clean(cluster.template), "template"))
    yield head
    if view.verbose:
        yield from frames(cluster.frames, view)


def labelled(label: str, text: str, view: View, style: str = "") -> Iterator[Line]:
    """Lines below a head: what it is, and what there is to say, wrapped."""
    for i, part in enumerate(wrap(clean(text, 2000), view.width - len(_INDENT) - _LABEL)):
        yield [(_INDENT + pad("" if i else label, _LABEL), "label"), (part, style)]


def _ignored(known: Ignored, view: View) -> Iterator[Line]:
    finding = known.finding
    yield [
        ("IGNORED ", "idle"),
        (count(finding.count, finding.kind), "count"),
        ("  " + doing(finding.state, finding.wait), ""),
        ("  " + clean(finding.template or "no template"), "template"),
    ]
    yield from frames(finding.frames, replace(view, verbose=False))
    until = f", until {known.expires.isoformat()}" if known.expires else ""
    yield from labelled("reason", f"{known.reason} ({known.entry}{until})", view)


def _frame(frame: Frame, view: View, places: int, names: int) -> Line:
    style = "own" if is_own(frame) else "library"
    line: Line = [
        (_INDENT + pad(place(frame, view.verbose), places), style),
        ("  " + pad(_function(frame, view.verbose), names), style),
    ]
    if view.sources is not None:
        room = view.width - sum(cells(text) for text, _ in line) - 2
        source = view.sources.line(frame)
        if source and room >= 12:
            line.append(("  " + cut(source, room), "source"))
    return line


def _function(frame: Frame, full: bool = False) -> str:
    return f"in {_name(frame, full)}"


def _name(frame: Frame, full: bool = False) -> str:
    # Qualified names of nested functions are long and say little: main.<locals>.worker is worker.
    name = frame.function.rpartition("<locals>.")[2] or "?"
    if frame.library is not None and not full:
        name = without_arguments(name)  # as long as they are
    return clean(name, 100)


def totals(report: Report) -> str:
    """``1 finding (1 likely), 2 ignored by .diagtool.toml, 7 clusters, 10,052 stacks``."""
    summary = report.summary
    text = count(summary.findings, "finding")
    by_verdict = [f"{summary.by_verdict[v]:,} {v}" for v in VERDICTS if summary.by_verdict.get(v)]
    if by_verdict:
        text += f" ({', '.join(by_verdict)})"
    if summary.ignored:
        text += f", {summary.ignored:,} ignored by {baseline_name(report.baseline)}"
    return f"{text}, {count(summary.clusters, 'cluster')}, {count(summary.stacks, 'stack')}"


def baseline_name(use: BaselineUse | None) -> str:
    """The name of the baseline file."""
    return "the baseline" if use is None else clean(posixpath.basename(use.file), 100)
