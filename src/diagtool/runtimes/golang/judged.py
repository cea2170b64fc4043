"""What goroutines wait on, and who of them is stuck: what a view of threads alone does without."""

from __future__ import annotations

import gc

import numpy as np

from diagtool.runtimes.golang.clock import now_of
from diagtool.runtimes.golang.decode import DecodedGo
from diagtool.runtimes.golang.liveness.proof import prove
from diagtool.runtimes.golang.liveness.things import things_of
from diagtool.runtimes.golang.liveness.waiting import waits_of
from diagtool.snapshot.model import Snapshot

__all__ = ["add_judgement"]


def add_judgement(snapshot: Snapshot, go: DecodedGo) -> None:
    """Fill ``stuck`` and ``thing`` of the goroutines of a snapshot, after its columns were joined.

    Where it can't be found out who is stuck, a warning says why, if anybody might be. The table
    ``go_judgement`` has one row: ``judged`` (goroutines that wait on channels and locks), ``stuck``,
    ``why_not``
    ("" where all was read), ``objects``, ``pointers``.
    """
    collecting = gc.isenabled()
    gc.disable()  # nothing of what is made becomes garbage, and there may be much of it
    try:
        _judge(snapshot, go)
    finally:
        if collecting:
            gc.enable()


def _judge(snapshot: Snapshot, go: DecodedGo) -> None:
    runtime = go.runtime
    rows = slice(go.first, go.first + len(go.alive))
    waits = [""] * len(runtime.goroutines)
    for row, wait in zip(go.alive.tolist(), snapshot.stacks.wait[rows].tolist(), strict=True):
        waits[row] = snapshot.waits[wait]
    waiting = waits_of(runtime, waits)
    things, number = things_of(runtime, waits, waiting, now_of(runtime)[0])
    offset = len(snapshot.things)
    snapshot.things += things
    own = number[go.alive]
    snapshot.stacks.thing[rows] = np.where(own >= 0, own + offset, -1)
    proof = prove(runtime, go.functions, waits, waiting)
    snapshot.stacks.stuck[rows] |= proof.stuck[go.alive].astype(np.uint8)
    if proof.why_not:
        snapshot.warnings.append(
            f"who can wake {proof.judged:,} goroutines that wait on channels and locks was not found out: "
            f"{proof.why_not}"
        )
    snapshot.tables["go_judgement"] = [
        {
            "judged": proof.judged,
            "stuck": int(proof.stuck[go.alive].sum()),
            "why_not": proof.why_not,
            "objects": proof.objects,
            "pointers": proof.pointers,
        }
    ]
