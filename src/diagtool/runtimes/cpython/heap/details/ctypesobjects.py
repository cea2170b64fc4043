"""What ctypes holds: libraries that it loaded, functions of these, and memory in C's layout.

Every object of ctypes begins with a CDataObject (Modules/_ctypes/ctypes.h, the same from 3.9 to 3.15): b_ptr,
b_needsfree (an int), b_base, b_size. A CDLL is a class in Python whose ``_handle`` is what dlopen() gave: the
``struct link_map`` of the dynamic linker (link.h: l_addr, l_name, l_ld; musl's begins alike).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.capture.modules import Module
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.extensions import ModulesByAddress
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.details.amounts import objects_of
from diagtool.runtimes.cpython.objects.addresssets import grouped
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

__all__ = ["add_ctypes", "kinds_like", "library_at_handle"]

_LD = 16  # of link_map: the address of the dynamic section, which is in the library
_MAX_BYTES = 1 << 46
_MOST_ROWS = 500
_MOST_NAME = 200  # characters
_MOST_HANDLES = 5_000  # distinct handles
_MOST_FUNCTIONS = 5_000  # distinct functions

Row = dict[str, object]


def add_ctypes(ctx: Context, census: HeapCensus, _: Sequence[Interpreter]) -> None:
    """Add the tables ``ffi_libraries``, ``ffi_functions`` and ``ffi_buffers``.

    ``ffi_libraries``, a row a library that Python loaded: ``by`` ("ctypes", "cffi"), ``name`` (as it was
    asked for), ``library`` (the path that is mapped; null: it is not any more, or not known), ``count``
    (objects). ``ffi_functions``, a row a function: ``library``, ``symbol``, ``count`` (objects of ctypes that
    call it), ``address``; code that is in no library, as callbacks are, is one row.
    ``ffi_buffers``, a row a type: ``kind`` ("ctypes"), ``type``, ``count``, ``bytes`` (that they show),
    ``owned`` (with memory of their own outside the object), ``owned_bytes``, ``views`` (parts of another
    one), ``foreign`` (in memory that something else owns), ``largest`` (bytes), ``address`` of that one.
    """
    tables = ctx.builder.snapshot.tables
    modules = ModulesByAddress(ctx.capture.modules)
    functions = kinds_like(ctx, census, "_ctypes.CFuncPtr", "_ctypes.PyCFuncPtr")
    tables["ffi_libraries"] = _libraries(ctx, objects_of(census, kinds_like(ctx, census, "CDLL")), modules)
    tables["ffi_functions"] = _functions(ctx, objects_of(census, functions), modules)
    buffers = [k for k in kinds_like(ctx, census, "_ctypes._CData") if k not in set(functions)]
    rows = [row for kind in buffers if (row := _buffers(ctx, census, kind)) is not None]
    rows.sort(key=lambda r: (-int(str(r["bytes"])), -int(str(r["count"])), str(r["type"])))
    tables["ffi_buffers"] = rows[:_MOST_ROWS]


def kinds_like(ctx: Context, census: HeapCensus, *names: str) -> list[int]:
    """Numbers of the types that are, or inherit from, one of these ``tp_name``s (C's have a module in it)."""
    o = ctx.objects
    return [
        i
        for i, address in enumerate(census.types.address.tolist())
        if any(o.type_name(t) in names for t in o.mro(address))
    ]


def library_at_handle(ctx: Context, modules: ModulesByAddress, handle: int) -> str | None:
    """The path of the library that a handle of dlopen() stands for."""
    raw = ctx.objects.memory.try_read(handle + _LD, 8) if 0 < handle < 1 << 63 else None
    found = modules.at(int.from_bytes(raw, "little")) if raw else None
    return None if found is None else found.path.removesuffix(" (deleted)")


def _libraries(ctx: Context, objects: U64, modules: ModulesByAddress) -> list[Row]:
    v = ctx.vectors
    handles = v.integers(v.attribute(objects, "_handle"), 0).astype(np.uint64)
    names = v.attribute(objects, "_name")
    distinct, which = grouped(handles)
    counts: dict[tuple[str, str | None], int] = {}
    for i, handle in enumerate(distinct[:_MOST_HANDLES].tolist()):
        rows = np.flatnonzero(which == i)
        name = ctx.objects.text(int(names[rows[0]])) if names[rows[0]] else None
        library = library_at_handle(ctx, modules, handle)
        if handle:
            key = (name or "(the program)", library)
            counts[key] = counts.get(key, 0) + len(rows)
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0][0]))[:_MOST_ROWS]
    return [{"by": "ctypes", "name": n, "library": library, "count": c} for (n, library), c in most]


def _functions(ctx: Context, objects: U64, modules: ModulesByAddress) -> list[Row]:
    v = ctx.vectors
    codes = v.words(v.words(objects, ctx.runtime.layout["sizeof.PyObject"]))
    good = _executable(ctx, codes)  # what is just being made or freed has something else there
    objects, codes = objects[good], codes[good]
    distinct, which = grouped(codes)
    counts = np.bincount(which, minlength=len(distinct))
    first = np.zeros(len(distinct), np.intp)
    first[which[::-1]] = np.arange(len(which))[::-1]
    rows: dict[tuple[str | None, str | None], Row] = {}
    for i in np.argsort(-counts, kind="stable")[:_MOST_FUNCTIONS].tolist():
        address = int(distinct[i])
        module = modules.at(address)
        library = None if module is None else module.path.removesuffix(" (deleted)")
        key = (library, _symbol(ctx, module, address, int(objects[first[i]])) if module is not None else None)
        row = rows.setdefault(key, {"library": library, "symbol": key[1], "count": 0, "address": address})
        row["count"] = int(str(row["count"])) + int(counts[i])
    return sorted(rows.values(), key=lambda r: -int(str(r["count"])))[:_MOST_ROWS]


def _executable(ctx: Context, addresses: U64) -> NDArray[np.bool_]:
    ranges = sorted((m.start, m.end) for m in ctx.capture.mappings if "x" in m.permissions)
    bounds = np.array(ranges or [(0, 0)], np.uint64)
    at = np.searchsorted(bounds[:, 0], addresses, side="right") - 1
    inside: NDArray[np.bool_] = (at >= 0) & (addresses < bounds[np.maximum(at, 0), 1])
    return inside


# By the name that it was asked for: what lies there may have others, or none (chosen by the processor).
def _symbol(ctx: Context, module: Module, address: int, function: int) -> str:
    name = ctx.objects.text(ctx.objects.attribute(function, "__name__"))
    if name:
        return name[:_MOST_NAME]
    found = module.function_at(address)
    return found or f"{module.path.rpartition('/')[2]}+{address - module.bias:#x}"


def _buffers(ctx: Context, census: HeapCensus, kind: int) -> Row | None:
    v = ctx.vectors
    objects = census.of(kind)
    if not len(objects):
        return None
    head = ctx.runtime.layout["sizeof.PyObject"]
    block = v.block(objects, head, head + 32)
    pointer, base = block.column(head), block.column(head + 16)
    size = block.column(head + 24).astype(np.int64)
    size = np.where((size >= 0) & (size <= _MAX_BYTES), size, 0)
    view = base != 0
    owned = ~view & (block.column(head + 8, "<i4") != 0)
    span = np.uint64(int(census.types.basic[kind]))
    # Small values are in the object itself.
    inside = pointer - objects < span
    own = owned & ~inside
    largest = int(np.argmax(size))
    return {
        "kind": "ctypes",
        "type": ctx.objects.qualified_type(int(census.types.address[kind])) or "?",
        "count": len(objects),
        "bytes": int(size.sum()),
        "owned": int(np.count_nonzero(own)),
        "owned_bytes": int(size[own].sum()),
        "views": int(np.count_nonzero(view)),
        "foreign": int(np.count_nonzero(~view & ~owned & ~inside & (pointer != 0))),
        "largest": int(size[largest]),
        "address": int(objects[largest]),
    }
