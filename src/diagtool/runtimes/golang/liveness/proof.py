"""Which goroutines nobody can ever wake: marking from all that can still act.

What Go 1.26 and later do inside of the runtime for the goroutineleak profile, from outside and for all
versions. Roots are what the collector's are: data of modules, finalizers, what threads hold, and the
stacks of
goroutines that run, can run, or wait for something that is not judged (a timer, the network, the runtime).
A goroutine that waits on channels or locks is no root. It is a node of its own: whoever reaches one of the
things that it
waits on reaches it, and it reaches what its stack refers to. So one marking over the pointers of the heap
settles all of them, in whatever order they hang on each other. Who is not reached can't be woken.

Memory of C is looked at word by word, as are registers and what was interrupted: that may keep things alive
which nobody will use again. Where anything is missing, nothing is proven.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, Mask
from diagtool.capture.plan import is_anonymous
from diagtool.capture.room import headroom
from diagtool.capture.segments import both, merged, without
from diagtool.runtimes.golang.heap.edges import Scan, scan
from diagtool.runtimes.golang.heap.objects import Objects
from diagtool.runtimes.golang.heap.pointers import Masks
from diagtool.runtimes.golang.heap.roots import called_for_dead, data_words, specials_of
from diagtool.runtimes.golang.heap.spans import IN_USE, Spans, find_heap, read_spans
from diagtool.runtimes.golang.liveness.stacks import Stacks
from diagtool.runtimes.golang.liveness.threads import Held, held_by_threads
from diagtool.runtimes.golang.liveness.waiting import Waiting
from diagtool.runtimes.golang.model import GoRuntime, Status
from diagtool.runtimes.golang.pclntab import Functions
from diagtool.runtimes.native.fetching import fetch
from diagtool.runtimes.native.memorymap import Ranges, is_libc, private_memory
from diagtool.runtimes.native.reach import Edges, mark

__all__ = ["Proof", "prove"]

_Index = NDArray[np.int64]

_MOST_STACK = 1 << 30  # bytes of one goroutine's: runtime.maxstacksize
_EDGE = 96  # bytes of memory that an edge takes at most while it is looked at, with its part of the objects
_MOST_EDGES = 1 << 30
_STEP = 4 << 20
#: In these, a pointer may be in a vector register and nowhere else.
_MOVES = frozenset(
    {
        "runtime.memmove",
        "runtime.duffcopy",
        "runtime.asyncPreempt",
        "runtime.asyncPreempt2",
        "runtime.xRegSave",
        "runtime.xRegRestore",
    }
)
_MOST_FOREIGN = 4 << 30  # bytes of memory that is not Go's
_SHOWN = 0x7FFFFFFF


@dataclass(slots=True)
class Proof:
    """``stuck``: for each goroutine, whether nobody can wake it. ``why_not``: why nothing could be said,
    "" where it
    was. ``waiting``: what they wait on. ``judged``: how many there were to be judged."""

    stuck: Mask
    why_not: str = ""
    waiting: Waiting | None = None
    judged: int = 0
    objects: int = 0
    pointers: int = 0


class _Unknown(Exception):
    """Why nothing can be proven."""


def prove(
    runtime: GoRuntime, functions: Functions, waits: Sequence[str], waiting: Waiting, heap: int | None = None
) -> Proof:
    """Who is stuck of ``runtime.goroutines``; ``waits`` says in the words of ``golang.waits`` what each
    waits on,
    ``waiting`` on which things. ``heap``: where mheap_ is, if that is known already."""
    nobody = runtime.goroutines.status == Status.LEAKED
    if not waiting.judged.any():
        return Proof(nobody, "", waiting)
    try:
        marking = _Marking(runtime, functions, waiting, heap)
        proof = marking.run()
    except _Unknown as reason:
        return Proof(nobody, str(reason), waiting, int(waiting.judged.sum()))
    first = np.flatnonzero((runtime.goroutines.goid == 1) & proof.stuck)
    for row in first.tolist():
        # A main goroutine that waits for ever on purpose.
        proof.stuck[row] &= waits[row] != "select (no cases)"
    return proof


class _Marking:
    def __init__(self, runtime: GoRuntime, functions: Functions, waiting: Waiting, heap: int | None) -> None:
        self.runtime = runtime
        self.functions = functions
        self.memory = runtime.memory
        self.capture = runtime.capture
        self.waiting = waiting
        self.all = runtime.goroutines
        self.heap = find_heap(runtime) if heap is None else heap

    def run(self) -> Proof:
        spans, every = self._spans()
        self._all_there(every)
        held = held_by_threads(self.runtime, self.functions)
        self._sound(held)
        sweepgen = self.memory.u32(self.heap + self.runtime.o("mheap", "sweepgen"))
        self.objects = Objects(self.memory, spans, sweepgen, np.unique(self.waiting.thing))
        masks = Masks(self.runtime, self.heap, spans)
        room = min(max(headroom() // _EDGE, 1 << 20), _MOST_EDGES)
        found = scan(self.memory, self.objects, masks, self.waiting.hidden, room)
        if not found.complete:
            raise _Unknown(f"there are more than {room >> 20} million pointers in the heap")
        if found.missing and self.capture.kind == "core":
            raise _Unknown(f"{found.missing:,} bytes of the heap are not in the capture")
        # The rows of those that are judged, as nodes behind the objects.
        self.rows = np.flatnonzero(self.waiting.judged)
        nodes = len(self.objects) + len(self.rows)
        if nodes > _SHOWN:
            raise _Unknown("the heap has too many objects")
        marked = np.zeros(nodes, np.bool_)
        self._mark(marked, data_words(self.runtime))
        self._mark_specials(marked, spans, found)
        self._mark(marked, (held.words, 0))
        source, target = self._stacks(marked, held)
        self._mark_foreign(marked, every)
        edges = self._with_goroutines(marked, found.edges, source, target)
        reached = mark(marked, edges)
        if not reached.complete:
            raise _Unknown("the heap has lists that are too long to be followed")
        stuck = np.zeros(len(self.all), np.bool_)
        stuck[self.rows] = ~reached.reached[len(self.objects) :]
        self._agreed(stuck)
        return Proof(stuck, "", self.waiting, len(self.rows), len(self.objects), len(found.edges))

    # -- whether all is there ---------------------------------------------------------------------------

    def _spans(self) -> tuple[Spans, Spans]:
        if not self.heap:
            raise _Unknown("the heap of the Go runtime was not found")
        every, lost = read_spans(self.runtime, self.heap)
        if lost:
            raise _Unknown(f"{lost:,} parts of the heap could not be read")
        spans = every.take(np.flatnonzero(every.state == IN_USE))
        # What a g is is an object of the heap, and its stack is in a span of its own: so all of it was found.
        g = self.all
        if not _all_in(spans, g.address) or not _all_in(every, g.lo[g.lo != 0]):
            raise _Unknown("the heap of the Go runtime could not be read")
        return spans, every

    def _all_there(self, every: Spans) -> None:
        pairs = zip(every.base.tolist(), every.limit.tolist(), strict=True)
        mine = merged([*pairs, *(r for module in self.runtime.modules for r in module.ranges())])
        self._of_one_instant(mine, "the heap")

    # Nothing is read that was not copied: that would make doubtful all else that is said of this capture.
    def _of_one_instant(self, ranges: Ranges, what: str) -> None:
        capture = self.capture
        if capture.kind == "live" and not capture.image:
            left = both(ranges, merged([*capture.left_out, *capture.skipped]))
            if left:
                size = sum(end - start for start, end in left)
                raise _Unknown(
                    f"{-(-size >> 20):,} MiB of {what} were not copied in the stop; "
                    "--clone always reads all of it at one instant"
                )
            if any("could not be read in the stop" in warning for warning in capture.warnings):
                raise _Unknown("some of the memory could not be read in the stop")
            if capture.swapped:
                raise _Unknown("parts of the process are swapped out")
        if not capture.of_one_instant:
            raise _Unknown("memory was not read at one instant")
        fetched = fetch(capture, ranges)
        if fetched.missing:
            size = sum(end - start for start, end in fetched.missing)
            raise _Unknown(f"{-(-size >> 10):,} KiB of {what} could not be read")
        if fetched.late or not capture.of_one_instant:
            raise _Unknown(f"a part of {what} could only be read after the stop")

    def _sound(self, held: Held) -> None:
        if held.wrong:
            raise _Unknown(held.wrong)
        for place in held.places:
            function = self.functions.at(place)
            if function is not None and function.name.removesuffix(".abi0") in _MOVES:
                raise _Unknown("a thread was just moving memory: look again")
        every = self.all
        alive = ~np.isin(every.status, (Status.DEAD, Status.DEADEXTRA, Status.IDLE))
        high = every.hi - every.lo
        whole = (every.lo > 0) & (every.hi > every.lo) & (high <= _MOST_STACK)
        parked = ~np.isin(every.status, (Status.RUNNING, Status.SYSCALL, Status.COPYSTACK)) & ~every.scan
        inside = (every.sp >= every.lo) & (every.sp <= every.hi)
        wrong = alive & (~whole | (parked & ~inside))
        if wrong.any():
            raise _Unknown(f"the stacks of {int(wrong.sum()):,} goroutines are not where they should be")

    # -- roots ------------------------------------------------------------------------------------------

    def _mark(self, marked: Mask, found: tuple[U64, int]) -> None:
        words, missing = found
        if missing:
            raise _Unknown(f"{missing:,} bytes of data are not in the capture")
        near = words[self.objects.near(words)]
        number, ok = self.objects.nodes(near)
        marked[number[ok]] = True

    def _mark_specials(self, marked: Mask, spans: Spans, found: Scan) -> None:
        specials = specials_of(self.runtime, spans)
        if not specials.complete:
            raise _Unknown("the finalizers could not be read")
        self._mark(marked, (np.concatenate([specials.words, specials.weak]), 0))
        number, ok = self.objects.nodes(specials.reached_through)
        if ok.any():
            through = np.zeros(len(self.objects), np.bool_)
            through[number[ok]] = True
            marked[found.edges.target[through[found.edges.source]]] = True
        near = [np.zeros(0, np.uint64)]
        for module in self.runtime.modules:
            for low, high in module.ranges():
                for start in range(low & -8, high & -8, _STEP):
                    places = np.arange(start, min(high & -8, start + _STEP), 8, dtype=np.uint64)
                    words = self.memory.load(places)[0]
                    near.append(words[~self.objects.near(words)])
        self._mark(marked, (called_for_dead(self.runtime, np.concatenate(near)), 0))

    # Memory that is not Go's: nobody may keep pointers into Go's heap there, but some do.
    def _mark_foreign(self, marked: Mask, every: Spans) -> None:
        if not any(is_libc(m) for m in self.capture.modules) and not any(
            m.path == "[heap]" for m in self.capture.mappings
        ):
            return
        own = merged(r for module in self.runtime.modules for r in module.ranges())
        ranges = without(private_memory(self.capture.mappings), merged([*own, *self._of_runtime(every)]))
        self._of_one_instant(ranges, "the memory outside of Go's heap")
        if sum(high - low for low, high in ranges) > _MOST_FOREIGN:
            raise _Unknown("there is too much memory outside of Go's heap")
        for _, words in self.memory.blocks(ranges, step=_STEP):
            self._mark(marked, (words, 0))

    # Mappings with arenas, and with what the runtime notes about them: spans know the address of their first
    # object, which keeps nothing alive.
    def _of_runtime(self, every: Spans) -> Ranges:
        mappings = [
            m for m in self.capture.mappings if is_anonymous(m) and m.path not in ("[heap]", "[stack]")
        ]
        starts = np.array([m.start for m in mappings], np.uint64)
        ends = np.array([m.end for m in mappings], np.uint64)
        if not len(starts):
            return []
        addresses = np.concatenate([every.base, every.address, every.bits[every.bits != 0]])
        at = np.searchsorted(starts, addresses, side="right") - 1
        good = (at >= 0) & (addresses < ends[np.maximum(at, 0)])
        found = np.unique(at[good])
        arenas = [(low, high) for low, high in zip(every.base.tolist(), every.limit.tolist(), strict=True)]
        named = [(m.start, m.end) for m in mappings if m.path.startswith("[anon: Go")]
        return merged([*((mappings[i].start, mappings[i].end) for i in found.tolist()), *arenas, *named])

    # -- goroutines -------------------------------------------------------------------------------------

    def _stacks(self, marked: Mask, held: Held) -> tuple[_Index, _Index]:
        """Mark what the stacks of those refer to that are not judged; of the others the pointers:
        (node, object)."""
        more = len(held.frames)
        judged = np.append(self.waiting.judged, np.zeros(more, np.bool_))
        node = np.zeros(len(judged), np.int64)
        node[self.rows] = len(self.objects) + np.arange(len(self.rows))
        sources, targets = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for part in Stacks(self.runtime, self.functions, held.pointers, held.frames).words():
            if part.missing:
                raise _Unknown("stacks of goroutines are not in the capture")
            near = np.flatnonzero(self.objects.near(part.words))
            number, there = self.objects.nodes(part.words[near])
            owner, number = part.row[near][there], number[there]
            mine = judged[owner]
            marked[number[~mine]] = True
            sources.append(node[owner[mine]])
            targets.append(number[mine])
        return np.concatenate(sources), np.concatenate(targets)

    def _with_goroutines(self, marked: Mask, edges: Edges, source: _Index, target: _Index) -> Edges:
        """The pointers of the heap, with an edge from each thing to who waits on it, and from them to what
        their
        stacks refer to. Who waits on what is no object of the heap is marked: anybody may know that."""
        node = np.full(len(self.all), -1, np.int64)
        node[self.rows] = len(self.objects) + np.arange(len(self.rows))
        waiter = node[self.waiting.row]
        thing, there = self.objects.nodes(self.waiting.thing)
        judged = waiter >= 0
        marked[waiter[judged & ~there]] = True
        keep = judged & there
        order = np.argsort(thing[keep], kind="stable")
        new_source, new_target = thing[keep][order].astype(np.int32), waiter[keep][order].astype(np.int32)
        place = np.searchsorted(edges.source, new_source, side="right")
        order = np.argsort(source, kind="stable")
        none = np.zeros(len(new_source), np.int32)
        last = np.zeros(len(source), np.int32)
        return Edges(
            np.concatenate([np.insert(edges.source, place, new_source), source[order].astype(np.int32)]),
            np.concatenate([np.insert(edges.target, place, new_target), target[order].astype(np.int32)]),
            np.concatenate([np.insert(edges.offset, place, none), last]),
        )

    # What the runtime itself found out stays so: such a goroutine can't run again.
    def _agreed(self, stuck: Mask) -> None:
        stuck |= self.all.status == Status.LEAKED


def _all_in(spans: Spans, addresses: U64) -> bool:
    if not len(spans):
        return not len(addresses)
    at = np.searchsorted(spans.base, addresses, side="right") - 1
    return bool(((at >= 0) & (addresses < spans.limit[np.maximum(at, 0)])).all())
