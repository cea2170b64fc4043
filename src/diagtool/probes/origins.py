"""Who made it: notes taken when threads start, tasks are made, files, sockets and processes are opened.

Three things are noted while a session runs and given back at its end: ``Thread.start`` and
``BaseEventLoop.create_task`` call on to what was there before (a task factory stays the program's), and an
audit hook (PEP 578) hears of files, sockets, processes and temporary files. A hook cannot be taken away
again; without a session it looks up one name and returns.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

from diagtool.probes.sites import Origin, begin_at, here

#: Opened paths that are remembered between two looks.
_MOST = 4096

_THREAD_ORIGIN = "_diagtool_started"
_TASK_ORIGIN = "_diagtool_created"


class Notes:
    """What was noted since the session began. Numbers only grow: a probe compares them with its last look."""

    def __init__(self) -> None:
        self.threads = 0
        self.tasks = 0
        self.opens = 0
        self.libraries = 0
        self.quiet = False  # what the probes themselves open
        self.opened: dict[str, Origin] = {}
        self.sockets: weakref.WeakKeyDictionary[Any, Origin] = weakref.WeakKeyDictionary()
        self.processes: list[tuple[tuple[str, ...], Origin]] = []
        self.temporary: dict[str, Origin] = {}
        self.loops: weakref.WeakSet[Any] = weakref.WeakSet()
        self.last_loop: Callable[[], Any] = lambda: None
        #: Called with a loop whose tasks are about to be cancelled, and after that.
        self.closing: Callable[[Any], None] | None = None
        self.closed: Callable[[Any], None] | None = None

    def forget(self) -> None:
        """The opened files and processes: whatever was made of them is known by now."""
        self.opened.clear()
        self.processes.clear()

    # The handlers of audit events. An error in one would become the program's: none may get out.

    def on_open(self, args: tuple[Any, ...]) -> None:
        if self.quiet or sys._getframe(2).f_code.co_filename.startswith("<frozen importlib"):
            return  # a module that is read is closed again
        self.opens += 1
        path = args[0]
        if isinstance(path, int):
            return
        if len(self.opened) >= _MOST:
            self.opened.clear()
        self.opened[path if isinstance(path, str) else _text(path)] = here(2)

    def on_socket(self, args: tuple[Any, ...]) -> None:
        if self.quiet:
            return
        self.opens += 1
        self.sockets[args[0]] = here(2)

    def on_process(self, args: tuple[Any, ...]) -> None:
        words = args[1] if len(args) > 1 else ()
        words = [words] if isinstance(words, (str, bytes)) else list(words)
        if len(self.processes) >= _MOST:
            self.processes.clear()
        self.processes.append((tuple(_text(word) for word in words), here(2)))

    def on_fork(self, args: tuple[Any, ...]) -> None:
        self.processes.append(((), here(2)))

    def on_temporary(self, args: tuple[Any, ...]) -> None:
        if len(self.temporary) < _MOST:
            self.temporary[_text(args[0])] = here(2)

    def on_library(self, args: tuple[Any, ...]) -> None:
        # None and the C library bring no threads of their own.
        if args[0] and not str(args[0]).startswith("libc.so"):
            self.libraries += 1


def _text(path: Any) -> str:
    return path.decode("utf-8", "replace") if isinstance(path, bytes) else str(path)


_active: Notes | None = None
_handlers: dict[str, Callable[[tuple[Any, ...]], None]] = {}
_hooked = False


def _hook(event: str, args: tuple[Any, ...]) -> None:
    handler = _handlers.get(event)
    if handler is not None:
        try:
            handler(args)
        except Exception:  # noqa: BLE001 - it would stop what the program does
            pass


class Origins:
    """Installs and takes away; ``notes`` are what was noted."""

    def __init__(self) -> None:
        self.notes = Notes()
        self._undo: list[Callable[[], None]] = []
        self._asyncio = self._uvloop = False
        self._before: Notes | None = None
        self._handlers_before: dict[str, Callable[[tuple[Any, ...]], None]] = {}

    def install(self) -> None:
        """Begin to note. A session in a session (pytester) has its own; the outer goes on after it."""
        global _active, _hooked
        self._before, _active = _active, self.notes
        self._handlers_before = dict(_handlers)
        notes = self.notes
        _handlers.update(
            {
                "open": notes.on_open,
                "sqlite3.connect": notes.on_open,
                "socket.__new__": notes.on_socket,
                "subprocess.Popen": notes.on_process,
                "os.fork": notes.on_fork,
                "os.forkpty": notes.on_fork,
                "os.posix_spawn": notes.on_process,
                "tempfile.mkstemp": notes.on_temporary,
                "tempfile.mkdtemp": notes.on_temporary,
                "ctypes.dlopen": notes.on_library,
            }
        )
        if not _hooked:
            _hooked = True
            sys.addaudithook(_hook)
        self._replace(threading.Thread, "start", _noting_start(notes))
        self.find_asyncio()

    def uninstall(self) -> None:
        """Give back what was replaced, unless somebody replaced it after us."""
        global _active
        _active = self._before
        _handlers.clear()
        _handlers.update(self._handlers_before)
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    def find_asyncio(self) -> None:
        """Asyncio is not imported for our sake: it is looked for before each test until it is there."""
        if not self._uvloop and "uvloop" in sys.modules:
            self._find_uvloop()
        if self._asyncio:
            return
        base, runners = sys.modules.get("asyncio.base_events"), sys.modules.get("asyncio.runners")
        if base is None or runners is None or "asyncio.unix_events" not in sys.modules:
            return
        self._asyncio = True
        begin_at(2, getattr(getattr(sys.modules.get("asyncio.events"), "Handle", None), "_run", None))
        self._replace(base.BaseEventLoop, "create_task", _noting_task(self.notes))
        self._replace(runners, "_cancel_all_tasks", _around_cancel(self.notes))
        loop = getattr(sys.modules["asyncio.unix_events"], "_UnixSelectorEventLoop", None)
        if loop is not None:
            self._replace(loop, "close", _before_close(self.notes))

    def _find_uvloop(self) -> None:
        loop = getattr(sys.modules["uvloop"], "Loop", None)
        if isinstance(loop, type):  # else it is being imported
            self._uvloop = True
            self._replace(loop, "create_task", _noting_task(self.notes))
            self._replace(loop, "close", _before_close(self.notes))

    def _replace(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        original = getattr(owner, name, None)
        if original is None:
            return
        ours = functools.wraps(original)(make(original))
        setattr(owner, name, ours)

        def undo() -> None:
            if getattr(owner, name, None) is ours:
                setattr(owner, name, original)

        self._undo.append(undo)


def origin_of_thread(thread: threading.Thread) -> Origin | None:
    """Where it was started."""
    return getattr(thread, _THREAD_ORIGIN, None)


def origin_of_task(task: Any) -> Origin | None:
    """Where it was made."""
    return getattr(task, _TASK_ORIGIN, None)


def _noting_start(notes: Notes) -> Callable[[Any], Any]:
    def make(original: Callable[..., None]) -> Callable[..., None]:
        def start(self: threading.Thread, *args: Any, **kwargs: Any) -> None:
            notes.threads += 1
            setattr(self, _THREAD_ORIGIN, here(1))
            original(self, *args, **kwargs)

        return start

    return make


def _noting_task(notes: Notes) -> Callable[[Any], Any]:
    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def create_task(self: Any, coro: Any, **kwargs: Any) -> Any:
            task = original(self, coro, **kwargs)
            notes.tasks += 1
            if notes.last_loop() is not self:
                notes.loops.add(self)
                notes.last_loop = weakref.ref(self)
            try:
                setattr(task, _TASK_ORIGIN, here(1))
            except AttributeError:
                pass  # a task factory's own class, with slots
            return task

        return create_task

    return make


def _around_cancel(notes: Notes) -> Callable[[Any], Any]:
    def make(original: Callable[[Any], None]) -> Callable[[Any], None]:
        def _cancel_all_tasks(loop: Any) -> None:
            if notes.closing is not None:
                notes.closing(loop)
            original(loop)
            if notes.closed is not None:
                notes.closed(loop)

        return _cancel_all_tasks

    return make


def _before_close(notes: Notes) -> Callable[[Any], Any]:
    def make(original: Callable[[Any], None]) -> Callable[[Any], None]:
        def close(self: Any) -> None:
            if notes.closing is not None and not self.is_closed() and not self.is_running():
                notes.closing(self)
            original(self)

        return close

    return make
