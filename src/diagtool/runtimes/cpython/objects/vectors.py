"""Python objects in captured memory, thousands at a time: one numpy gather for each step of all of them.

Arrays of addresses in, arrays of addresses or values out; address 0 means "none" on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.blobs import without_blobs
from diagtool.capture.memory import U64, MemoryFault
from diagtool.capture.segments import without
from diagtool.runtimes.cpython.objects.addresssets import grouped
from diagtool.runtimes.cpython.objects.reader import INLINE_VALUES, MANAGED_DICT, Objects

_MAX_TYPES = 1 << 14  # of one array of objects; with more of them it is not objects
_MAX_ENTRIES = 64  # entries of an instance's own dict that are looked through for an attribute
_NAME_SPELLINGS = 8  # distinct string objects that may spell one attribute's name
_DEFERRED = 1 << 6  # of ob_gc_bits
_SHORT_TEXT = 96  # bytes of a string read in bulk; longer ones are read one by one

_0 = np.uint64(0)
_8 = np.uint64(8)


class Block:
    """Parts of many structures, read in one go; fields are columns by their offset in the structure."""

    def __init__(self, data: NDArray[np.uint8], low: int) -> None:
        self._data = data
        self._low = low

    def column(self, offset: int, dtype: str = "<u8") -> NDArray[Any]:
        """The field at ``offset`` of each structure; 0 where it could not be read."""
        at, size = offset - self._low, np.dtype(dtype).itemsize
        return np.ascontiguousarray(self._data[:, at : at + size]).view(dtype)[:, 0]


class Vectors:
    """Bulk reads over :class:`Objects`."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.memory = objects.memory
        self.layout = objects.layout
        self._object_memory: list[tuple[int, int]] | None = None
        self._buffers: list[tuple[int, int]] = []

    def words(self, addresses: U64, offset: int = 0) -> U64:
        """The 64-bit words at ``addresses + offset``; 0 where the address is 0 or unreadable."""
        values = self.memory.load(addresses + np.uint64(offset & (1 << 64) - 1))[0]
        return np.where(addresses != 0, values, _0)

    def block(self, addresses: U64, low: int, high: int) -> Block:
        """Bytes ``low`` to ``high`` of each structure: one gather instead of one for each field."""
        return Block(self.memory.load_block(addresses + np.uint64(low), high - low)[0], low)

    def field(self, addresses: U64, name: str) -> U64:
        """The 64-bit field ``name`` ("PyCodeObject.co_name") of each object."""
        return self.words(addresses, self.layout[name])

    def small(self, addresses: U64, name: str, dtype: str) -> NDArray[np.int64]:
        """A narrow field of each object, widened; 0 where unreadable."""
        values = self.memory.load(addresses + np.uint64(self.layout[name]), dtype)[0]
        return np.where(addresses != 0, values, 0).astype(np.int64)

    def types(self, addresses: U64) -> U64:
        """The address of each object's type."""
        return self.words(addresses, self.objects.type_offset)

    def kinds(self, addresses: U64) -> NDArray[np.str_]:
        """The bare ``tp_name`` of each object's type."""
        types, inverse = grouped(self.types(addresses))
        names = self._type_names(types, inverse)
        return np.array(names or [""], dtype=np.str_)[inverse] if len(addresses) else np.zeros(0, np.str_)

    def _type_names(self, types: U64, inverse: NDArray[np.intp]) -> list[str]:
        """Names of distinct types; where there are absurdly many only of those that several objects have."""
        if len(types) <= _MAX_TYPES:
            return [self.objects.type_name(t) if t else "" for t in types.tolist()]
        uses = np.bincount(inverse, minlength=len(types))
        worth = set(np.argsort(-uses, kind="stable")[:_MAX_TYPES].tolist())
        return [self.objects.type_name(t) if t and i in worth else "" for i, t in enumerate(types.tolist())]

    def by_type(self, addresses: U64) -> Iterator[tuple[int, NDArray[np.intp]]]:
        """(address of a type, rows of the objects of it) for each type; what has no type is left out."""
        types, inverse = grouped(self.types(addresses))
        names = self._type_names(types, inverse)
        if len(types) == 1 and names[0]:
            yield int(types[0]), np.arange(len(addresses))
            return
        order = np.argsort(inverse, kind="stable")
        bounds = np.searchsorted(inverse[order], np.arange(len(types) + 1)).tolist()
        for i, t in enumerate(types.tolist()):
            if names[i]:
                yield t, order[bounds[i] : bounds[i + 1]]

    def is_kind(self, addresses: U64, *names: str) -> NDArray[np.bool_]:
        """Whether each object's type has one of these ``tp_name``; cheaper than :meth:`kinds` for many."""
        return self.are(addresses, *names)

    def are(self, addresses: U64, *kinds: str) -> NDArray[np.bool_]:
        """Which objects are exactly of types with one of these bare names."""
        types, inverse = grouped(self.types(addresses))
        good = [name in kinds for name in self._type_names(types, inverse)]
        return np.array(good, np.bool_)[inverse] if len(addresses) else np.zeros(0, np.bool_)

    def inherit(self, addresses: U64, *bases: str) -> NDArray[np.bool_]:
        """Which objects are of types with one of these bare names, or of subclasses of these."""
        types, inverse = grouped(self.types(addresses))
        name_of, mro = self.objects.type_name, self.objects.mro
        names = self._type_names(types, inverse)
        good = [
            bool(name) and any(name_of(base) in bases for base in mro(t))
            for t, name in zip(types.tolist(), names, strict=True)
        ]
        return np.array(good, np.bool_)[inverse] if len(addresses) else np.zeros(0, np.bool_)

    def only(self, addresses: U64, *kinds: str) -> U64:
        """The addresses of objects of types with one of these bare names, 0 for all others."""
        return np.where(self.are(addresses, *kinds), addresses, _0)

    def references(self, addresses: U64) -> NDArray[np.int64]:
        """Reference counts; -1 where the count means nothing (immortal, unreadable).

        A free-threaded build keeps two, of the owning thread and of all others, which add up
        (Include/internal/pycore_object.h, ob_ref_local and ob_ref_shared with two flag bits). Functions,
        types, modules and the like have none there that counts everything: frames refer to them without
        being counted, and some are counted by each thread for itself (_PyGC_BITS_DEFERRED, pycore_gc.h).
        """
        if self.objects.free_threaded:
            local = self.small(addresses, "PyObject.ob_ref_local", "<u4")
            shared = self.field(addresses, "PyObject.ob_ref_shared").astype(np.int64) >> 2
            total = local + shared
            plain = self.small(addresses, "PyObject.ob_gc_bits", "u1") & _DEFERRED == 0
            return np.where((addresses != 0) & (local < 1 << 30) & (total > 0) & plain, total, -1)
        counts = self.field(addresses, "PyObject.ob_refcnt")
        if self.objects.version >= (3, 12):
            counts = counts & np.uint64(0xFFFFFFFF)
        good = (counts > 0) & (counts < 1 << 30)
        return np.where(good, counts, np.uint64(0)).astype(np.int64) - np.where(good, 0, 1)

    # -- strings and numbers ----------------------------------------------------------------------------

    def texts(self, addresses: U64) -> list[str]:
        """The characters of each ``str``; an ``int`` gives its digits, everything else ""."""
        n = len(addresses)
        out = [""] * n
        if not n:
            return out
        lay = self.layout
        plain = self.are(addresses, "str")
        state = self.small(addresses, "PyASCIIObject.state", "<u4")
        length = self.field(addresses, "PyASCIIObject.length").astype(np.int64)
        ascii_compact = (
            plain
            & (state >> lay["const.unicode_state_compact_shift"] & 1 == 1)
            & (state >> lay["const.unicode_state_ascii_shift"] & 1 == 1)
            & (length >= 0)
            & (length <= _SHORT_TEXT)
        )
        quick = np.flatnonzero(ascii_compact)
        if len(quick):
            width = max(1, int(length[quick].max()))
            data, ok = self.memory.load_block(
                addresses[quick] + np.uint64(lay["sizeof.PyASCIIObject"]), width
            )
            blob = data.tobytes().decode("latin-1")
            lengths = length[quick].tolist()
            if len(quick) == n and ok.all():
                return [
                    blob[at : at + size] for at, size in zip(range(0, n * width, width), lengths, strict=True)
                ]
            for row, (i, good) in enumerate(zip(quick.tolist(), ok.tolist(), strict=True)):
                if good:
                    out[i] = blob[row * width : row * width + lengths[row]]
                else:
                    out[i] = self.objects.text(int(addresses[i])) or ""
        for i in np.flatnonzero(~ascii_compact & (addresses != 0)).tolist():
            text = self.objects.text(int(addresses[i]))
            if text is None:
                number = self.objects.integer(int(addresses[i]))
                text = "" if number is None else str(number)
            out[i] = text
        return out

    def integers(self, addresses: U64, missing: int = -1) -> NDArray[np.int64]:
        """The value of each ``int`` or ``bool`` below 2**60; ``missing`` for everything else."""
        lay = self.layout
        whole = self.are(addresses, "int", "bool")
        if self.objects.version >= (3, 12):
            tag = self.field(addresses, "PyLongObject.long_value.lv_tag").astype(np.int64)
            digits, sign = tag >> 3, 1 - (tag & 3)
            at = lay["PyLongObject.long_value.ob_digit"]
        else:
            size = self.field(addresses, "PyVarObject.ob_size").astype(np.int64)
            digits, sign = np.abs(size), np.sign(size)
            at = lay["PyLongObject.ob_digit"]
        first, _ = self.memory.load(addresses + np.uint64(at), "<u4")
        second, _ = self.memory.load(addresses + np.uint64(at + 4), "<u4")
        value = np.where(digits > 0, first.astype(np.int64), 0)
        value = value + np.where(digits > 1, second.astype(np.int64) << 30, 0)
        return np.where(whole & (digits <= 2), sign * value, missing)

    def reals(self, addresses: U64) -> NDArray[np.float64]:
        """The value of each ``float``; NaN for everything else."""
        values = self.memory.load(addresses + np.uint64(self.layout["PyFloatObject.ob_fval"]), "<f8")[0]
        return np.where(self.are(addresses, "float"), values, np.nan)

    def sizes(self, addresses: U64) -> NDArray[np.int64]:
        """``len()`` of each list, tuple, deque, bytearray, set or dict; 0 for None, else -1."""
        lay, kinds = self.layout, self.kinds(addresses)
        out = np.where(kinds == "NoneType", 0, -1).astype(np.int64)
        for names, name in (
            (("list", "tuple", "collections.deque", "bytearray", "bytes"), "PyVarObject.ob_size"),
            (("set", "frozenset"), "PySetObject.used"),
            (("dict", "collections.OrderedDict"), "PyDictObject.ma_used"),
        ):
            pick = np.isin(kinds, names)
            if pick.any():
                out[pick] = np.minimum(self.memory.load(addresses[pick] + np.uint64(lay[name]))[0], 1 << 48)
        return out

    # -- attributes -------------------------------------------------------------------------------------

    def attribute(self, addresses: U64, name: str) -> U64:
        """Address of an attribute of each object (slots, inline values, split and combined dicts)."""
        out = np.zeros(len(addresses), np.uint64)
        for t, rows in self.by_type(addresses):
            out[rows] = self._attribute_of_type(addresses[rows], t, name)
        return out

    def _attribute_of_type(self, addresses: U64, type_address: int, name: str) -> U64:
        objects = self.objects
        try:
            slot = objects.slot(type_address, name)
            if slot is not None:
                return self.words(addresses, slot)
            values, dicts = self.instance_storage(addresses, type_address)
            out = self.dict_values(dicts, name)
            if values.any():
                index = objects.key_index(objects.cached_keys(type_address), name)
                if index >= 0:
                    out = np.where(values != 0, self.words(values, 8 * index), out)
        except MemoryFault:
            return np.zeros(len(addresses), np.uint64)
        return out

    def instance_storage(self, addresses: U64, type_address: int) -> tuple[U64, U64]:
        """Of instances of one type: (address of inline values or 0, address of the dict or 0)."""
        objects, lay = self.objects, self.layout
        none = np.zeros(len(addresses), np.uint64)
        flags = objects.type_flags(type_address)
        if objects.version >= (3, 11) and flags & MANAGED_DICT:
            if objects.version == (3, 11):
                return self.words(addresses, -32), self.words(addresses, -24)
            word = self.words(addresses, lay.get("const.MANAGED_DICT_OFFSET", -24))
            if objects.version == (3, 12):
                tagged = word & np.uint64(1) == 1
                return np.where(tagged, word + np.uint64(1), _0), np.where(tagged, _0, word)
            if not flags & INLINE_VALUES:
                return none, word
            size = self.memory.u64(type_address + lay["PyTypeObject.tp_basicsize"])
            values = addresses + np.uint64(size)
            valid = self.memory.load(values + np.uint64(lay["PyDictValues.valid"]), "u1")[0] != 0
            inline = np.where((word == 0) & valid, values + np.uint64(lay["PyDictValues.values"]), _0)
            return inline, word
        offset = self.memory.i64(type_address + lay["PyTypeObject.tp_dictoffset"])
        if 0 < offset < 1 << 20:
            return none, self.words(addresses, offset)
        if offset < 0:
            return none, np.array([objects.instance_dict(int(a)) for a in addresses], np.uint64)
        return none, none

    def dict_values(self, dicts: U64, name: str) -> U64:
        """Address of the value of the ``str`` key ``name`` in each dict."""
        out = np.zeros(len(dicts), np.uint64)
        there = np.flatnonzero(dicts)
        if not len(there):
            return out
        keys = self.field(dicts[there], "PyDictObject.ma_keys")
        values = self.field(dicts[there], "PyDictObject.ma_values")
        split = values != 0
        offset = self.layout.get("PyDictValues.values", 0)
        for k in np.unique(keys[split]):
            index = self.objects.key_index(int(k), name)
            if index >= 0:
                rows = split & (keys == k)
                out[there[rows]] = self.words(values[rows], offset + 8 * index)
        own = np.flatnonzero(~split & (keys != 0))
        if len(own):
            out[there[own]] = self._combined_values(keys[own], name)
        return out

    def _combined_values(self, keys: U64, name: str) -> U64:
        """The value of ``name`` in each combined keys object, entry by entry for all of them at once."""
        lay = self.layout
        out = np.zeros(len(keys), np.uint64)
        used = self.field(keys, "PyDictKeysObject.dk_nentries").astype(np.int64)
        first, general = self.dict_entries(keys)
        for kind, rows in (("PyDictKeyEntry", general), ("PyDictUnicodeEntry", ~general)):
            pick = np.flatnonzero(rows & (used > 0) & (first != 0))
            if len(pick):
                out[pick] = self._entry_values(
                    first[pick],
                    used[pick],
                    name,
                    lay[f"sizeof.{kind}"],
                    lay[f"{kind}.me_key"],
                    lay[f"{kind}.me_value"],
                )
        return out

    def dict_entries(self, keys: U64) -> tuple[U64, NDArray[np.bool_]]:
        """Of keys objects: (address of the first entry, 0 where senseless; whether entries hold hashes)."""
        if self.objects.version >= (3, 11):
            log2 = self.small(keys, "PyDictKeysObject.dk_log2_index_bytes", "u1") & 31
            index_bytes = np.left_shift(1, log2)
            general = self.small(keys, "PyDictKeysObject.dk_kind", "u1") == 0
        else:
            slots = self.field(keys, "PyDictKeysObject.dk_size").astype(np.int64)
            width = np.where(slots <= 0xFF, 1, np.where(slots <= 0xFFFF, 2, np.where(slots >> 32, 8, 4)))
            index_bytes = slots * width
            general = np.ones(len(keys), np.bool_)
        good = (keys != 0) & (index_bytes > 0) & (index_bytes < 1 << 30)
        behind = (self.layout["PyDictKeysObject.dk_indices"] + np.where(good, index_bytes, 0)).astype(
            np.uint64
        )
        return np.where(good, keys + behind, _0), general

    def _entry_values(
        self, first: U64, used: NDArray[np.int64], name: str, size: int, key_at: int, value_at: int
    ) -> U64:
        most = int(min(used.max(), _MAX_ENTRIES))
        steps = np.arange(most, dtype=np.uint64) * np.uint64(size)
        entries = first[:, None] + steps[None, :]
        inside = np.arange(most)[None, :] < used[:, None]
        keys = np.where(inside, self.memory.load(entries + np.uint64(key_at))[0], _0)
        # Attribute names are interned: one string object, or very few, spell the name in all dicts.
        distinct, counts = np.unique(keys[inside], return_counts=True)
        spelled = []
        for k in distinct[np.argsort(-counts)][:4096]:
            if k and self.objects._spells(int(k), name):
                spelled.append(k)
                if len(spelled) == _NAME_SPELLINGS or counts[distinct == k][0] * 2 > len(first):
                    break
        hit = np.isin(keys, np.array(spelled, np.uint64)) & inside
        column = hit.argmax(axis=1)
        found = hit[np.arange(len(first)), column]
        place = first + column.astype(np.uint64) * np.uint64(size) + np.uint64(value_at)
        return np.where(found, self.memory.load(place)[0], _0)

    def leave_out(self, buffers: Sequence[tuple[int, int]]) -> None:
        """Take these sorted ranges for buffers that hold no objects, from now on."""
        self._buffers = list(buffers)
        self._object_memory = None

    def object_memory(self) -> list[tuple[int, int]]:
        """The writable memory that may hold objects: all but the insides of big buffers."""
        if self._object_memory is None:
            ranges = [(s.start, s.end) for s in self.memory.segments if s.writable]
            ranges = without(ranges, self._buffers)
            with self.memory.unwatched():
                self._object_memory = without_blobs(ranges, self.memory.load)[0]
        return self._object_memory
