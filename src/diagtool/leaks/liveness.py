"""Which stacks are stuck: nothing that can still run can wake them, as far as the snapshot's facts go.

A shallow form of the idea of GOLF (the Go runtime's leak profile): assume that every waiting stack is stuck
whose thing is referenced by waiting frames only, then take back who depends on one that is not stuck, until
nothing changes. A stack depends on the stacks it awaits, and on those whose frames hold what it waits on.
What the decoder says (``StackTable.stuck``, from all references that there are) is not taken back.

Every doubt makes a stack not stuck: an unknown reference count, a timer that will end the wait, a child of
which nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from diagtool.snapshot.model import STATE, Snapshot, Thing

#: Steps from stack to stack that are followed; whoever depends on more than that is taken as not stuck.
MAX_STEPS = 10_000

#: Holders of one thing that are looked at; a thing with more is taken as reachable.
MAX_HOLDERS = 1_000

_WAITING = (STATE["waiting"], STATE["cancelling"])


def stuck_stacks(snapshot: Snapshot, timed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A flag for each stack. ``timed``: stacks that a timer will wake or cancel."""
    s = snapshot.stacks
    n = len(s)
    told = s.stuck == 1  # by the decoder, which saw every reference
    waiting = np.isin(s.state, _WAITING) & ~timed
    dependent, dependency, children = _edges(snapshot, n)
    stuck = _closed_things(snapshot.things)[_in_range(s.thing, len(snapshot.things))]
    stuck &= s.thing >= 0
    parents = np.zeros(n, np.bool_)
    parents[dependent[:children]] = True
    pending = np.zeros(n, np.bool_)  # parents of which one child is not done
    undone = s.state[dependency[:children]] != STATE["done"]
    pending[dependent[:children][undone]] = True
    stuck = np.where(parents, pending, stuck) & waiting
    done = np.zeros(len(dependent), np.bool_)
    done[:children] = ~undone
    counts = ~done & ~told[dependent]
    return _take_back(stuck | told, dependent[counts], dependency[counts])


def _in_range(things: NDArray[np.int32], size: int) -> NDArray[np.intp]:
    """Indices that are safe to use; a stack without thing points behind the end."""
    return np.where((things >= 0) & (things < size), things, size).astype(np.intp)


def _closed_things(things: list[Thing]) -> NDArray[np.bool_]:
    """For every thing whether all its references are from waiting frames or known holders; one False more."""
    closed = np.zeros(len(things) + 1, np.bool_)
    for i, thing in enumerate(things):
        holders = thing.state.get("holders")
        known = isinstance(holders, list) and len(holders) <= MAX_HOLDERS
        closed[i] = thing.exclusive is True or (known and thing.state.get("unaccounted") == 0)
    return closed


def _edges(snapshot: Snapshot, n: int) -> tuple[NDArray[np.intp], NDArray[np.intp], int]:
    """Rows (dependent, dependency): first those of the await graph, then those of holders; and how many of
    the first kind there are."""
    awaits = snapshot.awaits.reshape(-1, 2).astype(np.intp)
    awaits = awaits[((awaits >= 0) & (awaits < n)).all(axis=1)]
    dependents, dependencies = [awaits[:, 0]], [awaits[:, 1]]
    by_thing = np.argsort(snapshot.stacks.thing, kind="stable")
    starts = np.searchsorted(snapshot.stacks.thing[by_thing], np.arange(len(snapshot.things) + 1))
    for i, thing in enumerate(snapshot.things):
        holders = thing.state.get("holders")
        if isinstance(holders, list) and holders:
            rows = by_thing[starts[i] : starts[i + 1]]
            held = np.array([h for h in holders[:MAX_HOLDERS] if isinstance(h, int) and 0 <= h < n], np.intp)
            dependents.append(np.repeat(rows, len(held)))
            dependencies.append(np.tile(held, len(rows)))
    return np.concatenate(dependents), np.concatenate(dependencies), len(awaits)


def _take_back(
    stuck: NDArray[np.bool_], dependent: NDArray[np.intp], dependency: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """``stuck`` without those that depend, over any number of steps, on one that is not stuck."""
    order = np.argsort(dependency, kind="stable")
    dependent, dependency = dependent[order], dependency[order]
    starts = np.searchsorted(dependency, np.arange(len(stuck) + 1))
    stuck = stuck.copy()
    frontier = np.flatnonzero(~stuck)
    for _ in range(MAX_STEPS):
        reached = dependent[_slices(starts[frontier], starts[frontier + 1])]
        frontier = np.unique(reached[stuck[reached]])
        if not len(frontier):
            return stuck
        stuck[frontier] = False
    return np.zeros_like(stuck)


def _slices(starts: NDArray[np.intp], ends: NDArray[np.intp]) -> NDArray[np.intp]:
    """All indices of several ranges, one after the other."""
    lengths = ends - starts
    total = int(lengths.sum())
    if not total:
        return np.zeros(0, np.intp)
    offsets = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    return offsets + np.arange(total)


def cycles(successor: dict[int, int]) -> set[int]:
    """The nodes that lie on a cycle of a graph where every node has at most one successor."""
    found: set[int] = set()
    seen: set[int] = set()
    for start in successor:
        path: dict[int, None] = {}
        node: int | None = start
        while node is not None and node not in seen and node not in path:
            path[node] = None
            node = successor.get(node)
        if node is not None and node in path:
            nodes = list(path)
            found.update(nodes[nodes.index(node) :])
        seen.update(path)
    return found


def owners(snapshot: Snapshot) -> dict[int, int]:
    """Waiting stack -> the stack that owns what it waits on, where the snapshot knows an owner."""
    by_key: dict[int, int] = {}
    s = snapshot.stacks
    for info in snapshot.threads:
        if 0 <= info.stack < len(s):
            by_key[info.tid] = info.stack
            if info.ident is not None:
                by_key[info.ident] = info.stack
    owned = {i: t.state["owner"] for i, t in enumerate(snapshot.things) if _is_owner(t.state.get("owner"))}
    if not owned:
        return {}
    addresses = set(owned.values()) - set(by_key)
    if addresses:
        by_key |= _rows_at(snapshot, addresses)
    waiting = np.flatnonzero(np.isin(s.state, _WAITING) & (s.thing >= 0))
    found: dict[int, int] = {}
    for row, thing in zip(waiting.tolist(), s.thing[waiting].tolist(), strict=True):
        if thing in owned and owned[thing] in by_key:
            found[row] = by_key[owned[thing]]
    return found


def _is_owner(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _rows_at(snapshot: Snapshot, addresses: Iterable[int]) -> dict[int, int]:
    wanted = np.array([a for a in addresses if a < 1 << 64], np.uint64)
    rows = np.flatnonzero(np.isin(snapshot.stacks.address, wanted))
    return {int(snapshot.stacks.address[row]): int(row) for row in rows}
