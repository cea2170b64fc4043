"""Where objects of a type were allocated, as far as a snapshot tells it: for the words of findings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from diagtool.golang.names import package_of
from diagtool.leaks.own import is_own
from diagtool.snapshot.model import Frame, Snapshot

__all__ = ["allocated_at", "recorded_at"]

_MOST_ROWS = 50_000
_LEAST_RECORDED = 10  # blocks whose allocation was seen, from which on it says something of all
_MOST_FRAMES = 100


def allocated_at(snapshot: Snapshot, types: Sequence[str]) -> str | None:
    """``cache.py:41``: where most bytes of objects of ``types`` were allocated, None where nobody knows.

    Of a place in a library it is the innermost line of the program's own that led there.
    """
    sums: dict[str, int] = {}
    for row in snapshot.tables.get("allocation_sites", ())[:_MOST_ROWS]:
        size = sum(_bytes(row, types)) if isinstance(row, dict) else 0
        place = _place(row) if size else None
        if place is not None:
            sums[place] = sums.get(place, 0) + size
    return max(sums, key=lambda place: sums[place], default=None)


def _bytes(row: dict[str, Any], types: Sequence[str]) -> Iterable[int]:
    told = row.get("types")
    for one in told if isinstance(told, list) else ():
        if isinstance(one, dict) and one.get("type") in types and isinstance(one.get("bytes"), int):
            yield max(one["bytes"], 0)


def _place(row: dict[str, Any]) -> str | None:
    told = row.get("frames")
    go = row.get("language") == "go"
    frames = [
        Frame("", f[0], f[1], *((package_of(str(f[-1])) or None, "go") if go else ()))
        for f in (told if isinstance(told, list) else ())
        if isinstance(f, list) and len(f) >= 2 and isinstance(f[0], str) and isinstance(f[1], int)
    ]
    best = next((f for f in frames if is_own(f)), frames[0] if frames else None)
    return None if best is None else f"{best.file}:{best.line}"


def recorded_at(row: dict[str, Any], count: int) -> tuple[tuple[Frame, ...] | None, str | None]:
    """Where the blocks of a row of ``native_lost`` were allocated: (frames, a sentence), None where unknown.

    The frames are those of the place of most of them, if it is that of half of those that were seen.
    """
    recorded, told = row.get("recorded"), row.get("allocated")
    if not isinstance(recorded, int) or isinstance(recorded, bool) or not isinstance(told, list):
        return None, None
    sites = [site for site in map(_site, told[:10]) if site is not None]
    if not sites or recorded < min(_LEAST_RECORDED, count):
        return None, None
    said = [f"{number:,} at {_words(frames, native)}" for number, frames, native in sites]
    seen = sum(number for number, _, _ in sites)
    if recorded > seen:
        said.append(f"{recorded - seen:,} elsewhere")
    number, frames, native = sites[0]
    most = (*frames, *(() if frames else native))
    where = f"all {said[0].partition(' ')[2]}" if len(said) == 1 else ", ".join(said)
    text = f"memray saw {recorded:,} of them being allocated, {where}"
    return (most if 2 * number >= recorded else None), text


def _words(frames: Sequence[Frame], native: Sequence[Frame]) -> str:
    best = next((f for f in frames if is_own(f)), frames[0] if frames else None)
    c = next((f for f in native if f.line), None)
    said = [f"{f.file.rpartition('/')[2]}:{f.line} in {f.function}" for f in (best, c) if f is not None]
    return ", by ".join(said) or "a place without a name"


def _site(told: Any) -> tuple[int, tuple[Frame, ...], tuple[Frame, ...]] | None:
    if not isinstance(told, dict) or not isinstance(told.get("count"), int):
        return None
    return told["count"], _frames(told.get("frames"), "python"), _frames(told.get("native"), "native")


def _frames(told: Any, language: str) -> tuple[Frame, ...]:
    return tuple(
        Frame(f[2], f[0], f[1], language=language)
        for f in (told[:_MOST_FRAMES] if isinstance(told, list) else ())
        if isinstance(f, list) and len(f) == 3 and isinstance(f[0], str) and isinstance(f[2], str)
        if isinstance(f[1], int) and not isinstance(f[1], bool)
    )
