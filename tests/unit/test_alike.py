"""Stacks that need not be unwound, because another one was: only where that gives the same frames."""

from __future__ import annotations

import numpy as np
import pytest

from diagtool.capture.memory import AddressSpace, Segment
from diagtool.capture.model import CapturedThread
from diagtool.runtimes.native.stacks.alike import Unwound, Waiting
from diagtool.runtimes.native.stacks.model import NativeFrame

CODE = 0x40_1000
FIRST, SECOND = 0x7F00_0000_0000, 0x7F00_0010_0000
FAR = SECOND - FIRST
#: By offset into the stack: saved rbx (data), saved rbp (a place in the stack), a return address, saved rbp
#: of the next one, a return address.
WORDS = {0: 5, 8: FIRST + 0x80, 16: CODE + 0x10, 0x80: 0, 0x88: CODE + 0x20}
FRAMES = [
    NativeFrame(CODE, FIRST),
    NativeFrame(CODE + 0x10, FIRST + 24),
    NativeFrame(CODE + 0x20, FIRST + 0x90),
]


def thread(tid: int, stack: int, **registers: int) -> CapturedThread:
    return CapturedThread(tid, {"rip": CODE, "rsp": stack, "rbp": stack + 8, "rbx": tid, **registers})


def stack_of(words: dict[int, int], size: int = 0x100) -> np.ndarray:
    made = np.zeros(size // 8, "<u8")
    for offset, word in words.items():
        made[offset // 8] = word
    return made.view(np.uint8)


def found(other: dict[int, int], second: CapturedThread | None = None, end: int = 0x100) -> list[int]:
    """Which threads the first one, unwound, stands for; ``other``: words of the second stack."""
    memory = AddressSpace()
    for start, words, size in ((FIRST, WORDS, 0x100), (SECOND, other, end)):
        number = memory.add_buffer(stack_of(words)[:size])
        memory.add_segments([Segment(start, start + size, number, 0)])
    threads = [thread(1, FIRST), second or thread(2, SECOND)]
    reads = [(FIRST + offset, word.to_bytes(8, "little")) for offset, word in WORDS.items()]
    unwound = Unwound(threads[0], FRAMES, reads)
    waiting = Waiting(memory, threads)
    waiting.take(0)
    out = waiting.alike(0, unwound)
    if out:
        assert not waiting.alike(0, unwound)  # once
        moved = unwound.at(SECOND)
        assert [f.pc for f in moved] == [f.pc for f in FRAMES]
        assert [f.sp - FAR for f in moved] == [f.sp for f in FRAMES]
    return out


ALIKE = {**WORDS, 8: SECOND + 0x80}


def test_a_stack_that_lies_elsewhere_has_the_same_frames() -> None:
    assert found(ALIKE) == [1]


def test_data_that_registers_held_does_not_matter() -> None:
    assert found({**ALIKE, 0: 6, 0x80: 77, 0x90: 1}) == [1]


@pytest.mark.parametrize(
    "change",
    [
        {16: CODE + 0x11},  # another caller
        {0x88: CODE + 0x10},
        {8: FIRST + 0x80},  # a frame pointer that leads to the stack of the other thread
        {8: SECOND + 0x88},  # or to another place
        {8: 0},
    ],
    ids=str,
)
def test_a_word_that_leads_elsewhere_means_another_stack(change: dict[int, int]) -> None:
    assert found({**ALIKE, **change}) == []


def test_registers_that_lead_elsewhere_mean_another_stack() -> None:
    assert found(ALIKE, thread(2, SECOND, rbp=SECOND + 16)) == []
    assert found(ALIKE, thread(2, SECOND, rip=CODE + 1)) == []
    assert found(ALIKE, thread(2, SECOND, rbx=99)) == [1]


def test_a_stack_of_another_alignment_is_unwound_by_itself() -> None:
    shifted = {offset + 8: word + (8 if offset == 8 else 0) for offset, word in ALIKE.items()}
    assert found(shifted, thread(2, SECOND + 8)) == []


def test_a_stack_of_which_a_part_is_missing_is_unwound_by_itself() -> None:
    assert found(ALIKE, end=0x88) == []
    assert found(ALIKE, end=0x90) == [1]


@pytest.mark.parametrize(
    "reads",
    [
        [],
        [(FIRST - 64, bytes(8))],  # below the stack pointer
        [(FIRST + (64 << 20), bytes(8))],  # on another stack
        [(FIRST, bytes(4))],
        [(FIRST + 8 * i, bytes(8)) for i in range(5000)],
    ],
    ids=["none", "below", "elsewhere", "half a word", "very many"],
)
def test_what_was_not_unwound_as_usual_stands_for_no_other(reads: list[tuple[int, bytes]]) -> None:
    threads = [thread(1, FIRST), thread(2, SECOND)]
    waiting = Waiting(AddressSpace(), threads)
    waiting.take(0)
    assert waiting.alike(0, Unwound(threads[0], FRAMES, reads)) == []


def test_many_stacks_that_are_all_different_are_not_all_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = [thread(i, FIRST + 0x1000 * i, rbp=FIRST + 0x1000 * i + 8 * i) for i in range(200)]
    waiting = Waiting(AddressSpace(), threads)
    compared = 0

    def same(self: Unwound, memory: AddressSpace, registers: np.ndarray) -> np.ndarray:
        nonlocal compared
        compared += len(registers)
        return np.zeros(len(registers), np.bool_)

    monkeypatch.setattr(Unwound, "same", same)
    for number, one in enumerate(threads):
        waiting.take(number)
        assert waiting.alike(number, Unwound(one, FRAMES, [(one.registers["rsp"], bytes(8))])) == []
    assert compared < 33 * 200
