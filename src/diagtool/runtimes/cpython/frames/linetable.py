"""Line tables: which source line an instruction of a code object belongs to.

Pure functions over the bytes of ``co_lnotab`` (3.9) and ``co_linetable`` (3.10 and later). The three formats:

- 3.9: pairs (unsigned bytes of code, signed lines), Objects/lnotab_notes.txt of 3.9.
- 3.10: the same pairs (PEP 626), where a line delta of -128 says "this code has no line" and a pair's
  line holds for the code of that pair itself, Objects/lnotab_notes.txt of 3.10.
- 3.11 and later: the location table (PEP 657), entries that begin with a byte whose top bit is set,
  Objects/locations.md of 3.11.

The bytes come out of a foreign process, so anything may be in them: every function runs once over the table,
never raises, and gives None for what makes no sense.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator

__all__ = ("OPEN_END", "Lines", "all_lines", "find_line", "line_at")

#: (start, end, line): the code in bytes [start, end) is on ``line``; None where it has no line.
Lines = list[tuple[int, int, int | None]]

#: End of the last range of a 3.9 table: that table does not say where the code ends.
OPEN_END = 1 << 31

_MAX_LINE = (1 << 31) - 1  # co_firstlineno and every computed line are C ints
_NO_LINE = -128  # line delta of a 3.10 pair without a line

# Codes of a location table's entries (bits 3 to 6 of its first byte), pycore_code.h of 3.11.
_ONE_LINE_0, _ONE_LINE_2 = 10, 12
_NO_COLUMNS, _LONG, _NO_LOCATION = 13, 14, 15
_CODE_UNIT = 2  # sizeof(_Py_CODEUNIT)


def line_at(version: tuple[int, int], table: bytes, first_line: int, offset: int) -> int | None:
    """The line of the instruction at ``offset``, or None when it has none.

    ``offset`` is in bytes of ``co_code``: f_lasti (3.9), f_lasti * 2 (3.10), the distance of the instruction
    pointer from ``co_code_adaptive`` (3.11 and later). A negative offset is a frame that has not begun:
    ``first_line``, as PyCode_Addr2Line says.
    """
    if offset < 0:
        return _sane(first_line)
    for start, end, line in _ranges(version, table, first_line):
        if start <= offset < end:
            return line
    return None


def all_lines(version: tuple[int, int], table: bytes, first_line: int) -> Lines:
    """Every range of a table, sorted, neighbours of the same line joined; for :func:`find_line`.

    [(0, 4, 12), (4, 10, 13), (10, 12, None), (12, 16, 13)]
    """
    out: Lines = []
    for start, end, line in _ranges(version, table, first_line):
        if out and out[-1][2] == line:
            out[-1] = (out[-1][0], end, line)
        else:
            out.append((start, end, line))
    return out


def find_line(lines: Lines, first_line: int, offset: int) -> int | None:
    """What :func:`line_at` says, from the ranges of :func:`all_lines`: for many offsets in the same code."""
    if offset < 0:
        return _sane(first_line)
    i = bisect.bisect_right(lines, offset, key=lambda entry: entry[0]) - 1
    if i < 0 or offset >= lines[i][1]:
        return None
    return lines[i][2]


def _ranges(version: tuple[int, int], table: bytes, first_line: int) -> Iterator[tuple[int, int, int | None]]:
    # Contiguous, non-empty ranges from 0 on.
    if version >= (3, 11):
        return _location_table(table, first_line)
    if version >= (3, 10):
        return _pairs_310(table, first_line)
    return _pairs_39(table, first_line)


def _pairs_39(table: bytes, first_line: int) -> Iterator[tuple[int, int, int | None]]:
    # A pair moves first the address, then the line: its line holds from the new address on. Several pairs
    # at one address (deltas beyond a byte) add up.
    line, start, end = first_line, 0, 0
    for i in range(0, len(table) - 1, 2):
        end += table[i]
        if end > start:
            yield start, end, _sane(line)
            start = end
        line += _signed(table[i + 1])
    yield start, OPEN_END, _sane(line)


def _pairs_310(table: bytes, first_line: int) -> Iterator[tuple[int, int, int | None]]:
    line, start = first_line, 0
    for i in range(0, len(table) - 1, 2):
        end, delta = start + table[i], _signed(table[i + 1])
        if delta != _NO_LINE:
            line += delta
        if end > start:
            yield start, end, None if delta == _NO_LINE else _sane(line)
        start = end


def _location_table(table: bytes, first_line: int) -> Iterator[tuple[int, int, int | None]]:
    line, start, i, size = first_line, 0, 0, len(table)
    while i < size:
        first = table[i]
        code = first >> 3 & 15
        if _ONE_LINE_0 <= code <= _ONE_LINE_2:
            line += code - _ONE_LINE_0
        elif code in (_NO_COLUMNS, _LONG):
            line += _signed_varint(table, i + 1)
        end = start + ((first & 7) + 1) * _CODE_UNIT
        # CPython tells "no location" by the whole byte (is_no_line_marker), top bit included.
        yield start, end, None if first >> 3 == 16 + _NO_LOCATION else _sane(line)
        start = end
        i += 1
        while i < size and table[i] < 128:  # the rest of the entry: columns and varints
            i += 1


def _signed_varint(table: bytes, i: int) -> int:
    # Six bits a byte, the lowest first; bit 6 says that another byte follows. The sign is the lowest bit.
    value = shift = 0
    while i < len(table) and shift < 36:  # C ints: more than 32 bits is garbage
        value |= (table[i] & 63) << shift
        if not table[i] & 64:
            break
        shift += 6
        i += 1
    return -(value >> 1) if value & 1 else value >> 1


def _signed(byte: int) -> int:
    return byte - 256 if byte >= 128 else byte


def _sane(line: int) -> int | None:
    # 0 is real: the RESUME of a module is on line 0 from 3.11 on.
    return line if 0 <= line <= _MAX_LINE else None
