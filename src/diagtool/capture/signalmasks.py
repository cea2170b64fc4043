"""Which signals each thread of a process blocks, which are caught or ignored: /proc/PID/status (proc(5))."""

from __future__ import annotations

from collections.abc import Mapping

from diagtool.capture import procfs
from diagtool.capture.signals import Masks

__all__ = ["read_masks"]


def read_masks(pid: int) -> Masks:
    """What /proc says of a process now; empty when it is gone."""
    status = procfs.parse_status(procfs.try_read(f"/proc/{pid}/status") or b"")
    out = Masks(_mask(status, "SigCgt"), _mask(status, "SigIgn"), _mask(status, "ShdPnd"))
    for tid in procfs.task_ids(pid):
        own = procfs.parse_status(procfs.try_read(f"/proc/{pid}/task/{tid}/status") or b"")
        blocked, pending = _mask(own, "SigBlk"), _mask(own, "SigPnd")
        if blocked is not None and own.get("State", "Z")[:1] not in "ZX":
            out.blocked[tid], out.thread_pending[tid] = blocked, pending or 0
    return out


def _mask(status: Mapping[str, str], name: str) -> int | None:
    try:
        return int(status[name], 16)
    except (KeyError, ValueError):
        return None
