"""Who started each thread, as a table: Python's threads among them, and those that no interpreter knows."""

from __future__ import annotations

from diagtool.capture.demangle import demangle
from diagtool.capture.model import Capture, CapturedThread
from diagtool.runtimes.native.starts import thread_starts
from diagtool.snapshot.model import Snapshot

__all__ = ["add_native_threads"]

_MOST_ROWS = 20_000
_MADE_BY_STD = "NSt6thread"  # std::thread::_State_impl<…>


def add_native_threads(capture: Capture, snapshot: Snapshot) -> None:
    """Add the table ``native_threads``, a row a thread, of the capture's order.

    ``tid``, ``name``; ``python``: an interpreter knows it; ``library`` (a path) and ``symbol`` of the
    function that it began with, ``offset`` of this in the library in bytes, ``via`` (what passed it on);
    ``running``: it ran or was ready to when it was stopped; ``cpu``, the processor that it ran on last;
    ``cpu_seconds``. All but the first three may be null.
    """
    known = {t.tid: t for t in snapshot.threads}
    rows = []
    for thread, start in zip(capture.threads, thread_starts(capture), strict=True):
        info = known.get(thread.tid)
        module = start.code.module if start.code is not None else None
        offset = start.code.address - module.bias if module is not None and start.code is not None else None
        rows.append(
            {
                "tid": thread.tid,
                "name": (info.name if info is not None else thread.comm) or "",
                "python": info is not None and info.python,
                "library": module.path.removesuffix(" (deleted)") if module is not None else None,
                "symbol": _readable(start.code.symbol) if start.code is not None else None,
                "offset": offset if offset is not None and offset >= 0 else None,
                "via": start.via or None,
                "running": _runs(thread),
                "cpu": start.cpu,
                "cpu_seconds": thread.cpu_seconds,
            }
        )
    snapshot.tables["native_threads"] = rows[:_MOST_ROWS]


# A std::thread whose function is not known has the name of its type, which is no symbol by itself.
def _readable(symbol: str | None) -> str | None:
    if symbol is None or not symbol.startswith(_MADE_BY_STD):
        return None if symbol is None else demangle(symbol)
    return demangle(f"_ZTS{symbol}").removeprefix("typeinfo name for ")


# Who gives up its turn in a loop (sched_yield) runs: so the threads of OpenBLAS wait.
def _runs(thread: CapturedThread) -> bool | None:
    if thread.state is not None:
        return thread.state == "R"
    return thread.syscall is None if thread.registers else None
