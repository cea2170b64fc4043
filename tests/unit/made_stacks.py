"""Snapshots of imagined programs: stacks written down as text, for tests of the leaks engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diagtool.snapshot.model import KIND, STATE, Frame, Snapshot, SnapshotBuilder, Target, Thing, ThreadInfo

STDLIB = "/usr/lib/python3.12/"
SITE = "/srv/venv/lib/python3.12/site-packages/"
APP = "/srv/app/"

_STDLIB_PARTS = ("asyncio/", "concurrent/", "logging/", "multiprocessing/", "threading.py", "queue.py",
                 "selectors.py", "socketserver.py", "socket.py", "subprocess.py")  # fmt: skip
_SITE_PARTS = ("starlette/", "httpcore/", "urllib3/", "sqlalchemy/", "aiohttp/", "sentry_sdk/")

# Inner ends of stacks, innermost first, as CPython 3.12 shows them.
QUEUE_GET = "asyncio/queues.py:Queue.get:158"
QUEUE_PUT = "asyncio/queues.py:Queue.put:125"
QUEUE_JOIN = "asyncio/locks.py:Event.wait:212 asyncio/queues.py:Queue.join:214"
SEMAPHORE = "asyncio/locks.py:Semaphore.acquire:386"
LOCK = "asyncio/locks.py:Lock.acquire:113"
EVENT = "asyncio/locks.py:Event.wait:212"
SLEEP = "asyncio/tasks.py:sleep:665"
THREAD = "threading.py:Thread.run:1010 threading.py:Thread._bootstrap:1030"
T_CONDITION = "threading.py:Condition.wait:355"
T_QUEUE_GET = f"{T_CONDITION} queue.py:Queue.get:171"
T_EVENT = f"{T_CONDITION} threading.py:Event.wait:655"
WORKER = f"concurrent/futures/thread.py:_worker:81 {THREAD}"
JOB = f"concurrent/futures/thread.py:_WorkItem.run:58 concurrent/futures/thread.py:_worker:83 {THREAD}"
LOOP = (
    "asyncio/base_events.py:BaseEventLoop._run_once:1949 asyncio/base_events.py:BaseEventLoop.run_forever:608"
)
HANDLE = f"asyncio/events.py:Handle._run:88 {LOOP}"


def frames(text: str) -> list[Frame]:
    """``file.py:function:line …``, innermost first."""
    out = []
    for item in text.split():
        file, function, line = item.rsplit(":", 2)
        folder = STDLIB if file.startswith(_STDLIB_PARTS) else SITE if file.startswith(_SITE_PARTS) else APP
        out.append(Frame(function, folder + file, int(line)))
    return out


class World:
    """A process under construction. Methods return the rows that they added."""

    def __init__(self, pid: int = 100, at: float | None = None) -> None:
        target = Target(
            "live", pid=pid, runtime="cpython 3.12.1", captured_at=at, start_time=1.0, boot_id="b"
        )
        self.builder = SnapshotBuilder(target)
        self.awaits: list[tuple[int, int]] = []
        self._address = 0x7F00_0000_0000
        self.builder.snapshot.holders = ["app.tasks (set)"]

    def address(self) -> int:
        self._address += 0x100
        return self._address

    def thing(
        self, kind: str = "asyncio.queues.Queue", *, exclusive: bool | None = None, **state: Any
    ) -> Thing:
        """Something to wait on, at an address of its own."""
        references = 3 if exclusive is not None else None
        return Thing(self.address(), kind, state.pop("detail", ""), state, references, None, exclusive)

    def stacks(
        self,
        kind: str,
        count: int,
        wait: str,
        text: str,
        things: Thing | Sequence[Thing] | None = None,
        *,
        state: str = "waiting",
        names: Sequence[str] | None = None,
        address: int | None = None,
        **columns: Any,
    ) -> list[int]:
        """``count`` stacks with the same frames; ``things`` is one for all, or one for each."""
        each = [things] * count if things is None or isinstance(things, Thing) else list(things)
        kept = {"holder": 0, **columns}
        ids = [-1 if t is None else self.builder.thing(t) for t in each]
        start = self.address() if address is None else address
        self._address = max(self._address, start + 0x100 * count)
        first = self.builder.add(
            list(names) if names is not None else [f"{kind}-{start + i:x}" for i in range(count)],
            kind=KIND[kind],
            state=STATE[state],
            address=np.arange(count) * 0x100 + start,
            trace=self.builder.trace(frames(text)[::-1]),
            wait=self.builder.wait(wait) if wait else 0,
            thing=np.array(ids, np.int32),
            **kept,
        )
        return list(range(first, first + count))

    def tasks(self, count: int, wait: str, text: str, things: Any = None, **more: Any) -> list[int]:
        return self.stacks("task", count, wait, text, things, **more)

    def threads(
        self,
        count: int,
        wait: str,
        text: str,
        things: Any = None,
        *,
        daemon: bool = True,
        main: bool = False,
        loop: int | None = None,
        cpu: float | None = None,
        holds_gil: bool | None = None,
        **more: Any,
    ) -> list[int]:
        """Threads, their tids being their addresses; ``main`` makes it the main thread."""
        if main:
            more["address"] = self.builder.snapshot.target.pid
        rows = self.stacks("thread", count, wait, text, things, **more)
        for row in rows:
            tid = int(np.concatenate(self.builder._columns["address"])[row])
            name = self.builder._names[row]
            self.builder.snapshot.threads.append(
                ThreadInfo(
                    tid, row, name, daemon=daemon, running_loop=loop, cpu_seconds=cpu, holds_gil=holds_gil
                )
            )
        return rows

    def table(self, name: str, *rows: dict[str, Any]) -> None:
        self.builder.snapshot.tables[name] = list(rows)

    def build(self) -> Snapshot:
        snapshot = self.builder.finish()
        snapshot.awaits = np.array(self.awaits, np.int32).reshape(-1, 2)
        self._judge(snapshot)
        return snapshot

    def _judge(self, snapshot: Snapshot) -> None:
        """What the decoder would say: who waits on what only its waiters reach, and who awaits only such."""
        s = snapshot.stacks
        waiting = np.isin(s.state, (STATE["waiting"], STATE["cancelling"]))
        exclusive = np.array([t.exclusive is True for t in snapshot.things] + [False], np.bool_)
        s.stuck[waiting & exclusive[s.thing]] = 1
        children: dict[int, list[int]] = {}
        for parent, child in self.awaits:
            children.setdefault(parent, []).append(child)
        for parent in sorted(children, reverse=True):  # children come after their parents
            undone = [c for c in children[parent] if s.state[c] != STATE["done"]]
            if undone and waiting[parent] and all(s.stuck[c] == 1 for c in undone):
                s.stuck[parent] = 1
