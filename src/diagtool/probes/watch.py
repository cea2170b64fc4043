"""All probes together: what is new, and what of it stays when it is given time."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass
from time import sleep

from diagtool.probes.descriptors import Descriptors
from diagtool.probes.ignore import matches
from diagtool.probes.left import KINDS, Left, Probe
from diagtool.probes.origins import Origins
from diagtool.probes.processes import Processes, reap
from diagtool.probes.tasks import Tasks, drain
from diagtool.probes.tempfiles import TemporaryFiles
from diagtool.probes.threads import Threads

#: Kinds that need no mark.
WATCHED = tuple(kind for kind in KINDS if kind != "heap")

#: Seconds that are waited in total before something is called a leak.
TIMEOUT = 1.0
_FIRST, _LONGEST = 0.0002, 0.1
#: Only what outlives this many seconds is worth a run of the collector, which takes as long.
_BRIEFLY = 0.006

#: A probe's place and its key.
Key = tuple[int, Hashable]

_sleep = sleep  # kept: tests replace time.sleep


def pauses(total: float) -> Iterator[float]:
    """0.2, 0.4 … 100 milliseconds, ``total`` seconds at least. No clock is read: tests stop them."""
    pause, spent = _FIRST, 0.0
    while spent < total:
        yield pause
        spent += pause
        pause = min(pause * 2, _LONGEST, max(total - spent, _FIRST))


def _nothing() -> None:
    pass


@dataclass
class Wanted:
    """What is looked for: kinds, and globs of what is ignored."""

    kinds: Collection[str] = WATCHED
    ignore: tuple[str, ...] = ()

    def reason(self, left: Left) -> str:
        """Why this is not told; "" if it is."""
        if left.kind not in self.kinds:
            return f"{left.kind} are allowed"
        for pattern in self.ignore:
            if any(matches(name, (pattern,)) for name in left.names()):
                return f"ignored by {pattern!r}"
        return left.ignored


class Watch:
    """What is alive, between two moments. Install it once a session."""

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self.timeout = timeout
        self.told: set[tuple[object, ...]] = set()
        self._once: set[str] = set()
        self._pipe = ""  # of libuv
        self._changed: list[int] = []
        self.origins = Origins()
        notes = self.notes = self.origins.notes
        self.threads = Threads(notes)
        self.tasks = Tasks(notes, lambda left: pauses(self.patience(left)))
        self.files = TemporaryFiles(notes)
        self.descriptors = Descriptors(notes, [self.threads.folder])
        self.probes: tuple[Probe, ...] = (
            self.threads,
            self.tasks,
            self.descriptors,
            Processes(notes),
            self.files,
        )

    def install(self) -> None:
        """Begin: notes are taken, and what is alive is known."""
        self.origins.install()
        self.adopt()

    def uninstall(self) -> None:
        """End: everything is as it was."""
        self.origins.uninstall()
        for probe in self.probes:
            probe.close()

    def changed(self) -> bool:
        """Whether anything may be new. Microseconds: it is asked after every test."""
        self._changed = [i for i, probe in enumerate(self.probes) if probe.changed()]
        return bool(self._changed)

    def adopt(self, pending: Collection[Key] = (), same: bool = False) -> None:
        """What is alive now is known; ``pending`` of it is still to be judged. ``same``: see Probe."""
        self.notes.quiet = True
        try:
            for i in self._changed if same else range(len(self.probes)):
                keys = {key for place, key in pending if place == i} if pending else ()
                self.probes[i].adopt(keys, same)
            self.notes.forget()
        finally:
            self.notes.quiet = False

    def new(self) -> set[Key]:
        """What is alive and was not, of the kinds that :meth:`changed` found."""
        self.notes.quiet = True
        try:
            return {(i, key) for i in self._changed for key in self.probes[i].new()}
        finally:
            self.notes.quiet = False

    def describe(self, keys: Iterable[Key]) -> dict[Key, Left]:
        """Those of ``keys`` that are still there."""
        self.notes.quiet = True
        try:
            out = {}
            for place, key in sorted(keys, key=lambda k: (k[0], str(k[1]))):
                left = self.probes[place].describe(key)
                if left is not None:
                    out[place, key] = left
            return out
        finally:
            self.notes.quiet = False

    def may_be_pool(self, left: Left) -> bool:
        """Whether a library in C may have made this for good: true for the first of its name.

        Pools of threads and pollers are made at first use and kept; what leaks comes again.
        """
        nameless = left.kind == "fds" and not left.owned and "anon_inode:" in left.name
        if left.kind == "fds" and not left.owned and self._is_of_uvloop(left.name):
            return True
        if left.kind != "native-threads" and not nameless:
            return False
        name = left.name if left.kind == "native-threads" else left.name.partition(": ")[2]
        if name in self._once:
            return False
        self._once.add(name)
        return True

    def _is_of_uvloop(self, name: str) -> bool:
        """Whether this is an end of the pipe for signals that libuv makes for its first loop and keeps."""
        pipe = name.partition(": ")[2]
        if "uvloop" not in sys.modules or not pipe.startswith("pipe:"):
            return False
        if not self._pipe:
            self._pipe = pipe
        return pipe == self._pipe

    def patience(self, found: Iterable[Left]) -> float:
        """Seconds in total: a tenth for what was waited for in vain before."""
        known = all(left.likeness in self.told for left in found)
        return self.timeout / 10 if known else self.timeout

    def settle(
        self,
        keys: set[Key],
        wanted: Wanted,
        timeout: float | None = None,
        release: Callable[[], None] = _nothing,
    ) -> dict[Key, Left]:
        """What of ``keys`` is still there after it was given time to end, with what is ignored.

        Idle event loops go round, ``release`` and the collector run once, children that ended are waited for;
        with growing pauses, and no longer than until nothing is left that would be told.
        """
        # What a test just dropped in a cycle (an exception and its frames) goes with the young generations,
        # in a fiftieth of the time that it takes to find out who owns it, or to collect all.
        gc.collect(1)
        found = self.describe(keys)
        left = [each for each in found.values() if not wanted.reason(each)]
        waited, collected = 0.0, False
        for pause in pauses(self.patience(left) if timeout is None else timeout):
            if all(wanted.reason(left) for left in found.values()):
                break
            # A thread that was joined is with the kernel for a while yet: no collector helps there.
            objects = any(left.kind != "native-threads" for left in found.values())
            if waited > _BRIEFLY and objects and not collected:
                release()
                gc.collect()
                collected = True
            waited += pause
            for loop in self.tasks.loops():
                drain(loop)
            reap()
            found = self.describe(found)
            if all(wanted.reason(left) for left in found.values()):
                break
            _sleep(pause)
        return found
