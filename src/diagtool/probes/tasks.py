"""Asyncio's tasks that are alive, in all loops, and async generators that nobody closed.

A runner cancels what is left before it closes its loop (``asyncio.run``, pytest-asyncio, anyio, unittest), so
that afterwards nothing is to be seen. So the look is taken just before that (``Notes.closing``), and of loops
that live on after each test.
"""

from __future__ import annotations

import gc
import inspect
import sys
import weakref
from collections.abc import Callable, Collection, Hashable, Iterable
from time import sleep
from typing import Any

from diagtool.probes import ignore
from diagtool.probes.left import Left
from diagtool.probes.origins import Notes, origin_of_task
from diagtool.probes.sites import awaits, spelled

#: Turns of the loop at each look.
_TURNS = 6


class _Turn:
    """Awaited, lets the loop go round once. ``asyncio.sleep`` is what tests replace."""

    def __await__(self) -> Any:
        yield


async def _turns() -> None:
    for _ in range(_TURNS):
        await _Turn()


def drain(loop: Any) -> None:
    """Let an idle loop do what it has to do now."""
    if loop.is_running() or loop.is_closed() or _running() is not None:
        return
    coroutine = _turns()
    try:
        loop.run_until_complete(coroutine)
    except Exception:  # noqa: BLE001 - a loop or a task factory of the program's own
        pass
    finally:
        coroutine.close()


def _running() -> Any:
    events = sys.modules.get("asyncio.events")
    return events._get_running_loop() if events is not None else None


class Tasks:
    """See :class:`diagtool.probes.left.Probe`. Keys are ids of tasks, or numbers below 0 of what a loop left
    when it was closed."""

    def __init__(self, notes: Notes, pauses: Callable[[list[Left]], Iterable[float]]) -> None:
        self._notes = notes
        self._pauses = pauses
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        self._judged: weakref.WeakSet[Any] = weakref.WeakSet()  # nothing more is said about them
        self._refs: dict[int, weakref.ref[Any]] = {}
        self._seen = 0
        self._of_closed: dict[int, Left] = {}
        self._in_use = False
        self._looked_at = 0
        self.explain: Callable[[list[Left]], None] = lambda left: None  # what the engine knows about them
        notes.closing, notes.closed = self._closing, self._closed

    def changed(self) -> bool:
        """Tasks were made, or a loop was closed with some."""
        return bool(self._of_closed) or self._notes.tasks != self._seen or self._foreign()

    def adopt(self, pending: Collection[Hashable] = (), same: bool = False) -> None:
        """See Probe."""
        self._seen = self._notes.tasks
        self._of_closed.clear()
        self._refs.clear()
        for task in () if same else _every(self._notes):
            self._known.add(task)
            if id(task) not in pending:
                self._judged.add(task)

    def new(self) -> list[Hashable]:
        """See Probe."""
        self._refs = {id(t): weakref.ref(t) for t in _every(self._notes) if t not in self._known}
        return [*self._refs, *self._of_closed]

    def describe(self, key: Hashable) -> Left | None:
        """See Probe."""
        assert isinstance(key, int)
        if key < 0:
            return self._of_closed.get(key)
        ref = self._refs.get(key)
        task = ref() if ref is not None else None
        if task is None or task.done():
            return None
        return _describe(task)

    def close(self) -> None:
        """Loops are closed without us again."""
        self._notes.closing = self._notes.closed = None

    def loops(self) -> list[Any]:
        """Open loops that are known: those whose tasks were seen."""
        loops = {id(loop): loop for loop in list(self._notes.loops) if not loop.is_closed()}
        for task in _every(self._notes):
            loop = _loop_of(task)
            if loop is not None:
                loops[id(loop)] = loop
        return list(loops.values())

    def _foreign(self) -> bool:
        # Loops that are not asyncio's own make their tasks without telling us.
        if "uvloop" not in sys.modules:
            return False
        return any(task not in self._known for task in _every(self._notes))

    def _closing(self, loop: Any) -> None:
        # What the body of asyncio.run() raised is what is to be told.
        if self._in_use or sys.exc_info()[0] is not None:
            return
        if self._looked_at == id(loop):  # what its tasks were cancelled by closes it now
            self._looked_at = 0
            return
        self._in_use = True
        try:
            left = self._unknown(loop)
            for pause in self._pauses(list(left.values())) if left else ():
                drain(loop)
                left = self._unknown(loop)
                if not left:
                    break
                sleep(pause)
            if left:
                self.explain(list(left.values()))
            for task, described in left.items():
                described.detail = "its loop was closed and cancelled it"
                self._keep(described)
                self._judged.add(task)
        except Exception:  # noqa: BLE001 - a loop of the program's own; it must be closed in any case
            pass
        finally:
            self._in_use = False

    def _closed(self, loop: Any) -> None:
        if self._in_use or sys.exc_info()[0] is not None:
            return
        self._looked_at = id(loop)
        try:
            if _open_generators(loop):
                gc.collect()
                drain(loop)  # those that the collector found are closed by tasks
                for generator in _open_generators(loop):
                    self._keep(_describe_generator(generator))
        except Exception:  # noqa: BLE001
            pass

    def _unknown(self, loop: Any) -> dict[Any, Left]:
        out = {}
        for task in _every(self._notes, loop):
            if _loop_of(task) is loop and task not in self._judged:
                described = _describe(task)
                if described is not None and not described.ignored:
                    out[task] = described
        return out

    def _keep(self, left: Left) -> None:
        number = -1 - len(self._of_closed)
        left.key = number
        self._of_closed[number] = left


# All tasks that are not done. Where they are listed: 3.12 split the set (gh-97696), 3.14 keeps lists in C
# (gh-128002), which are asked for loop by loop.
def _every(notes: Notes, loop: Any = None) -> list[Any]:
    module = sys.modules.get("asyncio.tasks")
    if module is None:
        return []
    found: list[Any] = []
    for name in ("_all_tasks", "_scheduled_tasks", "_eager_tasks"):
        for _ in range(20):  # another thread makes tasks meanwhile
            try:
                found += list(getattr(module, name, ()))
                break
            except RuntimeError:
                continue
    if sys.version_info >= (3, 14):
        for each in list(notes.loops) if loop is None else [loop]:
            found += module.all_tasks(each)
    return [t for t in {id(t): t for t in found}.values() if not t.done() and not _is_closed(t)]


def _is_closed(task: Any) -> bool:
    loop = _loop_of(task)
    return loop is None or loop.is_closed()


def _loop_of(task: Any) -> Any:
    get_loop = getattr(task, "get_loop", None)
    return get_loop() if get_loop is not None else None


def _describe(task: Any) -> Left | None:
    # One that was cancelled and has not had its turn yet is ending (3.11 counts, before that nobody knows).
    if task.done():
        return None
    coroutine = task.get_coro()
    name = getattr(coroutine, "__qualname__", None) or type(coroutine).__name__
    left = Left(
        "tasks",
        id(task),
        f"task {task.get_name()} ({name})",
        "",
        spelled(origin_of_task(task)),
        awaits(coroutine),
        address=id(task),
        label=task.get_name(),
    )
    if ignore.matches(name, ignore.TASKS):
        left.ignored = f"of the test runner: {name}"
    elif inspect.iscoroutine(coroutine) and coroutine.cr_running:
        left.ignored = "running now"
    return left


def _open_generators(loop: Any) -> list[Any]:
    return [
        g
        for g in list(getattr(loop, "_asyncgens", ()))
        if g.ag_frame is not None and not g.ag_running and g.ag_frame.f_lasti > 0
    ]


def _describe_generator(generator: Any) -> Left:
    return Left(
        "asyncgens",
        0,
        f"async generator {generator.__qualname__}",
        "neither read to its end nor closed with aclose()",
        (),
        awaits(generator),
    )
