"""The tables of ``diagtool ffi`` as they are stored, with nothing trusted, and as JSON has them."""

from __future__ import annotations

from typing import Any

from diagtool.report.checked import checked_rows
from diagtool.snapshot.model import Snapshot

__all__ = ["Row", "against", "document", "is_told", "rows"]

Row = dict[str, Any]

_TABLES: dict[str, dict[str, str]] = {
    "libraries": {
        "path": "text",
        "name": "text",
        "soname": "text?",
        "build_id": "text?",
        "version": "text?",
        "version_from": "text?",
        "address": "address",
        "bytes": "number",
        "role": "text",
        "modules": "texts",
        "needed_by": "texts",
        "loaded_by": "text?",
        "copies": "texts",
        "on_disk": "text?",
        "disk_build_id": "text?",
        "writable_code": "number",
        "executable_stack": "flag?",
        "executable_stacks": "number",
        "relocates_text": "flag?",
        "relro": "text?",
        "threads": "number",
    },
    "ffi_libraries": {"by": "text", "name": "text", "library": "text?", "count": "number"},
    "callbacks": {
        "library": "text",
        "function": "text",
        "count": "number",
        "instances": "number",
        "of": "text?",
        "address": "address",
        "file": "text?",
        "line": "number?",
    },
    "ffi_functions": {"library": "text?", "symbol": "text?", "count": "number", "address": "address"},
    "ffi_buffers": {
        "kind": "text",
        "type": "text",
        "count": "number",
        "bytes": "number",
        "largest": "number",
        "address": "address",
    },
    "ffi_memoryviews": {
        "type": "text?",
        "count": "number",
        "exporters": "number",
        "bytes": "number",
        "largest": "number",
        "address": "address",
    },
    "ffi_capsules": {
        "name": "text?",
        "count": "number",
        "library": "text?",
        "destructors": "number",
        "address": "address",
    },
    "cffi_handles": {"stands_for": "text", "count": "number", "address": "address"},
    "cffi_destructors": {
        "function": "text",
        "count": "number",
        "address": "address",
        "file": "text?",
        "line": "number?",
    },
    "array_views": {
        "type": "text",
        "views": "number",
        "bases": "number",
        "view_bytes": "number",
        "base_bytes": "number",
        "bytes": "number",
        "address": "address",
    },
    "native_threads": {
        "tid": "number",
        "name": "text",
        "python": "flag",
        "library": "text?",
        "symbol": "text?",
        "offset": "number?",
        "via": "text?",
        "running": "flag?",
        "cpu": "number?",
    },
    "thread_pools": {
        "pool": "text",
        "library": "text",
        "threads": "number",
        "running": "number",
        "limit": "text?",
        "setting": "text?",
    },
}
#: What JSON calls them.
_NAMES = {
    "libraries": "libraries",
    "ffi_libraries": "loaded",
    "callbacks": "callbacks",
    "ffi_functions": "functions",
    "ffi_buffers": "buffers",
    "ffi_memoryviews": "memoryviews",
    "ffi_capsules": "capsules",
    "cffi_handles": "handles",
    "cffi_destructors": "destructors",
    "array_views": "array_views",
    "native_threads": "threads",
    "thread_pools": "pools",
}
#: What else a row of ffi_buffers may have, by its kind.
_OF_BUFFERS = ("owned", "owned_bytes", "views", "foreign", "exports")
_OF_PROCESSORS = ("cpus", "host", "allowed", "threads", "running")


def is_told(snapshot: Snapshot) -> bool:
    """Whether libraries were looked at when it was taken."""
    return "libraries" in snapshot.tables


def rows(snapshot: Snapshot, table: str) -> list[Row]:
    """The rows of a table that make sense."""
    found = checked_rows(snapshot, table, _TABLES[table])
    if table == "ffi_buffers":
        # What only one kind has may be missing.
        whole = [
            r
            for r in snapshot.tables.get(table, ())
            if isinstance(r, dict) and isinstance(r.get("type"), str)
        ]
        more = {(r["type"], r["address"]): r for r in whole if isinstance(r.get("address"), int)}
        for row in found:
            raw = more.get((row["type"], row["address"]), {})
            row |= {k: raw[k] if _is_whole(raw.get(k)) else None for k in _OF_BUFFERS}
    return found


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def against(snapshot: Snapshot) -> Row | None:
    """The row of processors and pools, with None for what makes no sense."""
    row = next(iter(snapshot.tables.get("oversubscription", ())), None)
    if not isinstance(row, dict):
        return None
    out: Row = {k: row[k] if _is_whole(row.get(k)) else None for k in _OF_PROCESSORS}
    quota = row.get("quota")
    fits = isinstance(quota, (int, float)) and not isinstance(quota, bool) and 0 <= quota < 1e9
    out["quota"] = quota if fits else None
    out["known_by"] = row["known_by"] if isinstance(row.get("known_by"), str) else None
    return out


def document(snapshot: Snapshot) -> dict[str, Any]:
    """What only this JSON document has. Addresses are hex strings; ``heap``: Python's was looked at."""
    out: dict[str, Any] = {"heap": "ffi_functions" in snapshot.tables}
    for table, name in _NAMES.items():
        out[name] = [
            {k: hex(v) if _TABLES[table].get(k) == "address" else v for k, v in row.items()}
            for row in rows(snapshot, table)
        ]
    out["processors"] = against(snapshot)
    return out
