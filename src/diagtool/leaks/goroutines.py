"""What a snapshot tells of goroutines besides where each of them is: who minds whom, who comes and goes.

A goroutine has no name and, in text, nothing that it waits on. But Go 1.21 and later say who made it, and
from frames it can be told whether that one still is in the function that did.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.leaks.own import is_own
from diagtool.leaks.pattern import FrameIndex
from diagtool.snapshot.model import KIND, STATE, Snapshot

__all__ = ["at_work", "attended", "passers"]

#: Waits that end by themselves, or by somebody outside of the process.
_AWAKE = frozenset({"IO wait", "sleep", "syscall", "cgo call", "waiting for cgo callback"})
#: Goroutines that one may have made by one go statement, and still mean to tell each of them something.
MOST_MINDED = 16
#: Stacks whose frames are looked at for a group; of more the first.
_MOST_LOOKED_AT = 1_000


def awake(snapshot: Snapshot) -> NDArray[np.bool_]:
    """Goroutines that run, may run, or wait for what comes from outside: they may still wake others."""
    s = snapshot.stacks
    waits = np.array([w in _AWAKE for w in snapshot.waits], np.bool_)
    on = np.isin(s.state, (STATE["running"], STATE["ready"])) | waits[s.wait]
    return np.asarray(on & (s.kind == KIND["goroutine"]), np.bool_)


def at_work(snapshot: Snapshot, frames: FrameIndex) -> int:
    """How many goroutines are awake in the program's own code, but for who takes the dump.

    Of those that run in a dump the one that takes it can't be told from others: one is left out. A process
    that is looked at from outside has none.
    """
    s = snapshot.stacks
    own = np.array([is_own(f) for f in snapshot.traces.frames] + [False], np.bool_)
    on = awake(snapshot) & frames.spread(own)[s.trace]
    taken_inside = snapshot.target.kind == "evidence" and bool((on & (s.state == STATE["running"])).any())
    return int(on.sum()) - taken_inside


def attended(snapshot: Snapshot, frames: FrameIndex) -> NDArray[np.bool_]:
    """Which stacks somebody minds, as far as it is known.

    A goroutine and its maker mind each other while the maker is in the function that made it: it may wait for
    the goroutine, or mean to tell it something. Who is bound so to one that is awake, over any number of
    others, is attended. Of one that is awake and whose maker has ended, anybody may be who is in the function
    that made it. Who makes more than MOST_MINDED by one statement minds none of them, as the loop of a server
    that accepts. Nobody is attended where the source doesn't say who made a goroutine.
    """
    s = snapshot.stacks
    size = len(s)
    known = (s.kind == KIND["goroutine"]) & (s.parent != 0) & (s.address != 0) & (s.created_by > 0)
    if not known.any():
        return np.zeros(size, np.bool_)
    # Rows in four bytes: of a million goroutines these columns are what takes most memory.
    rows = np.flatnonzero((s.kind == KIND["goroutine"]) & (s.address != 0)).astype(np.int32)
    order = rows[np.argsort(s.address[rows], kind="stable")]
    numbers = s.address[order]
    children = np.flatnonzero(known).astype(np.int32)
    parents = s.parent[children]
    at = np.searchsorted(numbers, parents).astype(np.int32)
    np.minimum(at, len(order) - 1, out=at)
    found = numbers[at] == parents
    children, makers = children[found], order[at[found]]
    del rows, order, numbers, parents, at, found
    there = _still_in(snapshot, frames, s.created_by[children], s.trace[makers])
    # A forest: each goroutine has one maker. Doubling finds the root of each tree; a circle, which only a
    # damaged snapshot has, ends somewhere in itself.
    up = awake(snapshot)
    many = there & (_of_one_statement(makers, s.created_by[children], there) > MOST_MINDED)
    up[makers[many & up[children]]] = True  # it may wait for them all
    there &= ~many
    root = np.arange(size, dtype=np.int32)
    root[children[there]] = makers[there]
    for _ in range(size.bit_length()):
        further = root[root]
        if np.array_equal(further, root):
            break
        root = further
    alone = known & awake(snapshot)
    alone[children] = False
    up = up | _in_functions_that_made(snapshot, frames, s.created_by[alone])
    return np.asarray((np.bincount(root[up], minlength=size) > 0)[root], np.bool_)


def _of_one_statement(
    makers: NDArray[np.int32], statements: NDArray[np.int32], there: NDArray[np.bool_]
) -> NDArray[np.intp]:
    """Of each goroutine how many its maker made by the same statement, that are ``there``."""
    key = makers.astype(np.int64) << 32 | statements.astype(np.int64)
    _, of = np.unique(key, return_inverse=True)
    of = of.reshape(-1).astype(np.int32)
    return np.bincount(of[there], minlength=int(of.max(initial=0)) + 1)[of]


def _in_functions_that_made(
    snapshot: Snapshot, frames: FrameIndex, made: NDArray[np.int32]
) -> NDArray[np.bool_]:
    """Which stacks are in a function with one of these go statements."""
    all_frames = snapshot.traces.frames
    makers = {all_frames[i].function for trace in np.unique(made).tolist() for i in frames.ids(trace)[:1]}
    marked = np.array([is_own(f) and f.function in makers for f in all_frames] + [False], np.bool_)
    return np.asarray(frames.spread(marked)[snapshot.stacks.trace], np.bool_)


def _still_in(
    snapshot: Snapshot, frames: FrameIndex, made: NDArray[np.int32], traces: NDArray[np.int32]
) -> NDArray[np.bool_]:
    """For each pair of a go statement and the stack of who made it: whether its function is still there."""
    all_frames = snapshot.traces.frames
    pairs, inverse = np.unique(made.astype(np.int64) << 32 | traces, return_inverse=True)
    functions: dict[int, set[str]] = {}
    held = np.zeros(len(pairs), np.bool_)
    for i, (statement, trace) in enumerate((pair >> 32, pair & 0xFFFFFFFF) for pair in pairs.tolist()):
        if trace not in functions:
            functions[trace] = {all_frames[f].function for f in frames.ids(trace)}
        held[i] = any(all_frames[f].function in functions[trace] for f in frames.ids(statement)[:1])
    return np.asarray(held[inverse.reshape(-1)], np.bool_)


def passers(snapshot: Snapshot, frames: FrameIndex, rows: NDArray[np.intp]) -> int:
    """How many goroutines are awake in the function in which ``rows`` wait, or in one of the same type.

    Where goroutines come and go, whoever waits will get on. Methods of one type share its locks.
    """
    s, all_frames = snapshot.stacks, snapshot.traces.frames
    places: set[str] = set()
    for trace in np.unique(s.trace[rows[:_MOST_LOOKED_AT]]).tolist():
        own = next((all_frames[i] for i in frames.ids(trace) if is_own(all_frames[i])), None)
        if own is not None:
            places.add(_type_of(own.function))
    marked = np.array([_type_of(f.function) in places for f in all_frames] + [False], np.bool_)
    on = awake(snapshot) & frames.spread(marked)[s.trace]
    on[rows] = False
    return int(on.sum())


def _type_of(function: str) -> str:
    """``main.(*account)`` of ``main.(*account).deposit.func1``; a plain function without its closures."""
    head, star, rest = function.partition("(*")
    if star:
        return head + star + rest.partition(")")[0]
    return function.partition(".func")[0]
