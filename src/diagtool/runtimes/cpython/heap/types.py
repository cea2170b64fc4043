"""Which words are addresses of types: asked of millions of words, answered by a table of what was seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.objects.addresssets import contains, distinct
from diagtool.runtimes.cpython.objects.reader import INLINE_VALUES, MANAGED_DICT

HAVE_GC = 1 << 14  # Py_TPFLAGS_HAVE_GC, Include/object.h
HEAPTYPE = 1 << 9
_MANAGED_WEAKREF = 1 << 3  # 3.12+
_TYPE_SUBCLASS = 1 << 31
_MAX_BASIC, _MAX_ITEM = 1 << 24, 1 << 20  # bytes of an instance without items, of an item
_MAX_TYPES = 1 << 20  # distinct ones; more are no types
_HASH = np.uint64(0x9E3779B97F4A7C15)
_TABLE_BITS = 16


class TypeTable:
    """Types by number, in the order they were met. Columns have an element a type."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.address: U64 = np.zeros(0, np.uint64)
        self.basic: NDArray[np.int64] = np.zeros(0, np.int64)  # tp_basicsize, bytes
        self.item: NDArray[np.int64] = np.zeros(0, np.int64)  # tp_itemsize, bytes
        self.flags: U64 = np.zeros(0, np.uint64)  # tp_flags
        self.before: NDArray[np.int64] = np.zeros(0, np.int64)  # bytes between the block and the object
        self._slot = np.full(1 << _TABLE_BITS, -1, np.int32)
        self._no_types: U64 = np.zeros(0, np.uint64)

    def __len__(self) -> int:
        return len(self.address)

    def index(self, words: U64) -> NDArray[np.int32]:
        """The number of the type at each address; -1 for what is no type."""
        out = self._known(words)
        rest = np.flatnonzero(out < 0)
        if not len(rest):
            return out
        strange = words[rest]
        likely = (strange & np.uint64(7) == 0) & (strange >= 4096) & (strange < np.uint64(1 << 47))
        rest = rest[likely]
        fresh = distinct(strange[likely])
        fresh = fresh[~contains(self._no_types, fresh)]
        if len(fresh):
            fresh = fresh[~np.isin(fresh, self.address)]
            good = self._are_types(fresh)
            self._add(fresh[good])
            self._no_types = np.union1d(self._no_types, fresh[~good])
        if len(rest) and len(self.address):
            order = np.argsort(self.address)
            at = np.minimum(np.searchsorted(self.address[order], words[rest]), len(order) - 1)
            hit = self.address[order][at] == words[rest]
            out[rest[hit]] = order[at[hit]]
        return out

    def _known(self, words: U64) -> NDArray[np.int32]:
        if not len(self.address):
            return np.full(len(words), -1, np.int32)
        out = self._slot[self._places(words)]
        wrong = self.address[out] != words  # -1 is the last type, which is then not the one asked for
        out[wrong] = -1
        return out

    @staticmethod
    def _places(words: U64) -> NDArray[np.intp]:
        places: NDArray[np.intp] = (words * _HASH >> np.uint64(64 - _TABLE_BITS)).astype(np.intp)
        return places

    def _are_types(self, addresses: U64) -> NDArray[np.bool_]:
        """A type has a type whose flags say that its instances are types, a name, and sensible sizes."""
        v, lay = self._ctx.vectors, self._ctx.runtime.layout
        good = np.ones(len(addresses), np.bool_)
        rows = np.arange(len(addresses))
        meta = v.types(addresses)
        for test in range(4):
            at = addresses[rows]
            if test == 0:
                kind = v.field(meta[rows], "PyTypeObject.tp_flags")
                fine = (kind & np.uint64(_TYPE_SUBCLASS) != 0) & (meta[rows] & np.uint64(7) == 0)
            elif test == 1:
                above = v.types(meta[rows])
                fine = v.field(above, "PyTypeObject.tp_flags") & np.uint64(_TYPE_SUBCLASS) != 0
            elif test == 2:
                basic = v.field(at, "PyTypeObject.tp_basicsize").astype(np.int64)
                item = v.field(at, "PyTypeObject.tp_itemsize").astype(np.int64)
                fine = (basic >= lay["sizeof.PyObject"]) & (basic < _MAX_BASIC)
                fine &= (item >= 0) & (item < _MAX_ITEM)
            else:
                name = v.field(at, "PyTypeObject.tp_name")
                fine = v.memory.load(name, "u1")[0] > 32
            good[rows[~fine]] = False
            rows = rows[fine]
            if not len(rows):
                break
        return good

    def _add(self, addresses: U64) -> None:
        addresses = addresses[: max(0, _MAX_TYPES - len(self.address))]
        if not len(addresses):
            return
        v, runtime = self._ctx.vectors, self._ctx.runtime
        first = len(self.address)
        flags = v.field(addresses, "PyTypeObject.tp_flags")
        basic = v.field(addresses, "PyTypeObject.tp_basicsize").astype(np.int64)
        item = v.field(addresses, "PyTypeObject.tp_itemsize").astype(np.int64)
        # _PyType_PreHeaderSize, pycore_object.h: the collector's head, and two words for managed ones.
        gc = (flags & np.uint64(HAVE_GC) != 0) & (not runtime.free_threaded)
        managed = MANAGED_DICT | (_MANAGED_WEAKREF if runtime.version >= (3, 12) else 0)
        words = (flags & np.uint64(managed) != 0) & (runtime.version >= (3, 11))
        before = gc * runtime.layout["sizeof.PyGC_Head"] + words * 16
        self.address = np.concatenate([self.address, addresses])
        self.basic = np.concatenate([self.basic, basic])
        self.item = np.concatenate([self.item, item])
        self.flags = np.concatenate([self.flags, flags])
        self.before = np.concatenate([self.before, before])
        self._slot[self._places(addresses)] = np.arange(first, len(self.address))

    def inline_values(self) -> NDArray[np.bool_]:
        """Types whose instances have their attributes' values at their end (3.13+)."""
        newer = self._ctx.runtime.version >= (3, 13)
        inline: NDArray[np.bool_] = (self.flags & np.uint64(INLINE_VALUES) != 0) & newer
        return inline


def kinds_named(ctx: Context, types: TypeTable, *names: str) -> list[int]:
    """Numbers of the types of exactly these ``tp_name``s."""
    return [i for i, a in enumerate(types.address.tolist()) if ctx.objects.type_name(a) in names]
