"""``diagtool leaks --explain``: one finding with the whole chain of evidence, for a person."""

from __future__ import annotations

from collections.abc import Iterator

from diagtool.leaks.explain import Explanation
from diagtool.leaks.own import is_own
from diagtool.report.terminal import View, doing, frames, labelled, paragraph, place, thing
from diagtool.report.text import Line, clean, count, duration
from diagtool.report.trial import table
from diagtool.snapshot.model import Stack, Thing

__all__ = ["lines"]


def lines(told: Explanation, view: View) -> Iterator[Line]:
    """The finding as in the report with all that is folded there; then what led to it."""
    full = View(view.width, True, view.idle, view.sources)
    yield from paragraph(told.finding, full)
    yield from labelled("id", told.finding.id, view)
    if told.template is not None:
        yield from _part(f"Conditions of {told.template.id}")
        for candidate in told.conditions:
            yield [(f"{candidate.count:,} × {clean(candidate.what, 200)}", "count")]
            yield from table(candidate, view.width)
        if not told.conditions:
            yield [("  its stacks are not among those that are nearest to the template", "label")]
    if len(told.ways) > 1:
        yield from _part("Ways on which they came, the most used first")
        for way in told.ways:
            yield [(count(way.count, way.kind), "count")]
            yield from frames(way.frames, full)
    if told.stacks:
        yield from _part(_some(len(told.stacks), told.stack_count, "stack"))
        for stack in told.stacks:
            yield [("  " + _stack(stack), "")]
    if told.things:
        yield from _part(f"Waited on: {_some(len(told.things), told.thing_count, 'thing')}")
        for waited in told.things:
            yield from _thing(waited, view)
    for chain in told.chains:
        yield from _part("Who awaits them")
        for depth, stack in enumerate(chain):
            yield [("  " * min(depth, 12) + ("└ " if depth else "") + _stack(stack), "")]
    trend = told.finding.trend
    if trend is not None:
        yield from _part("Snapshots")
        for seconds, number in zip(trend.seconds, trend.counts, strict=True):
            at = "?" if seconds != seconds else f"+{duration(seconds)}"
            yield [(f"  {at:>10}  {number:,}", "")]


def _part(title: str) -> Iterator[Line]:
    yield []
    yield [(title, "own")]


def _some(shown: int, there: int, what: str) -> str:
    return count(there, what) if shown == there else f"{shown:,} of {count(there, what)}"


def _stack(stack: Stack) -> str:
    words = [stack.kind, clean(stack.name, 60)]
    words.append(f"0x{stack.address:x}" if stack.kind != "thread" else str(stack.address))
    words.append(doing(stack.state, stack.wait))
    own = next((f for f in stack.frames if is_own(f)), stack.frames[0] if stack.frames else None)
    if own is not None:
        words.append(f"at {place(own)}")
    for what, seconds in (("waits", stack.wait_seconds), ("old", stack.age_seconds)):
        if seconds is not None:
            words.append(f"{what} {duration(seconds)}")
    if stack.stuck:
        words.append("stuck")
    return " ".join(word for word in words if word)


def _thing(waited: Thing, view: View) -> Iterator[Line]:
    yield [("  " + thing(waited), "count")]
    state = ", ".join(f"{k} {v}" for k, v in waited.state.items() if v is not None)
    if state:
        yield from labelled("state", state, view)
    if waited.references is not None:
        text = f"{waited.references:,}"
        if waited.from_waiters is not None:
            text += f", {waited.from_waiters:,} of them from its waiters"
        yield from labelled("refs", text, view)
    if waited.exclusive is not None:
        text = "only its waiters reach it" if waited.exclusive else "others can reach it"
        yield from labelled("reached", text, view)
    for number, path in enumerate(waited.held_by[:10]):
        yield from labelled("" if number else "held by", path, view)
