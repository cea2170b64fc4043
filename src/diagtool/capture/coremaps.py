"""What a core says of the address space: which bytes it holds, which it lost, what was mapped where."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

from diagtool.capture.elf import PF_R, PF_W, PF_X, PT_LOAD, Records
from diagtool.capture.memory import Segment
from diagtool.capture.model import Mapping
from diagtool.capture.modulefiles import FileRange
from diagtool.capture.notes import AT_EXECFN, AT_RANDOM, AT_SYSINFO_EHDR, FileNote

__all__ = ["CoreRange", "core_mappings", "file_ranges", "held_and_lost", "load_ranges"]

_TOP = (1 << 64) - 1
# No files of their own, or such that change without anybody writing to them.
_NOT_FILES = ("/dev/", "/memfd:", "/SYSV", "/anon_hugepage", "/proc/", "/sys/")


@dataclass(frozen=True, slots=True)
class CoreRange:
    """One PT_LOAD: addresses, where its bytes are in the core, how many there are and should be."""

    start: int
    end: int
    offset: int
    size: int  # bytes that the core should hold of it, from the start
    held: int  # bytes that it does hold
    flags: int


def load_ranges(segments: Records, size: int) -> list[CoreRange]:
    """The PT_LOAD segments of a core of ``size`` bytes, sorted by address, without absurd ones."""
    out = []
    loads = segments[segments["type"] == PT_LOAD]
    loads = loads[np.argsort(loads["address"], kind="stable")]
    columns = ("address", "offset", "filesz", "memsz", "flags")
    for start, offset, filesz, memsz, flags in zip(*(loads[c].tolist() for c in columns), strict=True):
        end = min(start + max(filesz, memsz), _TOP)
        if end > start:
            filesz = min(filesz, end - start)
            out.append(CoreRange(start, end, offset, filesz, max(0, min(filesz, size - offset)), flags))
    return out


def missing_bytes(ranges: list[CoreRange]) -> int:
    """Bytes that the core says it holds, and does not: it is cut off."""
    return sum(r.size - r.held for r in ranges if r.size > r.held)


def held_and_lost(ranges: list[CoreRange], buffer: int) -> tuple[list[Segment], list[str]]:
    """(segments that the core holds, warnings about what it should hold and does not)."""
    warnings = []
    held = [
        Segment(r.start, r.start + r.held, buffer, r.offset, bool(r.flags & PF_W)) for r in ranges if r.held
    ]
    short = sum(1 for r in ranges if r.size > r.held)
    if short:
        warnings.append(
            f"the core is cut off: {short} of its {sum(1 for r in ranges if r.size)} memory segments lack "
            f"{missing_bytes(ranges):,} bytes (a size limit or a full disk)"
        )
    overlaps = sum(1 for a, b in pairwise(held) if b.start < a.end)
    if overlaps:
        warnings.append(f"{overlaps} memory segment(s) of the core overlap another one; the first one counts")
    return held, warnings


def core_mappings(ranges: list[CoreRange], files: list[FileNote], auxv: dict[int, int]) -> list[Mapping]:
    """What was mapped, from the PT_LOAD segments and NT_FILE together.

    Anonymous memory has the path "". Permissions are "" where only NT_FILE knows of a mapping: gcore leaves
    out those that it does not write.
    """
    loads, named = _disjoint(ranges), _disjoint(sorted(files, key=lambda f: f.start))
    load_starts, file_starts = [r.start for r in loads], [f.start for f in named]
    edges = [(r.start, r.end) for r in loads] + [(f.start, f.end) for f in named]
    cuts = sorted({edge for pair in edges for edge in pair})
    out = []
    for start, end in pairwise(cuts):
        load, file = _at(loads, load_starts, start), _at(named, file_starts, start)
        if load is None and file is None:
            continue
        permissions = _permissions(load.flags) if load is not None else ""
        offset = file.offset + start - file.start if file is not None else 0
        path = file.path if file is not None else _special(start, end, permissions, auxv)
        out.append(Mapping(start, end, permissions, offset, 0, path))
    return out


def file_ranges(mappings: list[Mapping], ranges: list[CoreRange]) -> list[FileRange]:
    """The mappings whose missing pages may be had from files.

    Kernel and gcore leave out mappings of files that were never written to (vma_dump_size in fs/coredump.c,
    dump_mapping_p in gdb/linux-tdep.c), unless coredump_filter or a full disk made them leave out more.
    """
    named = [m for m in mappings if m.path.startswith("/") and not m.path.startswith(_NOT_FILES)]
    anonymous = {m.start for m in mappings if not m.path and m.writable}
    # A core without any anonymous memory was told to leave out what was written to.
    complete = any(r.size and r.start in anonymous for r in ranges)
    cut = [r for r in ranges if r.held < r.size]
    ends = [r.end for r in cut]
    out = []
    for m in named:
        i = bisect.bisect_right(ends, m.start)
        lost = i < len(cut) and cut[i].start < m.end
        out.append(FileRange(m, pristine=complete and not lost))
    return out


def _permissions(flags: int) -> str:
    letters = ((PF_R, "r"), (PF_W, "w"), (PF_X, "x"))
    return "".join(letter if flags & bit else "-" for bit, letter in letters) + "p"


def _special(start: int, end: int, permissions: str, auxv: dict[int, int]) -> str:
    if start <= auxv.get(AT_SYSINFO_EHDR, 0) < end:
        return "[vdso]"
    if "w" in permissions and any(start <= auxv.get(kind, 0) < end for kind in (AT_RANDOM, AT_EXECFN)):
        return "[stack]"
    return ""


_Range = TypeVar("_Range", CoreRange, FileNote)


# Of ranges sorted by start, those that begin after all earlier ones have ended.
def _disjoint(ranges: Iterable[_Range]) -> list[_Range]:
    out: list[_Range] = []
    for r in ranges:
        if not out or r.start >= out[-1].end:
            out.append(r)
    return out


def _at(ranges: list[_Range], starts: list[int], address: int) -> _Range | None:
    i = bisect.bisect_right(starts, address) - 1
    return ranges[i] if i >= 0 and address < ranges[i].end else None
