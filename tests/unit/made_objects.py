"""Synthesised CPython 3.12 objects: just enough memory for the decoder to read, byte by byte."""

from __future__ import annotations

import struct

import numpy as np

from diagtool.capture.memory import AddressSpace, Segment
from diagtool.capture.model import Capture, ProcessInfo
from diagtool.runtimes.cpython import layouts
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.frames.codes import Codes
from diagtool.runtimes.cpython.objects.reader import Objects
from diagtool.runtimes.cpython.objects.vectors import Vectors
from diagtool.runtimes.cpython.runtime import Runtime
from diagtool.snapshot.model import SnapshotBuilder, Target

BASE = 0x7F0000000000
LAYOUT = layouts.load("3.12.1", "release")


class Heap:
    """Memory that grows; every object is written whole and gets an address."""

    def __init__(self, size: int = 1 << 22) -> None:
        self.data = bytearray(size)
        self.used = 4096
        self.types: dict[str, int] = {}

    def room(self, size: int) -> int:
        """Address of ``size`` fresh bytes, aligned to 16."""
        at = self.used
        self.used += size + 15 & -16
        return BASE + at

    def put(self, address: int, fmt: str, *values: int | float) -> None:
        """Write values at an address."""
        struct.pack_into("<" + fmt, self.data, address - BASE, *values)

    def field(self, address: int, name: str, value: int, fmt: str = "Q") -> None:
        """Write one field of a structure by its name in the layout."""
        self.put(address + LAYOUT[name], fmt, value)

    def type(self, name: str) -> int:
        """A static type of that name."""
        if name not in self.types:
            address = self.types[name] = self.room(1024)
            text = self.room(len(name) + 1)
            self.data[text - BASE : text - BASE + len(name)] = name.encode()
            self.field(address, "PyTypeObject.tp_name", text)
            mro = self.room(64)
            self.field(mro, "PyVarObject.ob_size", 1)
            self.field(mro, "PyTupleObject.ob_item", address)
            self.field(address, "PyTypeObject.tp_mro", mro)
            self.field(address, "PyObject.ob_type", self.type("type"))
            if name == "type":
                self.field(address, "PyTypeObject.tp_flags", LAYOUT["const.Py_TPFLAGS_TYPE_SUBCLASS"])
        return self.types[name]

    def object(self, kind: str, size: int, references: int = 1) -> int:
        """An object of a type with a reference count, behind a collector's head."""
        address = self.room(size + 16) + 16
        self.field(address, "PyObject.ob_refcnt", references)
        self.field(address, "PyObject.ob_type", self.type(kind))
        return address

    def list(self, items: list[int], references: int = 1) -> int:
        """A list of the given objects."""
        address = self.object("list", 64, references)
        table = self.room(8 * len(items) + 8)
        self.field(address, "PyVarObject.ob_size", len(items))
        self.field(address, "PyListObject.ob_item", table)
        for i, item in enumerate(items):
            self.put(table + 8 * i, "Q", item)
        return address

    def set_item(self, address: int, index: int, item: int) -> None:
        """Change an item of a list."""
        table = struct.unpack_from("<Q", self.data, address - BASE + LAYOUT["PyListObject.ob_item"])[0]
        self.put(table + 8 * index, "Q", item)

    def memory(self) -> AddressSpace:
        """What was written, as an address space."""
        space = AddressSpace()
        number = space.add_buffer(np.frombuffer(bytes(self.data), dtype=np.uint8))
        space.add_segments([Segment(BASE, BASE + len(self.data), number, 0)])
        return space

    def context(self) -> Context:
        """A decoder's context over this memory."""
        memory = self.memory()
        objects = Objects(memory, LAYOUT, (3, 12), False)
        capture = Capture("live", ProcessInfo(1), [], [], [], memory)
        runtime = Runtime(BASE, (3, 12), 1, "release", LAYOUT, "python3.12")
        builder = SnapshotBuilder(Target("live"))
        return Context(capture, runtime, objects, Vectors(objects), Codes(objects), builder)
