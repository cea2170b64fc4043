"""What a series of snapshots says of the heap, as rows of a table for templates: ``heap_growth``.

A row a suspicion, its ``signature`` says which: a ``container`` that grows, labels of a metric
(``prometheus-labels``), mapped files (``maps``, ``prometheus-files``), a place of allocation of heap profiles
(``site``), and where no container explains it the
heap that grew: ``objects`` (that the collector tracks), ``blocks`` (and no such objects), ``native`` (and no
Python memory). A single snapshot has rows for containers alone, of the course ``single``.

Nothing is judged here: how sure a row is, is for the templates to say (library/heap_growth.toml).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from diagtool.leaks.facts import Facts
from diagtool.leaks.places import allocated_at
from diagtool.leaks.sitegrowth import site_rows
from diagtool.snapshot.diff import Change, Diff, HolderChange, diff, four_heaps, not_counted
from diagtool.snapshot.model import KIND, STATE, Snapshot
from diagtool.snapshot.trend import Number

TABLE = "heap_growth"

Row = dict[str, Any]

#: Courses of numbers that are larger at the end.
_MORE = ("grows", "grew")
#: What a container must have got more of to be told.
_MORE_ITEMS, _MORE_BYTES = 1000, 1 << 20
#: Of the growth of all objects, what containers must account for to explain it.
_EXPLAINED = 0.5
#: Python's part of the growth of the native heap below which that is not Python's.
_NOT_PYTHON = 0.3
#: What one container must have of all objects' bytes to be told without a series, and of bytes and items.
_DOMINATES, _DOMINATES_BYTES, _DOMINATES_ITEMS = 0.5, 32 << 20, 1000
#: Blocks that the interpreter may keep for reuse: 2,000 tuples of each of 20 sizes, some hundreds of others
#: (pycore_freelist.h of 3.13, PyTuple_MAXFREELIST before). They fill up slowly and count as in use.
_FREE_LISTS = 41_000
#: Seconds. What programs load, compile or cache at first grows steadily for a while.
_BRIEF = 60.0
#: Bytes of an item above which even plain data is big.
_BIG_ITEM = 10_000
#: Containers of these are stacks, which other templates know, or hold nothing.
_STACKS = ("_asyncio.Task", "_asyncio.Future", "asyncio.tasks.Task", "coroutine", "weakref", "KeyedRef")
#: Whose containers are bounded, or told by other templates.
_BOUNDED = ("cachetools.",)
#: What a person typed into IPython or Jupyter, and what came of it: a history, that they want to keep.
_SHELLS, _HISTORY = ("IPython.", "ipykernel."), ("_ih", "_oh", "_dh")
_LRU_CACHE = "functools._lru_cache_wrapper"
_LABELS = ("prometheus_client.", "_metrics")
_DETAIL = re.compile(r" \([^()]*\)|, [\d,]+ items?")
_MOST = 20  # containers told
#: Bytes that a container takes for an item: a pointer; with its hash; with its hash, key, value and index.
_SLOT = {"list": 8, "deque": 8, "tuple": 8, "set": 16, "dict": 32, "defaultdict": 32, "OrderedDict": 32}


def derive(facts: Sequence[Facts]) -> None:
    """Give each of ``facts`` (of snapshots, oldest first) its rows of the table."""
    rows = list(_rows([f.snapshot for f in facts])) if facts else []
    for at, one in enumerate(facts):
        one.derived[TABLE] = [{**row, "count": counts[at]} for row, counts in rows]


def missing(snapshots: Sequence[Snapshot]) -> list[str]:
    """A warning where the heap was looked at in some snapshots of a series, and not in others."""
    some = any("heap_types" in s.tables for s in snapshots)
    return list(not_counted(snapshots)) if some and len(snapshots) > 1 else []


def _rows(snapshots: Sequence[Snapshot]) -> Iterator[tuple[Row, list[int]]]:
    if len(snapshots) == 1:
        yield from _dominating(snapshots[0])
        yield from _many_maps(snapshots[0])
        return
    found = diff(snapshots, stacks=False)
    yield from _maps(found)
    holders = list(_holders(found))
    yield from holders[:_MOST]
    if not _explained(found):
        yield from _python(found)
    yield from _native(found)
    for facts, change, counts in site_rows(snapshots):
        made, _ = _row("site", **facts, change=change, text=_pace(change, "bytes"))
        yield made, counts


def _row(signature: str, key: str, change: Change, **facts: Any) -> tuple[Row, list[int]]:
    known = [int(v) for v in change.values if v is not None]
    counts = [known[0] if v is None else int(v) for v in change.values]
    return {
        "signature": signature,
        "key": key,
        "course": change.course,
        "more": int(change.delta),
        "per_hour": change.per_hour,
        **facts,
    }, counts


# --- containers --------------------------------------------------------------------------------------------


def _holders(found: Diff) -> Iterator[tuple[Row, list[int]]]:
    for holder in found.holders:
        row = holder.row
        enough = holder.items.delta >= _MORE_ITEMS or holder.bytes.delta >= _MORE_BYTES
        known = _is_known(row) or _keys_lost(row, found.snapshots[-1])
        if holder.items.course in _MORE and enough and not known:
            labels = str(row.get("of")).startswith(_LABELS[0]) and row.get("name") == _LABELS[1]
            yield _row(
                "prometheus-labels" if labels else "container",
                _place(row),
                holder.items,
                **_container(row, found.snapshots[-1]),
                kept=holder.kept,
                text=_pace(holder.items, "items", holder.bytes),
            )


def _container(row: Row, snapshot: Snapshot | None = None) -> Row:
    types = [t for t in row.get("item_types") or () if isinstance(t, str)]
    place = allocated_at(snapshot, types) if snapshot is not None else None
    made = f", allocated most of all at {place}" if place is not None else ""
    return {
        "container": row.get("type"),
        "bytes": row.get("bytes"),
        "held_by": [row["held_by"]] if isinstance(row.get("held_by"), str) else [],
        "root": row.get("root"),
        "own_module": row.get("own_module") is True,
        "holder": row.get("held_by") or f"a {row.get('type')} of nobody known",
        "item_types": (", ".join(types[:3]) or "objects") + made,
        "limit": row.get("limit"),
    }


def _place(row: Row) -> str:
    """Who keeps a container, the same in another snapshot: ``module app → cache → _images``."""
    way = row.get("held_by")
    return _DETAIL.sub("", way) if isinstance(way, str) else f"{row.get('type')} at {row.get('address')}"


def _is_known(row: Row) -> bool:
    types = row.get("item_types")
    first = types[0] if isinstance(types, list) and types and isinstance(types[0], str) else ""
    if first.startswith(_STACKS) or first.endswith((".Task", ".Future")):
        return True
    if row.get("name") in _HISTORY and str(row.get("held_by")).startswith("module __main__ "):
        return True
    bounded = (*_BOUNDED, *_SHELLS)
    return str(row.get("of")).startswith(bounded) or str(row.get("type")).startswith(bounded)


def _keys_lost(row: Row, snapshot: Snapshot) -> bool:
    """Whether it is an lru_cache that template D01 is about, by what its keys are."""
    if row.get("of") != _LRU_CACHE:
        return False
    caches = (c for c in snapshot.tables.get("caches", ()) if isinstance(c, dict) and _whole(c.get("lost")))
    names = (str(c.get("function")).rpartition(".")[2] for c in caches)
    return any(f"{name} ({_LRU_CACHE})" in str(row.get("held_by")) for name in names)


def _explained(found: Diff) -> bool:
    """Whether containers that got more items account for what all objects grew by, leaks or not."""
    whole = next((h.change.delta for h in found.heaps if h.key == "object_bytes"), 0.0)
    return sum(h.bytes.delta for h in found.holders if _accounts(h)) >= max(_EXPLAINED * whole, 1)


def _accounts(holder: HolderChange) -> bool:
    return holder.items.delta > 0


def _dominating(snapshot: Snapshot) -> Iterator[tuple[Row, list[int]]]:
    """Containers of the program that have most of the heap, by what is in them no table of plain data."""
    whole = four_heaps(snapshot)["object_bytes"] or 0
    for row in snapshot.tables.get("heap_containers", ())[:100]:
        size, items = (_whole(row.get(c)) for c in ("bytes", "items")) if isinstance(row, dict) else (0, 0)
        if not size or not items or _is_known(row):
            continue
        change = Change((items,), "unknown")
        labels = str(row.get("of")).startswith(_LABELS[0]) and row.get("name") == _LABELS[1]
        if labels:
            yield _single("prometheus-labels", row, change, size, whole)
        elif (
            row.get("root") == "module"
            and row.get("own_module") is True
            and row.get("limit") is None
            and size >= max(_DOMINATES * whole, _DOMINATES_BYTES)
            and items >= _DOMINATES_ITEMS
            and (size / items >= _BIG_ITEM or any("." in t for t in row.get("item_types") or ()))
        ):
            yield _single("container", row, change, size, whole)


def _single(signature: str, row: Row, change: Change, size: int, whole: Number) -> tuple[Row, list[int]]:
    share = f"{100 * min(size / whole, 1):.0f} %" if whole else "much"
    facts = {**_container(row), "kept": None, "text": f"it has {share} of the bytes of all Python objects"}
    made, counts = _row(signature, _place(row), change, **facts)
    return {**made, "course": "single"}, counts


# --- heaps -------------------------------------------------------------------------------------------------


def _python(found: Diff) -> Iterator[tuple[Row, list[int]]]:
    heaps = {h.key: h.change for h in found.heaps}
    collected, blocks = heaps.get("collected"), heaps.get("blocks")
    if collected is None:
        return
    types = [t for t in found.types if t.count.delta > 0]
    site = next((s for s in found.sites if s.bytes.delta > 0), None)
    made = "" if site is None else f", allocated most of all at {site.file}:{site.line}"
    leading = next((t for t in types if "." in t.type), None)
    facts = {
        "collects": _collects(found),
        "in_flight": _in_flight(found),
        "brief": found.seconds[-1] < _BRIEF,  # not where times are not known: those are NaN
        "types": ", ".join(f"{t.type} (+{t.count.delta:,.0f})" for t in types[:4]) + made,
        "leading": None if leading is None else leading.type,
        "bytes": None,
    }
    if collected.course in _MORE:
        if not _told(found, "garbage", "count", collected):
            key = "objects" if leading is None else leading.type
            yield _row("objects", key, collected, **facts, text=_pace(collected, "objects"))
    elif (
        blocks is not None
        and blocks.course in _MORE
        and blocks.delta >= _FREE_LISTS
        and collected.course in ("flat", "fell")
        and _slots(found) < _EXPLAINED * blocks.delta
        and not _told(found, "heap_lost", "unreferenced", blocks)
    ):
        yield _row("blocks", "Python's allocator", blocks, **facts, text=_pace(blocks, "blocks"))


def _slots(found: Diff) -> float:
    """About how many items the containers got more of, by the memory that they take themselves.

    What Python's containers hold is not lost: they are told one by one, where one of them grows without end.
    Many small ones, as a history of measurements in each of a hundred deques, are told by nobody.
    """
    grown = ((t.bytes.delta, _SLOT.get(t.type.rpartition(".")[2])) for t in found.types)
    return sum(bytes_ / slot for bytes_, slot in grown if slot is not None and bytes_ > 0)


def _told(found: Diff, table: str, column: str, change: Change) -> bool:
    """Whether what is garbage or lost, which templates of its own tell, accounts for the growth."""
    sums = [
        sum(_whole(row.get(column)) for row in s.tables.get(table, ()) if isinstance(row, dict))
        for s in found.snapshots
    ]
    return min(sums) > 0 and sums[-1] - sums[0] >= _EXPLAINED * change.delta


def _collects(found: Diff) -> bool | None:
    """False where the collector was off in all snapshots, True where it was on in all."""
    told = {_heaps_row(s).get("collects") for s in found.snapshots}
    return told.pop() if len(told) == 1 and told <= {True, False} else None


def _heaps_row(snapshot: Snapshot) -> Row:
    rows = snapshot.tables.get("heaps") or [{}]
    return rows[0] if isinstance(rows[0], dict) else {}


def _in_flight(found: Diff) -> bool:
    """Whether there are more tasks or threads at the end: then their objects may be what is more."""
    first, last = (_flows(s) for s in (found.snapshots[0], found.snapshots[-1]))
    return last - first >= max(3, 0.1 * first)


def _flows(snapshot: Snapshot) -> int:
    s = snapshot.stacks
    return int((((s.kind == KIND["task"]) & (s.state != STATE["done"])) | (s.kind == KIND["thread"])).sum())


def _native(found: Diff) -> Iterator[tuple[Row, list[int]]]:
    heaps = {h.key: h.change for h in found.heaps}
    native, python = heaps.get("native"), heaps.get("object_bytes")
    if native is None or python is None or native.course not in _MORE:
        return
    lost = _lost(found.snapshots[-1]) - _lost(found.snapshots[0])
    if python.delta < _NOT_PYTHON * native.delta and lost < _EXPLAINED * native.delta:
        facts = {"in_flight": _in_flight(found), "bytes": int(native.values[-1] or 0)}
        made, _ = _row("native", "native heap", native, **facts, text=_pace(native, "bytes"))
        yield made, [_blocks_in_use(s) for s in found.snapshots]


def _blocks_in_use(snapshot: Snapshot) -> int:
    arenas = sum(_whole(r.get("used_blocks")) for r in snapshot.tables.get("native_arenas", ()))
    return arenas + sum(_whole(r.get("mmapped_blocks")) for r in snapshot.tables.get("native_heap", ()))


def _lost(snapshot: Snapshot) -> int:
    """Bytes of native blocks that nobody can reach, which have a template of their own."""
    rows = snapshot.tables.get("native_lost", ())
    return sum(_whole(row.get("bytes")) for row in rows if isinstance(row, dict))


# --- mapped files ------------------------------------------------------------------------------------------


def _maps(found: Diff) -> Iterator[tuple[Row, list[int]]]:
    for one in found.maps:
        if one.count.course in _MORE:
            facts = {"pattern": one.pattern, "text": _pace(one.count, "mappings", one.bytes)}
            size = int(one.bytes.values[-1] or 0)
            signature = "prometheus-files" if is_prometheus(one.pattern) else "maps"
            yield _row(signature, one.pattern, one.count, **facts, bytes=size)


def _many_maps(snapshot: Snapshot) -> Iterator[tuple[Row, list[int]]]:
    for row in snapshot.tables.get("mapped_files", ())[:1000]:
        pattern, count = (
            (row.get("pattern"), _whole(row.get("count"))) if isinstance(row, dict) else (None, 0)
        )
        if isinstance(pattern, str) and count:
            signature = "prometheus-files" if is_prometheus(pattern) else "maps"
            facts = {
                "pattern": pattern,
                "text": f"{_whole(row.get('files')):,} files",
                "bytes": row.get("bytes"),
            }
            made, counts = _row(signature, pattern, Change((count,), "unknown"), **facts)
            yield {**made, "course": "single"}, counts


def is_prometheus(pattern: str) -> bool:
    """Whether mapped files are those of prometheus_client in several processes (its values.py)."""
    name = pattern.rpartition("/")[2]
    return name.endswith("_#.db") and name.startswith(("counter_", "gauge_", "histogram_", "summary_"))


# --- words -------------------------------------------------------------------------------------------------


def _pace(change: Change, what: str, size: Change | None = None) -> str:
    """``about 6,600 items and 12 MB an hour``."""
    if change.per_hour is None:
        return f"{change.delta:,.0f} {what} more"
    text = f"{_short(change.per_hour)} {what}"
    if size is not None and size.per_hour is not None and size.per_hour > 0:
        text += f" and {_short(size.per_hour)} bytes"
    return f"about {text} more an hour"


def _short(value: float) -> str:
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= limit:
            return f"{value / (limit if unit != ' k' else 1e3):,.1f}{unit}"
    return f"{value:,.0f}"


def _whole(value: object) -> int:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
    return value if good else 0  # type: ignore[return-value]


__all__ = ("TABLE", "derive", "is_prometheus", "missing")
