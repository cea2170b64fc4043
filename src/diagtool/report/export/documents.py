"""An export by the name of its format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from diagtool.leaks import find_leaks
from diagtool.leaks.series import in_order
from diagtool.report.export.samples import By, samples
from diagtool.snapshot.model import Snapshot

__all__ = ("FORMATS", "SEVERAL", "Format", "exported")

#: All but csv, which is many tables (``csvtables``).
Format = Literal["speedscope", "pprof", "collapsed", "chrome"]
FORMATS: tuple[Format, ...] = ("speedscope", "pprof", "collapsed", "chrome")
#: Those that hold several snapshots.
SEVERAL: tuple[Format, ...] = ("speedscope", "chrome")


def exported(
    to: Format,
    snapshots: Sequence[Snapshot],
    *,
    by: By = "count",
    native: bool = False,
    most: int | None = None,
) -> Iterator[bytes]:
    """The document, piece by piece. Raises ExportError, and SeriesError for snapshots of several processes.

    What can be wrong is told before the first piece, but of a trace without times.
    """
    ordered = in_order(snapshots)
    last = ordered[-1]
    if to == "chrome":
        from diagtool.report.export.chrome import MOST_TRACKS, chrome

        return chrome(ordered, most or MOST_TRACKS)
    if to == "speedscope":
        from diagtool.report.export.speedscope import speedscope

        parts = [(_when(s, ordered), samples(s, by, native=native)) for s in ordered]
        target = last.target
        return speedscope(f"{' '.join(target.cmdline) or 'a process'} (pid {target.pid})", parts)
    if to == "pprof":
        from diagtool.report.export.pprof import pprof

        report = find_leaks([last]) if by != "bytes" else None
        return pprof(last, samples(last, by, native=native, report=report))
    from diagtool.report.export.collapsed import collapsed

    return collapsed(samples(last, by, native=native))


def _when(snapshot: Snapshot, series: Sequence[Snapshot]) -> str:
    """What tells this one from the others: the time since the first."""
    if len(series) == 1:
        return ""
    at, first = snapshot.target.captured_at, series[0].target.captured_at
    if at is None or first is None:
        return f"snapshot {[s is snapshot for s in series].index(True) + 1}"
    return f"+{at - first:.1f} s"
