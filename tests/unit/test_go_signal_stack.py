"""Where a Go thread keeps its stack for signals: found by what points back to itself, and nothing else."""

from __future__ import annotations

import ctypes
import os
import struct

import pytest

from diagtool.capture.gosignalstack import SIZE, go_signal_stack

TID, CURRENT, MACHINE, HANDLER, BLOCK = 77, 0, 1024, 2048, 3072
OLD, NEW = (72, 80), (64, 72)  # of an m: the thread's number, gsignal


class Thread:
    """A g, an m and a gsignal in memory of our own."""

    def __init__(self, offsets: tuple[int, int] = NEW) -> None:
        self.memory = ctypes.create_string_buffer(4096)
        self.base = ctypes.addressof(self.memory)
        self.low = 0x7000_0000_0000
        self.put(BLOCK - 8, self.base + CURRENT)
        self.put(CURRENT + 48, self.base + MACHINE)
        self.put(MACHINE + offsets[0], TID)
        self.put(MACHINE + offsets[1], self.base + HANDLER)
        self.put(HANDLER, self.low)
        self.put(HANDLER + 8, self.low + SIZE)
        self.put(HANDLER + 48, self.base + MACHINE)

    def put(self, at: int, word: int) -> None:
        struct.pack_into("<Q", self.memory, at, word)

    def found(self, tid: int = TID, pointer: int = 0xC000001000) -> tuple[int, int] | None:
        return go_signal_stack(os.getpid(), tid, pointer, self.base + BLOCK)


@pytest.mark.parametrize("offsets", [OLD, NEW])
def test_it_is_found_by_the_block_of_the_thread(offsets: tuple[int, int]) -> None:
    thread = Thread(offsets)
    assert thread.found() == (thread.low, thread.low + SIZE)


def test_one_that_is_in_use_is_no_room() -> None:
    thread = Thread()
    assert thread.found(pointer=thread.low + 0x100) is None
    thread.put(BLOCK - 8, thread.base + HANDLER)  # it handles a signal
    assert thread.found() is None


@pytest.mark.parametrize(
    ("at", "word"),
    [
        (MACHINE + NEW[0], TID + 1),  # of another thread
        (HANDLER + 48, 0),  # what points there does not point back
        (HANDLER + 8, 0x7000_0000_4000),  # not of that size
        (CURRENT + 48, 0),
        (BLOCK - 8, 0),
        (BLOCK - 8, 1 << 46),  # where nothing is
    ],
)
def test_what_is_something_else_does_not_pass_for_it(at: int, word: int) -> None:
    thread = Thread()
    thread.put(at, word)
    assert thread.found() is None


def test_threads_of_other_programs_have_none() -> None:
    assert Thread().found(tid=TID + 1) is None
    assert go_signal_stack(os.getpid(), TID, 0, 0) is None
    assert go_signal_stack(0x7FFFFFFF, TID, 0, 4096) is None
