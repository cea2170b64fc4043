"""What takes the memory, as areas: objects by module and type, and resident memory by owner."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from diagtool.report.checked import checked_rows
from diagtool.report.heap import counts
from diagtool.report.text import clean, count, size
from diagtool.snapshot.model import Snapshot

__all__ = ["containers", "heap", "kept", "memory"]

Row = dict[str, Any]

_OWNERS = {"owner": "text", "rss": "number", "used": "number?", "free": "number?", "note": "text"}
_LIBRARIES = {"path": "text", "rss": "number"}
_KEPT = {"what": "text", "name": "text", "bytes": "number", "objects": "number"}
_CONTAINERS = {"type": "text", "items": "number", "bytes": "number", "held_by": "text?", "root": "text"}
#: Where the way to a container begins, in words.
_ROOTS = {
    "module": "globals of modules",
    "local": "locals of frames",
    "task": "tasks",
    "native": "C and threads",
    "none": "unknown",
}
#: The owner whose parts are the mapped libraries.
_PROGRAMS = "programs and libraries"


def heap(snapshot: Snapshot, most: int) -> Row | None:
    """Objects by module and type; None where they were not counted."""
    rows = counts(snapshot)
    if not sum(r.bytes for r in rows):
        return None
    shown, rest = rows[:most], rows[most:]
    tree = _Tree("all objects")
    for row in shown:
        module, _, name = row.type.rpartition(".")
        text = f"{clean(row.type)}: {count(row.count, 'object')}, {size(row.bytes)}"
        tree.add(module or "builtins", name, row.bytes, text)
    if rest:
        amount = sum(r.bytes for r in rest)
        text = f"{count(len(rest), 'more type')}: {size(amount)}"
        tree.add("others", f"{len(rest):,} types", amount, text)
    return {"nodes": tree.nodes(), "left_out": len(rest)}


def kept(snapshot: Snapshot, most: int) -> Row | None:
    """What would be free without a type (``heap --retained``); None where that was not found out."""
    rows = [r for r in checked_rows(snapshot, "heap_retained", _KEPT) if r["what"] == "type" and r["bytes"]]
    if not rows:
        return None
    rows.sort(key=lambda r: -r["bytes"])
    tree = _Tree("kept by types")
    for row in rows[:most]:
        module, _, name = row["name"].rpartition(".")
        text = f"{clean(row['name'])} keeps {count(row['objects'], 'object')}, {size(row['bytes'])}"
        tree.add(module or "builtins", name, row["bytes"], text)
    return {"nodes": tree.nodes(), "left_out": max(len(rows) - most, 0)}


def containers(snapshot: Snapshot, most: int) -> Row | None:
    """The largest containers with what their items keep, by where they are held; None: not looked for."""
    rows = [r for r in checked_rows(snapshot, "heap_containers", _CONTAINERS) if r["bytes"]]
    if not rows:
        return None
    rows.sort(key=lambda r: -r["bytes"])
    tree = _Tree("the largest containers")
    for row in rows[:most]:
        held = clean(row["held_by"] or row["type"])
        text = f"{held}: {count(row['items'], 'item')}, {size(row['bytes'])}"
        tree.add(_ROOTS.get(row["root"], "unknown"), held, row["bytes"], text)
    return {"nodes": tree.nodes(), "left_out": max(len(rows) - most, 0)}


def memory(snapshot: Snapshot, most: int) -> Row | None:
    """Resident memory by owner; an allocator's by what is in use and what is free."""
    owners = [r for r in checked_rows(snapshot, "memory_owners", _OWNERS) if r["rss"]]
    if not owners:
        return None
    owners.sort(key=lambda r: -r["rss"])
    tree = _Tree("resident memory")
    for row in owners[:most]:
        for name, amount in _parts(row, snapshot, most):
            text = f"{clean(row['owner'])}{f', {name}' if name else ''}: {size(amount)}"
            if row["note"]:
                text += f" ({clean(row['note'])})"
            tree.add(row["owner"], name or row["owner"], amount, text)
    return {"nodes": tree.nodes(), "left_out": max(len(owners) - most, 0)}


def _parts(row: Row, snapshot: Snapshot, most: int) -> list[tuple[str, int]]:
    """The parts of an owner's resident bytes; what is not in a part has no name."""
    parts: list[tuple[str, int]] = []
    if row["owner"] == _PROGRAMS:
        mapped = sorted(checked_rows(snapshot, "memory_libraries", _LIBRARIES), key=lambda r: -r["rss"])
        parts = [(clean(r["path"].rpartition("/")[2]), r["rss"]) for r in mapped[:most] if r["rss"]]
    elif row["used"] is not None and row["free"]:
        # An allocator counts memory, resident or not: its free part is what is not in use.
        used = min(row["used"], row["rss"])
        parts = [("in use", used), ("free", row["rss"] - used)]
    rest = row["rss"] - sum(amount for _, amount in parts)
    return [(name, amount) for name, amount in (*parts, ("others" if parts else "", rest)) if amount > 0]


class _Tree:
    """Two levels below a root, as rows that name their parents."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._groups: defaultdict[str, list[Row]] = defaultdict(list)

    def add(self, group: str, name: str, value: int, text: str) -> None:
        self._groups[group].append({"name": clean(name, 80), "value": value, "text": text})

    def nodes(self) -> list[Row]:
        """The root first; groups by size, numbered so that neighbours differ."""
        groups = sorted(self._groups.items(), key=lambda g: -sum(r["value"] for r in g[1]))
        out: list[Row] = [{"id": 0, "parent": None, "name": self._root}]
        for number, (name, rows) in enumerate(groups):
            total = sum(r["value"] for r in rows)
            group = len(out)
            head = {"id": group, "parent": 0, "name": clean(name, 80), "group": number}
            out.append({**head, "text": f"{clean(name, 80)}: {size(total)}", "total": total})
            out += [{"id": group + 1 + i, "parent": group, "group": number, **r} for i, r in enumerate(rows)]
        return out
