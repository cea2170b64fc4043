"""What a page shows, as plain JSON: pictures, tables and findings, in words wherever these are needed."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from diagtool._version import __version__
from diagtool.leaks.model import VERDICTS, Report
from diagtool.report.html import amounts, runbook
from diagtool.report.html.findings import findings
from diagtool.report.html.flame import flame
from diagtool.report.html.frames import Frames
from diagtool.report.html.limits import Limits
from diagtool.report.html.series import growth
from diagtool.report.html.tables import ignored_table, tables
from diagtool.report.html.timeline import timeline
from diagtool.report.html.waits import waits
from diagtool.report.sources import Sources
from diagtool.report.text import clean, count
from diagtool.snapshot.model import Snapshot, Target

__all__ = ["document", "subject", "verdict_line"]

#: Of one text: longer ones are no names.
_MOST_TEXT = 4_000


def document(
    report: Report,
    snapshots: Sequence[Snapshot],
    sources: Sources | None,
    limits: Limits,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything the page's script needs. All text is clean: no control or direction characters."""
    last = snapshots[-1]
    frames = Frames(limits.frames, sources)
    shown = report.findings[: limits.findings]
    page = {
        "diagtool": __version__,
        "verdict": verdict_line(report),
        "subject": subject(report.target),
        "facts": _facts(report, last),
        "by_verdict": {v: report.summary.by_verdict.get(v, 0) for v in VERDICTS},
        "findings": findings(shown, frames),
        "findings_left_out": len(report.findings) - len(shown),
        "ignored": ignored_table(report, limits.findings),
        "waits": waits(last, report, limits.waits),
        "flame": flame(last, limits.flame),
        "heap": amounts.heap(last, limits.tiles),
        "containers": amounts.containers(last, limits.tiles),
        "kept": amounts.kept(last, limits.tiles),
        "memory": amounts.memory(last, limits.tiles),
        "growth": growth(snapshots, limits.lines),
        "timeline": timeline(last, limits.lines),
        "tables": tables(last, report, frames, limits),
        "warnings": [*report.warnings[: limits.rows], *notes],
        "frames": frames.rows,
    }
    runbooks = {f.template: runbook.nodes(f.template) for f in shown if f.template}
    return {**{key: _clean(value) for key, value in page.items()}, "runbooks": runbooks}


def verdict_line(report: Report) -> str:
    """What the page says first: ``1 proven finding``, ``3 findings: 1 proven, 2 likely``."""
    numbers = {v: report.summary.by_verdict[v] for v in VERDICTS if report.summary.by_verdict.get(v)}
    if not numbers:
        return "No leak found"
    if len(numbers) == 1:
        return "".join(count(number, f"{verdict} finding") for verdict, number in numbers.items())
    said = [f"{number:,} {verdict}" for verdict, number in numbers.items()]
    return f"{count(report.summary.findings, 'finding')}: {', '.join(said)}"


def subject(target: Target) -> str:
    """What was looked at, in a few words: ``service.py, pid 4242``."""
    name = clean(_program(target.cmdline) or posixpath.basename(target.exe or "") or "a process", 80)
    where = "core of pid" if target.kind == "core" else "pid"
    return f"{name}, {where} {target.pid}" if target.pid is not None else name


def _program(command: Sequence[str]) -> str:
    """What an interpreter runs, or the program itself; "" where it is not known."""
    program = posixpath.basename(command[0]) if command else ""
    if not program.startswith("python"):
        return program
    words = iter(command[1:])
    for word in words:
        if word == "-m":
            return next(words, program)
        if word in ("-X", "-W"):
            next(words, "")
        elif not word.startswith("-"):
            return posixpath.basename(word)
        elif word == "-c":
            break
    return program


def _facts(report: Report, snapshot: Snapshot) -> list[list[str]]:
    target = report.target
    summary = report.summary
    runtime = target.runtime + (f" ({target.flavour})" if target.flavour not in ("", "release") else "")
    crash = target.details.get("crash")
    ended = crash.get("text") if isinstance(crash, dict) else None
    facts = [
        ("Command", " ".join(target.cmdline)),
        ("Ended by", ended if isinstance(ended, str) else ""),
        ("Runtime", runtime),
        ("Host", target.host or ""),
        ("Taken", _moment(target.captured_at)),
        ("Started", _moment(target.start_time)),
        ("Stopped for", "" if report.pause_ms is None else f"{report.pause_ms:.1f} ms"),
        ("Stacks", f"{summary.stacks:,} in {count(summary.clusters, 'cluster')}"),
        ("diagtool", __version__),
    ]
    return [[label, text] for label, text in facts if text]


def _moment(seconds: float | None) -> str:
    if seconds is None or not 0 < seconds < 1e11:
        return ""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value, _MOST_TEXT)
    if isinstance(value, dict):
        return {key: _clean(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(v) for v in value]
    return value
