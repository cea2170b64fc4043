"""The findings as a page has them: in words, with everything known about each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from diagtool.leaks.model import NO_STACKS, Finding, SourceLine
from diagtool.leaks.own import is_own
from diagtool.report.html.frames import Frames, short_name
from diagtool.report.terminal import doing, place, thing
from diagtool.report.text import count, duration, size
from diagtool.snapshot.model import Frame

__all__ = ["findings"]

#: Of one finding.
_MOST_TEXTS = 20


def findings(found: Iterable[Finding], frames: Frames) -> list[dict[str, Any]]:
    """One object a finding: ``facts`` are pairs of a label and texts, ``frames`` numbers."""
    return [_finding(f, frames) for f in found]


def _finding(f: Finding, frames: Frames) -> dict[str, Any]:
    number = count(f.count, f.kind)
    if f.bytes is not None:
        number += f", {size(f.bytes)}"
    return {
        "id": f.id,
        "verdict": f.verdict,
        "severity": f.severity,
        "template": f.template,
        "count": number,
        "title": f.title,
        "does": doing(f.state, f.wait) if f.kind not in NO_STACKS else "",
        "frames": frames.ids(f.frames, with_source=True),
        "source": [[_source_place(line), line.text, line.says] for line in f.source[:_MOST_TEXTS]],
        "facts": [[label, texts] for label, texts in _facts(f) if texts],
        "trend": [] if f.trend is None else list(f.trend.counts),
        "cause": f.cause,
        "fix": f.fix,
        "runbook": f.runbook,
    }


def _facts(f: Finding) -> Iterator[tuple[str, list[str]]]:
    if f.waiting_on is not None:
        yield "object" if f.kind in NO_STACKS else "waits on", [thing(f.waiting_on)]
    yield "held by", list(f.held_by[:_MOST_TEXTS])
    yield "why", list(f.evidence[:_MOST_TEXTS])
    yield "since", list(_times(f))
    if f.trend is not None:
        yield "trend", [" → ".join(f"{n:,}" for n in f.trend.counts[-12:]) + _persisted(f)]
    if f.created_by:
        own = next((c for c in f.created_by if is_own(c)), f.created_by[0])
        yield "created", [f"{place(own)} in {short_name(own)}"]
    names = [name for name in f.examples if name]
    if names:
        yield "named", [", ".join(names) + (" …" if f.count > len(names) else "")]


def _source_place(line: SourceLine) -> str:
    return place(Frame("", line.file, line.line))


def _times(f: Finding) -> Iterator[str]:
    if f.wait_seconds is not None:
        yield f"waiting for up to {duration(f.wait_seconds)}"
    if f.age_seconds is not None:
        yield f"the oldest is {duration(f.age_seconds)} old"


def _persisted(f: Finding) -> str:
    if f.trend is None or f.trend.persisted is None or f.kind in NO_STACKS:
        return ""
    return f", {f.trend.persisted:,} of them in all snapshots"
