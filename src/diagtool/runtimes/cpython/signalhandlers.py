"""Python's own table of signal handlers, its wakeup descriptor, and what faulthandler has taken.

Table ``python_signals``, a row a signal that Python has something to say of:

- ``number``; ``kind``: "function", "default" (SIG_DFL), "ignored" (SIG_IGN) or "foreign" (None: somebody else
  handled it when Python began); ``tripped``: it came, and its function has not run yet;
- of functions ``name``, ``file``, ``line``, ``address``; ``builtin``: it is signal.default_int_handler, which
  nobody asked for; ``loop``: what an event loop of asyncio calls for it, whose place is ``file``, ``line``;
- ``faulthandler``: "fatal" or "user" where faulthandler has it; ``chain``: it calls the one before, too.

Table ``python_signal_state``, one row: ``found`` (how the table was: "layout", "symbol", "search"; null: it
was not); ``handler``, the address of the C function behind all functions, and ``module``, where it is;
``wakeup_fd`` (-1: none, null: not known); ``faulthandler`` (is it enabled for fatal signals; null: not
known), ``dump_later`` (seconds, of dump_traceback_later); ``stack``, ``stack_size`` of its alternate stack.

From 3.12 on all is in ``_PyRuntime`` (pycore_signal.h, pycore_faulthandler.h); before, in static variables of
Modules/signalmodule.c and Modules/faulthandler.c, which only a build that was not stripped has symbols for.
The table is then looked for in the interpreter's data by its shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diagtool.capture.memory import U64, MemoryFault
from diagtool.capture.modules import Module
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.details.callables import name_of, unwrapped

__all__ = ["add_signals", "signal_table"]

Row = dict[str, Any]

_SIGNALS = 65  # Py_NSIG of Linux
_ENTRY = 16  # bytes: tripped, func
_OF_LIBC = (32, 33)  # sigaction refuses these, so Python has None there
_MAX_DATA = 64 << 20  # bytes of an interpreter's data that are searched
_MAX_LOOPS = 64
_USER_SIGNAL = (
    192  # sizeof(user_signal_t) up to 3.11: enabled, file, fd, all_threads, chain, previous, interp
)
_CHAIN = 24  # of it, in every version so far
_LONGEST = 1e9  # seconds


def add_signals(ctx: Context) -> None:
    """Add both tables; what can't be read is missing, and ``found`` or a warning says so."""
    tables = ctx.builder.snapshot.tables
    state: Row = {
        "found": None,
        "handler": None,
        "module": ctx.runtime.module,
        "wakeup_fd": None,
        "faulthandler": None,
        "dump_later": None,
        "stack": None,
        "stack_size": None,
    }
    rows: list[Row] = []
    try:
        rows = _rows(ctx, state)
        _faulthandler(ctx, state, rows)
    except MemoryFault as fault:
        ctx.warn(f"Python's table of signal handlers could not be read: {fault}")
    tables["python_signals"] = rows
    tables["python_signal_state"] = [state]


def signal_table(ctx: Context) -> tuple[int, str | None]:
    """(address of the table of handlers, or 0; how it was found)."""
    lay = ctx.runtime.layout
    if "_PyRuntimeState.signals.handlers" in lay:
        return ctx.runtime.address + lay["_PyRuntimeState.signals.handlers"], "layout"
    module = _module(ctx)
    if module is None:
        return 0, None
    table = module.symbol("Handlers")
    if table:
        return table, "symbol"
    table = _searched(ctx, module)
    return table, "search" if table else None


def _rows(ctx: Context, state: Row) -> list[Row]:
    lay, v, module = ctx.runtime.layout, ctx.vectors, _module(ctx)
    table, found = signal_table(ctx)
    if not table:
        ctx.warn("where this Python keeps its signal handlers is not known: its file has no symbols")
        return []
    state["found"] = found
    state["handler"] = module.symbol("signal_handler") if module else None
    wakeup = None
    if "_PyRuntimeState.signals.wakeup.fd" in lay:
        wakeup = ctx.runtime.address + lay["_PyRuntimeState.signals.wakeup.fd"]
    elif module is not None and found == "symbol":
        wakeup = module.symbol("wakeup")
    fd = ctx.objects.memory.i32(wakeup) if wakeup else None
    state["wakeup_fd"] = fd if fd is not None and -1 <= fd < 1 << 20 else None
    places = np.uint64(table) + np.arange(_SIGNALS, dtype=np.uint64) * np.uint64(_ENTRY)
    functions, tripped = v.words(places, 8), v.words(places) & np.uint64(0xFFFFFFFF)
    loops = _loop_handlers(ctx)
    return [
        row
        for number in range(1, _SIGNALS)
        if (row := _row(ctx, number, int(functions[number]), bool(tripped[number]), loops)) is not None
    ]


def _row(ctx: Context, number: int, function: int, tripped: bool, loops: dict[int, int]) -> Row | None:
    row: Row = {"number": number, "kind": "function", "tripped": tripped, "name": None, "address": function}
    row |= {"file": None, "line": None, "builtin": False, "loop": None}
    row |= {"faulthandler": None, "chain": None}
    o = ctx.objects
    try:
        if not function:
            return None
        if o.is_none(function):
            row["kind"] = "foreign"
            return None if number in _OF_LIBC else row
        if o.is_a(function, "int"):
            row["kind"] = {0: "default", 1: "ignored"}.get(o.integer(function) or 0, "foreign")
            return row
        row["name"] = name_of(ctx, _behind(ctx, function))
        row["builtin"] = row["name"].endswith("signal.default_int_handler")
        if number in loops:
            row["loop"] = name_of(ctx, _behind(ctx, loops[number]))
        row["file"], row["line"] = _place(ctx, loops.get(number, function))
    except MemoryFault:
        row["name"] = row["name"] or f"object at {function:#x}"
    return row


def _behind(ctx: Context, function: int) -> int:
    return int(unwrapped(ctx, np.array([function], np.uint64))[0][0])


def _place(ctx: Context, function: int) -> tuple[str | None, int | None]:
    inner = _behind(ctx, function)
    if ctx.objects.kind(inner) != "function":
        return None, None
    code = ctx.codes.get(ctx.objects.memory.u64(inner + ctx.runtime.layout["PyFunctionObject.func_code"]))
    return (code.filename, code.first_line) if code is not None else (None, None)


# asyncio puts a function that does nothing into Python's table, and calls back from its loop.
def _loop_handlers(ctx: Context) -> dict[int, int]:
    out: dict[int, int] = {}
    o = ctx.objects
    for loop in ctx.builder.snapshot.tables.get("loops", [])[:_MAX_LOOPS]:
        try:
            handlers = o.attribute(int(loop.get("address") or 0), "_signal_handlers")
            if not handlers or not o.is_a(handlers, "dict") or o.size(handlers) > _SIGNALS:
                continue
            keys, values = o.dict_items(handlers)
            for key, handle in zip(keys.tolist(), values.tolist(), strict=True):
                number, callback = o.integer(key), o.attribute(handle, "_callback")
                if number is not None and callback:
                    out.setdefault(number, callback)
        except MemoryFault:
            continue
    return out


# -- faulthandler ---------------------------------------------------------------------------------------


def _faulthandler(ctx: Context, state: Row, rows: list[Row]) -> None:
    lay, m, module = ctx.runtime.layout, ctx.objects.memory, _module(ctx)
    base = "_PyRuntimeState.faulthandler"

    def at(field: str, symbol: str, inside: int) -> int:
        if f"{base}.{field}" in lay:
            return ctx.runtime.address + lay[f"{base}.{field}"]
        place = module.symbol(symbol) if module is not None else None
        return place + inside if place else 0

    # Up to 3.11 a function is called fatal_error, too: the table of handlers says the same (signal, enabled).
    enabled = at("fatal_error.enabled", "faulthandler_handlers", 4)
    if not enabled or m.i32(enabled) not in (0, 1):
        return
    state["faulthandler"] = m.i32(enabled) == 1
    # struct thread: file, fd, timeout_us, repeat, interp, exit, header: this one is there while it waits.
    timeout, header = at("thread.timeout_us", "thread", 16), at("thread.header", "thread", 48)
    if timeout and header and m.u64(header):
        seconds = m.i64(timeout) / 1e6
        state["dump_later"] = seconds if 0 < seconds < _LONGEST else None
    stack = at("stack", "stack", 0)
    if stack and state["faulthandler"]:
        state["stack"], state["stack_size"] = m.u64(stack), m.u64(stack + 16)
    pointer = at("user_signals", "user_signals", 0)
    users = m.u64(pointer) if pointer else 0
    if users:
        _users(ctx, users, rows)


def _users(ctx: Context, users: int, rows: list[Row]) -> None:
    size = ctx.runtime.layout.get("sizeof.faulthandler_user_signal", _USER_SIGNAL)
    chain = ctx.runtime.layout.get("faulthandler_user_signal.chain", _CHAIN)
    by_number = {row["number"]: row for row in rows}
    places = np.uint64(users) + np.arange(_SIGNALS, dtype=np.uint64) * np.uint64(size)
    half = np.uint64(0xFFFFFFFF)
    enabled = ctx.vectors.words(places) & half
    chained = ctx.vectors.words(places, chain) & half
    for number in np.flatnonzero(enabled == np.uint64(1)).tolist():
        if number in by_number:
            by_number[number]["faulthandler"] = "user"
            by_number[number]["chain"] = bool(chained[number])


# -- a table without a symbol ---------------------------------------------------------------------------


def _module(ctx: Context) -> Module | None:
    address = ctx.runtime.address
    return next((m for m in ctx.capture.modules if m.contains(address)), None)


def _searched(ctx: Context, module: Module) -> int:
    """65 pairs of a small number and an object; those of the two signals that glibc keeps are None."""
    none = module.symbol("_Py_NoneStruct")
    if not none:
        return 0
    ends = [m.end for m in ctx.capture.mappings if m.path == module.path]
    end = max([module.end, *ends])
    behind = [m.end for m in ctx.capture.mappings if m.start == end and m.writable and not m.path]
    low, high = module.start, max([end, *behind])
    before = _OF_LIBC[0] * _ENTRY + 8
    for start, words in ctx.capture.memory.blocks([(low, min(high, low + _MAX_DATA))]):
        places = np.flatnonzero(words[:-2] == np.uint64(none))
        places = places[words[places + 2] == np.uint64(none)]
        for place in places.tolist()[:1000]:
            table = start + 8 * place - before
            if _is_table(ctx, table, none):
                return int(table)
    return 0


def _is_table(ctx: Context, table: int, none: int) -> bool:
    places: U64 = np.uint64(table) + np.arange(1, _SIGNALS, dtype=np.uint64) * np.uint64(_ENTRY)
    tripped, functions = ctx.vectors.words(places), ctx.vectors.words(places, 8)
    if (tripped > np.uint64(1)).any() or (functions == 0).any():
        return False
    plain = ctx.vectors.are(functions, "int") | (functions == np.uint64(none))
    # SIG_DFL of most, and the same object in each.
    _, counts = np.unique(functions[plain], return_counts=True)
    return bool(int(plain.sum()) >= _SIGNALS // 2 and counts.max() >= _SIGNALS // 3)
