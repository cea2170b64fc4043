"""What the kernel says of a process's memory: what is resident, and which files are mapped as data.

It needs no decoder and costs nothing, so every snapshot has it: a series of them shows what grew.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from diagtool.capture.model import Capture, Mapping

_MOST_FILES = 200  # rows of mapped files
_MOST_NAMES = 8  # files of one folder and ending that are told apart; more of them are one row
_NUMBERS = re.compile(r"\d+")
_NAMES = {
    "rss": "VmRSS",
    "rss_peak": "VmHWM",
    "rss_anon": "RssAnon",
    "rss_file": "RssFile",
    "rss_shared": "RssShmem",
    "swap": "VmSwap",
}

Row = dict[str, Any]


def add_process_memory(capture: Capture, tables: dict[str, list[Row]]) -> None:
    """The tables ``heaps`` (:func:`process_memory`) and ``mapped_files`` (:func:`mapped_files`)."""
    tables["heaps"] = [process_memory(capture)]
    tables["mapped_files"] = mapped_files(capture)


def process_memory(capture: Capture) -> Row:
    """The row of the table ``heaps`` that needs no look into memory. Bytes, None where not known (cores).

    ``rss``, ``rss_peak``, ``rss_anon``, ``rss_file``, ``rss_shared``, ``swap``; ``mappings``, their number.
    """
    told = capture.process.memory
    return {**{name: told.get(theirs) for name, theirs in _NAMES.items()}, "mappings": len(capture.mappings)}


def mapped_files(capture: Capture) -> list[Row]:
    """Files and shared memory that are mapped as data, those with most mappings first.

    A row a pattern: ``pattern`` is a path with ``#`` for numbers in it (``/run/metrics/counter_#.db``), or
    ``folder/*.ending`` where a folder has many. ``count``: mappings; ``files``: different paths; ``bytes``;
    ``deleted``: mappings of files that have no name any more. Programs and libraries are left out.
    """
    programs = {m.path for m in capture.mappings if "x" in m.permissions}
    data = [m for m in capture.mappings if _is_data(m) and m.path not in programs]
    by_pattern: dict[str, list[Mapping]] = {}
    for mapping in data:
        by_pattern.setdefault(_NUMBERS.sub("#", _plain(mapping.path)), []).append(mapping)
    by_ending: dict[str, list[str]] = {}
    for pattern in by_pattern:
        by_ending.setdefault(_ending(pattern), []).append(pattern)
    rows = []
    for ending, patterns in by_ending.items():
        if len(patterns) > _MOST_NAMES:
            rows.append(_row(ending, (m for p in patterns for m in by_pattern[p])))
        else:
            rows += [_row(p, by_pattern[p]) for p in patterns]
    rows.sort(key=lambda r: (-r["count"], -r["bytes"], r["pattern"]))
    return rows[:_MOST_FILES]


def _is_data(mapping: Mapping) -> bool:
    path = mapping.path
    return bool(path) and not path.startswith("[") and "lib/locale/" not in path and "gconv" not in path


def _plain(path: str) -> str:
    return path.removesuffix(" (deleted)")


def _ending(pattern: str) -> str:
    folder, _, name = pattern.rpartition("/")
    dot = name.rpartition(".")[2] if "." in name else ""
    return f"{folder}/*.{dot}" if dot else f"{folder}/*"


def _row(pattern: str, mappings: Iterable[Mapping]) -> Row:
    held = list(mappings)
    return {
        "pattern": pattern,
        "count": len(held),
        "files": len({(m.path, m.inode) for m in held}),
        "bytes": sum(m.end - m.start for m in held),
        "deleted": sum(m.path.endswith(" (deleted)") for m in held),
    }
