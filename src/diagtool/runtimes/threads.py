"""Kernel threads as stacks of a snapshot."""

from __future__ import annotations

from diagtool.capture.model import CapturedThread
from diagtool.runtimes.waits import ThreadWait
from diagtool.snapshot.model import KIND, STATE, SnapshotBuilder, ThreadInfo

__all__ = ["about_thread", "add_native_thread", "native_state"]


def add_native_thread(
    builder: SnapshotBuilder, captured: CapturedThread, wait: ThreadWait, trace: int
) -> int:
    """Add a thread that no runtime knows; ``trace``: its native frames. Gives its row."""
    row = builder.add(
        [captured.comm or ""],
        kind=KIND["thread"],
        state=STATE[native_state(captured, wait)],
        address=max(captured.tid, 0),  # a damaged core may say -1
        trace=trace,
        merged=trace,
        wait=builder.wait(wait.name),
        thing=builder.thing(wait.thing) if wait.thing is not None else -1,
        thread=max(captured.tid, 0),
    )
    info = ThreadInfo(tid=max(captured.tid, 0), stack=row, name=captured.comm or "", python=False)
    about_thread(info, captured)
    builder.snapshot.threads.append(info)
    return row


def about_thread(info: ThreadInfo, captured: CapturedThread) -> None:
    """Add what the kernel says of a thread."""
    info.comm, info.state, info.syscall = captured.comm, captured.state, captured.syscall
    info.wchan, info.cpu_seconds = captured.wchan, captured.cpu_seconds
    info.registers = dict(captured.registers)


def native_state(captured: CapturedThread | None, wait: ThreadWait) -> str:
    """The state of a thread by what the kernel says."""
    if wait.name:
        return "waiting"
    if captured is None:
        return "unknown"
    if captured.syscall is not None:
        return "waiting"
    return "running" if captured.registers or captured.state == "R" else "unknown"
