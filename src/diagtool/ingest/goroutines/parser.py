"""Reads goroutines from text, and sees what stands between them.

Equal goroutines differ in numbers alone: addresses in arguments, offsets, the number of their creator. The
quick way takes these out of the bytes of a goroutine and looks the rest up; what is met for the first time
goes the careful way (:mod:`body`), once. Both give the same.
"""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass, field
from itertools import repeat

from diagtool.ingest.goroutines.body import parse_body
from diagtool.ingest.goroutines.columns import Columns, Kind
from diagtool.ingest.goroutines.counted import Counted
from diagtool.ingest.goroutines.header import HEADER, MAX_GOID, parse_header
from diagtool.ingest.goroutines.races import Races
from diagtool.ingest.goroutines.text import Cleaner

__all__ = ["Happened", "Parser"]

_HEX = b"0123456789abcdef"
_IN = b" in goroutine "

#: Bytes of a goroutine that are looked up, and how many are remembered, by number and in sum.
_MAX_QUICK, _MAX_KNOWN, _MAX_BYTES = 32 << 10, 100_000, 32 << 20
_MAX_STATES = 20_000
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


#: Ends of goroutines that are none: a header, a function without its place, a place without its line.
_CUT = re.compile(
    rb"\d{1,20} \[[^\]\n]*|[^\n]*\n(?:.*\n)?(?:[\w*%-]+[./(][^\s]*|created by [^\n]*|\t[^\s:]*:?)",
    re.DOTALL,
)


def _is_cut(last: bytes) -> bool:
    text = last.partition(b"\n\n")[0].rstrip(b"\n")
    return len(text) <= _MAX_HELD and _CUT.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class _State:
    """What the bracket of a header says, and what is behind it."""

    reason: str
    minutes: float
    locked: bool
    labels: tuple[tuple[str, str], ...]
    kinds: dict[bytes, int]  # by what does not differ between equal goroutines
    traced: dict[bytes, int]


@dataclass(slots=True)
class Happened:
    """Why a dump was written: ``what`` the runtime said; ``row``: the first one behind it."""

    what: str
    row: int


@dataclass(slots=True)
class Parser:
    """Takes text piece by piece. ``quick``: False leaves out the quick way (tests)."""

    quick: bool = True
    columns: Columns = field(default_factory=Columns)
    happened: list[Happened] = field(default_factory=list)
    counted: list[Counted] = field(default_factory=list)
    races: Races = field(default_factory=Races)
    gaps: array[int] = field(default_factory=lambda: array("q"))  # rows with other text before them
    unknown: int = 0
    example: str = ""
    cut: bool = False  # the text ends within a goroutine
    _cleaner: Cleaner = field(default_factory=Cleaner)
    _held: bytes | None = None
    _states: dict[bytes, _State] = field(default_factory=dict)
    _known: dict[str, dict[bytes, int]] = field(default_factory=dict)
    _bytes: int = 0
    _entries: int = 0
    _away: dict[int, int] = field(default_factory=dict)
    _seen: dict[int, int] | None = None
    _start: int = 0
    _other_thread: bool = False
    _sent: bool = False
    _inside: Counted | None = None

    def feed(self, chunk: bytes) -> None:
        """Read ``chunk``, which is whole lines."""
        chunk = self._cleaner.unpacked(chunk)
        if self._cleaner.active:
            chunk = self._cleaner.stripped(chunk)
        first, *pieces = self._split(chunk)
        if b"goroutine " in first and not self._cleaner.active:
            chunk = self._cleaner.stripped(chunk)
            first, *pieces = self._split(chunk)
        if self._held is not None:
            first, self._held = self._held + first, None
            pieces.insert(0, first)
        else:
            self._outside(first)
        last = pieces.pop() if pieces else None
        self._goroutines(pieces)
        if last is not None:
            if len(last) < _MAX_HELD:
                self._held = last
            else:
                self._goroutines([last])

    def close(self) -> None:
        """Nothing follows."""
        if self._held is not None:
            last, self._held = self._held, None
            self.cut = _is_cut(last)
            self._goroutines([last])
        self.races.close()

    def _split(self, text: bytes) -> list[bytes]:
        """What is before the first header, and the goroutines, each without the word and its last newline.

        What is before it begins with a newline, unless there is nothing.
        """
        return (b"\n" + text.removesuffix(b"\n")).split(b"\ngoroutine ")

    def _goroutines(self, pieces: list[bytes]) -> None:
        states = self._states
        add = self.columns.add
        quick = self.quick
        for piece in pieces:
            head, _, body = piece.partition(b":\n")
            number, _, bracket = head.partition(b" [")
            state = states.get(bracket) or self._state(head, bracket)
            if state is None or self._other_thread:
                self._carefully(piece)
                continue
            kinds = state.kinds
            if not number.isdigit():
                number, _, _ = number.partition(b" gp=0x")
                kinds = state.traced
            if not number.isdigit() or len(number) > 18:
                self._carefully(piece)
                continue
            # The number of the creator is behind all arguments: what is behind it does not differ.
            front, found, back = body.rpartition(_IN)
            if found:
                parent, _, rest = back.partition(b"\n")
                if not parent.isdigit() or len(parent) > 18:
                    self._carefully(piece)
                    continue
                words = front.split(b"0x")
                words[0] += rest + b"\0"
            else:
                parent = b"0"
                words = back.split(b"0x")
            start = words[0]
            words[0] = b""
            key = start + b"".join(map(bytes.lstrip, words, repeat(_HEX)))
            kind = kinds.get(key) if quick else None
            goid = int(number)
            if kind is None or not goid:
                self._carefully(piece, key, kinds)
                continue
            row = add(goid, kind, int(parent), state.minutes)
            if state.labels:
                self.columns.label(row, state.labels)
            self.columns.locked += state.locked

    def _carefully(self, piece: bytes, key: bytes = b"", kinds: dict[bytes, int] | None = None) -> None:
        if not self._cleaner.active and b"goroutine " in piece:
            cleaned = self._cleaner.stripped(piece)
            if self._cleaner.active:
                first, *more = cleaned.split(b"\ngoroutine ")
                self._goroutines([first, *more])
                return
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
            if kinds is not None and plain and not rest.strip():
                self._remember(kinds, key, number)
        else:
            self.columns.idle_threads += 1
        if rest:
            self._outside(rest)

    def _state(self, head: bytes, bracket: bytes) -> _State | None:
        """What a header says that was not met yet; None where it is none."""
        header = HEADER.fullmatch(b"goroutine " + head + b":")
        if header is None:
            return None
        told = parse_header(header[2], header[3] or b"")
        if len(self._states) > _MAX_STATES:
            self._states.clear()
        kinds = self._known.setdefault(told.reason, {})
        # The runtime's own tracebacks from 1.22 on, which have gp=: wrappers have names of their own there.
        traced = self._known.setdefault(f"{told.reason} gp", {})
        state = _State(told.reason, float(told.minutes), told.locked, told.labels, kinds, traced)
        if len(bracket) < 2000:
            self._states[bracket] = state
        return state

    def _row(self, goid: int, kind: int, parent: int, minutes: float, available: bool) -> int:
        columns = self.columns
        if self._other_thread:
            if goid in self._away:
                row = self._away.pop(goid)  # now its own thread prints it
                columns.kind[row] = kind
                columns.parent[row] = parent or columns.parent[row]
                return row
            if self._seen is None:
                self._seen = {number: row for row, number in enumerate(columns.goid) if row >= self._start}
            if goid in self._seen:
                return self._seen[goid]
        row = columns.add(goid, kind, parent, minutes)
        if not available and len(self._away) < _MAX_KNOWN:
            self._away[goid] = row
        return row

    def _remember(self, kinds: dict[bytes, int], key: bytes, number: int) -> None:
        size = len(key)
        if size > _MAX_QUICK:
            return
        if self._entries >= _MAX_KNOWN or self._bytes + size > _MAX_BYTES:
            self._states.clear()
            for known in self._known.values():
                known.clear()
            self._bytes = self._entries = 0
        kinds[key] = number
        self._entries += 1
        self._bytes += size

    def _outside(self, text: bytes) -> None:
        """What is no goroutine: why the runtime wrote them, profiles as text, races; other lines of a log."""
        if not text.strip(b" \t\r\n|"):
            return
        row = len(self.columns.goid)
        if not self._other_thread and (not self.gaps or self.gaps[-1] != row):
            self.gaps.append(row)
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
            # What the next thread prints begins with the signal that it was sent.
            self._other_thread = self._sent = True
            return
        elif found["fatal"] and self._sent:
            self._sent = False
            return
        elif found["signal"] and self.happened and self.happened[-1].row == len(self.columns.goid):
            self.happened[-1].what += " " + said
            return
        else:
            self._start = len(self.columns.goid)
            self.happened.append(Happened(said, self._start))
            self._away.clear()
            self._seen = None
        self._other_thread = self._sent = False
