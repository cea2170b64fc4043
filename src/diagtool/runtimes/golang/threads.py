"""Frames of threads that run Go code: by Go's own function tables, which stripped programs have, too.

A thread in C that Go called keeps the frames that were unwound there, up to where Go begins; behind them come
those of the goroutine that called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from diagtool.runtimes.golang.decode import DecodedGo
from diagtool.runtimes.golang.starts import registers_of, saved_by_kernel
from diagtool.runtimes.golang.unwind import Starts, Trie, unwind
from diagtool.runtimes.native.stacks.model import NativeFrame, NativeStacks

__all__ = ["threads_in_go", "with_go_frames"]

_REACH = 8 << 20  # bytes above the stack pointer in which frames may lie: a goroutine's stack may be large
_TOP = 1 << 47
_MOST_SIGNALS = 4  # handled one within the other
_CALLS_C = "runtime.asmcgocall"


def with_go_frames(go: DecodedGo, stacks: NativeStacks) -> NativeStacks:
    """``stacks`` with the threads that are in Go's code unwound, and named, by its tables."""
    frames: dict[int, Sequence[NativeFrame]] = dict(stacks.frames)
    cut = dict(stacks.cut)
    own = _in_go(go)
    for tid, found in own.items():
        frames[tid] = [*found, *_outside(go, stacks.frames.get(tid, ()))]
        cut.pop(tid, None)
    callers = _callers(go)
    for tid, native in stacks.frames.items():
        if tid not in own:
            frames[tid] = named = _named(go, native)
            called = next((i for i, f in enumerate(named) if f.function == _CALLS_C), None)
            if called is not None:
                # The stack behind it was the scheduler's before, and is left as it was.
                frames[tid] = [*named[: called + 1], *_at_node(go, callers.get(tid, 0), named[called].sp)]
                cut.pop(tid, None)
    order = {thread.tid: number for number, thread in enumerate(go.runtime.capture.threads)}
    ordered: Mapping[int, Sequence[NativeFrame]] = dict(
        sorted(frames.items(), key=lambda i: order.get(i[0], 0))
    )
    return NativeStacks(ordered, cut, stacks.warnings)


def _outside(go: DecodedGo, native: Sequence[NativeFrame]) -> list[NativeFrame]:
    """Of a thread that is in Go now, the frames of C that called Go: in them are those of other runtimes."""
    inside = go.functions.contains(np.array([f.pc for f in native], np.uint64)) if native else None
    if inside is None or not inside.any():
        return []
    outer = list(native[int(np.flatnonzero(inside)[-1]) + 1 :])
    if outer:
        outer[0] = replace(outer[0], guessed=True)
    return outer


def _callers(go: DecodedGo) -> dict[int, int]:
    """The stack (a node) of the goroutine that is in a call of C or the kernel, by tid."""
    g = go.runtime.goroutines
    rows = np.flatnonzero((g.syscall_sp != 0) & (g.m != 0))
    tids = go.owners.of(g.m[rows])
    return {tid: int(go.trie.leaf[row]) for tid, row in zip(tids.tolist(), rows.tolist(), strict=True) if tid}


def threads_in_go(go: DecodedGo) -> frozenset[int]:
    """The tids of threads that stand in Go's code."""
    threads = [t for t in go.runtime.capture.threads if registers_of(t)[0]]
    inside = go.functions.contains(np.array([registers_of(t)[0] for t in threads], np.uint64))
    return frozenset(t.tid for t, yes in zip(threads, inside.tolist(), strict=True) if yes)


def _in_go(go: DecodedGo) -> dict[int, list[NativeFrame]]:
    """The frames of threads that stand in Go code; of one that handles a signal those from before, too."""
    places = {t.tid: registers_of(t) for t in go.runtime.capture.threads if registers_of(t)[0]}
    out = found = _unwound(go, places)
    for _ in range(_MOST_SIGNALS):
        handling = [tid for tid, frames in found.items() if frames and _handles_signal(frames[-1])]
        saved = {tid: saved_by_kernel(go.runtime, go.functions, places[tid][1]) for tid in handling}
        places = {tid: (*place, 0) for tid, place in saved.items() if place is not None}
        found = _unwound(go, places)
        if not found:
            break
        out = {tid: [*frames, *found.get(tid, ())] for tid, frames in out.items()}
    return out


def _handles_signal(outermost: NativeFrame) -> bool:
    return outermost.function.startswith("runtime.sigtramp")


def _unwound(go: DecodedGo, places: Mapping[int, tuple[int, int, int]]) -> dict[int, list[NativeFrame]]:
    """Frames from (pc, sp, link register) of threads on, of those that are in Go's code."""
    tids = list(places)
    at = np.array([places[tid] for tid in tids], np.uint64).reshape(-1, 3)
    inside = np.flatnonzero(go.functions.contains(at[:, 0]))
    if not len(inside):
        return {}
    pc, sp, lr = (np.ascontiguousarray(at[inside, i]) for i in range(3))
    hi = np.minimum(sp + np.uint64(_REACH), np.uint64(_TOP))
    trie = unwind(go.runtime, go.functions, Starts(pc, sp, lr, sp.copy(), hi, np.ones(len(pc), np.bool_)))
    return {
        tids[i]: _at_node(go, int(trie.leaf[number]), int(sp[number]), trie)
        for number, i in enumerate(inside.tolist())
    }


def _at_node(go: DecodedGo, node: int, sp: int, trie: Trie | None = None) -> list[NativeFrame]:
    """The frames of a stack, innermost first."""
    trie = go.trie if trie is None else trie
    found: list[NativeFrame] = []
    while node:
        found += _of_place(go, trie.place[node], sp)
        node = trie.parent[node]
    return found


def _of_place(go: DecodedGo, place: int, sp: int) -> list[NativeFrame]:
    function = go.functions.at(place)
    lines = go.functions.lines(place)
    library = go.runtime.modules[function.module].path if function is not None else None
    return [
        NativeFrame(
            pc=place,
            sp=sp,
            function=line.function,
            offset=place - function.entry if function is not None else 0,
            library=library,
            file=line.file or None,
            line=line.line or None,
            inline=number + 1 < len(lines),
            language="go",
        )
        for number, line in enumerate(lines)
    ]


def _named(go: DecodedGo, frames: Sequence[NativeFrame]) -> Sequence[NativeFrame]:
    pcs = np.array([f.pc for f in frames], np.uint64)
    inside = go.functions.contains(pcs) if len(pcs) else np.zeros(0, np.bool_)
    if not inside.any():
        return frames
    out: list[NativeFrame] = []
    for number, frame in enumerate(frames):
        if not inside[number]:
            out.append(frame)
        elif not frame.inline:
            out += [replace(f, sp=frame.sp, guessed=False) for f in _of_place(go, frame.pc - 1, frame.sp)]
    return out
