"""Heap growth of one test: it is run again and again, and what grows with every run is a leak.

Caches that fill grow in some runs and then no more; a leak grows in each. So what counts is not the mean but
what nearly every run adds (the lower quarter of the differences), in every one of several rounds. The numbers
are the interpreter's: blocks of its allocator, objects of the collector by type; and malloc's.
"""

from __future__ import annotations

import gc
import sys
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

#: Rounds in which it must grow: what grew by chance in one does not in the next.
ROUNDS = 3
#: Types, lines of allocations that are named.
_NAMED = 5
#: Bytes of malloc a run that are noise: free lists of its own, tables that double.
NATIVE_NOISE = 64
_DEPTH = 12


@dataclass(frozen=True, slots=True)
class Limits:
    """Of ``@pytest.mark.leaks``: runs that are measured and thrown away, growth a run that is allowed."""

    repeat: int = 20
    warmup: int = 3
    max_objects: int = 0
    max_bytes: int = NATIVE_NOISE


@dataclass(slots=True)
class Growth:
    """What each run adds. ``types`` and ``lines``: (name, how many a run); blocks and bytes a run."""

    blocks: int
    native_bytes: int
    runs: int
    types: list[tuple[str, float]] = field(default_factory=list)
    lines: list[tuple[str, int, float, float]] = field(default_factory=list)  # file, line, blocks, bytes

    def sentence(self) -> str:
        """For a person."""
        said = []
        if self.blocks:
            said.append(f"{self.blocks:,} memory blocks of Python")
        if self.native_bytes:
            said.append(f"{self.native_bytes:,} bytes of malloc")
        return f"each of {self.runs} runs adds {' and '.join(said)}"


# glibc 2.33, malloc/malloc.h
_MALLINFO2 = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()


def native_bytes() -> Callable[[], int]:
    """A function that says how many bytes malloc has given out; 0 where the C library does not say."""
    import ctypes

    class Mallinfo2(ctypes.Structure):
        _fields_ = tuple((name, ctypes.c_size_t) for name in _MALLINFO2)

    try:
        function = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):
        return lambda: 0
    function.restype = Mallinfo2

    def read() -> int:
        info = function()
        return int(info.uordblks + info.hblkhd)

    return read


def measure(run: Callable[[], None], limits: Limits) -> Growth | None:
    """Run it, and say what grows with every run; None if nothing does.

    What ``run`` raises is raised. ``run`` is called ``warmup + repeat`` times where nothing grows, and up to
    ROUNDS times as often where something seems to.
    """
    for _ in range(limits.warmup):
        run()
    native = native_bytes()
    blocks, bytes_ = sys.maxsize, sys.maxsize
    before: Counter[type] = Counter()
    types: dict[str, float] = {}
    for number in range(ROUNDS):
        if number:
            before = _by_type()
        grown, grown_native = _round(run, limits.repeat, native)
        blocks, bytes_ = min(blocks, grown), min(bytes_, grown_native)
        if blocks <= limits.max_objects and bytes_ <= limits.max_bytes:
            return None
        if number:
            more = {_type_name(kind): (n - before[kind]) / limits.repeat for kind, n in _by_type().items()}
            types = {k: min(v, types.get(k, v)) for k, v in more.items()}
    growth = Growth(
        blocks if blocks > limits.max_objects else 0,
        # What Python's own blocks take of malloc (those over 512 bytes) is told with them.
        bytes_ if bytes_ > limits.max_bytes and blocks <= limits.max_objects else 0,
        limits.repeat * ROUNDS,
    )
    grown_types = sorted(((n, k) for k, n in types.items() if n >= 0.9), reverse=True)
    growth.types = [(k, n) for n, k in grown_types[:_NAMED]]
    if growth.blocks:
        growth.lines = _lines(run, limits.repeat)
    return growth


# (Blocks, bytes of malloc) that nearly every run adds.
def _round(run: Callable[[], None], repeat: int, native: Callable[[], int]) -> tuple[int, int]:
    # Made before the first run: their own memory must not be what grows.
    blocks, bytes_ = array("q", bytes(8 * (repeat + 1))), array("q", bytes(8 * (repeat + 1)))
    gc.collect()
    # What is there already need not be searched for garbage after every run.
    freeze = gc.get_freeze_count() == 0
    if freeze:
        gc.freeze()
    try:
        blocks[0], bytes_[0] = sys.getallocatedblocks(), native()
        for i in range(1, repeat + 1):
            run()
            gc.collect()
            blocks[i], bytes_[i] = sys.getallocatedblocks(), native()
    finally:
        if freeze:
            gc.unfreeze()
    return _slope(blocks), _slope_of_halves(bytes_)


def _slope(values: array[int]) -> int:
    """What at least three of four steps add, and the whole way, too."""
    steps = sorted(values[i + 1] - values[i] for i in range(len(values) - 1))
    mean = (values[-1] - values[0]) / len(steps)
    return max(0, min(steps[len(steps) // 4], round(mean)))


# malloc hands out small blocks in lots (tcache, seven of a size), so single steps say nothing.
def _slope_of_halves(values: array[int]) -> int:
    middle, last = len(values) // 2, len(values) - 1
    first = (values[middle] - values[0]) / max(middle, 1)
    second = (values[last] - values[middle]) / max(last - middle, 1)
    return max(0, round(min(first, second)))


def _by_type() -> Counter[type]:
    gc.collect()
    return Counter(map(type, gc.get_objects()))


def _type_name(kind: type) -> str:
    module = type.__getattribute__(kind, "__module__")
    name = type.__getattribute__(kind, "__qualname__")
    return str(name) if module == "builtins" else f"{module}.{name}"


# Where what stays was allocated: the runs once more, with tracemalloc.
def _lines(run: Callable[[], None], repeat: int) -> list[tuple[str, int, float, float]]:
    import tracemalloc

    was_on = tracemalloc.is_tracing()
    if not was_on:
        tracemalloc.start(_DEPTH)
    try:
        run()
        gc.collect()
        before = tracemalloc.take_snapshot()
        for _ in range(repeat):
            run()
        gc.collect()
        after = tracemalloc.take_snapshot()
    finally:
        if not was_on:
            tracemalloc.stop()
    hidden = [
        tracemalloc.Filter(False, tracemalloc.__file__),
        tracemalloc.Filter(False, __file__),
        tracemalloc.Filter(False, "<unknown>"),
    ]
    grown = after.filter_traces(hidden).compare_to(before.filter_traces(hidden), "lineno")
    out = []
    for difference in grown:
        if difference.count_diff >= 0.75 * repeat:
            frame = difference.traceback[0]
            out.append(
                (frame.filename, frame.lineno, difference.count_diff / repeat, difference.size_diff / repeat)
            )
    return out[:_NAMED]
