"""Reads goroutines from text, and sees what stands between them.

Equal goroutines differ in numbers alone: addresses in arguments, offsets, the number of their creator. The
quick way takes these out of the bytes of a goroutine and looks the rest up; what is met for the first time
goes the careful way (:mod:`body`), once. Both give the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import repeat

from diagtool.ingest.goroutines.body import parse_body
from diagtool.ingest.goroutines.columns import Columns, Kind
from diagtool.ingest.goroutines.counted import Counted
from diagtool.ingest.goroutines.header import HEADER, MAX_GOID, parse_header
from diagtool.ingest.goroutines.races import Races

__all__ = ["Happened", "Parser"]

#: The header of most goroutines, behind "goroutine ".
_SIMPLE = re.compile(rb"(\d{1,18}) \[([^\]\n{,]{1,200})(?:, (\d{1,9}) minutes)?\]:\n")
_HEX = b"0123456789abcdef"
_IN = b" in goroutine "

#: Bytes of a goroutine that are looked up, and how many are remembered, by number and in sum.
_MAX_QUICK, _MAX_KNOWN, _MAX_BYTES = 32 << 10, 100_000, 64 << 20
#: Bytes of a goroutine that is not complete at the end of a piece and is waited for.
_MAX_HELD = 1 << 20

_MARKS = re.compile(
    rb"^(?:(?P<fatal>panic: [^\n]*|fatal error: [^\n]*|SIG[A-Z0-9]{2,8}: [^\n]*)"
    rb"|(?P<signal>\[signal [^\n]*)"
    rb"|(?P<thread>-----)$"
    rb"|(?P<race>WARNING: DATA RACE)$"
    rb"|(?P<profile>(?:goroutine|goroutineleak) profile: total \d+)$)",
    re.MULTILINE,
)


@dataclass(slots=True)
class Happened:
    """Why a dump was written: ``what`` the runtime said; ``row``: the first one behind it."""

    what: str
    row: int


@dataclass(slots=True)
class Parser:
    """Takes clean text (:mod:`text`) piece by piece. ``quick``: False leaves out the quick way (tests)."""

    quick: bool = True
    columns: Columns = field(default_factory=Columns)
    happened: list[Happened] = field(default_factory=list)
    counted: list[Counted] = field(default_factory=list)
    races: Races = field(default_factory=Races)
    unknown: int = 0
    example: str = ""
    _held: bytes | None = None
    _known: dict[bytes, dict[bytes, int]] = field(default_factory=dict)
    _bytes: int = 0
    _entries: int = 0
    _away: dict[int, int] = field(default_factory=dict)
    _other_thread: bool = False
    _inside: Counted | None = None

    def feed(self, text: bytes) -> None:
        """Read ``text``, which is whole lines."""
        if self._held is not None:
            text = b"goroutine " + self._held + text
            self._held = None
        first, *pieces = (b"\n" + text).split(b"\ngoroutine ")
        self._outside(first)
        last = pieces.pop() if pieces else None
        for piece in pieces:
            self._goroutine(piece + b"\n")
        if last is not None:
            if len(last) < _MAX_HELD:
                self._held = last
            else:
                self._goroutine(last)

    def close(self) -> None:
        """Nothing follows."""
        if self._held is not None:
            last, self._held = self._held, None
            self._goroutine(last)
        self.races.close()

    def _goroutine(self, piece: bytes) -> None:
        header = _SIMPLE.match(piece) if self.quick else None
        if header is None:
            self._carefully(piece)
            return
        body = piece[header.end() :]
        parent = 0
        at = body.rfind(_IN)
        if at > 0:
            end = body.find(b"\n", at)
            number = body[at + len(_IN) : end]
            if not number.isdigit() or len(number) > 18:
                self._carefully(piece)
                return
            parent = int(number)
            body = body[:at] + body[end:]
        first, *words = body.split(b"0x")
        key = b"".join((first, *map(bytes.lstrip, words, repeat(_HEX))))
        known = self._known.get(header[2])
        kind = None if known is None else known.get(key)
        goid = int(header[1])
        if kind is None or not goid or self._other_thread:
            self._carefully(piece, (header[2], key))
            return
        self.columns.add(goid, kind, parent, float(header[3] or 0))

    def _carefully(self, piece: bytes, key: tuple[bytes, bytes] | None = None) -> None:
        line, _, text = piece.partition(b"\n")
        header = HEADER.fullmatch(b"goroutine " + line)
        goid = int(header[1]) if header else 0
        if header is None or goid > MAX_GOID:
            self._outside(b"goroutine " + piece)
            return
        self._inside = None
        told = parse_header(header[2], header[3] or b"")
        lines = text.split(b"\n")
        body = parse_body([part.decode("utf-8", "replace") for part in lines], old=b" gp=0x" not in line)
        if body.unknown:
            self.unknown += len(body.unknown)
            self.example = self.example or body.unknown[0].strip()
        rest = b"\n".join(lines[body.rest :])
        if goid:
            kind = Kind(told.reason, tuple(body.frames), body.created_by, told.leaked, body.available)
            number = self.columns.number(kind)
            parent = body.parent if body.parent <= MAX_GOID else 0
            row = self._row(goid, number, parent, float(told.minutes), body.available)
            self.columns.locked += told.locked
            if told.labels:
                self.columns.label(row, told.labels)
            plain = body.available and not body.unknown and not body.ancestors
            if key is not None and plain and not rest.strip():
                self._remember(*key, number)
        else:
            self.columns.idle_threads += 1
        if rest:
            self._outside(rest)

    def _row(self, goid: int, kind: int, parent: int, minutes: float, available: bool) -> int:
        columns = self.columns
        if self._other_thread and goid in self._away:
            row = self._away.pop(goid)  # now its own thread prints it
            columns.kind[row] = kind
            columns.parent[row] = parent or columns.parent[row]
            return row
        row = columns.add(goid, kind, parent, minutes)
        if not available and len(self._away) < _MAX_KNOWN:
            self._away[goid] = row
        return row

    def _remember(self, reason: bytes, key: bytes, number: int) -> None:
        size = len(key)
        if size > _MAX_QUICK:
            return
        if self._entries >= _MAX_KNOWN or self._bytes + size > _MAX_BYTES:
            self._known.clear()
            self._bytes = self._entries = 0
        self._known.setdefault(reason, {})[key] = number
        self._entries += 1
        self._bytes += size

    def _outside(self, text: bytes) -> None:
        """What is no goroutine: why the runtime wrote them, profiles as text, races; other lines of a log."""
        if not text.strip():
            return
        at = 0
        while at < len(text):
            if self._inside is not None:
                used = self._inside.take(text[at:])
                at += used
                if at < len(text):
                    self._inside = None
                continue
            if self.races.open:
                at += self.races.take(text[at:])
                continue
            found = _MARKS.search(text, at)
            if found is None:
                return
            self._mark(found)
            end = text.find(b"\n", found.end())
            at = len(text) if end < 0 else end + 1

    def _mark(self, found: re.Match[bytes]) -> None:
        said = found[0][:500].decode("utf-8", "replace")
        if found["race"]:
            self.races.begin()
        elif found["profile"]:
            self._inside = Counted(said.partition(" ")[0])
            self.counted.append(self._inside)
        elif found["thread"]:
            self._other_thread = True
            return
        elif found["signal"] and self.happened and self.happened[-1].row == len(self.columns.goid):
            self.happened[-1].what += " " + said
            return
        else:
            self.happened.append(Happened(said, len(self.columns.goid)))
            self._away.clear()
        self._other_thread = False
