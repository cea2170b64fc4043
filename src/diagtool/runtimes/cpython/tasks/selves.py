"""Whose work tasks do: the ``self`` of their outermost coroutine, where several work for one object."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.objects.addresssets import grouped
from diagtool.runtimes.cpython.tasks.chains import Chains, local_of

__all__ = ("task_rows",)

_LEAST = 2  # tasks of one object at one place that make rows
_MAX_ROWS = 50_000
_MAX_CODES = 20_000  # distinct outermost coroutines that are looked at


def task_rows(ctx: Context, tasks: U64, chains: Chains, waiting: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Waiting tasks that do the same work for the same object, two of them or more:

    {"address": 0x7f…, "owner": 0x7f…, "owner_type": "app.Client"}
    """
    if not chains.levels:
        return []
    level = chains.levels[0]
    outermost, of_code = grouped(np.where(waiting[level.rows], level.columns.code, np.uint64(0)))
    selves = np.zeros(len(tasks), np.uint64)
    order = np.argsort(of_code, kind="stable")
    starts = np.searchsorted(of_code[order], np.arange(len(outermost) + 1))
    for i, address in enumerate(outermost.tolist()[:_MAX_CODES]):
        code = ctx.codes.get(address) if address else None
        if code is None or code.argcount < 1 or ctx.codes.local_names(code)[:1] != ["self"]:
            continue
        rows = np.sort(level.rows[order[starts[i] : starts[i + 1]]])
        selves[rows] = local_of(ctx, chains, rows, 0, "self")
    rows = np.flatnonzero(selves)
    place = grouped(selves[rows])[1].astype(np.int64) << 32 | chains.trace[rows].astype(np.int64)
    distinct, at = grouped(place.view(np.uint64))
    rows = rows[np.bincount(at, minlength=len(distinct))[at] >= _LEAST] if len(rows) else rows
    if len(rows) > _MAX_ROWS:
        ctx.warn(f"{len(rows):,} tasks do the same for one object: only {_MAX_ROWS:,} of them are listed")
        rows = rows[:_MAX_ROWS]
    kinds, inverse = grouped(ctx.vectors.types(selves[rows]))
    names = [ctx.objects.qualified_type(int(t)) if t else "" for t in kinds]
    return [
        {"address": address, "owner": owner, "owner_type": names[kind]}
        for address, owner, kind in zip(
            tasks[rows].tolist(), selves[rows].tolist(), inverse.tolist(), strict=True
        )
    ]
