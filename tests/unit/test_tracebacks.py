"""What a handled exception keeps counts as kept by who handles it; what is garbage counts as nothing."""

from __future__ import annotations

import numpy as np
import pytest
from made_objects import LAYOUT, Heap

from diagtool.runtimes.cpython.liveness.exclusive import Exclusive, StuckCandidates, find_exclusive
from diagtool.runtimes.cpython.objects.referents import Referents, handled_exceptions

_DATA, _SLOTS = LAYOUT["PyFrameObject._f_frame_data"], LAYOUT["_PyInterpreterFrame.localsplus"]


class Tracebacks(Heap):
    """Objects of exceptions, laid out as in 3.12."""

    def exception(self, traceback: int, references: int = 1) -> int:
        address = self.object("ValueError", 128, references)
        self.field(self.type("ValueError"), "PyTypeObject.tp_flags", 1 << 30)
        self.field(address, "PyBaseExceptionObject.traceback", traceback)
        return address

    def traceback(self, frame: int, following: int = 0, references: int = 1) -> int:
        address = self.object("traceback", 64, references)
        self.field(address, "PyTracebackObject.tb_frame", frame)
        self.field(address, "PyTracebackObject.tb_next", following)
        return address

    def frame(self, local: int, depth: int = 1, *, ended: bool = True) -> int:
        """A frame object with one local; where the call goes on, the frame's data is elsewhere."""
        address = self.object("frame", _DATA + _SLOTS + 64)
        data = address + _DATA if ended else self.room(_SLOTS + 64)
        self.field(address, "PyFrameObject.f_frame", data)
        self.put(data + LAYOUT["_PyInterpreterFrame.stacktop"], "i", depth)
        self.put(data + _SLOTS, "Q", local)
        return address


def judged(heap: Heap, thing: int, *held: int) -> Exclusive:
    """One stack that waits for ``thing`` and holds ``held``."""
    none = np.zeros(1, np.uint64)
    edges = (np.zeros(len(held), np.intp), np.array(held, np.uint64))
    one = np.array([thing], np.uint64)
    return find_exclusive(heap.context(), StuckCandidates(one, edges, np.zeros(1, np.bool_), none, none[:0]))


def edges(heap: Heap, address: int) -> list[int]:
    return Referents(heap.context()).of(np.array([address], np.uint64))[1].tolist()


def test_a_thing_in_the_traceback_of_a_handled_exception_is_only_its_waiters() -> None:
    heap = Tracebacks()
    thing = heap.list([], references=2)
    error = heap.exception(heap.traceback(heap.frame(0), heap.traceback(heap.frame(thing))))
    assert judged(heap, thing, thing, error).stuck.tolist() == [True]


@pytest.mark.parametrize("who", ["exception", "traceback"])
def test_somebody_else_who_has_the_exception_may_reach_the_thing(who: str) -> None:
    heap = Tracebacks()
    thing = heap.list([], references=2)
    count = {"exception": 1, "traceback": 1, who: 2}
    inner = heap.traceback(heap.frame(thing), references=count["traceback"])
    error = heap.exception(inner, references=count["exception"])
    assert judged(heap, thing, thing, error).stuck.tolist() == [False]


def test_the_slots_of_a_call_that_goes_on_are_not_counted_twice() -> None:
    # One stack holds the thing in its own frame, and somebody else does: a traceback that leads to the same
    # frame must not pass for the second reference.
    heap = Tracebacks()
    thing = heap.list([], references=2)
    error = heap.exception(heap.traceback(heap.frame(thing, ended=False)))
    assert judged(heap, thing, thing, error).stuck.tolist() == [False]


@pytest.mark.parametrize("depth", [0, -1, 1 << 20])
def test_slots_that_make_no_sense_are_none(depth: int) -> None:
    heap = Tracebacks()
    assert edges(heap, heap.frame(heap.list([]), depth)) == []


def test_a_traceback_that_leads_back_to_itself_ends_in_silence() -> None:
    heap = Tracebacks()
    thing = heap.list([], references=2)
    trace = heap.traceback(heap.frame(thing))
    heap.field(trace, "PyTracebackObject.tb_next", trace)
    assert judged(heap, thing, thing, heap.exception(trace)).stuck.tolist() == [False]


def test_a_class_of_the_program_that_is_called_frame_is_no_frame() -> None:
    heap = Tracebacks()
    address = heap.frame(heap.list([]))
    heap.field(heap.type("frame"), "PyTypeObject.tp_flags", 1 << 9)  # Py_TPFLAGS_HEAPTYPE
    assert edges(heap, address) == []


def test_what_a_suspended_generator_handles() -> None:
    heap = Tracebacks()
    generators = [heap.object("coroutine", 256) for _ in range(2)]
    error = heap.exception(0)
    state = LAYOUT["PyGenObject.gi_exc_state"] + LAYOUT["_PyErr_StackItem.exc_value"]
    heap.put(generators[1] + state, "Q", error)
    owner, target = handled_exceptions(heap.context(), np.array(generators, np.uint64))
    assert (owner.tolist(), target.tolist()) == ([1], [error])
