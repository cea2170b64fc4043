"""The part that Go has in a process: all of it, a library of a Python program, or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from diagtool.capture.errors import NoRuntime, NotSupported
from diagtool.capture.model import Capture
from diagtool.runtimes.golang.files import go_files
from diagtool.runtimes.native.stacks.model import NativeStacks
from diagtool.runtimes.plain import NATIVE
from diagtool.snapshot.model import Snapshot, SnapshotBuilder

if TYPE_CHECKING:
    from diagtool.runtimes.golang.decode import DecodedGo

__all__ = ["GoPart", "go_part"]


@dataclass(slots=True)
class GoPart:
    """``go``: what was decoded, None where there is none. ``error``: why there is a Go that can't be read."""

    go: DecodedGo | None = None
    error: NotSupported | None = None
    main: bool = False  # the executable itself is Go's

    @property
    def found(self) -> bool:
        """Whether goroutines can be read."""
        return self.go is not None

    @property
    def unreadable(self) -> NotSupported | None:
        """Why nothing can be said of a program that is Go's."""
        return self.error if self.main and self.go is None else None

    def own_threads(self) -> frozenset[int]:
        """Threads (tids) that are in Go's code: its tables alone unwind them best.

        None of a program that has a library of Go: its own frames may be on the same stack.
        """
        if self.go is None or not self.main:
            return frozenset()
        from diagtool.runtimes.golang.threads import threads_in_go

        return threads_in_go(self.go)

    def frames(self, stacks: NativeStacks) -> NativeStacks:
        """Native stacks, with Go's frames named by its own tables."""
        if self.go is None:
            return stacks
        from diagtool.runtimes.golang.threads import with_go_frames

        return with_go_frames(self.go, stacks)

    def adder(self, stacks: NativeStacks) -> Callable[[SnapshotBuilder], None]:
        """What adds the goroutines to a snapshot."""
        if self.go is None:
            return partial(_warn, self.error)
        from diagtool.runtimes.golang.decode import add_goroutines

        return partial(add_goroutines, go=self.go, native=stacks.frames)

    def judge(self, snapshot: Snapshot) -> None:
        """Add to a finished snapshot what goroutines wait on, and who of them is stuck."""
        if self.go is None:
            return
        from diagtool.runtimes.golang.judged import add_judgement

        add_judgement(snapshot, self.go)

    def name(self, snapshot: Snapshot) -> None:
        """Say in the target which Go it is."""
        if self.go is None:
            return
        target, version = snapshot.target, self.go.runtime.version
        target.runtime = version if target.runtime in ("", NATIVE) else f"{target.runtime}, {version}"


def _warn(error: NotSupported | None, builder: SnapshotBuilder) -> None:
    if error is not None:
        builder.snapshot.warnings.append(f"goroutines are missing: {error}")


def go_part(capture: Capture) -> GoPart:
    """Look for Go in a process, and decode it."""
    files = go_files(capture)
    if not files:
        return GoPart()
    from diagtool.runtimes.golang.decode import read_go

    main = any(m.path == capture.process.exe for m in files)
    try:
        return GoPart(read_go(capture), main=main)
    except NoRuntime:
        return GoPart()
    except NotSupported as error:
        return GoPart(error=error, main=main)
