"""A process whose threads no runtime speaks for: their native stacks, and what they wait on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diagtool.capture.model import Capture
from diagtool.runtimes.describe import describe
from diagtool.runtimes.memory import add_process_memory
from diagtool.runtimes.merge import native_frames
from diagtool.runtimes.native.stacks.model import NativeStacks
from diagtool.runtimes.threads import add_native_thread
from diagtool.runtimes.waits import KernelWaits
from diagtool.snapshot.model import Snapshot, SnapshotBuilder

__all__ = ["NATIVE", "decode_plain"]

#: What the runtime of such a process is called.
NATIVE = "native"


def decode_plain(
    capture: Capture, stacks: NativeStacks, others: Sequence[Callable[[SnapshotBuilder], None]] = ()
) -> Snapshot:
    """The snapshot of a process with threads of native code; ``others`` add what else is known of it."""
    target = describe(capture)
    target.runtime = NATIVE
    builder = SnapshotBuilder(target)
    builder.snapshot.warnings += capture.warnings
    add_process_memory(capture, builder.snapshot.tables)
    waits = KernelWaits(capture, dict(stacks.frames))
    for thread in capture.threads:
        trace = builder.trace(native_frames(stacks.frames.get(thread.tid, ()))[::-1])
        add_native_thread(builder, thread, waits.of(thread), trace)
    for add in others:
        add(builder)
    snapshot = builder.finish()
    snapshot.pause_ms = capture.pause_ms
    target.details["exact"] = capture.of_one_instant
    return snapshot
