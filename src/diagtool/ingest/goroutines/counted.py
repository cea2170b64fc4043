"""Goroutine profiles as text (``debug=1``): stacks with counts, without numbers, states and creators.

    goroutine profile: total 79
    3 @ 0x48696a 0x414c9c 0x414897 0x529b5b 0x48d261
    # labels: {"service":"search"}
    #   0x529b5a        main.lookUp.func1+0x1a  /srv/app/channels.go:46

The runtime's own frames are left out of the lines, but not of the addresses (``printStackRecord`` in
runtime/pprof/pprof.go).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from diagtool.golang.goroutines import go_frame
from diagtool.golang.names import function_name
from diagtool.snapshot.model import Frame

__all__ = ["Counted", "Entry"]

_ENTRY = re.compile(r"(\d{1,15}) @((?: 0x[0-9a-f]{1,16})*)[ \t|]*")
_FRAME = re.compile(r"#[ \t]+(0x[0-9a-f]{1,16})(?:[ \t]+(\S.*?)\+0x[0-9a-f]+[ \t]+(\S.*):(\d{1,9}))?[ \t|]*")
_LABELS = re.compile(r"# labels: (\{.*\})[ \t|]*")

_MAX_ENTRIES = 200_000
_MAX_LABELS, _MAX_TEXT = 64, 1000


@dataclass(slots=True)
class Entry:
    """``count`` equal goroutines. ``frames``: innermost first. ``hidden``: addresses before the first."""

    count: int
    addresses: tuple[int, ...]
    frames: list[Frame] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    first: int = 0  # the address that the first line is about


@dataclass(slots=True)
class Counted:
    """One profile. ``name``: ``goroutine`` or ``goroutineleak``."""

    name: str
    entries: list[Entry] = field(default_factory=list)
    unknown: int = 0
    left_out: int = 0
    _done: bool = False

    def take(self, text: bytes) -> int:
        """Read lines that belong to the profile; how many bytes of ``text`` these were."""
        at = 0
        while at < len(text):
            end = text.find(b"\n", at)
            end = len(text) if end < 0 else end
            line = text[at : min(end, at + 16384)].decode("utf-8", "replace").rstrip()
            if line and not self._line(line):
                return at
            at = end + 1
        return len(text)

    def _line(self, line: str) -> bool:
        if found := _ENTRY.fullmatch(line):
            if len(self.entries) >= _MAX_ENTRIES:
                self.left_out += int(found[1])
                return True
            addresses = tuple(int(word, 16) for word in found[2].split()[:1024])
            self.entries.append(Entry(int(found[1]), addresses))
            return True
        if not self.entries:
            return False
        entry = self.entries[-1]
        if found := _FRAME.fullmatch(line):
            entry.first = entry.first or int(found[1], 16)
            if len(entry.frames) < 1024 and found[2]:
                entry.frames.append(go_frame(function_name(found[2]), found[3], int(found[4])))
            return True
        if found := _LABELS.fullmatch(line):
            entry.labels.update(_labels(found[1]))
            return True
        if line.startswith("#"):
            self.unknown += 1
            return True
        return False


def _labels(text: str) -> dict[str, str]:
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    pairs = list(told.items())[:_MAX_LABELS] if isinstance(told, dict) else []
    return {key[:_MAX_TEXT]: value[:_MAX_TEXT] for key, value in pairs if isinstance(value, str)}
