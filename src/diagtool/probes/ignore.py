"""What is no leak though it lives on: workers of libraries that keep them on purpose, and singletons."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from fnmatch import fnmatchcase
from types import ModuleType
from typing import Any

from diagtool.probes.sites import Site, is_own

#: Threads by name: of debuggers, test plugins and libraries that start one for the life of the process.
THREAD_NAMES = (
    "pytest_timeout *",  # a timer for each test, ended after it
    "pydevd.*",
    "IPythonHistorySavingThread",
    "execnet*",
    "AnyIO worker thread",  # ends with its event loop
    "fsspecIO",  # fsspec.asyn: one loop for all
    "tqdm_monitor",
    "pymongo_*",  # end when their weakly referenced client does
    "sentry-sdk.*",
    "raven-sentry.*",
    "ddtrace*",
    "Otel*",
    "OpenTelemetry*",
    "grpc*",
    "QueueFeederThread",  # multiprocessing.Queue: its process or queue is told
    "waitpid-*",  # asyncio.ThreadedChildWatcher: ends with the child, which is told
)

#: Threads by what they run, "module:qualified name" of the target, or by their class.
THREAD_TARGETS = (
    "_pytest.*",
    "pytest_*",
    "xdist.*",
    "execnet.*",
    "hypothesis.*",
    "pydevd*",
    "_pydev*",
    "debugpy.*",
    "coverage.*",
    "tqdm.*",
    "trio._core._thread_cache:*",  # idle ones end after ten seconds
    "multiprocessing.resource_tracker:*",
    "multiprocessing.resource_sharer:*",
    "concurrent.futures.process:*",  # its processes are told
    "diagtool.probes.*",
)

#: Coroutines of tasks that belong to a test runner, "module:qualified name" or the name alone.
TASKS = (
    "TestRunner._run_tests_and_fixtures",  # anyio
    "IsolatedAsyncioTestCase._asyncioLoopRunner",  # unittest, 3.8 to 3.10
    "*Looper*._run",
    "*shutdown_default_executor*",
    "*shutdown_asyncgens*",
)

#: What descriptors lead to, and is opened once for all.
TARGETS = ("/dev/urandom", "/dev/random", "/dev/null", "/dev/tty", "/dev/pts/*", "/proc/*", "/sys/*")

#: Child processes by a word of their command line.
PROCESSES = (
    "multiprocessing.resource_tracker",
    "multiprocessing.forkserver",
    "joblib.externals.loky.backend.resource_tracker",
)

_HOPS = 6


def matches(name: str, patterns: tuple[str, ...] | list[str]) -> bool:
    """Whether one of these globs is this name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def qualified(thing: Any) -> str:
    """ "module:qualified name" of a function, method, partial or class; "" of others."""
    inner = getattr(thing, "func", thing)  # functools.partial
    module, name = getattr(inner, "__module__", None), getattr(inner, "__qualname__", None)
    return f"{module}:{name}" if isinstance(module, str) and isinstance(name, str) else ""


def thread(thread: threading.Thread, target: Any, waiting: tuple[Site, ...]) -> str:
    """Why this thread is no leak; "" if it may be one."""
    if matches(thread.name, THREAD_NAMES):
        return f"known by its name {thread.name.partition(' ')[0]}"
    kind = type(thread)
    for name in (qualified(target), f"{kind.__module__}:{kind.__qualname__}"):
        if name and matches(name, THREAD_TARGETS):
            return f"of {name.partition(':')[0]}"
    if getattr(thread, "is_pydev_daemon_thread", False):
        return "of a debugger"
    if qualified(target) == "concurrent.futures.thread:_worker":
        return _executor(thread, waiting)
    owner = singleton(thread)
    return f"kept by {owner}" if owner else ""


# A worker of a ThreadPoolExecutor: whose executor is it?
def _executor(thread: threading.Thread, waiting: tuple[Site, ...]) -> str:
    if waiting and waiting[0].function.rpartition(".")[2] != "_worker":
        return ""  # it works
    args = getattr(thread, "_args", ())
    executor = args[0]() if args and callable(args[0]) else None
    if executor is None:
        return "a worker whose executor is gone: it ends"
    owner = default_executor_of(executor) or singleton(executor)
    return f"idle worker kept by {owner}" if owner else ""


def default_executor_of(executor: Any) -> str:
    """Of which kind of event loop, still open, this is the default executor."""
    for holder in gc.get_referrers(executor):
        loop = _owner_of(holder) if isinstance(holder, dict) else holder
        if getattr(loop, "_default_executor", None) is executor and not _is_closed(loop):
            return f"the default executor of a {type(loop).__name__}"
    return ""


def _is_closed(loop: Any) -> bool:
    is_closed: Callable[[], bool] = getattr(loop, "is_closed", lambda: True)
    return bool(is_closed())


def singleton(thing: Any) -> str:
    """The name of a global of an installed module that keeps ``thing``, itself or as attribute of attributes.

    There is one such thing for the life of the process. What lists, dictionaries and sets keep can be many
    and does not count, nor what the program's own modules keep.
    """
    level, seen = [thing], {id(thing)}
    for _ in range(_HOPS):
        found: list[Any] = []
        for holder in gc.get_referrers(*level):
            if id(holder) in seen or holder is level or holder is found:
                continue
            seen.add(id(holder))
            if isinstance(holder, dict):
                module = _module_of(holder)
                if module is not None:
                    name = _name_in(holder, level)
                    if name and not is_own(getattr(module, "__file__", None) or "<built-in>"):
                        return f"{module.__name__}.{name}"
                    continue
                owner = _owner_of(holder)
                if owner is not None and id(owner) not in seen:
                    seen.add(id(owner))
                    found.append(owner)
            elif _has_attributes(holder):
                found.append(holder)
        if not found or len(found) > 200:
            return ""
        level = found
    return ""


def _module_of(namespace: dict[Any, Any]) -> ModuleType | None:
    name = namespace.get("__name__")
    module = sys.modules.get(name) if isinstance(name, str) else None
    return module if module is not None and getattr(module, "__dict__", None) is namespace else None


def _name_in(namespace: dict[Any, Any], things: list[Any]) -> str:
    ids = {id(thing) for thing in things}
    return next((str(name) for name, value in list(namespace.items()) if id(value) in ids), "")


# The object whose attributes these are. Without asking any object for an attribute of its own making.
def _owner_of(attributes: dict[Any, Any]) -> Any:
    for holder in gc.get_referrers(attributes):
        if not _has_attributes(holder):
            continue
        try:
            if object.__getattribute__(holder, "__dict__") is attributes:
                return holder
        except (AttributeError, TypeError):
            continue
    return None


_CONTAINERS = frozenset(
    (
        "dict",
        "list",
        "tuple",
        "set",
        "frozenset",
        "frame",
        "cell",
        "function",
        "method",
        "generator",
        "coroutine",
    )
)


def _has_attributes(holder: Any) -> bool:
    kind = type(holder)
    return kind.__name__ not in _CONTAINERS and not isinstance(holder, ModuleType)
