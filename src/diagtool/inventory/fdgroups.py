"""Descriptors that are alike: the same file or folder, connections to the same peer, one kind."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

__all__ = ["name_groups"]

Row = dict[str, Any]

_NUMBERS = re.compile(r"\d+")
_MOST_NAMES = 8  # files of one folder and ending that are told apart; more of them are one group
_LONGEST = 200
_MANY, _NEARLY_ALL = 64, 0.98
#: Not memory, nor devices of which drivers open many.
_LOSABLE = ("socket", "pipe", "eventfd", "epoll", "timerfd", "signalfd", "inotify", "fanotify", "pidfd")


def name_groups(rows: list[Row]) -> None:
    """Give each row its ``group``, and what goes with it.

    ``place`` of sockets: the other side, or which port that called. ``alike``, where nobody owns it: with
    what it counts as lost (:func:`_alike`). ``held_by``: the owner, where somebody may ask for it.
    """
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
        row["alike"] = _alike(row) if row.get("owned") is False else None
        if "owner_text" in row and (row.get("deleted") or row.get("state") == "CLOSE_WAIT"):
            row["held_by"] = [row["owner_text"]]
    _leave_out_kept(rows)


def _leave_out_kept(rows: list[Row]) -> None:
    """Numbers that Python keeps are not lost: where that is so of nearly all alike ones, none is said to be.

    Small numbers always exist, and others by chance: so it takes many, and nearly all.
    """
    told: Counter[str] = Counter(r["alike"] for r in rows if r["alike"] is not None and "number" in r)
    kept = Counter(r["alike"] for r in rows if r["alike"] is not None and r.get("number"))
    for row in rows:
        alike = row["alike"]
        if alike is not None and told[alike] >= _MANY and kept[alike] >= _NEARLY_ALL * told[alike]:
            row["alike"] = None


def _alike(row: Row) -> str | None:
    """What a program may open again and again and lose: no different files, no connections that came in."""
    kind = row["kind"]
    if kind in ("file", "directory") or (kind == "device" and row.get("detail") is None):
        return f"{kind} {row['name']}"[:_LONGEST]
    if kind == "socket" and (row.get("accepted") or row.get("state") == "LISTEN"):
        return None
    group: str = row["group"]
    return group if kind in _LOSABLE else None


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
