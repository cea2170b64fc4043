"""Profiles in pprof's format, written for tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

GO = Path(__file__).resolve().parents[1] / "data" / "go"

#: Versions of which there are profiles.
MINORS = ("1.19", "1.21", "1.22", "1.24", "1.26", "1.27")


def recorded(minor: str, name: str) -> Path:
    """A file of tools/make_go_evidence.py."""
    return GO / minor / f"profiles-{name}"


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    """A field of a message: a number, or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


#: function, file, line
Where = tuple[str, str, int]
#: A location: frames that were inlined into each other, innermost first.
Location = Sequence[Where]


def profile(
    kinds: Sequence[tuple[str, str]],
    samples: Iterable[tuple[Sequence[int], Sequence[Location], Mapping[str, str | int]]],
    *,
    packed: bool = True,
    time: int = 1_700_000_000,
    names: bool = True,
) -> bytes:
    """A profile of ``samples``: (values, locations innermost first, labels)."""
    strings: dict[str, int] = {"": 0}
    locations: dict[tuple[Where, ...], int] = {}
    functions: dict[tuple[str, str], int] = {}

    def text(value: str) -> int:
        return strings.setdefault(value, len(strings))

    def many(number: int, values: Iterable[int]) -> bytes:
        if packed:
            return field(number, b"".join(map(varint, values)))
        return b"".join(field(number, value) for value in values)

    out = bytearray()
    for kind, unit in kinds:
        out += field(1, field(1, text(kind)) + field(2, text(unit)))
    for values, stack, labels in samples:
        ids = [locations.setdefault(tuple(one), len(locations) + 1) for one in stack]
        sample = many(1, ids) + many(2, values)
        for key, value in labels.items():
            told = field(2, text(value)) if isinstance(value, str) else field(3, value)
            sample += field(3, field(1, text(key)) + told)
        out += field(2, sample)
    for one, number in locations.items():
        lines = b""
        for function, file, line in one:
            of = functions.setdefault((function, file), len(functions) + 1)
            lines += field(4, field(1, of) + field(2, line))
        out += field(4, field(1, number) + lines)
    for (function, file), number in functions.items():
        out += field(5, field(1, number) + field(2, text(function)) + field(4, text(file)))
    for string in strings if names else ():
        out += field(6, string.encode())
    return bytes(out + field(9, time * 10**9))


PARK = [("runtime.gopark", "runtime/proc.go", 1)]
RECEIVE = [PARK, [("runtime.chanrecv", "runtime/chan.go", 2)], [("runtime.chanrecv1", "runtime/chan.go", 3)]]


def waiting(count: int, function: str = "main.wait", labels: Mapping[str, str | int] | None = None) -> tuple:
    """A sample of goroutines that receive in ``function``."""
    return [count], [*RECEIVE, [(function, "/srv/main.go", 7)]], labels or {}


def goroutines(*samples: tuple, kind: str = "goroutine", **how: object) -> bytes:
    """A goroutine profile."""
    return profile([(kind, "count")], samples, **how)  # type: ignore[arg-type]
