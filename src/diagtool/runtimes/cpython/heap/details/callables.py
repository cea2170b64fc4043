"""Functions, bound methods and whatever else can be called: what they are named, and whose they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.objects.addresssets import distinct, grouped

_WRAPPED = 4  # partials of methods of partials
_MAX_NAMES = 2_000  # distinct functions that are told apart
_BUILTINS = ("builtin_function_or_method", "builtin_method")
_0 = np.uint64(0)


@dataclass(slots=True)
class Registered:
    """Callables of one function: how many, bound to how many objects (0: not bound), the type of these."""

    name: str
    count: int
    instances: int
    of: str | None
    example: int  # address of one callable


def unwrapped(ctx: Context, callables: U64) -> tuple[U64, U64]:
    """(function behind each partial, bound method or cache; the object it is bound to, or 0)."""
    v = ctx.vectors
    functions, selves = callables.copy(), np.zeros(len(callables), np.uint64)
    for _ in range(_WRAPPED):
        kinds = v.kinds(functions)
        changed = False
        for kind, inner in (
            ("functools.partial", "partialobject.fn"),
            ("method", "PyMethodObject.im_func"),
            ("functools._lru_cache_wrapper", "lru_cache_object.func"),
        ):
            rows = np.flatnonzero(kinds == kind)
            if len(rows):
                changed = True
                if kind == "method":
                    selves[rows] = v.field(functions[rows], "PyMethodObject.im_self")
                functions[rows] = v.field(functions[rows], inner)
        if not changed:
            break
    rows = np.flatnonzero(np.isin(v.kinds(functions), _BUILTINS))
    bound = v.field(functions[rows], "PyCFunctionObject.m_self")
    selves[rows] = np.where(v.are(bound, "module"), _0, bound)
    return functions, selves


def registered(ctx: Context, callables: U64, limit: int = _MAX_NAMES) -> list[Registered]:
    """The ``limit`` functions that most of the callables are."""
    callables = callables[callables != 0]
    if not len(callables):
        return []
    functions, selves = unwrapped(ctx, callables)
    # A built-in method is an object of its own for each object it is bound to: told apart by its definition.
    builtin = ctx.vectors.are(functions, *_BUILTINS)
    same = np.where(builtin, ctx.vectors.field(functions, "PyCFunctionObject.m_ml"), functions)
    # So is each closure: told apart by its code.
    code = ctx.vectors.field(ctx.vectors.only(functions, "function"), "PyFunctionObject.func_code")
    same = np.where(code != 0, code, same)
    values, which = grouped(same)
    counts = np.bincount(which, minlength=len(values))
    order = np.argsort(which, kind="stable")
    first = np.cumsum(counts) - counts
    out: list[Registered] = []
    for i in np.argsort(-counts, kind="stable")[:limit].tolist():
        rows = order[first[i] : first[i] + counts[i]]
        owners = selves[rows]
        bound = distinct(owners[owners != 0])
        out.append(
            Registered(
                name_of(ctx, int(functions[rows[0]])),
                len(rows),
                len(bound),
                ctx.objects.qualified_kind(int(bound[0])) if len(bound) else None,
                int(callables[rows[0]]),
            )
        )
    return sorted(out, key=lambda r: (-r.count, r.name))


def most_registered(ctx: Context, callables: U64) -> Registered | None:
    """The function that most of the callables are; None where there is none."""
    return next(iter(registered(ctx, callables, 1)), None)


def name_of(ctx: Context, address: int) -> str:
    """What a function is called: "app.Store.load"; of other things the name of their type."""
    o, lay = ctx.objects, ctx.runtime.layout
    try:
        kind = o.kind(address)
        if kind == "function":
            module = o.text(o.memory.u64(address + lay["PyFunctionObject.func_module"]))
            name = o.text(o.memory.u64(address + lay["PyFunctionObject.func_qualname"]))
            return ".".join(filter(None, (module, name))) or "function"
        if kind in _BUILTINS:
            return _builtin(ctx, address)
        if o.is_a(address, "type"):
            return o.qualified_type(address)
    except MemoryFault:
        pass
    return o.qualified_kind(address) or f"object at {address:#x}"


def _builtin(ctx: Context, address: int) -> str:
    o, lay = ctx.objects, ctx.runtime.layout
    method = o.memory.u64(address + lay["PyCFunctionObject.m_ml"])
    name = o.memory.cstring(o.memory.u64(method + lay["PyMethodDef.ml_name"]), 128).decode("utf-8", "replace")
    module = o.text(o.memory.u64(address + lay["PyCFunctionObject.m_module"]))
    if module:
        return f"{module}.{name}"
    bound = o.memory.u64(address + lay["PyCFunctionObject.m_self"])
    return f"{o.qualified_kind(bound)}.{name}" if bound and o.kind(bound) != "module" else name


def by_identity(ctx: Context, kinds: U64) -> NDArray[np.bool_]:
    """Types whose instances are equal to themselves only: they hash and compare as ``object`` does."""
    v = ctx.vectors
    base = np.array([ctx.objects.mro(int(k))[-1] for k in kinds.tolist()], np.uint64)
    same = np.ones(len(kinds), np.bool_)
    for slot in ("PyTypeObject.tp_hash", "PyTypeObject.tp_richcompare"):
        same &= v.field(kinds, slot) == v.field(base, slot)
    same &= v.field(base, "PyTypeObject.tp_hash") != 0
    return same
