"""The memory of a process by owner: what is resident, shared and swapped, adding up to what the kernel says.

Every mapping has one owner, by its name or its neighbours; mappings without a file may be cut up among those
that a runtime has recognised in them (``diagtool.capture.claims``), page by page. A live process is asked
after its stop (/proc/PID/smaps, pagemap), while it runs on. A core holds bytes, not pages: what is counted
there is every page that is in it and not empty.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.claims import claims
from diagtool.capture.memory import PAGE, U64
from diagtool.capture.model import Capture, Mapping
from diagtool.capture.peek import overlap, pages_with_content, present_pages
from diagtool.capture.plan import is_anonymous, without
from diagtool.capture.procfs import memory_of, parse_status, try_read
from diagtool.capture.smaps import FIELDS, Smaps, read_smaps
from diagtool.inventory.memoryowners import BREAK, NOTES, UNKNOWN, Owners, part_of_library
from diagtool.snapshot.model import Snapshot

__all__ = ["add"]

_PAGE_MASK = np.uint64(-PAGE & (1 << 64) - 1)
_HARDLY_USED = 2 << 20  # bytes of glibc's arenas
_LARGE_PIECE = 256 << 10  # bytes
_MOST_ROWS = 500  # libraries, files
_MOST_UNKNOWN = 20
_ESCAPED = re.compile(rb"\\([0-7]{3})")  # of blanks and backslashes in names of folders
_COLUMNS = ("rss", "pss", "swap", "huge")

Row = dict[str, Any]


@dataclass(slots=True)
class _Parts:
    """Pieces of mappings with one owner each: parallel arrays. Bytes; ``pss`` and ``swap`` 0 for cores."""

    mapping: NDArray[np.intp]
    start: U64
    end: U64
    owner: NDArray[np.intp]  # number in ``names``
    names: list[str]
    columns: dict[str, NDArray[np.int64]]


def add(capture: Capture, snapshot: Snapshot) -> None:
    """The tables ``memory`` (one row, the sums), ``memory_owners``, ``memory_libraries``, ``memory_files``,
    ``memory_stacks`` and ``memory_unknown``, largest first.

    ``memory``: ``rss``, ``pss``, ``swap``, ``huge`` (on transparent huge pages), ``hugetlb``, ``size`` of all
    mappings, ``mappings``, ``kernel_rss`` (VmRSS at the same time), ``source`` ("smaps" or "core"). ``pss``,
    ``swap``, ``huge``, ``hugetlb`` and ``kernel_rss`` are None where a core does not tell them.
    ``memory_owners``: ``owner``, the same numbers, ``used`` and ``free`` where an allocator tells them,
    ``how`` (of these), ``note``. ``memory_libraries``: ``path``, ``text``, ``rodata``, ``relro``, ``data``
    (resident bytes), ``rss``, ``pss``. ``memory_files``: ``path``, ``owner``, ``rss``, ``pss``, ``size``,
    ``mappings``. ``memory_stacks``: ``tid``, ``rss`` (touched), ``size`` (reserved). ``memory_unknown``:
    ``start``, ``size``, ``rss``, ``permissions``, ``name``.
    """
    smaps = _smaps(capture)
    tables = snapshot.tables
    stacks = [r for r in tables.get("thread_stacks", ()) if isinstance(r, dict)]
    sizes = frozenset(r["end"] - r["start"] for r in stacks)
    owners = Owners(capture.modules, sizes, _tmpfs(capture))
    order = sorted(range(len(smaps)), key=lambda i: smaps.mappings[i].start)
    mappings = [smaps.mappings[i] for i in order]
    fields = {name: column[order] for name, column in smaps.fields.items()}
    live = capture.kind == "live"
    present = present_pages(capture) if live else pages_with_content(capture)
    parts = _cut(mappings, owners.of(mappings), claims(capture))
    _give_to_allocator(parts, tables)
    _share_out(parts, mappings, fields if live else None, present)
    tables["memory"] = [_totals(capture, mappings, fields, parts)]
    tables["memory_owners"] = _owner_rows(parts, tables, live)
    tables["memory_libraries"] = _libraries(parts, mappings, owners)
    tables["memory_files"] = _files(parts, mappings)
    tables["memory_stacks"] = _stacks(stacks, present)
    tables["memory_unknown"] = _unknown(parts, mappings)


def _smaps(capture: Capture) -> Smaps:
    if capture.kind == "live":
        return read_smaps(capture.process.pid)
    none = {name: np.zeros(len(capture.mappings), np.int64) for name in FIELDS}
    return Smaps(list(capture.mappings), none)


# Where file systems are mounted whose files are memory (proc_pid_mountinfo(5)); a core does not tell.
def _tmpfs(capture: Capture) -> list[str]:
    if capture.kind != "live":
        return []
    out = []
    for line in (try_read(f"/proc/{capture.process.pid}/mountinfo") or b"").split(b"\n"):
        before, dash, after = line.partition(b" - ")
        fields = before.split(b" ")
        if dash and len(fields) > 4 and after.split(b" ")[0] in (b"tmpfs", b"ramfs"):
            out.append(os.fsdecode(_ESCAPED.sub(lambda m: bytes([int(m[1], 8) & 255]), fields[4])))
    return out


# -- who has which bytes --------------------------------------------------------------------------------


# Mappings, cut where somebody's claim to memory without a file begins or ends.
def _cut(mappings: Sequence[Mapping], owner: Sequence[str], said: Sequence[tuple[str, U64]]) -> _Parts:
    start: U64 = np.array([m.start for m in mappings], np.uint64)
    end: U64 = np.array([m.end for m in mappings], np.uint64)
    names = list(dict.fromkeys([*owner, *(name for name, _ in said)]))
    number = {name: i for i, name in enumerate(names)}
    own = np.array([number[name] for name in owner], np.intp)
    open_to = np.array(
        [is_anonymous(m) and not m.path.startswith(("/", "[stack", "[v")) for m in mappings], bool
    )
    taken, of = _claimed(said, number)
    cuts = np.unique(np.concatenate([start, end, taken.reshape(-1)]))
    low, high = cuts[:-1], cuts[1:]
    at = np.searchsorted(start, low, side="right") - 1
    inside = (at >= 0) & (low < end[np.maximum(at, 0)]) if len(start) else np.zeros(len(low), bool)
    low, high, at = low[inside], high[inside], at[inside]
    whose = own[at]
    if len(taken):
        claim = np.searchsorted(taken[:, 0], low, side="right") - 1
        claimed = (claim >= 0) & (low < taken[np.maximum(claim, 0), 1]) & open_to[at]
        whose = np.where(claimed, of[np.maximum(claim, 0)], whose)
    return _Parts(at, low, high, whose, names, {})


# Where another allocator is loaded and glibc's hardly used, large unknown pieces are most likely its.
def _give_to_allocator(parts: _Parts, tables: dict[str, list[Row]]) -> None:
    names = [r["name"] for r in tables.get("allocators", ()) if isinstance(r, dict)]
    own = sum(r.get("system") or 0 for r in tables.get("malloc", ()))
    if len(names) != 1 or own > _HARDLY_USED:
        return
    parts.names.append(names[0])
    large = parts.end - parts.start >= np.uint64(_LARGE_PIECE)
    from_break = parts.owner == _number(parts, BREAK)
    parts.owner = np.where(
        from_break | (large & (parts.owner == _number(parts, UNKNOWN))), len(parts.names) - 1, parts.owner
    )


# Claims as sorted, disjoint ranges, and the owner of each; of those that overlap, the first one counts.
def _claimed(said: Sequence[tuple[str, U64]], number: dict[str, int]) -> tuple[U64, NDArray[np.intp]]:
    taken = np.zeros((0, 2), np.uint64)
    of = np.zeros(0, np.intp)
    for name, ranges in said:
        whole = np.stack([ranges[:, 0] & _PAGE_MASK, ranges[:, 1] + np.uint64(PAGE - 1) & _PAGE_MASK], axis=1)
        whole = whole[np.argsort(whole[:, 0], kind="stable")]
        whole[1:, 0] = np.maximum(whole[1:, 0], np.maximum.accumulate(whole[:-1, 1])) if len(whole) else 0
        fresh = without(whole[whole[:, 1] > whole[:, 0]], taken)
        taken = np.concatenate([taken, fresh])
        of = np.concatenate([of, np.full(len(fresh), number[name], np.intp)])
        order = np.argsort(taken[:, 0])
        taken, of = taken[order], of[order]
    return taken, of


# What smaps says of a mapping is shared out among its parts by the pages that are in memory; what is swapped
# out by those that are not.
def _share_out(
    parts: _Parts, mappings: Sequence[Mapping], fields: dict[str, NDArray[np.int64]] | None, present: U64
) -> None:
    there = overlap(present, parts.start, parts.end).astype(np.int64)
    if fields is None:
        parts.columns = {name: np.zeros(len(there), np.int64) for name in _COLUMNS}
        parts.columns["rss"] = there
        return
    absent = (parts.end - parts.start).astype(np.int64) - there
    for name in _COLUMNS:
        parts.columns[name] = _shares(parts.mapping, absent if name == "swap" else there, fields[name])


def _shares(
    mapping: NDArray[np.intp], weight: NDArray[np.int64], amount: NDArray[np.int64]
) -> NDArray[np.int64]:
    """``amount[m]`` shared out among the parts of mapping m by their weights; the sum stays what it was."""
    if not len(mapping):
        return np.zeros(0, np.int64)
    total = np.bincount(mapping, weights=weight.astype(np.float64), minlength=len(amount))
    number = np.bincount(mapping, minlength=len(amount))
    even = total == 0  # nothing is known of where it is
    share = np.where(even[mapping], 1.0, weight) / np.where(even, np.maximum(number, 1), total)[mapping]
    out = np.floor(share * amount[mapping] / PAGE).astype(np.int64) * PAGE
    out = np.where(number[mapping] == 1, amount[mapping], out)
    # What rounding left over goes to the first part.
    missing = amount - np.bincount(mapping, weights=out.astype(np.float64), minlength=len(amount)).astype(
        np.int64
    )
    first = np.unique(mapping, return_index=True)
    out[first[1]] += missing[first[0]]
    return out


# -- rows -----------------------------------------------------------------------------------------------


def _totals(
    capture: Capture, mappings: Sequence[Mapping], fields: dict[str, NDArray[np.int64]], parts: _Parts
) -> Row:
    live = capture.kind == "live"
    told = memory_of(parse_status(try_read(f"/proc/{capture.process.pid}/status") or b"")) if live else {}
    hugetlb = int((fields["private_hugetlb"] + fields["shared_hugetlb"]).sum())
    sums = {name: int(parts.columns[name].sum()) if live or name == "rss" else None for name in _COLUMNS}
    return {
        **sums,
        "hugetlb": hugetlb if live else None,
        "size": sum(m.end - m.start for m in mappings),
        "mappings": len(mappings),
        "kernel_rss": told.get("VmRSS"),
        "source": "smaps" if live else "core",
    }


def _owner_rows(parts: _Parts, tables: dict[str, list[Row]], live: bool) -> list[Row]:
    count = len(parts.names)
    sums = {
        name: np.bincount(parts.owner, weights=column.astype(np.float64), minlength=count).astype(np.int64)
        for name, column in parts.columns.items()
    }
    spans = (parts.end - parts.start).astype(np.float64)
    sizes = np.bincount(parts.owner, weights=spans, minlength=count).astype(np.int64)
    pairs = np.unique(np.stack([parts.owner, parts.mapping], axis=1), axis=0)
    mappings = np.bincount(pairs[:, 0], minlength=count)
    inner = _inside(tables)
    rows = []
    for i in np.flatnonzero(sizes).tolist():
        name = parts.names[i]
        known = {c: int(sums[c][i]) if live or c == "rss" else None for c in _COLUMNS}
        rows.append(
            {
                "owner": name,
                **known,
                "size": int(sizes[i]),
                "mappings": int(mappings[i]),
                **inner.get(name, {"used": None, "free": None, "how": None}),
                "note": NOTES.get(name, ""),
            }
        )
    return sorted(rows, key=lambda r: (-r["rss"], -(r["swap"] or 0), -r["size"], r["owner"]))


# What allocators say of their own memory, by owner.
def _inside(tables: dict[str, list[Row]]) -> dict[str, Row]:
    out: dict[str, Row] = {}
    for row in tables.get("malloc", ())[:1]:
        out["glibc heap"] = {name: row.get(name) for name in ("used", "free", "how")}
        out["glibc mapped blocks"] = {"used": row.get("mapped_bytes"), "free": 0, "how": "exact"}
    for row in tables.get("go_heap", ())[:1]:
        out["Go heap"] = {"used": row.get("used"), "free": row.get("free"), "how": "exact"}
    for row in tables.get("python_arenas", ())[:1]:
        out["Python objects"] = {"used": row.get("used"), "free": row.get("free"), "how": "exact"}
    return out


def _libraries(parts: _Parts, mappings: Sequence[Mapping], owners: Owners) -> list[Row]:
    by_path: dict[str, Row] = {}
    rows = np.flatnonzero(parts.owner == _number(parts, "programs and libraries")).tolist()
    for i in rows:
        m = mappings[int(parts.mapping[i])]
        module = owners.module_at(m.start)
        path = m.path or (module.path if module is not None else _before(mappings, int(parts.mapping[i])))
        row = by_path.setdefault(
            path, {"path": path, "text": 0, "rodata": 0, "relro": 0, "data": 0, "rss": 0, "pss": 0}
        )
        resident = int(parts.columns["rss"][i])
        row[part_of_library(m, module)] += resident
        row["rss"] += resident
        row["pss"] += int(parts.columns["pss"][i])
    return sorted(by_path.values(), key=lambda r: (-r["rss"], r["path"]))[:_MOST_ROWS]


def _before(mappings: Sequence[Mapping], i: int) -> str:
    return mappings[i - 1].path if i else ""


def _files(parts: _Parts, mappings: Sequence[Mapping]) -> list[Row]:
    by_path: dict[tuple[str, str], Row] = {}
    skipped = _number(parts, "programs and libraries")
    for i in np.flatnonzero(parts.owner != skipped).tolist():
        m = mappings[int(parts.mapping[i])]
        if not m.path.startswith(("/", "anon_inode:", "socket:")):
            continue
        owner = parts.names[int(parts.owner[i])]
        row = by_path.setdefault(
            (owner, m.path), {"path": m.path, "owner": owner, "rss": 0, "pss": 0, "size": 0, "mappings": 0}
        )
        row["rss"] += int(parts.columns["rss"][i])
        row["pss"] += int(parts.columns["pss"][i])
        row["size"] += m.end - m.start
        row["mappings"] += 1
    return sorted(by_path.values(), key=lambda r: (-r["rss"], -r["size"], r["path"]))[:_MOST_ROWS]


def _stacks(stacks: Sequence[Row], present: U64) -> list[Row]:
    start = np.array([r["start"] for r in stacks], np.uint64)
    end = np.array([r["end"] for r in stacks], np.uint64)
    touched = overlap(present, start, end).tolist() if len(stacks) else []
    rows = [
        {"tid": r["tid"], "rss": int(n), "size": r["end"] - r["start"]}
        for r, n in zip(stacks, touched, strict=True)
    ]
    return sorted(rows, key=lambda r: (-r["rss"], r["tid"]))


def _unknown(parts: _Parts, mappings: Sequence[Mapping]) -> list[Row]:
    rows = np.flatnonzero(parts.owner == _number(parts, UNKNOWN))
    rows = rows[np.argsort(-parts.columns["rss"][rows], kind="stable")][:_MOST_UNKNOWN]
    out = []
    for i in rows.tolist():
        m = mappings[int(parts.mapping[i])]
        out.append(
            {
                "start": int(parts.start[i]),
                "size": int(parts.end[i] - parts.start[i]),
                "rss": int(parts.columns["rss"][i]),
                "permissions": m.permissions,
                "name": m.path,
            }
        )
    return out


def _number(parts: _Parts, name: str) -> int:
    return parts.names.index(name) if name in parts.names else -1
