"""What C code was given of Python: callbacks of ctypes and cffi, and handles of cffi.

A callback is a piece of code made at run time that calls a Python function. Who registers one per call and
keeps it keeps the function and all it refers to. Where these are, in no header (checked on 3.9 to 3.15):
CThunkObject of Modules/_ctypes/ctypes.h ends with callable, restype, setfunc, ffi_restype, atypes[1]; a cdata
of cffi (_cffi_backend.c) begins with c_type, c_data, c_weakreflist and what is its own: a handle's c_data is
the handle itself, then comes its object; a callback's is its ffi_closure (libffi's ffi.h), whose user_data is
a tuple of type and function.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.extensions import ModulesByAddress
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.details.amounts import objects_of
from diagtool.runtimes.cpython.heap.details.callables import registered, unwrapped
from diagtool.runtimes.cpython.heap.details.ctypesobjects import kinds_like, library_at_handle
from diagtool.runtimes.cpython.objects.addresssets import contains
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

__all__ = ["add_foreign"]

_THUNK = "CThunkObject"
_AFTER_CALLABLE = 40  # bytes from a thunk's callable to its basic size
_CFFI = "_cffi_backend.__CDataOwnGC"
_CFFI_GC = "_cffi_backend.__CDataGCP"
_CFFI_OPENED = ("_cffi_backend.CLibrary", "_cffi_backend.Library")  # ffi.dlopen() without a compiled module
_CFFI_COMPILED = ("_cffi_backend.Lib",)
_MOST_LIBRARIES = 1_000
_USER_DATA = 48  # of an ffi_closure on x86-64: behind the trampoline (32 bytes), cif and fun
_MAX_ROWS = 2_000


def add_foreign(ctx: Context, census: HeapCensus, _: Sequence[Interpreter]) -> None:
    """Add the tables ``callbacks`` and ``cffi_handles``. What is known to be garbage is left out.

    ``callbacks``, a row a function: ``library`` (ctypes, cffi), ``function``, ``count`` of its callbacks,
    ``instances`` (objects that it is bound to) and the type ``of`` these, ``address`` of one callable,
    ``file`` and ``line`` where it is Python's.
    ``cffi_handles``, a row a type: ``stands_for`` (that type), ``count``, ``address`` of one
    handle.
    ``cffi_destructors``, a row a function that ffi.gc() will call: ``function``, ``count``, ``address``,
    ``file``, ``line``. And rows of ``ffi_libraries`` for what cffi loaded.
    """
    v = ctx.vectors
    thunks = _named(ctx, census, _THUNK)
    sizes = census.types.basic
    callables = [np.zeros(0, np.uint64)]
    for kind in thunks:
        objects = census.of(kind)
        objects = objects[~contains(census.garbage, objects)]
        callables.append(v.words(objects, int(sizes[kind]) - _AFTER_CALLABLE))
    rows = [("ctypes", r) for r in registered(ctx, np.concatenate(callables))]
    cdata = np.concatenate([np.zeros(0, np.uint64), *(census.of(k) for k in _named(ctx, census, _CFFI))])
    cdata = cdata[~contains(census.garbage, cdata)]
    head = ctx.runtime.layout["sizeof.PyObject"]
    data, own = v.words(cdata, head + 8), v.words(cdata, head + 24)
    rows += [("cffi", r) for r in registered(ctx, _callables(ctx, data[(data == own) & (data != cdata)]))]
    tables = ctx.builder.snapshot.tables
    tables["callbacks"] = [
        {
            "library": library,
            "function": r.name,
            "count": r.count,
            "instances": r.instances,
            "of": r.of,
            "address": r.example,
            **_place(ctx, r.example),
        }
        for library, r in rows[:_MAX_ROWS]
    ]
    # The destructor is the last field; what is between it and the head has changed with versions of cffi.
    pending = [v.words(census.of(k), int(sizes[k]) - 8) for k in _named(ctx, census, _CFFI_GC)]
    tables["cffi_destructors"] = [
        {"function": r.name, "count": r.count, "address": r.example, **_place(ctx, r.example)}
        for r in registered(ctx, np.concatenate([np.zeros(0, np.uint64), *pending]))[:_MAX_ROWS]
    ]
    others = [r for r in tables.get("ffi_libraries", []) if r.get("by") != "cffi"]
    tables["ffi_libraries"] = others + _libraries(ctx, census)
    handles = cdata[data == cdata]
    tables["cffi_handles"] = _by_type(ctx, handles, own[data == cdata])[:_MAX_ROWS]


def _named(ctx: Context, census: HeapCensus, name: str) -> list[int]:
    """Numbers of the types of a name; ctypes gives its thunks one with or without a module."""
    last = name.rpartition(".")[2]
    return [
        i
        for i, address in enumerate(census.types.address.tolist())
        if ctx.objects.type_name(address).rpartition(".")[2] == last
    ]


def _libraries(ctx: Context, census: HeapCensus) -> list[dict[str, object]]:
    """What ffi.dlopen() gave: DynLibObject begins with dl_handle and dl_name, LibObject with l_types_builder,
    l_dict, l_libname (a str), l_ffi, l_libhandle (of the extension module itself: 0)."""
    o, v = ctx.objects, ctx.vectors
    head = ctx.runtime.layout["sizeof.PyObject"]
    modules = ModulesByAddress(ctx.capture.modules)
    found: dict[tuple[str, str | None], int] = {}
    for kinds, handle_at, name_at in ((_CFFI_OPENED, 0, 8), (_CFFI_COMPILED, 32, 16)):
        objects = objects_of(census, kinds_like(ctx, census, *kinds))[:_MOST_LIBRARIES]
        handles = v.words(objects, head + handle_at).tolist()
        for handle, name in zip(handles, v.words(objects, head + name_at).tolist(), strict=True):
            if not handle:
                continue
            text = _text(ctx, name) if kinds == _CFFI_OPENED else o.text(name)
            key = (text or "?", library_at_handle(ctx, modules, handle))
            found[key] = found.get(key, 0) + 1
    return [
        {"by": "cffi", "name": name, "library": library, "count": count}
        for (name, library), count in found.items()
    ]


def _text(ctx: Context, address: int) -> str | None:
    try:
        return ctx.objects.memory.cstring(address, 256).decode("utf-8", "replace") if address else None
    except MemoryFault:
        return None


def _place(ctx: Context, callback: int) -> dict[str, object]:
    """Where a function of Python is: file and line of its code."""
    function = unwrapped(ctx, np.array([callback], np.uint64))[0]
    codes = ctx.vectors.field(ctx.vectors.only(function, "function"), "PyFunctionObject.func_code")
    code = ctx.codes.get(int(codes[0])) if codes[0] else None
    return {"file": code.filename if code else None, "line": code.first_line if code else None}


def _callables(ctx: Context, closures: U64) -> U64:
    """The function of each ffi_closure of cffi."""
    v = ctx.vectors
    pairs = v.only(v.words(closures, _USER_DATA), "tuple")
    return v.words(pairs, ctx.runtime.layout["PyTupleObject.ob_item"] + 8)


def _by_type(ctx: Context, handles: U64, objects: U64) -> list[dict[str, object]]:
    out: list[dict[str, object]] = []
    for kind, rows in ctx.vectors.by_type(objects):
        name = ctx.objects.qualified_type(kind) or f"type at {kind:#x}"
        out.append({"stands_for": name, "count": len(rows), "address": int(handles[rows[0]])})
    return sorted(out, key=lambda row: (-int(str(row["count"])), str(row["stands_for"])))
