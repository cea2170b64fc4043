"""Stacks of goroutines: all of them together, one frame outward at a time.

A step is a look-up of the distinct addresses, a gather of return addresses, and arithmetic. What comes of it
is a trie of places: equal stacks end in the same node, so names are looked up once a node and not once a
goroutine. The rules are those of runtime/traceback.go: where a frame ends is in the function's table; on
arm64 the return address of the innermost function may still be in a register; a function that a signal
called was interrupted, not calling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.golang.model import GoRuntime
from diagtool.runtimes.golang.pclntab import SP_WRITE, TOP_FRAME, Function, Functions

__all__ = ["MOST_FRAMES", "Starts", "Trie", "unwind"]

MOST_FRAMES = 4096  # of one goroutine; what lies further out is left out

#: Frames of all goroutines together: 20 of a million of them.
_MOST_PLACES = 20_000_000

_Ints = NDArray[np.int64]
_UNKNOWN, _TOP, _STUCK = -1, -2, -3  # frame sizes that are none: no function; outermost; can't be unwound
_SIGNAL_FRAME = 16  # bytes on arm64 where a call was injected: the link register, aligned


@dataclass(slots=True)
class Starts:
    """Where to begin, a row a stack: pc, sp, lr (arm64; 0: not known), and the ends of the stack.

    ``exact``: pc is where it was interrupted, not a return address.
    """

    pc: U64
    sp: U64
    lr: U64
    lo: U64
    hi: U64
    exact: NDArray[np.bool_]


@dataclass(slots=True)
class Trie:
    """Places by node. Node 0 is nothing; ``place[i]`` is an address in the code, ``parent[i]`` who called it.

    ``leaf``: a node for each stack. ``cut``: the stacks whose outermost frames are missing.
    """

    parent: list[int]
    place: list[int]
    leaf: _Ints
    cut: NDArray[np.bool_]


class _Known:
    """What is known of each address that was met: frame size or why there is none, place, kind."""

    def __init__(self, functions: Functions) -> None:
        self._functions = functions
        self._sizes: dict[int, tuple[int, int, bool]] = {}
        self._cgocallback = functions.id_of("cgocallback")
        self._injected = {functions.id_of(n) for n in ("sigpanic", "asyncPreempt", "debugCallV2")} - {-1}

    def of(self, pcs: U64) -> tuple[_Ints, U64, NDArray[np.bool_]]:
        """For each address: bytes of its frame (or _UNKNOWN …), its function's entry, whether injected."""
        distinct, inverse = np.unique(pcs, return_inverse=True)
        found = [self._one(pc) for pc in distinct.tolist()]
        sizes = np.array([f[0] for f in found], np.int64)
        entries = np.array([f[1] for f in found], np.uint64)
        injected = np.array([f[2] for f in found], np.bool_)
        return sizes[inverse], entries[inverse], injected[inverse]

    def _one(self, pc: int) -> tuple[int, int, bool]:
        known = self._sizes.get(pc)
        if known is None:
            function = self._functions.at(pc)
            known = (_UNKNOWN, 0, False) if function is None else self._of_function(function, pc)
            self._sizes[pc] = known
        return known

    def _of_function(self, function: Function, pc: int) -> tuple[int, int, bool]:
        injected = function.id in self._injected
        if function.flag & TOP_FRAME:
            return _TOP, function.entry, injected
        # cgocallback writes to sp, too, but so that both of its stacks look right at any time.
        if function.flag & SP_WRITE and function.id != self._cgocallback:
            return _STUCK, function.entry, injected
        size = self._functions.frame_size(function, pc)
        return (size if size >= 0 else _STUCK), function.entry, injected

    def size_despite(self, pc: int) -> int:
        """The frame of a function that writes to sp, for a place where it is known that it did not yet."""
        function = self._functions.at(pc)
        return _STUCK if function is None else self._functions.frame_size(function, pc)


def unwind(runtime: GoRuntime, functions: Functions, starts: Starts, most: int = MOST_FRAMES) -> Trie:
    """The stacks that begin at ``starts``. What can't be read ends a stack, which is then cut."""
    known = _Known(functions)
    link_register = runtime.machine == "aarch64"
    count = len(starts.pc)
    cut = np.zeros(count, np.bool_)
    steps: list[tuple[_Ints, U64]] = []
    rows = np.flatnonzero(starts.pc != 0).astype(np.int64)
    pc, sp, lr, exact = starts.pc[rows], starts.sp[rows], starts.lr[rows], starts.exact[rows]
    places = 0
    while len(rows) and len(steps) < most and places < _MOST_PLACES:
        places += len(rows)
        size, entry, injected = known.of(pc)
        first = not steps
        if first:
            _allow_innermost(known, pc, size)
        there = size != _UNKNOWN
        cut[rows[~there]] = True
        place = np.where(exact | (pc <= entry), pc, pc - np.uint64(1))
        steps.append((rows[there], place[there]))
        going = size >= 0
        cut[rows[there & (size == _STUCK)]] = True
        rows, pc, sp, lr, injected = rows[going], pc[going], sp[going], lr[going], injected[going]
        depth = size[going].astype(np.uint64)
        top = sp + depth if link_register else sp + depth + np.uint64(8)
        good = (sp >= starts.lo[rows]) & (top <= starts.hi[rows]) & (top >= sp)
        back, ok = _return_addresses(runtime, link_register, first, sp, depth, lr)
        good &= ok & (back != 0)
        cut[rows[~good]] = True
        rows, pc, sp, injected = rows[good], back[good], top[good], injected[good]
        lr, exact = np.zeros(len(rows), np.uint64), injected
        if link_register and injected.any():
            at = np.flatnonzero(injected)
            saved, fine = runtime.memory.load(sp[at])
            lr[at] = np.where(fine, saved, 0)
            sp[at] += np.uint64(_SIGNAL_FRAME)
    cut[rows] = True
    return _trie(count, steps, cut)


# What a parked goroutine's innermost function did to sp is known to its table, whatever it does later.
def _allow_innermost(known: _Known, pc: U64, size: _Ints) -> None:
    for i in np.flatnonzero(size == _STUCK).tolist():
        size[i] = known.size_despite(int(pc[i]))
        if size[i] < 0:
            size[i] = _STUCK


def _return_addresses(
    runtime: GoRuntime, link_register: bool, first: bool, sp: U64, size: U64, lr: U64
) -> tuple[U64, NDArray[np.bool_]]:
    if not link_register:
        return runtime.memory.load(sp + size)
    back, ok = runtime.memory.load(sp)
    in_register = (lr != 0) & (size == 0)
    return np.where(in_register, lr, back), ok | in_register


def _trie(count: int, steps: list[tuple[_Ints, U64]], cut: NDArray[np.bool_]) -> Trie:
    """Nodes from the outermost places inward, those at the same distance from the outermost together."""
    every = np.unique(np.concatenate([p for _, p in steps])) if steps else np.zeros(0, np.uint64)
    depth = np.zeros(count, np.int64)
    for rows, _ in steps:
        depth[rows] += 1
    first = np.cumsum(depth) - depth
    number = np.zeros(int(depth.sum()), np.int32)  # of places, each stack from its outermost on
    for step, (rows, place) in enumerate(steps):
        number[first[rows] + depth[rows] - 1 - step] = np.searchsorted(every, place)
    node = np.zeros(count, np.int64)
    parents, places = [0], [0]
    rows = np.argsort(-depth, kind="stable")
    texts = every.tolist()
    for level in range(int(depth.max(initial=0))):
        rows = rows[: int(np.searchsorted(-depth[rows], -level))]
        key = node[rows] << 32 | number[first[rows] + level]
        distinct, inverse = np.unique(key, return_inverse=True)
        node[rows] = inverse + len(parents)
        parents += (distinct >> 32).tolist()
        places += [texts[i] for i in (distinct & 0xFFFFFFFF).tolist()]
    return Trie(parents, places, node, cut)
