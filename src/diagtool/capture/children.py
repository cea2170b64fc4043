"""Child processes of a live process: who runs, who has ended and waits to be reaped (a zombie), who is gone.

    capture.process.children.state(4243)       "zombie"

No file is read in the stop, so this looks twice, before it and when somebody asks, and says only what both
looks agree on. What ends or is reaped in between, as children ordinarily are, is unknown.

Facts: proc(5); /proc/PID/task/TID/children is there with CONFIG_PROC_CHILDREN, else every process is asked
for its parent. Children are numbered as the process itself numbers them (NSpid, pid_namespaces(7)).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Literal

from diagtool.capture import procfs

__all__ = ["Child", "Children", "Look", "agreed", "look"]

MAX_CHILDREN = 20_000  # of one process that are looked at
MAX_PROCESSES = 200_000  # of the machine, where each must be asked

State = Literal["running", "zombie", "gone"]


@dataclass(frozen=True, slots=True)
class Child:
    """One child. ``started``, in ticks since boot, tells it from a later one of the same number.

    ``number`` is its pid as we see it, which the process itself may number otherwise.
    """

    zombie: bool
    started: int
    number: int = field(default=0, compare=False)


@dataclass(slots=True)
class Look:
    """Children by number; ``complete``: there are no others."""

    children: dict[int, Child] = field(default_factory=dict)
    complete: bool = True


class Children:
    """The children of process ``pid``, looked at now and once more when somebody asks."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._before = look(pid)

    def state(self, child: int) -> State | None:
        """What is known of the child that the process knows as ``child``; None: nothing that is sure."""
        return agreed(self._before, self._after, child)

    def number(self, child: int) -> int | None:
        """The pid, as we see it, of a child that still runs; None where there is no such."""
        found = self._after.children.get(child) if self._after is not None else None
        running = found is not None and not found.zombie and found.number
        return found.number if found is not None and running else None

    @cached_property
    def _after(self) -> Look | None:
        return look(self.pid) if self._before is not None else None


def agreed(before: Look | None, after: Look | None, child: int) -> State | None:
    """What two looks agree on; a capture was made between them."""
    if before is None or after is None:
        return None
    first, second = before.children.get(child), after.children.get(child)
    if first is None and second is None:
        return "gone" if before.complete and after.complete else None
    if second is None:
        return None  # it ended, and was reaped
    if not second.zombie:
        return "running"  # so it did before
    if first is None or not first.zombie or first.started != second.started:
        return None  # it ended meanwhile
    return "zombie"


def look(pid: int) -> Look | None:
    """The children of a process now; None where nothing can be told."""
    status = procfs.parse_status(procfs.try_read(f"/proc/{pid}/status") or b"")
    depth = len(status.get("NSpid", "").split())
    listed = _listed(pid)
    found = Look(complete=listed is not None and len(listed) <= MAX_CHILDREN)
    for number in listed[:MAX_CHILDREN] if listed is not None else _processes():
        stat = procfs.parse_stat(procfs.try_read(f"/proc/{number}/stat") or b"")
        inside = _number_inside(number, depth)
        if stat is None or inside is None:  # reaped since, or hidden from us (hidepid=, proc(5))
            found.complete = False
        elif stat.parent == pid:
            # Where only the main thread has ended, the state is Z too (fs/proc/array.c).
            found.children[inside] = Child(stat.state in "ZX" and stat.threads <= 1, stat.start_ticks, number)
    # It may have ended meanwhile; then what was read says nothing.
    return found if procfs.task_ids(pid) else None


def _listed(pid: int) -> list[int] | None:
    # The children of all threads as the kernel lists them; None where it does not.
    out: list[int] = []
    for tid in procfs.task_ids(pid):
        text = procfs.try_read(f"/proc/{pid}/task/{tid}/children")
        if text is not None:
            out += [int(word) for word in text.split() if word.isdigit()]
        elif procfs.try_read(f"/proc/{pid}/task/{tid}/stat") is not None:
            return None
    return out


def _processes() -> Iterator[int]:
    try:
        names = os.listdir("/proc")  # noqa: PTH208 (thousands)
    except OSError:
        return
    yield from islice((int(name) for name in names if name.isdigit()), MAX_PROCESSES)


def _number_inside(number: int, depth: int) -> int | None:
    # As a process sees it whose own number is the last of ``depth``: NSpid goes from our namespace inwards.
    if depth < 2:
        return number
    status = procfs.parse_status(procfs.try_read(f"/proc/{number}/status") or b"")
    ids = status.get("NSpid", "").split()
    return int(ids[depth - 1]) if len(ids) >= depth and ids[depth - 1].isdigit() else None
