"""Descriptors that only the heap tells of: a core has no table of open files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from diagtool.inventory.fdgroups import name_groups

__all__ = ["rows_of_owners"]

Row = dict[str, Any]


def rows_of_owners(owners: Iterable[Row]) -> list[Row]:
    """Rows of the table ``fds`` made of what objects say of the descriptors that they own."""
    rows: dict[int, Row] = {}
    for owner in owners:
        fd = owner["fd"]
        row = rows.get(fd)
        if row is None:
            rows[fd] = {
                "fd": fd,
                "kind": owner.get("kind") if owner.get("kind") != "any" else "unknown",
                "name": owner.get("name") or "",
                "protocol": owner.get("protocol"),
                "local": owner.get("local"),
                "remote": owner.get("remote"),
                "settled": True,
                "owner": owner["type"],
                "owner_address": owner["address"],
                "owner_text": owner.get("text"),
                "owned": True,
            }
            continue
        row.setdefault("also", [])
        if len(row["also"]) < 16:
            row["also"].append(owner.get("text") or owner["type"])
        for key in ("name", "protocol", "local", "remote"):
            row[key] = row[key] or owner.get(key)
    found = [rows[fd] for fd in sorted(rows)]
    for row in found:
        if not row["name"] and row["remote"]:
            row["name"] = f"{row['local'] or '?'} -> {row['remote']}"
    name_groups(found)
    return [{k: v for k, v in row.items() if v is not None} for row in found]
