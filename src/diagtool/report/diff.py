"""The report of ``diagtool diff`` for a person: which heaps grew, and of what.

HEAPS                                          3 snapshots in 12 min
  +600,000  objects that the collector tracks  24,301 → 624,301   3.0 M per hour   60 per unit
  +152 MB   all Python objects                 9.8 MB → 162 MB …

TYPES
  +200,000   +120 MB  app.Image                0 → 200,000        grows

HOLDERS
  +200,000   +131 MB  module app → _images (dict, 200,000 items)  grows
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diagtool.leaks.own import is_own
from diagtool.report.contention import time_of, waited
from diagtool.report.terminal import View, about, doing, place, warnings
from diagtool.report.text import Line, cells, clean, count, cut, duration, size, wrap
from diagtool.snapshot.diff import Change, Diff
from diagtool.snapshot.model import Frame
from diagtool.snapshot.trend import Number

#: Rows shown of each kind when nobody asks for another number.
LIMIT = 12
_INDENT = "  "
_SHOWN_VALUES = 6
_WORDS = {
    "grows": "grows steadily",
    "grew": "grew",
    "settles": "settles",
    "unsteady": "unsteady",
    "flat": "no growth",
    "fell": "fell",
    "unknown": "",
}


@dataclass(frozen=True, slots=True)
class _Row:
    cells: tuple[str, ...]  # aligned to the right
    text: str
    notes: tuple[str, ...]  # below it
    style: str = ""


def report(diff: Diff, limit: int, view: View) -> Iterator[Line]:
    """The lines of the whole report."""
    yield from _section("HEAPS", _heaps(diff), len(diff.heaps), view)
    grown = [t for t in diff.types if t.bytes.delta > 0 or t.count.delta > 0]
    rows = [
        _Row(
            (_signed(t.count.delta), _signed_size(t.bytes.delta)),
            clean(t.type),
            (_course(t.count, False) if t.count.delta else _course(t.bytes, True),),
            _style(t.count),
        )
        for t in grown
    ]
    yield from _section("TYPES", rows, limit, view)
    yield from _section("HOLDERS", list(_holders(diff)), limit, view)
    yield from _section("STACKS", list(_stacks(diff, view)), limit, view)
    yield from _section("SITES", list(_sites(diff, view)), limit, view)
    maps = [
        _Row(
            (_signed(m.count.delta), _signed_size(m.bytes.delta)),
            f"mappings of {clean(m.pattern)}",
            (_course(m.count, False),),
            _style(m.count),
        )
        for m in diff.maps
        if m.count.delta > 0
    ]
    yield from _section("MAPPED FILES", maps, limit, view)
    waits = list(_waits(diff, view))
    yield from _section("CONTENTION", waits, limit, view)
    if not any((grown, diff.holders, diff.stacks, diff.sites, maps, waits)):
        yield [("Nothing that was counted in these snapshots grew.", "")]
        yield []
    yield from warnings(diff.warnings, view)
    yield [(_totals(diff), "count"), (about(diff.snapshots[-1].target, None), "")]


def _totals(diff: Diff) -> str:
    text = count(len(diff.snapshots), "snapshot")
    if math.isfinite(diff.seconds[-1]):
        text += f" in {duration(diff.seconds[-1])}"
    return text + (f", {diff.units[-1]:,.0f} units of work" if diff.units else "")


def _section(title: str, rows: Sequence[_Row], limit: int, view: View) -> Iterator[Line]:
    if not rows:
        return
    yield [(title, "label")]
    shown = rows[:limit]
    widths = [max(cells(r.cells[i]) for r in shown) for i in range(len(shown[0].cells))]
    for row in shown:
        head = _INDENT + "  ".join(f"{c:>{w}}" for c, w in zip(row.cells, widths, strict=True)) + "  "
        yield from _paragraph(head, row, view)
    if len(rows) > limit:
        yield [(f"{_INDENT}… {len(rows) - limit:,} more (--limit N)", "label")]
    yield []


def _paragraph(head: str, row: _Row, view: View) -> Iterator[Line]:
    room = max(view.width - len(head), 30)
    parts = wrap(row.text, room)
    notes = ", ".join(n for n in row.notes if n)
    yield [(head, "count"), (cut(parts[0], room), row.style)]
    for part in parts[1:]:
        yield [(" " * len(head), ""), (part, row.style)]
    for part in wrap(notes, room - 2) if notes else ():
        yield [(" " * (len(head) + 2) + part, "label")]


def _heaps(diff: Diff) -> list[_Row]:
    return [
        _Row(
            (_signed_size(h.change.delta) if h.bytes else _signed(h.change.delta),),
            h.title,
            (_course(h.change, h.bytes),),
            _style(h.change),
        )
        for h in diff.heaps
    ]


def _holders(diff: Diff) -> Iterator[_Row]:
    for held in diff.holders:
        if held.items.delta <= 0:
            continue
        way = held.row.get("held_by")
        text = clean(way, 500) if isinstance(way, str) else f"{clean(str(held.row['type']))}, of nobody known"
        kept = {True: "its oldest items stayed", False: "its items are new ones", None: ""}[held.kept]
        delta = (_signed(held.items.delta), _signed_size(held.bytes.delta))
        yield _Row(delta, text, (_course(held.items, False), kept), _style(held.items))


def _sites(diff: Diff, view: View) -> Iterator[_Row]:
    for site in diff.sites:
        if site.bytes.delta <= 0:
            continue
        where = place(Frame(site.function or "", site.file, site.line), view.verbose)
        text = f"{where} in {clean(site.function, 100)}" if site.function else where
        delta = (_signed(site.count.delta), _signed_size(site.bytes.delta))
        yield _Row(delta, text, (_course(site.bytes, True),), _style(site.bytes))


def _waits(diff: Diff, view: View) -> Iterator[_Row]:
    for one in diff.waits:
        if one.seconds.delta <= 0:
            continue
        where = place(Frame(one.function or "", one.file, one.line), view.verbose)
        text = f"{where} in {clean(one.function, 100)}" if one.function else where
        text += f"  {waited(one.kind)}" + (f" ({clean(one.wait, 100)})" if one.wait else "")
        each = one.seconds.delta / max(one.count.delta, 1)
        note = f"{time_of(each)} each" if one.count.delta > 0 else ""
        delta = (_signed(one.count.delta), f"+{time_of(one.seconds.delta)}")
        yield _Row(delta, text, (note,), "")


def _stacks(diff: Diff, view: View) -> Iterator[_Row]:
    for group in diff.stacks:
        if group.count.delta <= 0:
            continue
        own = next((f for f in group.frames if is_own(f)), group.frames[0] if group.frames else None)
        text = f"{group.kind} {doing(group.state, group.wait)}"
        if own is not None:
            text += f"  {place(own, view.verbose)} in {clean(own.function.rpartition('<locals>.')[2], 100)}"
        yield _Row((_signed(group.count.delta),), text, (_course(group.count, False),), _style(group.count))


def _style(change: Change) -> str:
    return {"grows": "likely", "grew": "suspect"}.get(change.course, "")


def _course(change: Change, in_bytes: bool) -> str:
    """``24,301 → 624,301, grows steadily, 3.0 M per hour, 60 per unit``"""
    parts = [" → ".join(_amount(v, in_bytes) for v in change.values[-_SHOWN_VALUES:]), _WORDS[change.course]]
    if change.course in ("grows", "grew", "settles", "unsteady"):
        if change.per_hour is not None:
            parts.append(f"{_rate(change.per_hour, in_bytes)} per hour")
        if change.per_unit is not None:
            parts.append(f"{_rate(change.per_unit, in_bytes)} per unit")
    return ", ".join(p for p in parts if p)


def _amount(value: Number, in_bytes: bool) -> str:
    if value is None:
        return "?"
    return size(int(value)) if in_bytes else f"{value:,.0f}"


def _rate(value: float, in_bytes: bool) -> str:
    if in_bytes:
        return size(round(value)) if value >= 0 else f"-{size(round(-value))}"
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.1f} M"
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:,.2f}"


def _signed(value: float) -> str:
    return f"{value:+,.0f}"


def _signed_size(value: float) -> str:
    return f"{'+' if value >= 0 else '-'}{size(round(abs(value)))}"
