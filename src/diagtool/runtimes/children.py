"""What the children wait for that a process waits for: a pipe that nobody but the process itself reads.

A child that writes into a full pipe goes on when somebody reads. If that is the process that waits for the
child to end, both wait for ever: `Process.join()` before `Queue.get()`, `Popen.wait()` with stdout=PIPE.

Facts: /proc/PID/task/TID/syscall (proc(5)) has the number and arguments of the system call that a sleeping
thread is in; a pipe's two ends are links to one inode, `pipe:[123]`. Both are read after the stop.
"""

from __future__ import annotations

from diagtool.capture import procfs
from diagtool.capture.model import Capture
from diagtool.runtimes.syscalls import blocking_call, fds_of
from diagtool.snapshot.model import Snapshot

__all__ = ["add_what_children_wait_for"]

_MAX_CHILDREN = 64
_MAX_THREADS = 64  # of one child
_ACCESS = 0o3  # O_ACCMODE
_READ = 0  # O_RDONLY


def add_what_children_wait_for(capture: Capture, snapshot: Snapshot) -> None:
    """Add to things that are child processes which pipe they write to, and whether its reader is here.

    ``state["writes"]``: the pipe that a thread of the child is blocked writing to, and that this process has
    open for reading.
    """
    children = capture.process.children
    if children is None:
        return
    waited = [t for t in snapshot.things if isinstance(t.state.get("pid"), int)]
    for thing in waited[:_MAX_CHILDREN]:
        number = children.number(thing.state["pid"])
        pipe = _written(number, capture.process.machine) if number else None
        if pipe is None:
            continue
        reader = next((fd for fd, what in capture.fds.items() if what == pipe and _reads(capture, fd)), None)
        if reader is not None:
            thing.state["writes"] = pipe
            thing.detail += f", which writes to a full pipe that is fd {reader} here"


def _written(pid: int, machine: str) -> str | None:
    """The pipe that a thread of ``pid`` is blocked writing to."""
    for tid in procfs.task_ids(pid)[:_MAX_THREADS]:
        call = procfs.parse_syscall(procfs.try_read(f"/proc/{pid}/task/{tid}/syscall") or b"")
        if call is None or blocking_call(call[0], call[1], None, machine) != "write":
            continue
        for fd in fds_of("write", call[1], lambda address, size: None):
            target = procfs.try_readlink(f"/proc/{pid}/fd/{fd}") or ""
            if target.startswith("pipe:"):
                return target
    return None


def _reads(capture: Capture, fd: int) -> bool:
    info = procfs.try_read(f"/proc/{capture.process.pid}/fdinfo/{fd}") or b""
    flags = next((line.split()[1] for line in info.splitlines() if line.startswith(b"flags:")), b"1")
    return flags.isdigit() and int(flags, 8) & _ACCESS == _READ
