"""Reports of Go's race detector: which goroutines touched one address, and where these were made.

WARNING: DATA RACE
Write at 0x00c00009c018 by goroutine 7:
  main.main.func1()
      /srv/app/main.go:10 +0x44

Previous write at 0x00c00009c018 by main goroutine:
  …
Goroutine 7 (running) created at:
  …
==================
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from diagtool.ingest.goroutines.body import parse_body
from diagtool.snapshot.model import Frame

__all__ = ["Race", "Races", "Who"]

_ACCESS = re.compile(
    r"(?P<previous>Previous )?(?P<what>(?:[Aa]tomic )?(?:[Rr]ead|[Ww]rite)|\[[^\]]*\])"
    r" at (?P<at>0x[0-9a-fA-F]{1,16})"
    r" by (?:(?P<main>main goroutine)|goroutine (?P<goid>\d{1,18}))(?: \[[^\]]*\])?:"
)
_MADE = re.compile(r"Goroutine (?P<goid>\d{1,18}) \((?P<state>running|finished)\) created at:")
_END = "=================="
_MAX_RACES = 1000
_MAX_LINES = 2000


@dataclass(slots=True)
class Who:
    """A goroutine in a report. ``does``: ``write``, ``previous read`` …; ``frames``: innermost first."""

    goid: int
    does: str = ""
    address: int = 0
    frames: list[Frame] = field(default_factory=list)
    state: str = "running"
    made: list[Frame] = field(default_factory=list)


@dataclass(slots=True)
class Race:
    """One report."""

    who: list[Who] = field(default_factory=list)


@dataclass(slots=True)
class Races:
    """All reports of a text, each once: a race that happens again is counted. ``open``: within one."""

    found: list[Race] = field(default_factory=list)
    counts: dict[tuple[Any, ...], int] = field(default_factory=dict)
    open: bool = False
    left_out: int = 0
    _lines: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """A report begins."""
        self.close()
        self.open = True

    def take(self, text: bytes) -> int:
        """Lines of the report; how many bytes of ``text`` these were."""
        at = 0
        while at < len(text):
            end = text.find(b"\n", at)
            end = len(text) if end < 0 else end
            line = text[at : min(end, at + 4096)].decode("utf-8", "replace").rstrip()
            at = end + 1
            self._lines.append(line)
            if line == _END or len(self._lines) > _MAX_LINES:
                self.close()
                break
        return min(at, len(text))

    def close(self) -> None:
        """The report ends."""
        if self.open:
            self._add(_parsed(self._lines))
        self._lines = []
        self.open = False

    def _add(self, race: Race) -> None:
        if not race.who:
            return
        key = tuple((w.does, tuple(w.frames)) for w in race.who)
        if key not in self.counts and len(self.counts) >= _MAX_RACES:
            self.left_out += 1
            return
        if key not in self.counts:
            self.found.append(race)
        self.counts[key] = self.counts.get(key, 0) + 1


def _parsed(lines: list[str]) -> Race:
    race = Race()
    at = 0
    while at < len(lines):
        line = lines[at].strip()
        at += 1
        access, made = _ACCESS.fullmatch(line), _MADE.fullmatch(line)
        if not access and not made:
            continue
        body = parse_body([part[2:] if part.startswith("  ") else part for part in lines[at:]])
        at += body.rest
        if access:
            does = f"{'previous ' if access['previous'] else ''}{access['what'].lower()}"
            goid = 1 if access["main"] else int(access["goid"])
            race.who.append(Who(goid, does, int(access["at"], 16), body.frames))
        elif made:
            for who in race.who:
                if who.goid == int(made["goid"]):
                    who.state, who.made = made["state"], body.frames
    return race
