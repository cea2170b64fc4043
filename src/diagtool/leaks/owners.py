"""Who owns what others wait for, and who waits for each other in a circle."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from diagtool.snapshot.model import STATE, Snapshot

_WAITING = (STATE["waiting"], STATE["cancelling"])


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
