"""A Go process that was never run: memory with function tables, moduledata and goroutines, byte by byte.

For what no real process shows: other machines, and memory with nonsense in it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from diagtool.capture.memory import AddressSpace, Segment
from diagtool.capture.model import Capture, CapturedThread, Mapping, ProcessInfo
from diagtool.capture.modules import Module
from diagtool.runtimes.golang import layouts

__all__ = ["Code", "Go", "Parked", "encoded"]

PATH = "/srv/app/service"
BASE, TEXT, TABLES, DATA, HEAP = 0x400000, 0x401000, 0x500000, 0x600000, 0xC000000000
FUNCTION = 0x100  # bytes of code of each function
STACK = 0x1000


def encoded(values: Sequence[tuple[int, int]], quantum: int = 1) -> bytes:
    """A table of (value, offset of the end of its range), as the linker writes it."""
    out = bytearray()
    before, at = -1, 0
    for value, end in values:
        out += _varint((value - before) << 1 if value >= before else ((before - value - 1) << 1) | 1)
        out += _varint((end - at) // quantum)
        before, at = value, end
    return bytes(out) + b"\0"


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


@dataclass
class Code:
    """A function of FUNCTION bytes. ``inlined``: what is inlined in its second half, outermost first."""

    name: str
    frame: int = 0
    line: int = 10
    id: int = 0
    flag: int = 0
    inlined: Sequence[str] = ()


@dataclass
class Parked:
    """A goroutine: ``calls`` are (number of a function, offset in it), innermost first."""

    goid: int
    calls: Sequence[tuple[int, int]]
    status: int = 4
    reason: int = 0
    parent: int = 1
    gopc: int = 0
    syscall: bool = False
    since: int = 0
    #: Of arm64: the return address of the innermost function is in the link register.
    leaf: bool = False


@dataclass
class Go:
    """What is in it. :meth:`capture` makes a core of it."""

    code: Sequence[Code]
    goroutines: Sequence[Parked]
    minor: int = 27
    machine: str = "x86_64"
    memory: dict[int, bytearray] = field(default_factory=dict)
    threads: list[CapturedThread] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layout = layouts.load(self.minor, self.machine)
        self._head()
        self._tables()
        self._goroutines()

    def o(self, struct_: str, *names: str) -> int:
        found = [
            self.layout.fields[f"{struct_}.{n}"] for n in names if f"{struct_}.{n}" in self.layout.fields
        ]
        return found[0]

    def put(self, address: int, data: bytes) -> None:
        """Write to memory that is there."""
        for base, held in self.memory.items():
            if base <= address < base + len(held):
                held[address - base : address - base + len(data)] = data
                return
        raise KeyError(hex(address))

    def word(self, address: int, value: int) -> None:
        self.put(address, struct.pack("<Q", value & (1 << 64) - 1))

    def entry(self, number: int) -> int:
        return TEXT + number * FUNCTION

    def capture(self) -> Capture:
        """All of it as a core."""
        memory = AddressSpace()
        for base, data in self.memory.items():
            number = memory.add_buffer(np.frombuffer(bytes(data), np.uint8))
            memory.add_segments([Segment(base, base + len(data), number, 0, base >= DATA)])
        end = DATA + len(self.memory[DATA])
        text = len(self.code) * FUNCTION
        mappings = [
            Mapping(BASE, TEXT + text + 4095 & -4096, "r-xp", 0, 1, PATH),
            Mapping(TABLES, TABLES + len(self.memory[TABLES]), "r--p", TABLES - BASE, 1, PATH),
            Mapping(DATA, end, "rw-p", DATA - BASE, 1, PATH),
        ]
        module = Module(PATH, BASE, end, 0, memory=memory)
        process = ProcessInfo(pid=42, exe=PATH, machine=self.machine)
        return Capture("core", process, self.threads, mappings, [module], memory)

    # -- what is where ----------------------------------------------------------------------------------

    def _head(self) -> None:
        ident = b"\x7fELF\x02\x01\x01" + bytes(9)
        machine = {"x86_64": 62, "aarch64": 183}[self.machine]
        head = ident + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, TEXT, 64, 0, 0, 64, 56, 2, 0, 0, 0)
        note = struct.pack("<III", 4, 4, 4) + b"Go\0\0" + b"abcd"
        load = struct.pack("<IIQQQQQQ", 1, 5, 0, BASE, BASE, 0x1000, 0x1000, 0x1000)
        notes = struct.pack("<IIQQQQQQ", 4, 4, 0x200, BASE + 0x200, 0, len(note), len(note), 4)
        page = (head + load + notes).ljust(0x200, b"\0") + note
        self.memory[BASE] = bytearray(page.ljust(0x1000, b"\0"))

    def _tables(self) -> None:
        fields, quantum = self.layout.fields, 4 if self.machine == "aarch64" else 1
        names, values, functions, trees = bytearray(b"\0"), bytearray(b"\0"), bytearray(), bytearray(8)
        files = b"\0/srv/app/main.go\0"
        width = fields["runtime._func:size"]
        ftab = bytearray()
        table_of = len(self.code) * 8 + 8

        def named(name: str) -> int:
            names.extend(name.encode() + b"\0")
            return len(names) - len(name) - 1

        def table(rows: Sequence[tuple[int, int]]) -> int:
            at = len(values)
            values.extend(encoded(rows, quantum))
            return at

        half = FUNCTION // 2
        for number, code in enumerate(self.code):
            functions += bytes(-len(functions) % 8)
            ftab += struct.pack("<II", number * FUNCTION, table_of + len(functions))
            head = bytearray(width)

            def u32(name: tuple[str, ...], value: int, head: bytearray = head) -> None:
                struct.pack_into("<I", head, self.o("runtime._func", *name), value)

            u32(("entryOff", "entryoff"), number * FUNCTION)
            u32(("nameOff", "nameoff"), named(code.name))
            # The frame is made by the first instructions: four bytes.
            u32(("pcsp",), table([(0, 4), (code.frame, FUNCTION)] if code.frame else [(0, FUNCTION)]))
            u32(("pcfile",), table([(0, FUNCTION)]))
            u32(("pcln",), table([(code.line, half), (code.line + 1, FUNCTION)]))
            u32(("npcdata",), 3)
            head[self.o("runtime._func", "funcID")] = code.id
            head[self.o("runtime._func", "flag")] = code.flag
            head[self.o("runtime._func", "nfuncdata")] = 4
            index, tree = 0, 0xFFFFFFFF
            if code.inlined:
                index = table([(-1, half), (len(code.inlined) - 1, FUNCTION)])
                # The outermost is called in the first half, where nothing is inlined.
                tree = self._tree(trees, code, named)
            functions += (
                head + struct.pack("<III", 0, 0, index) + struct.pack("<IIII", *[0xFFFFFFFF] * 3, tree)
            )
        ftab += struct.pack("<II", len(self.code) * FUNCTION, 0)
        pclntable = bytes(ftab) + bytes(functions)
        magic = 0xFFFFFFF0 if self.minor < 20 else 0xFFFFFFF1
        head = struct.pack("<IBBBBQ", magic, 0, 0, quantum, 8, len(self.code)).ljust(72, b"\0")
        units = struct.pack("<I", 1)
        parts = [head, bytes(names), units, files, bytes(values), pclntable, bytes(trees)]
        places, out = [], bytearray()
        for part in parts:
            out += bytes(-len(out) % 8)
            places.append(TABLES + len(out))
            out += part
        self.memory[TABLES] = bytearray(bytes(out).ljust(len(out) + 4095 & -4096, b"\0"))
        self.memory[DATA] = bytearray(0x3000)
        self._moduledata(places, [len(p) for p in parts])

    def _tree(self, trees: bytearray, code: Code, named: object) -> int:
        size, at = self.layout.fields["runtime.inlinedCall:size"], len(trees)
        for depth, name in enumerate(code.inlined):
            call = bytearray(size)
            struct.pack_into("<i", call, self.o("runtime.inlinedCall", "nameOff", "func_"), named(name))  # type: ignore[operator]
            # Only one of the calls can be placed with two halves: where there are more, all begin there.
            struct.pack_into("<i", call, self.o("runtime.inlinedCall", "parentPc"), 8 + 4 * depth)
            trees.extend(call)
        return at

    def _moduledata(self, places: Sequence[int], sizes: Sequence[int]) -> None:
        at = DATA + 0x100
        self.moduledata = at
        version = f"go1.{self.minor}.1".encode()
        self.put(DATA, (b"\xff Go buildinf:\x08\x02").ljust(32, b"\0") + bytes([len(version)]) + version)
        text = len(self.code) * FUNCTION
        words = {
            "pcHeader": places[0],
            "minpc": TEXT,
            "maxpc": TEXT + text,
            "text": TEXT,
            "etext": TEXT + text,
            "noptrdata": DATA,
            "enoptrdata": DATA + 0x1000,
            "data": DATA + 0x1000,
            "edata": DATA + 0x2000,
            "bss": DATA + 0x2000,
            "ebss": DATA + 0x3000,
            "gofunc": places[6],
        }
        for name, value in words.items():
            self.word(at + self.o("runtime.moduledata", name), value)
        slices = {"funcnametab": 1, "cutab": 2, "filetab": 3, "pctab": 4, "pclntable": 5}
        for name, part in slices.items():
            size = sizes[part] // 4 if name == "cutab" else sizes[part]
            self._slice(at + self.o("runtime.moduledata", name), places[part], size)
        self._slice(at + self.o("runtime.moduledata", "ftab"), places[5], len(self.code) + 1)

    def _slice(self, at: int, place: int, size: int) -> None:
        for i, value in enumerate((place, size, size)):
            self.word(at + 8 * i, value)

    def _goroutines(self) -> None:
        size = self.layout.fields["runtime.g:size"] + 15 & -16
        count = len(self.goroutines)
        stacks = HEAP + (count * 8 + count * size + 4095 & -4096)
        self.memory[HEAP] = bytearray(stacks - HEAP + count * STACK)
        self._slice(DATA + 0x2100, HEAP, count)
        for number, g in enumerate(self.goroutines):
            at = HEAP + 8 * count + number * size
            self.word(HEAP + 8 * number, at)
            lo = stacks + number * STACK
            pc, sp, lr = self._stack(g, lo + STACK)
            words = {
                "stack.lo": lo,
                "stack.hi": lo + STACK,
                "sched.g": at,
                "goid": g.goid,
                "waitsince": g.since,
                "gopc": g.gopc,
                "startpc": self.entry(g.calls[-1][0]) if g.calls else 0,
                **({"syscallsp": sp, "syscallpc": pc} if g.syscall else {"sched.sp": sp, "sched.pc": pc}),
                **({"sched.lr": lr} if lr else {}),
                **({"parentGoid": g.parent} if "runtime.g.parentGoid" in self.layout.fields else {}),
            }
            for name, value in words.items():
                self.word(at + self.o("runtime.g", name), value)
            self.put(at + self.o("runtime.g", "atomicstatus"), struct.pack("<I", g.status))
            self.put(at + self.o("runtime.g", "waitreason"), bytes([g.reason]))

    def _stack(self, g: Parked, top: int) -> tuple[int, int, int]:
        """Write the frames from the outermost inward: (pc, sp, link register)."""
        sp, lr = top - 64, 0
        for depth in range(len(g.calls) - 1, -1, -1):
            number, offset = g.calls[depth]
            frame = self.code[number].frame if offset >= 4 else 0
            back = 0
            if depth + 1 < len(g.calls):
                outer, at = g.calls[depth + 1]
                back = self.entry(outer) + at
            if self.machine == "x86_64":
                sp -= 8
                self.word(sp, back)
                sp -= frame
            elif frame:
                sp -= frame
                self.word(sp, back)
            else:
                lr = back
        if not g.calls:
            return 0, sp, 0
        number, offset = g.calls[0]
        return self.entry(number) + offset, sp, lr
