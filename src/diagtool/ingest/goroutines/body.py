"""What follows the header of a goroutine: its frames, who made it, its ancestors.

    main.worker(0xc000014070, {0x4b2f60, 0x3})
            /srv/app/worker.go:31 +0x45 fp=0xc000046f78 sp=0xc000046f20 pc=0x47c1e5
    created by main.serve in goroutine 1
            /srv/app/main.go:12 +0x6a

Frames are pairs of lines: the second is indented and ends in a line number. Anything else that is not known
is counted, and the frames behind it are read all the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from diagtool.golang.goroutines import go_frame
from diagtool.golang.names import function_name, is_machinery
from diagtool.snapshot.model import Frame

__all__ = ["ELIDED", "NO_STACK", "Body", "frame_at", "parse_body"]

#: In the place of frames that the runtime left out; how many differs from one goroutine to the next.
ELIDED = Frame("[frames elided]", "", None, None, "go")

#: Of a goroutine that ran on another thread when the dump was written.
NO_STACK = "goroutine running on other thread; stack unavailable"

#: Frames of a goroutine that are kept; the runtime prints 100, and of each ancestor 50.
MAX_FRAMES = 2000
MAX_LINE = 4096

_FILE = re.compile(
    r"[ \t]+(?P<file>\S[^\n]*?):(?P<line>\d{1,9})"
    r"(?: \+0x[0-9a-f]+)?(?: fp=0x[0-9a-f]+ sp=0x[0-9a-f]+)?(?: pc=0x[0-9a-f]+)?"
)
_NO_FILE = re.compile(r"[ \t]+pc=0x[0-9a-f]+")  # a C function of which the symbolizer knows the name alone
_ARGUMENTS = re.compile(r"\((?:\.\.\.|[0-9a-fx{}., _?]*)\)$")
_CREATED = re.compile(r"created by (?P<name>\S[^\n]*?)(?: in goroutine (?P<goid>\d{1,20}))?$")
_ANCESTOR = re.compile(r"\[originating from goroutine (\d{1,20})\]:?")
_ELIDED = re.compile(r"\.\.\.(?:\d+|additional) frames elided\.\.\.")
_FOREIGN = re.compile(r"non-Go function(?: at pc=0x[0-9a-f]+)?")


@dataclass(slots=True)
class Body:
    """``frames``: innermost first. ``parent``: number of the goroutine that made this one, 0: not told.

    ``unknown``: lines among the frames that mean nothing. ``rest``: index of the line behind the last that
    belongs to the goroutine.
    """

    frames: list[Frame] = field(default_factory=list)
    created_by: Frame | None = None
    parent: int = 0
    available: bool = True
    ancestors: int = 0
    unknown: list[str] = field(default_factory=list)
    rest: int = 0


def parse_body(lines: list[str], *, old: bool = False) -> Body:
    """The goroutine whose header stands before ``lines``, up to an empty line that ends it.

    ``old``: perhaps by a version before 1.22, whose wrappers of go statements have names of closures.
    """
    body = Body()
    pending: list[str] = []  # lines that mean nothing, unless more of the goroutine comes
    at, size = 0, len(lines)
    while at < size:
        line = lines[at][:MAX_LINE].rstrip(" \t|")
        if not line:
            if at or body.frames:
                break
            at += 1
            continue
        used = _take(body, line, lines[at + 1] if at + 1 < size else "")
        if used:
            body.unknown += pending
            pending = []
            body.rest = at + used
        else:
            pending.append(line)
        at += used or 1
    if old:
        _drop_wrapper(body)
    return body


def _drop_wrapper(body: Body) -> None:
    # Only the runtime's own tracebacks, which end in goexit, show them; at the line of the go statement.
    frames, made = body.frames, body.created_by
    if made is None or len(frames) < 3 or frames[-1].function != "runtime.goexit":
        return
    head, found, number = frames[-2].function.rpartition(".func")
    here = (frames[-2].file, frames[-2].line) == (made.file, made.line)
    # A closure that waits by itself has nothing but the runtime's frames within.
    calls = not is_machinery(frames[-3].function)
    if found and number.isdigit() and head == made.function and here and calls:
        del frames[-2]


def _take(body: Body, line: str, following: str) -> int:
    """How many lines were understood: 0, 1 or 2."""
    into = body.frames if not body.ancestors and len(body.frames) < MAX_FRAMES else None
    if line.startswith("created by ") and (made := _CREATED.match(line)):
        place = _FILE.fullmatch(following[:MAX_LINE].rstrip(" \t|"))
        if not body.ancestors:
            body.created_by = frame_at(made["name"], place)
            body.parent = body.parent or int(made["goid"] or 0)
        return 2 if place else 1
    if place := _FILE.fullmatch(following[:MAX_LINE].rstrip(" \t|")):
        if line[0] in " \t" and _FILE.fullmatch(line):
            return 0  # two lines of places: the first has lost its function
        if into is not None:
            into.append(frame_at(line.strip(), place))
        return 2
    if _ELIDED.fullmatch(line):
        if into is not None:
            into.append(ELIDED)
        return 1
    if found := _ANCESTOR.fullmatch(line):
        body.ancestors += 1
        if body.ancestors == 1:
            body.parent = body.parent or int(found[1])
        return 1
    if line.strip() == NO_STACK:
        body.available = False
        return 1
    if _FOREIGN.fullmatch(line) or _NO_FILE.fullmatch(following):
        if into is not None:
            into.append(Frame(line if "pc=" not in line else "non-Go function", "", None, None, "native"))
        return 2 if _NO_FILE.fullmatch(following) else 1
    return 0


def frame_at(text: str, place: re.Match[str] | None) -> Frame:
    """The frame of a function as printed (with arguments or without) at a place."""
    name = _ARGUMENTS.sub("", text)
    file = place["file"] if place else ""
    line = int(place["line"]) if place else None
    # A symbolizer prints names of C without parentheses.
    foreign = name == text and not text.endswith(")") and "." not in text and bool(place)
    return Frame(name, file, line, None, "native") if foreign else go_frame(function_name(name), file, line)
