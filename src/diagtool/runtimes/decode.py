"""From a capture to a snapshot: what each runtime in the process has to say of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from diagtool.capture.errors import NoRuntime, NotSupported
from diagtool.capture.model import Capture
from diagtool.runtimes.children import add_what_children_wait_for
from diagtool.runtimes.cpython.decode import decode as decode_cpython
from diagtool.runtimes.go import go_part
from diagtool.runtimes.native.stacks import NativeStacks, Unwinder, native_stacks
from diagtool.runtimes.plain import NATIVE, decode_plain
from diagtool.snapshot.model import Snapshot

__all__ = ["NATIVE", "Decoding", "add_native", "decode"]


class Decoding(TypedDict, total=False):
    """What is to be decoded: the keyword arguments of :func:`decode`, for who passes them on."""

    heap: bool
    why: str | None
    graph: bool | None
    values: str | None
    native: bool
    frames: bool
    unwinder: Unwinder
    debug_directories: Sequence[str]
    tasks: bool


def decode(
    capture: Capture,
    *,
    heap: bool = False,
    why: str | None = None,
    graph: bool | None = None,
    values: str | None = None,
    native: bool = False,
    frames: bool = True,
    unwinder: Unwinder = "auto",
    debug_directories: Sequence[str] = (),
    tasks: bool = True,
) -> Snapshot:
    """The snapshot of a captured process.

    ``heap``, ``why``, ``graph``, ``values``: see :func:`diagtool.runtimes.cpython.decode`. ``native``: the
    heap of the C library is read, too (:func:`add_native`). ``tasks``: False for threads alone.

    ``frames``: native frames are found, too, by ``unwinder``, with separate debug files from
    ``debug_directories``. A process without a Python has a snapshot of its native threads, unless its objects
    are asked for. Raises NotSupported where nothing can be read.
    """
    go = go_part(capture)
    stacks = NativeStacks()
    if frames:
        stacks = native_stacks(capture, unwinder, debug_directories, go.own_threads())
    stacks = go.frames(stacks)
    try:
        snapshot = decode_cpython(
            capture,
            heap=heap,
            why=why,
            graph=graph,
            values=values,
            native=stacks.frames,
            tasks=tasks,
            others=[go.adder(stacks)],
        )
    except NotSupported as error:
        objects = why is not None or values is not None
        if objects or (heap and not native and not go.found):
            raise  # objects were asked for
        unreadable = not isinstance(error, NoRuntime)  # there is a Python, of which nothing can be said
        if unreadable and not go.found and (heap or not native):
            raise
        if go.unreadable is not None and not native:
            raise go.unreadable from error
        snapshot = decode_plain(capture, stacks, [go.adder(stacks)])
        if unreadable:
            rest = "goroutines, native threads" if go.found else "native threads and the native heap"
            snapshot.warnings.append(f"only {rest} are read: {error}")
    go.name(snapshot)
    if tasks:
        go.judge(snapshot)
    snapshot.warnings += stacks.warnings
    if stacks.cut:
        snapshot.warnings.append(_cut(stacks))
    add_what_children_wait_for(capture, snapshot)
    if native:
        add_native(capture, snapshot)
    return snapshot


def _cut(stacks: NativeStacks) -> str:
    reasons = sorted(set(stacks.cut.values()))
    some = "; ".join(reasons[:3])
    return f"native frames of {len(stacks.cut):,} of {len(stacks.frames):,} threads are not complete: {some}"


def add_native(capture: Capture, snapshot: Snapshot) -> None:
    """Read the native heap: tables ``native_*`` of the snapshot, as ``NativeHeap.to_rows`` describes them."""
    from diagtool.runtimes.native import native_heap

    with capture.memory.unwatched():
        snapshot.tables.update(native_heap(capture).to_rows())
