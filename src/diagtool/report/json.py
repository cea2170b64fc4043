"""The JSON documents: ``diagtool.leaks/1``, and the same of stacks, heap and snapshot.

The schemas are in ``schema/``. Addresses are hex strings, sizes bytes, times seconds; frames are innermost
first. Within version 1 fields are only ever added.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diagtool._version import __version__
from diagtool.leaks.model import Cluster, Finding, Ignored, Report, WaitingOn
from diagtool.report import ffirows, goheap, heapdetails
from diagtool.report import handles as openfiles
from diagtool.report import memory as memorymap
from diagtool.report.heap import TypeCount, Way
from diagtool.report.nativeheap import document as native_heap
from diagtool.report.retained import document as keepers
from diagtool.report.signals import document as signal_table
from diagtool.report.signals import rows as signal_rows
from diagtool.report.tree import Node
from diagtool.snapshot.model import KINDS, Frame, Snapshot, Stack, Target, Thing, ThreadInfo

if TYPE_CHECKING:
    from diagtool.leaks.explain import Explanation


def dumps(document: dict[str, Any]) -> str:
    """``document`` as text. ASCII only, so that no name can do anything to a terminal."""
    return json.dumps(document, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema of the document of a command: ``leaks``, ``stacks``, ``heap`` …"""
    path = Path(__file__).parent / "schema" / f"{name}-1.json"
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return document


def _head(name: str, about: Snapshot | Report) -> dict[str, Any]:
    """What every document begins with."""
    return {
        "schema": f"diagtool.{name}/1",
        "diagtool": __version__,
        "target": _target(about.target),
        "pause_ms": _milliseconds(about.pause_ms),
    }


def leaks(report: Report) -> dict[str, Any]:
    """The document of ``diagtool leaks``."""
    return {
        **_head("leaks", report),
        "summary": {
            "stacks": report.summary.stacks,
            "clusters": report.summary.clusters,
            "findings": report.summary.findings,
            "by_verdict": dict(report.summary.by_verdict),
            "ignored": report.summary.ignored,
        },
        "findings": [_finding(f) for f in report.findings],
        "ignored": [_ignored(i) for i in report.ignored],
        "baseline": None if report.baseline is None else _plain(dataclasses.asdict(report.baseline)),
        "clusters": [_cluster(c) for c in report.clusters],
        "warnings": list(report.warnings),
    }


def explain(report: Report, told: Explanation) -> dict[str, Any]:
    """The document of ``diagtool leaks --explain``."""
    return {
        **_head("explain", report),
        "finding": _finding(told.finding),
        "conditions": [
            {
                "what": c.what,
                "count": c.count,
                "verdict": c.verdict or None,
                "steps": [dataclasses.asdict(step) for step in c.steps],
            }
            for c in told.conditions
        ],
        "ways": [_cluster(c) for c in told.ways],
        "stacks": [_stack(s) for s in told.stacks],
        "stack_count": told.stack_count,
        "things": [
            {**_plain(dataclasses.asdict(t)), "address": hex(t.address) if t.address else None}
            for t in told.things
        ],
        "thing_count": told.thing_count,
        "chains": [[_stack(s) for s in chain] for chain in told.chains],
        "warnings": list(report.warnings),
    }


def plain(value: Snapshot | Report | Finding | Cluster | Stack) -> dict[str, Any]:
    """Any of these as plain data: the documents and their parts. See ``diagtool.to_dict``."""
    if isinstance(value, Report):
        return leaks(value)
    if isinstance(value, Finding):
        return _finding(value)
    if isinstance(value, Cluster):
        return _cluster(value)
    if isinstance(value, Stack):
        return _stack(value)
    if not isinstance(value, Snapshot):
        raise TypeError(f"{type(value).__name__} is no snapshot, stack, report, finding or cluster")
    return {
        "target": _target(value.target),
        "pause_ms": _milliseconds(value.pause_ms),
        "stacks": [_stack(s) for s in value],
        "threads": [_thread(t) for t in value.threads],
        "tables": _plain(value.tables),
        "warnings": list(value.warnings),
    }


def stacks(
    report: Report,
    *,
    rows: Iterable[Stack] | None = None,
    tree: Iterable[Node] | None = None,
    threads: Iterable[dict[str, Any]] | None = None,
    contention: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The document of ``diagtool stacks``: the clusters, and if given every stack, the await tree, the
    threads with their native frames (``report.native.rows``), and ``report.contention.document``."""
    document: dict[str, Any] = {
        **_head("stacks", report),
        "clusters": [_cluster(c) for c in report.clusters],
        "warnings": list(report.warnings),
    }
    if tree is not None:
        document["tree"] = [
            {"depth": n.depth, "count": n.count, "stack": n.stack, "mark": n.mark or None} for n in tree
        ]
    if threads is not None:
        document["threads"] = [
            {**row, "waiting_on": _waiting_on_thing(row["waiting_on"]), "frames": _frames(row["frames"])}
            for row in threads
        ]
    if contention is not None:
        document["contention"] = contention
    if rows is not None:
        document["stacks"] = [_stack(s) for s in rows]
    return document


def heap(snap: Snapshot, rows: Sequence[TypeCount], ways: Sequence[Way] = ()) -> dict[str, Any]:
    """The document of ``diagtool heap``: a row a type, most bytes first; who keeps what was asked for."""
    return {
        **_head("heap", snap),
        "objects": sum(r.count for r in rows),
        "bytes": sum(r.bytes for r in rows),
        "types": [
            {
                "type": r.type,
                "count": r.count,
                "bytes": r.bytes,
                "own": r.own,
                "owned": r.owned,
                "types": r.types,
            }
            for r in rows
        ],
        "ways": [
            {
                "root": w.root,
                "count": w.count,
                "example": w.example,
                "text": w.text,
                "steps": [_plain(s) for s in w.steps],
            }
            for w in ways
        ],
        "native": native_heap(snap),
        "go": goheap.document(snap),
        **keepers(snap),
        **heapdetails.document(snap),
        "warnings": list(snap.warnings),
    }


def handles(snap: Snapshot, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The document of ``diagtool handles``: a row a descriptor, and the limits."""
    return {
        **_head("handles", snap),
        **openfiles.document(snap, rows),
        "warnings": list(snap.warnings),
    }


def ffi(snap: Snapshot) -> dict[str, Any]:
    """The document of ``diagtool ffi``: a list a part, addresses as hex."""
    return {
        **_head("ffi", snap),
        **_plain(ffirows.document(snap)),
        "warnings": list(snap.warnings),
    }


def memory(snap: Snapshot) -> dict[str, Any]:
    """The document of ``diagtool memory``: a row an owner, and what allocators say."""
    return {
        **_head("memory", snap),
        **memorymap.document(snap),
        "warnings": list(snap.warnings),
    }


def signals(snap: Snapshot) -> dict[str, Any]:
    """The document of ``diagtool signals``: a row a signal, and what else bears on them."""
    return {
        **_head("signals", snap),
        **{key: _plain(value) for key, value in signal_table(snap, signal_rows(snap)).items()},
        "warnings": list(snap.warnings),
    }


def snapshot(snap: Snapshot, file: str, core: str | None = None) -> dict[str, Any]:
    """The document of ``diagtool snapshot``. ``tasks`` counts those that are not done."""
    return {
        "schema": "diagtool.snapshot/1",
        "diagtool": __version__,
        "file": file,
        "core": core,
        "pid": snap.target.pid,
        "runtime": snap.target.runtime,
        "pause_ms": _milliseconds(snap.pause_ms),
        "threads": len(snap.threads) or snap.count("thread"),
        "tasks": live_tasks(snap),
        "counts": {"stacks": len(snap.stacks), **{k: snap.count(k) for k in KINDS if snap.count(k)}},
        "warnings": list(snap.warnings),
    }


def live_tasks(snap: Snapshot) -> int:
    """How many tasks are not done."""
    return snap.count("task") - snap.count("task", "done")


def _target(target: Target) -> dict[str, Any]:
    fields: dict[str, Any] = _plain(dataclasses.asdict(target))
    return fields


def _finding(f: Finding) -> dict[str, Any]:
    trend = None
    if f.trend is not None:
        trend = {
            "counts": list(f.trend.counts),
            "seconds": [_number(s) for s in f.trend.seconds],
            "persisted": f.trend.persisted,
        }
    return {
        "id": f.id,
        "template": f.template,
        "verdict": f.verdict,
        "severity": f.severity,
        "kind": f.kind,
        "count": f.count,
        "bytes": f.bytes,
        "title": f.title,
        "state": f.state,
        "wait": f.wait,
        "waiting_on": _waiting_on(f.waiting_on),
        "wait_seconds": _number(f.wait_seconds),
        "age_seconds": _number(f.age_seconds),
        "created_by": None if f.created_by is None else _frames(f.created_by),
        "frames": _frames(f.frames),
        "held_by": list(f.held_by),
        "evidence": list(f.evidence),
        "cause": f.cause,
        "fix": f.fix,
        "runbook": f.runbook,
        "examples": list(f.examples),
        "trend": trend,
        "source": [
            {"file": s.file, "line": s.line, "text": s.text, "check": s.check, "says": s.says}
            for s in f.source
        ],
    }


def _ignored(known: Ignored) -> dict[str, Any]:
    return {
        "entry": known.entry,
        "reason": known.reason,
        "expires": None if known.expires is None else known.expires.isoformat(),
        "finding": _finding(known.finding),
    }


def _cluster(c: Cluster) -> dict[str, Any]:
    return {
        "id": c.id,
        "kind": c.kind,
        "count": c.count,
        "state": c.state,
        "wait": c.wait,
        "template": c.template,
        "idle": c.idle,
        "finding": c.finding,
        "waiting_on": _waiting_on(c.waiting_on),
        "things": c.things,
        "wait_seconds": _number(c.wait_seconds),
        "examples": list(c.examples),
        "frames": _frames(c.frames),
    }


def _thread(t: ThreadInfo) -> dict[str, Any]:
    fields: dict[str, Any] = _plain(dataclasses.asdict(t))
    for name in ("ident", "running_loop"):
        fields[name] = None if fields[name] is None else hex(fields[name])
    fields["registers"] = {name: hex(value) for name, value in t.registers.items()}
    return fields


def _stack(s: Stack) -> dict[str, Any]:
    return {
        "id": s.index,
        "kind": s.kind,
        "state": s.state,
        "address": hex(s.address),
        "name": s.name,
        "wait": s.wait,
        "waiting_on": _waiting_on_thing(s.thing),
        "thread": s.thread,
        "loop": None if s.loop is None else hex(s.loop),
        "created_by": _frames(s.created_by) if s.created_by else None,
        "held_by": s.held_by,
        "stuck": s.stuck,
        "wait_seconds": s.wait_seconds,
        "age_seconds": s.age_seconds,
        "frames": _frames(s.frames),
        "merged": _frames(s.merged) if s.merged else None,
    }


def _waiting_on_thing(thing: Thing | None) -> dict[str, Any] | None:
    return None if thing is None else _waiting_on(WaitingOn(thing.type, thing.address, thing.detail))


def _waiting_on(waiting_on: WaitingOn | None) -> dict[str, Any] | None:
    if waiting_on is None:
        return None
    address = hex(waiting_on.address) if waiting_on.address else None
    return {"type": waiting_on.type, "address": address, "detail": waiting_on.detail}


def _frames(frames: Sequence[Frame]) -> list[dict[str, Any]]:
    return [
        {
            "function": f.function,
            "module": f.module,
            "file": f.file,
            "line": f.line,
            "language": f.language,
            "library": f.library,
        }
        for f in frames
    ]


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _milliseconds(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 3)


def _plain(value: Any) -> Any:
    # Target.details come from decoders: whatever is no JSON becomes text.
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return _number(value)
    return value if value is None or isinstance(value, (str, int)) else str(value)
