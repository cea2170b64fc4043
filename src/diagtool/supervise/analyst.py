"""Snapshots, taken and decoded in a thread beside the loop, which goes on answering the command's signals."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from diagtool.capture.errors import TargetError
from diagtool.supervise.tree import alive

if TYPE_CHECKING:
    from diagtool.capture.model import Capture
    from diagtool.capture.signals import SignalInfo
    from diagtool.capture.stop import Keeper
    from diagtool.snapshot.model import Snapshot

__all__ = ["Analyst", "Look", "Why"]

Why = Literal["sample", "every", "check", "threshold", "asked", "signal", "crash", "exit", "hang"]

_NICE = 10  # the command comes first
#: Bytes that are copied while the process stands, at most: in looks by chance, and in those for a reason.
_LITTLE, _MUCH = 48 << 20, 256 << 20


@dataclass(slots=True)
class Look:
    """One snapshot to be taken of a process, and what became of it.

    ``why``: see :data:`Why`; ``text`` says it for a person. ``at``: seconds since the command was started.
    ``standing``: it stands in its end and needs not run on; by ``signal`` in thread ``tid``. ``whole``:
    native frames too. ``core`` writes one and gives what went wrong. ``captured`` is called when the process
    need not be there any more, ``done`` in the end, both in the analyst's thread. ``gone``: it could not be
    read, because it has ended.
    """

    pid: int
    why: Why
    text: str
    at: float
    command: str = ""
    standing: bool = False
    stood: bool = False  # it was held for the look before that began
    signal: SignalInfo | None = None
    tid: int | None = None
    whole: bool = False
    core: Callable[[Capture], str] | None = None
    captured: Callable[[], None] | None = None
    done: Callable[[Look], None] | None = None
    snapshot: Snapshot | None = None
    error: TargetError | None = None
    gone: bool = False
    core_error: str = ""
    seconds: float = 0.0


class Analyst:
    """Takes looks one after the other. ``keeper_of`` gives who traces a process, None if nobody does.

    ``keep`` is called with every look that has a snapshot, in the analyst's thread.
    """

    def __init__(
        self, keeper_of: Callable[[int], Keeper | None], keep: Callable[[Look], None] | None = None
    ) -> None:
        self._keeper_of = keeper_of
        self._keep = keep
        self._jobs: queue.SimpleQueue[Look | None] = queue.SimpleQueue()
        self._waiting = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether looks are still to be taken."""
        return self._waiting > 0

    def take(self, look: Look) -> None:
        """Have a look taken."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="diagtool-analyst", daemon=True)
            self._thread.start()
        with self._lock:
            self._waiting += 1
        self._jobs.put(look)

    def finish(self) -> None:
        """End the thread; what waits is taken first."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()

    def _work(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while (look := self._jobs.get()) is not None:
            began = time.monotonic()
            try:
                self._take(look)
            except TargetError as error:
                look.error = error
            except Exception as error:  # noqa: BLE001 - the command must be let go whatever happens here
                look.error = TargetError(f"internal error: {type(error).__name__}: {error}")
            look.gone = look.error is not None and not alive(look.pid)
            look.seconds = time.monotonic() - began
            if look.captured is not None:
                look.captured()
            if look.done is not None:
                look.done(look)
            with self._lock:
                self._waiting -= 1

    def _take(self, look: Look) -> None:
        from diagtool.api import snapshot_of

        with self._capture(look) as capture:
            if look.core is not None:
                look.core_error = look.core(capture)
            snap = snapshot_of(capture, frames=look.whole)
        look.snapshot = snap
        if self._keep is not None:
            self._keep(look)

    def _capture(self, look: Look) -> Capture:
        from diagtool.capture.live import capture_live, capture_standing

        keeper = self._keeper_of(look.pid)
        if not look.standing or keeper is None:
            most = _LITTLE if look.why in ("sample", "every", "check") else _MUCH
            return capture_live(look.pid, keeper=keeper, max_copy=most)
        try:
            return capture_standing(look.pid, keeper, look.signal, look.tid)
        except BaseException:
            keeper.call(lambda: keeper.thaw(look.pid))
            raise
