"""Waits for something that is made in the very expression that waits: ``await asyncio.Future()``.

That is how programs say "for ever": ``await asyncio.Event().wait()`` at the end of a service. Nobody else
ever had the future or event, so that nobody could have forgotten to set it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.frames.callsites import names_of_line
from diagtool.runtimes.cpython.tasks.chains import Chains
from diagtool.runtimes.cpython.tasks.waits import TaskWait, module_of

#: What such a line may name: how one comes by a loop. Anything else may get hold of the thing.
_WAYS = {"asyncio", "get_running_loop", "get_event_loop", "loop", "_loop", "futures", "locks"}
_FUTURES = {"Future", "create_future"}
_EVENTS = {"Event", "wait"}


def made_in_place(
    ctx: Context, chains: Chains, waits: list[TaskWait], wait_of: NDArray[np.intp], rows: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Which of the tasks ``rows`` wait for what their own line made. Worked out once for each trace."""
    out = np.zeros(len(rows), np.bool_)
    for index in np.unique(wait_of[rows]).tolist():
        mine = wait_of[rows] == index
        wanted = {"": _FUTURES, "asyncio.Event.wait": _EVENTS}.get(waits[index].name)
        if wanted is not None:
            out[mine] = _makes(ctx, chains, int(rows[mine][0]), wanted)
    return out


def _makes(ctx: Context, chains: Chains, row: int, wanted: set[str]) -> bool:
    frames = ctx.builder.frames_of(int(chains.trace[row]))
    inner = next((i for i, f in enumerate(frames) if not module_of(f).startswith("asyncio")), None)
    if inner is None:
        return False
    at, depth = np.array([row], np.intp), len(frames) - 1 - inner
    code = int(chains.level_of(at, depth, "code")[0])
    offset = int(chains.level_of(at, depth, "offset").astype(np.int64)[0])
    names = names_of_line(ctx, code, offset)
    made = names & wanted
    return bool(made) and (wanted is _FUTURES or made == wanted) and names <= wanted | _WAYS
