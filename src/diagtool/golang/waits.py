"""What a goroutine waits on, in one set of words for all versions and sources.

The words are the runtime's own wait reasons of Go 1.24 and later where it has one. Older versions say
``semacquire`` of mutexes and wait groups, profiles say nothing: there the frames tell. Reasons by version:
the ``waitReason`` tables of runtime/runtime2.go.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from diagtool.golang.names import function_name

__all__ = ["SYSTEM_WAITS", "state_of", "wait_of", "wait_of_frames"]

#: Waits of the runtime's own goroutines.
SYSTEM_WAITS = frozenset(
    {
        "GC assist marking",
        "GC assist wait",
        "GC scavenge wait",
        "GC sweep wait",
        "GC mark termination",
        "GC weak to strong wait",
        "GC worker (active)",
        "GC worker (idle)",
        "GC worker init",
        "GOMAXPROCS updater (idle)",
        "cleanup wait",
        "finalizer wait",
        "force gc (idle)",
        "timer goroutine (idle)",
        "trace reader (blocked)",
        "wait for GC cycle",
        "garbage collection",
        "garbage collection scan",
    }
)

#: (innermost function that says so, the wait). Matched against whole names, inner frames first.
_BY_FUNCTION: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), wait)
    for pattern, wait in (
        (r"(internal/)?sync\.\(\*Mutex\)\.(Lock|lockSlow)", "sync.Mutex.Lock"),
        (r"sync\.\(\*RWMutex\)\.RLock|sync\.runtime_SemacquireRWMutexR", "sync.RWMutex.RLock"),
        (r"sync\.\(\*RWMutex\)\.Lock|sync\.runtime_SemacquireRWMutex", "sync.RWMutex.Lock"),
        (r"sync\.\(\*WaitGroup\)\.Wait|sync\.runtime_SemacquireWaitGroup", "sync.WaitGroup.Wait"),
        (r"sync\.\(\*Cond\)\.Wait|sync\.runtime_notifyListWait", "sync.Cond.Wait"),
        (r"sync\.\(\*Once\)\.(Do|doSlow)", "sync.Once.Do"),
        (r"runtime\.chanrecv[12]?", "chan receive"),
        (r"runtime\.chansend1?", "chan send"),
        (r"runtime\.selectgo", "select"),
        (r"runtime\.block", "select (no cases)"),
        (r"(runtime|internal/poll)\.(netpollblock|runtime_pollWait)", "IO wait"),
        (r"time\.Sleep|runtime\.timeSleep", "sleep"),
        (r"runtime\.cgocall", "cgo call"),
        (r"(internal/)?(runtime/)?syscall\.(Raw)?Syscall6?|runtime\.notetsleepg", "syscall"),
    )
)


def wait_of_frames(functions: Iterable[str]) -> str | None:
    """The wait that the innermost frames show, ``functions`` innermost first; None where they show none.

    RWMutex.Lock calls Mutex.Lock first, and that is what it then waits on: the innermost of the locks counts.
    """
    for depth, name in enumerate(functions):
        if depth == 24:
            break
        for pattern, wait in _BY_FUNCTION:
            if pattern.fullmatch(name):
                return wait
    return None


_MARKS = re.compile(r" \((?:leaked|scan|durable|synctest)\)")


def wait_of(reason: str, functions: Sequence[str] = ()) -> str:
    """The wait for a status or reason as the runtime prints it; ``functions`` innermost first.

    "" for goroutines that wait on nothing ("running", "runnable"). Marks such as ``(scan)`` are dropped.
    """
    said = _MARKS.sub("", reason).strip()
    if said in ("running", "runnable", "idle", "dead", "copystack", "preempted", ""):
        return ""
    if said in ("semacquire", "waiting", "leaked"):
        return wait_of_frames(map(function_name, functions)) or said
    if said == "syscall":
        return "cgo call" if wait_of_frames(functions) == "cgo call" else said
    return said


def state_of(reason: str) -> str:
    """The state (``snapshot.model.STATES``) for a status as the runtime prints it."""
    said = _MARKS.sub("", reason).strip()
    if said == "running":
        return "running"
    if said in ("runnable", "preempted", "copystack"):
        return "ready"
    if said == "dead":
        return "done"
    return "unknown" if said in ("", "idle") else "waiting"
