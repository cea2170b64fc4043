"""asyncio tasks of every loop of every thread: where they are found, what they say of themselves.

Found twice, and joined: in asyncio's own registers (weak sets up to 3.13, linked lists from 3.14 on), and by
scanning captured memory for objects of the task types, which also finds finished tasks that somebody keeps
and tasks of programs that emptied ``sys.modules``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.objects.addresssets import contains, distinct
from diagtool.runtimes.cpython.objects.census import Census, TypeNames
from diagtool.runtimes.cpython.tasks.futures import FINISHED, PENDING, python_states
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

_REGISTERS = ("_all_tasks", "_scheduled_tasks", "_eager_tasks")
_C_FIELDS = {  # column: field of the TaskObj without its prefix
    "coroutine": "coro",
    "waiter": "fut_waiter",
    "name": "name",
    "loop": "loop",
    "context": "context",
    "source": "source_tb",
}
_MAX_LIST_ROUNDS = 1 << 17

_0 = np.uint64(0)


@dataclass(slots=True)
class TaskColumns:
    """What tasks say of themselves: arrays of one length; addresses are 0 where there is nothing."""

    address: U64
    state: NDArray[np.int64]
    coroutine: U64
    waiter: U64  # the future it waits on
    name: U64  # str, or an int up to which "Task-" is missing (3.13+)
    loop: U64
    context: U64
    source: U64  # source traceback of debug mode
    must_cancel: NDArray[np.bool_]
    cancels: NDArray[np.int64]  # cancel() was called so often, uncancel() taken off (3.11+, else 0)

    def __len__(self) -> int:
        return len(self.address)


def read_tasks(
    ctx: Context, interpreters: list[Interpreter], registered: U64, types: list[int], census: Census
) -> TaskColumns:
    """All tasks of a process, in order of address: those of :func:`registered_tasks`, of a census of
    :func:`task_types`, and of the linked lists of 3.14."""
    addresses = distinct(np.concatenate([registered, census.of(types)]))
    addresses = _with_linked(ctx, interpreters, addresses)
    in_c = _is_c_task(ctx, addresses)
    columns = _join(_c_tasks(ctx, addresses[in_c]), _python_tasks(ctx, addresses[~in_c]))
    good = (columns.state >= PENDING) & (columns.state <= FINISHED) & (columns.loop != 0)
    good &= (columns.coroutine != 0) | (columns.state != PENDING)
    return _select(columns, good)


# -- where they are ---------------------------------------------------------------------------------------


def registered_tasks(ctx: Context, names: TypeNames) -> U64:
    """Tasks in asyncio's own registers, which hold them weakly."""
    found = [np.zeros(0, np.uint64)]
    for module in ("asyncio.tasks", "_asyncio"):
        for name in _REGISTERS:
            for register in names.values(module, name):
                try:
                    found.append(_members(ctx, register))
                except MemoryFault as fault:
                    ctx.warn(f"{module}.{name} could not be read: {fault}")
    return distinct(np.concatenate(found))


def _members(ctx: Context, register: int) -> U64:
    """Of a WeakSet the objects that are alive; of a set its items."""
    if not register:
        return np.zeros(0, np.uint64)
    if ctx.objects.kind(register) != "set":
        data = ctx.objects.attribute(register, "data")
        if ctx.objects.kind(data) != "set":
            return np.zeros(0, np.uint64)
        references = ctx.objects.set_items(data)
        members = ctx.vectors.field(references, "PyWeakReference.wr_object")
        alive: U64 = members[(members != 0) & (~ctx.vectors.are(members, "NoneType"))]
        return alive
    return ctx.objects.set_items(register)


def task_types(ctx: Context, names: TypeNames, tasks: U64) -> list[int]:
    """Addresses of the types of known tasks, and of asyncio's own task types."""
    types = {int(t) for t in np.unique(ctx.vectors.types(tasks)) if t}
    types.update(names.types("_asyncio", "Task"))
    types.update(names.types("asyncio.tasks", "Task", "_CTask", "_PyTask"))
    return sorted(types)


def _with_linked(ctx: Context, interpreters: list[Interpreter], known: U64) -> U64:
    """3.14+: the linked lists of each thread and of the interpreter, followed in all directions at once."""
    lay = ctx.runtime.layout
    node = lay.get("TaskObj.task_node")
    if node is None:
        return known
    heads = []
    for interpreter in interpreters:
        if "PyInterpreterState.asyncio_tasks_head" in lay:
            heads.append(interpreter.address + lay["PyInterpreterState.asyncio_tasks_head"])
        if "_PyThreadStateImpl.asyncio_tasks_head" in lay:
            heads += [t.address + lay["_PyThreadStateImpl.asyncio_tasks_head"] for t in interpreter.threads]
    ends = distinct(np.array(heads, np.uint64))
    frontier = np.concatenate([ends, known + np.uint64(node)])
    found = [known]
    met: set[int] = set()
    for _ in range(_MAX_LIST_ROUNDS):
        following = ctx.vectors.words(frontier, lay.get("llist_node.next", 0))
        following = distinct(following[(following != 0) & ~contains(ends, following)])
        fresh = following - np.uint64(node)
        fresh = fresh[~contains(known, fresh)]
        fresh = fresh[[a not in met for a in fresh.tolist()]]
        # a list that leads into garbage ends here: what is there must at least have a type like a task's
        fresh = fresh[_is_c_task(ctx, fresh)]
        if not len(fresh):
            break
        met.update(fresh.tolist())
        found.append(fresh)
        frontier = fresh + np.uint64(node)
    else:
        ctx.warn(f"the lists of tasks were cut after {_MAX_LIST_ROUNDS:,} steps")
    return distinct(np.concatenate(found))


def _is_c_task(ctx: Context, addresses: U64) -> NDArray[np.bool_]:
    return ctx.vectors.inherit(addresses, "_asyncio.Task")


# -- what they say ----------------------------------------------------------------------------------------


def _c_tasks(ctx: Context, addresses: U64) -> TaskColumns:
    lay = ctx.runtime.layout
    bits, requested = "TaskObj.task_must_cancel", "TaskObj.task_num_cancels_requested"
    names = [f"TaskObj.task_{n}" for n in ("state", *_C_FIELDS.values())] + [bits]
    offsets = [lay[n] for n in names] + ([lay[requested]] if requested in lay else [])
    block = ctx.vectors.block(addresses, min(offsets), max(offsets) + 8)
    none = np.zeros(len(addresses), np.int64)
    return TaskColumns(
        address=addresses,
        state=block.column(lay["TaskObj.task_state"], "<i4").astype(np.int64),
        must_cancel=block.column(lay[bits], "u1") >> lay.get(f"shift.{bits}", 0) & 1 != 0,
        cancels=block.column(lay[requested], "<i4").astype(np.int64) if requested in lay else none,
        **{ours: block.column(lay[f"TaskObj.task_{theirs}"]) for ours, theirs in _C_FIELDS.items()},
    )


def _python_tasks(ctx: Context, addresses: U64) -> TaskColumns:
    v = ctx.vectors
    return TaskColumns(
        address=addresses,
        state=python_states(ctx, addresses),
        coroutine=_not_none(ctx, v.attribute(addresses, "_coro")),
        waiter=_not_none(ctx, v.attribute(addresses, "_fut_waiter")),
        name=v.attribute(addresses, "_name"),
        loop=v.attribute(addresses, "_loop"),
        context=v.attribute(addresses, "_context"),
        source=_not_none(ctx, v.attribute(addresses, "_source_traceback")),
        must_cancel=v.integers(v.attribute(addresses, "_must_cancel")) == 1,
        cancels=np.maximum(v.integers(v.attribute(addresses, "_num_cancels_requested"), 0), 0),
    )


def _not_none(ctx: Context, addresses: U64) -> U64:
    return np.where(ctx.vectors.are(addresses, "NoneType"), _0, addresses)


def _join(a: TaskColumns, b: TaskColumns) -> TaskColumns:
    both = {
        name: np.concatenate([getattr(a, name), getattr(b, name)])
        for name in TaskColumns.__dataclass_fields__
    }
    order = np.argsort(both["address"], kind="stable")
    return TaskColumns(**{name: column[order] for name, column in both.items()})


def _select(columns: TaskColumns, rows: NDArray[np.bool_]) -> TaskColumns:
    return TaskColumns(**{n: getattr(columns, n)[rows] for n in TaskColumns.__dataclass_fields__})
