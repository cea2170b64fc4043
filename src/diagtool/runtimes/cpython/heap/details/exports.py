"""Memory that objects lend to others: memoryviews, exported buffers, and capsules with C's pointers.

Structures, the same from 3.9 to 3.15: PyMemoryViewObject (Include/cpython/memoryobject.h: mbuf, hash, flags,
exports, then a Py_buffer: buf, obj, len), arrayobject (Modules/arraymodule.c), PyCapsule (Objects/capsule.c:
pointer, name, context, destructor).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.extensions import ModulesByAddress
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.details.amounts import objects_of
from diagtool.runtimes.cpython.heap.details.ctypesobjects import kinds_like
from diagtool.runtimes.cpython.heap.types import kinds_named
from diagtool.runtimes.cpython.objects.addresssets import distinct, grouped
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

__all__ = ["add_exports"]

_RELEASED = 1  # _Py_MEMORYVIEW_RELEASED
_MAX_BYTES = 1 << 46
_MOST_ROWS = 500
_NAME = 96  # bytes of a capsule's name
_MOST_NAMES = 100_000  # distinct places of names
_MOST_ALONE = 1_000  # names that are read one by one

Row = dict[str, object]


def add_exports(ctx: Context, census: HeapCensus, _: Sequence[Interpreter]) -> None:
    """Add the tables ``ffi_memoryviews`` and ``ffi_capsules``, and rows to ``ffi_buffers``.

    ``ffi_memoryviews``, a row a type of what is viewed: ``type`` (null: released, or of C alone), ``count``
    of the views, ``exporters`` (objects viewed), ``bytes`` (shown, by all views), ``largest``, ``address`` of
    that view. ``ffi_capsules``, a row a name: ``name``, ``count``, ``library`` (that has the destructor, the
    name or what it points to), ``destructors`` (capsules that have one), ``address`` of one.
    ``ffi_buffers`` of the kinds "bytearray" and "array": those of which somebody holds the buffer now, which
    so can't be resized: ``count``, ``bytes``, ``exports``.
    """
    tables = ctx.builder.snapshot.tables
    tables["ffi_memoryviews"] = _memoryviews(ctx, census)
    tables["ffi_capsules"] = _capsules(ctx, census)
    tables.setdefault("ffi_buffers", []).extend(_exported(ctx, census))


def _memoryviews(ctx: Context, census: HeapCensus) -> list[Row]:
    v = ctx.vectors
    views = objects_of(census, kinds_named(ctx, census.types, "memoryview"))
    if not len(views):
        return []
    head = ctx.runtime.layout["sizeof.PyObject"] + 8
    block = v.block(views, head, head + 56)
    released = block.column(head + 16, "<i4") & _RELEASED != 0
    exporters = np.where(released, np.uint64(0), block.column(head + 40))
    size = _sizes(block.column(head + 48))
    rows = []
    for kind, which in v.by_type(exporters):
        if kind:
            name = ctx.objects.qualified_type(kind) or f"type at {kind:#x}"
            rows.append(_viewed(name, views[which], exporters[which], size[which]))
    rest = np.flatnonzero(exporters == 0)
    if len(rest):
        rows.append(_viewed(None, views[rest], exporters[rest], np.where(released, 0, size)[rest]))
    return sorted(rows, key=lambda r: (-int(str(r["bytes"])), -int(str(r["count"]))))[:_MOST_ROWS]


def _viewed(name: str | None, views: U64, exporters: U64, size: NDArray[np.int64]) -> Row:
    largest = int(np.argmax(size))
    return {
        "type": name,
        "count": len(views),
        "exporters": len(distinct(exporters[exporters != 0])),
        "bytes": int(size.sum()),
        "largest": int(size[largest]),
        "address": int(views[largest]),
    }


def _exported(ctx: Context, census: HeapCensus) -> list[Row]:
    layout = ctx.runtime.layout
    head = layout["sizeof.PyObject"]
    head_of_bytes = layout["PyByteArrayObject.ob_exports"], layout["PyByteArrayObject.ob_alloc"]
    places = {
        # kind: (types, offset of the number of exports, of the bytes (or items) that it has room for)
        "bytearray": ("bytearray", *head_of_bytes),
        "array": ("array.array", head + 40, head + 16),
    }
    rows = []
    for kind, (name, exports_at, room_at) in places.items():
        for number in kinds_like(ctx, census, name):
            objects = census.of(number)
            exports = ctx.vectors.words(objects, exports_at).astype(np.int64)
            exports = np.where((exports > 0) & (exports < 1 << 32), exports, 0)
            held = np.flatnonzero(exports)
            if not len(held):
                continue
            room = _sizes(ctx.vectors.words(objects[held], room_at))
            if kind == "array":
                descr = ctx.vectors.words(objects[held], head + 24)
                item = ctx.vectors.memory.load(descr + np.uint64(4), "<i4")[0].astype(np.int64)
                room = room * np.clip(item, 0, 16)
            largest = int(np.argmax(room))
            rows.append(
                {
                    "kind": kind,
                    "type": ctx.objects.qualified_type(int(census.types.address[number])),
                    "count": len(held),
                    "bytes": int(room.sum()),
                    "exports": int(exports.sum()),
                    "largest": int(room[largest]),
                    "address": int(objects[held[largest]]),
                }
            )
    return rows


def _capsules(ctx: Context, census: HeapCensus) -> list[Row]:
    v = ctx.vectors
    capsules = objects_of(census, kinds_named(ctx, census.types, "PyCapsule"))
    if not len(capsules):
        return []
    head = ctx.runtime.layout["sizeof.PyObject"]
    block = v.block(capsules, head, head + 32)
    pointers, names, destructors = block.column(head), block.column(head + 8), block.column(head + 24)
    places, which = grouped(names)
    texts, of_text = np.unique(_texts(ctx, places), return_inverse=True)
    groups = of_text[which]
    modules = ModulesByAddress(ctx.capture.modules)
    rows: list[Row] = []
    for i in np.argsort(-np.bincount(groups, minlength=len(texts)), kind="stable")[:_MOST_ROWS].tolist():
        own = np.flatnonzero(groups == i)
        first = int(own[0])
        library = None
        for address in (int(destructors[first]), int(names[first]), int(pointers[first])):
            module = modules.at(address)
            if module is not None and library is None:
                library = module.path.removesuffix(" (deleted)")
        rows.append(
            {
                "name": str(texts[i]) or None,
                "count": len(own),
                "library": library,
                "destructors": int(np.count_nonzero(destructors[own])),
                "address": int(capsules[first]),
            }
        )
    return rows


# The text at each place, "" where there is none.
def _texts(ctx: Context, places: U64) -> NDArray[np.str_]:
    out = np.zeros(len(places), f"S{_NAME}")
    asked = places[:_MOST_NAMES]
    data, read = ctx.vectors.memory.load_block(asked, _NAME)
    ended = np.cumsum(data == 0, axis=1) > 0
    plain = np.where(ended | (data < 32) | (data > 126), 0, data).astype(np.uint8)
    out[: len(asked)] = np.where(read, np.ascontiguousarray(plain).view(f"S{_NAME}")[:, 0], b"")
    for i in np.flatnonzero(~read & (asked != 0))[:_MOST_ALONE].tolist():  # at the end of what is mapped
        try:
            text = ctx.objects.memory.cstring(int(asked[i]), _NAME)
        except MemoryFault:
            continue
        out[i] = text if text.isascii() else b""
    return np.char.decode(out, "ascii", "replace")


def _sizes(words: U64) -> NDArray[np.int64]:
    size = words.astype(np.int64)
    return np.where((size >= 0) & (size <= _MAX_BYTES), size, 0)
