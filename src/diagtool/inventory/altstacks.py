"""Alternate signal stacks: whether the one of a thread is there, is large enough, and is its own.

A handler with SA_ONSTACK runs on the alternate stack of the thread that it interrupts, if that has one. Of a
fault where the stack has overflowed it can't run anywhere else. Which stack a thread has only the thread
knows: the image tells it of the one that made it.
"""

from __future__ import annotations

from typing import Any

from diagtool.capture.model import Capture, Mapping

__all__ = ["alternate_stacks"]

Row = dict[str, Any]

_DISABLED = 2  # SS_DISABLE
_AT_MINSIGSTKSZ = 51
_LEAST = 2048  # MINSIGSTKSZ of x86-64
_FAULTS = ("SIGSEGV", "SIGBUS")


def alternate_stacks(capture: Capture, python: Row, signals: list[Row]) -> list[Row]:
    """A row a thread whose alternate stack is known: ``tid``, ``main``, ``state`` ("none", "fits", "small",
    "gone": not mapped to be written to, "shared": another thread runs on it), ``start``, ``size``, ``owner``
    ("faulthandler" or null), ``wanted_by`` (handlers with SA_ONSTACK of faults), ``others`` (tids on it)."""
    wanted = [row["signal"] for row in signals if row["signal"] in _FAULTS and "SA_ONSTACK" in row["flags"]]
    by_faulthandler = any(r["owner"] == "faulthandler" for r in signals if r["signal"] in _FAULTS)
    rows = []
    for tid, stack in sorted(capture.signals.stacks.items()):
        has = not stack.flags & _DISABLED and stack.size > 0
        end = stack.start + stack.size
        others = [
            t.tid
            for t in capture.threads
            if has and t.tid != tid and stack.start <= t.registers.get("rsp", 0) < end
        ]
        state = "none" if not has else "fits"
        if has and not _writable(capture.mappings, stack.start, end):
            state = "gone"
        elif others:
            state = "shared"
        elif has and stack.size < _LEAST:
            state = "small"
        own = bool(python.get("stack")) and stack.start == python.get("stack")
        rows.append(
            {
                "tid": tid,
                "main": tid == capture.process.pid,
                "state": state,
                "start": stack.start if has else None,
                "size": stack.size if has else 0,
                "owner": "faulthandler" if own else None,
                "wanted_by": ", ".join(wanted),
                "faulthandler": by_faulthandler,
                "others": others[:8],
                "text": f"{stack.size:,} bytes at {stack.start:#x}" if has else "none",
            }
        )
    return rows


def _writable(mappings: list[Mapping], start: int, end: int) -> bool:
    for m in sorted(mappings, key=lambda m: m.start):
        if m.start <= start < m.end and m.writable:
            start = m.end
            if start >= end:
                return True
    return False
