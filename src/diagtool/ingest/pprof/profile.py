"""profile.proto (github.com/google/pprof/blob/main/proto/profile.proto): what a file of pprof's format holds.

Samples stay columns. A profile is bounded in bytes and in parts; of a larger one nothing is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diagtool.ingest.pprof.wire import BYTES, NUMBER, WireError, fields, inner, numbers, signed

__all__ = [
    "MOST_BYTES",
    "MOST_FRAMES",
    "Label",
    "Place",
    "Profile",
    "ProfileError",
    "looks_like_profile",
    "parse",
]

#: Bytes of an unpacked profile; pprof's own are of some MiB at most.
MOST_BYTES = 256 << 20
#: Samples, locations, functions and strings, together.
MOST_PARTS = 4_000_000
_MOST_PLACES = 500_000  # locations, and functions
_MOST_TYPES = 64
_MOST_LABELS = 64  # of one sample
_MOST_TEXT = 4096
_MOST_FIELDS = 20_000_000  # of all samples
_MOST_NUMBERS = 32 << 20  # bytes of all numbers of samples, and of all distinct stacks
#: Frames of one stack, and of one location, that are looked at.
MOST_FRAMES = 2_000

_SAMPLE_TYPE, _SAMPLE, _MAPPING, _LOCATION, _FUNCTION, _STRING = 1, 2, 3, 4, 5, 6
_TIME, _DURATION, _PERIOD_TYPE, _PERIOD, _COMMENT, _DEFAULT_TYPE = 9, 10, 11, 12, 13, 14
#: Wire type of each field of a profile (15 is a link to documentation).
_WIRE = {**dict.fromkeys((1, 2, 3, 4, 5, 6, 11), BYTES), **dict.fromkeys((7, 8, 9, 10, 12, 14), NUMBER)}
_PACKED = {13: (BYTES, NUMBER), 15: (BYTES, NUMBER)}


class ProfileError(ValueError):
    """A profile that can't be read; ``str()`` says why, as part of a sentence."""


class Label(NamedTuple):
    """A label of a sample; the value as text."""

    key: str
    value: str
    text: bool  # a label of the program; else a number, of which only producers of profiles make use


class Place(NamedTuple):
    """One frame of a location: an address that was inlined into others has several."""

    function: str
    file: str
    line: int
    library: str  # of an address without a function: the file that is mapped there


def looks_like_profile(head: bytes) -> bool:
    """Whether (unpacked) bytes that start with ``head`` may be a profile: the first fields are."""
    seen = 0
    try:
        for number, wire, value, end in fields(head):
            if wire != _WIRE.get(number) and wire not in _PACKED.get(number, ()):
                return False
            if number == _SAMPLE_TYPE and not _is_value_type(head, value, end):
                return False
            seen += 1
            if seen == 4:
                break
    except WireError as error:
        # Cut off within a field, which may be a long one.
        return seen > 0 and "behind the end" in str(error)
    return seen >= 2


def _is_value_type(data: bytes, start: int, stop: int) -> bool:
    try:
        return all(f in (1, 2) and wire == NUMBER for f, wire, _, _ in fields(data, start, stop))
    except WireError:
        return False


@dataclass
class Profile:
    """A profile. Columns over samples: ``values`` (samples, types), ``stack`` (index into ``stacks``),
    ``labels`` (the bytes of each one's labels, see :meth:`labels_of`).

    ``kinds``: type and unit of each value.
    """

    kinds: list[tuple[str, str]]
    values: NDArray[np.int64]
    stack: NDArray[np.int64]
    stacks: Stacks
    labels: list[tuple[bytes, ...]]
    strings: _Strings
    period_kind: tuple[str, str] = ("", "")
    period: int = 0
    default_kind: str = ""
    time: float | None = None  # seconds since the epoch
    seconds: float | None = None  # that it took
    comments: list[str] = field(default_factory=list)
    executable: str = ""
    warnings: list[str] = field(default_factory=list)
    _locations: dict[int, tuple[int, int]] = field(default_factory=dict)  # id -> span of its message
    _functions: dict[int, tuple[int, int]] = field(default_factory=dict)
    _mappings: dict[int, str] = field(default_factory=dict)
    _data: bytes = b""
    _places: dict[int, tuple[Place, ...]] = field(default_factory=dict)
    _names: dict[int, tuple[str, str]] = field(default_factory=dict)
    _labels: dict[bytes, Label | None] = field(default_factory=dict)

    def column(self, *names: str) -> NDArray[np.int64] | None:
        """The values of the first of these types that there is."""
        for name in names:
            for index, (kind, _) in enumerate(self.kinds):
                if kind == name:
                    return self.values[:, index]
        return None

    def unit(self, name: str) -> str:
        """The unit of a type."""
        return next((unit for kind, unit in self.kinds if kind == name), "")

    def places(self, stack: int) -> list[Place]:
        """The frames of a stack, innermost first, inlined ones too; the innermost MOST_FRAMES."""
        locations = self.stacks[stack][:MOST_FRAMES].tolist()
        return [place for location in locations for place in self._at(location)][:MOST_FRAMES]

    def labels_of(self, sample: int) -> list[Label]:
        """The labels of a sample."""
        found = (self._label(data) for data in self.labels[sample])
        return [label for label in found if label is not None]

    def _label(self, data: bytes) -> Label | None:
        if data not in self._labels:
            part = _numbers_of(data, 0, len(data), 4)
            key = self.strings[part.get(1, 0)]
            text = 2 in part
            value = self.strings[part[2]] if text else f"{signed(part.get(3, 0))}{self._unit(part)}"
            self._labels[data] = Label(key, value, text) if key else None
        return self._labels[data]

    def _unit(self, part: dict[int, int]) -> str:
        unit = self.strings[part.get(4, 0)]
        return f" {unit}" if unit else ""

    def _at(self, location: int) -> tuple[Place, ...]:
        known = self._places.get(location)
        if known is None:
            known = self._places[location] = self._read_place(location)
        return known

    def _read_place(self, location: int) -> tuple[Place, ...]:
        span = self._locations.get(location)
        if span is None:
            return (Place("?", "", 0, ""),)
        out: list[Place] = []
        address = mapping = 0
        for number, wire, value, end in inner(self._data, *span):
            if number == 4 and wire == BYTES:
                if len(out) == MOST_FRAMES:
                    break
                part = _numbers_of(self._data, value, end, 3)
                function, file = self._function(part.get(1, 0))
                line = part.get(2, 0)
                out.append(Place(function, file, line if line < 1 << 31 else 0, ""))
            elif wire == NUMBER:
                mapping = value if number == 2 else mapping
                address = value if number == 3 else address
        if not out:
            return (Place(f"0x{address:x}", "", 0, self._mappings.get(mapping, "")),)
        return tuple(out)

    def _function(self, number: int) -> tuple[str, str]:
        known = self._names.get(number)
        if known is None:
            span = self._functions.get(number)
            part = {} if span is None else _numbers_of(self._data, *span, 5)
            name = self.strings[part.get(2, 0)] or self.strings[part.get(3, 0)] or "?"
            known = self._names[number] = (name, self.strings[part.get(4, 0)])
        return known

    @cached_property
    def files(self) -> list[str]:
        """Files of all functions, with repetitions."""
        return [self._function(number)[1] for number in self._functions]


class _Strings:
    """The table of strings; a number that is not in it is the empty string."""

    def __init__(self, data: bytes, spans: list[tuple[int, int]]) -> None:
        self._data, self._spans = data, spans
        self._known: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, number: int) -> str:
        known = self._known.get(number)
        if known is None:
            start, end = self._spans[number] if number < len(self._spans) else (0, 0)
            known = self._data[start : min(end, start + _MOST_TEXT)].decode("utf-8", "replace")
            self._known[number] = known
        return known


def parse(data: bytes) -> Profile:
    """The profile that (unpacked) ``data`` is. Raises ProfileError."""
    if len(data) > MOST_BYTES:
        raise ProfileError(f"it has more than {MOST_BYTES >> 20} MiB")
    try:
        return _parse(data)
    except WireError as error:
        raise ProfileError(f"it is damaged or cut off ({error})") from None


def _parse(data: bytes) -> Profile:
    kinds: list[tuple[int, int]] = []
    spans: dict[int, list[tuple[int, int]]] = {n: [] for n in range(1, 7)}
    single: dict[int, int] = {}
    comments: list[int] = []
    period_kind, parts = (0, 0), 0
    for number, wire, value, end in fields(data):
        if wire == BYTES and 1 < number <= _STRING:
            parts += 1
            places = number in (_LOCATION, _FUNCTION)
            if parts > MOST_PARTS or (places and len(spans[number]) == _MOST_PLACES):
                raise ProfileError(f"it has more than {MOST_PARTS:,} parts, or {_MOST_PLACES:,} places")
            spans[number].append((value, end))
        elif wire == BYTES and number in (_SAMPLE_TYPE, _PERIOD_TYPE):
            part = _numbers_of(data, value, end, 2)
            pair = part.get(1, 0), part.get(2, 0)
            if number == _PERIOD_TYPE:
                period_kind = pair
            elif len(kinds) < _MOST_TYPES:
                kinds.append(pair)
        elif number == _COMMENT and len(comments) < 20:
            comments += [value] if wire == NUMBER else numbers([data[value:end]])[0].tolist()
        elif wire == NUMBER:
            single[number] = value
    strings = _Strings(data, spans[_STRING])
    if not kinds or not len(strings):
        raise ProfileError("it has no types of samples or no names: it is no profile, or cut off")
    samples = _Samples(data, spans[_SAMPLE], len(kinds))
    at = signed(single.get(_TIME, 0)) / 1e9
    took = signed(single.get(_DURATION, 0)) / 1e9
    profile = Profile(
        [(strings[a], strings[b]) for a, b in kinds],
        samples.values,
        *samples.stacks(),
        samples.labels,
        strings,
        period_kind=(strings[period_kind[0]], strings[period_kind[1]]),
        period=signed(single.get(_PERIOD, 0)),
        default_kind=strings[single.get(_DEFAULT_TYPE, 0)],
        time=at if 0 < at < 9e9 else None,
        seconds=took if 0 < took < 9e9 else None,
        comments=[strings[number] for number in comments[:20]],
    )
    profile._data = data
    profile._locations = _by_id(data, spans[_LOCATION])
    profile._functions = _by_id(data, spans[_FUNCTION])
    for start, stop in spans[_MAPPING]:
        part = _numbers_of(data, start, stop, 5)
        profile._mappings[part.get(1, 0)] = strings[part.get(5, 0)]
    profile.executable = next((name for name in profile._mappings.values() if name), "")
    if samples.odd:
        profile.warnings.append(f"{samples.odd:,} samples make no sense and were left out")
    return profile


def _by_id(data: bytes, spans: list[tuple[int, int]]) -> dict[int, tuple[int, int]]:
    out: dict[int, tuple[int, int]] = {}
    for start, stop in spans:
        # The number comes first, as a rule.
        for number, wire, value, _ in inner(data, start, stop):
            if number == 1 and wire == NUMBER:
                out.setdefault(value, (start, stop))
                break
    return out


def _numbers_of(data: bytes, start: int, stop: int, most: int) -> dict[int, int]:
    """The numbers of a small message, by field."""
    return {n: value for n, wire, value, _ in inner(data, start, stop) if wire == NUMBER and n <= most}


@dataclass(frozen=True, slots=True)
class Stacks:
    """Distinct stacks: the ids of the locations of each, innermost first."""

    locations: NDArray[np.uint64]
    starts: NDArray[np.intp]  # one entry more than there are stacks

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, stack: int) -> NDArray[np.uint64]:
        return self.locations[self.starts[stack] : self.starts[stack + 1]]


class _Samples:
    """The samples of a profile: two passes, the second one by numpy over all numbers at once."""

    def __init__(self, data: bytes, spans: list[tuple[int, int]], kinds: int) -> None:
        self.labels: list[tuple[bytes, ...]] = []
        self.odd = 0
        self._locations: list[bytes] = []
        values: list[bytes] = []
        seen = 0
        for start, stop in spans:
            where: list[bytes] = []
            what: list[bytes] = []
            labels: list[bytes] = []
            for number, wire, value, end in inner(data, start, stop):
                seen += 1
                if number == 1:
                    # A number by itself is written as in a packed field.
                    where.append(data[value:end] if wire == BYTES else _packed(value))
                elif number == 2:
                    what.append(data[value:end] if wire == BYTES else _packed(value))
                elif number == 3 and wire == BYTES and len(labels) < _MOST_LABELS:
                    labels.append(data[value:end])
            if seen > _MOST_FIELDS:
                raise ProfileError(f"its samples have more than {_MOST_FIELDS:,} parts")
            self._locations.append(b"".join(where))
            values.append(b"".join(what))
            self.labels.append(tuple(labels))
        found, starts = _bounded(values)
        fits = np.diff(starts) == kinds
        self.odd = int((~fits).sum())
        if self.odd:
            keep = np.flatnonzero(fits).tolist()
            self._locations = [self._locations[i] for i in keep]
            self.labels = [self.labels[i] for i in keep]
            found = found[np.repeat(fits, np.diff(starts))]
        self.values = found.view(np.int64).reshape(-1, kinds)

    def stacks(self) -> tuple[NDArray[np.int64], Stacks]:
        """Which stack each sample has, and the distinct ones."""
        known: dict[bytes, int] = {}
        of = np.array([known.setdefault(w, len(known)) for w in self._locations], np.int64)
        return of, Stacks(*_bounded(list(known)))


def _bounded(pieces: list[bytes]) -> tuple[NDArray[np.uint64], NDArray[np.intp]]:
    if sum(map(len, pieces)) > _MOST_NUMBERS:
        raise ProfileError(f"its samples have more than {_MOST_NUMBERS >> 20} MiB of numbers")
    return numbers(pieces)


def _packed(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
