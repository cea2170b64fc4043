"""Registries of the interpreter and the standard library: how much is registered, and what most.

Table ``registries``, a row a registry (of an interpreter; of a logger; of an object with weak references):

- ``registry`` ("atexit", "logging handlers") and ``name`` (of the logger, of the type of the object);
- ``items``; ``same``: how many of these are the function (or type) of most items, ``example``: its name;
- ``instances``: to how many different objects these are bound, ``bound_to``: the type of these, if any;
- ``duplicates`` (logging handlers): that do what another one of the logger does;
- ``self_kept`` (weakref.finalize): whose function or arguments keep the very object that they wait for;
- ``key``: registry, name and example in one; ``held_by``: registry and name in words; ``address`` of one of
  the items, or of the object.

Registries in C are found in the interpreter's state, those of Python code in ``sys.modules``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.details.callables import most_registered
from diagtool.runtimes.cpython.heap.details.contents import NOTHING, first_items, items_of, run
from diagtool.runtimes.cpython.heap.details.finalizers import finalizers
from diagtool.runtimes.cpython.heap.details.loghandlers import handlers, loggers
from diagtool.runtimes.cpython.heap.details.weakrefs import weak_references
from diagtool.runtimes.cpython.objects.census import TypeNames
from diagtool.runtimes.cpython.signalhandlers import signal_table
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

Row = dict[str, Any]

_MAX_ROWS = 5_000
_SIGNALS = 65  # Py_NSIG of Linux
_FORKS = {
    "os.register_at_fork before": "before_forkers",
    "os.register_at_fork parent": "after_forkers_parent",
    "os.register_at_fork child": "after_forkers_child",
}
_HOOKS = {
    "gc.callbacks": ("gc.callbacks",),
    "sys.addaudithook": ("audit_hooks",),
    "codecs.register": ("codecs.search_path", "codec_search_path"),
}
#: Containers of functions, and of other things, in modules.
_FUNCTIONS = {"threading._register_atexit": ("threading", "_threading_atexits")}
_CONTAINERS = {
    "warnings.filters": ("warnings", "filters"),
    "multiprocessing.util.Finalize": ("multiprocessing.util", "_finalizer_registry"),
    "linecache.cache": ("linecache", "cache"),
}
_OF_SYS = ("modules", "path", "meta_path", "path_hooks", "path_importer_cache")
_LOOKED_AT = 200_000  # functions of one registry that are told apart
_LONGEST = 80  # characters of a name


def add_registries(ctx: Context, census: HeapCensus, interpreters: Sequence[Interpreter]) -> None:
    """Add the table ``registries``, most items first."""
    names = TypeNames(ctx, interpreters)
    sources: list[Callable[[], Iterator[Row]]] = []
    for interpreter in interpreters:
        sources += [
            lambda i=interpreter: _at_exit(ctx, i),  # type: ignore[misc]
            lambda i=interpreter: _in_state(ctx, i),  # type: ignore[misc]
            lambda i=interpreter: _in_sys(ctx, i),  # type: ignore[misc]
            lambda i=interpreter: _warned(ctx, i),  # type: ignore[misc]
        ]
    sources += [
        lambda: _signals(ctx),
        lambda: _in_modules(ctx, names),
        lambda: handlers(ctx, names),
        lambda: loggers(ctx, names),
        lambda: finalizers(ctx, names),
        lambda: weak_references(ctx, census),
    ]
    rows: list[Row] = []
    for source in sources:
        try:
            rows += source()
        except MemoryFault as fault:
            ctx.warn(f"some registries of callbacks could not be read: {fault}")
    rows = sorted((r for r in rows if r["items"]), key=lambda r: (-r["items"], r["registry"], r["name"]))
    for row in rows:
        row["example"] = row["example"] and row["example"][:_LONGEST]
        if row["bound_to"] is None:
            del row["bound_to"]
        row["held_by"] = [" of ".join(filter(None, (row["registry"], row["name"])))]
        row["key"] = " ".join(filter(None, (row["registry"], row["name"], row["example"])))
    ctx.builder.snapshot.tables["registries"] = rows[:_MAX_ROWS]


def row_of(ctx: Context, registry: str, functions: U64, name: str = "") -> Row:
    """The row of a registry of functions."""
    top = most_registered(ctx, functions[:_LOOKED_AT])
    return {
        "registry": registry,
        "name": name,
        "items": int(np.count_nonzero(functions)),
        "same": top.count if top else 0,
        "example": top.name if top else None,
        "instances": top.instances if top else 0,
        "bound_to": top.of if top else None,
        "address": top.example if top else 0,
    }


def _at_exit(ctx: Context, interpreter: Interpreter) -> Iterator[Row]:
    """Callbacks are structures of function, arguments, keywords; from 3.14 on tuples of these in a list.

    (Modules/atexitmodule.c, pycore_atexit.h.) A function that is not bound counts as bound to its first
    argument: ``register(close, client)`` keeps the client as ``register(client.close)`` does.
    """
    lay, v, m = ctx.runtime.layout, ctx.vectors, ctx.objects.memory
    if "PyInterpreterState.atexit.callbacks" in lay:
        table = m.u64(interpreter.address + lay["PyInterpreterState.atexit.callbacks"])
        count = lay.get("PyInterpreterState.atexit.ncallbacks", 0) + interpreter.address
    else:
        module = ctx.objects.dict_get(interpreter.modules, "atexit") if interpreter.modules else 0
        state = m.u64(module + lay["PyModuleObject.md_state"]) if module else 0
        if not state:
            return
        table = m.u64(state + lay["atexitmodule_state.atexit_callbacks"])
        count = state + lay["atexitmodule_state.ncallbacks"]
    if ctx.runtime.version >= (3, 14):
        entries = v.only(items_of(ctx, table), "tuple")
        entries = np.where(entries != 0, entries + np.uint64(lay["PyTupleObject.ob_item"]), np.uint64(0))
    else:
        entries = v.words(run(table, m.i32(count)))
    functions, arguments = v.words(entries), v.words(entries, 8)
    row = row_of(ctx, "atexit", functions)
    if not row["instances"] and row["same"]:
        mine = functions == v.words(entries[functions == np.uint64(row["address"])][:1])[0]
        kept = first_items(ctx, arguments[mine])
        kinds = v.types(kept)
        if len(kept) and (kinds == kinds[0]).all() and kept[0]:
            row["instances"] = len(np.unique(kept))
            row["bound_to"] = ctx.objects.qualified_kind(int(kept[0]))
    yield row


def _in_state(ctx: Context, interpreter: Interpreter) -> Iterator[Row]:
    lay, m = ctx.runtime.layout, ctx.objects.memory
    for registry, fields in [*((r, (f,)) for r, f in _FORKS.items()), *_HOOKS.items()]:
        offset = next((lay[key] for f in fields if (key := f"PyInterpreterState.{f}") in lay), None)
        held = m.u64(interpreter.address + offset) if offset is not None else 0
        if held:
            yield row_of(ctx, registry, items_of(ctx, held))


def _signals(ctx: Context) -> Iterator[Row]:
    """Functions of ``signal.signal``."""
    v = ctx.vectors
    table = signal_table(ctx)[0]
    functions = v.words(run(table, _SIGNALS, 16), 8)
    callables = v.are(functions, "function", "method", "builtin_function_or_method", "functools.partial")
    if table:
        yield row_of(ctx, "signal.signal", functions[callables])


def _plain(registry: str, items: int, name: str = "", example: str | None = None, address: int = 0) -> Row:
    return {
        "registry": registry,
        "name": name,
        "items": items,
        "same": items,
        "example": example,
        "instances": 0,
        "bound_to": None,
        "address": address,
    }


def _in_modules(ctx: Context, names: TypeNames) -> Iterator[Row]:
    for registry, where in _FUNCTIONS.items():
        for held in names.values(*where):
            yield row_of(ctx, registry, items_of(ctx, held))
    for registry, where in _CONTAINERS.items():
        for held in names.values(*where):
            yield _plain(registry, ctx.objects.size(held), address=held)


def _in_sys(ctx: Context, interpreter: Interpreter) -> Iterator[Row]:
    for name in _OF_SYS:
        held = ctx.objects.dict_get(interpreter.system, name) if interpreter.system else 0
        if held:
            yield _plain(f"sys.{name}", ctx.objects.size(held), address=held)


def _warned(ctx: Context, interpreter: Interpreter) -> Iterator[Row]:
    """``__warningregistry__`` of modules: a text that differs each time is remembered for good each time."""
    o, v, lay = ctx.objects, ctx.vectors, ctx.runtime.layout
    names, modules = o.dict_items(interpreter.modules) if interpreter.modules else (NOTHING, NOTHING)
    texts = v.texts(names)
    dicts = v.field(v.only(modules, "module"), "PyModuleObject.md_dict")
    wanted = len("__warningregistry__")
    for text, own in zip(texts, dicts.tolist(), strict=True):
        if not own:
            continue
        try:
            keys, values = o.dict_items(own)
        except MemoryFault:
            continue
        like = np.flatnonzero(v.field(keys, "PyASCIIObject.length") == wanted)
        for i in like.tolist():
            if o.text(int(keys[i])) == "__warningregistry__" and o.is_a(int(values[i]), "dict"):
                size = min(o.memory.u64(int(values[i]) + lay["PyDictObject.ma_used"]), 1 << 48)
                yield _plain("__warningregistry__", size, text, address=int(values[i]))
