"""/proc/PID/smaps as arrays: what is resident, shared out, swapped and huge of each mapping.

A process may have 65,530 mappings, whose smaps has 45 MB: the lines of one mapping are as many, and in the
same order, as those of any other (fs/proc/task_mmu.c), so a field is every n-th line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.model import Mapping
from diagtool.capture.procfs import parse_maps, read_file

__all__ = ["FIELDS", "Smaps", "parse_smaps", "read_smaps"]

#: Names here, and names in the file. Bytes here, kB there.
FIELDS = {
    "rss": b"Rss",
    "pss": b"Pss",
    "swap": b"Swap",
    "anonymous": b"Anonymous",
    "huge": b"AnonHugePages",
    "private_hugetlb": b"Private_Hugetlb",
    "shared_hugetlb": b"Shared_Hugetlb",
}
_MOST = 512 << 20  # bytes of the file
_MOST_LINES = 64  # of one mapping


@dataclass(slots=True)
class Smaps:
    """``fields[name][i]``: bytes of ``mappings[i]``; what a kernel does not tell is 0."""

    mappings: list[Mapping]
    fields: dict[str, NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.mappings)


def read_smaps(pid: int) -> Smaps:
    """The smaps of a process now. Raises OSError."""
    return parse_smaps(read_file(f"/proc/{pid}/smaps", _MOST))


def parse_smaps(text: bytes) -> Smaps:
    """What a smaps says. A last mapping that is cut off is left out."""
    lines = text.split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    period = next((i for i, line in enumerate(lines[1:_MOST_LINES], 1) if _is_head(line)), len(lines))
    try:
        return _regular(lines, period)
    except ValueError:  # from one mapping to the next they differ
        return _irregular(lines)


def _is_head(line: bytes) -> bool:
    first = line.split(b" ", 1)[0]
    return not first.endswith(b":") and b"-" in first


def _regular(lines: list[bytes], period: int) -> Smaps:
    if not lines or period < 2 or len(lines) % period:
        raise ValueError
    mappings = parse_maps(b"\n".join(lines[::period]))
    if len(mappings) != len(lines) // period:
        raise ValueError
    names = [line.partition(b":")[0] for line in lines[:period]]
    fields = {}
    for name, theirs in FIELDS.items():
        if theirs not in names:
            fields[name] = np.zeros(len(mappings), np.int64)
            continue
        own = lines[names.index(theirs) :: period]
        start = len(theirs) + 1
        if not all(line.startswith(theirs + b":") for line in own):
            raise ValueError
        fields[name] = np.array([int(line[start:-3]) for line in own], np.int64) << 10
    return Smaps(mappings, fields)


def _irregular(lines: list[bytes]) -> Smaps:
    mappings: list[Mapping] = []
    rows: list[dict[str, int]] = []
    names = {theirs: name for name, theirs in FIELDS.items()}
    for head, body in _blocks(lines):
        found = parse_maps(head)
        if not found:
            continue
        row = dict.fromkeys(FIELDS, 0)
        for line in body:
            theirs, _, value = line.partition(b":")
            if theirs in names and value[-3:] == b" kB" and value[:-3].strip().isdigit():
                row[names[theirs]] = int(value[:-3]) << 10
        mappings.append(found[0])
        rows.append(row)
    return Smaps(mappings, {name: np.array([row[name] for row in rows], np.int64) for name in FIELDS})


def _blocks(lines: list[bytes]) -> Iterator[tuple[bytes, list[bytes]]]:
    head: bytes | None = None
    body: list[bytes] = []
    for line in lines:
        if _is_head(line):
            if head is not None and body:
                yield head, body
            head, body = line, []
        else:
            body.append(line)
    if head is not None and body:
        yield head, body
