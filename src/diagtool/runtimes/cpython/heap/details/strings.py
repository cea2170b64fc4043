"""Interned strings: how many, how large, and how many of them can never be freed.

Table ``interned``, one row: ``count`` and ``bytes`` of all interned str objects on the heap, ``mortal``,
``immortal`` and ``immortal_bytes``; ``all_immortal``: whether this version never frees what ``sys.intern()``
was given (3.12.0 to 3.12.6, gh-113993: its callers, attribute names and pathlib among them, fill memory).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.sizes import NO_SIZE, Sizer
from diagtool.runtimes.cpython.heap.types import kinds_named
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

_AT_ONCE = 1 << 20  # strings
_MORTAL_AGAIN = 7  # micro version of 3.12


def add_interned(ctx: Context, census: HeapCensus, _: Sequence[Interpreter]) -> None:
    """Add the table ``interned``."""
    lay, sizer = ctx.runtime.layout, Sizer(ctx, census.types)
    shift, width = lay["const.unicode_state_interned_shift"], lay["const.unicode_state_interned_width"]
    row = dict.fromkeys(("count", "bytes", "mortal", "immortal", "immortal_bytes"), 0)
    for kind in kinds_named(ctx, census.types, "str"):
        every = census.of(kind)
        for at in range(0, len(every), _AT_ONCE):
            part = every[at : at + _AT_ONCE]
            state = ctx.vectors.small(part, "PyASCIIObject.state", "<u4") >> shift & (1 << width) - 1
            here = part[state > 0]
            forever = state[state > 0] >= lay["const.SSTATE_INTERNED_IMMORTAL"]
            own, owned = sizer.of(kind, here)
            size = np.where(own < NO_SIZE, own, 0) + owned
            row["count"] += len(here)
            row["bytes"] += int(size.sum())
            row["immortal"] += int(np.count_nonzero(forever))
            row["immortal_bytes"] += int(size[forever].sum())
    row["mortal"] = row["count"] - row["immortal"]
    ctx.builder.snapshot.tables["interned"] = [{**row, "all_immortal": _never_freed(ctx)}]


def _never_freed(ctx: Context) -> bool:
    match = re.search(r"\b3\.12\.(\d+)", ctx.builder.snapshot.target.runtime or "")
    return match is not None and int(match[1]) < _MORTAL_AGAIN
