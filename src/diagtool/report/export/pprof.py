"""pprof's format: profile.proto (github.com/google/pprof/blob/main/proto/profile.proto), gzipped.

Written here and not by the protobuf runtime, because a million samples are made of a few hundred different
pieces of bytes: one for each location, one for each set of labels and values, and the lengths before them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from diagtool._version import __version__
from diagtool.report.export import names
from diagtool.report.export.samples import Samples, alike
from diagtool.report.export.sequences import joined, sequences
from diagtool.report.text import clean
from diagtool.snapshot.model import Frame, Snapshot

__all__ = ("pprof",)

#: What a value is multiplied by, and its unit as pprof calls it.
_UNITS = {"count": (1, "count"), "bytes": (1, "bytes"), "microseconds": (1000, "nanoseconds")}
_MAX = (1 << 63) - 1


def pprof(snapshot: Snapshot, samples: Samples) -> Iterator[bytes]:
    """The gzipped profile. The default sample type is what was asked for."""
    pack = zlib.compressobj(4, zlib.DEFLATED, 31)  # 31: with the head of gzip, and no time in it
    for part in _profile(snapshot, samples):
        yield pack.compress(part)
    yield pack.flush()


class _Strings:
    """The table of strings: number 0 is the empty one."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {"": 0}

    def __call__(self, text: str) -> int:
        return self.numbers.setdefault(text, len(self.numbers))


def _profile(snapshot: Snapshot, samples: Samples) -> Iterator[bytes]:
    text = _Strings()
    for weight in samples.weights:
        unit = _UNITS[weight.unit][1]
        yield _bytes(1, _number(1, text(weight.name)) + _number(2, text(unit)))
    yield from _samples(samples, text)
    yield from _places(samples, snapshot, text)
    target = snapshot.target
    at = target.captured_at
    if at is not None and 0 < at < 9e9:
        yield _number(9, round(at * 1e9))
    first = samples.weight
    yield _bytes(11, _number(1, text(first.name)) + _number(2, text(_UNITS[first.unit][1])))
    yield _number(12, 1)
    about = (target.runtime, f"pid {target.pid}" if target.pid else "", " ".join(target.cmdline)[:1000])
    for comment in (f"diagtool {__version__}", *(clean(part, 1000) for part in about if part)):
        yield _number(13, text(comment))
    yield _number(14, text(first.name))
    for string in text.numbers:
        yield _bytes(6, string.encode("utf-8", "backslashreplace"))


def _samples(samples: Samples, text: _Strings) -> Iterator[bytes]:
    """Each: the location of each frame, innermost first; a value for each type; labels."""
    locations = [_varint(number + 1) for number in range(len(samples.traces.frames) + 2)]
    sizes = np.array([len(piece) for piece in locations], np.int64)
    endings, of = _endings(samples, text)
    ending_sizes = np.array([len(piece) for piece in endings], np.int64)
    pieces = [*locations, *endings]
    heads: dict[int, int] = {}
    for chunk in sequences(samples.traces, samples.trace, outermost_first=False):
        items, end = chunk.items, of[chunk.rows]
        size = sizes[np.maximum(items, 0)]
        size[chunk.first] = size[chunk.last] = 0
        inside = np.add.reduceat(size, chunk.first)
        behind = ending_sizes[end]
        # The heads differ in nothing but two lengths.
        pairs, head = np.unique(inside << 32 | behind, return_inverse=True)
        numbers = []
        for pair in pairs.tolist():
            if pair not in heads:
                heads[pair] = len(pieces)
                pieces.append(_head(pair >> 32, pair & 0xFFFFFFFF))
            numbers.append(heads[pair])
        items[chunk.first] = np.array(numbers, np.int64)[head.reshape(-1)]
        items[chunk.last] = len(locations) + end
        yield joined(pieces, items)


def _head(inside: int, behind: int) -> bytes:
    own = b"\x0a" + _varint(inside)  # field 1, the locations
    return b"\x12" + _varint(len(own) + inside + behind) + own  # field 2 of the profile


def _endings(samples: Samples, text: _Strings) -> tuple[list[bytes], NDArray[np.intp]]:
    """Values and labels of a sample as bytes, each different one once, and which one each sample has."""
    columns: list[NDArray[np.int64]] = [w.values for w in samples.weights]
    columns += [c.codes.astype(np.int64) for c in samples.labels.values()]
    first, of = alike(columns)
    pieces = [
        [
            b"" if not name else _bytes(3, _number(1, text(label)) + _number(2, text(name)))
            for name in column.names
        ]
        for label, column in samples.labels.items()
    ]
    factors = [_UNITS[w.unit][0] for w in samples.weights]
    made = []
    for row in zip(*(column[first].tolist() for column in columns), strict=True):
        values = b"".join(_varint(min(v * f, _MAX)) for v, f in zip(row, factors, strict=False))
        labels = (own[code] for own, code in zip(pieces, row[len(factors) :], strict=True))
        made.append(_bytes(2, values) + b"".join(labels))
    return made, of


def _places(samples: Samples, snapshot: Snapshot, text: _Strings) -> Iterator[bytes]:
    """Mappings (the executable and libraries), functions, and a location for each frame."""
    mappings: dict[str, int] = {clean(snapshot.target.exe or "", 4096): 1}
    functions: dict[tuple[int, int], int] = {}
    out = bytearray()
    extra = (Frame(names.NOTHING, "", None), Frame(names.CUT, "", None))
    for number, frame in enumerate((*samples.traces.frames, *extra), 1):
        library = clean(frame.library or "", 4096)
        mapping = mappings.setdefault(library, len(mappings) + 1) if library else 1
        key = text(names.function(frame)), text(names.file(frame))
        function = functions.setdefault(key, len(functions) + 1)
        line = _number(1, function)
        if frame.line is not None and 0 < frame.line < 1 << 31:
            line += _number(2, frame.line)
        out += _bytes(4, _number(1, number) + _number(2, mapping) + _bytes(4, line))
    yield bytes(out)
    for (name, file), number in functions.items():
        yield _bytes(5, _numbers((number, name, name, file)))
    for path, number in mappings.items():
        # 7 to 10: functions, files, lines and inlined frames are known, so that pprof looks nowhere for them.
        known = b"".join(_number(field, 1) for field in range(7, 11))
        yield _bytes(3, _number(1, number) + _number(5, text(path)) + known)


def _numbers(values: Iterable[int]) -> bytes:
    return b"".join(_number(field, value) for field, value in enumerate(values, 1))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the others have the eighth bit set."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
