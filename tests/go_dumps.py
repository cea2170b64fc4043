"""Goroutine dumps of the runtime itself, as the truth that decoded memory is held against."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from diagtool.golang.names import function_name
from diagtool.snapshot.model import Frame, Snapshot, Stack

__all__ = ["ELIDED", "Dumped", "differences", "parse_dump"]

Place = tuple[str, str, int]
#: In the place of frames that the runtime left out.
ELIDED: Place = ("…", "", 0)

_HEADER = re.compile(r"goroutine (\d+)[^\[]*\[([^\]]*)\]")
_PLACE = re.compile(r"\t(.*):(\d+)")
_CREATED = re.compile(r"created by (.*?)(?: in goroutine (\d+))?$")
_ARGUMENTS = re.compile(r"\([^()]*(\([^()]*\))?[^()]*\)$")
_SEMACQUIRE = "semacquire"  # what 1.19 to 1.23 say of locks that diagtool names


@dataclass
class Dumped:
    """A goroutine of a dump, frames innermost first."""

    goid: int
    state: str
    frames: list[Place]
    created: Place | None
    parent: int
    locked: bool


def parse_dump(text: str) -> dict[int, Dumped]:
    """All goroutines of a dump that nobody has touched (debug=2, runtime.Stack), by number."""
    out: dict[int, Dumped] = {}
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line]
        header = _HEADER.match(lines[0]) if lines else None
        if header is None:
            continue
        words = header[2].split(", ")
        found = Dumped(int(header[1]), words[0], [], None, 0, "locked to thread" in words)
        at = 1
        while at < len(lines):
            line = lines[at]
            place = _PLACE.match(lines[at + 1]) if at + 1 < len(lines) else None
            created = _CREATED.match(line)
            if "frames elided" in line or place is None:
                found.frames.append(ELIDED)
                at += 1
                continue
            where = place[1], int(place[2])
            if created:
                found.created, found.parent = (created[1], *where), int(created[2] or 0)
            else:
                found.frames.append((function_name(_ARGUMENTS.sub("", line)), *where))
            at += 2
        out[found.goid] = found
    return out


def differences(snapshot: Snapshot, dump: dict[int, Dumped]) -> list[str]:
    """What a snapshot says otherwise than the dump of the same goroutines; all but the one that wrote it."""
    read = {s.address: s for s in snapshot if s.kind == "goroutine"}
    out = []
    for goid, told in dump.items():
        if told.state == "running":
            continue
        stack = read.get(goid)
        if stack is None:
            out.append(f"goroutine {goid} [{told.state}] was not read")
            continue
        out += [f"goroutine {goid} [{told.state}]: {text}" for text in _differences(stack, told)]
    return out


def _differences(stack: Stack, told: Dumped) -> list[str]:
    out = []
    frames = [_place(f) for f in stack.merged or stack.frames if _is_printed(f)]
    if not _same(frames, told.frames):
        first = next((p for p in zip(frames, told.frames, strict=False) if p[0] != p[1]), None)
        out.append(f"{len(frames)} frames for {len(told.frames)}, first difference {first}")
    created = _place(stack.created_by[0]) if stack.created_by else None
    if created != told.created:
        out.append(f"created by {created}, not {told.created}")
    if (stack.parent or 0) != told.parent:
        out.append(f"parent {stack.parent}, not {told.parent}")
    if stack.wait != told.state and told.state != _SEMACQUIRE:
        out.append(f"waits in {stack.wait}")
    if told.locked and not stack.thread:
        out.append("locked to a thread that is not known")
    return out


def _same(frames: Sequence[Place], told: Sequence[Place]) -> bool:
    if ELIDED in told:
        at = list(told).index(ELIDED)
        rest = len(told) - at - 1
        return frames[:at] == list(told[:at]) and (not rest or frames[-rest:] == list(told[-rest:]))
    # Up to 1.20 frames beyond the hundredth are left out without a word.
    return list(told) == (frames[: len(told)] if len(told) > 90 else frames)


def _place(frame: Frame) -> Place:
    return frame.function, frame.file, frame.line or 0


def _is_printed(frame: Frame) -> bool:
    package, _, name = frame.function.partition(".")
    return package != "runtime" or name[:1].isupper()
