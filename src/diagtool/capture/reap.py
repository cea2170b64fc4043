"""Zombies of ours in the target: a dead image stays one until its parent, the target, takes notice.

wait4(child, NULL, WNOHANG | __WALL, NULL) is injected as the clone was (inject.py), into one thread, while
the others run. What a diagtool that was killed left behind is known by marks that no other child has
together: exit signal 0, all signals blocked, ended by SIGKILL or with status 0, no time used.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from diagtool.capture import inject, procfs, sigframe
from diagtool.capture.errors import Refused, TargetError
from diagtool.capture.gadgets import Gadgets
from diagtool.capture.hold import Hold
from diagtool.capture.inject import WAIT4, Injection
from diagtool.capture.plan import MappingOrder

__all__ = ["in_target", "leftovers"]

_WNOHANG, _WALL = 1, 0x40000000
_TRIES = 20  # rounds through the threads
_PICKY = 15  # of which so many want a thread of which no call would return early
_PAUSE = 0.02  # seconds between two rounds
_STOP = 0.05  # seconds for one thread to stop
_THREADS = 64  # of the target that are tried in a round

#: System calls that wait without a time limit: read, accept, wait4, recvfrom, pause, rt_sigsuspend …
_UNTIMED = {0, 17, 19, 34, 43, 45, 47, 61, 130, 247, 288}
_FUTEX = 202


def in_target(pid: int, children: Sequence[int], gadgets: Gadgets, last_resort: bool = False) -> list[int]:
    """Have process ``pid`` reap dead children, numbered as it sees them; gives those that are left.

    Never raises: a target that has ended has no zombies either.
    """
    left = list(children)
    for number in range(_TRIES if left else 0):
        for tid in _candidates(pid):
            attempt = _Attempt(pid, tid, left, gadgets, last_resort or number >= _PICKY)
            # A thread of ours for each: its end lets go of a thread that did not stop in time.
            thread = threading.Thread(target=attempt.run, name="diagtool-reap", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads may be started here
                return left
            thread.join()
            left = attempt.left
            if not left:
                return left
        if not procfs.task_ids(pid):
            return []
        time.sleep(_PAUSE)
    return left


def leftovers(pid: int) -> list[int]:
    """Dead images that a diagtool that was killed has left, numbered as ``pid`` sees them."""
    depth = len(procfs.parse_status(procfs.try_read(f"/proc/{pid}/status") or b"").get("NSpid", "").split())
    out = []
    for tid in procfs.task_ids(pid):
        for word in (procfs.try_read(f"/proc/{pid}/task/{tid}/children") or b"").split():
            number = _dead_image(int(word), depth) if word.isdigit() else None
            if number is not None:
                out.append(number)
    return out


# The number that the target has for a child that is a dead image.
def _dead_image(child: int, depth: int) -> int | None:
    text = procfs.try_read(f"/proc/{child}/stat") or b""
    fields = text[text.rfind(b")") + 1 :].split()
    # proc(5): (3) state, (14) utime, (38) exit_signal, (52) exit_code; the first here is (3).
    if len(fields) < 50 or fields[0] != b"Z" or fields[35] != b"0" or fields[11] != b"0":
        return None
    if fields[49] not in (b"0", b"9"):
        return None
    status = procfs.parse_status(procfs.try_read(f"/proc/{child}/status") or b"")
    numbers = status.get("NSpid", "").split()
    if status.get("SigBlk") != f"{sigframe.ALL_SIGNALS:016x}" or len(numbers) < depth:
        return None
    return int(numbers[depth - 1]) if depth else child


# The threads that a call may be injected into, those first that wait without a time limit.
def _candidates(pid: int) -> list[int]:
    ranked = []
    for tid in procfs.task_ids(pid)[:_THREADS]:
        call = procfs.parse_syscall(procfs.try_read(f"/proc/{pid}/task/{tid}/syscall") or b"")
        untimed = call is not None and (call[0] in _UNTIMED or (call[0] == _FUTEX and not call[1][3]))
        ranked.append((0 if untimed else 1 if call is None else 2, tid))
    return [tid for _, tid in sorted(ranked)]


class _Attempt:
    """One thread of the target, stopped for the calls alone."""

    def __init__(
        self, pid: int, tid: int, children: Sequence[int], gadgets: Gadgets, last_resort: bool
    ) -> None:
        self.left = list(children)
        self._hold = Hold(pid)
        self._tid = tid
        self._gadgets = gadgets
        self._last_resort = last_resort

    def run(self) -> None:
        with suppress(OSError, TargetError, Refused):
            order = MappingOrder(procfs.parse_maps(procfs.read_file(f"/proc/{self._hold.pid}/maps")))
            try:
                if self._hold.hold_one(self._tid, _STOP):
                    self._reap(order)
            finally:
                self._hold.let_go()

    def _reap(self, order: MappingOrder) -> None:
        hold = self._hold
        place = inject.find_place(hold, order, self._gadgets, [(WAIT4, ())], self._last_resort)
        for child in self.left.copy():
            call = (WAIT4, (child, 0, _WNOHANG | _WALL, 0))
            result = Injection(hold.pid, place, self._gadgets, hold.looker).make(call)
            if result == child or result == -10:  # ECHILD: somebody did it
                self.left.remove(child)
