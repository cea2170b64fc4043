"""Which signals each thread of a process blocks, which are caught or ignored: /proc/PID/status (proc(5))."""

from __future__ import annotations

from collections.abc import Iterable

from diagtool.capture import procfs
from diagtool.capture.signals import Masks

__all__ = ["read_masks"]


def read_masks(pid: int, tids: Iterable[int] | None = None) -> Masks:
    """What /proc says of a process now, and of ``tids`` (of all without it); empty when it is gone."""
    status = procfs.parse_status(procfs.try_read(f"/proc/{pid}/status") or b"")
    caught, ignored, pending = (procfs.signal_set(status, name) for name in ("SigCgt", "SigIgn", "ShdPnd"))
    out = Masks(caught, ignored, pending)
    for tid in procfs.task_ids(pid) if tids is None else tids:
        own = procfs.parse_status(procfs.try_read(f"/proc/{pid}/task/{tid}/status") or b"")
        blocked = procfs.signal_set(own, "SigBlk")
        if blocked is not None and own.get("State", "Z")[:1] not in "ZX":
            out.blocked[tid] = blocked
            out.thread_pending[tid] = procfs.signal_set(own, "SigPnd") or 0
    return out
