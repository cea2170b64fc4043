"""Pages of mimalloc: blocks in use are found and free ones are not, whatever the memory says."""

from __future__ import annotations

import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from diagtool.capture.memory import AddressSpace, Segment
from diagtool.capture.model import Capture, ProcessInfo
from diagtool.runtimes.cpython import layouts
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.frames.codes import Codes
from diagtool.runtimes.cpython.graph.free import free_in_pages
from diagtool.runtimes.cpython.heap.mimalloc import COLLECTED, MEMORY, OBJECT, Pages, find_pages
from diagtool.runtimes.cpython.heap.mimallocobjects import used_blocks
from diagtool.runtimes.cpython.objects.census import living_without_gil
from diagtool.runtimes.cpython.objects.reader import Objects
from diagtool.runtimes.cpython.objects.vectors import Vectors
from diagtool.runtimes.cpython.runtime import Runtime
from diagtool.snapshot.model import SnapshotBuilder, Target

LAYOUT = layouts.load("3.14.4", "free-threaded")
SEGMENT, SLICE, MAPPED = 32 << 20, 64 << 10, 1 << 20
BASE = 0x200_0000_0000
RUNTIME = BASE - (1 << 20)  # and heaps of threads
COOKIE = 0x1234_5678_9ABC_DEF0
KEYS = (0x9E37_79B9_7F4A_7C15, 0xC2B2_AE3D_27D4_EB4F)
WORDS = (1 << 64) - 1


class Segments:
    """Segments at multiples of 32 MiB, of which the first MiB is there, with pages in them."""

    def __init__(self, entry: int = 96) -> None:
        self.entry = entry
        self.segments: dict[int, bytearray] = {}
        self.slice: dict[int, int] = {}
        self.runtime = bytearray(1 << 20)

    def put(self, address: int, fmt: str, *values: int) -> None:
        if address >= BASE:
            start = address & -SEGMENT
            struct.pack_into("<" + fmt, self.segments[start], address - start, *values)
        else:
            struct.pack_into("<" + fmt, self.runtime, address - RUNTIME, *values)

    def segment(self, number: int = 0, cookie: int = COOKIE) -> int:
        at = BASE + number * SEGMENT
        self.segments[at], self.slice[at] = bytearray(MAPPED), 1
        self.put(at + 32, "Q", SEGMENT)
        self.put(at + 208, "QQQQI", 1, at ^ cookie, 512, 1, 0)
        self.put(at + 248, "Q", 512)
        self.put(at + 264, "II", 1, 0)  # of the head itself
        self._rest(at)
        return at

    def _rest(self, segment: int) -> None:
        """What no page has is one span, whose block size is 0."""
        n = self.slice[segment]
        self.put(segment + 264 + n * self.entry, "II", 512 - n, 0)

    def page(
        self, segment: int, block: int, tag: int, capacity: int, free: list[int], **lists: list[int]
    ) -> int:
        """A page whose blocks ``free``, and those of ``local_free`` and ``xthread_free``, are free."""
        n = self.slice[segment]
        entry = segment + 264 + n * self.entry
        self.slice[segment] += 1
        start = segment + n * SLICE + (3 * block if block <= 64 else block if block <= 512 else 0)
        used = capacity - len(free) - len(lists.get("local_free", ()))
        self.put(entry, "IIBBHHBB", 1, 0, tag << 3, 0, capacity, SLICE // block - 1, 0, 0)
        self.put(entry + 24, "II", used, block)
        late = self.entry - 96
        if late:
            self.put(entry + 40, "QQ", *KEYS)
        places = {"free": 16, "local_free": 32, "xthread_free": 40 + late}
        for name, numbers in {"free": free, **lists}.items():
            flags = 3 if name == "xthread_free" else 0
            blocks = [start + i * block for i in numbers]
            self.put(entry + places[name], "Q", (blocks[0] if blocks else 0) | flags)
            for at, following in zip(blocks, [*blocks[1:], 0][: len(blocks)], strict=True):
                self.put(at, "Q", self.encoded(following, entry) if late else following)
        self._rest(segment)
        return start

    @staticmethod
    def encoded(address: int, null: int) -> int:
        value, turn = (address or null) ^ KEYS[1], KEYS[0] % 64
        return ((value << turn | value >> 64 - turn) + KEYS[0]) & WORDS

    def owner(self, segment: int, heap: int, delayed: int = 0) -> None:
        """Make a heap own the last page, with a list of blocks that others gave back."""
        self.put(segment + 264 + (self.slice[segment] - 1) * self.entry + 48 + self.entry - 96, "Q", heap)
        self.put(heap + 8 + 129 * 8 + 75 * 24 + (8 if self.entry > 96 else 0), "Q", delayed)

    def context(self) -> Context:
        memory = AddressSpace()
        for start, data in {RUNTIME: self.runtime, **self.segments}.items():
            number = memory.add_buffer(np.frombuffer(bytes(data), np.uint8))
            memory.add_segments([Segment(start, start + len(data), number, 0)])
        objects = Objects(memory, LAYOUT, (3, 14), True)
        capture = Capture("live", ProcessInfo(1), [], [], [], memory)
        runtime = Runtime(RUNTIME, (3, 14), 4, "free-threaded", LAYOUT, "python3.14t")
        builder = SnapshotBuilder(Target("live"))
        return Context(capture, runtime, objects, Vectors(objects), Codes(objects), builder)

    def pages(self) -> Pages:
        return find_pages(self.context(), [(start, start + MAPPED) for start in sorted(self.segments)])


def numbers(pages: Pages, row: int) -> list[int]:
    """Which blocks of a page are in use."""
    used = used_blocks(pages, np.array([row]))
    return ((used - pages.address[row]) // np.uint64(pages.block[row])).astype(int).tolist()


def test_blocks_in_use_are_those_of_no_list() -> None:
    for entry in (96, 112):  # a debug build hides its lists
        made = Segments(entry)
        first, second = made.segment(), made.segment(3)
        small = made.page(first, 48, OBJECT, 20, [3, 1, 7], local_free=[5], xthread_free=[11, 10])
        middle = made.page(second, 1024, COLLECTED, 9, [8])
        made.page(second, 80, MEMORY, 4, [0, 1, 2, 3])  # nothing in use
        pages = made.pages()
        assert pages.address.tolist() == [small, middle]
        assert pages.tag.tolist() == [OBJECT, COLLECTED]
        assert numbers(pages, 0) == sorted(set(range(20)) - {3, 1, 7, 5, 11, 10})
        assert numbers(pages, 1) == list(range(8))
        assert pages.used.tolist() == [14, 8]
        assert not len(pages.damaged)


def test_free_is_what_is_in_no_block_that_is_used() -> None:
    made = Segments()
    start = made.page(made.segment(), 64, OBJECT, 10, [1, 2, 7])
    free = free_in_pages(made.pages())
    blocks = start + 64 * np.arange(12, dtype=np.uint64)
    wanted = [False, True, True, False, False, False, False, True, False, False, True, True]
    assert free.hold(blocks).tolist() == free.hold(blocks + np.uint64(56)).tolist() == wanted
    assert not free.hold(np.array([BASE - 8, BASE + SEGMENT], np.uint64)).any()
    made.put(start + 64, "Q", 1 << 20)  # the list leads away: what is free is not sure any more
    assert not len(free_in_pages(made.pages()).start)


def test_a_block_that_another_thread_gave_back_to_a_full_page_is_free() -> None:
    made = Segments()
    segment = made.segment()
    start = made.page(segment, 64, OBJECT, 10, [])
    made.put(start + 4 * 64, "Q", start + 6 * 64)
    made.owner(segment, RUNTIME + 0x80000, start + 4 * 64)
    assert numbers(made.pages(), 0) == [0, 1, 2, 3, 5, 7, 8, 9]


def test_addresses_lead_to_their_block() -> None:
    made = Segments()
    start = made.page(made.segment(), 48, COLLECTED, 5, [2])
    places = [start, start + 47, start + 2 * 48, start + 5 * 48, start - 1, start + (1 << 63)]
    words = np.array(places, np.uint64)
    inside, used, begin, end, tag = made.pages().find(words)
    assert inside.tolist() == [True, True, True, True, False, False]
    assert used.tolist() == [True, True, False, False, False, False]
    assert begin[:3].tolist() == [start, start, start + 96]
    assert (end - begin)[0] == 48
    assert tag[0] == COLLECTED


def test_a_ring_ends_and_a_list_that_leads_away_is_told() -> None:
    made = Segments()
    segment = made.segment()
    ring = made.page(segment, 64, OBJECT, 10, [1, 2])
    made.put(ring + 2 * 64, "Q", ring + 64)
    astray = made.page(segment, 64, OBJECT, 10, [1, 2])
    made.put(astray + 64, "Q", ring + 5 * 64)
    pages = made.pages()
    assert numbers(pages, 0) == [0, 3, 4, 5, 6, 7, 8, 9]
    assert numbers(pages, 1) == [0, 2, 3, 4, 5, 6, 7, 8, 9]
    assert pages.damaged.tolist() == [ring, astray]


def test_another_mimalloc_in_the_process_is_not_ours() -> None:
    made = Segments()
    ours = made.segment(0)
    for number in (1, 2, 3):
        made.page(made.segment(number, COOKIE ^ 0xFF00), 48, OBJECT, 20, [])
    page = made.page(ours, 48, OBJECT, 20, [])
    interpreter = RUNTIME + 0x40000
    made.put(RUNTIME + LAYOUT["_PyRuntimeState.interpreters.head"], "Q", interpreter)
    made.put(interpreter + LAYOUT["PyInterpreterState.sysdict"], "Q", page + 48)
    assert made.pages().address.tolist() == [page]


def test_a_large_block_has_a_segment_of_its_own() -> None:
    made = Segments()
    segment = made.segment()
    made.page(segment, 4096, MEMORY, 1, [])
    made.put(segment + 32, "Q", 1025 * SLICE)
    made.put(segment + 224, "QQI", 1025, 1, 1)
    entry = segment + 264 + made.entry
    made.put(entry, "II", 1024, 0)
    made.put(entry + 28, "I", 1024 * SLICE)
    pages = made.pages()
    assert pages.block.tolist() == [1024 * SLICE]
    assert pages.find(np.array([segment + (40 << 20)], np.uint64))[1].tolist() == [True]


@given(st.data())
def test_whatever_was_written_over_the_heads_there_is_an_answer(data: st.DataObject) -> None:
    made = Segments()
    segment = made.segment()
    for block in (48, 1024):
        made.page(segment, block, OBJECT, 20, [3, 1, 7], local_free=[5], xthread_free=[11, 10])
    made.owner(segment, RUNTIME + 0x80000, segment + SLICE + 3 * 48)
    words = st.one_of(st.integers(0, WORDS), st.sampled_from([0, 1, segment, segment + SLICE, WORDS]))
    for _ in range(data.draw(st.integers(1, 6))):
        made.put(segment + 8 * data.draw(st.integers(0, (264 + 4 * 96) // 8)), "Q", data.draw(words))
    pages = made.pages()
    assert (pages.handed_out * pages.block <= pages.size).all()
    assert (pages.used <= pages.handed_out).all()
    assert len(used_blocks(pages, np.arange(len(pages)))) == pages.used.sum()


def test_heads_of_living_objects() -> None:
    cases = [  # ob_tid, ob_ref_local, ob_ref_shared, ob_mutex, ob_gc_bits; alive
        ((7, 1, 0, 0, 1), True),
        ((7, 0, 0, 0, 1), False),  # dead
        ((0, 0, 3 << 2 | 3, 0, 1), True),  # merged
        ((0, 5, 0, 0, 1), False),  # a count of its own, and nobody's
        ((0, 5, 0, 0, 1 | 4), True),  # the collector has its number there
        ((7, 2, -(1 << 2), 0, 1), True),  # given back by another thread
        ((7, 1, -(1 << 2), 0, 1), False),
        ((0, 0xFFFFFFFF, 0, 0, 0), True),  # immortal
        ((7, 1, (1 << 60) << 2, 0, 64), True),  # deferred, as 3.14 has it
        ((7, 1, (1 << 60) << 2, 0, 0), False),
        ((7, 1, 0, 200, 1), False),  # no lock has this state
    ]
    columns = np.array([head for head, _ in cases], np.int64).T
    assert living_without_gil(*columns).tolist() == [alive for _, alive in cases]
