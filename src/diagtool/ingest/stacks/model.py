"""Threads and tasks as readers of text found them, made into snapshots."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diagtool.capture.errors import BadEvidence
from diagtool.ingest.stacks.waits import native_wait, thread_wait
from diagtool.runtimes.cpython.tasks.waits import classify
from diagtool.snapshot.model import (
    KIND,
    STACK_COLUMNS,
    STATE,
    Frame,
    Snapshot,
    SnapshotBuilder,
    Target,
    ThreadInfo,
)

__all__ = ["MAX_FRAMES", "MAX_STACKS", "Dump", "Notes", "Written", "snapshots"]

#: Stacks of one file that are read, and frames of one stack. What is beyond is counted.
MAX_STACKS = 200_000
MAX_FRAMES = 2_000
#: Characters of a name, a path or a line that are kept.
MAX_NAME = 512

_VERSION = re.compile(r"/lib(?:64)?/python(3\.\d+)t?/")
_COLUMNS = ("kind", "state", "address", "trace", "merged", "wait", "thread")
#: What stands between frames whose order is not known.
_APART = Frame(
    "[Python frames, of which it is not known where between these they belong]", "", None, language="native"
)


@dataclass(slots=True)
class Written:
    """One stack as it was written down. ``frames``: of Python, innermost first.

    ``native``: where native frames were printed, all frames, innermost first; those of Python among them.
    ``apart``: native frames of which nobody knows where they belong. ``text``: of the innermost line.
    ``state``: "" where the tool does not say; ``parent``: row of the dump that awaits this one, -1: none.
    """

    kind: str = "thread"
    name: str = ""
    tid: int = 0
    ident: int = 0
    address: int = 0
    frames: list[Frame] = field(default_factory=list)
    native: list[Frame] = field(default_factory=list)
    apart: list[Frame] = field(default_factory=list)
    text: str = ""
    state: str = ""
    holds_gil: bool | None = None
    collecting: bool | None = None
    wait: str | None = None
    parents: list[int] = field(default_factory=list)
    cut: int = 0
    bare: bool = False  # without a header
    starts: bool = False  # the tool said that another dump begins here

    @property
    def is_main(self) -> bool:
        """Whether it is the main thread's, by its outermost frame."""
        return bool(self.frames) and self.frames[-1].function in ("<module>", "_run_module_as_main")

    def push(self, frame: Frame, native: bool = False) -> None:
        """Add a frame, unless there are too many."""
        into = self.native if native else self.frames
        if len(into) < MAX_FRAMES:
            into.append(frame)
        else:
            self.cut += 1


@dataclass(slots=True)
class Dump:
    """What one dump tells of a process."""

    stacks: list[Written] = field(default_factory=list)
    pid: int | None = None
    version: str = ""
    exe: str | None = None
    cmdline: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    signal: int | None = None


@dataclass(slots=True)
class Notes:
    """What else was in the file. ``exceptions``: (type, place) of tracebacks that are no threads'."""

    unknown: int = 0
    cut: int = 0
    exceptions: Counter[tuple[str, str]] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)

    def warnings(self) -> list[str]:
        """In words."""
        out = [f"{n:,} {what}" for what, n in self.others.items()]
        if self.exceptions:
            out.append(self.about_exceptions() + ": no stacks of threads that are still there")
        if self.cut:
            out.append(f"of the stacks {self.cut:,} are left out: only {MAX_STACKS:,} of a file are read")
        if self.unknown:
            lines = "a line" if self.unknown == 1 else f"{self.unknown:,} lines"
            out.append(f"{lines} between the stacks: not understood, and left out")
        return out

    def about_exceptions(self) -> str:
        """What exceptions there are."""
        total = sum(self.exceptions.values())
        told = [
            f"{kind} at {place}" + f" ({n:,})" * (n > 1)
            for (kind, place), n in self.exceptions.most_common(3)
        ]
        more = ", …" if len(self.exceptions) > 3 else ""
        return f"tracebacks of {total:,} exception{'s' * (total > 1)} ({', '.join(told)}{more})"


def snapshots(dumps: Sequence[Dump], what: str, path: str, notes: Notes) -> list[Snapshot]:
    """A snapshot of each dump, oldest first. Raises BadEvidence when there are no stacks.

    Of several processes the one with the most dumps, of these the first; the others are named in a warning.
    """
    full = [dump for dump in dumps if dump.stacks]
    if not full:
        if notes.exceptions:
            raise BadEvidence(
                f"{path} holds {notes.about_exceptions()}, and no stack of a thread that is still there",
                "Have the program write all threads: faulthandler.dump_traceback(), or py-spy dump.",
            )
        raise BadEvidence(f"{path} holds no stack of a {what}", "Is it complete?")
    counts = Counter(dump.pid for dump in full)
    pid = counts.most_common(1)[0][0]
    warnings = notes.warnings()
    if len(counts) > 1:
        others = ", ".join(str(p) for p in counts if p != pid)[:200]
        warnings.append(f"of several processes that of pid {pid} is looked at; the others are {others}")
    out = [_snapshot(dump, what, path) for dump in full if dump.pid == pid]
    out[-1].warnings[:0] = warnings
    return out


def _snapshot(dump: Dump, what: str, path: str) -> Snapshot:
    builder = SnapshotBuilder(_target(dump, what, path))
    _add(builder, dump.stacks)
    snapshot = builder.finish()
    cut = sum(bool(stack.cut) for stack in dump.stacks)
    if cut:
        snapshot.warnings.append(
            f"{cut:,} stacks are cut: their outer frames were not written, or are too many"
        )
    silent = sum(not s.frames and any(map(_runs_python, s.native)) for s in dump.stacks)
    if silent:
        snapshot.warnings.append(
            f"{silent:,} threads run Python, and their Python frames were not printed: use py-bt or py-spy"
        )
    pairs = [
        (parent, i)
        for i, stack in enumerate(dump.stacks)
        for parent in stack.parents
        if 0 <= parent < len(dump.stacks)
    ]
    if pairs:
        snapshot.awaits = np.array(pairs, np.int32)
    return snapshot


def _target(dump: Dump, what: str, path: str) -> Target:
    version = dump.version or _version(dump.stacks)
    python = version or any(stack.frames for stack in dump.stacks)
    return Target(
        kind="evidence",
        runtime=f"cpython {version}".rstrip() if python else "native",
        pid=dump.pid,
        exe=dump.exe,
        cmdline=dump.cmdline,
        captured_at=os.stat(path).st_mtime,  # noqa: PTH116
        signal=dump.signal,
        details={"evidence": what, **dump.details},
    )


def _version(stacks: Iterable[Written]) -> str:
    for stack in stacks:
        for frame in reversed(stack.frames):
            found = _VERSION.search(frame.file)
            if found is not None:
                return found[1]
    return ""


def _add(builder: SnapshotBuilder, stacks: Sequence[Written]) -> None:
    """Add all stacks of a dump, one row each in their order."""
    columns: dict[str, list[int]] = {name: [] for name in _COLUMNS}
    names: list[str] = []
    waits: dict[tuple[int, int, str, str, str], str] = {}
    for row, stack in enumerate(stacks):
        native = stack.native or ([*stack.apart, _APART, *stack.frames] if stack.apart else [])
        merged = builder.trace(native[::-1]) if native else 0
        trace = builder.trace(stack.frames[::-1]) if stack.frames else merged
        key = (trace, merged, stack.text, stack.wait or stack.state, stack.kind)
        if key not in waits:
            waits[key] = _wait(stack)
        wait = waits[key]
        name = stack.name[:MAX_NAME]
        tid = stack.tid if 0 <= stack.tid < 1 << 31 else 0
        address = (stack.address or tid or stack.ident) & (1 << 64) - 1
        state = STATE[stack.state or ("waiting" if wait else "unknown")]
        told = (KIND[stack.kind], state, address, trace, merged, builder.wait(wait), tid)
        for column, value in zip(_COLUMNS, told, strict=True):
            columns[column].append(value)
        names.append(name)
        if stack.kind == "thread":
            info = ThreadInfo(tid=tid, stack=row, name=name, python=bool(stack.frames))
            info.ident = stack.ident or None
            info.holds_gil, info.collecting = stack.holds_gil, stack.collecting
            builder.snapshot.threads.append(info)
    builder.add(names, **{name: np.array(values, STACK_COLUMNS[name]) for name, values in columns.items()})


def _wait(stack: Written) -> str:
    if stack.wait is not None:
        return stack.wait
    if stack.state == "running":
        return ""
    if stack.kind == "task":
        return classify(stack.frames).name
    inner: list[str] = []
    for frame in stack.native:
        if frame.library is None:
            break
        inner.append(frame.function)
    if not stack.frames:
        wait = native_wait(inner)
        # Which lock of Python's it is, its frames would tell: they were not printed.
        return "futex" if wait in _LOCKS and any(map(_runs_python, stack.native)) else wait
    return thread_wait(stack.frames, inner, stack.text)


_LOCKS = ("threading.Lock.acquire", "threading.RLock.acquire", "sem_wait", "pthread_cond_wait")


def _runs_python(frame: Frame) -> bool:
    return frame.function.startswith(("_PyEval_EvalFrame", "PyEval_EvalFrame", "_TAIL_CALL_"))
