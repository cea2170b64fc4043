"""Writes execution traces of Go, of the new wire: for what no real program does, or not in this order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["batch", "leb", "stacks", "strings", "sync", "trace"]

#: Types of events that tests use, by name.
TYPES = {
    "ProcStart": 10,
    "GoCreate": 14,
    "GoStart": 16,
    "GoDestroy": 17,
    "GoStop": 19,
    "GoBlock": 20,
    "GoUnblock": 21,
    "GoSyscallBegin": 22,
    "GoSyscallEnd": 23,
    "GoSyscallEndBlocked": 24,
    "GoStatus": 25,
    "GoSwitch": 45,
    "GoCreateBlocked": 47,
    "GoStatusStack": 48,
}

Event = tuple[str, Sequence[int]]


def leb(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _batch(generation: int, thread: int, at: int, data: bytes) -> bytes:
    return b"\x01" + leb(generation) + leb(thread) + leb(at) + leb(len(data)) + data


def events(of: Iterable[Event]) -> bytes:
    return b"".join(bytes([TYPES[name]]) + b"".join(map(leb, arguments)) for name, arguments in of)


def batch(of: Iterable[Event], *, thread: int = 1, at: int = 1000, generation: int = 1) -> bytes:
    """Events of one thread: each a name and its arguments, the time since the one before first."""
    return _batch(generation, thread, at, events(of))


def strings(table: dict[int, str], generation: int = 1) -> bytes:
    data = b"".join(b"\x05" + leb(i) + leb(len(t.encode())) + t.encode() for i, t in table.items())
    return _batch(generation, 2**32, 0, b"\x04" + data)


def stacks(table: dict[int, list[tuple[int, int, int]]], generation: int = 1) -> bytes:
    """Stacks by number: (function, file, line) with numbers of strings."""
    data = b""
    for number, frames in table.items():
        data += b"\x03" + leb(number) + leb(len(frames))
        data += b"".join(leb(v) for f, n, line in frames for v in (0x1000 + line, f, n, line))
    return _batch(generation, 2**32, 0, b"\x02" + data)


def sync(per_second: int = 1000, generation: int = 1) -> bytes:
    return _batch(generation, 2**32, 0, b"\x32\x08" + leb(per_second))


def trace(*batches: bytes, version: int = 26) -> bytes:
    return (b"go 1.%d trace" % version).ljust(16, b"\0") + b"".join(batches)
