"""Frame chains of greenlets from synthesised memory: copied C stacks, cycles and garbage."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from made_objects import BASE, LAYOUT, Heap

from diagtool.runtimes.cpython.greenlets.frames import GreenletFrames, walk

SIZE = LAYOUT["sizeof._PyInterpreterFrame"]
SHIM = LAYOUT["const.FRAME_OWNED_BY_CSTACK"]


def text(heap: Heap, characters: str) -> int:
    address = heap.object("str", LAYOUT["sizeof.PyASCIIObject"] + len(characters) + 1)
    heap.field(heap.type("str"), "PyTypeObject.tp_flags", 1 << 28)
    heap.field(address, "PyASCIIObject.length", len(characters))
    shift = LAYOUT["const.unicode_state_kind_shift"]
    compact, ascii_only = (LAYOUT[f"const.unicode_state_{n}_shift"] for n in ("compact", "ascii"))
    heap.field(address, "PyASCIIObject.state", 1 << shift | 1 << compact | 1 << ascii_only, "I")
    for i, c in enumerate(characters.encode()):
        heap.put(address + LAYOUT["sizeof.PyASCIIObject"] + i, "B", c)
    return address


def code(heap: Heap, name: str) -> int:
    address = heap.object("code", LAYOUT["sizeof.PyCodeObject"] + 64)
    for field in ("co_name", "co_qualname", "co_filename"):
        heap.field(address, f"PyCodeObject.{field}", text(heap, name))
    table = heap.object("bytes", 64)
    heap.field(table, "PyVarObject.ob_size", 0)
    heap.field(address, "PyCodeObject.co_linetable", table)
    return address


def frame(heap: Heap, at: int, code: int, previous: int, owner: int = 0) -> int:
    heap.field(at, "_PyInterpreterFrame.f_code", code)
    heap.field(at, "_PyInterpreterFrame.previous", previous)
    heap.field(at, "_PyInterpreterFrame.owner", owner, "B")
    pointer = code + LAYOUT["PyCodeObject.co_code_adaptive"] + 6
    heap.field(at, "_PyInterpreterFrame.prev_instr", pointer)
    return at


def names(heap: Heap, first: list[int], start: int = 0, saved: int = 0, copy: int = 0) -> list[list[str]]:
    ctx = heap.context()
    found = walk(
        ctx,
        np.array(first, np.uint64),
        *(np.full(len(first), value, np.uint64) for value in (start, saved, copy)),
    )
    traces = found.traces(ctx)
    own = [ctx.builder.frames_of(int(t)) for t in traces]
    for row, frames in enumerate(own):
        assert len(frames) == found.first[row + 1] - found.first[row]
    return [[f.function for f in frames] for frames in own]


def test_chains_of_different_length_keep_their_frames_apart() -> None:
    heap = Heap()
    a, b, c = (code(heap, n) for n in "abc")
    outer = frame(heap, heap.room(SIZE), a, 0)
    shim = frame(heap, heap.room(SIZE), b, outer, SHIM)
    middle = frame(heap, heap.room(SIZE), b, shim)
    inner = frame(heap, heap.room(SIZE), c, middle)
    assert names(heap, [inner, outer, 0, middle]) == [["c", "b", "a"], ["a"], [], ["b", "a"]]


def test_frames_on_a_copied_c_stack_are_read_from_the_copy() -> None:
    heap = Heap()
    a, b = code(heap, "a"), code(heap, "b")
    stack, copy = heap.room(4096), heap.room(4096)
    outer = frame(heap, heap.room(SIZE), a, 0)
    frame(heap, copy + 256, a, outer, SHIM)  # what the greenlet had there
    frame(heap, stack + 256, b, 0)  # what lies there now, of another greenlet
    inner = frame(heap, heap.room(SIZE), b, stack + 256)
    assert names(heap, [inner], stack, 512, copy) == [["b", "a"]]
    assert names(heap, [inner], stack, 128, copy) == [["b", "b"]]  # only the beginning was copied


def test_cycles_and_garbage_end_a_chain_and_no_other() -> None:
    heap = Heap()
    a = code(heap, "a")
    fine = frame(heap, heap.room(SIZE), a, 0)
    ring = [heap.room(SIZE) for _ in range(5)]
    for at, previous in zip(ring, [*ring[1:], ring[0]], strict=True):
        frame(heap, at, a, previous)
    alone = frame(heap, heap.room(SIZE), a, 0)
    heap.field(alone, "_PyInterpreterFrame.previous", alone)
    wild = frame(heap, heap.room(SIZE), a, 0xDEAD_BEEF_0000_0008)
    found = names(heap, [fine, ring[0], alone, wild, 1, (1 << 64) - 8])
    assert found[0] == found[3] == ["a"]
    assert 5 <= len(found[1]) < 50 and 1 <= len(found[2]) < 10
    assert found[4] == found[5] == []


@given(st.binary(min_size=512, max_size=512), st.integers(0, 60), st.integers(0, (1 << 64) - 1))
def test_random_memory_never_raises(noise: bytes, at: int, copy: int) -> None:
    heap = Heap(1 << 14)
    code(heap, "a")
    place = heap.room(512)
    heap.data[place - BASE : place - BASE + 512] = noise
    frames = walk(
        heap.context(),
        np.array([place + 8 * at, BASE], np.uint64),
        np.array([place, 0], np.uint64),
        np.array([1 << 40, 1 << 63], np.uint64),
        np.array([copy, copy], np.uint64),
    )
    assert isinstance(frames, GreenletFrames) and frames.count == 2
