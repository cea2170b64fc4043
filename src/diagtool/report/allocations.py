"""The view of ``diagtool heap --sites``: where memory was allocated, for a person and as JSON.

  count   bytes  allocated at
300,000  114 MB  cache.py:41                  images[key] = decode(data)
                   bytes 109 MB, dict 4.1 MB, …
 12,000   10 MB  json/decoder.py:353  from app.py:88  rows = json.loads(text)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from diagtool.golang.names import package_of
from diagtool.leaks.own import is_own
from diagtool.report.heap import matches
from diagtool.report.terminal import View, about, place, warnings
from diagtool.report.text import Line, cells, clean, count, cut, size, wrap
from diagtool.snapshot.model import Frame, Snapshot

__all__ = ["LIMIT", "AllocationSite", "document", "has_sites", "lines", "site_of_row", "sites"]

#: Sites shown when nobody asks for another number.
LIMIT = 20

#: Who recorded it, and the table that says how.
_TABLES = {"tracemalloc": "tracemalloc", "memray": "memray", "pprof": "profiles"}

_MOST = 1 << 63
_MAX_TYPES = 4  # types told of one site
_MAX_CALLERS = 25  # frames told of one site with -v


@dataclass(slots=True)
class AllocationSite:
    """Blocks that were allocated at one place: ``frames`` innermost first, with those that lead there.

    ``types``: (name, count, bytes) of those blocks that are objects, as far as it is known.
    """

    source: str  # tracemalloc, memray, pprof
    count: int
    bytes: int
    frames: list[Frame]
    types: list[tuple[str, int, int]] = field(default_factory=list)
    domain: int = 0
    depth: int = 0  # frames that there were; more than were kept
    sites: int = 0  # so many sites in one row, without frames
    allocator: str = ""  # mmap and the like; none for the ordinary ones
    native: list[Frame] = field(default_factory=list)  # those of C within the first one of Python
    allocated_count: int | None = None  # since the start, freed or not; None where nobody counted
    allocated_bytes: int | None = None

    @property
    def in_use(self) -> bool:
        """Whether anything is left of what was allocated there."""
        return bool(self.count or self.bytes)


def has_sites(snapshot: Snapshot) -> bool:
    """Whether somebody recorded where memory was allocated."""
    return "allocation_sites" in snapshot.tables


def sites(snapshot: Snapshot, pattern: str | None = None) -> list[AllocationSite]:
    """The sites, most bytes first. Rows of a file that make no sense are left out.

    ``pattern``: only objects of types of this name (see ``heap.matches``), in count and bytes, too.
    """
    found = [s for s in map(site_of_row, snapshot.tables.get("allocation_sites", ())) if s is not None]
    if pattern is not None:
        for site in found:
            site.types = [t for t in site.types if matches(t[0], pattern)]
            site.count, site.bytes = sum(t[1] for t in site.types), sum(t[2] for t in site.types)
        found = [s for s in found if s.count]
    return sorted(found, key=lambda s: (-s.bytes, -s.count))


def document(snapshot: Snapshot, found: Sequence[AllocationSite]) -> dict[str, Any]:
    """``tracing`` and ``sites`` of the JSON document ``diagtool.heap/1``."""
    keys = ("blocks", "bytes", "peak", "frames")
    return {
        "tracing": [
            {"source": source, **{key: _number(row.get(key)) for key in keys}}
            for source, table in _TABLES.items()
            for row in snapshot.tables.get(table, ())[:1]
        ],
        "sites": [
            {
                "source": s.source,
                "domain": s.domain,
                "allocator": s.allocator or None,
                "count": s.count,
                "bytes": s.bytes,
                "types": [{"type": name, "count": n, "bytes": b} for name, n, b in s.types],
                "frames": [
                    {"function": f.function or None, "file": f.file, "line": f.line} for f in s.frames
                ],
                "depth": max(s.depth, len(s.frames)),
                "sites": s.sites or 1,
                "allocated_count": s.allocated_count,
                "allocated_bytes": s.allocated_bytes,
            }
            for s in found
        ],
    }


def lines(snapshot: Snapshot, found: Sequence[AllocationSite], limit: int, view: View) -> Iterator[Line]:
    """The places with most bytes, what is there, and what could not be read."""
    freed = [s for s in found if not s.in_use]
    found = [s for s in found if s.in_use]
    places = list(found) if view.verbose else _merged(found)
    shown, rest = places[:limit], places[limit:]
    ever = any(s.allocated_bytes is not None for s in places)
    rows = [_numbers([s], ever) for s in shown]
    more = _numbers(rest, ever)
    head = ("count", "bytes", "ever")[: 3 if ever else 2]
    every = [head, *rows, *([more] if rest else [])]
    widths = [max(cells(row[i]) for row in every) for i in range(len(head))]
    room = max(view.width - sum(widths) - 2 * len(head), 20)

    def start(*numbers: str) -> str:
        return "".join(f"{number:>{w}}  " for number, w in zip(numbers, widths, strict=True))

    blank = " " * (sum(widths) + 2 * len(head))
    if shown:
        yield [(start(*head) + "allocated at", "label")]
    mixed = len({s.source for s in places}) > 1
    names = min(max((cells(_where(s, view, mixed)) for s in shown), default=0), 40)
    for site, row in zip(shown, rows, strict=True):
        where = cut(_where(site, view, mixed), room)
        line: Line = [(start(*row), ""), (where, "own" if _own(site) is not None else "")]
        frame = _own(site) or (site.frames[0] if site.frames else None)
        text = view.sources.line(frame) if view.sources is not None and frame is not None else ""
        gap = max(names - cells(where), 0) + 2
        if text and room - cells(where) - gap > 10:
            line.append((" " * gap + cut(text, room - cells(where) - gap), "source"))
        yield line
        if site.types:
            yield [(blank + "  " + cut(_types(site), room - 2), "label")]
        if view.verbose:
            for caller in site.frames[1:_MAX_CALLERS]:
                yield [(blank + f"  from {place(caller, True)}", "")]
            hidden = max(site.depth, len(site.frames)) - min(len(site.frames), _MAX_CALLERS)
            if hidden > 0:
                yield [(blank + f"  … {count(hidden, 'frame')} further out", "label")]
    if rest:
        yield [(start(*more) + f"at {count(len(rest), 'more place')} (--limit N)", "label")]
    if not found:
        yield [("No such allocation.", "")]
    if freed:
        gone = size(sum(s.allocated_bytes or 0 for s in freed))
        elsewhere = count(sum(s.sites or 1 for s in freed), "other place")
        yield [(f"… {gone} allocated at {elsewhere} is free again", "label")]
    yield []
    yield from warnings(snapshot.warnings, view)
    for part in _said(snapshot):
        for text in wrap(part, view.width):
            yield [(text, "label")]
    totals = f"{count(sum(s.count for s in found), 'block')}, {size(sum(s.bytes for s in found))}"
    yield [(totals, "count"), (about(snapshot.target, snapshot.pause_ms), "")]


def _numbers(some: Sequence[AllocationSite], ever: bool) -> tuple[str, ...]:
    counts = (f"{sum(s.count for s in some):,}", size(sum(s.bytes for s in some)))
    return (*counts, size(sum(s.allocated_bytes or 0 for s in some))) if ever else counts


def _merged(found: Sequence[AllocationSite]) -> list[AllocationSite]:
    """Sites of one place, and of one place in the user's own code, as one; the largest stands for it."""
    out: dict[tuple[object, ...], AllocationSite] = {}
    for site in found:
        head, own = site.frames[:1], _own(site)
        key = (
            site.source,
            site.domain,
            site.allocator,
            site.sites,
            *((f.file, f.line) for f in (*head, own) if f),
        )
        same = out.get(key)
        if same is None:
            out[key] = AllocationSite(
                site.source,
                *(site.count, site.bytes, site.frames, list(site.types), site.domain, site.depth, site.sites),
                site.allocator,
                allocated_count=site.allocated_count,
                allocated_bytes=site.allocated_bytes,
            )
            continue
        same.count += site.count
        same.bytes += site.bytes
        if same.allocated_count is not None and same.allocated_bytes is not None:
            same.allocated_count += site.allocated_count or 0
            same.allocated_bytes += site.allocated_bytes or 0
        sums = {name: (n, b) for name, n, b in same.types}
        for name, n, b in site.types:
            before = sums.get(name, (0, 0))
            sums[name] = (before[0] + n, before[1] + b)
        same.types = sorted(((name, *both) for name, both in sums.items()), key=lambda t: (-t[2], t[0]))
    return sorted(out.values(), key=lambda s: (-s.bytes, -s.count))


def _own(site: AllocationSite) -> Frame | None:
    """The innermost frame that is the user's own code."""
    return next((f for f in site.frames if is_own(f)), None)


def _where(site: AllocationSite, view: View, mixed: bool) -> str:
    if not site.frames:
        text = f"{count(site.sites, 'further place')} with little each" if site.sites else "?"
        return f"{text}  ({clean(site.allocator)})" if site.allocator else text
    text = place(site.frames[0], view.verbose)
    if site.frames[0].function:
        text += f" in {clean(site.frames[0].function)}"
    own = _own(site)
    if own is not None and own is not site.frames[0] and not view.verbose:
        text += f"  from {place(own)}"
    for said in (f"domain {site.domain}" if site.domain else "", clean(site.allocator)):
        text += f"  ({said})" if said else ""
    if mixed:
        text += f"  ({clean(site.source)})"
    return text


def _types(site: AllocationSite) -> str:
    said = [f"{clean(name)} {size(b)}" for name, _, b in site.types[:_MAX_TYPES]]
    rest = site.bytes - sum(b for _, _, b in site.types)
    if len(site.types) > _MAX_TYPES:
        said.append("…")
    if rest * 10 >= site.bytes:
        said.append(f"{size(rest)} of what objects own, or C")
    return ", ".join(said)


def _said(snapshot: Snapshot) -> Iterator[str]:
    for row in snapshot.tables.get("tracemalloc", ())[:1]:
        frames, peak = _number(row.get("frames")), _number(row.get("peak"))
        text = "tracemalloc: blocks allocated since it was started"
        if frames:
            text += f", {count(frames, 'frame')} each"
        yield text + (f"; at the peak {size(peak)}" if peak else "")
    for row in snapshot.tables.get("profiles", ())[:1]:
        rate = _number(row.get("rate"))
        text = "pprof: in use at the last collection"
        yield text + (f", by a sample of one in {size(rate)}" if rate and rate > 1 else "")
    for row in snapshot.tables.get("memray", ())[:1]:
        seconds = row.get("seconds")
        if isinstance(seconds, (int, float)) and 0 < seconds < 1e9:
            yield f"memray: blocks allocated within {seconds:.0f} s and not freed in these"


def _number(value: Any) -> int | None:
    fine = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST
    return value if fine else None


def site_of_row(row: dict[str, Any]) -> AllocationSite | None:
    """The site that a row tells of; None where it makes no sense."""
    number, amount = _number(row.get("count")), _number(row.get("bytes"))
    source, types, frames = row.get("source"), row.get("types", []), row.get("frames", [])
    if number is None or amount is None or not isinstance(source, str):
        return None
    if not isinstance(types, list) or not isinstance(frames, list):
        return None
    language = row.get("language")
    return AllocationSite(
        source,
        number,
        amount,
        [f for f in (_frame(f, language) for f in frames) if f is not None],
        [t for t in map(_type, types) if t is not None],
        _number(row.get("domain")) or 0,
        _number(row.get("depth")) or 0,
        _number(row.get("sites")) or 0,
        str(row.get("allocator") or "")[:40],
        _native(row.get("native")),
        _number(row.get("allocated_count")),
        _number(row.get("allocated_bytes")),
    )


def _native(value: Any) -> list[Frame]:
    told = map(_frame, value) if isinstance(value, list) else ()
    return [replace(f, language="native") for f in told if f is not None]


# [file, line], or [file, line, function].
def _frame(value: Any, language: object = None) -> Frame | None:
    if not isinstance(value, list) or not 2 <= len(value) <= 3 or not isinstance(value[0], str):
        return None
    function = value[2] if len(value) == 3 and isinstance(value[2], str) else ""
    if language == "go":
        return Frame(function, value[0], _number(value[1]), package_of(function) or None, "go")
    if language == "native":  # of another allocator's profile: nothing tells libraries from the program
        return Frame(function, value[0], _number(value[1]), None, "native")
    return Frame(function, value[0], _number(value[1]))


def _type(value: Any) -> tuple[str, int, int] | None:
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        return None
    number, amount = _number(value.get("count")), _number(value.get("bytes"))
    return None if number is None or amount is None else (value["type"], number, amount)
