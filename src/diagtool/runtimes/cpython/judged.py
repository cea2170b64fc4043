"""Tasks and greenlets, who can still wake what waits, who keeps it: what a view of threads does without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.extensions import add_extensions
from diagtool.runtimes.cpython.greenlets.decode import add_greenlets
from diagtool.runtimes.cpython.liveness.holders import hold_stacks
from diagtool.runtimes.cpython.liveness.waiters import judge_exclusive
from diagtool.runtimes.cpython.objects.addresssets import distinct
from diagtool.runtimes.cpython.signalhandlers import add_signals
from diagtool.runtimes.cpython.tasks.decode import TaskStacks, decode_tasks
from diagtool.runtimes.cpython.threads.decode import ThreadStack
from diagtool.runtimes.cpython.threads.interpreters import Interpreter
from diagtool.snapshot.model import Snapshot

if TYPE_CHECKING:
    from diagtool.runtimes.cpython.heapwork import HeapWork

__all__ = ["Judged", "judge"]

_MAX_HELD_THINGS = 10_000  # things whose holders are looked for


@dataclass(slots=True)
class Judged:
    """What columns of the snapshot are to have: ``stuck`` of the tasks, then of the threads (rows)."""

    tasks: TaskStacks
    holder: NDArray[np.int64]
    stuck: NDArray[np.bool_]
    threads: list[int]

    def add_to(self, snapshot: Snapshot) -> None:
        """Fill the columns."""
        n = len(self.tasks.tasks)
        rows = slice(self.tasks.first, self.tasks.first + n)
        snapshot.stacks.holder[rows] = self.holder
        snapshot.stacks.stuck[rows] = self.stuck[:n]
        snapshot.stacks.stuck[self.threads] = self.stuck[n:]


def judge(
    ctx: Context, interpreters: list[Interpreter], threads: list[ThreadStack], work: HeapWork | None
) -> Judged:
    """Add all stacks but threads, which are there, to the builder, and judge all; the heap in between."""
    tasks = decode_tasks(ctx, interpreters, threads)
    add_greenlets(ctx, interpreters)
    add_extensions(ctx, interpreters)
    add_signals(ctx)
    timeouts = ctx.builder.snapshot.tables.setdefault("timeouts", [])
    timeouts += [{"stack": t.row, "left": round(t.time_left, 3)} for t in threads if t.time_left is not None]
    if work is not None:
        work.look(tasks.tasks.address)
    stuck = judge_exclusive(ctx, tasks, threads)
    holder = _hold(ctx, interpreters, tasks)
    if work is not None:
        work.look_late(tasks.tasks.address)
    return Judged(tasks, holder, stuck, [t.row for t in threads])


def _hold(ctx: Context, interpreters: list[Interpreter], tasks: TaskStacks) -> NDArray[np.int64]:
    """Who holds the tasks (index into Snapshot.holders for each), and the things that others reach."""
    things = [t for t in ctx.builder.snapshot.things if t.address and not t.exclusive][:_MAX_HELD_THINGS]
    addresses = np.array([t.address for t in things], np.uint64)
    wanted = distinct(np.concatenate([tasks.tasks.address, addresses]))
    inner = [level.objects for level in tasks.chains.levels]
    parts = distinct(np.concatenate([tasks.tasks.address, *inner]))
    holder, paths = hold_stacks(ctx, interpreters, tasks.chains, wanted, parts)
    for thing, index in zip(things, holder[np.searchsorted(wanted, addresses)].tolist(), strict=True):
        if index >= 0:
            thing.held_by.append(paths[index])
    own: NDArray[np.int64] = holder[np.searchsorted(wanted, tasks.tasks.address)]
    used, inverse = np.unique(own[own >= 0], return_inverse=True)
    ctx.builder.snapshot.holders = [paths[i] for i in used.tolist()]
    own[own >= 0] = inverse
    return own
