"""The facts that conditions of templates ask for, about one snapshot, each worked out when first asked for.

What every fact means is in docs/templates.md; a fact that the snapshot does not tell is None.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.leaks.circles import circle_of, in_words
from diagtool.leaks.cluster import Clusters, things_of
from diagtool.leaks.condition import Condition
from diagtool.leaks.crossings import callback_of, merged_frames, team_of, team_threads
from diagtool.leaks.goroutines import at_work, attended, passers
from diagtool.leaks.near import NearClusters
from diagtool.leaks.own import is_own
from diagtool.leaks.owners import cycles, owners
from diagtool.leaks.pattern import FrameIndex, FramePattern
from diagtool.leaks.timeouts import timeouts_left
from diagtool.leaks.traced import traced
from diagtool.snapshot.model import KIND, STATE, Snapshot

Rows = NDArray[np.intp]

#: Comparisons of numbers that are done for whole columns.
_ORDERS = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}

_WORKER = FramePattern.parse("concurrent/futures/thread.py:_worker")
_JOB = FramePattern.parse("concurrent/futures/thread.py:_WorkItem.run")
_LOOP = FramePattern.parse("asyncio/base_events.py:BaseEventLoop.run_forever")
#: Waits of a main thread that has nothing to do any more.
_MAIN_WAITS = (
    "signal.",
    "threading.Thread.join",
    "threading._shutdown",
    "threading.Event.wait",
    "time.sleep",
)
#: How the path to a task ends that leads through a callback of the future it waits on: that keeps nothing.
CALLBACK = "(builtin_function_or_method)"
#: Waits of threads for a peer or a child process, which may never answer.
_PEERS = ("socket.", "ssl.", "subprocess.", "os.waitpid")


class Facts:
    """Facts about the stacks and things of ``snapshot``."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.frames = FrameIndex(snapshot)
        self.clusters = Clusters(snapshot)
        self.near = NearClusters(snapshot)
        self.derived: dict[str, list[dict[str, Any]]] = {}  # tables that are made of several snapshots

    # --- of things -------------------------------------------------------------------------------------

    def thing(self, index: int) -> Callable[[str], Any]:
        """Resolves facts of thing ``index``; of no thing (-1) nothing is known."""
        if not 0 <= index < len(self.snapshot.things):
            return _nothing
        thing = self.snapshot.things[index]

        def resolve(path: str) -> Any:
            head, _, rest = path.partition(".")
            if head == "state" and rest:
                return thing.state.get(rest)
            if head == "waiters":
                return int(self._waiters[index])
            return getattr(thing, path, None)

        return resolve

    @cached_property
    def _waiters(self) -> NDArray[np.intp]:
        things = self.snapshot.stacks.thing
        size = len(self.snapshot.things)
        return np.bincount(things[(things >= 0) & (things < size)], minlength=size)

    # --- of one stack ----------------------------------------------------------------------------------

    def stack(self, row: int) -> Callable[[str], Any]:
        """Resolves facts of the stack ``row``."""
        return lambda path: self._stack_fact(row, path)

    def stacks_that(self, condition: Condition, rows: Rows) -> NDArray[np.bool_]:
        """For which of ``rows`` a condition on a stack holds. Whole columns where they are plain."""
        if condition.path == "wait" and not condition.other:  # there are few
            waits = self.snapshot.waits
            told = np.array([condition.holds(lambda _, w=w: w) for w in waits], np.bool_)  # type: ignore[misc]
            return np.asarray(told[self.snapshot.stacks.wait[rows]], np.bool_)
        column = self._column(condition.path)
        orders = _ORDERS if column is not None and column[0].dtype.kind == "f" else {}
        if column is None or condition.other or condition.operator not in ("==", "!=", *orders):
            return np.array([condition.holds(self.stack(r)) for r in rows.tolist()], np.bool_)
        values, unknown = column[0][rows], column[1][rows]
        if condition.operator in orders:
            with np.errstate(invalid="ignore"):
                return np.asarray(orders[condition.operator](values, condition.value) & ~unknown, np.bool_)
        equal = unknown if condition.value is None else ~unknown & (values == condition.value)
        if condition.operator == "==":
            return equal
        return ~unknown if condition.value is None else ~unknown & (values != condition.value)

    def _column(self, path: str) -> tuple[NDArray[Any], NDArray[np.bool_]] | None:
        """(values, where they are unknown) of a fact that is a column; None for the others."""
        if path == "deadlocked":
            flags = np.zeros(len(self.snapshot.stacks), np.bool_)
            flags[[row for row in self.deadlocked if row < len(flags)]] = True
            return flags, np.zeros(len(flags), np.bool_)
        if path in ("stuck", "awaited", "attended"):
            flags = getattr(self, path if path == "stuck" else f"_{path}")
            return flags, np.zeros(len(flags), np.bool_)
        if path == "held":
            return self._held, (self.snapshot.stacks.kind != KIND["task"]) | (self.incomplete & ~self._held)
        if path in ("age_seconds", "wait_seconds", "timeout_left"):
            seconds = self.timeout_left if path == "timeout_left" else getattr(self.snapshot.stacks, path)
            return seconds, np.isnan(seconds)
        return None

    def _stack_fact(self, row: int, path: str) -> Any:
        s = self.snapshot.stacks
        if path == "name":
            return s.name[row]
        if path == "wait":
            return self.snapshot.waits[int(s.wait[row])]
        if path in ("age_seconds", "wait_seconds", "timeout_left"):
            seconds = float(self.timeout_left[row] if path == "timeout_left" else getattr(s, path)[row])
            return None if seconds != seconds else seconds
        if path == "awaited":
            return bool(self._awaited[row])
        if path == "stuck":
            return bool(self.stuck[row])
        if path == "deadlocked":
            return row in self.deadlocked
        if path == "attended":
            return bool(self._attended[row])
        if path == "pooled":
            return int(self.executor_of.get(row, -1)) >= 0
        if path == "held":
            unknown = int(s.kind[row]) != KIND["task"] or (self.incomplete and not self._held[row])
            return None if unknown else bool(self._held[row])
        if path == "holder":
            return self.snapshot.holders[s.holder[row]] if s.holder[row] >= 0 else None
        if path == "owner":
            return self._tasks.get(int(s.address[row]), {}).get(path)
        return self._thread_fact(row, path)

    def _thread_fact(self, row: int, path: str) -> Any:
        s = self.snapshot.stacks
        if int(s.kind[row]) != KIND["thread"]:
            return None
        tid = int(s.address[row])
        if path == "served":
            return tid in self._serving or s.name[row] in self._serving
        if path in ("callback_of", "team_of"):
            frames = merged_frames(self.snapshot, row)
            return callback_of(frames) if path == "callback_of" else team_of(frames)
        if path == "main":
            return tid == self.snapshot.target.pid
        info = self._threads.get(row)
        if path == "running_loop":
            if info is not None and info.running_loop:
                return info.running_loop
            return True if self.frames.containing(_LOOP)[int(s.trace[row])] else None
        return None if info is None else getattr(info, path, None)

    @cached_property
    def _threads(self) -> dict[int, Any]:
        return {info.stack: info for info in self.snapshot.threads}

    def owners(self, rows: Rows) -> list[Any]:
        """The owner of each of ``rows``, None where it is not known."""
        if not self._tasks:
            return [None] * len(rows)
        addresses = self.snapshot.stacks.address[rows].tolist()
        return [self._tasks.get(address, {}).get("owner") for address in addresses]

    @cached_property
    def _tasks(self) -> dict[int, dict[str, Any]]:
        return {t["address"]: t for t in self.table("tasks") if isinstance(t.get("address"), int)}

    @cached_property
    def incomplete(self) -> bool:
        """Whether memory is missing (a core cut off): what was not found may be there all the same."""
        return bool(self.snapshot.target.details.get("missing"))

    @cached_property
    def _held(self) -> NDArray[np.bool_]:
        """Tasks of which a holder is known, callbacks of what they wait on left aside."""
        holders = np.array([not h.endswith(CALLBACK) for h in self.snapshot.holders] + [False], np.bool_)
        return holders[self.snapshot.stacks.holder]

    @cached_property
    def _awaited(self) -> NDArray[np.bool_]:
        out = np.zeros(len(self.snapshot.stacks), np.bool_)
        rows = self.snapshot.awaits.reshape(-1, 2)[:, 1]
        out[rows[(rows >= 0) & (rows < len(out))]] = True
        return out

    @cached_property
    def _serving(self) -> set[Any]:
        """The threads (tid or name) that work for a task that waits for them."""
        threads = (thing.state.get("executor_thread") for thing in self.snapshot.things)
        return {t for t in threads if isinstance(t, (int, str)) and t}

    @cached_property
    def _attended(self) -> NDArray[np.bool_]:
        return attended(self.snapshot, self.frames)

    @cached_property
    def timeout_left(self) -> NDArray[np.float64]:
        """Seconds until a timer ends each stack's wait; NaN: no timer."""
        return timeouts_left(self.snapshot, self.frames)

    @cached_property
    def stuck(self) -> NDArray[np.bool_]:
        """What the decoder says, from all references that there are, less those that a timer ends."""
        told: NDArray[np.bool_] = self.snapshot.stacks.stuck == 1
        return told & np.isnan(self.timeout_left)

    @cached_property
    def deadlocked(self) -> set[int]:
        """Stacks that wait in a circle for what the next one owns."""
        return cycles(self.waits_for)

    @cached_property
    def waits_for(self) -> dict[int, int]:
        """Waiting stack -> the stack that owns what it waits on, where an owner is known."""
        return owners(self.snapshot)

    def circle(self, rows: Rows) -> list[int]:
        """The first circle of stacks, each of which waits for the next one, that one of ``rows`` is in."""
        first = next((row for row in rows.tolist() if row in self.deadlocked), None)
        return [] if first is None else circle_of(first, self.waits_for)

    # --- of executors ----------------------------------------------------------------------------------

    @cached_property
    def executor_of(self) -> dict[int, int]:
        """Worker thread (row) -> its ThreadPoolExecutor: by the table of executors, else by thread name."""
        s = self.snapshot.stacks
        workers = np.flatnonzero((s.kind == KIND["thread"]) & self.frames.containing(_WORKER)[s.trace])
        by_tid = {
            tid: i
            for i, executor in enumerate(self.table("executors"))
            for tid in executor.get("threads") or ()
            if isinstance(tid, int)
        }
        keys: dict[Any, int] = {}
        out = {}
        for row in workers.tolist():
            tid = int(s.address[row])
            key = by_tid.get(tid, s.name[row].rpartition("_")[0])
            out[row] = keys.setdefault(key, len(keys))
        return out

    @cached_property
    def _workers(self) -> dict[int, list[int]]:
        out: dict[int, list[int]] = defaultdict(list)
        for row, executor in self.executor_of.items():
            out[executor].append(row)
        return out

    def _executors_behind(self, rows: Rows) -> set[int]:
        """The executors that ``rows`` are workers of, or (tasks) wait for."""
        own = {self.executor_of[row] for row in rows.tolist() if row in self.executor_of}
        if own:
            return own
        s = self.snapshot.stacks
        serving = {
            self.snapshot.things[i].state.get("executor_thread") for i in things_of(self.snapshot, rows)
        } - {None}
        for row, executor in self.executor_of.items():
            if int(s.address[row]) in serving or s.name[row] in serving:
                own.add(executor)
        return own or {e for row, e in self.executor_of.items() if s.name[row].startswith("asyncio_")}

    def _worker_fact(self, rows: Rows, what: str) -> int | None:
        executors = self._executors_behind(rows)
        workers = np.array([row for e in executors for row in self._workers[e]], np.intp)
        if not len(workers):
            return None
        s = self.snapshot.stacks
        busy = workers[self.frames.containing(_JOB)[s.trace[workers]]]
        if what == "count":
            return len(workers)
        if what == "busy":
            return len(busy)
        if what == "stuck":
            return int(self.stuck[busy].sum())
        if what == "here":
            return len(set(workers.tolist()) & set(rows.tolist()))
        if what == "io":
            peers = np.array([w.startswith(_PEERS) for w in self.snapshot.waits], np.bool_)
            held = (s.state[busy] == STATE["waiting"]) & peers[s.wait[busy]]
            return int((held & np.isnan(self.timeout_left[busy])).sum())
        queued = [e.get("queued") for e in self.table("executors") if self._is_one_of(e, workers)]
        known = [q for q in queued if isinstance(q, int)]
        if known:
            return sum(known)
        return max(0, len(rows) - len(busy)) if int(s.kind[rows[0]]) == KIND["task"] else None

    def _is_one_of(self, executor: dict[str, Any], workers: Rows) -> bool:
        threads = executor.get("threads") or ()
        return bool({int(t) for t in self.snapshot.stacks.address[workers]} & set(threads))

    # --- of several stacks -----------------------------------------------------------------------------

    def group(self, rows: Rows) -> Callable[[str], Any]:
        """Resolves facts of ``rows`` together."""
        return lambda path: self._group_fact(rows, path)

    def _group_fact(self, rows: Rows, path: str) -> Any:
        s = self.snapshot.stacks
        head, _, rest = path.partition(".")
        if path == "count":
            return len(rows)
        if path == "things":
            return len(things_of(self.snapshot, rows))
        if path == "loops":
            return len(np.unique(s.loop[rows][s.loop[rows] != 0]))
        if path == "owners":
            return len(set(self.owners(rows)) - {None}) or None
        if path == "executors":
            return len({self.executor_of[r] for r in rows.tolist() if r in self.executor_of})
        if path == "peers":
            return self.peers(rows)
        if path == "passers":
            return passers(self.snapshot, self.frames, rows)
        if path == "circle":
            return in_words(self.snapshot, self.circle(rows)) or None
        if path in ("callback_of", "team_of"):
            return self._thread_fact(int(rows[0]), path)
        if path == "team.threads":
            return team_threads(self.snapshot, rows)
        if head == "workers":
            return self._worker_fact(rows, rest)
        if head == "trace":
            return traced(self.snapshot, rows, rest)
        if path == "process.awake":
            return at_work(self.snapshot, self.frames)
        if path == "process.executors":
            return len(self._workers)
        if path == "process.loops":
            return int((self.frames.containing(_LOOP)[s.trace] & (s.kind == KIND["thread"])).sum())
        if path == "process.free_threads":
            return self._free_threads(rows)
        if path == "loop.overdue":
            return self._overdue(rows)
        return None

    def _free_threads(self, rows: Rows) -> int:
        """Threads besides ``rows`` that may complete a future: neither stuck, nor the main thread waiting for
        the end, nor workers of executors that are idle or wait for futures themselves."""
        s = self.snapshot.stacks
        free = (s.kind == KIND["thread"]) & ~self.stuck
        free[rows] = False
        futures = np.array([w.startswith("concurrent.futures.") for w in self.snapshot.waits], np.bool_)
        busy = self.frames.containing(_JOB)[s.trace] & ~futures[s.wait]
        ending = np.array([w.startswith(_MAIN_WAITS) for w in self.snapshot.waits], np.bool_)
        main = s.address == np.uint64(self.snapshot.target.pid or 0)
        free &= ~(self.frames.containing(_WORKER)[s.trace] & ~busy)
        free &= ~(main & ending[s.wait])
        return int(free.sum())

    def _overdue(self, threads: Rows) -> float | None:
        """By how many seconds the first timer of the loops in ``threads`` is late."""
        s = self.snapshot.stacks
        tids = {int(a) for a in s.address[threads]}
        late = [loop.get("overdue") for loop in self.table("loops") if loop.get("thread") in tids]
        told = [seconds for seconds in late if isinstance(seconds, (int, float))]
        if told:
            return max(told)
        tasks = (
            (s.kind == KIND["task"]) & np.isin(s.thread, s.address[threads].astype(np.int64)) & (s.thing >= 0)
        )
        left = [self.snapshot.things[i].state.get("time_left") for i in np.unique(s.thing[tasks]).tolist()]
        known = [seconds for seconds in left if isinstance(seconds, (int, float))]
        return max(-min(known), 0.0) if known else None

    def peers(self, rows: Rows) -> int | None:
        """How many other stacks are in the function of the user's from which ``rows`` wait, at other places.

        One of them may well be who will end the wait. None when no frame is the user's own.
        """
        s = self.snapshot.stacks
        frames = self.snapshot.traces.frames
        own = next((i for i in self.frames.ids(int(s.trace[rows[0]])) if is_own(frames[i])), None)
        if own is None:
            return None
        same = np.zeros(len(frames) + 1, np.bool_)
        for i, frame in enumerate(frames):
            same[i] = frame.function == frames[own].function and frame.file == frames[own].file
        there = self.frames.spread(same)[s.trace] & (s.state != STATE["done"])
        there &= ~np.isin(s.thing, things_of(self.snapshot, rows))
        there[rows] = False
        return int(there.sum())

    def table(self, name: str) -> list[dict[str, Any]]:
        """A table of the snapshot, or one made of a series; ``things`` is that of all things, as rows."""
        if name in self.derived:
            return self.derived[name]
        if name != "things":
            return self.snapshot.tables.get(name, [])
        return [
            {
                **thing.state,
                "address": thing.address,
                "type": thing.type,
                "exclusive": thing.exclusive,
                "references": thing.references,
                "waiters": int(self._waiters[i]),
            }
            for i, thing in enumerate(self.snapshot.things)
        ]


def _nothing(_: str) -> None:
    return None
