"""The view of ``diagtool heap --native``: what the C library's malloc holds, for a person and as JSON.

in use  blocks     free  where
8.1 MB  24,110  10.1 MB  main arena
 12 MB      20           blocks with a mapping of their own

bytes each  in use  blocks     free
     1,008  1.0 MB   1,000        –

unreachable: 1,000 blocks, 1.0 MB: no pointer leads to them any more
1,000  1.0 MB  1,008 bytes each, first word: retire in libworker.so
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diagtool.report import nativesites
from diagtool.report.checked import checked_rows
from diagtool.report.terminal import View, about, warnings
from diagtool.report.text import Line, cells, clean, columns, count, cut, size, wrap
from diagtool.snapshot.model import Snapshot

if TYPE_CHECKING:
    from diagtool.report.allocations import AllocationSite

__all__ = ["LIMIT", "document", "has_native", "lines"]

#: Arenas, sizes and groups shown when nobody asks for another number.
LIMIT = 10

_JUDGED = "judged"
_SIGNIFICANT = 0.2  # share of free memory between blocks from which it is worth a word
_LEAST_FREE = 1 << 20  # bytes

_Row = dict[str, Any]

#: The columns of each table that are told, with what they hold: a number of bytes or blocks, a fraction, an
#: address, text, or yes and no. ``?`` means that it may be unknown.
_COLUMNS: dict[str, dict[str, str]] = {
    "native_heap": {
        "allocator": "text?",
        "used": "number",
        "free": "number",
        "mmapped_blocks": "number",
        "mmapped_bytes": "number",
        "thread_caches": "number",
        "unreachable_blocks": "number",
        "unreachable_bytes": "number",
        "known_blocks": "number",
        "known_bytes": "number",
        "reachability": "text",
        "damaged": "flag",
        "fragmentation_free": "number?",
        "fragmentation_top": "number?",
        "fragmentation_ratio": "fraction?",
        "fragmentation_largest": "number?",
        "fragmentation_holes": "number?",
    },
    "native_arenas": {
        "address": "address",
        "main": "flag",
        "heaps": "number",
        "system": "number",
        "used": "number",
        "used_blocks": "number",
        "free": "number",
        "free_blocks": "number",
        "fast": "number",
        "cached": "number",
        "top": "number",
        "unread": "number",
    },
    "native_sizes": {
        "low": "number",
        "high": "number",
        "used": "number",
        "used_bytes": "number",
        "free": "number",
        "free_bytes": "number",
    },
    "native_unreachable": {
        "size": "number",
        "count": "number",
        "bytes": "number",
        "heads": "number",
        "library": "text?",
        "symbol": "text?",
        "type": "text?",
        "known": "text?",
        "example": "address?",
        "hangs": "number",
        "hanging": "number",
        "hanging_bytes": "number",
        "holds": "text?",
    },
    "native_foreign": {"name": "text", "library": "text", "mapped": "number", "note": "text"},
}


def has_native(snapshot: Snapshot) -> bool:
    """Whether the native heap was read when the snapshot was taken."""
    return bool(rows(snapshot, "native_heap"))


def rows(snapshot: Snapshot, table: str) -> list[_Row]:
    """The rows of a ``native_*`` table. Those of a file that make no sense are left out."""
    return checked_rows(snapshot, table, _COLUMNS[table])


def document(snapshot: Snapshot) -> dict[str, Any] | None:
    """The native heap as JSON: the key ``native`` of ``diagtool.heap/1``; None where it was not read."""
    totals = rows(snapshot, "native_heap")
    if not totals:
        return None
    out = {name: value for name, value in totals[0].items() if not name.startswith("fragmentation_")}
    parts = {n.partition("_")[2]: v for n, v in totals[0].items() if n.startswith("fragmentation_")}
    out["fragmentation"] = parts if parts["ratio"] is not None else None
    for name in ("arenas", "sizes", "unreachable", "foreign"):
        out[name] = [_hex(row) for row in rows(snapshot, f"native_{name}")]
    sites = nativesites.allocated(snapshot)
    for row, told in zip(rows(snapshot, "native_unreachable"), out["unreachable"], strict=True):
        found = None if sites is None else sites.get(row["example"], [])
        told["allocated"] = None if found is None else nativesites.documents(found)
    out["warnings"] = _said(snapshot)
    return out


def _hex(row: _Row) -> _Row:
    places = ("address", "example")
    return {k: hex(v) if k in places and v is not None else v for k, v in row.items()}


def _said(snapshot: Snapshot) -> list[str]:
    texts = (row.get("text") for row in snapshot.tables.get("native_warnings", ()) if isinstance(row, dict))
    return [text for text in texts if isinstance(text, str)]


def lines(snapshot: Snapshot, limit: int, view: View) -> Iterator[Line]:
    """The whole view: arenas, sizes, fragmentation, what is unreachable, other allocators, warnings."""
    totals = rows(snapshot, "native_heap")[0]
    if totals["allocator"] is not None:
        yield from _arenas(snapshot, totals, limit)
        yield []
        yield from _sizes(snapshot, limit)
        yield []
        yield from _paragraph(_fragmentation(totals), view)
        yield from _unreachable(snapshot, totals, limit, view)
    for row in rows(snapshot, "native_foreign"):
        text = f"{row['note']}. Up to {size(row['mapped'])} of memory may be its own."
        yield from _paragraph(text, view)
    if totals["allocator"] is None and not rows(snapshot, "native_foreign"):
        yield [("No allocator was recognised.", "")]
    yield []
    yield from warnings([*snapshot.warnings, *_said(snapshot)], view)
    if totals["allocator"] is not None:
        blocks = sum(r["used_blocks"] for r in rows(snapshot, "native_arenas")) + totals["mmapped_blocks"]
        said = f"{clean(totals['allocator'])}: {count(blocks, 'block')} in use, {size(totals['used'])}; "
        said += f"{size(totals['free'])} free"
    else:
        said = "the native heap is not read"
    yield [(said, "count"), (about(snapshot.target, snapshot.pause_ms), "")]


def _paragraph(text: str, view: View) -> Iterator[Line]:
    for part in wrap(clean(text, 2000), view.width):
        yield [(part, "")]


def _arenas(snapshot: Snapshot, totals: _Row, limit: int) -> Iterator[Line]:
    arenas = sorted(rows(snapshot, "native_arenas"), key=lambda r: -(r["used"] + r["free"] + r["top"]))
    body = []
    for row in arenas[:limit]:
        name = "main arena" if row["main"] else f"arena at {row['address']:#x}, {count(row['heaps'], 'heap')}"
        if row["unread"]:
            name += f", {size(row['unread'])} not read"
        body.append(_place(row["used"], row["used_blocks"], row["free"], row["top"], name))
    rest = arenas[limit:]
    if rest:
        used, blocks, free, top = (sum(r[k] for r in rest) for k in ("used", "used_blocks", "free", "top"))
        body.append(_place(used, blocks, free, top, f"{count(len(rest), 'more arena')} (--limit N)"))
    if totals["mmapped_blocks"]:
        own = "blocks with a mapping of their own"
        body.append(_place(totals["mmapped_bytes"], totals["mmapped_blocks"], 0, 0, own))
    head = ("in use", "blocks", "free", "at its end", "where")
    yield from columns(head, body)


def _place(used: int, blocks: int, free: int, top: int, name: str) -> tuple[str, ...]:
    return size(used), f"{blocks:,}", _amount(free), _amount(top), name


def _amount(number: int) -> str:
    return size(number) if number else "–"


def _sizes(snapshot: Snapshot, limit: int) -> Iterator[Line]:
    classes = sorted(rows(snapshot, "native_sizes"), key=lambda r: (-r["used_bytes"], r["low"]))
    body = [
        (size(r["used_bytes"]), f"{r['used']:,}", _amount(r["free_bytes"]), _range(r["low"], r["high"]))
        for r in classes[:limit]
    ]
    rest = classes[limit:]
    if rest:
        sums = [sum(r[k] for r in rest) for k in ("used_bytes", "used", "free_bytes")]
        body.append((size(sums[0]), f"{sums[1]:,}", _amount(sums[2]), f"{count(len(rest), 'more size')}"))
    yield from columns(("in use", "blocks", "free", "bytes of a block, header included"), body)


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _fragmentation(totals: _Row) -> str:
    """One sentence on what malloc holds and the program does not use."""
    free, top, ratio = (totals[f"fragmentation_{name}"] for name in ("free", "top", "ratio"))
    if free is None or top is None or ratio is None:
        return "How much of it is free is not known."
    if not free and not top:
        return "Nothing of it is free."
    text = f"{ratio:.0%} of the arenas ({size(free)}) is free between blocks in use"
    holes, largest = totals["fragmentation_holes"], totals["fragmentation_largest"]
    if holes and largest:
        text += f", in {count(holes, 'hole')} of up to {size(largest)}"
    text += f"; {size(top)} are free at their ends."
    if ratio >= _SIGNIFICANT and free >= _LEAST_FREE:
        text += " It stays with the process: what is in use lies among it. Fewer arenas (MALLOC_ARENA_MAX=2)"
        text += " or malloc_trim(0) may give some of it back."
    return text


def _unreachable(snapshot: Snapshot, totals: _Row, limit: int, view: View) -> Iterator[Line]:
    if totals["reachability"] != _JUDGED:
        why = totals["reachability"].removeprefix("not judged: ")
        yield from _paragraph(f"Whether all blocks can still be reached was not judged: {why}.", view)
        return
    groups = rows(snapshot, "native_unreachable")
    lost = [r for r in groups if r["known"] is None]
    lost.sort(key=lambda r: r["hangs"] == r["count"])  # what hangs on others comes last
    known = [r for r in groups if r["known"] is not None]
    number = totals["unreachable_blocks"]
    if not number:
        yield [("unreachable: none", "count"), ("; something leads to every block in use", "")]
    else:
        text = f"unreachable: {count(number, 'block')}, {size(totals['unreachable_bytes'])}"
        yield [(text, "count"), (f": no pointer leads to {'it' if number == 1 else 'them'} any more", "")]
        if totals["damaged"]:
            text = "The heap is damaged: they may be in reach of what could not be followed, and not be lost."
            yield from _paragraph(text, view)
    yield from _groups(lost, limit, view, _begins_with, nativesites.allocated(snapshot) or {})
    if known:
        blocks, amount = sum(r["count"] for r in known), sum(r["bytes"] for r in known)
        yield [(f"known, and no leak: {count(blocks, 'block')}, {size(amount)}", "")]
        yield from _groups(known, limit, view, lambda row: f"{_begins_with(row)} ({row['known']})")


def _groups(
    groups: Sequence[_Row],
    limit: int,
    view: View,
    say: Callable[[_Row], str],
    sites: Mapping[int, Sequence[AllocationSite]] | None = None,
) -> Iterator[Line]:
    shown = groups if view.verbose else groups[:limit]
    numbers = [(f"{r['count']:,}", size(r["bytes"])) for r in shown]
    widths = [max((cells(n[i]) for n in numbers), default=0) for i in range(2)]
    for row, (number, amount) in zip(shown, numbers, strict=True):
        text = f"  {number:>{widths[0]}}  {amount:>{widths[1]}}  "
        yield [(text, "count"), (cut(clean(say(row)), max(view.width - cells(text), 30)), "")]
        if view.verbose and row["example"] is not None:
            yield [(" " * cells(text) + f"for one, the block at {row['example']:#x}", "label")]
        for said in nativesites.lines((sites or {}).get(row["example"], ()), row["count"], view):
            room = max(view.width - cells(text), 30)
            for part in [said] if said.startswith(" ") else wrap(said, room):
                yield [(" " * cells(text) + part, "label")]
    rest = groups[len(shown) :]
    if rest:
        yield [
            (
                f"  … {count(len(rest), 'more group')}: {count(sum(r['count'] for r in rest), 'block')} (-v)",
                "",
            )
        ]


def _begins_with(row: _Row) -> str:
    """What a group is: its size, and what the first word of its blocks leads to."""
    text = f"{row['size']:,} bytes each"
    library = (row["library"] or "").rpartition("/")[2]
    if row["type"]:
        text += f", {row['type']} of {library}" if library else f", {row['type']}"
    elif row["symbol"]:
        text += f", first word: {row['symbol']} in {library}"
    elif library:
        text += f", first word: into {library}"
    elif row["holds"]:
        text += f", with data of {row['holds'].rpartition('/')[2]}"
    if row["hangs"] == row["count"]:
        text += ", hanging on others"
    elif row["hanging"]:
        text += f", with {row['hanging']:,} more"
    return text
