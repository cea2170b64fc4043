"""The JSON document of ``diagtool diff``: ``diagtool.diff/1``. Its schema is ``schema/diff-1.json``."""

from __future__ import annotations

import dataclasses
from typing import Any

from diagtool._version import __version__
from diagtool.report import json
from diagtool.snapshot.diff import Change, Diff, HolderChange


def document(diff: Diff) -> dict[str, Any]:
    """Everything that changed. Values are oldest first, as are ``snapshots``; null where not known."""
    return {
        "schema": "diagtool.diff/1",
        "diagtool": __version__,
        "target": json._target(diff.snapshots[-1].target),
        "same_process": diff.same,
        "snapshots": [
            {
                "kind": s.target.kind,
                "pid": s.target.pid,
                "captured_at": json._number(s.target.captured_at),
                "seconds": json._number(seconds),
                "units": diff.units[i] if diff.units else None,
                "heap": "heap_types" in s.tables,
            }
            for i, (s, seconds) in enumerate(zip(diff.snapshots, diff.seconds, strict=True))
        ],
        "heaps": [
            {"heap": h.key, "title": h.title, "unit": "bytes" if h.bytes else "objects", **_change(h.change)}
            for h in diff.heaps
        ],
        "types": [{"type": t.type, "count": _change(t.count), "bytes": _change(t.bytes)} for t in diff.types],
        "holders": [_holder(h) for h in diff.holders],
        "stacks": [
            {
                "kind": s.kind,
                "state": s.state,
                "wait": s.wait,
                "frames": json._frames(s.frames),
                "count": _change(s.count),
            }
            for s in diff.stacks
        ],
        "sites": [
            {
                "file": s.file,
                "line": s.line,
                "function": s.function,
                "count": _change(s.count),
                "bytes": _change(s.bytes),
            }
            for s in diff.sites
        ],
        "maps": [
            {"pattern": m.pattern, "count": _change(m.count), "bytes": _change(m.bytes)} for m in diff.maps
        ],
        "waits": [
            {
                "kind": w.kind,
                "wait": w.wait,
                "file": w.file,
                "line": w.line,
                "function": w.function,
                "count": _change(w.count),
                "seconds": _change(w.seconds),
            }
            for w in diff.waits
        ],
        "warnings": list(diff.warnings),
    }


def _change(change: Change) -> dict[str, Any]:
    fields = dataclasses.asdict(change)
    fields["values"] = list(change.values)
    return {**fields, "delta": change.delta}


def _holder(holder: HolderChange) -> dict[str, Any]:
    row, address = holder.row, holder.row.get("address")
    types = row.get("item_types")
    return {
        "held_by": json._plain(row.get("held_by")),
        "type": row["type"],
        "name": json._plain(row.get("name")),
        "address": hex(address) if isinstance(address, int) else None,
        "item_types": [t for t in types if isinstance(t, str)] if isinstance(types, list) else [],
        "oldest_kept": holder.kept,
        "items": _change(holder.items),
        "bytes": _change(holder.bytes),
    }
