"""The processes that came of a command, and what can be said of them without stopping them."""

from __future__ import annotations

import os
import re

from diagtool.capture import procfs
from diagtool.supervise.triggers import Figures

__all__ = ["alive", "below", "children", "command_of", "figures", "is_python", "own_session"]

_MOST = 512  # processes that are looked at
_PYTHON = re.compile(rb"/(?:libpython\d|python\d?(?:\.\d+)?[a-z]*$)", re.MULTILINE)


def children(pid: int) -> list[int]:
    """The children of a process now, as the kernel lists them; dead ones too."""
    out: list[int] = []
    for tid in procfs.task_ids(pid):
        text = procfs.try_read(f"/proc/{pid}/task/{tid}/children") or b""
        out += [int(word) for word in text.split() if word.isdigit()]
    return out


def below(pid: int) -> list[int]:
    """All processes that descend from one, itself not included, nearest first; at most 512."""
    out: list[int] = []
    waiting = children(pid)
    while waiting and len(out) < _MOST:
        out += waiting
        waiting = [child for parent in waiting for child in children(parent) if child not in out]
    return out[:_MOST]


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    stat = procfs.parse_stat(procfs.try_read(f"/proc/{pid}/stat") or b"")
    return stat is not None and not (stat.state in "ZX" and stat.threads <= 1)


def is_python(pid: int) -> bool:
    """Whether a Python is mapped into a process."""
    return _PYTHON.search(procfs.try_read(f"/proc/{pid}/maps") or b"") is not None


def command_of(pid: int) -> str:
    """How a process was started, in one line."""
    words = (procfs.try_read(f"/proc/{pid}/cmdline") or b"").split(b"\0")
    text = " ".join(os.fsdecode(word) for word in words if word)
    stat = procfs.parse_stat(procfs.try_read(f"/proc/{pid}/stat") or b"")
    return text or (f"[{stat.comm}]" if stat is not None else "")


def own_session(pid: int) -> bool:
    """Whether a process is not in our session: one that made itself a daemon."""
    try:
        return os.getsid(pid) != os.getsid(0)
    except OSError:
        return False


def figures(pid: int) -> Figures:
    """Its memory, threads and descriptors; zeros for what can't be read."""
    status = procfs.parse_status(procfs.try_read(f"/proc/{pid}/status") or b"")
    threads = status.get("Threads", "0")
    try:
        fds = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 (thousands)
    except OSError:
        fds = 0
    return Figures(
        rss=procfs.memory_of(status).get("VmRSS", 0),
        threads=int(threads) if threads.isdigit() else 0,
        fds=fds,
        limit=_limit(pid) if fds else 0,
    )


def _limit(pid: int) -> int:
    for line in (procfs.try_read(f"/proc/{pid}/limits") or b"").split(b"\n"):
        if line.startswith(b"Max open files"):
            word = line.split()[3]
            return int(word) if word.isdigit() else 0
    return 0
