"""Whether the garbage collector is on, which the table of transports says of each kind of transport."""

from __future__ import annotations

import numpy as np
import pytest
from made_objects import BASE, LAYOUT, Heap

from diagtool.runtimes.cpython.objects.census import Census, TypeNames
from diagtool.runtimes.cpython.objects.objectcounts import ObjectCounts
from diagtool.runtimes.cpython.threads.interpreters import Interpreter, read_interpreters

TRANSPORT = ("asyncio.selector_events", "_SelectorSocketTransport")


def interpreter(heap: Heap, enabled: int) -> int:
    """An interpreter without threads whose collector's switch holds that word."""
    address = heap.room(1 << 18)
    heap.field(address, "PyInterpreterState.gc.enabled", enabled, "i")
    return address


@pytest.mark.parametrize(("word", "expected"), [(0, False), (1, True), (7, None), (-1, None)])
def test_only_a_word_that_is_a_switch_says_whether_the_collector_is_on(
    word: int, expected: bool | None
) -> None:
    heap = Heap()
    # The runtime of made objects lies where the memory begins.
    heap.put(BASE + LAYOUT["_PyRuntimeState.interpreters.head"], "Q", interpreter(heap, word))
    assert [i.collects for i in read_interpreters(heap.context())] == [expected]


class _OneType(Census):
    """A census that found these objects, of whatever type is asked for."""

    def __init__(self, found: list[int]) -> None:
        self._found = np.array(found, np.uint64)

    def of(self, *_: object, **__: object) -> np.ndarray:  # type: ignore[override,type-arg]
        return self._found


@pytest.mark.parametrize(
    ("collects", "expected"),
    [([False], False), ([True], True), ([False, True], None), ([None], None), ([], None)],
)
def test_a_collector_is_off_only_where_every_interpreter_says_so(
    collects: list[bool | None], expected: bool | None
) -> None:
    heap = Heap(1 << 16)
    address = heap.object("_SelectorSocketTransport", 64)
    ctx = heap.context()
    counts = ObjectCounts(ctx, TypeNames(ctx, []))
    counts._transports = {TRANSPORT: [1]}
    interpreters = [Interpreter(0, i, 0, 0, 0, collects=c) for i, c in enumerate(collects)]
    rows = counts.transports(_OneType([address]), interpreters)
    assert [(r["type"], r["closed"], r["gc_enabled"]) for r in rows] == [
        (".".join(TRANSPORT), False, expected)
    ]
