"""What the stacks of goroutines refer to: by the compiler's own maps where they hold, else word by word.

All stacks go outward together, one frame a step, and in each step those that are at one place together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, Mask
from diagtool.runtimes.golang.liveness.stackmaps import StackMaps
from diagtool.runtimes.golang.model import GoRuntime, Status
from diagtool.runtimes.golang.pclntab import Functions

__all__ = ["StackWords", "Stacks"]

_Index = NDArray[np.int64]

_BELOW = 128  # bytes below the stack pointer of what was interrupted
_AT_ONCE = 1 << 14  # stacks
_WORDS_AT_ONCE = 1 << 21  # of stacks that are looked at as a whole
_MOST_FRAMES = 1 << 20
_MOST_DEFERRED = 1 << 20  # of one goroutine
_MOST_REGISTERS = 4096  # bytes of extended registers


@dataclass(slots=True)
class StackWords:
    """``words`` that stacks refer with, and whose (``row`` of the goroutines). ``missing``: some could not be
    read."""

    row: _Index
    words: U64
    missing: bool = False


class _Found:
    """Words of stacks, and variables that are only needed if something points to them."""

    def __init__(self, runtime: GoRuntime) -> None:
        self.memory = runtime.memory
        self.rows: list[_Index] = [np.zeros(0, np.int64)]
        self.words: list[U64] = [np.zeros(0, np.uint64)]
        self.objects: list[tuple[_Index, U64, U64]] = []
        self.missing = False

    def slots(self, row: _Index, addresses: U64) -> None:
        values, ok = self.memory.load(addresses)
        self.missing |= not ok.all()
        self.rows.append(row)
        self.words.append(values)

    def ranges(self, row: _Index, low: U64, high: U64) -> None:
        low, high = low & np.uint64((1 << 64) - 8), high & np.uint64((1 << 64) - 8)
        counts = np.where(high > low, (high - low) >> np.uint64(3), 0).astype(np.int64)
        cuts = np.flatnonzero(np.diff(np.cumsum(counts) // _WORDS_AT_ONCE)) + 1
        for part in np.split(np.arange(len(row)), cuts):
            many = counts[part]
            owner = np.repeat(part, many)
            inner = np.arange(len(owner)) - np.repeat(np.cumsum(many) - many, many)
            self.slots(row[owner], low[owner] + (inner * 8).astype(np.uint64))


class Stacks:
    """The stacks of all goroutines that are alive, and those of threads, as rows behind them.

    ``pointers``: the stack pointers of threads, and where these are in the code, for those that are on a
    goroutine's stack. ``threads``: n x (pc, sp, low, high) of those on stacks of the runtime.
    """

    def __init__(
        self, runtime: GoRuntime, functions: Functions, pointers: dict[int, int], threads: U64
    ) -> None:
        self.runtime = runtime
        self.all = runtime.goroutines
        self.maps = StackMaps(runtime, functions)
        g = self.all
        alive = ~np.isin(g.status, (Status.DEAD, Status.DEADEXTRA, Status.IDLE)) & (g.lo > 0)
        self.pc, self.sp = g.pc.copy(), g.sp.copy()
        called = (g.status == Status.SYSCALL) & (g.syscall_sp >= g.lo) & (g.syscall_sp < g.hi)
        self.pc[called], self.sp[called] = g.syscall_pc[called], g.syscall_sp[called]
        self.exact = np.zeros(len(g), np.bool_)
        loose = np.isin(g.status, (Status.RUNNING, Status.COPYSTACK)) | (g.status == Status.SYSCALL) & ~called
        self._find_running(loose, pointers)
        loose &= ~self.exact
        panics = runtime.load(g.address, "g", "_panic")[0] != 0
        self.whole = alive & (loose | g.scan)
        self.above = alive & panics & ~self.whole  # from the stack pointer on
        framed = alive & ~self.whole & ~self.above
        more = len(threads)
        self.rows = np.flatnonzero(self.whole | self.above | framed)
        self.own = len(g)
        self.lo, self.hi = np.append(g.lo, threads[:, 2]), np.append(g.hi, threads[:, 3])
        self.pc, self.sp = np.append(self.pc, threads[:, 0]), np.append(self.sp, threads[:, 1])
        self.exact = np.append(self.exact, np.ones(more, np.bool_))
        self.framed = np.append(framed, np.ones(more, np.bool_))
        self.whole = np.append(self.whole, np.zeros(more, np.bool_))
        self.above = np.append(self.above, np.zeros(more, np.bool_))
        self.rows = np.append(self.rows, np.arange(len(g), len(g) + more))

    # Those that run, on their own stack: where their threads are.
    def _find_running(self, loose: Mask, pointers: dict[int, int]) -> None:
        rows = np.flatnonzero(loose & (self.all.status == Status.RUNNING) & ~self.all.scan)
        for row in rows.tolist():
            low, high = int(self.all.lo[row]), int(self.all.hi[row])
            found = [(sp, pc) for sp, pc in pointers.items() if low <= sp < high]
            if len(found) == 1:
                self.sp[row], self.pc[row] = found[0]
                self.exact[row] = True

    def words(self) -> list[StackWords]:
        """What they refer to, in parts."""
        return [self._of(self.rows[at : at + _AT_ONCE]) for at in range(0, len(self.rows), _AT_ONCE)]

    def _of(self, rows: _Index) -> StackWords:
        found = _Found(self.runtime)
        whole = rows[self.whole[rows]]
        found.ranges(whole, self.lo[whole], self.hi[whole])
        above = rows[self.above[rows]]
        found.ranges(above, self.sp[above], self.hi[above])
        self._frames(rows[self.framed[rows]], found)
        rows = rows[rows < self.own]
        self._deferred(rows, found)
        self._registers(rows, found)
        self._variables(found)
        return StackWords(np.concatenate(found.rows), np.concatenate(found.words), found.missing)

    def _frames(self, rows: _Index, found: _Found) -> None:
        pc, sp = self.pc[rows], self.sp[rows]
        blind = np.where(self.exact[rows], 2, 0)
        first = np.ones(len(rows), np.bool_)
        for step in range(_MOST_FRAMES):
            if not len(rows):
                return
            distinct, inverse = np.unique(pc, return_inverse=True)
            maps = [self.maps.at(place, not step) for place in distinct.tolist()]
            size = np.array([m.size for m in maps], np.int64)[inverse]
            lost = (size < 0) | (sp < self.lo[rows]) | (sp >= self.hi[rows])
            begins = np.where(first & self.exact[rows], sp - np.uint64(_BELOW), sp)
            caller = sp + size.astype(np.uint64) + np.uint64(8)
            lost |= caller > self.hi[rows]
            found.ranges(rows[lost], np.maximum(begins[lost], self.lo[rows[lost]]), self.hi[rows[lost]])
            blind = np.maximum(blind, np.array([m.blind for m in maps], np.int64)[inverse])
            arguments = np.array([m.arguments for m in maps], np.uint64)[inverse]
            some = ~lost & (blind > 0)
            ends = np.minimum(caller + arguments, self.hi[rows])
            found.ranges(rows[some], np.maximum(begins[some], self.lo[rows[some]]), ends[some])
            for number in np.unique(inverse[~lost & (blind == 0)]).tolist():
                alike = np.flatnonzero((inverse == number) & ~lost & (blind == 0))
                self._mapped(found, rows[alike], caller[alike], maps[number])
            top = np.array([m.top for m in maps], np.bool_)[inverse]
            rest = np.flatnonzero(~lost & ~top & (caller < self.hi[rows]))
            back, ok = self.runtime.memory.load(caller[rest] - np.uint64(8))
            found.missing |= not ok.all()
            rest, back = rest[back != 0], back[back != 0]
            rows, pc, sp = rows[rest], back, caller[rest]
            blind = np.maximum(blind[rest] - 1, 0)
            first = np.zeros(len(rows), np.bool_)
        found.ranges(rows, sp, self.hi[rows])

    @staticmethod
    def _mapped(found: _Found, rows: _Index, caller: U64, known: object) -> None:
        slots, objects = known.slots, known.objects  # type: ignore[attr-defined]
        if len(slots):
            places = caller[:, None] + slots.astype(np.uint64)[None, :]
            found.slots(np.repeat(rows, len(slots)), places.reshape(-1))
        for offset, size in objects.tolist():
            low = caller + np.array(offset, np.int64).astype(np.uint64)
            found.objects.append((rows, low, low + np.uint64(max(size, 0))))

    # Functions that are called when a frame ends: what they are to be called with, on the stack or the heap.
    def _deferred(self, rows: _Index, found: _Found) -> None:
        at = self.runtime.load(self.all.address[rows], "g", "_defer")[0]
        for _ in range(_MOST_DEFERRED):
            rows, at = rows[at != 0], at[at != 0]
            if not len(rows):
                return
            function, ok = self.runtime.load(at, "_defer", "fn")
            found.missing |= not ok.all()
            found.rows += [rows, rows]
            found.words += [at, function]
            at = self.runtime.load(at, "_defer", "link")[0]
        found.missing = True

    # Vector registers of what was preempted, from 1.26 on.
    def _registers(self, rows: _Index, found: _Found) -> None:
        if not self.runtime.has("g", "xRegs"):
            return
        stopped = self.runtime.load(self.all.address[rows], "g", "asyncSafePoint", "u1")[0] != 0
        rows = rows[stopped]
        at = self.runtime.load(self.all.address[rows], "g", "xRegs")[0]
        for row, place in zip(rows.tolist(), at.tolist(), strict=True):
            data = self.runtime.memory.try_read(place, _MOST_REGISTERS // 2) if place else None
            if data:
                found.rows.append(np.full(len(data) // 8, row, np.int64))
                found.words.append(np.frombuffer(data, "<u8"))

    # Variables that something points to are looked at word by word, and so on.
    def _variables(self, found: _Found) -> None:
        if not found.objects:
            return
        row = np.concatenate([o[0] for o in found.objects])
        low = np.concatenate([o[1] for o in found.objects])
        high = np.concatenate([o[2] for o in found.objects])
        order = np.argsort(low, kind="stable")
        row, low, high = row[order], low[order], high[order]
        left = np.ones(len(low), np.bool_)
        done = 0
        while done < len(found.words):
            words = np.concatenate(found.words[done:])
            done = len(found.words)
            at = np.searchsorted(low, words, side="right") - 1
            inside = (at >= 0) & (words < high[np.maximum(at, 0)])
            fresh = np.unique(at[inside])
            fresh = fresh[left[fresh]]
            if not len(fresh):
                return
            left[fresh] = False
            found.ranges(row[fresh], low[fresh], high[fresh])
