"""Memory that comes when it is read is what a copy of it would be, whatever is read and in which order."""

from __future__ import annotations

import numpy as np
import pytest

from diagtool.capture.lazy import LazyBuffer
from diagtool.capture.memory import PAGE, AddressSpace, MemoryFault, Segment

BASE = 0x7000_0000_0000
PAGES = 300


class Process:
    """Stands in for the memory of a process: page i is filled with the word i; some can't be read."""

    def __init__(self, lost: int | None = None) -> None:
        self.lost = lost
        self.data = np.repeat(np.arange(2 * PAGES, dtype=np.uint64), PAGE // 8).view(np.uint8)

    def scatter(self, remote: np.ndarray, local: np.ndarray) -> list[tuple[int, int]]:
        import ctypes

        out = []
        for (address, size), (place, _) in zip(remote.tolist(), local.tolist(), strict=True):
            part = self.data[address - BASE : address - BASE + size]
            ctypes.memmove(place, part.ctypes.data, size)
            if self.lost is not None and address <= self.lost < address + size:
                at = place + (self.lost & -PAGE) - address
                out.append((at, at + PAGE))
        return out

    def read(self, vectors: np.ndarray, at: int) -> list[tuple[int, int]]:
        import ctypes

        for address, size in vectors.tolist():
            part = self.data[address - BASE : address - BASE + size]
            ctypes.memmove(at, part.ctypes.data, size)
            at += size
        return []


def space(process: Process, limit: int) -> tuple[AddressSpace, LazyBuffer]:
    # Two ranges with a hole between them.
    ranges = np.array([[BASE, BASE + 100 * PAGE], [BASE + 200 * PAGE, BASE + 400 * PAGE]], dtype=np.uint64)
    offsets = np.array([0, 100 * PAGE], dtype=np.uint64)
    lazy = LazyBuffer(process, ranges, offsets, limit)  # type: ignore[arg-type]
    memory = AddressSpace()
    number = memory.add_buffer(lazy.array, source=lazy)
    for (start, end), offset in zip(ranges.tolist(), offsets.tolist(), strict=True):
        memory.add_segments([Segment(start, end, number, offset)])
    return memory, lazy


@pytest.mark.parametrize("limit", [16 * PAGE, 50 * PAGE, 10_000 * PAGE])
def test_single_reads_gathers_and_scans_agree(limit: int) -> None:
    memory, _ = space(Process(), limit)
    choose = np.random.default_rng(4)
    pages = np.concatenate([np.arange(100), np.arange(200, 400)])
    for _ in range(5):
        wanted = choose.permutation(np.repeat(pages, 3)).astype(np.uint64)
        values, ok = memory.load(wanted * np.uint64(PAGE) + np.uint64(BASE + 16))
        assert ok.all()
        assert (values == wanted).all()
        for page in choose.choice(pages, 20).tolist():
            assert memory.u64(BASE + page * PAGE + 8) == page
    assert not memory.load(np.array([BASE + 150 * PAGE], dtype=np.uint64))[1].any()
    seen = {int(a): w for a, w in memory.blocks(step=7 * PAGE)}
    assert sum(w.nbytes for w in seen.values()) == 300 * PAGE
    assert all((w == (np.arange(a - BASE, a - BASE + w.nbytes, 8) // PAGE)).all() for a, w in seen.items())
    kept = [words for _, words in memory.blocks(step=5 * PAGE)]  # whoever keeps blocks has them as they were
    assert [int(words[0]) for words in kept] == [*range(0, 100, 5), *range(200, 400, 5)]
    whole = memory.read(BASE + 210 * PAGE + 4088, 16)
    assert whole == (210).to_bytes(8, "little") + (211).to_bytes(8, "little")


def test_a_page_that_is_gone_is_a_fault_and_no_zeros() -> None:
    memory, lazy = space(Process(lost=BASE + 7 * PAGE), 1 << 30)
    values, ok = memory.load(np.arange(5, 9, dtype=np.uint64) * np.uint64(PAGE) + np.uint64(BASE))
    assert ok.tolist() == [True, True, False, True]
    assert values[3] == 8
    with pytest.raises(MemoryFault):
        memory.read(BASE + 7 * PAGE, 8)
    assert lazy.failed == 1
