"""Where threads began, from memory made byte by byte: of musl, of glibc without symbols, and damaged."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_captures import capture_of

from diagtool.capture.elf import PF_R, PF_X, PT_LOAD, SEGMENT
from diagtool.capture.memory import PAGE, AddressSpace, Segment
from diagtool.capture.model import Capture, CapturedThread, Mapping
from diagtool.capture.modules import Module
from diagtool.runtimes.native.starts import thread_starts

TEXT, STACKS = 0x5555_0000_0000, 0x7F00_0000_0000
SIZE = 4 * PAGE  # of a stack with struct pthread on top
BLOCK = 0xC00  # bytes for struct pthread


def module(path: str) -> Module:
    segments = np.array([(PT_LOAD, PF_R | PF_X, 0, 0, 0, 0x1000, 0x1000, 0x1000)], SEGMENT)
    return Module(path, TEXT, TEXT + 0x1000, TEXT, segments=segments)


def capture(libc: str, stacks: list[bytes]) -> Capture:
    """Process 7 with threads 8, 9 …, of which each has one of ``stacks``."""
    memory = AddressSpace()
    threads, mappings = [], []
    for i, data in enumerate(stacks):
        low = STACKS + i * SIZE
        number = memory.add_buffer(np.frombuffer(data, np.uint8))
        memory.add_segments([Segment(low, low + SIZE, number, 0, writable=True)])
        mappings.append(Mapping(low, low + SIZE, "rw-p", 0, 0, ""))
        threads.append(CapturedThread(8 + i, {"fs_base": low + SIZE - BLOCK, "rsp": low + PAGE}))
    empty = Module(libc, TEXT + 0x10000, TEXT + 0x20000, TEXT + 0x10000)
    return capture_of(
        modules=[module("/usr/bin/app"), empty], mappings=mappings, threads=threads, memory=memory
    )


def musl(number: int, routine: int, stack: int | None = None) -> bytes:
    low = STACKS + number * SIZE
    top = low + SIZE - BLOCK - 64
    data = bytearray(SIZE)
    struct.pack_into("<8Q", data, SIZE - BLOCK, low + SIZE - BLOCK, 1, 2, 3, 0, 4, 5, 2)
    words = (low, SIZE, top if stack is None else stack, SIZE - BLOCK - PAGE)
    struct.pack_into("<4Q", data, SIZE - BLOCK + 0x48, *words)
    struct.pack_into("<2Q", data, SIZE - BLOCK - 64 - 32, routine, 0x1234)
    return bytes(data)


def glibc(number: int, routine: int, offset: int = 0x640) -> bytes:
    low = STACKS + number * SIZE
    data = bytearray(SIZE)
    pointer = low + SIZE - BLOCK
    struct.pack_into("<3Q", data, SIZE - BLOCK, pointer, 0, pointer)
    struct.pack_into(
        "<Q", data, SIZE - BLOCK + 0x300, TEXT + 0x500 if number == 0 else 0
    )  # one thread's alone
    struct.pack_into("<2Q", data, SIZE - BLOCK + offset, routine, 0x1234)
    return bytes(data)


def found(capture: Capture) -> list[int | None]:
    return [s.code.address if s.code is not None else None for s in thread_starts(capture)]


def test_musl_has_it_on_top_of_each_stack() -> None:
    stacks = [musl(0, TEXT + 0x100), musl(1, TEXT + 0x200), musl(2, 0x99)]
    assert found(capture("/lib/ld-musl-x86_64.so.1", stacks)) == [TEXT + 0x100, TEXT + 0x200, None]


@pytest.mark.parametrize("stack", [0, 1, STACKS - 8, STACKS + SIZE + 8, (1 << 64) - 8])
def test_a_stack_that_is_none_of_the_threads_is_no_stack(stack: int) -> None:
    assert found(capture("/lib/ld-musl-x86_64.so.1", [musl(0, TEXT + 0x100, stack)])) == [None]


@pytest.mark.parametrize("offset", [0x600, 0x640, 0x648, 0x690])
def test_glibc_without_symbols_has_it_where_all_threads_have_code(offset: int) -> None:
    stacks = [glibc(0, TEXT + 0x100, offset), glibc(1, TEXT + 0x100, offset), glibc(2, TEXT + 0x200, offset)]
    assert found(capture("/lib/x86_64-linux-gnu/libc.so.6", stacks)) == [
        TEXT + 0x100,
        TEXT + 0x100,
        TEXT + 0x200,
    ]


def test_another_c_library_is_not_known() -> None:
    stacks = [glibc(0, TEXT + 0x100), glibc(1, TEXT + 0x100)]
    assert found(capture("/opt/libother.so", stacks)) == [None, None]


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([musl, glibc]),
    st.lists(st.tuples(st.integers(0, BLOCK // 8 + 15), st.integers(0, (1 << 64) - 1)), max_size=30),
)
def test_no_words_make_it_raise(made, changes: list[tuple[int, int]]) -> None:  # type: ignore[no-untyped-def]
    stacks = []
    for number in range(3):
        data = bytearray(made(number, TEXT + 0x100))
        for place, value in changes:
            struct.pack_into("<Q", data, SIZE - BLOCK - 128 + 8 * place, value)
        stacks.append(bytes(data))
    assert len(found(capture("/lib/libc.so.6", stacks))) == 3
