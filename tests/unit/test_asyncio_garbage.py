"""Synthesised tasks that no program makes: chains, lists and trees that go round, absurd sizes."""

from __future__ import annotations

import itertools

import made_objects
import numpy as np
import pytest
from made_objects import LAYOUT, Heap

from diagtool.capture.memory import AddressSpace, Segment
from diagtool.capture.model import Capture, ProcessInfo
from diagtool.runtimes.cpython import layouts
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.frames.codes import Codes
from diagtool.runtimes.cpython.objects.census import Census
from diagtool.runtimes.cpython.objects.reader import Objects
from diagtool.runtimes.cpython.objects.vectors import Vectors
from diagtool.runtimes.cpython.runtime import Runtime
from diagtool.runtimes.cpython.tasks import chains
from diagtool.runtimes.cpython.tasks import find as tasks
from diagtool.runtimes.cpython.tasks.chains import follow
from diagtool.runtimes.cpython.tasks.creation import creation_traces, origin_trace
from diagtool.runtimes.cpython.tasks.futures import all_callbacks, callback_counts
from diagtool.runtimes.cpython.tasks.labels import ContextValues, looks_secret
from diagtool.runtimes.cpython.threads.interpreters import Interpreter
from diagtool.snapshot.model import SnapshotBuilder, Target

ABSURD = 1 << 60


def suspended(heap: Heap) -> int:
    """A coroutine suspended in an await; :func:`awaits` says of what."""
    coroutine = heap.object("coroutine", 256)
    heap.field(coroutine, "PyGenObject.gi_frame_state", LAYOUT["const.FRAME_SUSPENDED"], "b")
    frame = coroutine + LAYOUT["PyGenObject.gi_iframe"]
    code = heap.room(64)  # the instruction behind the current one is RESUME of an await (argument 3)
    heap.put(code + 2, "H", 3 << 8)
    heap.field(frame, "_PyInterpreterFrame.prev_instr", code)
    heap.field(frame, "_PyInterpreterFrame.stacktop", 1, "i")
    return coroutine


def awaits(heap: Heap, coroutine: int, awaited: int) -> None:
    """Put what a coroutine awaits onto its evaluation stack."""
    heap.field(coroutine + LAYOUT["PyGenObject.gi_iframe"], "_PyInterpreterFrame.localsplus", awaited)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64])
def test_a_chain_that_leads_back_to_itself_is_cut(length: int) -> None:
    heap = Heap()
    ring = [suspended(heap) for _ in range(length)]
    for coroutine, following in zip(ring, ring[1:] + ring[:1], strict=True):
        awaits(heap, coroutine, following)
    ctx = heap.context()
    found = follow(ctx, np.array([ring[0]], np.uint64))
    assert found.leaf.tolist() == [0]
    assert any("lead back to themselves" in w for w in ctx.builder.snapshot.warnings)
    assert len(found.levels) <= 4 * length + 2


def test_a_chain_that_leads_into_a_ring_later_is_cut() -> None:
    heap = Heap()
    line = [suspended(heap) for _ in range(40)]
    for coroutine, following in zip(line, [*line[1:], line[17]], strict=True):
        awaits(heap, coroutine, following)
    ctx = heap.context()
    follow(ctx, np.array(line[:1], np.uint64))
    assert any("lead back to themselves" in w for w in ctx.builder.snapshot.warnings)


def test_an_endless_chain_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "MAX_DEPTH", 50)
    heap = Heap()
    line = [suspended(heap) for _ in range(80)]
    for coroutine, following in itertools.pairwise(line):
        awaits(heap, coroutine, following)
    ctx = heap.context()
    found = follow(ctx, np.array([line[0], line[70]], np.uint64))
    assert len(found.levels) == 50
    assert ctx.builder.snapshot.warnings == ["1 await chains were cut at 50 frames"]


def test_a_chain_ends_where_memory_ends_or_is_no_object() -> None:
    heap = Heap()
    coroutines = [suspended(heap) for _ in range(3)]
    for coroutine, awaited in zip(coroutines, (0, 0xDEAD0000, heap.room(64)), strict=True):
        awaits(heap, coroutine, awaited)
    found = follow(heap.context(), np.array([*coroutines, 0, 8, ABSURD], np.uint64))
    assert len(found.levels) == 1 and found.trace.tolist() == [0] * 6


def tree(heap: Heap, kind: str, slots: int, items: int) -> int:
    """A node of a context's tree."""
    node = heap.object(kind, items + 8 * slots)
    heap.field(node, "PyVarObject.ob_size", slots)
    return node


def context_of(heap: Heap, root: int) -> int:
    """A Context with this tree."""
    hamt = heap.object("hamt", 64)
    heap.field(hamt, "PyHamtObject.h_root", root)
    heap.field(hamt, "PyHamtObject.h_count", ABSURD)
    context = heap.object("_contextvars.Context", 64)
    heap.field(context, "PyContext.ctx_vars", hamt)
    return context


def test_trees_of_contexts_that_contain_themselves_end() -> None:
    heap = Heap()
    array, bitmap = LAYOUT["PyHamtNode_Array.a_array"], LAYOUT["PyHamtNode_Bitmap.b_array"]
    wide = tree(heap, "hamt_array_node", 32, array)
    for i in range(32):
        heap.put(wide + array + 8 * i, "Q", wide)
    own = tree(heap, "hamt_bitmap_node", 64, bitmap)
    for i in range(32):
        heap.put(own + bitmap + 16 * i, "QQ", 0, own)
    absurd = tree(heap, "hamt_bitmap_node", 0, bitmap)
    heap.field(absurd, "PyVarObject.ob_size", ABSURD)
    contexts = [context_of(heap, root) for root in (wide, own, absurd, 0, 0xDEAD0000)]
    values = ContextValues(heap.context(), np.array([*contexts, 0, 12345], np.uint64))
    assert values.labels(0) == [] and values.table() == []


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("auth_token", True),
        ("API_KEY", True),
        ("db_password", True),
        ("session_id", True),
        ("current_user_cookie", True),
        ("request_id", False),
        ("tenant", False),
        ("monkey", False),
    ],
)
def test_variables_that_may_hold_secrets_are_no_labels(name: str, secret: bool) -> None:
    assert looks_secret(name) == secret


def test_lists_of_absurd_sizes_are_no_callbacks_and_no_place_of_creation() -> None:
    heap = Heap()
    future = heap.object("_asyncio.Future", LAYOUT["sizeof.FutureObj"])
    for size in (ABSURD, 1 << 20, 200):
        callbacks = heap.list([])
        heap.field(callbacks, "PyVarObject.ob_size", size)
        heap.field(future, "FutureObj.fut_callbacks", callbacks)
        ctx, futures = heap.context(), np.array([future], np.uint64)
        assert callback_counts(ctx, futures).tolist() == [min(size, 1 << 48)]
        owner, found = all_callbacks(ctx, futures)
        assert len(owner) == len(found) == 0
        assert creation_traces(ctx, np.array([callbacks, 0, 7], np.uint64)).tolist() == [0, 0, 0]
        assert origin_trace(ctx, callbacks) == 0


class Heap14(Heap):
    """The same of CPython 3.14, whose tasks are in linked lists."""

    layout = layouts.load("3.14", "release")

    def context(self) -> Context:
        memory: AddressSpace = self.memory()
        objects = Objects(memory, self.layout, (3, 14), False)
        capture = Capture("live", ProcessInfo(1), [], [], [], memory)
        runtime = Runtime(made_objects.BASE, (3, 14), 0, "release", self.layout, "python3.14")
        return Context(
            capture, runtime, objects, Vectors(objects), Codes(objects), SnapshotBuilder(Target("live"))
        )

    def task(self, following: int) -> int:
        """A pending task in a list."""
        task = self.object("_asyncio.Task", self.layout["sizeof.TaskObj"])
        some = self.object("coroutine", 256)
        for name in ("task_loop", "task_coro"):
            self.field(task, f"TaskObj.{name}", some)
        self.link(task, following)
        return task

    def link(self, task: int, following: int) -> None:
        self.field(task, "TaskObj.task_node", following)


@pytest.fixture
def heap14(monkeypatch: pytest.MonkeyPatch) -> Heap14:
    monkeypatch.setattr(made_objects, "LAYOUT", Heap14.layout)
    return Heap14(16 << 20)


def listed(heap: Heap14, first: int) -> list[int]:
    """Tasks found when the interpreter's list begins with ``first``."""
    interpreter = Interpreter(heap.room(1 << 20), 0, 0, 0, 0)
    heap.field(interpreter.address, "PyInterpreterState.asyncio_tasks_head", first)
    ctx = heap.context()
    none = np.zeros(0, np.uint64)
    return tasks.read_tasks(ctx, [interpreter], none, [], Census(ctx, [])).address.tolist()


def test_linked_lists_of_tasks_that_lead_back_or_astray_end(heap14: Heap14) -> None:
    node = Heap14.layout["TaskObj.task_node"]
    made = [heap14.task(0) for _ in range(5)]
    for task, following in zip(made, [*made[1:], made[2]], strict=True):
        heap14.link(task, following + node)
    assert listed(heap14, made[0] + node) == sorted(made)
    heap14.link(made[4], heap14.object("list", 512) + node)
    assert listed(heap14, made[0] + node) == sorted(made)
    heap14.link(made[4], 0xDEAD0000)
    assert listed(heap14, made[0] + node) == sorted(made)
    assert listed(heap14, ABSURD) == listed(heap14, 0) == []


def test_a_list_of_tasks_that_goes_on_for_ever_is_cut(
    heap14: Heap14, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "_MAX_LIST_ROUNDS", 3)
    node = Heap14.layout["TaskObj.task_node"]
    made = [heap14.task(0) for _ in range(9)]
    for task, following in itertools.pairwise(made):
        heap14.link(task, following + node)
    assert len(listed(heap14, made[0] + node)) == 3


def test_a_segment_of_nothing_but_type_addresses_is_no_heap() -> None:
    heap = Heap()
    coroutine = heap.type("coroutine")
    heap.field(coroutine, "PyTypeObject.tp_flags", LAYOUT["const.Py_TPFLAGS_HAVE_GC"])
    ctx = heap.context()
    full = np.full(1 << 16, coroutine, np.uint64)
    number = ctx.objects.memory.add_buffer(full.view(np.uint8))
    ctx.objects.memory.add_segments([Segment(0x10000000, 0x10000000 + full.nbytes, number, 0)])
    assert Census(ctx, [coroutine]).of([coroutine]).tolist() == []
