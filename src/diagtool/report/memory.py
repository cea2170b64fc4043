"""The view of ``diagtool memory``: whose the resident memory is, for a person and as JSON.

   rss     pss  swap  in use    free  owner
969 MB  969 MB     –  972 MB       –  glibc mapped blocks
603 MB  603 MB     –  601 MB  9.3 MB  Python objects
  7 MB    2 MB     –       –       –  programs and libraries

glibc: 1 arena (no more than 16), 575 MB from the kernel, 110 kB of it free
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from diagtool.report.checked import checked_rows
from diagtool.report.terminal import View, about, warnings
from diagtool.report.text import Line, cells, clean, count, cut, size, wrap
from diagtool.snapshot.model import Snapshot

__all__ = ["LIMIT", "document", "has_memory", "lines"]

#: Arenas, libraries, files and stacks shown when nobody asks for another number.
LIMIT = 5

_Row = dict[str, Any]

_SUMS = {
    "rss": "number",
    "pss": "number?",
    "swap": "number?",
    "huge": "number?",
    "size": "number",
    "mappings": "number",
}
_COLUMNS: dict[str, dict[str, str]] = {
    "memory": {**_SUMS, "hugetlb": "number?", "kernel_rss": "number?", "source": "text"},
    "memory_owners": {
        "owner": "text",
        **_SUMS,
        "used": "number?",
        "free": "number?",
        "how": "text?",
        "note": "text",
    },
    "memory_libraries": {
        "path": "text",
        **dict.fromkeys(("text", "rodata", "relro", "data", "rss", "pss"), "number"),
    },
    "memory_files": {
        "path": "text",
        "owner": "text",
        **dict.fromkeys(("rss", "pss", "size", "mappings"), "number"),
    },
    "memory_stacks": {"tid": "number", "rss": "number", "size": "number"},
    "memory_unknown": {
        "start": "address",
        "size": "number",
        "rss": "number",
        "permissions": "text",
        "name": "text",
    },
    "malloc": {
        "arenas": "number",
        "system": "number",
        "used": "number?",
        "free": "number?",
        "fast": "number?",
        "top": "number",
        "holes": "number?",
        "how": "text",
        "mapped_blocks": "number",
        "mapped_bytes": "number",
        "arena_max": "number?",
        "cores": "number?",
        "arena_limit": "number?",
        "trim_threshold": "address?",
        "mmap_threshold": "address?",
    },
    "malloc_arenas": {
        "address": "address",
        "main": "flag",
        "heaps": "number",
        "system": "number",
        "used": "number?",
        "free": "number?",
        "fast": "number?",
        "top": "number",
        "chunks": "number?",
        "how": "text",
    },
    "python_arenas": {
        "allocator": "text",
        "arenas": "number",
        "bytes": "number",
        "used": "number?",
        "free": "number?",
        "free_pools": "number",
        "pools": "number?",
    },
    "allocators": {"name": "text", "library": "text"},
}
_CORE = (
    "A core tells which bytes it holds, not which pages were resident: every page in it that is not empty is "
    "counted as such. Pages of files, shares with other processes and swap are not in a core."
)


def has_memory(snapshot: Snapshot) -> bool:
    """Whether the memory was looked at when the snapshot was taken."""
    return bool(_rows(snapshot, "memory"))


def _rows(snapshot: Snapshot, table: str) -> list[_Row]:
    return checked_rows(snapshot, table, _COLUMNS[table])


def document(snapshot: Snapshot) -> dict[str, Any]:
    """What ``diagtool.memory/1`` has besides its head: sums, owners and details. Sizes in bytes."""
    totals = _rows(snapshot, "memory")[0]
    malloc = next(iter(_rows(snapshot, "malloc")), None)
    return {
        **totals,
        "owners": _rows(snapshot, "memory_owners"),
        "malloc": None if malloc is None else {**malloc, "mallinfo2": _mallinfo(malloc)},
        "arenas": [{**r, "address": hex(r["address"])} for r in _rows(snapshot, "malloc_arenas")],
        "python": next(iter(_rows(snapshot, "python_arenas")), None),
        "allocators": _rows(snapshot, "allocators"),
        "stacks": _rows(snapshot, "memory_stacks"),
        "libraries": _rows(snapshot, "memory_libraries"),
        "files": _rows(snapshot, "memory_files"),
        "unknown": [{**r, "start": hex(r["start"])} for r in _rows(snapshot, "memory_unknown")],
    }


# The same under the names that mallinfo2(3) has for it.
def _mallinfo(malloc: _Row) -> dict[str, int | None]:
    return {
        "arena": malloc["system"],
        "hblks": malloc["mapped_blocks"],
        "hblkhd": malloc["mapped_bytes"],
        "fsmblks": malloc["fast"],
        "uordblks": malloc["used"],
        "fordblks": malloc["free"],
        "keepcost": malloc["top"],
    }


def lines(snapshot: Snapshot, limit: int, view: View) -> Iterator[Line]:
    """The whole view: owners, what allocators say, stacks, libraries, files, what is unknown, warnings."""
    totals = _rows(snapshot, "memory")[0]
    yield from _owners(_rows(snapshot, "memory_owners"), view)
    yield []
    if totals["source"] == "core":
        yield from _paragraph(_CORE, view)
        yield []
    yield from _malloc(snapshot, limit, view)
    yield from _python(snapshot, view)
    owned = {r["owner"] for r in _rows(snapshot, "memory_owners")}
    for row in _rows(snapshot, "allocators"):
        if row["name"] not in owned:
            text = f"{clean(row['name'])} is loaded ({clean(row['library'])}): what it took is not told apart"
            yield from _paragraph(f"{text} from unknown anonymous memory.", view)
            yield []
    yield from _stacks(_rows(snapshot, "memory_stacks"), limit, view)
    yield from _named(snapshot, limit, view)
    yield from _unknown(_rows(snapshot, "memory_unknown"), limit, view)
    yield from warnings(snapshot.warnings, view)
    for part in wrap(_sums(totals), view.width):
        yield [(part, "count")]
    yield [(about(snapshot.target, snapshot.pause_ms).removeprefix(" · "), "")]


def _sums(totals: _Row) -> str:
    text = f"{size(totals['rss'])} resident"
    if totals["kernel_rss"] is not None:
        text += f" (VmRSS: {size(totals['kernel_rss'])})"
    if totals["pss"] is not None:
        text += f", {size(totals['pss'])} with shared pages shared out"
    if totals["swap"]:
        text += f", {size(totals['swap'])} swapped out"
    if totals["huge"]:
        text += f", {size(totals['huge'])} on huge pages"
    if totals["hugetlb"]:
        text += f", {size(totals['hugetlb'])} of hugetlb pages, which no RSS counts"
    return f"{text}, {count(totals['mappings'], 'mapping')}"


def _amount(number: int | None) -> str:
    return size(number) if number else "–"


def _owners(owners: Sequence[_Row], view: View) -> Iterator[Line]:
    shown = [r for r in owners if r["rss"] or r["swap"] or view.verbose]
    columns = ["rss", "pss", "swap", "huge", "used", "free"]
    heads = {"rss": "resident", "huge": "huge pages", "used": "in use"}
    kept = [c for c in columns if c == "rss" or any(r[c] for r in shown)]
    body = [[_figure(r, c) for c in kept] for r in shown]
    yield from _table([heads.get(c, c) for c in kept], body, "owner", [_owner(r) for r in shown], view)


def _figure(row: _Row, column: str) -> str:
    text = _amount(row[column])
    about_it = column in ("used", "free") and row["how"] == "estimated" and row[column]
    return f"~{text}" if about_it else text


def _owner(row: _Row) -> str:
    name = clean(row["owner"])
    return f"{name}: {clean(row['note'])}" if row["note"] else name


def _table(
    heads: Sequence[str],
    body: Sequence[Sequence[str]],
    last: str,
    names: Sequence[str],
    view: View,
    paths: bool = False,
) -> Iterator[Line]:
    widths = [max(cells(row[i]) for row in (heads, *body)) for i in range(len(heads))]
    for number, row in enumerate((heads, *body)):
        figures = "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        name = names[number - 1] if number else last
        room = max(view.width - cells(figures) - 2, 24)
        if number and not paths:
            parts = [cut(part, room) for part in wrap(name, room)]
        else:
            parts = [name if cells(name) <= room else "…" + name[-(room - 1) :]]
        yield [(figures, "count" if number else "label"), ("  " + parts[0], "" if number else "label")]
        for part in parts[1:]:
            yield [(" " * (cells(figures) + 2) + part, "")]


def _paragraph(text: str, view: View) -> Iterator[Line]:
    for part in wrap(text, view.width):
        yield [(part, "")]


def _malloc(snapshot: Snapshot, limit: int, view: View) -> Iterator[Line]:
    for malloc in _rows(snapshot, "malloc")[:1]:
        yield from _paragraph(_malloc_text(malloc), view)
        arenas = sorted(_rows(snapshot, "malloc_arenas"), key=lambda r: -r["system"])
        if len(arenas) > 1 or view.verbose:
            shown = arenas if view.verbose else arenas[:limit]
            body = [[size(r["system"]), *(_amount(r[c]) for c in ("used", "free", "top"))] for r in shown]
            heads = ["from the kernel", "in use", "free", "at its end"]
            names = ["main arena" if r["main"] else f"arena at {r['address']:#x}" for r in shown]
            yield from _table(heads, body, "arena", names, view)
            if len(arenas) > len(shown):
                rest = arenas[len(shown) :]
                more = f"{size(sum(r['system'] for r in rest))} in {count(len(rest), 'more arena')} (-v)"
                yield [(f"… {more}", "")]
        yield []


def _malloc_text(malloc: _Row) -> str:
    text = f"glibc's malloc: {count(malloc['arenas'], 'arena')}"
    if malloc["arena_max"]:
        text += f" of at most {malloc['arena_max']:,} (MALLOC_ARENA_MAX)"
    elif malloc["arena_limit"] and malloc["cores"]:
        text += f" of at most {malloc['arena_limit']:,} (8 for each of {count(malloc['cores'], 'processor')})"
    text += f", {size(malloc['system'])} from the kernel"
    if malloc["free"] is None:
        text += (
            "; how much of it is free could not be found out: `diagtool heap TARGET --native` walks all of it"
        )
    else:
        some = "about " if malloc["how"] == "estimated" else ""
        text += f", {some}{size(malloc['free'])} of it free"
        if malloc["holes"]:
            text += f" ({some}{size(malloc['holes'])} among blocks in use)"
    if malloc["mapped_blocks"]:
        blocks = count(malloc["mapped_blocks"], "block")
        text += f"; {blocks} with a mapping of {'its' if malloc['mapped_blocks'] == 1 else 'their'} own"
        text += f", {size(malloc['mapped_bytes'])}"
    return text + "."


def _python(snapshot: Snapshot, view: View) -> Iterator[Line]:
    for row in _rows(snapshot, "python_arenas")[:1]:
        what = "segment" if row["allocator"] == "mimalloc" else "arena"
        text = f"Python's small objects: {count(row['arenas'], what)}, {size(row['bytes'])}"
        if row["used"] is not None and row["free"] is not None:
            share = row["free"] / row["bytes"] if row["bytes"] else 0.0
            text += f", {size(row['used'])} in use, {size(row['free'])} free inside ({share:.0%})"
            if row["free_pools"]:
                text += f", {size(row['free_pools'])} of it in pools without an object"
        yield from _paragraph(text + ".", view)
        yield []


def _stacks(stacks: Sequence[_Row], limit: int, view: View) -> Iterator[Line]:
    if not stacks:
        return
    touched, reserved = sum(r["rss"] for r in stacks), sum(r["size"] for r in stacks)
    text = f"Stacks of {count(len(stacks), 'thread')}: {size(touched)} touched of {size(reserved)} reserved"
    shown = stacks if view.verbose else stacks[:limit]
    if len(stacks) > 1:
        text += "; most by " + ", ".join(f"thread {r['tid']} ({size(r['rss'])})" for r in shown[:limit])
    yield from _paragraph(text + ".", view)
    if view.verbose:
        for row in shown:
            yield [(f"  thread {row['tid']}: {size(row['rss'])} of {size(row['size'])}", "")]
    yield []


def _named(snapshot: Snapshot, limit: int, view: View) -> Iterator[Line]:
    libraries = _rows(snapshot, "memory_libraries")
    shown = libraries if view.verbose else libraries[:limit]
    if shown:
        body = [
            [size(r["rss"]), *(_amount(r[c]) for c in ("text", "data", "relro", "rodata"))] for r in shown
        ]
        names = [clean(r["path"]) or "(unnamed)" for r in shown]
        yield from _table(
            ["resident", "text", "data", "relro", "rodata"], body, "library", names, view, paths=True
        )
        yield from _more(libraries[len(shown) :], "library", "libraries")
        yield []
    files = [r for r in _rows(snapshot, "memory_files") if r["rss"] or view.verbose]
    shown = files if view.verbose else files[:limit]
    if shown:
        body = [[size(r["rss"]), size(r["size"]), f"{r['mappings']:,}"] for r in shown]
        names = [
            clean(r["path"]) + ("" if r["owner"] == "files" else f" ({clean(r['owner'])})") for r in shown
        ]
        yield from _table(["resident", "mapped", "mappings"], body, "file", names, view, paths=True)
        yield from _more(files[len(shown) :], "file", "files")
        yield []


def _more(rest: Sequence[_Row], one: str, many: str) -> Iterator[Line]:
    if rest:
        what = one if len(rest) == 1 else many
        yield [(f"… {size(sum(r['rss'] for r in rest))} in {len(rest):,} more {what} (-v)", "")]


def _unknown(rows: Sequence[_Row], limit: int, view: View) -> Iterator[Line]:
    shown = [r for r in rows if r["rss"]][: None if view.verbose else limit]
    if not shown or not (view.verbose or shown[0]["rss"] >= _WORTH_SAYING):
        return
    body = [[size(r["rss"]), size(r["size"])] for r in shown]
    names = [f"{r['start']:#x} {clean(r['permissions'])} {clean(r['name'])}".rstrip() for r in shown]
    yield from _table(["resident", "mapped"], body, "of nobody known", names, view)
    yield []


_WORTH_SAYING = 1 << 20  # bytes of one mapping
