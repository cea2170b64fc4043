"""Where something was made and where it waits: places in source, cheap to note and spelled out later.

While a test runs only ``(code object, offset)`` pairs are kept, no frames, so that no local variable lives
longer because somebody looked. Lines and names are found when something is reported.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

#: Frames that an origin keeps: enough to get from a library out into the program.
DEPTH = 16
#: Frames of a waiting stack that are shown.
SHOWN = 12

#: Innermost first.
Origin = tuple[tuple[CodeType, int], ...]

_STDLIB = os.path.dirname(os.__file__) + os.sep
_OURS = os.path.dirname(__file__) + os.sep
_MACHINERY = ("_pytest", "pluggy", "pytest_asyncio", "anyio/pytest_plugin.py", "xdist", "execnet")


@dataclass(frozen=True, slots=True)
class Site:
    """One frame: ``file`` as the code object has it, ``line`` from 1 (0: unknown), ``function``."""

    file: str
    line: int
    function: str

    @property
    def own(self) -> bool:
        """Neither the standard library, nor installed, nor made by a program that makes code."""
        return is_own(self.file)

    def __str__(self) -> str:
        return f"{self.function}  {shown(self.file)}:{self.line}"


def is_own(file: str) -> bool:
    """Whether this file is of the program and its tests."""
    if file.startswith(("<", _STDLIB, _OURS)):
        return False
    return "site-packages" not in file and "dist-packages" not in file


def shown(file: str) -> str:
    """A path as a person wants it: relative to where they are, or to where libraries are."""
    here = os.getcwd() + os.sep
    for folder in (here, _STDLIB + "site-packages" + os.sep, _STDLIB):
        if file.startswith(folder):
            return file[len(folder) :]
    _, found, rest = file.rpartition(f"{os.sep}site-packages{os.sep}")
    return rest if found else file


def here(skip: int) -> Origin:
    """The callers' places, without the innermost ``skip`` frames (1: the function that calls this)."""
    frame: FrameType | None = sys._getframe(skip + 1)
    out = []
    first, second, third = _bottoms
    for _ in range(DEPTH):
        if frame is None:
            break
        code = frame.f_code
        if code is first or code is second or code is third:
            break
        out.append((code, frame.f_lasti))
        frame = frame.f_back
    return tuple(out)


#: Functions below which nothing is of the program: what calls tests, fixtures, callbacks of a loop. A frame
#: that is not noted costs nothing.
_bottoms: list[CodeType | None] = [None, None, None]


def begin_at(place: int, function: Any) -> None:
    """Notes end where ``function`` calls; there is room for three (``place`` 0 to 2)."""
    code = getattr(inspect.unwrap(function), "__code__", None) if function is not None else None
    _bottoms[place] = code


def spelled(origin: Origin | None) -> tuple[Site, ...]:
    """An origin with files, lines and names; ends where the test runner begins."""
    return tuple(_until_runner(_site(code, offset) for code, offset in origin or ()))


def by_import(origin: Origin | None) -> bool:
    """Made while a module was imported. That happens once, so it does not grow."""
    return any(code.co_filename.startswith("<frozen importlib") for code, _ in origin or ())


def frames(frame: FrameType | None) -> tuple[Site, ...]:
    """The stack of a running frame, innermost first."""
    out: list[Site] = []
    while frame is not None and len(out) < SHOWN:
        out.append(_site(frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return tuple(out)


def awaits(coroutine: Any) -> tuple[Site, ...]:
    """Where a suspended coroutine waits: what it awaits inmost first."""
    out: list[Site] = []
    seen: set[int] = set()
    while coroutine is not None and id(coroutine) not in seen and len(seen) < 1000:
        seen.add(id(coroutine))
        for prefix, inner in (("cr", "cr_await"), ("ag", "ag_await"), ("gi", "gi_yieldfrom")):
            code = getattr(coroutine, f"{prefix}_code", None)
            if isinstance(code, CodeType):
                frame = getattr(coroutine, f"{prefix}_frame", None)
                if frame is not None:
                    out.append(_site(code, frame.f_lasti))
                coroutine = getattr(coroutine, inner, None)
                break
        else:
            break
    return tuple(reversed(out[-SHOWN:]))


def program_site(sites: Iterable[Site]) -> Site | None:
    """The innermost frame of the program itself, else one that is not the standard library's."""
    every = list(sites)
    for site in every:
        if site.own:
            return site
    for site in every:
        if not site.file.startswith(("<", _OURS)) and not _is_stdlib(site.file):
            return site
    return every[0] if every else None


def without_plumbing(sites: tuple[Site, ...]) -> tuple[Site, ...]:
    """Without the frames of the standard library: ``Thread.start``, ``create_task``, what runs a loop."""
    return tuple(site for site in sites if not _is_plumbing(site)) or sites[:1]


def without_bottom(sites: tuple[Site, ...]) -> tuple[Site, ...]:
    """Without the outermost frames of the standard library, which run the others; one is kept."""
    end = len(sites)
    while end > 1 and _is_plumbing(sites[end - 1]):
        end -= 1
    return sites[: max(end, 2)] if end == 1 else sites[:end]


def _is_plumbing(site: Site) -> bool:
    return _is_stdlib(site.file) or site.file.startswith(("<", _OURS))


def _is_stdlib(file: str) -> bool:
    return file.startswith(_STDLIB) and "site-packages" not in file and "dist-packages" not in file


def _site(code: CodeType, offset: int) -> Site:
    return Site(code.co_filename, _line(code, offset), getattr(code, "co_qualname", code.co_name))


def _line(code: CodeType, offset: int) -> int:
    for start, end, line in code.co_lines():
        if start <= offset < end:
            return line or 0
    return code.co_firstlineno


def _until_runner(sites: Iterable[Site]) -> Iterator[Site]:
    for site in sites:
        if any(part in site.file for part in _MACHINERY) and not site.own:
            return
        yield site
