"""Python objects in captured memory, one at a time: instances and their attributes.

Attributes live in ``__slots__``, in a ``__dict__``, or, from 3.11 on, in values without one. Everything else
is in :mod:`diagtool.runtimes.cpython.objects.plain`; the same rules hold here.
"""

from __future__ import annotations

import numpy as np

from diagtool.capture.memory import MemoryFault
from diagtool.runtimes.cpython.objects.plain import CYTHON_PREFIX, NO_ADDRESSES, PlainObjects

__all__ = ["CYTHON_PREFIX", "INLINE_VALUES", "MANAGED_DICT", "Objects"]

_MAX_MEMBERS = 1 << 13  # entries of one type's dict that are looked through for slots

# Flags of PyTypeObject.tp_flags (Include/object.h).
MANAGED_DICT = 1 << 4  # 3.11+
INLINE_VALUES = 1 << 2  # 3.13+


class Objects(PlainObjects):
    """Typed reads of the objects of one interpreter's memory."""

    def attribute(self, address: int, name: str) -> int:
        """Address of an instance attribute (``__dict__`` or ``__slots__``); 0 when there is none."""
        if not address:
            return 0
        try:
            type_address = self.type_of(address)
            slot = self.slot(type_address, name)
            if slot is not None:
                return self.memory.u64(address + slot)
            return self._dict_attribute(address, type_address, name)
        except MemoryFault:
            return 0

    def _dict_attribute(self, address: int, type_address: int, name: str) -> int:
        values = self.inline_values(address, type_address)
        if values:
            index = self.key_index(self.cached_keys(type_address), name)
            return self.memory.u64(values + 8 * index) if index >= 0 else 0
        own = self.instance_dict(address, type_address)
        return self.dict_get(own, name) if own else 0

    def attribute_name(self, address: int, value: int) -> str | None:
        """Name of an attribute of an instance whose value is the object ``value``; None if none is."""
        type_address = self.type_of(address)
        values = self.inline_values(address, type_address)
        if values:
            names = self._entries(self.cached_keys(type_address))[0]
            held = self._words(values, len(names))
            return next((self.text(int(n)) for n, v in zip(names, held, strict=True) if v == value), None)
        own = self.instance_dict(address, type_address)
        if own:
            keys, held_values = self.dict_items(own)
            at = np.flatnonzero(held_values == np.uint64(value))
            if len(at):
                return self.text(int(keys[at[0]]))
        for t in self.mro(type_address):
            own = self.memory.u64(t + self.layout["PyTypeObject.tp_dict"])
            for key, descriptor in zip(*self.dict_items(own), strict=True) if own else ():
                offset = (
                    self._member_offset(int(descriptor))
                    if self.kind(int(descriptor)) == "member_descriptor"
                    else None
                )
                if offset is not None and self.memory.u64(address + offset) == value:
                    return self.text(int(key))
        return None

    def cached_keys(self, type_address: int) -> int:
        """The shared keys object of a heap type's instances."""
        return self.memory.u64(type_address + self.layout["PyHeapTypeObject.ht_cached_keys"])

    def inline_values(self, address: int, type_address: int) -> int:
        """Address of the first attribute value of an instance without a ``__dict__`` object; 0 if it has one.

        3.11: a pointer before the object; 3.12: the same pointer tagged; 3.13+: inside the object.
        """
        flags, m, lay = self.type_flags(type_address), self.memory, self.layout
        if self.version < (3, 11) or not flags & MANAGED_DICT:
            return 0
        if self.version == (3, 11):
            return m.u64(address - 4 * 8)
        word = m.u64(address + lay.get("const.MANAGED_DICT_OFFSET", -24))
        if self.version == (3, 12):
            return word + 1 if word & 1 else 0
        if word or not flags & INLINE_VALUES:
            return 0
        values = address + m.u64(type_address + lay["PyTypeObject.tp_basicsize"])
        return values + lay["PyDictValues.values"] if m.u8(values + lay["PyDictValues.valid"]) else 0

    def instance_dict(self, address: int, type_address: int | None = None) -> int:
        """Address of the instance's ``__dict__``, 0 when it has none (yet)."""
        type_address = type_address or self.type_of(address)
        m = self.memory
        if self.version >= (3, 11) and self.type_flags(type_address) & MANAGED_DICT:
            if self.version == (3, 11):
                return m.u64(address - 3 * 8)
            word = m.u64(address + self.layout.get("const.MANAGED_DICT_OFFSET", -24))
            return 0 if word & 1 else word
        offset = m.i64(type_address + self.layout["PyTypeObject.tp_dictoffset"])
        if offset < 0:
            size = m.i64(address + self.layout["PyVarObject.ob_size"])
            item = m.i64(type_address + self.layout["PyTypeObject.tp_itemsize"])
            basic = m.i64(type_address + self.layout["PyTypeObject.tp_basicsize"])
            offset += basic + abs(size) * item + 7 & -8
        return m.u64(address + offset) if 0 < offset < 1 << 20 else 0

    def slot(self, type_address: int, name: str) -> int | None:
        """Offset of a ``__slots__`` or C object member in instances of a type; None if it has no such."""
        key = (type_address, name)
        if key not in self._slots:
            self._slots[key] = self._find_slot(type_address, name)
        return self._slots[key]

    def slot_offsets(self, type_address: int) -> list[int]:
        """Offsets of all ``__slots__`` (and C object members) of a type and its bases."""
        found: set[int] = set()
        for t in self.mro(type_address):
            try:
                own = self.memory.u64(t + self.layout["PyTypeObject.tp_dict"])
                values = self.dict_items(own)[1][:_MAX_MEMBERS] if own else NO_ADDRESSES
            except MemoryFault:
                continue
            for descriptor in values.tolist():
                if self.kind(descriptor) == "member_descriptor":
                    offset = self._member_offset(descriptor)
                    if offset is not None:
                        found.add(offset)
        return sorted(found)

    def _member_offset(self, descriptor: int) -> int | None:
        """Where a member descriptor reads a whole object reference; None for other members.

        PyMemberDescrObject: PyDescr_COMMON (type, name, qualname), then PyMemberDef *; in PyMemberDef the
        type (6 and 16 are object references) and the offset follow the name (Include/descrobject.h).
        """
        try:
            member = self.memory.u64(descriptor + self.layout["sizeof.PyObject"] + 24)
            kind, offset = self.memory.i32(member + 8), self.memory.i64(member + 16)
        except MemoryFault:
            return None
        return offset if kind in (6, 16) and 0 < offset < 1 << 20 else None

    def _find_slot(self, type_address: int, name: str) -> int | None:
        for t in self.mro(type_address):
            try:
                own = self.memory.u64(t + self.layout["PyTypeObject.tp_dict"])
                descriptor = self.dict_get(own, name) if own else 0
                if not descriptor:
                    continue
                if self.kind(descriptor) != "member_descriptor":
                    return None
                return self._member_offset(descriptor)
            except MemoryFault:
                return None
        return None
