"""speedscope's own format (https://www.speedscope.app/file-format-schema.json): flame graphs in a browser.

A profile for each kind of stacks of each snapshot. The outermost frame says what state they are in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from diagtool._version import __version__
from diagtool.report.export import names
from diagtool.report.export.samples import Column, Samples
from diagtool.report.export.sequences import joined, sequences
from diagtool.report.text import clean
from diagtool.snapshot.model import Frame

__all__ = ("speedscope",)

_SCHEMA = "https://www.speedscope.app/file-format-schema.json"
_UNITS = {"count": "none", "bytes": "bytes", "microseconds": "microseconds"}
_ROWS = 1 << 16


def speedscope(title: str, parts: Sequence[tuple[str, Samples]]) -> Iterator[bytes]:
    """The document, ASCII only. ``parts``: the samples of each snapshot, and what it is called if there are
    several, else ""."""
    head = {"$schema": _SCHEMA, "exporter": f"diagtool {__version__}", "name": clean(title, 1000)}
    yield _json(head)[:-1] + b',"shared":{"frames":['
    offsets = []
    total = 0
    for number, (_, samples) in enumerate(parts):
        offsets.append(total)
        shared = _frames(samples)
        total += len(shared)
        for at in range(0, len(shared), _ROWS):
            lead = b",\n" if number or at else b"\n"
            yield lead + b",\n".join(map(_json, shared[at : at + _ROWS]))
    yield b']},"profiles":['
    first = True
    for (name, samples), offset in zip(parts, offsets, strict=True):
        # Largest first; what is looked at first.
        of, kinds = _kinds(samples)
        for kind in np.argsort(-np.bincount(of, samples.weight.values, len(kinds)), kind="stable").tolist():
            chosen = np.flatnonzero(of == kind)
            if len(chosen):
                yield b"\n" if first else b",\n"
                first = False
                yield from _profile(f"{kinds[kind]}{', ' + name if name else ''}", samples, chosen, offset)
    yield b"]}\n"


def _kinds(samples: Samples) -> tuple[np.ndarray[Any, np.dtype[np.intp]], list[str]]:
    """Of every sample the profile that it goes into."""
    column = samples.labels.get("kind")
    if column is None:
        column = samples.root
        return column.codes, column.names
    return column.codes, [f"{name}s" for name in column.names]


def _frames(samples: Samples) -> list[dict[str, Any]]:
    """Those of the snapshot, the two that stand for others, and the outermost ones."""
    made = [_frame(f) for f in samples.traces.frames]
    return [*made, {"name": names.NOTHING}, {"name": names.CUT}, *({"name": n} for n in samples.root.names)]


def _frame(frame: Frame) -> dict[str, Any]:
    made: dict[str, Any] = {"name": names.function(frame)}
    file = names.file(frame)
    if file:
        made["file"] = file
    if frame.line is not None and frame.line > 0:
        made["line"] = frame.line
    return made


def _profile(name: str, samples: Samples, chosen: Any, offset: int) -> Iterator[bytes]:
    weights = samples.weight.values[chosen]
    keys = {
        "type": "sampled",
        "name": clean(name, 300),
        "unit": _UNITS[samples.weight.unit],
        "startValue": 0,
        "endValue": int(math.fsum(weights.tolist())),
    }
    yield _json(keys)[:-1] + b',"samples":['
    nothing = len(samples.traces.frames)
    root = Column(samples.root.codes[chosen], samples.root.names)
    pieces = [b",%d" % (number + offset) for number in range(nothing + 2)]
    roots = [b"[%d" % (nothing + 2 + offset + number) for number in range(len(root.names))]
    end = len(pieces) + 2 * len(roots)
    pieces += [*roots, *(b",\n" + r for r in roots), b"]"]
    for chunk in sequences(samples.traces, samples.trace[chosen], outermost_first=True):
        chunk.items[chunk.first] = root.codes[chunk.rows] + nothing + 2 + len(roots)
        chunk.items[chunk.last] = end
        if not chunk.rows.start:
            chunk.items[0] -= len(roots)  # no comma before it
        yield joined(pieces, chunk.items)
    yield b'],"weights":['
    for at in range(0, len(weights), _ROWS):
        yield (b"," if at else b"") + ",".join(map(str, weights[at : at + _ROWS].tolist())).encode()
    yield b"]}"


def _json(value: dict[str, Any]) -> bytes:
    return _encode(value).encode()


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, ensure_ascii=True).encode
