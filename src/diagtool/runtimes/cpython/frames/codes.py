"""Code objects: name, file and the line of an instruction, each decoded once and remembered."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.frames.linetable import all_lines
from diagtool.runtimes.cpython.objects.addresssets import grouped
from diagtool.runtimes.cpython.objects.reader import Objects
from diagtool.snapshot.model import Frame, SnapshotBuilder

_MAX_TABLE = 1 << 22  # bytes of one line table


@dataclass(slots=True)
class Code:
    """One code object, decoded. ``start`` is the address of its first instruction (3.11+, else 0)."""

    address: int
    name: str
    qualname: str
    filename: str
    first_line: int
    start: int
    flags: int
    argcount: int
    table: bytes
    locals: list[str] | None = None  # names of the fast locals, when asked for
    lines: list[tuple[int, int, int | None]] | None = None
    starts: list[int] = field(default_factory=list)


class Codes:
    """Code objects of a process by address; whatever is not a code object is None."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._codes: dict[int, Code | None] = {}
        self._type = 0  # address of the code type, once known
        #: Code objects that frames were made of, with their qualified names.
        self.used: dict[int, str] = {}

    def get(self, address: int) -> Code | None:
        """The code object at ``address``, or None if there is none."""
        if address not in self._codes:
            try:
                self._codes[address] = self._decode(address)
            except MemoryFault:
                self._codes[address] = None
        return self._codes[address]

    def _decode(self, address: int) -> Code | None:
        o, lay, m = self.objects, self.objects.layout, self.objects.memory
        if not address or o.kind(address) != "code":
            return None
        name = o.text(m.u64(address + lay["PyCodeObject.co_name"]))
        filename = o.text(m.u64(address + lay["PyCodeObject.co_filename"]))
        if name is None or filename is None:
            return None
        qualname = name
        if "PyCodeObject.co_qualname" in lay:
            qualname = o.text(m.u64(address + lay["PyCodeObject.co_qualname"])) or name
        table = lay.get("PyCodeObject.co_linetable")
        if table is None:
            table = lay["PyCodeObject.co_lnotab"]
        start = lay.get("PyCodeObject.co_code_adaptive")
        return Code(
            address=address,
            name=name,
            qualname=qualname,
            filename=filename,
            first_line=m.i32(address + lay["PyCodeObject.co_firstlineno"]),
            start=address + start if start is not None else 0,
            flags=m.u32(address + lay["PyCodeObject.co_flags"]),
            argcount=m.i32(address + lay["PyCodeObject.co_argcount"]),
            table=o.bytes_of(m.u64(address + table), _MAX_TABLE) or b"",
        )

    def line(self, code: Code, offset: int) -> int | None:
        """Line of the instruction at ``offset`` bytes into the code; None where the table has none."""
        if offset < 0:
            return code.first_line
        if code.lines is None:
            code.lines = all_lines(self.objects.version, code.table, code.first_line)
            code.starts = [start for start, _, _ in code.lines]
        i = bisect.bisect_right(code.starts, offset) - 1
        if i < 0:
            return code.first_line
        _, end, line = code.lines[i]
        return line if offset < end or i + 1 == len(code.lines) else None

    def local_names(self, code: Code) -> list[str]:
        """Names of the fast locals in the order of their slots (arguments first)."""
        if code.locals is None:
            code.locals = self._local_names(code.address)
        return code.locals

    def _local_names(self, address: int) -> list[str]:
        o, lay, m = self.objects, self.objects.layout, self.objects.memory
        names: list[str] = []
        fields = (
            ["co_localsplusnames"]
            if "PyCodeObject.co_localsplusnames" in lay
            else ["co_varnames", "co_cellvars", "co_freevars"]
        )
        for f in fields:
            try:
                items = o.tuple_items(m.u64(address + lay[f"PyCodeObject.{f}"]), 1 << 12)
            except MemoryFault:
                continue
            names += [o.text(i) or "" for i in items]
        return names

    def frame(
        self, address: int, offset: int, module: str | None, qualname: str | None = None
    ) -> Frame | None:
        """The Frame of an instruction; ``qualname`` is used where the version's code has none."""
        code = self.get(address)
        if code is None:
            return None
        name = code.qualname
        if qualname and self.objects.version < (3, 11) and qualname.rpartition(".")[2] == code.name:
            name = qualname
        self.used.setdefault(address, name)
        return Frame(name, code.filename, self.line(code, offset), module)

    def code_like(self, addresses: U64) -> NDArray[np.bool_]:
        """Which addresses hold a code object."""
        distinct, inverse = np.unique(addresses, return_inverse=True)
        good = [self.get(int(a)) is not None for a in distinct]
        return np.array(good, np.bool_)[inverse] if len(addresses) else np.zeros(0, np.bool_)

    def frame_ids(
        self,
        builder: SnapshotBuilder,
        codes: U64,
        offsets: NDArray[np.int64],
        details: Callable[[int], tuple[str | None, str | None]],
    ) -> NDArray[np.int32]:
        """Interned frames of many instructions; -1 where there is no code object.

        ``details(row)`` gives (module, qualified name) and is asked once for each distinct instruction.
        """
        key = grouped(codes)[1].astype(np.int64) << 32 | np.clip(offsets, -1, 1 << 30) + 1
        distinct, inverse = grouped(key.view(np.uint64))
        first = np.zeros(len(distinct), np.intp)
        first[inverse] = np.arange(len(inverse))
        ids = np.full(len(distinct), -1, np.int32)
        for i, row in enumerate(first.tolist()):
            frame = self.frame(int(codes[row]), int(offsets[row]), *details(row))
            if frame is not None:
                ids[i] = builder.frame(frame)
        return ids[inverse]
