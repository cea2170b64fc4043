"""What outlived its request or block, once it had time to end: alive, not meant, told once a place.

Nothing is called a leak before ``grace`` seconds have gone by since its scope ended, and with a middleware
not before several from one place are alive at once: what a program starts once, when it is first needed (a
flusher, a pool, a refresher), comes once; a leak comes again and again.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

from diagtool.probes import ignore
from diagtool.probes.left import NOUNS, Left
from diagtool.probes.scopes import Scope, running_loop
from diagtool.probes.sites import Origin, awaits, frames, spelled

__all__ = ["LEAST_ALIVE", "Leak", "Outlived", "left_of"]

#: So many from one place must be alive before a middleware says so.
LEAST_ALIVE = {"tasks": 2, "threads": 3, "asyncgens": 2, "fds": 30}

_MOST_PLACES = 1000
_MOST_KEPT = 1000  # weak references to things of one place
_MOST_PENDING = 10_000  # scopes
_REPORTS, _WINDOW = 10, 60.0  # reports in so many seconds, at most


@dataclass(slots=True)
class Leak:
    """What is left behind from one place: how many since the beginning, how many are alive now.

    ``left`` describes the last of them in words. ``where``: the request it came of. Times as of time.time().
    """

    kind: str
    left: Left
    where: str = ""
    count: int = 0
    first: float = 0.0
    last: float = 0.0
    told: bool = False
    _checks: dict[object, Callable[[], bool]] = field(default_factory=dict)

    @property
    def alive(self) -> int:
        """How many of them are there now; of more than a thousand no more are counted."""
        self._checks = {key: check for key, check in self._checks.items() if check()}
        return len(self._checks)

    def add(self, key: object, check: Callable[[], bool]) -> bool:
        """One more, unless it is known already."""
        if key in self._checks:
            return False
        if len(self._checks) < _MOST_KEPT:
            self._checks[key] = check
        self.count += 1
        self.last = time.time()
        return True

    def __str__(self) -> str:
        return told(self.left, self.alive, self.count, self.where)


def told(left: Left, alive: int, count: int, where: str) -> str:
    """A report of a few lines: what, where it was started, where it waits."""
    noun = NOUNS[left.kind][alive != 1]
    lines = [f"{alive} {noun} outlived {where or 'the block'}: {left.name}"]
    if count > alive:
        lines[0] += f" ({count} since the beginning)"
    if left.detail:
        lines.append(f"  {left.detail}")
    lines += [f"  started by  {site}" for site in _worth_showing(left.created)]
    lines += [f"  waits in    {site}" for site in left.waiting[:3]]
    return "\n".join(lines)


def _worth_showing(created: Sequence[Any]) -> Sequence[Any]:
    return [site for site in created if site.own][:3] or list(created[:3])


# -- one scope --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Remaining:
    """One thing that is alive. ``place``: where it was started; ``key`` tells it from others from there."""

    place: tuple[str, Origin]
    key: object
    check: Callable[[], bool]  # whether it is there still
    describe: Callable[[], Left]
    thing: weakref.ref[Any] | None = None


def left_of(scope: Scope) -> list[Remaining]:
    """What was started in a scope and is alive now."""
    out: list[Remaining] = []
    for kind, ref, origin in scope.things:
        if _alive(kind, ref):
            check, describe = _check(kind, ref), _describer(kind, ref, origin)
            out.append(Remaining((kind, origin), ref, check, describe, ref))
    if scope.files:
        out += _files(scope)
    return out


def _check(kind: str, ref: weakref.ref[Any]) -> Callable[[], bool]:
    return lambda: _alive(kind, ref)


def _alive(kind: str, ref: weakref.ref[Any]) -> bool:
    thing = ref()
    if thing is None:
        return False
    try:
        if kind == "tasks":
            return not thing.done()
        if kind == "threads":
            return bool(thing.is_alive())
        if kind == "asyncgens":
            return thing.ag_frame is not None and not thing.ag_running
        return bool(thing.fileno() >= 0)
    except Exception:  # noqa: BLE001 - a class of the program's own
        return False


def _describer(kind: str, ref: weakref.ref[Any], origin: Origin) -> Callable[[], Left]:
    def describe() -> Left:
        thing = ref()
        created = spelled(origin)
        if thing is None:
            return Left(kind, 0, "(gone)", created=created)
        if kind == "tasks":
            coroutine = thing.get_coro()
            name = getattr(coroutine, "__qualname__", type(coroutine).__name__)
            said = Left(kind, id(thing), f"{name} ({thing.get_name()})", "", created, awaits(coroutine))
            if ignore.matches(name, ignore.TASKS):
                said.ignored = "of a runner"
            return said
        if kind == "threads":
            return _thread(thing, created)
        if kind == "asyncgens":
            return Left(kind, id(thing), thing.__qualname__, "never closed", created, awaits(thing))
        return Left(kind, id(thing), _socket(thing), "", created)

    return describe


def _thread(thread: threading.Thread, created: Any) -> Left:
    waiting = frames(sys._current_frames().get(thread.ident or 0))
    detail = "" if thread.daemon else "not a daemon: the interpreter waits for it when it ends"
    said = Left("threads", id(thread), f'thread "{thread.name}"', detail, created, waiting)
    said.ignored = ignore.thread(thread, getattr(thread, "_target", None), waiting)
    return said


def _executor_of(thing: Any) -> Any:
    if not isinstance(thing, threading.Thread):
        return None
    if ignore.qualified(getattr(thing, "_target", None)) != "concurrent.futures.thread:_worker":
        return None
    args = getattr(thing, "_args", ())
    return args[0]() if args and isinstance(args[0], weakref.ref) else None


def _socket(thing: Any) -> str:
    try:
        return f"socket {thing.fileno()}: {thing.getsockname()} -> {thing.getpeername()}"
    except OSError:
        return f"socket {thing.fileno()}"


# Files have no object here. A descriptor that was not there before and leads to a path that the scope opened
# may be that of another request that opened the same one: it counts once, and many must be there.
def _files(scope: Scope) -> list[Remaining]:
    out: list[Remaining] = []
    for name in os.listdir("/proc/self/fd"):
        if name in scope.before:
            continue
        link = _link(name)
        origin = scope.files.get(link)
        if origin is not None and not ignore.matches(link, ignore.TARGETS):
            out.append(Remaining(("fds", origin), name, _same_file(name, link), _file(name, link, origin)))
    return out


def _same_file(name: str, link: str) -> Callable[[], bool]:
    return lambda: _link(name) == link


def _file(name: str, link: str, origin: Origin) -> Callable[[], Left]:
    return lambda: Left("fds", int(name), f"file {name}: {link}", "", spelled(origin))


def _link(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        return ""


# -- all of them ------------------------------------------------------------------------------------------


class Outlived:
    """Scopes that have ended with something left, and what became of it. Used from any thread."""

    def __init__(
        self,
        report: Callable[[Leak], None],
        *,
        grace: float,
        least: Mapping[str, int],
        ignored: Collection[str] = (),
    ) -> None:
        self.grace = grace
        self.scopes = 0  # that have ended
        self.dropped = 0  # of which nothing was said, because there were too many
        self._report = report
        self._least = least
        self._ignored = tuple(ignored)
        self._pending: deque[tuple[float, Scope]] = deque()
        self._active = self._peak = 0
        self._executors: weakref.WeakSet[Any] = weakref.WeakSet()
        self._places: dict[tuple[str, Origin], Leak] = {}
        self._skipped: set[tuple[str, Origin]] = set()
        self._times: deque[float] = deque(maxlen=_REPORTS)
        self._lock = threading.RLock()

    @property
    def leaks(self) -> list[Leak]:
        """What is left behind, most first; looks at what is due before."""
        self.look()
        with self._lock:
            return sorted((p for p in self._places.values() if p.told), key=lambda p: -p.count)

    def began(self) -> None:
        """A scope begins: how many there are at a time says how large a pool may rightly be."""
        self._active += 1
        if self._active > self._peak:
            self._peak = self._active

    def ended(self, scope: Scope) -> None:
        """A scope has ended. Cheap where nothing was started in it."""
        scope.ended = True
        self.scopes += 1
        self._active -= 1
        pending = self._pending
        if scope.things or scope.files:
            if len(pending) >= _MOST_PENDING:
                self.dropped += 1
            elif scope.files or any(_alive(kind, ref) for kind, ref, _ in scope.things):
                pending.append((time.monotonic() + self.grace, scope))
                self._call_later()
        if pending and pending[0][0] <= time.monotonic():
            self.look()

    # In a loop there is somebody who calls us; elsewhere the next request does.
    def _call_later(self) -> None:
        loop = running_loop()
        if loop is not None and len(self._pending) == 1:
            # In a context of its own: that of the request may keep it.
            loop.call_later(self.grace + 0.01, self._on_time, context=Context())

    def _on_time(self) -> None:
        self.look()
        if self._pending:
            loop = running_loop()
            if loop is not None:
                wait = max(0.01, self._pending[0][0] - time.monotonic() + 0.01)
                loop.call_later(wait, self._on_time, context=Context())

    def look(self) -> None:
        """Judge the scopes that had their time."""
        with self._lock:
            now = time.monotonic()
            while self._pending and self._pending[0][0] <= now:
                _, scope = self._pending.popleft()
                try:
                    self._judge(scope)
                except Exception:  # noqa: BLE001 - the program must not notice
                    self.dropped += 1

    def _judge(self, scope: Scope) -> None:
        for one in left_of(scope):
            if one.place in self._skipped or self._is_of_known_pool(one):
                continue
            place = self._places.get(one.place)
            if place is None:
                place = self._new_place(one)
                if place is None:
                    continue
            if place.add(one.key, one.check):
                place.where = scope.where
                if not place.told and place.alive >= self._enough(place.kind):
                    self._tell(place, one.describe)

    # A pool that all requests share has one connection for each of those that are served at a time.
    def _enough(self, kind: str) -> int:
        least = self._least.get(kind, 1)
        return max(least, 4 * self._peak) if kind == "fds" and least > 1 else least

    # The workers of an executor count once: a pool for all requests may have many, one for each is a leak.
    def _is_of_known_pool(self, one: Remaining) -> bool:
        executor = _executor_of(one.thing() if one.thing is not None else None)
        if executor is None:
            return False
        if executor in self._executors:
            return True
        self._executors.add(executor)
        return False

    def _new_place(self, one: Remaining) -> Leak | None:
        left = one.describe()
        if left.ignored or self._is_ignored(left):
            # Of a place that starts what is meant nothing more is said, except of pools: one may be meant,
            # and one for each request is not.
            if len(self._skipped) < _MOST_PLACES and "executor" not in left.ignored:
                self._skipped.add(one.place)
            return None
        if len(self._places) >= _MOST_PLACES:
            self.dropped += 1
            return None
        place = self._places[one.place] = Leak(left.kind, left, first=time.time())
        return place

    def _tell(self, place: Leak, describe: Callable[[], Left]) -> None:
        now = time.monotonic()
        if len(self._times) == _REPORTS and now - self._times[0] < _WINDOW:
            return  # the next of its kind tells
        left = describe()
        if left.ignored:
            return
        self._times.append(now)
        place.left, place.told = left, True
        self._report(place)

    def _is_ignored(self, left: Left) -> bool:
        return any(ignore.matches(name, self._ignored) for name in left.names())
