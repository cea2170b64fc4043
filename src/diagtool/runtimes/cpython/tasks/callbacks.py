"""Futures and who called for them: gather, shield, executors, other tasks, by type and first callback.

Where the await chain ends in user code, only the future tells what is waited on (asyncio adds its callbacks
before the awaiting task adds its own).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.objects.addresssets import grouped
from diagtool.runtimes.cpython.tasks.futures import first_callbacks

_0 = np.uint64(0)

#: qualified name of a future's first callback -> what the future stands for
_BY_CALLBACK = {
    "shield.<locals>._outer_done_callback": "asyncio.shield",
    "_chain_future.<locals>._call_check_cancel": "asyncio.run_in_executor",
    "BaseSelectorEventLoop._sock_read_done": "asyncio.sock_recv",
    "BaseSelectorEventLoop._sock_write_done": "asyncio.sock_sendall",
}


_BUILTINS = ("builtin_function_or_method", "builtin_method")

#: What a task adds to the future that it awaits: Python's method, C's method or (3.9) its type.
_WAKE_UPS = ("Task.__wakeup", "TaskWakeup", "task_wakeup", "TaskWakeupMethWrapper")


def kinds_of_futures(ctx: Context, futures: U64) -> tuple[list[str], NDArray[np.intp]]:
    """The wait that each awaited future stands for: "asyncio.gather", "asyncio.Task", "asyncio.Future" …

    As distinct names, and the index of each future's.
    """
    types, inverse = grouped(ctx.vectors.types(futures))
    names = [_by_type(ctx, int(t)) for t in types]
    bare = np.array([n == "asyncio.Future" for n in names], np.bool_)[inverse]
    out = inverse.copy()
    rows = np.flatnonzero(bare)
    if len(rows):
        called, which = name_groups(ctx, first_callbacks(ctx, futures[rows]))
        out[rows] = len(names) + which
        names += [_BY_CALLBACK.get(name, "asyncio.Future") for name in called]
    return names, out


def _by_type(ctx: Context, type_address: int) -> str:
    names = (
        [ctx.objects.type_name(t).rpartition(".")[2] for t in ctx.objects.mro(type_address)]
        if type_address
        else []
    )
    if "_GatheringFuture" in names:
        return "asyncio.gather"
    if "Task" in names or "_PyTask" in names:
        return "asyncio.Task"
    if "Future" in names or "_PyFuture" in names:
        return "asyncio.Future"
    return names[0] if names else "asyncio.Future"


def callback_names(ctx: Context, callbacks: U64) -> list[str]:
    """Qualified names of functions, bound methods and partials, plain names of builtins, else the type's.

    What wakes up a task is "Task.wakeup" in all versions and implementations.
    """
    names, which = name_groups(ctx, callbacks)
    return [names[i] for i in which.tolist()]


def name_groups(ctx: Context, callbacks: U64) -> tuple[list[str], NDArray[np.intp]]:
    """:func:`callback_names` as (names, some of them equal; index of each callback's)."""
    v = ctx.vectors
    functions = callbacks
    for _ in range(3):
        kinds = v.kinds(functions)
        partial, method = kinds == "functools.partial", kinds == "method"
        functions = np.where(
            partial, v.field(np.where(partial, functions, _0), "partialobject.fn"), functions
        )
        functions = np.where(
            method, v.field(np.where(method, functions, _0), "PyMethodObject.im_func"), functions
        )
    kinds = v.kinds(functions)
    names = v.field(np.where(kinds == "function", functions, _0), "PyFunctionObject.func_qualname")
    builtin = np.where(np.isin(kinds, _BUILTINS), functions, _0)
    names = np.where(builtin != 0, v.field(builtin, "PyCFunctionObject.m_ml"), names)
    names = np.where(names != 0, names, v.types(functions))
    distinct, inverse = grouped(names)
    return [_name_at(ctx, int(a)) for a in distinct], inverse


def called(ctx: Context, callbacks: U64, *wanted: str) -> tuple[NDArray[np.bool_], ...]:
    """For each of some names, which callbacks have it."""
    names, which = name_groups(ctx, callbacks)
    return tuple(np.array([*(n == name for n in names), False], np.bool_)[which] for name in wanted)


def _name_at(ctx: Context, address: int) -> str:
    # of a str, a PyMethodDef (which begins with char *ml_name) or a type
    if not address:
        return ""
    text = ctx.objects.text(address)
    if text is None and ctx.objects.kind(address) == "type":
        text = ctx.objects.type_name(address)
    if text is None:
        try:
            name = ctx.objects.memory.cstring(ctx.objects.memory.u64(address), 128)
        except MemoryFault:
            return ""
        text = name.decode("utf-8", "replace")
    return "Task.wakeup" if text in _WAKE_UPS else text


def closure_variable(ctx: Context, functions: U64, name: str) -> U64:
    """The value of a free variable of each function, 0 where it has none of that name."""
    v, lay = ctx.vectors, ctx.runtime.layout
    functions = v.only(functions, "function")
    closures = v.field(functions, "PyFunctionObject.func_closure")
    closures = v.only(closures, "tuple")
    sizes = v.field(closures, "PyVarObject.ob_size").astype(np.int64)
    codes = v.field(functions, "PyFunctionObject.func_code")
    out = np.zeros(len(functions), np.uint64)
    for code_address in np.unique(codes[closures != 0]).tolist():
        code = ctx.codes.get(code_address)
        names = ctx.codes.local_names(code) if code else []
        rows = np.flatnonzero((codes == code_address) & (closures != 0))
        free = names[max(0, len(names) - int(sizes[rows[0]])) :]  # the free variables are the last ones
        if name in free:
            cells = v.words(closures[rows], lay["PyTupleObject.ob_item"] + 8 * free.index(name))
            cells = v.only(cells, "cell")
            out[rows] = v.field(cells, "PyCellObject.ob_ref")
    return out
