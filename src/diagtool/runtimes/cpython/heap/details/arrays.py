"""Views of numpy arrays that keep arrays much larger than themselves.

Table ``array_views``, a row a type of views: of arrays (and ``bytes`` or ``bytearray``) that nothing but
views keeps, and of which these show less than a tenth: ``views``, ``bases`` (arrays kept so),
``view_bytes``, ``base_bytes``, and ``bytes``: what the bases take beyond what the views show; ``address`` of
one view.

The structures are those of numpy's C interface: PyArrayObject_fields and _PyArray_Descr (ndarraytypes.h), of
which the latter differs between numpy 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.details.amounts import kept_only, objects_of
from diagtool.runtimes.cpython.objects.addresssets import contains
from diagtool.runtimes.cpython.objects.census import TypeNames
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

_NDARRAY = "numpy.ndarray"
_OWNS_DATA = 4  # NPY_ARRAY_OWNDATA
_MAX_DIMENSIONS = 64  # NPY_MAXDIMS
_MAX_STEPS = 8  # from view to view
_MAX_BYTES = 1 << 46
_LEAST = 4096  # bytes of a base that is worth telling
_SHOWN = 10  # views that show more than one part in so many are fine
_0 = np.uint64(0)


def add_array_views(ctx: Context, census: HeapCensus, interpreters: Sequence[Interpreter]) -> None:
    """Add the table ``array_views``; without numpy it is empty."""
    o = ctx.objects
    kinds = [
        i
        for i, a in enumerate(census.types.address.tolist())
        if any(o.type_name(t) == _NDARRAY for t in o.mro(a))
    ]
    arrays = objects_of(census, kinds)
    versions = TypeNames(ctx, interpreters).values("numpy", "__version__")
    major = (o.text(versions[0]) or "").partition(".")[0] if versions else ""
    if not len(arrays) or major not in ("1", "2"):
        ctx.builder.snapshot.tables["array_views"] = []
        return
    ctx.builder.snapshot.tables["array_views"] = _rows(ctx, arrays, int(major))


def _rows(ctx: Context, arrays: U64, major: int) -> list[dict[str, object]]:
    v = ctx.vectors
    base, size, owns = _fields(ctx, arrays, major)
    target = base
    for _ in range(_MAX_STEPS):  # a base may be a view itself
        at = np.minimum(np.searchsorted(arrays, target), len(arrays) - 1)
        onward = (arrays[at] == target) & ~owns[at] & (base[at] != 0)
        if not onward.any():
            break
        target = np.where(onward, base[at], target)
    bases, alone = kept_only(ctx, base)
    bases = bases[alone]
    passing = contains(bases, arrays) & ~owns  # only there for the sake of another view
    at = np.minimum(np.searchsorted(arrays, bases), len(arrays) - 1)
    own = np.where((arrays[at] == bases) & owns[at], size[at], 0)
    plain = v.are(bases, "bytes", "bytearray")
    own = np.where(plain, v.sizes(bases), own)
    bases, own = bases[own >= _LEAST], own[own >= _LEAST]
    if not len(bases):
        return []
    to = np.minimum(np.searchsorted(bases, target), len(bases) - 1)
    is_view = (bases[to] == target) & ~owns & ~passing
    shown = np.bincount(to[is_view], weights=size[is_view], minlength=len(bases))
    small = (shown * _SHOWN < own) & (np.bincount(to[is_view], minlength=len(bases)) > 0)
    rows: list[dict[str, object]] = []
    views = np.flatnonzero(is_view & small[to])
    for kind, mine in v.by_type(arrays[views]):
        which = views[mine]
        kept = np.unique(to[which])
        seen, whole = int(size[which].sum()), int(own[kept].sum())
        rows.append(
            {
                "type": ctx.objects.qualified_type(kind),
                "views": len(which),
                "bases": len(kept),
                "view_bytes": seen,
                "base_bytes": whole,
                "bytes": max(whole - seen, 0),
                "address": int(arrays[which[0]]),
            }
        )
    return sorted(rows, key=lambda r: -int(str(r["bytes"])))


def _fields(ctx: Context, arrays: U64, major: int) -> tuple[U64, NDArray[np.int64], NDArray[np.bool_]]:
    """(base, bytes of its elements, whether it owns its data) of each array."""
    v = ctx.vectors
    first = ctx.runtime.layout["sizeof.PyObject"]
    count = v.memory.load(arrays + np.uint64(first + 8), "<i4")[0].astype(np.int64)
    count = np.where((count >= 0) & (count <= _MAX_DIMENSIONS), count, 0)
    sizes = v.words(arrays, first + 16)
    descr = v.words(arrays, first + 40)
    if major == 1:
        item = v.memory.load(descr + np.uint64(first + 16), "<i4")[0].astype(np.int64)
    else:
        item = v.words(descr, first + 24).astype(np.int64)
    size = np.clip(item, 0, _MAX_BYTES).astype(np.float64)
    for axis in range(int(count.max(initial=0))):
        length = v.words(np.where(count > axis, sizes, _0), 8 * axis).astype(np.int64)
        size = np.where(count > axis, size * np.clip(length, 0, _MAX_BYTES), size)
    flags = v.memory.load(arrays + np.uint64(first + 48), "<i4")[0]
    return v.words(arrays, first + 32), np.minimum(size, _MAX_BYTES).astype(np.int64), flags & _OWNS_DATA != 0
