"""What the C library's malloc holds, as tables of every snapshot: the figures of mallinfo2(), arena by arena.

It takes milliseconds, whatever the size of the heap: totals that malloc keeps itself, and lists of free
memory (glibc/figures.py). Where all blocks were walked (``--heap``) the figures are those of the walk.
It also says whose the memory is (``capture.claims``): stacks of threads, heaps, blocks with a mapping of
their own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diagtool.capture.claims import claim, claims
from diagtool.capture.memory import PAGE, U64, AddressSpace
from diagtool.capture.model import Capture
from diagtool.capture.peek import Peek, overlap, pages_with_content, present_pages
from diagtool.capture.plan import is_anonymous
from diagtool.capture.segments import merged, without
from diagtool.runtimes.native.allocators import named_allocators
from diagtool.runtimes.native.glibc.arenas import Arenas, find_arenas
from diagtool.runtimes.native.glibc.bigblocks import SMALLEST, big_blocks
from diagtool.runtimes.native.glibc.figures import ArenaFigures, How, figures
from diagtool.runtimes.native.glibc.settings import Settings, find_settings
from diagtool.runtimes.native.memorymap import data_of_modules, is_libc, private_memory, thread_stacks

if TYPE_CHECKING:
    from diagtool.runtimes.native.glibc.heap import GlibcHeap

__all__ = ["GLIBC", "MAPPED", "STACKS", "add_malloc", "read_now"]

#: Owners of memory.
GLIBC, MAPPED, STACKS = "glibc heap", "glibc mapped blocks", "thread stacks"

_WALKED = "glibc"  # the heap that was walked, among what a capture has found
_DEFAULT_FACTOR = 8  # arenas a processor, NARENAS_FROM_NCORES in arena.c
_ARENA_MAX = re.compile(r"glibc\.malloc\.arena_max=(\d+)")
_MANY_ARENAS = 8  # besides the main one
_MOST_READ_NOW = 4 << 20  # bytes of static data that are read because the capture did not
_MOST_ROWS = 2000  # arenas that are told one by one

Row = dict[str, Any]


def add_malloc(capture: Capture, tables: dict[str, list[Row]]) -> None:
    """The tables ``malloc`` (one row, none where no malloc of glibc is there), ``malloc_arenas``,
    ``allocators`` (others, by the names of their libraries) and ``thread_stacks``.

    ``malloc``: ``arenas``, ``system`` (bytes from the kernel), ``used``, ``free``, ``fast`` (in fast bins),
    ``top`` (free at the end of the main arena: keepcost), ``holes`` (free bytes that are not at an arena's
    end), ``how`` ("exact" as mallinfo2() says, "estimated", "unknown": then ``used`` and ``free`` are None),
    ``mapped_blocks`` and ``mapped_bytes`` (blocks with a mapping of their own: hblks, hblkhd), ``arena_max``
    (None: nobody set it), ``cores``, ``arena_limit``, ``trim_threshold``, ``mmap_threshold``; None where not
    known. ``rss`` (resident, tops left out), ``idle`` (of that what is not in use), ``idle_share``, ``text``
    (that in words), ``others`` (arenas besides the main one), ``pattern``: "arenas" where it is these that
    hold most of what is idle, "holes" otherwise. ``malloc_arenas``: ``address``, ``main``, ``heaps``,
    ``system``, ``used``, ``free``, ``fast``, ``top``, ``chunks`` (free ones), ``how``, ``rss``, ``idle``.
    ``thread_stacks``: ``tid``, ``start``, ``end``, ``pointer``. ``allocators``: ``name``, ``library``.
    """
    stacks = thread_stacks(capture)
    main = {(m.start, m.end) for m in capture.mappings if m.path == "[stack]"}
    tables["thread_stacks"] = [
        {"tid": s.tid, "start": s.low, "end": s.high, "pointer": s.pointer} for s in stacks
    ]
    claim(capture, STACKS, [(s.low, s.high) for s in stacks if not any(a <= s.low < b for a, b in main)])
    tables["malloc"], tables["malloc_arenas"] = [], []
    tables["allocators"] = [{"name": n, "library": path} for n, path in named_allocators(capture.modules)]
    late = capture.late_pages
    peek = Peek(capture)
    try:
        _add_glibc(capture, peek, tables)
    finally:
        peek.close()
        capture.late_pages = late  # what was read late here is judged by nobody


def _add_glibc(capture: Capture, peek: Peek, tables: dict[str, list[Row]]) -> None:
    memory = capture.memory
    data = data_of_modules(capture)
    libc = [m for m in capture.modules if is_libc(m)]
    own = [r for r in data if any(m.start <= r[0] < m.end for m in libc)]
    read_now(memory, own or data)
    found = find_arenas(memory, capture.mappings, own)
    if found.shape is None or not any(a.main for a in found.arenas):
        own, found = data, find_arenas(memory, capture.mappings, data)
    if found.shape is None:
        return
    claim(capture, GLIBC, found.claimed)
    walked = _walked(capture)
    arenas = figures(memory, peek, found) if walked is None else _figures_of(walked)
    resident = _resident(capture, found)
    starts = [r.start for r in found.regions if found.arenas[r.arena].main]
    starts += [m.start for m in capture.mappings if m.path == "[heap]"]
    settings = find_settings(memory, own, starts)
    mapped = _mapped_blocks(capture, peek, found, settings, walked)
    claim(capture, MAPPED, mapped)
    rows = [_arena(a, resident.get(a.address, 0)) for a in arenas]
    tables["malloc"].append({**_totals(capture, arenas, settings, mapped), **_idle(rows)})
    rows.sort(key=lambda r: (not r["main"], -r["system"]))
    tables["malloc_arenas"] += rows[:_MOST_ROWS]


def read_now(memory: AddressSpace, ranges: Sequence[tuple[int, int]]) -> None:
    """Have the capture read what it has not copied of ``ranges``, at most 4 MiB.

    What is searched is what was copied: where little is, the data of the C library may not be in it.
    """
    left = _MOST_READ_NOW
    for start, end in ranges:
        for page in range(start & -PAGE, min(end, start + left), PAGE):
            memory.try_read(page, 1)
        left -= min(end - start, left)


_COLUMNS = ("address", "main", "heaps", "system", "used", "free", "fast", "top", "chunks", "how")


def _arena(arena: ArenaFigures, resident: int) -> Row:
    idle = None if arena.used is None else max(resident - arena.used, 0)
    return {**{name: getattr(arena, name) for name in _COLUMNS}, "rss": resident, "idle": idle}


# Bytes of each arena that are in memory, its top left out.
def _resident(capture: Capture, found: Arenas) -> dict[int, int]:
    pages = present_pages(capture) if capture.kind == "live" else pages_with_content(capture)
    starts: U64 = np.array([r.start for r in found.regions], np.uint64)
    ends: U64 = np.array([r.top or r.end for r in found.regions], np.uint64)
    out: dict[int, int] = {}
    for region, size in zip(found.regions, overlap(pages, starts, ends).tolist(), strict=True):
        address = found.arenas[region.arena].address
        out[address] = out.get(address, 0) + int(size)
    return out


# How much of what is resident nobody uses; and whether that is so because there are many arenas.
def _idle(rows: list[Row]) -> Row:
    resident = sum(r["rss"] for r in rows)
    if any(r["idle"] is None for r in rows):
        nothing = dict.fromkeys(("idle", "idle_share", "bytes", "pattern", "text"))
        return {"rss": resident, "others": len(rows) - 1, **nothing}
    idle = sum(r["idle"] for r in rows)
    others = [r for r in rows if not r["main"]]
    share = idle / resident if resident else 0.0
    some = "about " if any(r["how"] == "estimated" for r in rows) else ""
    text = f"{some}{_mb(idle)} of the {_mb(resident)} that {_arenas(len(rows))} in memory are in no "
    spread = len(others) >= _MANY_ARENAS and 2 * sum(r["idle"] for r in others) >= idle
    return {
        "rss": resident,
        "idle": idle,
        "idle_share": round(share, 4),
        "bytes": idle,
        "others": len(others),
        "pattern": "arenas" if spread else "holes",
        "text": f"{text}block in use ({share:.0%})",
    }


def _arenas(number: int) -> str:
    return "the one arena has" if number == 1 else f"{number:,} arenas have"


def _mb(number: int) -> str:
    return f"{number / 1e6:,.0f} MB"


# Of the walk: what mallinfo2() counts as free is what is in bins, fast bins and tops, not in thread caches.
def _figures_of(heap: GlibcHeap) -> list[ArenaFigures]:
    out = []
    for a in heap.arenas:
        free = min(a.free - a.cached + a.top, a.system)
        how: How = "estimated" if a.unread else "exact"
        out.append(
            ArenaFigures(a.address, a.main, a.heaps, a.system, a.top, how, free, a.fast, a.free_blocks)
        )
    return out


def _walked(capture: Capture) -> GlibcHeap | None:
    if capture.found.get(_WALKED) is None:
        return None
    from diagtool.runtimes.native.glibc.heap import GlibcHeap  # whoever walked has it

    found = capture.found[_WALKED]
    return found if isinstance(found, GlibcHeap) else None


def _mapped_blocks(
    capture: Capture, peek: Peek, found: Arenas, settings: Settings | None, walked: GlibcHeap | None
) -> U64 | list[tuple[int, int]]:
    if walked is not None:
        blocks = walked.blocks
        own = blocks.arena < 0  # MMAPPED
        starts = (blocks.address[own] - 16) // 4096 * 4096
        return [(s, s + n) for s, n in zip(starts.tolist(), blocks.size[own].tolist(), strict=True)]
    if settings is not None and not settings.mapped_blocks:
        return []
    anonymous = private_memory([m for m in capture.mappings if is_anonymous(m) and m.path[:6] != "[stack"])
    taken = merged([*found.claimed, *data_of_modules(capture)])
    for _, ranges in claims(capture):
        taken = merged([*taken, *((low, high) for low, high in ranges.tolist())])
    least = SMALLEST
    if settings is not None:
        least = min(least, max(settings.mmap_threshold & -4096, 4096))
    return big_blocks(peek, without(anonymous, taken), least)


def _totals(
    capture: Capture,
    arenas: list[ArenaFigures],
    settings: Settings | None,
    mapped: U64 | list[tuple[int, int]],
) -> Row:
    known = all(a.how != "unknown" for a in arenas)
    how = "unknown" if not known else "exact" if all(a.how == "exact" for a in arenas) else "estimated"
    system = sum(a.system for a in arenas)
    free = sum(a.free or 0 for a in arenas) if known else None
    cores = os.cpu_count() if capture.kind == "live" else None
    most = _arena_max(capture, settings)
    limit = most or (None if cores is None else _DEFAULT_FACTOR * cores)
    size = sum(int(high) - int(low) for low, high in mapped)
    return {
        "arenas": len(arenas),
        "system": system,
        "used": None if free is None else max(system - free, 0),
        "free": free,
        "fast": sum(a.fast or 0 for a in arenas) if known else None,
        "top": sum(a.top for a in arenas if a.main),
        "holes": None if free is None else max(free - sum(a.top for a in arenas), 0),
        "largest": max((a.system for a in arenas), default=0),
        "how": how,
        "mapped_blocks": len(mapped) if settings is None else settings.mapped_blocks,
        "mapped_bytes": size if settings is None else settings.mapped_bytes,
        "arena_max": most,
        "cores": cores,
        "arena_limit": limit,
        "trim_threshold": None if settings is None else settings.trim_threshold,
        "mmap_threshold": None if settings is None else settings.mmap_threshold,
    }


def _arena_max(capture: Capture, settings: Settings | None) -> int | None:
    if settings is not None:
        return settings.arena_max or None
    environ = capture.process.environ
    tuned = _ARENA_MAX.search(environ.get("GLIBC_TUNABLES", ""))
    text = tuned[1] if tuned else environ.get("MALLOC_ARENA_MAX", "")
    return int(text) if text.isascii() and text.isdigit() and int(text[:9]) > 0 else None
