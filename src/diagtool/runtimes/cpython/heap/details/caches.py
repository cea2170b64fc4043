"""Caches of ``functools.lru_cache`` and ``cache``: what they hold, how often it helped, what they keep alive.

Table ``caches``, a row a function, most entries first:

- ``function`` and ``held_in`` ("class app.Store", "module app", None where neither has it), ``held_by``: the
  same in words;
- ``caches``: wrappers of this function (more than one where each instance or call makes its own), ``size``
  (entries of all of them), ``maxsize`` (None: without bound), ``hits``, ``misses``;
- ``method``: the first argument is an instance of the class that holds the wrapper; ``instances``: how many
  different ones there are, ``instances_of``: their class;
- ``lost``: objects in the keys that are equal to themselves only and to which nothing else refers, weakly or
  not: nobody can ask for their entries ever again;
- ``bytes``: of the tables, and of keys, results and lost objects to which nothing else refers, with what only
  they keep;
- ``address`` of one wrapper; ``looked_at``: entries read, where not all were.

The structures are those of Modules/_functoolsmodule.c: an unbounded cache maps keys to results, a bounded one
to list elements with key and result. A key is a tuple of the arguments, or a single str or int itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.details.amounts import bytes_of, kept_only, kept_with, objects_named
from diagtool.runtimes.cpython.heap.details.callables import by_identity, name_of, unwrapped
from diagtool.runtimes.cpython.heap.sizes import Sizer
from diagtool.runtimes.cpython.objects.addresssets import contains, distinct, grouped
from diagtool.runtimes.cpython.objects.census import TypeNames
from diagtool.runtimes.cpython.objects.referents import ragged
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

_WRAPPER = "functools._lru_cache_wrapper"
_LINK = "functools._lru_list_elem"
_MAX_ROWS = 1_000
_MAX_ENTRIES = 1 << 20  # of one cache that are looked at
_MAX_TOTAL = 1 << 22  # of all caches
_MAX_KEY = 64  # arguments
_MAX_METHODS = 2_000  # (function, type) pairs
_0 = np.uint64(0)


@dataclass(slots=True)
class _Entries:
    """Entries of caches: which row of the wrappers each belongs to, its key and result."""

    cache: NDArray[np.intp]
    key: U64
    result: U64


def add_caches(ctx: Context, census: HeapCensus, interpreters: Sequence[Interpreter]) -> None:
    """Add the table ``caches``."""
    v = ctx.vectors
    wrappers = objects_named(ctx, census, _WRAPPER)
    tables = v.field(wrappers, "lru_cache_object.cache")
    sizes = np.where(v.are(tables, "dict"), v.field(tables, "PyDictObject.ma_used"), _0).astype(np.int64)
    entries = _read(ctx, tables, sizes)
    functions = unwrapped(ctx, v.field(wrappers, "lru_cache_object.func"))[0]
    code = v.field(v.only(functions, "function"), "PyFunctionObject.func_code")
    group, members = grouped(np.where(code != 0, code, functions))
    most = np.bincount(members, weights=np.clip(sizes, 0, 1 << 48), minlength=len(group))
    by_group = np.argsort(members[entries.cache], kind="stable")
    bounds = np.searchsorted(members[entries.cache][by_group], np.arange(len(group) + 1))
    reader = _Reader(ctx, census, interpreters)
    rows: list[dict[str, Any]] = []
    for g in np.argsort(-most, kind="stable")[:_MAX_ROWS].tolist():
        mine = np.flatnonzero(members == g)
        held = by_group[bounds[g] : bounds[g + 1]]
        rows.append(
            reader.row(
                wrappers[mine],
                tables[mine],
                int(functions[mine[0]]),
                int(np.clip(sizes[mine], 0, 1 << 48).sum()),
                entries.key[held],
                entries.result[held],
            )
        )
    ctx.builder.snapshot.tables["caches"] = sorted(rows, key=lambda r: (-r["size"], r["function"]))


def _read(ctx: Context, tables: U64, sizes: NDArray[np.int64]) -> _Entries:
    """The entries of dicts with keys of any kind; of the largest ones, and of many, only the first."""
    v, lay = ctx.vectors, ctx.runtime.layout
    keys = v.field(np.where(sizes > 0, tables, _0), "PyDictObject.ma_keys")
    used = v.field(keys, "PyDictKeysObject.dk_nentries").astype(np.int64)
    used = np.clip(used, 0, _MAX_ENTRIES)
    order = np.argsort(-used, kind="stable")
    used[order] = np.where(np.cumsum(used[order]) <= _MAX_TOTAL, used[order], 0)
    first, general = v.dict_entries(keys)
    used = np.where(first != 0, used, 0)
    caches, names, values = [np.zeros(0, np.intp)], [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    for kind, rows in (("PyDictKeyEntry", general), ("PyDictUnicodeEntry", ~general)):
        if f"sizeof.{kind}" not in lay:
            continue
        pick = np.flatnonzero(rows & (used > 0))
        owner, places = _runs(first[pick], used[pick], lay[f"sizeof.{kind}"])
        caches.append(pick[owner])
        names.append(v.words(places, lay[f"{kind}.me_key"]))
        values.append(v.words(places, lay[f"{kind}.me_value"]))
    cache, key, value = np.concatenate(caches), np.concatenate(names), np.concatenate(values)
    there = (key != 0) & (value != 0)
    cache, key, value = cache[there], key[there], value[there]
    link = v.are(value, _LINK)
    return _Entries(cache, key, np.where(link, v.field(value, "lru_list_elem.result"), value))


def _runs(first: U64, counts: NDArray[np.int64], step: int) -> tuple[NDArray[np.intp], U64]:
    owner = np.repeat(np.arange(len(first)), counts)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    return owner, first[owner] + within.astype(np.uint64) * np.uint64(step)


class _Reader:
    """Rows of the table."""

    def __init__(self, ctx: Context, census: HeapCensus, interpreters: Sequence[Interpreter]) -> None:
        self.ctx = ctx
        self.census = census
        self._homes = _Homes(ctx, interpreters)
        self._sizer = Sizer(ctx, census.types)

    def row(
        self, wrappers: U64, tables: U64, function: int, size: int, keys: U64, results: U64
    ) -> dict[str, Any]:
        """The row of the caches of one function; ``keys`` and ``results`` are their entries."""
        ctx, v = self.ctx, self.ctx.vectors
        first, arguments = _arguments(ctx, keys)
        kind, home = self._homes.of_methods(wrappers, first)
        home = home or self._homes.of_function(int(wrappers[0]), function)
        name = name_of(ctx, function)
        lost = _lost(ctx, keys, arguments, results)
        bounds = v.field(wrappers, "lru_cache_object.maxsize").astype(np.int64)
        kept = _kept(ctx, keys, results, lost, tables)
        row: dict[str, Any] = {
            "function": name,
            "held_in": home,
            "held_by": [f"{home or 'a function'} → {name} (lru_cache, {size:,} entries)"],
            "caches": len(wrappers),
            "size": size,
            "maxsize": None if (bounds < 0).any() else int(bounds.max(initial=0)),
            "hits": _sum(v.field(wrappers, "lru_cache_object.hits")),
            "misses": _sum(v.field(wrappers, "lru_cache_object.misses")),
            "method": bool(kind),
            "instances": len(distinct(first[v.types(first) == np.uint64(kind)])) if kind else 0,
            "lost": len(lost),
            "bytes": bytes_of(ctx, self.census, self._sizer, kept),
            "address": int(wrappers[0]),
        }
        if kind:
            row["instances_of"] = ctx.objects.qualified_type(kind)
        if len(keys) < size:
            row["looked_at"] = len(keys)
        return row


def _sum(counts: U64) -> int:
    return int(np.clip(counts.astype(np.int64), 0, 1 << 48).sum())


def _arguments(ctx: Context, keys: U64) -> tuple[U64, U64]:
    """(first argument of each key, all arguments of all keys)."""
    v = ctx.vectors
    tuples = v.only(keys, "tuple")
    size = np.minimum(v.field(tuples, "PyVarObject.ob_size").astype(np.int64), _MAX_KEY)
    items = tuples + np.uint64(ctx.runtime.layout["PyTupleObject.ob_item"])
    arguments = v.words(ragged(np.where(tuples != 0, items, _0), size)[1])
    first = np.where(size > 0, v.words(np.where(tuples != 0, items, _0)), _0)
    return np.where(tuples != 0, first, keys), arguments


def _lost(ctx: Context, keys: U64, arguments: U64, results: U64) -> U64:
    """Objects of keys that nobody else has, and that equal nothing but themselves."""
    v = ctx.vectors
    kinds = distinct(v.types(arguments))
    kinds = kinds[kinds != 0][:_MAX_METHODS]
    arguments = arguments[contains(kinds[by_identity(ctx, kinds)], v.types(arguments))]
    wanted = distinct(arguments)
    objects, alone = kept_only(ctx, np.concatenate([arguments, results[contains(wanted, results)]]))
    objects = objects[alone & ~_weakly_known(ctx, objects)]
    # A tuple that somebody has besides the cache (its dict, and the element of its list) leads to them, too.
    shared = keys[(v.references(keys) > 2) & v.are(keys, "tuple")]
    return objects[~contains(distinct(_arguments(ctx, shared)[1]), objects)] if len(shared) else objects


def _weakly_known(ctx: Context, objects: U64) -> NDArray[np.bool_]:
    v = ctx.vectors
    at = v.field(v.types(objects), "PyTypeObject.tp_weaklistoffset")
    refs = v.words(np.where(at != 0, objects + at, _0))
    known: NDArray[np.bool_] = refs != 0
    return known


def _kept(ctx: Context, keys: U64, results: U64, lost: U64, tables: U64) -> U64:
    """Of keys and results those that nobody else has; a bounded cache has its keys twice."""
    v = ctx.vectors
    mine = distinct(keys)
    counts = v.references(mine)
    mine = mine[(counts > 0) & (counts <= 2) & v.are(mine, "tuple")]
    objects, alone = kept_only(ctx, results)
    kept = kept_with(ctx, np.concatenate([objects[alone], lost]))
    return distinct(np.concatenate([kept, mine, tables[tables != 0]]))


class _Homes:
    """Where wrappers are kept: in which class or module, by looking there."""

    def __init__(self, ctx: Context, interpreters: Sequence[Interpreter]) -> None:
        self.ctx = ctx
        self._names = TypeNames(ctx, interpreters)
        self._asked = 0
        self._values: dict[int, U64] = {}  # of the dicts of classes

    def of_methods(self, wrappers: U64, first: U64) -> tuple[int, str | None]:
        """(type of the first arguments that have a wrapper in a class of theirs, or 0; "class app.Store")."""
        kinds = self.ctx.vectors.types(first)
        distinct_kinds, counts = np.unique(kinds[kinds != 0], return_counts=True)
        for kind in distinct_kinds[np.argsort(-counts, kind="stable")].tolist()[:16]:
            self._asked += 1
            if self._asked > _MAX_METHODS:
                break
            holder = self._class_with(kind, wrappers)
            if holder:
                return kind, f"class {self.ctx.objects.qualified_type(holder)}"
        return 0, None

    def _class_with(self, kind: int, wrappers: U64) -> int:
        for base in self.ctx.objects.mro(kind):
            if base not in self._values:
                self._values[base] = self._values_of(base)
            if contains(wrappers, self._values[base]).any():
                return base
        return 0

    def _values_of(self, kind: int) -> U64:
        o = self.ctx.objects
        try:
            own = o.memory.u64(kind + self.ctx.runtime.layout["PyTypeObject.tp_dict"])
            return o.dict_items(own)[1] if own else np.zeros(0, np.uint64)
        except MemoryFault:
            return np.zeros(0, np.uint64)

    def of_function(self, wrapper: int, function: int) -> str | None:
        """The module or class that has a wrapper under the name of its function."""
        o, lay = self.ctx.objects, self.ctx.runtime.layout
        if o.kind(function) != "function":
            return None
        try:
            module = o.text(o.memory.u64(function + lay["PyFunctionObject.func_module"])) or ""
            path = (o.text(o.memory.u64(function + lay["PyFunctionObject.func_qualname"])) or "").split(".")
            for value in self._names.values(module, path[0]):
                holder = f"module {module}"
                for name in path[1:]:
                    if not o.is_a(value, "type"):
                        break
                    holder = f"class {o.qualified_type(value)}"
                    value = o.dict_get(o.memory.u64(value + lay["PyTypeObject.tp_dict"]), name)
                if o.kind(value) in ("staticmethod", "classmethod"):  # the callable follows the head
                    value = o.memory.u64(value + lay["sizeof.PyObject"])
                if value == wrapper:
                    return holder
        except MemoryFault:
            pass
        return None
