"""The Snapshot: what was decoded from a capture. Plain data: no bytes, no pid needed any more.

A million tasks must fit, so stacks are columns (:class:`StackTable`) and their frames a trie
(:class:`Traces`): every await chain or call stack is one integer, equal chains are the same integer.
:class:`Stack` is a view of one row, made when somebody looks at it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Kinds of stacks. The order is the code stored in StackTable.kind; append only.
KINDS = ("thread", "task", "coroutine", "asyncgen", "generator", "greenlet", "goroutine")

#: States of stacks. The order is the code stored in StackTable.state; append only.
#: running: executes now; ready: can run, waits for its turn; waiting: suspended on something; done: finished
#: but still referenced; created: never started; suspended: a coroutine or generator nobody drives.
STATES = ("unknown", "running", "ready", "waiting", "done", "created", "suspended", "cancelling")

KIND = {name: i for i, name in enumerate(KINDS)}
STATE = {name: i for i, name in enumerate(STATES)}


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, unique within a snapshot. ``function`` is the qualified name where the version has it."""

    function: str
    file: str
    line: int | None
    module: str | None = None
    language: str = "python"
    library: str | None = None  # the shared library of a native frame


@dataclass(slots=True)
class Traces:
    """Call stacks and await chains as a trie. Node 0 is the empty trace.

    ``parent[i]`` is the trace of the next outer frame, ``frame[i]`` the index into ``frames`` of this
    node's own, innermost frame. So following parents yields the frames innermost first.
    """

    frames: list[Frame] = field(default_factory=list)
    parent: NDArray[np.int32] = field(default_factory=lambda: np.zeros(1, np.int32))
    frame: NDArray[np.int32] = field(default_factory=lambda: np.full(1, -1, np.int32))

    def frame_ids(self, trace: int) -> list[int]:
        """Indices into ``frames``, innermost first."""
        out: list[int] = []
        size = len(self.parent)
        while 0 < trace < size and len(out) <= size:
            out.append(int(self.frame[trace]))
            trace = int(self.parent[trace])
        return out

    def of(self, trace: int) -> list[Frame]:
        """The frames of a trace, innermost first."""
        return [self.frames[i] for i in self.frame_ids(trace)]


@dataclass(slots=True)
class Thing:
    """Something that is waited on: a queue, lock, future, timer, fd … at one address.

    ``state`` holds what its type has to say, by field name: ``size``, ``maxsize``, ``waiters``, ``locked``,
    ``value``, ``owner`` (tid or task address), ``owner_alive``, ``unfinished``, ``callbacks``, ``time_left``
    (seconds), ``fd``, ``local``, ``peer``, ``executor_thread`` …; ``detail`` says the same in words.
    ``references`` is its reference count, ``from_waiters`` how many of these come from the frames of stacks
    that wait on it, and ``exclusive`` is True when these are all: nothing else can reach it.
    """

    address: int
    type: str
    detail: str = ""
    state: dict[str, Any] = field(default_factory=dict)
    references: int | None = None
    from_waiters: int | None = None
    exclusive: bool | None = None
    held_by: list[str] = field(default_factory=list)  # retention paths, nearest first


def _ints(dtype: str) -> Any:
    return field(default_factory=lambda: np.zeros(0, dtype))


@dataclass(slots=True)
class StackTable:
    """All stacks of a snapshot, one column a fact. All columns have the same length.

    kind, state: codes (KINDS, STATES). address: of the task, coroutine … object, the tid of a thread, the
    number of a goroutine (0 where its source has none). parent: the address of the stack that made this one
    (goroutines; 0: not known).
    name: of the task or thread, "" when it has none. trace: index into Traces. wait: index into
    Snapshot.waits (0: not waiting). thing: index into Snapshot.things (-1: none). thread: the tid it belongs
    to (0: unknown). loop: address of the event loop (0: none). created_by: trace of the place of creation
    (0: not recorded). merged: trace of a thread with its native frames between those of Python (0: not
    unwound); a thread without Python frames has it as its ``trace``, too. holder: index into
    Snapshot.holders (-1: none found). stuck: 1 where every strong reference to what it waits on comes from
    stacks that are stuck themselves (0: not, or not known).
    wait_seconds, age_seconds: NaN where unknown.
    """

    kind: NDArray[np.uint8] = _ints("u1")
    state: NDArray[np.uint8] = _ints("u1")
    address: NDArray[np.uint64] = _ints("u8")
    name: list[str] = field(default_factory=list)
    trace: NDArray[np.int32] = _ints("i4")
    wait: NDArray[np.int32] = _ints("i4")
    thing: NDArray[np.int32] = _ints("i4")
    thread: NDArray[np.int64] = _ints("i8")
    loop: NDArray[np.uint64] = _ints("u8")
    created_by: NDArray[np.int32] = _ints("i4")
    parent: NDArray[np.uint64] = _ints("u8")
    merged: NDArray[np.int32] = _ints("i4")
    holder: NDArray[np.int32] = _ints("i4")
    stuck: NDArray[np.uint8] = _ints("u1")
    wait_seconds: NDArray[np.float64] = _ints("f8")
    age_seconds: NDArray[np.float64] = _ints("f8")

    def __len__(self) -> int:
        return len(self.kind)


#: StackTable's numeric columns with their dtypes, in the order of the store.
STACK_COLUMNS = {
    "kind": "u1",
    "state": "u1",
    "address": "u8",
    "trace": "i4",
    "wait": "i4",
    "thing": "i4",
    "thread": "i8",
    "loop": "u8",
    "created_by": "i4",
    "parent": "u8",
    "merged": "i4",
    "holder": "i4",
    "stuck": "u1",
    "wait_seconds": "f8",
    "age_seconds": "f8",
}


@dataclass(frozen=True, slots=True)
class Stack:
    """One flow of control: a thread, task, coroutine, generator, greenlet, goroutine."""

    index: int
    kind: str
    state: str
    address: int
    name: str
    frames: list[Frame]  # innermost first
    wait: str | None
    thing: Thing | None
    thread: int | None
    loop: int | None
    created_by: list[Frame]
    parent: int | None  # the address of the stack that made it
    merged: list[Frame]  # with native frames, innermost first; empty where it was not unwound
    held_by: str | None
    stuck: bool
    wait_seconds: float | None
    age_seconds: float | None


@dataclass(slots=True)
class ThreadInfo:
    """What only threads have. ``stack`` is the row in the StackTable."""

    tid: int
    stack: int
    name: str  # Python's name, else comm
    comm: str | None = None
    ident: int | None = None  # threading.get_ident()
    python: bool = True  # registered with an interpreter
    interpreter: int = 0
    daemon: bool | None = None
    holds_gil: bool | None = None
    waits_for_gil: bool | None = None
    collecting: bool | None = None  # the collector runs in it
    state: str | None = None  # R, S, D before the stop
    syscall: int | None = None
    wchan: str | None = None
    cpu_seconds: float | None = None
    running_loop: int | None = None  # address of the loop that runs in it
    registers: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Target:
    """What was looked at."""

    kind: str  # "core" | "live" | "snapshot" | "evidence"
    pid: int | None = None
    runtime: str = ""  # "cpython 3.12.1"
    flavour: str = "release"  # release | debug | free-threaded
    exe: str | None = None
    cmdline: list[str] = field(default_factory=list)
    host: str | None = None
    start_time: float | None = None  # seconds since the epoch
    captured_at: float | None = None
    boot_id: str | None = None
    signal: int | None = None
    details: dict[str, Any] = field(default_factory=dict)  # uid, gid, cgroup, namespaces, environ …


@dataclass(slots=True)
class Snapshot:
    """Everything decoded from one capture."""

    target: Target
    traces: Traces = field(default_factory=Traces)
    stacks: StackTable = field(default_factory=StackTable)
    waits: list[str] = field(default_factory=lambda: [""])  # interned wait names; 0 is "not waiting"
    things: list[Thing] = field(default_factory=list)
    #: where stacks are kept, in words: "app.background_tasks (set, 10,000 items)"
    holders: list[str] = field(default_factory=list)
    threads: list[ThreadInfo] = field(default_factory=list)
    #: who awaits whom: rows (awaiting stack, awaited stack)
    awaits: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 2), np.int32))
    #: context labels: rows of (stack, variable name, value as text), only of simple values
    labels: list[tuple[int, str, str]] = field(default_factory=list)
    #: loops, interpreters, executors …: tables of plain values by name
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    pause_ms: float | None = None
    warnings: list[str] = field(default_factory=list)

    def stack(self, index: int) -> Stack:
        """The row ``index`` as an object."""
        s = self.stacks
        thing = int(s.thing[index])
        holder = int(s.holder[index])
        wait = int(s.wait[index])
        seconds = float(s.wait_seconds[index])
        age = float(s.age_seconds[index])
        return Stack(
            index=index,
            kind=KINDS[int(s.kind[index])],
            state=STATES[int(s.state[index])],
            address=int(s.address[index]),
            name=s.name[index],
            frames=self.traces.of(int(s.trace[index])),
            wait=self.waits[wait] or None,
            thing=self.things[thing] if thing >= 0 else None,
            thread=int(s.thread[index]) or None,
            loop=int(s.loop[index]) or None,
            created_by=self.traces.of(int(s.created_by[index])),
            parent=int(s.parent[index]) or None,
            merged=self.traces.of(int(s.merged[index])),
            held_by=self.holders[holder] if holder >= 0 else None,
            stuck=bool(s.stuck[index]),
            wait_seconds=None if seconds != seconds else seconds,
            age_seconds=None if age != age else age,
        )

    def __iter__(self) -> Iterator[Stack]:
        return (self.stack(i) for i in range(len(self.stacks)))

    def count(self, kind: str, *states: str) -> int:
        """How many stacks of a kind (in one of ``states``, if given) there are."""
        mask = self.stacks.kind == KIND[kind]
        if states:
            mask &= np.isin(self.stacks.state, [STATE[s] for s in states])
        return int(mask.sum())


class SnapshotBuilder:
    """Collects stacks from several decoders into one Snapshot, interning frames, traces and waits."""

    def __init__(self, target: Target) -> None:
        self.snapshot = Snapshot(target)
        self._frames: dict[Frame, int] = {}
        self._nodes: dict[tuple[int, int], int] = {}
        self._parents: list[int] = [0]
        self._node_frames: list[int] = [-1]
        self._waits: dict[str, int] = {"": 0}
        self._things: dict[int, int] = {}
        self._columns: dict[str, list[NDArray[Any]]] = {c: [] for c in STACK_COLUMNS}
        self._names: list[str] = []

    def frame(self, frame: Frame) -> int:
        """Index of a frame, interned."""
        known = self._frames.get(frame)
        if known is None:
            known = self._frames[frame] = len(self.snapshot.traces.frames)
            self.snapshot.traces.frames.append(frame)
        return known

    def node(self, parent: int, frame: int) -> int:
        """Trace made of trace ``parent`` with frame index ``frame`` called from it (one step inward)."""
        known = self._nodes.get((parent, frame))
        if known is None:
            known = self._nodes[parent, frame] = len(self._parents)
            self._parents.append(parent)
            self._node_frames.append(frame)
        return known

    def nodes(self, parents: NDArray[np.int32], frames: NDArray[np.int32]) -> NDArray[np.int32]:
        """:meth:`node` for arrays: one dictionary look-up for each distinct pair."""
        key = parents.astype(np.int64) << 32 | frames.astype(np.int64)
        distinct, inverse = np.unique(key, return_inverse=True)
        ids = [self.node(int(k) >> 32, int(k) & 0xFFFFFFFF) for k in distinct]
        return np.array(ids, np.int32)[inverse]

    def trace(self, frames_outermost_first: list[Frame]) -> int:
        """Trace of a whole stack."""
        node = 0
        for f in frames_outermost_first:
            node = self.node(node, self.frame(f))
        return node

    def frames_of(self, trace: int) -> list[Frame]:
        """The frames of a trace made so far, innermost first."""
        out = []
        while trace > 0:
            out.append(self.snapshot.traces.frames[self._node_frames[trace]])
            trace = self._parents[trace]
        return out

    def wait(self, name: str) -> int:
        """Index of a wait name, interned."""
        known = self._waits.get(name)
        if known is None:
            known = self._waits[name] = len(self.snapshot.waits)
            self.snapshot.waits.append(name)
        return known

    def thing(self, thing: Thing) -> int:
        """Index of a thing; the first of an address stays."""
        known = self._things.get(thing.address)
        if known is None or not thing.address:
            known = len(self.snapshot.things)
            self.snapshot.things.append(thing)
            if thing.address:
                self._things[thing.address] = known
        return known

    def add(self, names: list[str], **columns: Any) -> int:
        """Add ``len(names)`` stacks; columns are arrays of that length or scalars. Returns the first row.

        Missing columns get their neutral value: thing and holder -1, times NaN, everything else 0.
        """
        first = len(self._names)
        n = len(names)
        neutral = {"thing": -1, "holder": -1, "wait_seconds": np.nan, "age_seconds": np.nan}
        for column, dtype in STACK_COLUMNS.items():
            value = columns.pop(column, neutral.get(column, 0))
            self._columns[column].append(np.broadcast_to(np.asarray(value, dtype=dtype), (n,)))
        if columns:
            raise TypeError(f"no such columns: {sorted(columns)}")
        self._names.extend(names)
        return first

    def finish(self) -> Snapshot:
        """The snapshot, with its columns joined."""
        snap = self.snapshot
        snap.traces.parent = np.array(self._parents, np.int32)
        snap.traces.frame = np.array(self._node_frames, np.int32)
        table = {}
        for c, parts in self._columns.items():
            table[c] = np.concatenate(parts) if parts else np.zeros(0, STACK_COLUMNS[c])
            self._columns[c] = [table[c]]  # the parts are gone: of a million stacks that is much
        snap.stacks = StackTable(name=self._names, **table)
        return snap
