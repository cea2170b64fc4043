"""The marking of Go's heap against a simple one, on heaps that were made up: what is stuck is the same."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diagtool.capture.memory import AddressSpace, Segment
from diagtool.runtimes.golang.heap.edges import scan
from diagtool.runtimes.golang.heap.objects import Objects
from diagtool.runtimes.golang.heap.spans import PAGE, Spans
from diagtool.runtimes.golang.liveness.proof import _Marking
from diagtool.runtimes.golang.liveness.waiting import Waiting
from diagtool.runtimes.native.reach import mark

BASE = 0xC000000000
BITS = 0x7F0000000000
SWEEPGEN = 8


class EveryWord:
    """All words may be pointers."""

    def pointers(self, span: NDArray[Any], *rest: object) -> NDArray[np.bool_]:
        return np.ones(len(span), np.bool_)


@dataclass
class World:
    """Spans, what is in their objects, and goroutines: what they wait on and what their stacks hold."""

    random: random.Random
    spans: list[dict[str, int]] = field(default_factory=list)
    waits: list[list[int]] = field(default_factory=list)
    stacks: list[list[int]] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        pages = 0
        for _ in range(self.random.randint(1, 6)):
            pages += self.random.choice((0, 0, 1, 3))
            size = self.random.choice((16, 48, 96, 480, 1024, 3072, PAGE, 3 * PAGE))
            long = -(-size // PAGE)
            objects = max(1, long * PAGE // size) if size <= PAGE else 1
            self.spans.append(
                {
                    "base": BASE + pages * PAGE,
                    "pages": long,
                    "size": size,
                    "objects": objects,
                    "free_from": self.random.choice((0, 1, objects // 2, objects)),
                    "noscan": int(self.random.random() < 0.3),
                    "sweepgen": self.random.choice((SWEEPGEN, SWEEPGEN - 2, SWEEPGEN - 1)),
                }
            )
            pages += long
        self.data = np.zeros(pages * PAGE // 8, np.uint64)
        self.bits = np.array([self.random.getrandbits(8) for _ in range(128 * len(self.spans))], np.uint8)
        for place in self.random.sample(
            range(len(self.data)), min(len(self.data), self.random.randint(0, 400))
        ):
            self.data[place] = self.somewhere()
        for _ in range(self.random.randint(1, 30)):
            self.waits.append([self.somewhere() for _ in range(self.random.randint(1, 3))])
            self.stacks.append([self.somewhere() for _ in range(self.random.randint(0, 4))])
        self.roots = [self.somewhere() for _ in range(self.random.randint(0, 3))]
        self.hidden = sorted(
            BASE + 8 * p for p in self.random.sample(range(len(self.data)), len(self.data) // 50)
        )

    def somewhere(self) -> int:
        """An address in an object, most often where it begins; now and then between objects, or outside."""
        if self.random.random() < 0.1:
            return BASE + self.random.randrange(-PAGE, 20 * PAGE)
        span = self.random.choice(self.spans)
        offset = self.random.randrange(span["objects"]) % 40 * span["size"]
        return span["base"] + offset + self.random.choice((0, 0, 0, 8, span["size"] - 1))

    # -- the simple way ---------------------------------------------------------------------------------

    def object_at(self, address: int) -> tuple[int, int] | None:
        for number, span in enumerate(self.spans):
            offset = address - span["base"]
            if 0 <= offset < span["pages"] * PAGE:
                slot = offset // span["size"]
                if slot >= span["objects"]:
                    return None
                bit = int(self.bits[128 * number + slot // 8]) >> slot % 8 & 1
                known = span["sweepgen"] != SWEEPGEN - 1 and not span["noscan"]
                free = known and slot >= span["free_from"] and not bit
                return None if free else (number, slot)
        return None

    def stuck(self) -> set[int]:
        marked: set[tuple[int, int]] = set()
        awake: set[int] = set()
        hidden = set(self.hidden)

        def reach(address: int) -> None:
            todo = [self.object_at(address)]
            while todo:
                found = todo.pop()
                if found is None or found in marked:
                    continue
                marked.add(found)
                span = self.spans[found[0]]
                start = span["base"] + found[1] * span["size"]
                for word in range(start, start + span["size"] & -8, 8) if not span["noscan"] else ():
                    if word not in hidden:
                        todo.append(self.object_at(int(self.data[(word - BASE) // 8])))

        for address in self.roots:
            reach(address)
        while True:
            fresh = [
                number
                for number, things in enumerate(self.waits)
                if number not in awake
                and any((o := self.object_at(t)) is None or o in marked for t in things)
            ]
            if not fresh:
                return set(range(len(self.waits))) - awake
            awake.update(fresh)
            for number in fresh:
                for address in self.stacks[number]:
                    reach(address)

    # -- ours -------------------------------------------------------------------------------------------

    def proven(self) -> set[int]:
        memory = AddressSpace()
        for start, data in ((BASE, self.data.view(np.uint8)), (BITS, self.bits)):
            number = memory.add_buffer(np.ascontiguousarray(data))
            memory.add_segments([Segment(start, start + len(data), number, 0)])

        def column(name: str, kind: str = "i8") -> NDArray[Any]:
            return np.array([s[name] for s in self.spans], kind)

        count = len(self.spans)
        zeros = np.zeros(count, np.uint64)
        size = column("size")
        spans = Spans(
            address=zeros,
            base=column("base", "u8"),
            pages=column("pages"),
            size=size,
            objects=column("objects"),
            free_from=column("free_from"),
            bits=np.uint64(BITS) + np.arange(count, dtype=np.uint64) * np.uint64(128),
            divisor=np.where(column("objects") == 1, 0, 0xFFFFFFFF // size + 1).astype(np.uint64),
            noscan=column("noscan") != 0,
            state=np.ones(count, np.uint8),
            sizeclass=np.ones(count, np.uint8),
            used=np.zeros(count, np.int64),
            sweepgen=column("sweepgen", "u4"),
            specials=zeros,
            large_type=zeros,
            user_arena=np.zeros(count, np.bool_),
        )
        row = np.repeat(np.arange(len(self.waits)), [len(w) for w in self.waits])
        thing = np.array([t for w in self.waits for t in w], np.uint64)
        objects = Objects(memory, spans, SWEEPGEN, np.unique(thing))
        found = scan(memory, objects, EveryWord(), np.array(self.hidden, np.uint64), 1 << 20)  # type: ignore[arg-type]
        assert found.complete and not found.missing
        everyone = np.ones(len(self.waits), np.bool_)
        marking: Any = object.__new__(_Marking)
        marking.all = np.zeros(len(everyone))
        marking.objects, marking.rows = objects, np.arange(len(everyone))
        marking.waiting = Waiting(row, thing, thing, everyone)
        marked = np.zeros(len(objects) + len(everyone), np.bool_)
        marking._mark(marked, (np.array(self.roots, np.uint64), 0))
        owner = np.repeat(np.arange(len(self.stacks)), [len(s) for s in self.stacks])
        target, there = objects.nodes(np.array([a for s in self.stacks for a in s], np.uint64))
        edges = marking._with_goroutines(marked, found.edges, len(objects) + owner[there], target[there])
        assert (np.diff(edges.source) >= 0).all()
        reached = mark(marked, edges)
        assert reached.complete
        return set(np.flatnonzero(~reached.reached[len(objects) :]).tolist())


@pytest.mark.parametrize("seed", range(8))
def test_made_up_heaps_are_marked_as_a_simple_marking_does(seed: int) -> None:
    proven = 0
    for number in range(40):
        world = World(random.Random(seed * 1000 + number))
        assert world.proven() == world.stuck(), (seed, number)
        proven += len(world.stuck())
    assert proven > 20
