"""Address spaces against the simplest possible model: a dictionary of bytes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diagtool.capture.memory import PAGE, AddressSpace, MemoryFault, Segment
from diagtool.capture.paging import MappedFile, file_resident, map_regular_file

relaxed = settings(deadline=None)  # never a wall time: the machine may be busy

BASE = 0x7F00_0000_0000
SPAN = 6 * PAGE


def u64(*values: int) -> NDArray[np.uint64]:
    return np.array(values, dtype=np.uint64)


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(1, 256, size, dtype=np.uint8).tobytes()


def buffer(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, dtype=np.uint8)


segments = st.lists(
    st.tuples(
        st.integers(0, SPAN),  # start
        st.integers(0, 2 * PAGE),  # length
        st.integers(0, 1),  # buffer
        st.integers(0, PAGE),  # offset
        st.booleans(),
    ),
    max_size=12,
)
pages_served = st.sets(st.integers(0, SPAN // PAGE))


def build(batches: list[list[tuple[int, int, int, int, bool]]]) -> tuple[AddressSpace, dict[int, int]]:
    """An address space, and the bytes that it must hold."""
    space, model = AddressSpace(), {}
    data = [noise(2 * PAGE, 1), noise(PAGE + 5, 2)]
    for d in data:
        space.add_buffer(buffer(d))
    for batch in batches:
        space.add_segments([Segment(BASE + s, BASE + s + n, b, o, writable=w) for s, n, b, o, w in batch])
        before = dict(model)
        for s, n, b, o, _ in sorted(batch, key=lambda x: x[0]):
            for i in range(min(n, len(data[b]) - o)):
                if s + i not in before:
                    model.setdefault(s + i, data[b][o + i])
    return space, model


@relaxed
@given(st.lists(segments, max_size=4))
def test_overlapping_segments_never_change_a_byte_that_is_there(
    batches: list[list[tuple[int, int, int, int, bool]]],
) -> None:
    space, model = build(batches)
    everything = u64(*(BASE + i for i in range(SPAN + 2 * PAGE)))
    values, ok = space.load(everything, "u1")
    assert np.flatnonzero(ok).tolist() == sorted(model)
    assert values[ok].tolist() == [model[i] for i in sorted(model)]
    held = space.segments
    assert all(a.end <= b.start for a, b in itertools.pairwise(held))


@relaxed
@given(
    st.lists(segments, max_size=3),
    pages_served,
    st.lists(st.tuples(st.integers(-8, SPAN + PAGE), st.integers(0, 40)), max_size=20),
)
def test_reads_equal_the_model_with_and_without_faults(
    batches: list[list[tuple[int, int, int, int, bool]]],
    served: set[int],
    reads: list[tuple[int, int]],
) -> None:
    space, model = build(batches)
    page_bytes = {p: noise(PAGE, 100 + p) for p in served}
    asked: list[int] = []

    def handler(pages: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
        asked.extend(pages.tolist())
        got = [p for p in pages.tolist() if (p - BASE) // PAGE in served and p >= BASE]
        return u64(*got), buffer(b"".join(page_bytes[(p - BASE) // PAGE] for p in got)).reshape(-1, PAGE)

    space.serve_faults(handler)
    full = dict(model)
    for p, content in page_bytes.items():
        for i in range(PAGE):
            full.setdefault(p * PAGE + i, content[i])
    for at, size in reads:
        want = [full.get(at + i) for i in range(size)]
        if None in want:
            with pytest.raises(MemoryFault):
                space.read(BASE + at, size)
        else:
            assert space.read(BASE + at, size) == bytes(want)  # type: ignore[arg-type]
    addresses = u64(*(BASE + at for at, _ in reads))
    values, ok = space.load(addresses)
    blocks, block_ok = space.load_block(addresses, 24)
    for i, (at, _) in enumerate(reads):
        word = [full.get(at + k) for k in range(8)]
        assert ok[i] == (None not in word)
        assert int(values[i]) == (int.from_bytes(bytes(word), "little") if ok[i] else 0)  # type: ignore[arg-type]
        block = [full.get(at + k) for k in range(24)]
        assert block_ok[i] == (None not in block)
        assert blocks[i].tolist() == (block if block_ok[i] else [0] * 24)
    assert len(asked) == len(set(asked)), "a page is asked for once"


@relaxed
@given(
    st.lists(segments, max_size=3),
    st.none() | st.lists(st.tuples(st.integers(0, SPAN), st.integers(0, SPAN)), max_size=5),
    st.sampled_from([64, PAGE, 1 << 20]),
)
def test_blocks_yield_every_aligned_writable_word_once(
    batches: list[list[tuple[int, int, int, int, bool]]],
    within: list[tuple[int, int]] | None,
    step: int,
) -> None:
    space, model = build(batches)
    limits = None if within is None else [(BASE + a, BASE + b) for a, b in within]
    got: dict[int, int] = {}
    for start, words in space.blocks(limits, step):
        assert start % 8 == 0 and len(words) * 8 <= step
        for i, word in enumerate(words.tolist()):
            assert start + 8 * i not in got, "a word comes once"
            got[start + 8 * i] = word
    inside = {a for seg in space.segments if seg.writable for a in range(seg.start + 7 & -8, seg.end - 7, 8)}
    if limits is not None:
        covered = {x for a, b in limits for x in range(a, b)}
        inside = {a for a in inside if all(a + k in covered for k in range(8))}
    assert set(got) == inside
    for address, word in got.items():
        raw = bytes(model[address - BASE + k] for k in range(8))
        assert word == int.from_bytes(raw, "little")


def test_faults_outside_the_known_ranges_are_never_asked_for() -> None:
    asked: list[int] = []

    def handler(pages: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
        asked.extend(pages.tolist())
        return pages, np.ones((len(pages), PAGE), dtype=np.uint8)

    space = AddressSpace()
    space.serve_faults(handler, within=[(BASE + 100, BASE + PAGE + 1), (BASE, BASE + 10)])
    assert space.read(BASE + PAGE, 8) == b"\1" * 8
    assert space.try_read(BASE + 2 * PAGE, 1) is None
    _, ok = space.load(u64(BASE, BASE + 2 * PAGE, 8, 1 << 50))
    assert ok.tolist() == [True, False, False, False]
    assert asked == [BASE + PAGE, BASE]


def test_a_handler_may_add_whole_mappings_itself() -> None:
    content = noise(3 * PAGE)
    calls = []

    def handler(pages: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
        calls.append(pages)
        assert space.peek(BASE, 1) is None, "peek does not ask the handler again"
        space.add_segments([Segment(BASE, BASE + 3 * PAGE, space.add_buffer(buffer(content)), 0, False)])
        return pages[:0], np.zeros((0, PAGE), dtype=np.uint8)

    space = AddressSpace(handler)
    assert space.read(BASE + 5, 2 * PAGE) == content[5 : 5 + 2 * PAGE]
    assert len(calls) == 1
    assert space.faulted == []


@pytest.mark.parametrize("lie", ["nothing", "another page", "short data"])
def test_a_handler_that_lies_ends_in_a_fault_not_in_a_loop(lie: str) -> None:
    def handler(pages: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
        if lie == "another page":
            return pages + np.uint64(8 * PAGE), np.zeros((len(pages), PAGE), dtype=np.uint8)
        return (
            (pages, np.zeros(100, dtype=np.uint8)) if lie == "short data" else (pages[:0], np.zeros(0, "u1"))
        )

    space = AddressSpace(handler)
    for _ in range(2):
        with pytest.raises(MemoryFault):
            space.read(BASE, 16)


def test_thousands_of_single_faults_share_buffers_and_join() -> None:
    def handler(pages: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
        return pages, (pages // np.uint64(PAGE)).astype(np.uint8)[:, None].repeat(PAGE, axis=1)

    space = AddressSpace(handler)
    for i in range(3000):
        assert space.u8(BASE + i * PAGE) == (BASE // PAGE + i) % 256
    assert len(space.segments) == -(-3000 // 256)
    assert space.faulted == [BASE + i * PAGE for i in range(3000)]
    _, ok = space.load(u64(*(BASE + i * PAGE - 4 for i in range(1, 3000))))
    assert ok.all(), "words across pages that came one by one"


@pytest.mark.parametrize("address", [-1, 0, 1 << 64, (1 << 64) - 4, 1 << 200])
def test_absurd_addresses_and_sizes_are_faults(address: int) -> None:
    space = AddressSpace()
    space.add_segments([Segment((1 << 64) - PAGE, 1 << 64, space.add_buffer(buffer(noise(PAGE))), 0)])
    for size in (8, 1 << 40, -1):
        with pytest.raises(MemoryFault):
            space.read(address, size)
    with pytest.raises(MemoryFault):
        space.u64(address)


@pytest.fixture
def big_file(tmp_path: object) -> Iterator[MappedFile]:
    path = f"{tmp_path}/big"
    with open(path, "wb") as f:
        block = noise(16 << 20)
        for _ in range(24):
            f.write(block)
    mapped = map_regular_file(path)
    assert mapped is not None
    yield mapped
    mapped.close()
    os.unlink(path)


def test_a_paged_buffer_never_becomes_resident_as_a_whole(big_file: MappedFile) -> None:
    """384 MiB of file: reads of any kind, all over it, keep the resident part bounded."""
    space = AddressSpace()
    number = space.add_buffer(big_file.array, big_file)
    space.add_segments([Segment(BASE, BASE + big_file.size, number, 0)])
    block = noise(16 << 20)
    start = file_resident()

    at = np.random.default_rng(5).integers(0, big_file.size - 8, 50_000).astype(np.uint64)
    values, ok = space.load(at + np.uint64(BASE))
    assert ok.all()
    assert file_resident() - start < 192 << 20
    expect = [
        int.from_bytes((block + block[:8])[i : i + 8], "little") for i in (at[:500] % len(block)).tolist()
    ]
    assert values[:500].tolist() == expect

    for i in range(0, big_file.size - 8, 1 << 17):
        space.u64(BASE + i)
        assert file_resident() - start < 288 << 20
    total = 0
    for _, words in space.blocks():
        total += int(words[0] & np.uint64(1)) + len(words)
        assert file_resident() - start < 288 << 20
    assert total >= big_file.size // 8


def test_closing_gives_up_the_bytes(big_file: MappedFile) -> None:
    space = AddressSpace()
    space.add_segments([Segment(BASE, BASE + PAGE, space.add_buffer(big_file.array, big_file), 0)])
    assert space.try_read(BASE, 8) is not None
    space.close()
    assert space.try_read(BASE, 8) is None
    big_file.close()
    assert big_file.map.closed
