"""What a thread waits for, as far as its frames, native or not, and the text of their source tell it.

In the words of the decoders of memory: waits of the standard library by the same table, those in C by the
functions of CPython and of the C library that are on the stack, and where no native frames are there, by the
innermost source line if its text was printed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from diagtool.runtimes.cpython.threads.waits import wait_in_python
from diagtool.snapshot.model import Frame

__all__ = ["native_wait", "thread_wait"]

#: Innermost functions of the standard library that call what waits in C: (end of the path, function, wait).
_LEAVES = (
    ("concurrent/futures/thread.py", "_worker", "queue.SimpleQueue.get"),
    ("concurrent/futures/process.py", "_process_worker", "multiprocessing.Queue.get"),
    ("selectors.py", "EpollSelector.select", "epoll"),
    ("selectors.py", "PollSelector.select", "poll"),
    ("selectors.py", "_PollLikeSelector.select", "poll"),
    ("selectors.py", "SelectSelector.select", "select"),
    ("selectors.py", "SelectSelector._select", "select"),
    ("subprocess.py", "_try_wait", "subprocess.wait"),
    ("signal.py", "sigwait", "signal.sigwait"),
)
#: Without the class of the selector: asyncio's is epoll, those of servers poll.
_SELECTS_WITH_EPOLL = ("asyncio/", "trio/", "tornado/")

#: Native functions of CPython, then of the C library, and the wait: of a thread that runs Python, of another.
_NATIVE: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern), python, plain or python)
    for pattern, python, plain in (
        (r"take_gil|PyEval_(Restore|Acquire)Thread", "gil", ""),
        (
            r"(_?thread_)?lock_(PyThread_)?acquire(_lock)?(_impl)?|_?thread_lock_acquire.*",
            "threading.Lock.acquire",
            "",
        ),
        (
            r"rlock_acquire(_impl)?|_?thread_RLock_(acquire|__enter__).*|rlock___enter__",
            "threading.RLock.acquire",
            "",
        ),
        (r"_?queue_SimpleQueue_get(_impl)?", "queue.SimpleQueue.get", ""),
        (r"_?multiprocessing_SemLock_(acquire|__enter__)(_impl)?", "multiprocessing.Lock.acquire", ""),
        (r"time_sleep|pysleep", "time.sleep", "sleep"),
        (r"sock__?accept(_impl)?", "socket.accept", ""),
        (r"sock_recv\w*", "socket.recv", ""),
        (r"sock_send\w*", "socket.send", ""),
        (r"sock_connect\w*", "socket.connect", ""),
        (r"select_epoll_poll\w*|epoll_p?wait2?", "epoll", ""),
        (r"select_poll_poll\w*|p?poll|poll_chk", "poll", ""),
        (r"select_select\w*|p?select", "select", ""),
        (r"os_waitpid\w*|wait4|waitpid|waitid", "os.waitpid", ""),
        (r"signal_sigwait\w*|sigwait|sigtimedwait|sigwaitinfo", "signal.sigwait", ""),
        (r"signal_pause|pause", "signal.pause", ""),
        (r"accept4?", "socket.accept", ""),
        (r"recv(from|msg|mmsg)?", "socket.recv", ""),
        (r"send(to|msg|mmsg)?", "socket.send", ""),
        (r"connect", "socket.connect", ""),
        (r"read|readv|pread", "read", ""),
        (r"write|writev|pwrite", "write", ""),
        (r"(clock_)?nanosleep|usleep|sleep", "time.sleep", "sleep"),
        (r"pthread_(clock|timed|try)?join(_np|_ex)?|pthread_clockjoin_ex", "pthread_join", ""),
        (r"pthread_mutex_(timed|clock)?lock.*", "pthread_mutex_lock", ""),
        (r"pthread_rwlock_(timed|clock)?(rd|wr)lock\w*", "pthread_rwlock_lock", ""),
        (r"pthread_cond_(timed|clock)?wait.*|pthread_cond_wait_common", "pthread_cond_wait", ""),
        (r"pthread_barrier_wait", "pthread_barrier_wait", ""),
        (r"(new_)?sem_(timed|clock)?wait\w*|do_futex_wait.*", "sem_wait", ""),
        (r"lll_lock_wait\w*", "pthread_mutex_lock", ""),
        (r"flock", "flock", ""),
        (r"futex_\w+|(GI_)?futex.*", "futex", ""),
    )
)
_DECORATION = re.compile(
    r"^_*(?:GI_+|libc_|new_|old_)?_*|(?:\.(?:constprop|isra|part|cold|lto_priv)\.?\d*)+$"
)
#: Locks of the interpreter are made of these: they say nothing of what waits in Python.
_MADE_OF = ("futex", "sem_wait", "pthread_cond_wait", "pthread_join")

#: What the text of the innermost line calls, where the stack shows no more.
_TEXT: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), wait)
    for pattern, wait in (
        (r"<built-in method sleep of module ", "time.sleep"),  # py-bt of gdb
        (r"<built-in method acquire of _thread\.lock ", "threading.Lock.acquire"),
        (r"<built-in method acquire of _thread\.RLock ", "threading.RLock.acquire"),
        (r"<built-in method get of _queue\.SimpleQueue ", "queue.SimpleQueue.get"),
        (r"\btime\.sleep\(|(?<![\w.])sleep\(", "time.sleep"),
        (r"\.acquire\(", "threading.Lock.acquire"),
        (r"^\s*with\s+[\w.\[\]]*lock\w*\s*:", "threading.Lock.acquire"),
        (r"\.accept\(", "socket.accept"),
        (r"\.recv(?:_into|from|from_into|msg)?\(", "socket.recv"),
        (r"sock\w*\.send(?:all|to|msg)?\(", "socket.send"),
        (r"sock\w*\.connect(?:_ex)?\(", "socket.connect"),
        (r"\bselect\.select\(", "select"),
        (r"\bos\.wait(?:pid|3|4)?\(", "os.waitpid"),
        (r"\bsignal\.(?:sigwait|sigtimedwait|sigwaitinfo)\(", "signal.sigwait"),
        (r"\bsignal\.pause\(", "signal.pause"),
        (r"\bsys\.stdin\b|(?<![\w.])input\(", "read"),
        (r"\bsimple_?queue\w*\.get\(", "queue.SimpleQueue.get"),
    )
)


def thread_wait(frames: Sequence[Frame], native: Sequence[str] = (), text: str = "") -> str:
    """The wait of a thread that runs Python; "" where nothing tells.

    ``frames``: of Python, innermost first. ``native``: names of the native functions called from the
    innermost of these, innermost first. ``text``: the source of its line.
    """
    known = wait_in_python(frames, None)
    if known is not None:
        return known[0]
    leaf = _of_leaf(frames)
    if leaf:
        return leaf
    called = native_wait(native, python=bool(frames))
    if called and not (frames and called in _MADE_OF):
        return called
    return _of_text(text) or ("futex" if called in _MADE_OF else called)


def native_wait(functions: Sequence[str], *, python: bool = False) -> str:
    """The wait that native functions show, innermost first: what CPython calls it before what libc does."""
    found = ""
    for name in functions[:24]:
        index = _native(name)
        if index < 0:
            continue
        _, in_python, plain = _NATIVE[index]
        wait = in_python if python else plain
        if index < _OF_CPYTHON:
            return wait
        if not found or found in ("futex", "sem_wait"):
            found = wait
    return found


@lru_cache(maxsize=4096)
def _native(name: str) -> int:
    plain = _DECORATION.sub("", name.partition("@")[0].removesuffix("64"))
    for index, (pattern, _, _) in enumerate(_NATIVE):
        if pattern.fullmatch(plain):
            return index
    return -1


_OF_CPYTHON = next(i for i, row in enumerate(_NATIVE) if row[0].pattern == "accept4?")


def _of_leaf(frames: Sequence[Frame]) -> str:
    if not frames:
        return ""
    path, function = f"/{frames[0].file}", frames[0].function
    for file, name, wait in _LEAVES:
        if path.endswith("/" + file) and (function == name or name.endswith("." + function)):
            if file == "selectors.py" and "." not in function:
                outer = f"/{frames[1].file}" if len(frames) > 1 else ""
                return "epoll" if any(f"/{part}" in outer for part in _SELECTS_WITH_EPOLL) else "poll"
            return wait
    return ""


def _of_text(text: str) -> str:
    return next((wait for pattern, wait in _TEXT if pattern.search(text[:500])), "")
