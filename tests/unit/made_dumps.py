"""Goroutine dumps that were made up: text as the runtime writes it, and what is in it."""

from __future__ import annotations

from pathlib import Path

from diagtool.ingest import goroutines
from diagtool.ingest.goroutines.dumps import snapshots
from diagtool.ingest.goroutines.parser import Parser
from diagtool.snapshot.model import Snapshot, Stack

DATA = Path(__file__).parents[1] / "data" / "go"
MINORS = sorted((p.name for p in DATA.iterdir()), key=lambda name: int(name.partition(".")[2]))

BODY = "main.work(0xc00001, {0x4b2f60, 0x3})\n\t/srv/app/work.go:31 +0x45\n"
MADE = "created by main.serve in goroutine 1\n\t/srv/app/main.go:12 +0x6a\n"


def goroutine(goid: int, bracket: str = "chan receive", body: str = BODY, made: str = MADE) -> str:
    return f"goroutine {goid} [{bracket}]:\n{body}{made}\n"


def parsed(text: str | bytes, size: int = 0, *, quick: bool = True) -> Parser:
    """``text`` read in pieces of about ``size`` bytes, each of whole lines."""
    data = text.encode() if isinstance(text, str) else text
    parser = Parser(quick=quick)
    piece = b"" if size else data
    for line in data.splitlines(keepends=True) if size else ():
        piece += line
        if len(piece) >= size:
            parser.feed(piece)
            piece = b""
    parser.feed(piece if piece.endswith(b"\n") else piece + b"\n")
    parser.close()
    return parser


def read(text: str | bytes, size: int = 0) -> list[Snapshot]:
    return snapshots(parsed(text, size))


def one(text: str | bytes) -> Stack:
    (snap,) = read(text)
    assert len(snap.stacks) == 1
    return snap.stack(0)


def rows(snap: Snapshot) -> list[tuple[object, ...]]:
    """What is known of each goroutine, in their order."""
    return [
        (s.address, s.parent, s.state, s.wait, tuple(s.frames), tuple(s.created_by), s.wait_seconds, s.stuck)
        for s in snap
    ]


def of_file(path: Path) -> list[Snapshot]:
    return goroutines.read(str(path))
