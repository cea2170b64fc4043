"""Which request or block a task, thread, socket, file or async generator was started in.

A :class:`Scope` is the value of a context variable while its request or block runs. Tasks and what they call
have a copy of the context, so requests that overlap are kept apart. What is started is noted with a weak
reference and the place it was started from, never with the request itself:

- tasks by the task factory of the loop, which calls on to the one that was there (asyncio's own, uvloop's,
  an eager one);
- threads by ``Thread.start``, replaced while somebody looks and given back after that;
- async generators by the hook that tells a loop of each new one (PEP 525);
- sockets by the audit event of their making, which has the object. Files have none: of them the path is
  noted, and the descriptors that were there before. An audit hook can't be taken away; without a scope it
  looks up one variable.

What a thread starts is not known: threads begin with an empty context (before Python 3.14).
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Collection
from contextvars import ContextVar
from types import CodeType
from typing import Any

from diagtool.probes.sites import Origin

__all__ = ["KINDS", "Scope", "attach", "current", "detach", "install", "running_loop", "uninstall"]

#: What can be looked for.
KINDS = ("tasks", "threads", "asyncgens", "fds")

#: Frames that are noted of a place.
_DEPTH = 8
#: Things that are noted of one scope: a request that starts more is told of these.
_MOST = 1000

current: ContextVar[Scope | None] = ContextVar("diagtool.scope", default=None)

#: (kind, weak reference, where it was started)
Thing = tuple[str, "weakref.ref[Any]", Origin]


class Scope:
    """One request or block. ``things``: what was started in it; ``files``: what was opened, by path."""

    __slots__ = ("__weakref__", "before", "ended", "files", "kinds", "things", "where")

    def __init__(self, kinds: Collection[str], where: str = "") -> None:
        self.kinds = kinds
        self.where = where
        self.ended = False
        self.things: list[Thing] = []
        self.files: dict[str, Origin] = {}
        self.before: frozenset[str] = frozenset()

    def note(self, kind: str, thing: Any, depth: int) -> None:
        """``thing`` was started here, ``depth`` frames up."""
        # Of a scope that has ended nothing is noted: a worker may have its context for ever.
        if kind in self.kinds and not self.ended and len(self.things) < _MOST:
            try:
                self.things.append((kind, weakref.ref(thing), _here(depth + 1)))
            except TypeError:  # it can't be referred to weakly
                pass

    def note_file(self, path: str, depth: int) -> None:
        """A file was opened."""
        if "fds" not in self.kinds or self.ended or len(self.files) >= _MOST:
            return
        if not self.files:
            self.before = _descriptors()
        self.files[os.path.abspath(path)] = _here(depth + 1)


# Not the one by which the folder is read: the file that is opened next gets its number.
def _descriptors() -> frozenset[str]:
    folder = "/proc/self/fd"
    return frozenset(name for name in os.listdir(folder) if os.path.lexists(f"{folder}/{name}"))


def _here(skip: int) -> Origin:
    frame = sys._getframe(skip + 1)
    out: list[tuple[CodeType, int]] = []
    while frame is not None and len(out) < _DEPTH:
        out.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(out)


# -- threads, sockets and files ---------------------------------------------------------------------------


def checked(kinds: Collection[str]) -> frozenset[str]:
    """``kinds``, each of which must be one that can be looked for. Raises ValueError."""
    chosen = frozenset((kinds,) if isinstance(kinds, str) else kinds)
    if chosen - set(KINDS):
        raise ValueError(f"kinds are {', '.join(KINDS)}, not {', '.join(sorted(chosen - set(KINDS)))}")
    return chosen


_lock = threading.Lock()
_users = 0
_hooked = False
_start: Callable[..., None] | None = None
_undo: Callable[[], None] | None = None


def install() -> None:
    """Begin to note. Called as often as :func:`uninstall`."""
    global _users, _hooked
    with _lock:
        _users += 1
        if not _hooked:
            _hooked = True
            sys.addaudithook(_on_event)
        if threading.Thread.start is not _start:
            _replace_start()


def uninstall() -> None:
    """No more notes for this one; the last gives ``Thread.start`` back, unless it was replaced after us."""
    global _users
    with _lock:
        _users = max(0, _users - 1)
        if not _users and _undo is not None:
            _undo()


# A new function each time: one that somebody else still calls on to must lead where it led.
def _replace_start() -> None:
    global _start, _undo
    original = threading.Thread.start

    @functools.wraps(original)
    def start(self: threading.Thread, *args: Any, **kwargs: Any) -> None:
        scope = current.get()
        if scope is not None:
            scope.note("threads", self, 1)
        original(self, *args, **kwargs)

    def undo() -> None:
        if threading.Thread.start is start:
            threading.Thread.start = original  # type: ignore[method-assign]

    _start, _undo = start, undo
    threading.Thread.start = start  # type: ignore[method-assign]


# An error in an audit hook would become the program's: none may get out.
def _on_event(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" or event == "socket.__new__":
        scope = current.get()
        if scope is None:
            return
        try:
            if event != "open":
                scope.note("fds", args[0], 1)
            elif not isinstance(args[0], int) and not _by_import():
                scope.note_file(os.fsdecode(args[0]), 1)
        except Exception:  # noqa: BLE001
            pass


def _by_import() -> bool:
    return sys._getframe(2).f_code.co_filename.startswith("<frozen importlib")


# -- tasks and async generators ---------------------------------------------------------------------------


def running_loop() -> Any:
    """The loop that runs in this thread, or None. Asyncio is not imported for our sake."""
    events = sys.modules.get("asyncio.events")
    return None if events is None else events._get_running_loop()


class _Factory:
    """A task factory that notes, and calls on to the one that was there."""

    __slots__ = ("inner",)

    def __init__(self, inner: Callable[..., Any] | None) -> None:
        self.inner = inner

    def __call__(self, loop: Any, coro: Any, **kwargs: Any) -> Any:
        if self.inner is None:
            task = sys.modules["asyncio"].Task(coro, loop=loop, **kwargs)
        else:
            task = self.inner(loop, coro, **kwargs)
        scope = current.get()
        if scope is not None:
            scope.note("tasks", task, 1)
        return task


class _FirstIteration:
    """A hook for new async generators that notes, and calls on to the loop's."""

    __slots__ = ("inner",)

    def __init__(self, inner: Callable[[Any], None] | None) -> None:
        self.inner = inner

    def __call__(self, generator: Any) -> None:
        scope = current.get()
        if scope is not None:
            scope.note("asyncgens", generator, 1)
        if self.inner is not None:
            self.inner(generator)


def attach() -> None:
    """Note the tasks and async generators of the loop that runs here, from now on. Cheap when it is so."""
    loop = running_loop()
    if loop is None:
        return
    factory = loop.get_task_factory()
    if type(factory) is not _Factory:
        loop.set_task_factory(_Factory(factory))
    # A loop sets its hooks when it begins to run, and takes them away, ours included, when it stops.
    hooks = sys.get_asyncgen_hooks()
    if type(hooks.firstiter) is not _FirstIteration:
        sys.set_asyncgen_hooks(firstiter=_FirstIteration(hooks.firstiter))


def detach() -> None:
    """Give the running loop back what it had, unless somebody replaced it after us."""
    loop = running_loop()
    if loop is None:
        return
    factory: Any = loop.get_task_factory()
    if type(factory) is _Factory:
        loop.set_task_factory(factory.inner)
    first: Any = sys.get_asyncgen_hooks().firstiter
    if type(first) is _FirstIteration:
        sys.set_asyncgen_hooks(firstiter=first.inner)
