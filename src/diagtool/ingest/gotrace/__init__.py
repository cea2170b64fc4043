"""Execution traces of Go (``runtime/trace``, ``/debug/pprof/trace``): goroutines over time.

What comes out are snapshots of the goroutines that are alive: at a third of the trace, at two thirds, and at
its end, so that a trace is judged as any series is; of a trace shorter than a second only its end. The last
one has the table ``go_trace_clusters``.

| what | where |
|---|---|
| numbers and the chain of events, in bulk | ``varints.py`` |
| the wire of 1.22 and later, that of 1.21 and before | ``newwire.py``, ``oldwire.py`` |
| batches to events; who runs where | ``decode.py``, ``running.py`` |
| events to steps of goroutines | ``newsteps.py``, ``oldwire.py`` |
| stacks of all generations under one number | ``places.py`` |
| who is alive, and what is counted on the way | ``alive.py`` |
| snapshots, and the table | ``build.py``, ``clusters.py`` |
"""

from __future__ import annotations

import re

from diagtool.snapshot.model import Snapshot

__all__ = ["HEAD", "is_trace", "read_trace"]

#: How a trace begins: with the version of its wire, in 16 bytes.
HEAD = re.compile(rb"go 1\.(\d{1,3}) trace\0{3,4}")


def is_trace(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is an execution trace of Go, of whatever version."""
    return HEAD.match(head) is not None


def read_trace(path: str) -> list[Snapshot]:
    """The snapshots of an execution trace, oldest first. Raises TargetError."""
    from diagtool.ingest.gotrace.read import read_file

    return read_file(path)
