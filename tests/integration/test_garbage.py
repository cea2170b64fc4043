"""A process whose memory is damaged all over: the decoder says what it can, and neither raises nor hangs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from diagtool.capture.errors import TargetError
from diagtool.capture.live import capture_live
from diagtool.capture.memory import AddressSpace, Segment
from diagtool.capture.model import Capture
from diagtool.runtimes.cpython.decode import decode
from fixture_programs import FIXTURES, Interpreter, interpreters, launch

Words = NDArray[np.uint64]
Damage = Callable[[Words, np.random.Generator, float, int], None]

#: A decode of the zoo takes less than a second; these bound what garbage may cost.
pytestmark = pytest.mark.timeout(300)


def some(words: Words, random: np.random.Generator, rate: float) -> NDArray[np.intp]:
    return random.integers(0, len(words), max(1, int(len(words) * rate)))


def pointers(words: Words, random: np.random.Generator, rate: float) -> NDArray[np.intp]:
    there = np.flatnonzero(words > 1 << 40)
    return there[some(there, random, rate)] if len(there) else there


def other_words(words: Words, random: np.random.Generator, rate: float, start: int) -> None:
    words[some(words, random, rate)] = words[some(words, random, rate)]


def random_bits(words: Words, random: np.random.Generator, rate: float, start: int) -> None:
    at = some(words, random, rate)
    words[at] = random.integers(0, 1 << 63, len(at)).astype(np.uint64)


def all_ones(words: Words, random: np.random.Generator, rate: float, start: int) -> None:
    words[some(words, random, rate)] = np.uint64(2**64 - 1)


def shifted(words: Words, random: np.random.Generator, rate: float, start: int) -> None:
    at = some(words, random, rate)
    words[at] = words[np.minimum(at + random.integers(1, 16, len(at)), len(words) - 1)]


def absurd_sizes(words: Words, random: np.random.Generator, rate: float, start: int) -> None:
    small = np.flatnonzero((words > 0) & (words < 4096))
    if len(small):
        at = small[some(small, random, rate)]
        words[at] = np.uint64(1) << random.integers(10, 45, len(at)).astype(np.uint64)


def wrong_objects(words: Words, random: np.random.Generator, rate: float, start: int) -> None:
    at = pointers(words, random, rate)
    if len(at):
        words[at] = words[random.permutation(at)]


def cycles(words: Words, random: np.random.Generator, rate: float, start: int) -> None:
    at = pointers(words, random, rate)
    back = (at.astype(np.uint64) * np.uint64(8) & np.uint64(~15 & 2**64 - 1)) + np.uint64(start)
    words[at] = back - random.integers(0, 8, len(at)).astype(np.uint64) * np.uint64(16)


DAMAGE: list[Damage] = [other_words, random_bits, all_ones, shifted, absurd_sizes, wrong_objects, cycles]


def damaged(capture: Capture, damage: Damage, random: np.random.Generator, rate: float) -> Capture:
    """The same capture over a copy of its memory, the writable part of which is damaged."""
    memory = AddressSpace()
    for segment in capture.memory.segments:
        data = np.frombuffer(
            bytearray(capture.memory.read(segment.start, segment.end - segment.start)), np.uint8
        )
        words = data[-segment.start % 8 :]
        words = words[: len(words) & -8].view("<u8")
        if segment.writable and len(words) > 16:
            damage(words, random, rate, segment.start)
        memory.add_segments(
            [Segment(segment.start, segment.end, memory.add_buffer(data), 0, segment.writable)]
        )
    return dataclasses.replace(capture, memory=memory)


SEEDS = int(os.environ.get("DIAGTOOL_TEST_SEEDS", "1"))


@pytest.fixture(scope="module", params=[i for i in interpreters() if i.minor in (9, 12, 14)], ids=str)
def capture(request: pytest.FixtureRequest) -> Iterator[Capture]:
    interpreter: Interpreter = request.param
    with launch(FIXTURES["zoo"], "full", interpreter) as program:
        program.wait_line(r"\{")
        with capture_live(program.pid) as live:
            decode(live)  # whatever is not in the copy is asked for now
            yield live


@pytest.mark.parametrize("rate", [0.002, 0.05])
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda d: d.__name__.upper())
def test_damaged_memory_is_decoded_or_refused(capture: Capture, damage: Damage, rate: float) -> None:
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        try:
            snapshot = decode(damaged(capture, damage, random, rate))
        except TargetError:
            continue  # one sentence of what is wrong: no interpreter is left to be found
        assert len(snapshot.stacks.name) == len(snapshot.stacks.kind)
        assert all(0 <= row < len(snapshot.stacks) for pair in snapshot.awaits.tolist() for row in pair)
