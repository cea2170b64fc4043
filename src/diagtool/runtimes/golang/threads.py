"""Frames of threads that run Go code: by Go's own function tables, which stripped programs have, too.

A thread in C that Go called keeps the frames that were unwound there, up to where Go begins; those of Go get
their names from its tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from diagtool.runtimes.golang.decode import DecodedGo
from diagtool.runtimes.golang.starts import registers_of
from diagtool.runtimes.golang.unwind import Starts, unwind
from diagtool.runtimes.native.stacks.model import NativeFrame, NativeStacks

__all__ = ["with_go_frames"]

_REACH = 8 << 20  # bytes above the stack pointer in which frames may lie: a goroutine's stack may be large
_TOP = 1 << 47


def with_go_frames(go: DecodedGo, stacks: NativeStacks) -> NativeStacks:
    """``stacks`` with the threads that are in Go's code unwound, and named, by its tables."""
    frames: dict[int, Sequence[NativeFrame]] = dict(stacks.frames)
    cut = dict(stacks.cut)
    own = _in_go(go)
    for tid in own:
        cut.pop(tid, None)
    frames.update(own)
    for tid, native in stacks.frames.items():
        if tid not in own:
            named = _named(go, native)
            if named is not native and tid in cut:
                cut.pop(tid)  # what lies outside of Go's entry to C is the goroutine's
            frames[tid] = named
    order = {thread.tid: number for number, thread in enumerate(go.runtime.capture.threads)}
    ordered: Mapping[int, Sequence[NativeFrame]] = dict(
        sorted(frames.items(), key=lambda i: order.get(i[0], 0))
    )
    return NativeStacks(ordered, cut, stacks.warnings)


def _in_go(go: DecodedGo) -> dict[int, list[NativeFrame]]:
    threads = [t for t in go.runtime.capture.threads if registers_of(t)[0]]
    at = np.array([registers_of(t) for t in threads], np.uint64).reshape(-1, 3)
    inside = np.flatnonzero(go.functions.contains(at[:, 0]))
    if not len(inside):
        return {}
    pc, sp, lr = (np.ascontiguousarray(at[inside, i]) for i in range(3))
    hi = np.minimum(sp + np.uint64(_REACH), np.uint64(_TOP))
    trie = unwind(go.runtime, go.functions, Starts(pc, sp, lr, sp.copy(), hi, np.ones(len(pc), np.bool_)))
    out = {}
    for number, i in enumerate(inside.tolist()):
        found: list[NativeFrame] = []
        node = int(trie.leaf[number])
        while node:
            found += _of_place(go, trie.place[node], int(sp[number]))
            node = trie.parent[node]
        out[threads[i].tid] = found
    return out


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
