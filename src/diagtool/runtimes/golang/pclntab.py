"""The function tables that every Go program carries: what runs at an address, and how deep its frame is.

Facts: cmd/link/internal/ld/pcln.go writes them, runtime/symtab.go and symtabinl.go read them. ``ftab`` has
the functions by address; each ``_func`` refers to tables of (value, until which pc): pairs of numbers of
variable length, and to the tree of what was inlined in it. All offsets are relative to tables of moduledata.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.golang.names import function_name
from diagtool.runtimes.golang.model import GoModule, GoRuntime

__all__ = ["NO_FUNCTION", "Function", "Functions", "Line", "pc_value"]

_MOST_FUNCTIONS = 8_000_000  # of one module
_TABLE = 512  # bytes of a table read first
_MOST_TABLE = 1 << 20
_MOST_INLINED = 200  # frames at one place
_MAX_NAME = 2048
_MAX_TEXT_SECTIONS = 4096
_INLTREE_INDEX = 2  # PCDATA_InlTreeIndex, internal/abi/symtab.go
_INLTREE = 3  # FUNCDATA_InlTree
_NONE = 0xFFFFFFFF  # offset of function data that is not there
NO_FUNCTION = -1

TOP_FRAME, SP_WRITE = 1, 2  # FuncFlag, the same in all versions


@dataclass(frozen=True, slots=True)
class Function:
    """One function: what its ``_func`` says. ``name`` as in the symbol table."""

    module: int
    entry: int
    name: str
    id: int  # FuncID: which of those that the runtime itself knows
    flag: int
    pcsp: int
    pcfile: int
    pcln: int
    unit: int  # offset of its compilation unit's files
    inline_index: int  # offset of the table that says what is inlined where; 0: nothing
    inline_tree: int  # address; 0: none


@dataclass(frozen=True, slots=True)
class Line:
    """One frame in the source. ``wrapper``: made by the compiler, which tracebacks leave out."""

    function: str
    file: str
    line: int
    wrapper: bool = False


class _Tables:
    """The tables of one module. ``entries``: first addresses of its functions, and the end of the last."""

    def __init__(self, runtime: GoRuntime, module: GoModule) -> None:
        memory = runtime.memory

        def word(name: str, part: int = 0) -> int:
            data = memory.try_read(module.address + runtime.o("moduledata", name) + 8 * part, 8)
            return int.from_bytes(data, "little") if data else 0

        self.names, self.units, self.files = word("funcnametab"), word("cutab"), word("filetab")
        self.values, self.functions = word("pctab"), word("pclntable")
        self.names_size, self.files_size = word("funcnametab", 1), word("filetab", 1)
        self.inline = module.words.get("gofunc", 0)
        self.entries: U64 = np.zeros(0, np.uint64)
        self.offsets: NDArray[np.uint32] = np.zeros(0, np.uint32)
        where, count = word("ftab"), word("ftab", 1)
        if not 0 < count <= _MOST_FUNCTIONS:
            return
        block, ok = _pieces(runtime, where, 8 * count)
        if not ok:
            return
        pairs = block.view("<u4").reshape(-1, 2)
        self.offsets = pairs[:, 1].copy()
        relative = pairs[:, 0].astype(np.uint64)
        if len(relative) and (np.diff(relative.astype(np.int64)) < 0).any():
            return  # damaged: what is looked for in it would not be found
        self.entries = _text(runtime, module, relative)


def _pieces(runtime: GoRuntime, address: int, size: int) -> tuple[NDArray[np.uint8], bool]:
    out = np.zeros(size, np.uint8)
    step = 16 << 20
    for at in range(0, size, step):
        data = runtime.memory.try_read(address + at, min(step, size - at))
        if data is None:
            return out, False
        out[at : at + len(data)] = np.frombuffer(data, np.uint8)
    return out, True


def _text(runtime: GoRuntime, module: GoModule, relative: U64) -> U64:
    """Addresses for offsets into the text: large programs have several sections of it (textsectmap)."""
    at, memory = module.address + runtime.o("moduledata", "textsectmap"), runtime.memory
    head = memory.try_read(at, 16)
    place, count = (int.from_bytes(head[i : i + 8], "little") for i in (0, 8)) if head else (0, 0)
    out: U64 = relative + np.uint64(module.text)
    if not 1 < count <= _MAX_TEXT_SECTIONS:
        return out
    data = memory.try_read(place, 24 * count)
    if data is None:
        return out
    for low, high, base in np.frombuffer(data, "<u8").reshape(-1, 3):
        inside = (relative >= low) & (relative < high)
        out[inside] = relative[inside] - low + base
    out[-1] = max(int(out[-1]), int(out[-2]) if len(out) > 1 else 0)
    return out


class Functions:
    """All functions of a Go runtime, looked up by address, each thing decoded once."""

    def __init__(self, runtime: GoRuntime) -> None:
        self.runtime = runtime
        self._tables = [_Tables(runtime, module) for module in runtime.modules]
        self._found: dict[tuple[int, int], Function | None] = {}
        self._lines: dict[int, tuple[Line, ...]] = {}
        self._file_names: dict[int, str] = {}
        self._symbols: dict[int, str] = {}
        self._tail: dict[int, bytes] = {}
        layout = runtime.layout
        self._head = runtime.size("_func")
        self._wrapper = layout.constants.get(
            "internal/abi.FuncIDWrapper", layout.constants.get("runtime.funcID_wrapper", -1)
        )
        self._entry_of_inlined = runtime.o("inlinedCall", "parentPc")
        self._name_of_inlined = _either(runtime, "inlinedCall", "nameOff", "func_")
        self._id_of_inlined = runtime.o("inlinedCall", "funcID")
        self._inlined_size = runtime.size("inlinedCall")
        self.address_of_id = {
            name: layout.constants.get(
                f"internal/abi.FuncID_{name}", layout.constants.get(f"runtime.funcID_{name}", -1)
            )
            for name in (
                "sigpanic",
                "asyncPreempt",
                "debugCallV2",
                "cgocallback",
                "goexit",
                "systemstack_switch",
            )
        }

    @property
    def readable(self) -> bool:
        """Whether there is any function at all."""
        return any(len(t.entries) > 1 for t in self._tables)

    def id_of(self, name: str) -> int:
        """FuncID of a function that the runtime knows by number ("sigpanic"), -1 where it does not."""
        return self.address_of_id.get(name, -1)

    def locate(self, pcs: U64) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each address (module, number of the function in it), NO_FUNCTION where there is none."""
        module = np.full(len(pcs), NO_FUNCTION, np.int64)
        number = np.full(len(pcs), NO_FUNCTION, np.int64)
        for i, tables in enumerate(self._tables):
            if len(tables.entries) < 2:
                continue
            at = np.searchsorted(tables.entries, pcs, side="right") - 1
            inside = (at >= 0) & (pcs < tables.entries[-1]) & (module == NO_FUNCTION)
            module[inside], number[inside] = i, at[inside]
        return module, number

    def at(self, pc: int) -> Function | None:
        """The function that an address is in."""
        module, number = self.locate(np.array([pc], np.uint64))
        return None if number[0] < 0 else self._function(int(module[0]), int(number[0]))

    def contains(self, pcs: U64) -> NDArray[np.bool_]:
        """Which addresses are in Go's functions."""
        out: NDArray[np.bool_] = self.locate(pcs)[1] >= 0
        return out

    def entry(self, name: str) -> int:
        """The first address of a function by its symbol, 0 where there is none. Reads all names: slow."""
        wanted = re.compile(rb"(?:\A|\0)" + re.escape(name.encode()) + rb"\0")
        for i, tables in enumerate(self._tables):
            if not len(tables.entries):
                continue
            names, ok = _pieces(self.runtime, tables.names, min(tables.names_size, 256 << 20))
            found = wanted.search(names.tobytes()) if ok else None
            if found is None:
                continue
            offset = found.start() + (names[found.start()] == 0)
            heads, fine = self.runtime.memory.load(
                tables.offsets[:-1].astype(np.uint64) + np.uint64(tables.functions + self._o("nameOff")),
                "<u4",
            )
            at = np.flatnonzero(fine & (heads == offset))
            if len(at):
                function = self._function(i, int(at[0]))
                return function.entry if function is not None else 0
        return 0

    def _o(self, name: str) -> int:
        if name in ("entryOff", "nameOff"):
            return _either(self.runtime, "_func", name, name.lower())
        return self.runtime.o("_func", name)

    def _function(self, module: int, number: int) -> Function | None:
        key = module, number
        if key not in self._found:
            self._found[key] = self._decoded(module, number)
        return self._found[key]

    def _decoded(self, module: int, number: int) -> Function | None:
        tables, memory = self._tables[module], self.runtime.memory
        address = tables.functions + int(tables.offsets[number])
        head = memory.try_read(address, self._head)
        if head is None:
            return None

        def u32(name: str) -> int:
            at = self._o(name)
            return int.from_bytes(head[at : at + 4], "little")

        count, data_count = u32("npcdata"), head[self._o("nfuncdata")]
        if count > 64:
            return None
        more = memory.try_read(address + self._head, 4 * (count + data_count)) or b""
        words = np.frombuffer(more, "<u4").tolist()
        index = words[_INLTREE_INDEX] if len(words) > _INLTREE_INDEX < count else 0
        tree = words[count + _INLTREE] if len(words) > count + _INLTREE and data_count > _INLTREE else _NONE
        return Function(
            module=module,
            entry=int(tables.entries[number]),
            name=self._name(tables, u32("nameOff")),
            id=head[self._o("funcID")],
            flag=head[self._o("flag")],
            pcsp=u32("pcsp"),
            pcfile=u32("pcfile"),
            pcln=u32("pcln"),
            unit=u32("cuOffset"),
            inline_index=index,
            inline_tree=tables.inline + tree if tree != _NONE and tables.inline else 0,
        )

    def _name(self, tables: _Tables, offset: int) -> str:
        if not 0 < offset < tables.names_size:
            return ""
        return self._text_at(self._symbols, tables.names + offset)

    def _text_at(self, cache: dict[int, str], address: int) -> str:
        known = cache.get(address)
        if known is None:
            data = self.runtime.memory.try_read(address, 64)
            if data is None or b"\0" not in data:
                try:
                    data = self.runtime.memory.cstring(address, _MAX_NAME)
                except MemoryFault:  # a name is no reason to give up
                    data = b""
            known = cache[address] = data.partition(b"\0")[0].decode("utf-8", "replace")
        return known

    # -- tables of values -------------------------------------------------------------------------------

    def frame_size(self, function: Function, pc: int) -> int:
        """Bytes that a function has below its return address at ``pc``; -1 where that is not known."""
        value = self._value(function, function.pcsp, pc)
        return value if value is not None and value >= 0 and value % 8 == 0 else -1

    def value(self, function: Function, table: int, pc: int) -> int:
        """The value at ``pc`` in a table of a function (a PCDATA of :meth:`tables_of`); -1: there is none."""
        found = self._value(function, table, pc)
        return -1 if found is None else found

    def tables_of(self, function: Function) -> tuple[int, list[int], list[int]] | None:
        """(bytes of its arguments, its PCDATA tables, addresses of its FUNCDATA); 0: it has no such table."""
        tables, memory = self._tables[function.module], self.runtime.memory
        number = int(np.searchsorted(tables.entries, np.uint64(function.entry), side="right")) - 1
        address = tables.functions + int(tables.offsets[number])
        head = memory.try_read(address, self._head)
        if head is None:
            return None
        at = self._o("npcdata")
        count, data_count = int.from_bytes(head[at : at + 4], "little"), head[self._o("nfuncdata")]
        more = memory.try_read(address + self._head, 4 * (count + data_count)) if count <= 64 else None
        if more is None:
            return None
        words = np.frombuffer(more, "<u4").tolist()
        at = self._o("args")
        places = [tables.inline + w if w != _NONE and tables.inline else 0 for w in words[count:]]
        return int.from_bytes(head[at : at + 4], "little"), words[:count], places

    def _value(self, function: Function, table: int, pc: int) -> int | None:
        if not table or pc < function.entry:
            return None
        address = self._tables[function.module].values + table
        size = _TABLE
        while size <= _MOST_TABLE:
            data = self._table(address, size)
            if not data:
                return None
            value, complete = pc_value(data, pc - function.entry, self._quantum)
            if complete or len(data) < size:
                return value
            size *= 8
        return None

    def _table(self, address: int, size: int) -> bytes:
        if size == _TABLE and address in self._tail:
            return self._tail[address]
        data = self.runtime.memory.try_read(address, size)
        while data is None and size > 16:  # at the end of what is there
            size //= 2
            data = self.runtime.memory.try_read(address, size)
        if size == _TABLE and data is not None and len(self._tail) < 65536:
            self._tail[address] = data
        return data or b""

    @property
    def _quantum(self) -> int:
        return 4 if self.runtime.machine == "aarch64" else 1

    # -- lines ------------------------------------------------------------------------------------------

    def line(self, function: Function, pc: int) -> tuple[str, int]:
        """(file, line) of the innermost code at ``pc``; ("", 0) where they are not known."""
        number = self._value(function, function.pcln, pc)
        file = self._value(function, function.pcfile, pc)
        return self._file(function, file), max(number or 0, 0)

    def _file(self, function: Function, number: int | None) -> str:
        if number is None or number < 0:
            return ""
        tables, memory = self._tables[function.module], self.runtime.memory
        where = memory.try_read(tables.units + 4 * (function.unit + number), 4)
        offset = int.from_bytes(where, "little") if where else _NONE
        if offset >= tables.files_size:
            return ""
        return self._text_at(self._file_names, tables.files + offset)

    def lines(self, pc: int) -> tuple[Line, ...]:
        """What runs at ``pc``, innermost first: what is inlined there, and the function it is inlined in.

        For a return address give the address before it: a call may be the last instruction.
        """
        known = self._lines.get(pc)
        if known is None:
            known = self._lines[pc] = tuple(self._lines_at(pc))
        return known

    def _lines_at(self, pc: int) -> list[Line]:
        function = self.at(pc)
        if function is None:
            return []
        out: list[Line] = []
        place = pc
        file, number = self.line(function, place)
        while function.inline_tree and function.inline_index and len(out) < _MOST_INLINED:
            index = self._value(function, function.inline_index, place)
            if index is None or index < 0:
                break
            call = self.runtime.memory.try_read(
                function.inline_tree + index * self._inlined_size, self._inlined_size
            )
            if call is None:
                break
            name = self._name(self._tables[function.module], _i32(call, self._name_of_inlined))
            out.append(Line(function_name(name), file, number, call[self._id_of_inlined] == self._wrapper))
            outer = function.entry + _i32(call, self._entry_of_inlined)
            if outer == place or outer < function.entry:
                break
            place = outer
            file, number = self.line(function, place)
        out.append(Line(function_name(function.name), file, number, function.id == self._wrapper))
        return out


def _i32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little", signed=True)


def _either(runtime: GoRuntime, struct: str, *names: str) -> int:
    """The offset of a field that versions name differently."""
    for name in names:
        if runtime.has(struct, name):
            return runtime.o(struct, name)
    raise KeyError(f"{struct}.{names[0]}")


def pc_value(data: Sequence[int], target: int, quantum: int = 1) -> tuple[int | None, bool]:
    """(the value for ``target``, bytes behind the function's entry; whether ``data`` was enough to say so).

    Pairs of a change of the value, zigzag, and of how far it reaches, in units of ``quantum``; the value
    begins at -1. A change of 0, other than the first, ends the table.
    """
    value, reach, at, size = -1, 0, 0, len(data)
    first = True
    while True:
        change = shift = 0
        while True:
            if at >= size or shift > 35:
                return None, shift > 35
            byte = data[at]
            at += 1
            change |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
        if not change and not first:
            return None, True
        first = False
        value += -(change >> 1) - 1 if change & 1 else change >> 1
        step = shift = 0
        while True:
            if at >= size or shift > 35:
                return None, shift > 35
            byte = data[at]
            at += 1
            step |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
        reach += step * quantum
        if target < reach:
            return value, True
