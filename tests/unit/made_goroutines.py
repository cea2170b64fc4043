"""Snapshots of imagined Go programs, for tests of the leaks engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diagtool.golang.goroutines import Goroutines, go_frame
from diagtool.snapshot.model import Snapshot, SnapshotBuilder, Target


class Program:
    """Goroutines under construction, numbered from 1 (main) on."""

    def __init__(self, at: float | None = None) -> None:
        self.builder = SnapshotBuilder(Target("evidence", runtime="go1.24.1", captured_at=at))
        self.rows = Goroutines(self.builder)
        self._goid = 100

    def go(
        self,
        count: int,
        reason: str,
        functions: str,
        made_in: str = "main.serve",
        *,
        lines: Sequence[int] = (),
        made_at: int = 3,
        file: str = "",
        parent: int = 9,
        goid: int = 0,
        **more: Any,
    ) -> int:
        """``count`` goroutines; functions innermost first, with ``lines``. The first one's number.

        ``file``: of functions of package main; others are elsewhere.
        """

        def place(name: str) -> str:
            return file if file and name.startswith("main.") else f"{name.partition('.')[0]}/x.go"

        names = functions.split()
        at = [*lines, *[7] * len(names)]
        frames = [go_frame(name, place(name), line) for name, line in zip(names, at, strict=False)]
        made = go_frame(made_in, place(made_in), made_at) if made_in else None
        kind = self.rows.kind(reason, frames, made)
        first = goid or self._goid
        self._goid = max(self._goid, first + count)
        for number in range(first, first + count):
            self.rows.add(kind, goid=number, parent=parent, **more)
        return first

    def build(self) -> Snapshot:
        self.go(1, "running", "runtime/pprof.writeGoroutineStacks main.main", "", parent=0, goid=1)
        return self.builder.finish()
