"""tracemalloc's tables in memory, written byte by byte: read exactly, and harmless where they are broken."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from made_objects import BASE, LAYOUT, Heap

from diagtool.capture.model import ProcessInfo
from diagtool.runtimes.cpython.allocations import add_allocations
from diagtool.runtimes.cpython.allocations.hashtables import Damaged, entries
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.found import Found
from diagtool.runtimes.cpython.heap.pools import Pools
from diagtool.runtimes.cpython.heap.types import TypeTable

STATE = "_PyRuntimeState.tracemalloc"


class Traced(Heap):
    """A process in which tracemalloc runs: its state is at BASE, where the runtime is."""

    def __init__(self, frames: int = 5, tracing: int = 1) -> None:
        super().__init__()
        self.used = 1 << 16
        self.put(BASE + LAYOUT[f"{STATE}.config.tracing"], "i", tracing)
        self.put(BASE + LAYOUT[f"{STATE}.config.max_nframe"], "i", frames)
        self.put(BASE + LAYOUT[f"{STATE}.peak_traced_memory"], "Q", 777)
        self.names: dict[str, int] = {}

    def table(self, pairs: Sequence[tuple[int, int]]) -> int:
        """A hash table; pairs go to buckets in turn."""
        buckets = max(16, 1 << len(pairs).bit_length())
        table, first = self.room(80), self.room(8 * buckets)
        self.put(table, "QQQ", len(pairs), buckets, first)
        heads = [0] * buckets
        for i, (key, value) in enumerate(pairs):
            entry = self.room(32)
            self.put(entry, "QQQQ", heads[i % buckets], 0, key, value)
            heads[i % buckets] = entry
        for i, head in enumerate(heads):
            self.put(first + 8 * i, "Q", head)
        return table

    def name(self, text: str) -> int:
        """A ``str``."""
        if text not in self.names:
            address = self.object("str", 64 + len(text))
            flags = ("compact", "ascii")
            state = sum(1 << LAYOUT[f"const.unicode_state_{flag}_shift"] for flag in flags)
            self.field(address, "PyASCIIObject.state", state, "I")
            self.field(address, "PyASCIIObject.length", len(text))
            at = address + LAYOUT["sizeof.PyASCIIObject"] - BASE
            self.data[at : at + len(text)] = text.encode()
            self.names[text] = address
        return self.names[text]

    def traceback(self, *frames: tuple[str, int], total: int = 0) -> int:
        """A traceback, innermost first."""
        address = self.room(12 + 12 * len(frames))
        self.put(address, "QHH", 0, len(frames), total or len(frames))
        for i, (file, line) in enumerate(frames):
            self.put(address + 12 + 12 * i, "QI", self.name(file), line)
        return address

    def trace(self, size: int, traceback: int) -> int:
        """A trace."""
        address = self.room(16)
        self.put(address, "QQ", size, traceback)
        return address

    def traced(self, pairs: Sequence[tuple[int, int]], domains: int = 0) -> Context:
        """A context with these traces."""
        self.put(BASE + LAYOUT[f"{STATE}.traces"], "Q", self.table(pairs))
        self.put(BASE + LAYOUT[f"{STATE}.domains"], "Q", domains)
        return self.context()


def read(ctx: Context) -> tuple[list[dict[str, object]], list[str]]:
    """(the sites, warnings)."""
    none = np.zeros(0, np.int64)
    nothing = np.zeros(0, np.uint64)
    pools = Pools(nothing, none, none, none, none, 4096, 48, False, nothing)
    found = Found(nothing, np.zeros(0, np.int32))
    census = HeapCensus(found, TypeTable(ctx), pools, np.zeros(1, np.int64))
    add_allocations(ctx, census)
    return ctx.builder.snapshot.tables.get("allocation_sites", []), ctx.builder.snapshot.warnings


def test_what_was_allocated_where_is_added_up() -> None:
    heap = Traced()
    one = heap.traceback(("/srv/a.py", 3), ("/srv/main.py", 9), total=7)
    other = heap.traceback(("/srv/b.py", 4))
    again = heap.traceback(("/srv/a.py", 3), ("/srv/main.py", 9))  # differs in what was cut off
    pairs = [(0x1000 + i, heap.trace(100, (one, other, again)[i % 3])) for i in range(99)]
    far = heap.table([(0x9000, heap.trace(5000, other))])
    rows, warnings = read(heap.traced(pairs, heap.table([(389047, far)])))
    assert not warnings
    assert [(r["bytes"], r["count"], r["frames"], r.get("domain"), r.get("depth")) for r in rows] == [
        (6600, 66, [["/srv/a.py", 3], ["/srv/main.py", 9]], None, 7),
        (5000, 1, [["/srv/b.py", 4]], 389047, None),
        (3300, 33, [["/srv/b.py", 4]], None, None),
    ]


def test_where_it_does_not_run_nothing_is_said() -> None:
    assert read(Traced(tracing=0).traced([])) == ([], [])


@pytest.mark.parametrize("frames", [0, -3, 1 << 20])
def test_a_limit_that_makes_no_sense_is_not_running(frames: int) -> None:
    assert read(Traced(frames=frames).traced([])) == ([], [])


def test_a_wild_table_is_a_warning() -> None:
    heap = Traced()
    ctx = heap.traced([])
    assert read(ctx) == ([], [])
    heap.put(BASE + LAYOUT[f"{STATE}.traces"], "Q", 0xDEAD0)
    rows, warnings = read(heap.context())
    assert not rows and "no table of traces" in warnings[0]


def test_traces_that_make_no_sense_are_left_out() -> None:
    heap = Traced()
    good = heap.trace(10, heap.traceback(("/srv/a.py", 1)))
    deep = heap.trace(10, heap.traceback(*[("/srv/a.py", 1)] * 6))  # more than are kept
    empty = heap.trace(10, heap.traceback())
    pairs = [(1, good), (2, deep), (3, empty), (4, 0), (5, 0xDEAD0), (6, heap.trace(1 << 60, 8)), (7, good)]
    pairs.append((8, heap.trace(10, 0xDEAD00)))
    rows, warnings = read(heap.traced(pairs))
    assert [(r["count"], r["bytes"]) for r in rows] == [(2, 20)]
    assert warnings == ["6 of 8 traces of tracemalloc make no sense and are left out"]


def test_a_name_that_is_gone_is_unknown() -> None:
    heap = Traced()
    traceback = heap.traceback(("/srv/a.py", 1), ("/srv/b.py", 2))
    heap.put(traceback + 12, "Q", 0xDEAD0)
    (row,), _ = read(heap.traced([(1, heap.trace(10, traceback))]))
    assert row["frames"] == [["<unknown>", 1], ["/srv/b.py", 2]]


def test_names_may_be_c_strings() -> None:
    """As from 3.15 on."""
    heap = Traced()
    text = heap.room(64)
    heap.data[text - BASE : text - BASE + 10] = b"/srv/c.py\0"
    traceback = heap.traceback(("/srv/a.py", 1))
    heap.put(traceback + 12, "Q", text)
    (row,), _ = read(heap.traced([(1, heap.trace(10, traceback))]))
    assert row["file"] == "/srv/c.py"


def test_a_ring_of_entries_ends() -> None:
    heap = Traced()
    table = heap.table([(i, i) for i in range(40)])
    first = int.from_bytes(heap.data[table - BASE + 16 : table - BASE + 24], "little")
    entry = int.from_bytes(heap.data[first - BASE : first - BASE + 8], "little")
    heap.put(entry, "Q", entry)
    with pytest.raises(Damaged, match="more entries"):
        entries(heap.context(), table)
    ctx = heap.context()
    heap.put(BASE + LAYOUT[f"{STATE}.traces"], "Q", table)
    ctx = heap.context()
    assert "could not be read" in read(ctx)[1][0]


@pytest.mark.parametrize(
    ("count", "buckets", "first"),
    [
        (5, 0, 0),
        (5, 17, 0),
        (5, 1 << 40, 0),
        (1 << 40, 1 << 41, 0),
        (100, 16, 0),
        (5, 16, 3),
        (5, 1 << 10, 0xDEAD00),
    ],
)
def test_numbers_that_do_not_fit_are_no_table(count: int, buckets: int, first: int) -> None:
    heap = Traced()
    table = heap.table([(1, 1)])
    heap.put(table, "QQ", count, buckets)
    if first:
        heap.put(table + 16, "Q", first)
    with pytest.raises(Damaged, match="no table"):
        entries(heap.context(), table)


def test_nothing_is_said_of_a_stripped_interpreter_unless_somebody_asked_for_it() -> None:
    ctx = Traced().traced([])
    old = {k: v for k, v in LAYOUT.items() if not k.startswith(STATE)}
    object.__setattr__(ctx.runtime, "layout", old)
    assert read(ctx) == ([], [])
    ctx.capture.process = ProcessInfo(1, cmdline=["python3", "-X", "tracemalloc=5", "app.py"])
    assert "its tables are not read" in read(ctx)[1][0]
