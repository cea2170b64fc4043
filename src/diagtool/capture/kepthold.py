"""The hold of a process whose threads are traced already, and stay so."""

from __future__ import annotations

import errno

from diagtool.capture.hold import Hold
from diagtool.capture.traced import Tracer

__all__ = ["KeptHold"]


class KeptHold(Hold):
    """The threads of a process that is traced already; new ones are traced from now on, too."""

    def __init__(self, tracer: Tracer, pid: int) -> None:
        super().__init__(pid)
        self._tracer = tracer

    def hold(self) -> None:
        """Stop every thread."""
        known = self._tracer.threads(self.pid)
        self.seen = set(known)
        self.pending = list(known)
        super().hold()

    def seize(self, tid: int) -> int:
        """Begin to trace a thread; 0 or an errno. One that an exec is about to end is left out."""
        error = self._tracer.seize(self.pid, tid)
        return errno.ESRCH if error == errno.EAGAIN else error

    def _interrupt(self) -> None:
        standing = [tid for tid in self.pending if self._tracer.stands(tid)]
        self.pending = [tid for tid in self.pending if tid not in standing]
        super()._interrupt()
        self.pending += standing

    def let_go(self) -> None:
        """Let all threads go that did not stand before; those that stopped for a signal get it."""
        while self.signals:
            self._tracer.attend_to(self.signals.popitem()[0], self._tracer.told)
