"""Who waits for signals, and for children; what else of a process bears on its signals."""

from __future__ import annotations

from diagtool.capture.memory import MemoryFault
from diagtool.capture.model import Capture
from diagtool.capture.procfs import try_read
from diagtool.capture.signals import LAST, Masks
from diagtool.snapshot.model import Snapshot

__all__ = ["awaited", "connections", "runs_command", "waiters"]

_WAITS = (61, 247)  # wait4, waitid: syscall_64.tbl
_SPAWNS = (56, 58, 435)  # clone, vfork, clone3
_SIGTIMEDWAIT = 128
_IGNORED_BY_SYSTEM = 1 << 1 | 1 << 2  # SIGINT, SIGQUIT
_SIGCHLD = 17
_CHILD_WAITS = ("os.wait", "subprocess.", "multiprocessing.Process.join", "asyncio.Process.")


def awaited(capture: Capture) -> int:
    """Signals that a thread is in sigwait for, or that a signalfd takes."""
    out = 0
    for thread in capture.threads:
        if thread.syscall == _SIGTIMEDWAIT and thread.syscall_args:
            try:
                out |= capture.memory.u64(thread.syscall_args[0])
            except MemoryFault:
                out = (1 << LAST) - 1
    for fd, text in capture.fds.items():
        if "[signalfd]" in text:
            raw = try_read(f"/proc/{capture.process.pid}/fdinfo/{fd}") or b""
            words = [line.split()[1] for line in raw.split(b"\n") if line.startswith(b"sigmask:")]
            out |= int(words[0], 16) if words else (1 << LAST) - 1
    return out


def waiters(capture: Capture, snapshot: Snapshot) -> int:
    """Threads and tasks that wait for a child."""
    waits = {i for i, name in enumerate(snapshot.waits) if name.startswith(_CHILD_WAITS)}
    stacks = sum(1 for wait in snapshot.stacks.wait.tolist() if wait in waits) if waits else 0
    return max(stacks, sum(1 for thread in capture.threads if thread.syscall in _WAITS))


def connections(capture: Capture) -> tuple[int | None, int | None]:
    """(connected sockets, listening ones) of a process."""
    if capture.kind != "live" or not capture.fds:
        return None, None
    texts = [text for text in capture.fds.values() if text.startswith("socket:")]
    return sum(" ESTABLISHED" in t for t in texts), sum(" LISTEN" in t for t in texts)


def runs_command(capture: Capture, masks: Masks) -> bool:
    """Whether a thread is in system(3), which ignores SIGINT and SIGQUIT: it blocks SIGCHLD meanwhile, and
    starts a child or waits for it. (That it may be in between, in no system call, both signals tell.)"""
    bit = 1 << _SIGCHLD - 1
    both = (masks.ignored or 0) & _IGNORED_BY_SYSTEM == _IGNORED_BY_SYSTEM
    return any(
        masks.blocked.get(t.tid, bit) & bit and (both or t.syscall in (*_WAITS, *_SPAWNS))
        for t in capture.threads
    )
