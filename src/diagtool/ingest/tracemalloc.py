"""What ``tracemalloc.Snapshot.dump()`` wrote: allocation sites.

The file is a pickle, which may hold any program. It is read by ``tracemalloc_dump.py``, in a process of its
own with bounds on memory and time, by an unpickler that knows two names and calls nothing. Only the sums come
back, as JSON. What a hostile file can do is to make that process fail.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from diagtool.capture.errors import BadEvidence, NotSupported
from diagtool.snapshot.model import Snapshot, SnapshotBuilder, Target

__all__ = ["is_dump", "read_dump"]

_READER = Path(__file__).with_name("tracemalloc_dump.py")
_AGAIN = "Have the program write it again: tracemalloc.take_snapshot().dump(FILE)."
_SECONDS = 3600  # the reader bounds its own processor time; this is for one that stands still


def is_dump(head: bytes) -> bool:
    """Whether a file that starts with ``head`` is a pickle of a tracemalloc.Snapshot."""
    first = head[:96]
    return head[:1] == b"\x80" and b"tracemalloc" in first and b"Snapshot" in first


def read_dump(path: str) -> Snapshot:
    """The snapshot of a dump: tables ``tracemalloc`` and ``allocation_sites``. Raises TargetError."""
    if not sys.executable:
        raise NotSupported(f"{path} can't be read: there is no Python to read it with", "Run diagtool.")
    found = _sums(path)
    if "error" in found:
        raise BadEvidence(f"{path} is no dump of tracemalloc that makes sense: {found['error']}", _AGAIN)
    snap = SnapshotBuilder(_target(path)).finish()
    snap.tables["tracemalloc"] = [
        {
            "blocks": found["blocks"],
            "bytes": found["bytes"],
            "peak": None,
            "frames": found["frames"],
            "sites": found["sites"],
        }
    ]
    snap.tables["allocation_sites"] = [_row(*site) for site in found["rows"]]
    return snap


def _target(path: str) -> Target:
    return Target(kind="evidence", runtime="tracemalloc dump", captured_at=os.stat(path).st_mtime)  # noqa: PTH116


def _row(
    domain: int, count: int, size: int, frames: list[list[Any]], depth: int, sites: int
) -> dict[str, Any]:
    file, line = frames[0] if frames else (None, None)
    row: dict[str, Any] = {
        "source": "tracemalloc",
        "file": file,
        "line": line,
        "function": None,
        "count": count,
        "bytes": size,
        "types": [],
        "frames": frames,
    }
    row.update({key: value for key, value in (("domain", domain), ("sites", sites)) if value})
    if depth > len(frames):
        row["depth"] = depth
    return row


def _sums(path: str) -> dict[str, Any]:
    import subprocess  # not needed by who reads processes

    # -I and -S: nothing of the environment and no site-packages take part.
    command = [sys.executable, "-I", "-S", str(_READER)]
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            done = subprocess.run(command, stdin=file, capture_output=True, timeout=_SECONDS, check=False)
        found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
    except (OSError, ValueError, subprocess.TimeoutExpired, RecursionError) as error:
        raise BadEvidence(f"{path} could not be read: {error}", _AGAIN) from None
    if not found:
        why = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        return {"error": f"it takes too much memory or time, or breaks the reader ({why})"}
    return found
