"""Why a template matches or not, as a table: condition, what was wanted, what was found, yes or no."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from diagtool.leaks.trial import Candidate, Step, Trial
from diagtool.report.text import Line, cells, clean, count, cut, pad, wrap

__all__ = ("lines", "table")

_ANSWER = 5  # columns of yes and no


def lines(trials: Sequence[Trial], width: int) -> Iterator[Line]:
    """The lines for all templates that were tried."""
    for trial in trials:
        yield from _trial(trial, width)
        yield []


def _trial(trial: Trial, width: int) -> Iterator[Line]:
    template = trial.template
    yield [(clean(template.id), "own"), (f"  {clean(template.title)}", "label")]
    for number, candidate in enumerate(trial.candidates, 1):
        yield []
        head = f"{number}. {candidate.count:,} × {clean(candidate.what, 200)}"
        yield [(cut(head, width), "count")]
        yield from table(candidate, width)
    if not trial.candidates:
        yield [("there are no stacks in this snapshot", "warning")]
    yield []
    for text, style in _outcome(trial):
        lead = " " * (len(text) - len(text.lstrip()))
        for i, part in enumerate(wrap(text.lstrip(), width - 2 * len(lead))):
            yield [(lead * (2 if i else 1) + part, style)]


def table(candidate: Candidate, width: int) -> Iterator[Line]:
    """A line a condition: which part asks, what is wanted, what was found, yes or no."""
    steps = candidate.steps
    parts = min(max((cells(clean(s.part)) for s in steps), default=0), 28)
    room = width - parts - _ANSWER - 7
    longest = max((cells(clean(s.found)) for s in steps), default=0)
    wanted = max((cells(clean(s.wanted)) for s in steps), default=0)
    wanted = max(min(wanted, max(room // 2, room - longest)), 8)
    found = room - wanted
    titles = [pad("condition", parts), pad("wanted", wanted), pad("found", found), ""]
    yield [("   " + "  ".join(titles).rstrip(), "label")]
    for step in steps:
        yield from _step(step, parts, wanted, found)


def _step(step: Step, parts: int, wanted: int, found: int) -> Iterator[Line]:
    columns = [
        _folded(clean(step.part), parts),
        _folded(clean(step.wanted, 500), wanted),
        _folded(clean(step.found, 500), found),
    ]
    for i in range(max(map(len, columns))):
        texts = [column[i] if i < len(column) else "" for column in columns]
        line: Line = [
            ("   " + pad(texts[0], parts), "label"),
            ("  " + pad(texts[1], wanted), ""),
            ("  " + pad(texts[2], found), ""),
        ]
        if not i:
            line.append(("  yes", "idle") if step.holds else ("  no", "warning"))
        yield line


def _folded(text: str, width: int) -> list[str]:
    """``text`` in lines of ``width``; of a path that is longer the next line has the rest."""
    return textwrap.wrap(text, max(width, 8), break_on_hyphens=False) or [""]


def _outcome(trial: Trial) -> Iterable[tuple[str, str]]:
    template = trial.template
    if trial.findings:
        for finding in trial.findings:
            number = count(finding.count, finding.kind)
            yield f"matches: {finding.verdict}, {number}, finding {finding.id}", "own"
            for line in finding.source:
                yield f"  {line.check} at {clean(line.file)}:{line.line}: {clean(line.says)}", "source"
    elif trial.idle:
        stacks = sum(c.count for c in trial.idle)
        yield f"matches: {stacks:,} stacks in {count(len(trial.idle), 'cluster')} are idle by it", "own"
    elif trial.others:
        names = ", ".join(trial.others)
        text = (
            f"does not match: its conditions hold, but {clean(names, 500)} got the stacks, being surer or of"
        )
        yield f"{text} a higher priority than {template.priority}", "warning"
    else:
        failed = next((s for c in trial.candidates for s in c.steps if not s.holds), None)
        why = f": {clean(failed.part)}: {clean(failed.wanted, 200)}" if failed is not None else ""
        yield f"does not match{why}", "warning"
