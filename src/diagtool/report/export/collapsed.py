"""Collapsed stacks, a line each: ``waiting tasks;main (app.py:9);leaf (app.py:4) 300``.

What flamegraph.pl, inferno, speedscope and others read: frames outermost first with semicolons between them,
a space, a whole number. A semicolon in a name becomes a colon; what could end a line is an escape.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from diagtool.report.export import names
from diagtool.report.export.samples import Samples
from diagtool.report.export.sequences import joined, sequences

__all__ = ("collapsed",)


def collapsed(samples: Samples) -> Iterator[bytes]:
    """The lines, UTF-8. Processor time is in milliseconds, because viewers show the number as it is."""
    weights = samples.weight.values
    if samples.weight.unit == "microseconds":
        weights = np.maximum(np.round(weights / 1000).astype(np.int64), 1)
    frames = [names.labelled(f) for f in samples.traces.frames]
    pieces = [b";" + _escaped(name) for name in (*frames, names.NOTHING, names.CUT)]
    roots = len(pieces)
    pieces += map(_escaped, samples.root.names)
    ends = len(pieces)
    distinct, of = np.unique(weights, return_inverse=True)
    pieces += [b" %d\n" % number for number in distinct.tolist()]
    of = of.reshape(-1)
    for chunk in sequences(samples.traces, samples.trace, outermost_first=True):
        chunk.items[chunk.first] = samples.root.codes[chunk.rows] + roots
        chunk.items[chunk.last] = of[chunk.rows] + ends
        yield joined(pieces, chunk.items)


def _escaped(name: str) -> bytes:
    # "#" at the start of a line is a comment to some; no root begins with it.
    return name.replace(";", ":").encode("utf-8", "backslashreplace")
