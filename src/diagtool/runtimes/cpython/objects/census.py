"""Objects of chosen types, found by one pass over captured memory, however many types there are.

A word that equals a type's address counts where the word before it is a plausible reference count (freed
objects keep their type but have a count of 0) and, for types that the collector tracks, where its list leads
back to the object. Types are looked up by name in ``sys.modules`` of every interpreter; nothing is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

__all__ = ("Census", "TypeNames", "alive", "tracked")

_HAVE_GC = 1 << 14  # Py_TPFLAGS_HAVE_GC, Include/object.h
_IMMORTAL = 1 << 30
_MUTEX_STATES = 3  # PyMutex: locked, has waiters
_IMMORTAL_LOCAL = (1 << 32) - 1  # _Py_IMMORTAL_REFCNT_LOCAL
DEFERRED = 1 << 6  # _PyGC_BITS_DEFERRED, Include/internal/pycore_gc.h
_UNREACHABLE = 1 << 2  # _PyGC_BITS_UNREACHABLE: of all objects not yet reached in a collection
_SHARED_SHIFT = 2  # _Py_REF_SHARED_SHIFT: the low bits of ob_ref_shared are flags
_MAX_HITS = 1 << 25  # words that look like a type's address; more of them is no heap

_8 = np.uint64(8)
_FLAGS = np.uint64(~7 & (1 << 64) - 1)


class TypeNames:
    """Types (and other globals) of a process by module and name, in all its interpreters."""

    def __init__(self, ctx: Context, interpreters: Iterable[Interpreter]) -> None:
        self.ctx = ctx
        self._modules: dict[str, list[int]] = {}  # name: addresses of the __dict__s
        for interpreter in interpreters:
            try:
                names, modules = ctx.objects.dict_items(interpreter.modules)
            except MemoryFault:
                continue
            modules = ctx.vectors.only(modules, "module")
            dicts = ctx.vectors.field(modules, "PyModuleObject.md_dict")
            for name, own in zip(ctx.vectors.texts(names), dicts.tolist(), strict=True):
                if own:
                    self._modules.setdefault(name, []).append(own)

    def values(self, module: str, name: str) -> list[int]:
        """Addresses of a global of a loaded module, one for each interpreter that has it."""
        found = (self.ctx.objects.dict_get(own, name) for own in self._modules.get(module, ()))
        return [address for address in found if address]

    def types(self, module: str, *names: str) -> list[int]:
        """Addresses of the classes of these names."""
        flag = self.ctx.objects.is_a
        found = {a for name in names for a in self.values(module, name) if flag(a, "type")}
        return sorted(found)


class Census:
    """Live objects by type, of the types asked for."""

    def __init__(self, ctx: Context, types: Iterable[int]) -> None:
        self.ctx = ctx
        self._types = np.unique(np.array([t for t in types if t], np.uint64))
        self._addresses, self._at = self._scan()
        order = np.argsort(self._at, kind="stable")
        self._addresses, self._at = self._addresses[order], self._at[order]

    def _scan(self) -> tuple[U64, U64]:
        # (addresses of objects, index of the type of each)
        none = np.zeros(0, np.uint64)
        if not len(self._types):
            return none, none
        # The low 16 bits sort out nearly everything; what is left is compared in full.
        table = np.zeros(1 << 16, np.bool_)
        table[(self._types & np.uint64(0xFFFF)).astype(np.intp)] = True
        found, which = [none], [none]
        total = 0
        for start, words in self.ctx.objects.memory.blocks(self.ctx.vectors.object_memory()):
            rows = np.flatnonzero(np.take(table, words.view("<u2")[::4]))
            candidates = words[rows]
            at = np.minimum(np.searchsorted(self._types, candidates), len(self._types) - 1)
            hit = self._types[at] == candidates
            rows = rows[hit]
            total += len(rows)
            if total > _MAX_HITS:
                self.ctx.warn("memory is full of references to types: objects were not counted to the end")
                break
            found.append(np.uint64(start) + rows.astype(np.uint64) * _8)
            which.append(at[hit].astype(np.uint64))
        offset = np.uint64(self.ctx.objects.type_offset)
        return np.concatenate(found) - offset, np.concatenate(which)

    def of(
        self,
        types: Iterable[int],
        *,
        but: U64 | None = None,
        test: Callable[[U64], NDArray[np.bool_]] | None = None,
    ) -> U64:
        """Sorted addresses of the live objects of exactly these types.

        Without those of ``but`` (sorted). ``test`` sorts out candidates, some of them no objects at all,
        before they are looked at closer.
        """
        parts = [np.zeros(0, np.uint64)]
        for t in sorted(set(types)):
            at = np.searchsorted(self._types, np.uint64(t))
            if at == len(self._types) or self._types[at] != t:
                continue
            first, end = np.searchsorted(self._at, np.array([at, at + 1], np.uint64))
            addresses = self._addresses[first:end]
            if but is not None and len(but):
                near = np.minimum(np.searchsorted(but, addresses), len(but) - 1)
                addresses = addresses[but[near] != addresses]
            if test is not None:
                addresses = addresses[test(addresses)]
            addresses = alive(self.ctx, addresses)
            if self.ctx.objects.type_flags(t) & _HAVE_GC:
                addresses = tracked(self.ctx, addresses)
            parts.append(addresses)
        return np.sort(np.concatenate(parts))


def alive(ctx: Context, addresses: U64) -> U64:
    """Those of candidates from a scan that are aligned and have a plausible reference count."""
    addresses = addresses[addresses & np.uint64(15) == 0]  # what allocators give, headers included
    if not len(addresses):
        return addresses
    if ctx.objects.free_threaded:
        return addresses[_alive_without_gil(ctx, addresses)]
    counts = ctx.vectors.field(addresses, "PyObject.ob_refcnt")
    if ctx.objects.version >= (3, 12):
        counts = counts & np.uint64(0xFFFFFFFF)
    good: U64 = addresses[(counts > 0) & (counts < _IMMORTAL)]
    return good


def _alive_without_gil(ctx: Context, addresses: U64) -> NDArray[np.bool_]:
    """In free-threaded builds; immortal objects are left out, as in others."""
    v = ctx.vectors
    own = v.small(addresses, "PyObject.ob_ref_local", "<u4").astype(np.int64)
    living = living_without_gil(
        v.field(addresses, "PyObject.ob_tid").view(np.int64),
        own,
        v.small(addresses, "PyObject.ob_ref_shared", "<i8"),
        v.small(addresses, "PyObject.ob_mutex", "u1"),
        v.small(addresses, "PyObject.ob_gc_bits", "u1"),
    )
    mortal: NDArray[np.bool_] = living & (own != _IMMORTAL_LOCAL)
    return mortal


def living_without_gil(
    owner: NDArray[np.int64],
    own: NDArray[np.int64],
    shared: NDArray[np.int64],
    lock: NDArray[np.int64],
    collector: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Heads of objects in free-threaded builds: a lock that is one, a count that fits the owner and is not 0.

    Given ob_tid, ob_ref_local, ob_ref_shared, ob_mutex and ob_gc_bits. Without an owner all references are in
    the shared count. Immortal ones have the largest count of their own; those whose references threads count
    for themselves (_PyGC_BITS_DEFERRED) have a shared count that says nothing (Include/refcount.h).
    """
    total = own + (shared >> _SHARED_SHIFT)
    # While it runs, the collector has a number of its own in the place of the owner.
    fits = (owner != 0) | (own == 0) | (collector & _UNREACHABLE != 0)
    counted = (total > 0) & (total < _IMMORTAL) & fits
    special = (own == _IMMORTAL_LOCAL) | ((collector & DEFERRED != 0) & (total > 0))
    good: NDArray[np.bool_] = (counted | special) & (lock <= _MUTEX_STATES)
    return good


def tracked(ctx: Context, addresses: U64) -> U64:
    """Those of candidates that the collector tracks: its neighbour points back to each.

    (PyGC_Head before the object: next, prev; the low bits of both are flags.) A free-threaded build has no
    such list, but a byte of flags in each object (ob_gc_bits), of which the first says "tracked".
    """
    if not len(addresses):
        return addresses
    if ctx.runtime.free_threaded:
        bits = ctx.vectors.small(addresses, "PyObject.ob_gc_bits", "u1")
        marked: U64 = addresses[bits & 1 == 1]
        return marked
    head = addresses - np.uint64(ctx.runtime.layout.get("sizeof.PyGC_Head", 16))
    following = ctx.vectors.words(head) & _FLAGS
    back = ctx.vectors.words(following, 8) & _FLAGS
    good: U64 = addresses[(following != 0) & (back == head)]
    return good
