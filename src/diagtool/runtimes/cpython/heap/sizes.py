"""How many bytes objects take: their own block, and what they own outside of it.

As ``sys.getsizeof`` counts, with what it leaves out: the attribute values of instances from 3.11 on, and the
data that arrays of numpy and tensors of torch own. Sources: ``__sizeof__`` of each type in
Objects/*.c, the layout tables, and for array.array and numpy the structures that their C interfaces fix
(Modules/arraymodule.c; PyArrayObject_fields, numpy/ndarraytypes.h).

Every number comes from memory that may be damaged: what is larger than the memory of the process is no size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.capture.segments import merged
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.tensors import TENSORS, storages
from diagtool.runtimes.cpython.heap.types import HEAPTYPE, TypeTable
from diagtool.runtimes.cpython.objects.addresssets import contains, distinct
from diagtool.runtimes.cpython.objects.reader import MANAGED_DICT

Sizes = NDArray[np.int64]
#: Given objects of one type: (bytes of their own blocks beyond tp_basicsize, bytes owned outside).
_Reader = Callable[[U64], "tuple[Sizes, Sizes]"]

_LONG, _LIST, _TUPLE = 1 << 24, 1 << 25, 1 << 26  # Py_TPFLAGS_*_SUBCLASS, Include/object.h
_BYTES, _UNICODE, _DICT, _TYPE = 1 << 27, 1 << 28, 1 << 29, 1 << 31
#: The own bytes of an object that claims more bytes than the process has.
NO_SIZE = 1 << 62
_LARGE = 1 << 20  # bytes: what claims more is held against the mappings
_CHUNK = 1 << 20  # objects looked at together
_GENERATORS = ("generator", "coroutine", "async_generator")
_OWNS_DATA = 4  # NPY_ARRAY_OWNDATA
_MAX_DIMENSIONS = 64  # NPY_MAXDIMS
_0 = np.uint64(0)


class Sizer:
    """Sizes of objects by type. All sizes in bytes."""

    def __init__(self, ctx: Context, types: TypeTable) -> None:
        self.ctx = ctx
        self.types = types
        total = sum(s.end - s.start for s in ctx.capture.memory.segments)
        total += sum(m.end - m.start for m in ctx.capture.mappings if m.writable)
        self._limit = min(max(total, 1 << 20), 1 << 48)  # damaged notes may claim more than there can be
        mapped = merged([(m.start, m.end) for m in ctx.capture.mappings if m.writable])
        self._mapped = np.array(mapped, np.uint64).reshape(-1, 2)
        self._storages: U64 = np.zeros(0, np.uint64)  # of tensors, that were counted

    def of(self, kind: int, objects: U64) -> tuple[Sizes, Sizes]:
        """(own bytes with the collector's head, bytes owned outside) of objects of type number ``kind``."""
        own = np.full(len(objects), int(self.types.basic[kind] + self.types.before[kind]), np.int64)
        owned = np.zeros(len(objects), np.int64)
        readers = self._readers(kind)
        for at in range(0, len(objects) if readers else 0, _CHUNK):
            part = slice(at, at + _CHUNK)
            for reader in readers:
                more, outside = reader(objects[part])
                good = self._sane(more, -int(self.types.basic[kind]))
                own[part] = np.where(good, own[part] + more, NO_SIZE)
                owned[part] += np.where(self._sane(outside) & good, outside, 0)
        return own, owned

    def _sane(self, sizes: Sizes, least: int = 0) -> NDArray[np.bool_]:
        good: NDArray[np.bool_] = (sizes >= least) & (sizes <= self._limit)
        return good

    def _readers(self, kind: int) -> list[_Reader]:
        address, flags = int(self.types.address[kind]), int(self.types.flags[kind])
        readers: list[_Reader] = []
        special = self._by_flags(flags) or self._by_name(address, kind)
        if special is not None:
            readers.append(special)
        elif self.types.item[kind] > 0:
            readers.append(lambda a: self._items(a, int(self.types.item[kind])))
        if self.ctx.runtime.version >= (3, 11) and flags & MANAGED_DICT and flags & HEAPTYPE:
            readers.append(lambda a: self._values(a, kind))
        return readers

    def _by_flags(self, flags: int) -> _Reader | None:
        for flag, reader in (
            (_UNICODE, self._str),
            (_LONG, self._int),
            (_LIST, self._list),
            (_DICT, self._dict),
            (_TYPE, self._type),
        ):
            if flags & flag:
                return reader
        return None

    def _by_name(self, address: int, kind: int) -> _Reader | None:
        own = self.ctx.objects.type_name(address)
        heap = int(self.types.flags[kind]) & HEAPTYPE
        if own in _GENERATORS and not heap and self.ctx.runtime.version >= (3, 11):
            return self._generator
        if own == "frame" and not heap and self.ctx.runtime.version >= (3, 11):
            return lambda a: (np.zeros(len(a), np.int64), np.zeros(len(a), np.int64))
        known: dict[str, _Reader] = {
            "bytearray": self._bytearray,
            "set": self._set,
            "frozenset": self._set,
            "collections.deque": self._deque,
            "array.array": self._array,
            "numpy.ndarray": self._ndarray,
            **dict.fromkeys(TENSORS, self._tensor),
        }
        for base in self.ctx.objects.mro(address):
            reader = known.get(self.ctx.objects.type_name(base))
            if reader is not None:
                return reader
        return None

    # -- parts of blocks --------------------------------------------------------------------------------

    def _field(self, objects: U64, name: str) -> Sizes:
        return self.ctx.vectors.field(objects, name).astype(np.int64)

    def _items(self, objects: U64, item: int) -> tuple[Sizes, Sizes]:
        count = np.abs(self._field(objects, "PyVarObject.ob_size"))
        count = np.where((count < 0) | (count > self._limit), self._limit, count)
        return count * item, np.zeros(len(objects), np.int64)

    def _int(self, objects: U64) -> tuple[Sizes, Sizes]:
        none = np.zeros(len(objects), np.int64)
        if self.ctx.runtime.version >= (3, 12):
            tag = self.ctx.vectors.field(objects, "PyLongObject.long_value.lv_tag")
            digits = np.maximum((tag >> np.uint64(3)).astype(np.int64), 1)
            return digits * 4, none
        return self._items(objects, 4)

    def _str(self, objects: U64) -> tuple[Sizes, Sizes]:
        lay = self.ctx.runtime.layout
        block = self.ctx.vectors.block(objects, 0, lay["sizeof.PyCompactUnicodeObject"])
        state = block.column(lay["PyASCIIObject.state"], "<u4")
        length = block.column(lay["PyASCIIObject.length"], "<i8")
        length = np.where((length < 0) | (length > self._limit), self._limit, length)
        kind = (state >> lay["const.unicode_state_kind_shift"] & 7).astype(np.int64)
        compact = state >> lay["const.unicode_state_compact_shift"] & 1 == 1
        plain = state >> lay["const.unicode_state_ascii_shift"] & 1 == 1
        ascii_only = compact & plain
        data = (length + 1) * kind
        # tp_basicsize is that of the largest of the three structures: what a compact str lacks comes off.
        head = np.where(
            compact,
            np.where(plain, lay["sizeof.PyASCIIObject"], lay["sizeof.PyCompactUnicodeObject"]),
            lay["sizeof.PyUnicodeObject"],
        )
        own = head - lay["sizeof.PyUnicodeObject"] + np.where(compact, data, 0)
        owned = np.where(compact, 0, data)
        utf8 = block.column(lay["PyCompactUnicodeObject.utf8"])
        size = block.column(lay["PyCompactUnicodeObject.utf8_length"], "<i8")
        cached = ~ascii_only & (utf8 != 0) & (size > 0) & ~plain
        owned = owned + np.where(cached, np.where((size < 0) | (size > self._limit), 0, size + 1), 0)
        return own, owned

    def _type(self, objects: U64) -> tuple[Sizes, Sizes]:
        if "PyHeapTypeObject.ht_cached_keys" not in self.ctx.runtime.layout:
            return np.zeros(len(objects), np.int64), np.zeros(len(objects), np.int64)
        flags = self.ctx.vectors.field(objects, "PyTypeObject.tp_flags")
        keys = self.ctx.vectors.field(objects, "PyHeapTypeObject.ht_cached_keys")
        keys = np.where(flags & np.uint64(HEAPTYPE) != 0, keys, _0)
        return np.zeros(len(objects), np.int64), self._keys(keys)

    def _generator(self, objects: U64) -> tuple[Sizes, Sizes]:
        lay, v = self.ctx.runtime.layout, self.ctx.vectors
        frame = objects + np.uint64(lay["PyGenObject.gi_iframe"])
        name = next(n for n in ("f_executable", "f_code") if f"_PyInterpreterFrame.{n}" in lay)
        code = v.field(frame, f"_PyInterpreterFrame.{name}") & np.uint64(~7 & (1 << 64) - 1)
        slots = v.small(code, "PyCodeObject.co_nlocalsplus", "<i4")
        slots = slots + v.small(code, "PyCodeObject.co_stacksize", "<i4")
        return np.where((slots > 0) & (slots < 1 << 20), slots * 8, 0), np.zeros(len(objects), np.int64)

    # -- what is owned ----------------------------------------------------------------------------------

    def _list(self, objects: U64) -> tuple[Sizes, Sizes]:
        room = self._field(objects, "PyListObject.allocated")
        table = self.ctx.vectors.field(objects, "PyListObject.ob_item")
        return np.zeros(len(objects), np.int64), self._there(table, self._times(room, 8))

    def _there(self, start: U64, size: Sizes) -> Sizes:
        """``size``, but -1 where it is large and no mapping has that many bytes at ``start``."""
        large = np.flatnonzero(size >= _LARGE)
        if len(large) and len(self._mapped):
            at = np.searchsorted(self._mapped[:, 0], start[large], side="right") - 1
            room = self._mapped[np.maximum(at, 0), 1] - start[large]
            lost = (at < 0) | (start[large] > self._mapped[at, 1]) | (room < size[large].astype(np.uint64))
            size = size.copy()
            size[large[lost]] = -1
        return size

    def _times(self, count: Sizes, size: Sizes | int) -> Sizes:
        return np.where((count < 0) | (count > self._limit), -1, np.minimum(count, self._limit) * size)

    def _bytearray(self, objects: U64) -> tuple[Sizes, Sizes]:
        """From 3.15 on the buffer is a bytes object, of which nobody else knows."""
        lay = self.ctx.runtime.layout
        room = self._field(objects, "PyByteArrayObject.ob_alloc")
        owned = np.where(room < 0, -1, room)
        if "PyByteArrayObject.ob_bytes_object" in lay:
            head = lay["PyBytesObject.ob_sval"] + 1
            owned = owned + np.where(room > 0, head, 0)
        start = self.ctx.vectors.field(objects, "PyByteArrayObject.ob_bytes")
        return np.zeros(len(objects), np.int64), self._there(start, owned)

    def _set(self, objects: U64) -> tuple[Sizes, Sizes]:
        lay = self.ctx.runtime.layout
        table = self.ctx.vectors.field(objects, "PySetObject.table")
        slots = self._field(objects, "PySetObject.mask") + 1
        outside = (table != objects + np.uint64(lay["PySetObject.smalltable"])) & (table != 0)
        owned = np.where(outside, self._times(slots, lay.get("sizeof.setentry", 16)), 0)
        return np.zeros(len(objects), np.int64), self._there(table, owned)

    def _deque(self, objects: U64) -> tuple[Sizes, Sizes]:
        lay = self.ctx.runtime.layout
        length = lay.get("const.BLOCKLEN", 64)
        start = self._field(objects, "dequeobject.leftindex")
        count = self._field(objects, "PyVarObject.ob_size")
        blocks = np.where((start >= 0) & (start <= length), (start + count + length - 1) // length, -1)
        return np.zeros(len(objects), np.int64), self._times(np.maximum(blocks, 1), 8 * (length + 2))

    def _array(self, objects: U64) -> tuple[Sizes, Sizes]:
        """PyObject_VAR_HEAD, ob_item, allocated, ob_descr: typecode, itemsize (Modules/arraymodule.c)."""
        v = self.ctx.vectors
        first = self.ctx.runtime.layout["PyVarObject.ob_size"] + 8
        room = v.words(objects, first + 8).astype(np.int64)
        item = v.memory.load(v.words(objects, first + 16) + np.uint64(4), "<i4")[0].astype(np.int64)
        item = np.where((item > 0) & (item <= 16), item, 0)
        return np.zeros(len(objects), np.int64), self._times(room, item)

    def _ndarray(self, objects: U64) -> tuple[Sizes, Sizes]:
        """PyObject_HEAD, data, nd, dimensions, strides, base, descr, flags: the same in numpy 1 and 2.

        The bytes are those that the largest stride steps over, which holds for what numpy allocates itself.
        Dimensions and strides are one block.
        """
        v = self.ctx.vectors
        first = self.ctx.runtime.layout["sizeof.PyObject"]
        count = v.memory.load(objects + np.uint64(first + 8), "<i4")[0].astype(np.int64)
        count = np.where((count > 0) & (count <= _MAX_DIMENSIONS), count, 0)
        sizes, strides = v.words(objects, first + 16), v.words(objects, first + 24)
        flags = v.memory.load(objects + np.uint64(first + 48), "<i4")[0]
        most = np.zeros(len(objects), np.int64)
        empty = np.zeros(len(objects), np.bool_)
        for axis in range(int(count.max(initial=0))):
            there = count > axis
            size = np.where(there, v.words(sizes, 8 * axis).astype(np.int64), 0)
            step = np.abs(np.where(there, v.words(strides, 8 * axis).astype(np.int64), 0))
            empty |= there & (size == 0)
            most = np.maximum(most, np.where((size >= 0) & (size <= self._limit), size, 0) * step)
        own_data = (flags & _OWNS_DATA != 0) & ~empty
        return np.zeros(len(objects), np.int64), np.where(own_data, most, 0) + 16 * count

    def _tensor(self, objects: U64) -> tuple[Sizes, Sizes]:
        """The bytes of a storage count with the first of its tensors."""
        storage, owned = storages(self.ctx, objects)
        first = np.zeros(len(objects), np.bool_)
        first[np.unique(storage, return_index=True)[1]] = True
        first &= ~contains(self._storages, storage)
        self._storages = distinct(np.concatenate([self._storages, storage]))
        return np.zeros(len(objects), np.int64), np.where(first, owned, 0)

    # -- dictionaries and instances ---------------------------------------------------------------------

    def _dict(self, objects: U64) -> tuple[Sizes, Sizes]:
        v = self.ctx.vectors
        keys = v.field(objects, "PyDictObject.ma_keys")
        values = v.field(objects, "PyDictObject.ma_values")
        alone = v.field(keys, "PyDictKeysObject.dk_refcnt") == 1
        owned = self._there(keys, self._keys(np.where(alone, keys, _0)))
        split = values != 0
        if split.any():
            owned = owned + np.where(split, self._split_values(keys, values), 0)
        return np.zeros(len(objects), np.int64), owned

    def _slots(self, keys: U64) -> Sizes:
        if self.ctx.runtime.version >= (3, 11):
            log2 = self.ctx.vectors.small(keys, "PyDictKeysObject.dk_log2_size", "u1")
            return np.left_shift(1, np.minimum(log2, 48))
        return self._field(keys, "PyDictKeysObject.dk_size")

    def _keys(self, keys: U64) -> Sizes:
        """Bytes of keys objects, 0 for none: head, index, and as many entries as the index may point to."""
        lay, v = self.ctx.runtime.layout, self.ctx.vectors
        slots = self._slots(keys)
        slots = np.where((slots < 0) | (slots > self._limit), 0, slots)
        if self.ctx.runtime.version >= (3, 11):
            log2 = v.small(keys, "PyDictKeysObject.dk_log2_index_bytes", "u1")
            index = np.left_shift(1, np.minimum(log2, 48))
            general = v.small(keys, "PyDictKeysObject.dk_kind", "u1") == 0
            entry = np.where(general, lay["sizeof.PyDictKeyEntry"], lay.get("sizeof.PyDictUnicodeEntry", 16))
        else:
            width = np.where(slots <= 0xFF, 1, np.where(slots <= 0xFFFF, 2, np.where(slots >> 32, 8, 4)))
            index, entry = slots * width, np.full(len(keys), lay["sizeof.PyDictKeyEntry"])
        size = lay["PyDictKeysObject.dk_indices"] + index + slots * 2 // 3 * entry  # USABLE_FRACTION
        return np.where(keys != 0, size, 0)

    def _split_values(self, keys: U64, values: U64) -> Sizes:
        """Bytes of the values of dicts that share their keys. What lies inside an instance counts there."""
        version = self.ctx.runtime.version
        if version >= (3, 13):
            embedded = self.ctx.vectors.small(values, "PyDictValues.embedded", "u1") != 0
            return np.where(embedded, 0, self._values_with_capacity(values))
        if version >= (3, 11):
            return self._values_behind_prefix(keys, values)
        slots = self._slots(keys)
        return np.where((slots > 0) & (slots < 1 << 16), slots * 2 // 3, 0) * 8  # USABLE_FRACTION

    def _values_behind_prefix(self, keys: U64, values: U64) -> Sizes:
        """3.11 and 3.12: before the values there is a byte for each, and two; the last is their number.

        (new_values in Objects/dictobject.c.) That is rounded up to 8, so how many values there are is taken
        from the keys, as far as it agrees: each new instance of a class may have room for fewer.
        """
        prefix = self.ctx.vectors.memory.load(values - np.uint64(1), "u1")[0].astype(np.int64)
        room = self.ctx.vectors.field(keys, "PyDictKeysObject.dk_usable").astype(np.int64)
        room = room + self.ctx.vectors.field(keys, "PyDictKeysObject.dk_nentries").astype(np.int64)
        return prefix + 8 * np.clip(room, np.maximum(prefix - 9, 0), np.maximum(prefix - 2, 0))

    def _values_with_capacity(self, values: U64) -> Sizes:
        """3.13 and later: a head with the capacity, the values, and a byte for each (_PyInlineValuesSize)."""
        room = self.ctx.vectors.small(values, "PyDictValues.capacity", "u1")
        return self.ctx.runtime.layout["PyDictValues.values"] + room * 8 + (room + 7 & -8)

    def _values(self, objects: U64, kind: int) -> tuple[Sizes, Sizes]:
        """The attribute values of instances: inside (3.13+), or a block of their own while no dict is."""
        address = int(self.types.address[kind])
        none = np.zeros(len(objects), np.int64)
        if self.ctx.runtime.version >= (3, 13):
            if not self.types.inline_values()[kind]:
                return none, none
            return self._values_with_capacity(objects + np.uint64(self.types.basic[kind])), none
        values, _ = self.ctx.vectors.instance_storage(objects, address)
        keys = self.ctx.vectors.field(np.array([address], np.uint64), "PyHeapTypeObject.ht_cached_keys")
        if not keys[0] or not values.any():
            return none, none
        return none, np.where(
            values != 0, self._values_behind_prefix(np.repeat(keys, len(values)), values), 0
        )
