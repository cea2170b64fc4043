"""Where Go's collector begins, outside of goroutines: data of modules, what is to be called for dead objects.

Data and bss have bitmaps of their pointers; what the program keeps elsewhere, the collector does not see
either. Finalizers and clean-ups are in lists beside their spans, and in blocks once they are to be called.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, Mask
from diagtool.runtimes.golang.heap.spans import Spans
from diagtool.runtimes.golang.model import GoModule, GoRuntime

__all__ = ["Specials", "called_for_dead", "data_words", "specials_of"]

_STEP = 4 << 20
_MOST_IN_LIST = 1 << 20  # specials of one span, blocks in one list


def data_words(runtime: GoRuntime) -> tuple[U64, int]:
    """(the pointers in data and bss of all modules, how many bytes of these are missing)."""
    found, missing = [np.zeros(0, np.uint64)], 0
    for module in runtime.modules:
        for name, mask in (("data", "gcdatamask"), ("bss", "gcbssmask")):
            low, high = module.words.get(name, 0), module.words.get(f"e{name}", 0)
            if not 0 < low < high:
                continue
            flags = _bitmap(runtime, module, mask, (high - low) // 8)
            for start in range(low, high & -8, _STEP):
                places = np.arange(start, min(high & -8, start + _STEP), 8, dtype=np.uint64)
                if flags is not None:
                    at = (places - np.uint64(low)) >> np.uint64(3)
                    places = places[flags[at.astype(np.int64)]]
                words, ok = runtime.memory.load(places)
                missing += int((~ok).sum()) * 8
                found.append(words)
    return np.concatenate(found), missing


# Which words of data or bss are pointers; None where it can't be read: then all may be.
def _bitmap(runtime: GoRuntime, module: GoModule, name: str, words: int) -> Mask | None:
    memory = runtime.memory
    at = module.address + runtime.o("moduledata", name)
    head = memory.try_read(at, 16)
    if head is None:
        return None
    count, place = int.from_bytes(head[:4], "little"), int.from_bytes(head[8:], "little")
    if not place or count < words or count > words + 8:
        return None
    raw, ok = memory.load(np.arange(-(-words // 8), dtype=np.uint64) + np.uint64(place), "u1")
    if not ok.all():
        return None
    flags: Mask = np.unpackbits(raw, bitorder="little")[:words].astype(np.bool_)
    return flags


@dataclass(slots=True)
class Specials:
    """What hangs on objects. ``words``: pointers that are roots; ``reached_through``: objects whose own
    pointers
    are roots, though they are none (they have a finalizer); ``weak``: objects that a weak pointer can
    bring back."""

    words: U64 = field(default_factory=lambda: np.zeros(0, np.uint64))
    reached_through: U64 = field(default_factory=lambda: np.zeros(0, np.uint64))
    weak: U64 = field(default_factory=lambda: np.zeros(0, np.uint64))
    complete: bool = True


def _kinds(minor: int) -> tuple[int, int, int]:
    """(finalizer, weak handle, clean-up): numbers of kinds, -1 where a version has none
    (runtime/mheap.go)."""
    if minor >= 25:
        return 2, 3, 7
    if minor == 24:
        return 1, 2, 6
    return 1, (2 if minor == 23 else -1), -1


def specials_of(runtime: GoRuntime, spans: Spans) -> Specials:
    """All specials of the spans, the lists of all spans followed together."""
    load = runtime.load
    finalizer, weak, cleanup = _kinds(runtime.minor)
    size = np.uint64(runtime.size("special"))
    rows = np.flatnonzero(spans.specials != 0)
    base, at = spans.base[rows], spans.specials[rows]
    out = Specials()
    words, through, brought_back = [out.words], [out.words], [out.words]
    wide = "<u8" if runtime.minor >= 24 else "<u2"
    for _ in range(_MOST_IN_LIST):
        if not len(at):
            break
        following, ok = load(at, "special", "next")
        kind = load(at, "special", "kind", "u1")[0]
        offset = load(at, "special", "offset", wide)[0]
        out.complete &= bool(ok.all())
        inner = base + offset.astype(np.uint64)
        some = kind == finalizer
        words.append(runtime.memory.load(at[some] + size)[0])
        through.append(inner[some])
        some = kind == weak
        words.append(runtime.memory.load(at[some] + size)[0])
        brought_back.append(inner[some])
        some = kind == cleanup
        words += [runtime.memory.load(at[some] + size + np.uint64(8 * i))[0] for i in range(3)]
        more = ok & (following != 0)
        base, at = base[more], following[more]
    else:
        out.complete = False
    out.words, out.reached_through = np.concatenate(words), np.concatenate(through)
    out.weak = np.concatenate(brought_back)
    return out


def called_for_dead(runtime: GoRuntime, near: NDArray[np.uint64]) -> U64:
    """The words of blocks of finalizers and clean-ups that are to be called.

    ``near``: candidates for the first block of a list: words of the modules' data. A block is known by its
    head: links,
    how many entries are in use, and these are no null pointers.
    """
    memory = runtime.memory
    at = np.unique(near[(near % 8 == 0) & (near > 0x10000) & (near >> np.uint64(47) == 0)])
    at = at[memory.mapped(at, 32)]
    found = [np.zeros(0, np.uint64)]
    heads, ok = memory.load_block(at, 32)
    words = heads.view("<u8").reshape(-1, 4)
    low = np.uint64(0xFFFFFFFF)
    # finblock: alllink, next, cnt (u32) …; cleanupBlock (1.25): next, pushcnt, alllink, n (u32) …
    for links, count, first, size, most in (((0, 1), 2, 24, 40, 101), ((2,), 3, 32, 24, 64)):
        used = words[:, count] & low
        likely = ok & (used > 0) & (used <= most) & (words[:, count] >> np.uint64(32) == 0)
        for link in links:
            likely &= (words[:, link] % 8 == 0) & (words[:, link] >> np.uint64(47) == 0)
        found += _blocks(runtime, at[likely].tolist(), links, count, first, size, most)
    return np.concatenate(found)


def _blocks(
    runtime: GoRuntime, at: list[int], links: tuple[int, ...], count: int, first: int, size: int, most: int
) -> list[U64]:
    memory, out, seen = runtime.memory, [], set(at)
    while at:
        address = at.pop()
        head = memory.try_read(address, 32)
        used = int.from_bytes(head[8 * count : 8 * count + 4], "little") if head else most + 1
        if head is None or used > most:
            continue
        data = memory.try_read(address + first, used * size)
        if data:
            out.append(np.frombuffer(data, "<u8"))
        for link in links:
            following = int.from_bytes(head[8 * link : 8 * link + 8], "little")
            if following and following not in seen and len(seen) < _MOST_IN_LIST:
                seen.add(following)
                at.append(following)
    return out
