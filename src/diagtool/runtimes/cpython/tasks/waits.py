"""What a suspended task waits on, told by the library frames at the inner end of its await chain.

The wait is the public asyncio call nearest to the user's code: ``Queue.get``, not the ``Event.wait`` or
bare future inside of it. Worked out once for each distinct trace.
"""

from __future__ import annotations

from dataclasses import dataclass

from diagtool.snapshot.model import Frame

#: (module, function) -> (wait name, local variable that holds the thing; "" for the future itself).
#: Frames per version: Lib/asyncio of 3.9 to 3.15.
_SPECIAL: dict[tuple[str, str], tuple[str, str]] = {
    ("asyncio.taskgroups", "TaskGroup.__aexit__"): ("asyncio.TaskGroup", "self"),
    ("asyncio.tasks", "sleep"): ("asyncio.sleep", "h"),
    ("asyncio.tasks", "wait"): ("asyncio.wait", ""),
    ("asyncio.tasks", "_wait"): ("asyncio.wait", ""),
    ("asyncio.tasks", "wait_for"): ("asyncio.wait_for", "fut"),
    ("asyncio.tasks", "_cancel_and_wait"): ("asyncio.wait_for", "fut"),
    ("asyncio.threads", "to_thread"): ("asyncio.to_thread", ""),
    ("asyncio.tasks", "_AsCompletedIterator._wait_for_one"): ("asyncio.as_completed", ""),
    ("asyncio.tasks", "as_completed.<locals>._wait_for_one"): ("asyncio.as_completed", ""),
    ("asyncio.tasks", "_wrap_awaitable"): ("", ""),  # passes on
}

#: Classes whose methods wait on their own ``self``, by module.
_OWNERS = {
    "asyncio.queues": ("Queue", "PriorityQueue", "LifoQueue"),
    "asyncio.locks": ("Lock", "Event", "Condition", "Semaphore", "BoundedSemaphore", "Barrier"),
    "asyncio.streams": ("StreamReader", "StreamWriter", "FlowControlMixin", "StreamReaderProtocol"),
    "asyncio.subprocess": ("Process",),
    "asyncio.base_subprocess": ("BaseSubprocessTransport",),
    "asyncio.base_events": ("Server",),
    "uvloop.loop": ("Server",),
}

_LIBRARIES = ("asyncio", "uvloop.loop")
_FUTURE_FRAMES = ("Future.__await__", "Future.__iter__", "__await__", "__iter__")


@dataclass(frozen=True, slots=True)
class TaskWait:
    """``name`` of the wait ("" when only the future tells); ``depth`` of its frame in the chain (0 is the
    outermost, -1 none); ``local`` the variable of that frame that holds the thing ("" for the future);
    ``timed`` whether a ``wait_for`` with a time limit encloses it."""

    name: str
    depth: int
    local: str
    timed: bool


def classify(frames: list[Frame]) -> TaskWait:
    """The wait of a chain; ``frames`` innermost first."""
    last = len(frames) - 1
    best: TaskWait | None = None
    timed = any(module_of(f) == "asyncio.tasks" and f.function == "wait_for" for f in frames)
    for i, frame in enumerate(frames):
        module = module_of(frame)
        if not module.startswith(_LIBRARIES):
            break
        if module == "asyncio.futures" and frame.function in _FUTURE_FRAMES:
            continue
        found = _of_frame(module, frame.function)
        if found is None:
            continue
        name, local = found
        if name == "asyncio.wait_for" and best is not None:
            continue
        best = TaskWait(name, last - i, local, timed)
    return best or TaskWait("", -1, "", timed)


def _of_frame(module: str, function: str) -> tuple[str, str] | None:
    special = _SPECIAL.get((module, function))
    if special is not None:
        return special if special[0] else None
    owner, _, method = function.rpartition(".")
    if method.startswith("_"):
        return None
    if owner in _OWNERS.get(module, ()):
        return f"asyncio.{owner}.{method}", "self"
    if "<locals>" in function:
        return None
    # Of a loop's methods (sock_recv, getaddrinfo, connect_read_pipe …) some work on a socket.
    return f"asyncio.{method}", "sock" if owner and method.startswith("sock_") else ""


def module_of(frame: Frame) -> str:
    """The module of a frame, by its file where its globals could not be read."""
    if frame.module is not None:
        return frame.module
    head, _, name = frame.file.rpartition("/")
    if head.rpartition("/")[2] == "asyncio" and name.endswith(".py"):
        return f"asyncio.{name[:-3]}"
    return ""
