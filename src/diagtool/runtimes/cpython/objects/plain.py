"""Python objects in captured memory, one at a time: types, strings, numbers, containers.

Nothing is trusted: every length is bounded, every address may be garbage. What can't be read is None, 0 or
an empty list; reads of a missing page raise :class:`~diagtool.capture.memory.MemoryFault`.
Whatever comes in thousands is in :mod:`diagtool.runtimes.cpython.objects.vectors`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import cached_property

import numpy as np

from diagtool.capture.memory import U64, AddressSpace, MemoryFault

NO_ADDRESSES: U64 = np.zeros(0, np.uint64)

# Flags of PyTypeObject.tp_flags (Include/object.h).
_HEAPTYPE = 1 << 9
_LONG_SUBCLASS = 1 << 24
_UNICODE_SUBCLASS = 1 << 28
_TYPE_SUBCLASS = 1 << 31

_MAX_TEXT = 1 << 16  # characters of one string
_MAX_ITEMS = 1 << 20  # items of one container read one by one
_MAX_MRO = 256
_IMMORTAL = 1 << 30  # reference counts from here on belong to immortal objects (3.12+)


#: Old Cython calls its types what CPython calls its own ("coroutine"); they get this prefix of newer ones.
CYTHON_PREFIX = "_cython"


class PlainObjects:
    """Typed reads of plain objects; :class:`.objects.Objects` adds the attributes of instances.

    ``layout`` maps "PyCodeObject.co_name" to an offset in bytes; ``version`` is (major, minor).
    """

    def __init__(
        self, memory: AddressSpace, layout: Mapping[str, int], version: tuple[int, int], free_threaded: bool
    ) -> None:
        self.memory = memory
        self.layout = layout
        self.version = version
        self.free_threaded = free_threaded
        self._type_names: dict[int, str] = {}
        self._qualified: dict[int, str] = {}
        self._mros: dict[int, list[int]] = {}
        self._slots: dict[tuple[int, str], int | None] = {}
        self._key_index: dict[tuple[int, str], int] = {}
        self._flags: dict[int, int] = {}
        self._native: dict[str, int] = {}

    # -- types ------------------------------------------------------------------------------------------

    @cached_property
    def type_offset(self) -> int:
        return self.layout["PyObject.ob_type"]

    def type_of(self, address: int) -> int:
        """Address of the type of the object at ``address``."""
        return self.memory.u64(address + self.type_offset)

    def type_name(self, type_address: int) -> str:
        """``tp_name`` of a type: bare for heap types, dotted for static ones. "" if unreadable."""
        name = self._type_names.get(type_address)
        if name is None:
            try:
                name = self._read_type_name(type_address)
            except MemoryFault:
                name = ""
            if self._native.get(name, type_address) != type_address:
                name = f"{CYTHON_PREFIX}.{name}"
            self._type_names[type_address] = name
        return name

    def _read_type_name(self, address: int) -> str:
        # The type of a type is ``type`` or a subclass; where it is not, this is no type.
        if not self.type_flags(self.memory.u64(address + self.type_offset)) & _TYPE_SUBCLASS:
            return ""
        pointer = self.memory.u64(address + self.layout["PyTypeObject.tp_name"])
        return self.memory.cstring(pointer, 256).decode("utf-8", "replace")

    def set_native(self, types: Mapping[str, int]) -> None:
        """Tell CPython's own types of these names from others that are called the same."""
        self._native = {name: address for name, address in types.items() if self.type_name(address) == name}
        self._type_names = {a: n for a, n in self._type_names.items() if n not in self._native}

    def type_flags(self, type_address: int) -> int:
        """``tp_flags`` of a type, 0 if unreadable."""
        flags = self._flags.get(type_address)
        if flags is None:
            try:
                flags = self.memory.u64(type_address + self.layout["PyTypeObject.tp_flags"])
            except MemoryFault:
                flags = 0
            self._flags[type_address] = flags
        return flags

    def kind(self, address: int) -> str:
        """``tp_name`` of the type of an object, "" if unreadable."""
        if not address:
            return ""
        try:
            return self.type_name(self.type_of(address))
        except MemoryFault:
            return ""

    def qualified_kind(self, address: int) -> str:
        """Module and qualified name of the type of an object: "asyncio.queues.Queue"."""
        try:
            return self.qualified_type(self.type_of(address))
        except MemoryFault:
            return ""

    def qualified_type(self, type_address: int) -> str:
        """Module and qualified name of a type: "asyncio.queues.Queue"."""
        known = self._qualified.get(type_address)
        if known is None:
            known = self._qualified[type_address] = self._qualify(type_address)
        return known

    def _qualify(self, type_address: int) -> str:
        name = self.type_name(type_address)
        if not self.type_flags(type_address) & _HEAPTYPE:
            return name
        try:
            long_name = self.text(self.memory.u64(type_address + self.layout["PyHeapTypeObject.ht_qualname"]))
            own = self.memory.u64(type_address + self.layout["PyTypeObject.tp_dict"])
            module = self.text(self.dict_get(own, "__module__")) if own else None
        except (MemoryFault, KeyError):
            return name
        name = name.rpartition(".")[2]
        return f"{module}.{long_name or name}" if module and module != "builtins" else long_name or name

    def mro(self, type_address: int) -> list[int]:
        """Addresses of a type's method resolution order, itself first."""
        known = self._mros.get(type_address)
        if known is None:
            try:
                pointer = self.memory.u64(type_address + self.layout["PyTypeObject.tp_mro"])
                known = self.tuple_items(pointer, _MAX_MRO)
            except MemoryFault:
                known = []
            self._mros[type_address] = known = known or [type_address]
        return known

    def is_a(self, address: int, *names: str) -> bool:
        """Whether the type of an object, or a base of it, has one of the given (bare or dotted) names."""
        try:
            line = self.mro(self.type_of(address))
        except MemoryFault:
            return False
        return any(self.type_name(t) in names or self.type_name(t).rpartition(".")[2] in names for t in line)

    def references(self, address: int) -> int | None:
        """The reference count of an object; None where it means nothing (immortal, unreadable)."""
        try:
            if self.free_threaded:
                local = self.memory.u32(address + self.layout["PyObject.ob_ref_local"])
                shared = self.memory.i64(address + self.layout["PyObject.ob_ref_shared"])
                return None if local == 0xFFFFFFFF else local + (shared >> 2)
            count = self.memory.u64(address + self.layout["PyObject.ob_refcnt"])
        except (MemoryFault, KeyError):
            return None
        if self.version >= (3, 12):
            count &= 0xFFFFFFFF
        return count if count < _IMMORTAL else None

    # -- plain values -----------------------------------------------------------------------------------

    def text(self, address: int) -> str | None:
        """The characters of a ``str``; None if it is none. Cut at 65,536 characters."""
        if not address:
            return None
        m, lay = self.memory, self.layout
        try:
            if not self.type_flags(self.type_of(address)) & _UNICODE_SUBCLASS:
                return None
            length = m.u64(address + lay["PyASCIIObject.length"])
            state = m.u32(address + lay["PyASCIIObject.state"])
            kind = state >> lay["const.unicode_state_kind_shift"] & 7
            compact = state >> lay["const.unicode_state_compact_shift"] & 1
            ascii_only = state >> lay["const.unicode_state_ascii_shift"] & 1
            if kind not in (1, 2, 4) or length > 1 << 40:
                return None
            length = min(length, _MAX_TEXT)
            if compact:
                data = (
                    address + lay["sizeof.PyASCIIObject" if ascii_only else "sizeof.PyCompactUnicodeObject"]
                )
            else:
                data = m.u64(address + lay["PyUnicodeObject.data"])
            raw = m.read(data, length * kind)
        except MemoryFault:
            return None
        return raw.decode({1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}[kind], "replace")

    def bytes_of(self, address: int, limit: int = 1 << 24) -> bytes | None:
        """The bytes of a ``bytes`` object; None if it is unreadable or longer than ``limit``."""
        try:
            size = self.memory.u64(address + self.layout["PyVarObject.ob_size"])
            if size > limit:
                return None
            return self.memory.read(address + self.layout["PyBytesObject.ob_sval"], size)
        except MemoryFault:
            return None

    def integer(self, address: int) -> int | None:
        """The value of an ``int`` or ``bool`` of at most 64 digits; None if it is none."""
        if not address:
            return None
        m, lay = self.memory, self.layout
        try:
            if not self.type_flags(self.type_of(address)) & _LONG_SUBCLASS:
                return None
            if self.version >= (3, 12):
                tag = m.u64(address + lay["PyLongObject.long_value.lv_tag"])
                digits, sign = tag >> 3, 1 - (tag & 3)
                first = address + lay["PyLongObject.long_value.ob_digit"]
            else:
                size = m.i64(address + lay["PyVarObject.ob_size"])
                digits, sign = abs(size), (size > 0) - (size < 0)
                first = address + lay["PyLongObject.ob_digit"]
            if digits > 64:
                return None
            raw = struct.unpack(f"<{digits}I", m.read(first, 4 * digits))
        except MemoryFault:
            return None
        value: int = sum(d << 30 * i for i, d in enumerate(raw))
        return sign * value

    def real(self, address: int) -> float | None:
        """The value of a ``float`` (or int); None if it is neither."""
        if self.kind(address) == "float":
            value = self.memory.unpack("<d", address + self.layout["PyFloatObject.ob_fval"])[0]
            return float(value)
        return self.integer(address)

    def truth(self, address: int) -> bool | None:
        """The value of a ``bool`` (or int); None if it is none."""
        value = self.integer(address)
        return None if value is None else bool(value)

    def is_none(self, address: int) -> bool:
        """Whether this is ``None`` (a null pointer is not)."""
        return bool(address) and self.kind(address) == "NoneType"

    # -- containers -------------------------------------------------------------------------------------

    def size(self, address: int) -> int:
        """``len()`` of a list, tuple, set, frozenset, dict or deque; 0 if unreadable."""
        lay, kind = self.layout, self.kind(address)
        offset = {
            "dict": lay["PyDictObject.ma_used"],
            "set": lay["PySetObject.used"],
            "frozenset": lay["PySetObject.used"],
        }.get(kind, lay["PyVarObject.ob_size"])
        try:
            return min(self.memory.u64(address + offset), 1 << 48)
        except MemoryFault:
            return 0

    def tuple_items(self, address: int, limit: int = _MAX_ITEMS) -> list[int]:
        """Addresses of a tuple's items."""
        n = min(self.memory.u64(address + self.layout["PyVarObject.ob_size"]), limit)
        return self._words(address + self.layout["PyTupleObject.ob_item"], n)

    def list_items(self, address: int, limit: int = _MAX_ITEMS) -> list[int]:
        """Addresses of a list's items."""
        n = min(self.memory.u64(address + self.layout["PyVarObject.ob_size"]), limit)
        return self._words(self.memory.u64(address + self.layout["PyListObject.ob_item"]), n)

    def sequence_items(self, address: int, limit: int = _MAX_ITEMS) -> list[int]:
        """Addresses of the items of a list, tuple, set, frozenset or deque; of nothing else."""
        try:
            kind = self.kind(address)
            if kind == "list":
                return self.list_items(address, limit)
            if kind == "tuple":
                return self.tuple_items(address, limit)
            if kind in ("set", "frozenset"):
                return [int(x) for x in self.set_items(address)[:limit]]
            if kind == "collections.deque":
                return self.deque_items(address, limit)
        except MemoryFault:
            pass
        return []

    def _words(self, address: int, count: int) -> list[int]:
        return list(struct.unpack(f"<{count}Q", self.memory.read(address, 8 * count))) if count else []

    def set_items(self, address: int) -> U64:
        """Addresses of a set's items."""
        lay = self.layout
        mask = self.memory.u64(address + lay["PySetObject.mask"])
        table = self.memory.u64(address + lay["PySetObject.table"])
        if mask >= 1 << 26:
            return NO_ADDRESSES
        size = lay.get("sizeof.setentry", 16)
        raw = np.frombuffer(self.memory.read(table, (mask + 1) * size), dtype="<u8").reshape(-1, size // 8)
        key, hashed = raw[:, lay.get("setentry.key", 0) // 8], raw[:, lay.get("setentry.hash", 8) // 8]
        # A removed entry holds a static dummy and the hash -1, which no object has (Objects/setobject.c).
        return np.ascontiguousarray(key[(key != 0) & (hashed != np.uint64(2**64 - 1))])

    def deque_items(self, address: int, limit: int = _MAX_ITEMS) -> list[int]:
        """Addresses of a ``collections.deque``'s items."""
        lay, m = self.layout, self.memory
        left = m.u64(address + lay["dequeobject.leftblock"])
        index = m.u64(address + lay["dequeobject.leftindex"])
        remaining = min(m.u64(address + lay["PyVarObject.ob_size"]), limit)
        length = lay.get("const.BLOCKLEN", 64)
        out: list[int] = []
        while remaining > 0 and left and index < length:
            n = min(remaining, length - index)
            out += self._words(left + lay["deque_block.data"] + 8 * index, n)
            left, index, remaining = m.u64(left + lay["deque_block.rightlink"]), 0, remaining - n
        return out

    # -- dictionaries -----------------------------------------------------------------------------------

    def keys_entries(self, keys: int) -> tuple[int, int, int]:
        """Of a PyDictKeysObject: (address of the first entry, size of an entry in bytes, entries in use)."""
        lay, m = self.layout, self.memory
        used = m.u64(keys + lay["PyDictKeysObject.dk_nentries"])
        if self.version >= (3, 11):
            index_bytes = 1 << m.u8(keys + lay["PyDictKeysObject.dk_log2_index_bytes"])
            general = m.u8(keys + lay["PyDictKeysObject.dk_kind"]) == 0
        else:
            slots = m.u64(keys + lay["PyDictKeysObject.dk_size"])
            index_bytes = slots * (
                1 if slots <= 0xFF else 2 if slots <= 0xFFFF else 4 if slots <= 0xFFFFFFFF else 8
            )
            general = True
        size = lay["sizeof.PyDictKeyEntry"] if general else lay["sizeof.PyDictUnicodeEntry"]
        # An index slot has at least one byte, and there are more slots than entries.
        if used > _MAX_ITEMS or used > index_bytes or index_bytes > 1 << 30:
            raise MemoryFault(keys, 0)
        return keys + lay["PyDictKeysObject.dk_indices"] + index_bytes, size, used

    def _entries(self, keys: int) -> tuple[U64, U64, U64]:
        """(addresses of keys, addresses of values, addresses of the value fields) of a keys object."""
        first, size, used = self.keys_entries(keys)
        if not used:
            return NO_ADDRESSES, NO_ADDRESSES, NO_ADDRESSES
        raw = np.frombuffer(self.memory.read(first, size * used), dtype="<u8").reshape(used, size // 8)
        kind = "PyDictKeyEntry" if size == self.layout["sizeof.PyDictKeyEntry"] else "PyDictUnicodeEntry"
        value_at = self.layout[f"{kind}.me_value"]
        fields = np.uint64(first + value_at) + np.arange(used, dtype=np.uint64) * np.uint64(size)
        return raw[:, self.layout[f"{kind}.me_key"] // 8], raw[:, value_at // 8], fields

    def dict_items(self, address: int) -> tuple[U64, U64]:
        """Addresses of a dict's keys and values, in order of insertion (split tables too)."""
        keys = self.memory.u64(address + self.layout["PyDictObject.ma_keys"])
        values = self.memory.u64(address + self.layout["PyDictObject.ma_values"])
        names, combined, _ = self._entries(keys)
        if values:
            where = values + self.layout.get("PyDictValues.values", 0)
            combined = np.frombuffer(self.memory.read(where, 8 * len(names)), dtype="<u8")
        live = (names != 0) & (combined != 0)
        return names[live], combined[live]

    def dict_get(self, address: int, name: str) -> int:
        """Address of a dict's value by a ``str`` key; 0 when it is not there."""
        try:
            keys, values = self.dict_items(address)
        except MemoryFault:
            return 0
        for i, key in enumerate(keys):
            if self._spells(int(key), name):
                return int(values[i])
        return 0

    def _spells(self, address: int, name: str) -> bool:
        """Whether a str is ``name``; the length first, as most are not."""
        try:
            if self.memory.u64(address + self.layout["PyASCIIObject.length"]) != len(name):
                return False
        except MemoryFault:
            return False
        return self.text(address) == name

    def key_names(self, keys: int) -> U64:
        """Addresses of the keys of a keys object, 0 for those that are gone."""
        return self._entries(keys)[0]

    def key_index(self, keys: int, name: str) -> int:
        """Index of ``name`` in a keys object, -1 when it is not there."""
        known = self._key_index.get((keys, name))
        if known is None:
            known = -1
            try:
                names = self._entries(keys)[0]
                known = next((i for i, k in enumerate(names) if k and self._spells(int(k), name)), -1)
            except MemoryFault:
                pass
            self._key_index[keys, name] = known
        return known
