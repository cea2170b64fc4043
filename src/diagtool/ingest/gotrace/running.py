"""Which goroutine runs in a stream at each of its events: the one that was last started and not stopped."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Running", "follows"]


class Running:
    """Remembers who runs in each stream from one group of batches to the next."""

    def __init__(self) -> None:
        self._now: dict[int, tuple[int, int]] = {}

    def forget_order(self) -> None:
        """A new generation counts anew."""
        self._now = {stream: (goid, 0) for stream, (goid, _) in self._now.items()}

    def before(
        self,
        stream: NDArray[np.int64],
        changes: NDArray[np.bool_],
        goid: NDArray[np.uint64],
        order: NDArray[np.int64],
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """(goroutine, number that orders its steps) just before each event; 0 where none runs.

        Events are by stream. ``changes``: where one begins to run (``goid``, with ``order``), or stops
        (``goid`` 0).
        """
        n = len(stream)
        if not n:
            return goid[:0], order[:0]
        numbers = np.arange(n)
        opens = np.flatnonzero(np.append(True, stream[1:] != stream[:-1]))
        start = np.repeat(opens, np.diff(np.append(opens, n)))
        last = np.maximum.accumulate(np.where(changes, numbers, -1))
        previous = np.append(-1, last[:-1])
        inside = previous >= start
        out_goid = np.where(inside, goid[previous], 0).astype(np.uint64)
        out_order = np.where(inside, order[previous], 0).astype(np.int64)
        for first, end in zip(opens.tolist(), [*opens[1:].tolist(), n], strict=True):
            known = self._now.get(int(stream[first]))
            if known is not None:
                until = first + int(np.argmax(inside[first:end])) if inside[first:end].any() else end
                out_goid[first:until], out_order[first:until] = known
            if last[end - 1] >= first:
                self._now[int(stream[first])] = int(goid[last[end - 1]]), int(order[last[end - 1]])
        return out_goid, out_order


def follows(stream: NDArray[np.int64], condition: NDArray[Any]) -> NDArray[np.bool_]:
    """Where ``condition`` holds for the next event of the same stream."""
    out = np.zeros(len(stream), np.bool_)
    out[:-1] = condition[1:].astype(np.bool_) & (stream[1:] == stream[:-1])
    return out
