"""Descriptors that are alike: the same file or folder, connections to the same peer, one kind."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["name_groups"]

Row = dict[str, Any]

_NUMBERS = re.compile(r"\d+")
_MOST_NAMES = 8  # files of one folder and ending that are told apart; more of them are one group
_LONGEST = 200


def name_groups(rows: list[Row]) -> None:
    """Give each row its ``group``, and sockets their ``place``: the other side, or which port that called."""
    patterns: dict[str, set[str]] = {}
    for row in rows:
        if row["kind"] in ("file", "directory", "device"):
            pattern = _NUMBERS.sub("#", row["name"])
            patterns.setdefault(_ending(pattern), set()).add(pattern)
    for row in rows:
        if row["kind"] in ("file", "directory", "device"):
            pattern = _NUMBERS.sub("#", row["name"])
            ending = _ending(pattern)
            group = ending if len(patterns[ending]) > _MOST_NAMES else pattern
            group = f"{'deleted ' if row.get('deleted') else ''}{row['kind']} {group}"
        elif row["kind"] == "socket":
            group = _of_socket(row)
        elif row["kind"] == "pipe":
            group = "pipe with both ends here" if row.get("ends") else "pipe"
        else:
            group = row["kind"]
        row["group"] = group[:_LONGEST]


def _of_socket(row: Row) -> str:
    protocol = row.get("protocol") or "socket"
    if row.get("state") == "LISTEN":
        return f"{protocol} that listens"
    if row.get("remote"):
        row["place"] = f"on port {row['local'].rpartition(':')[2]}" if row.get("accepted") else row["remote"]
        return f"{protocol} {'accepted' if row.get('accepted') else 'to'} {row['place']}"
    if protocol == "unix":
        return f"unix {row['local']}" if row.get("local") else "unix pair" if row.get("ends") else "unix"
    return f"{protocol} unconnected" if row.get("state") == "unconnected" else protocol


def _ending(pattern: str) -> str:
    folder, _, name = pattern.rpartition("/")
    dot = name.rpartition(".")[2] if "." in name else ""
    return f"{folder}/*.{dot}" if dot else f"{folder}/*"
