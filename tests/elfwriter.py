"""Writes small ELF files for tests: cores, byte by byte, with the bug in them, and shared libraries.

    core = Core()
    core.note(NT_PRSTATUS, prstatus(tid=7, rip=0x401000))
    core.load(0x7F0000000000, b"hello" * 1000)
    data = core.build()

Nothing is checked: a test that wants an absurd value writes it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

PAGE = 4096
ET_DYN, ET_CORE = 3, 4
PT_LOAD, PT_DYNAMIC, PT_NOTE = 1, 2, 4
R, W, X = 4, 2, 1
NT_PRSTATUS, NT_PRPSINFO, NT_AUXV, NT_SIGINFO, NT_FILE = 1, 3, 6, 0x53494749, 0x46494C45
AT_PHDR, AT_ENTRY, AT_RANDOM, AT_EXECFN, AT_SYSINFO_EHDR = 3, 9, 25, 31, 33
STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_TLS = 0, 1, 2, 6
STB_LOCAL, STB_GLOBAL = 0, 1

# user_regs_struct, sys/user.h, x86-64
REGISTERS = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss "
    "fs_base gs_base ds es fs gs"
).split()


def padded(data: bytes, to: int = 4) -> bytes:
    return data + bytes(-len(data) % to)


def note(kind: int, desc: bytes, name: bytes = b"CORE") -> bytes:
    name += b"\0"
    return struct.pack("<III", len(name), len(desc), kind) + padded(name) + padded(desc)


def prstatus(
    tid: int,
    signal: int = 0,
    utime: tuple[int, int] = (0, 0),
    stime: tuple[int, int] = (0, 0),
    values: list[int] | None = None,
    **registers: int,
) -> bytes:
    """An elf_prstatus of x86-64, or of another machine with ``values`` in the order of its registers."""
    out = bytearray(112)
    struct.pack_into("<h", out, 12, signal)
    struct.pack_into("<i", out, 32, tid)
    struct.pack_into("<4q", out, 48, *utime, *stime)
    if values is None:
        values = [registers.pop(name, 0) & (1 << 64) - 1 for name in REGISTERS]
        assert not registers, registers
    return bytes(out) + struct.pack(f"<{len(values)}Q", *values) + bytes(8)


def prpsinfo(pid: int, comm: bytes, arguments: bytes = b"", uid: int = 0, gid: int = 0) -> bytes:
    return struct.pack("<4b4xQ2I4i16s80s", 0, 82, 0, 0, 0, uid, gid, pid, 1, pid, pid, comm, arguments)


def auxv(*pairs: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<QQ", *pair) for pair in (*pairs, (0, 0)))


def file_note(*files: tuple[int, int, int, bytes], page: int = PAGE, count: int | None = None) -> bytes:
    """NT_FILE of (start, end, offset in bytes, path)."""
    out = struct.pack("<QQ", len(files) if count is None else count, page)
    for start, end, offset, _ in files:
        out += struct.pack("<QQQ", start, end, offset // page if page else offset)
    return out + b"".join(path + b"\0" for *_, path in files)


def gnu_build_id(build_id: bytes) -> bytes:
    return note(3, build_id, b"GNU")


@dataclass
class Load:
    """One PT_LOAD: ``data`` is what the core holds, the other fields what the header claims."""

    address: int
    data: bytes
    flags: int = R | W
    memsz: int | None = None
    filesz: int | None = None
    offset: int | None = None


@dataclass
class Core:
    """A core in the making."""

    machine: int = 62
    type: int = ET_CORE
    ident: bytes = b"\x7fELF\x02\x01\x01" + bytes(9)
    loads: list[Load] = field(default_factory=list)
    notes: bytes = b""
    phentsize: int = 56
    xnum: bool = False  # the number of program headers in sh_info of section 0
    phnum: int | None = None  # the number that is claimed
    notes_last: bool = False  # as gcore does
    align: int = PAGE

    def load(self, address: int, data: bytes, flags: int = R | W, **claims: int) -> Core:
        self.loads.append(Load(address, data, flags, **claims))
        return self

    def note(self, kind: int, desc: bytes, name: bytes = b"CORE") -> Core:
        self.notes += note(kind, desc, name)
        return self

    def build(self) -> bytes:
        count = len(self.loads) + 1
        section = b""
        shoff = 0
        if self.xnum:
            shoff = 64
            section = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 1, 0, self.phnum or count, 0, 0)
        phoff = 64 + len(section)
        at = phoff + count * self.phentsize
        body = b""
        headers = []

        def place(data: bytes, align: int) -> int:
            nonlocal body
            body += bytes(-(at + len(body)) % align) + data
            return at + len(body) - len(data)

        if not self.notes_last:
            notes_at = place(self.notes, 4)
        for x in self.loads:
            offset = place(x.data, self.align)
            filesz = len(x.data) if x.filesz is None else x.filesz
            memsz = max(filesz, len(x.data)) if x.memsz is None else x.memsz
            offset = offset if x.offset is None else x.offset
            headers.append(segment(PT_LOAD, x.flags, offset, x.address, filesz, memsz, PAGE))
        if self.notes_last:
            notes_at = place(self.notes, 4)
        headers.insert(0, segment(PT_NOTE, 0, notes_at, 0, len(self.notes), 0, 4))
        phnum = 0xFFFF if self.xnum else count if self.phnum is None else self.phnum
        head = self.ident + struct.pack(
            "<HHIQQQIHHHHHH",
            *(self.type, self.machine, 1, 0, phoff, shoff, 0),
            *(64, self.phentsize, phnum, 64 if self.xnum else 0, int(self.xnum), 0),
        )
        return head + section + b"".join(h.ljust(self.phentsize, b"\xee") for h in headers) + body


def segment(kind: int, flags: int, offset: int, address: int, filesz: int, memsz: int, align: int) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, flags, offset, address, 0, filesz, memsz, align)


@dataclass
class Library:
    """A shared library (or executable) with one page each of headers and tables, text, constants and data.

    Symbols are (name, type, binding, value, size) with values as virtual addresses; ``dynamic`` ones go to
    .dynsym, ``static`` ones to .symtab.
    """

    build_id: bytes | None = b"\x11" * 20
    base: int = 0  # the virtual address that it is linked at
    dynamic: list[tuple[str, int, int, int, int]] = field(default_factory=list)
    static: list[tuple[str, int, int, int, int]] = field(default_factory=list)
    soname: str | None = None
    hash: str | None = "gnu"  # "gnu", "sysv" or None
    text: bytes = b"\xc3" * PAGE
    constants: bytes = bytes(range(256)) * 16
    data: bytes = b"initial data".ljust(PAGE, b"\0")
    relocated_by: int = 0  # what the dynamic linker added to the pointers of the dynamic section
    sections: bool = True
    entry: int = 0

    TEXT, CONSTANTS, DATA, BSS_END = PAGE, 2 * PAGE, 3 * PAGE, 5 * PAGE

    def build(self) -> bytes:
        """The file: virtual address = ``base`` + file offset throughout."""
        strings, symbols = _symbols(self.dynamic, self.soname)
        page = bytearray(PAGE)
        at = 64 + 6 * 56
        build_id = gnu_build_id(self.build_id) if self.build_id is not None else b""
        at_note = at
        at = _put(page, at, build_id)
        at_symbols = at
        at = _put(page, at, symbols)
        at_strings = at
        at = _put(page, at, strings)
        at_hash = at
        table = b""
        if self.hash == "gnu":
            table = _gnu_hash(len(self.dynamic))
        elif self.hash == "sysv":
            table = struct.pack("<II", 1, len(self.dynamic) + 1) + bytes(4 * (len(self.dynamic) + 2))
        at = _put(page, at, table)
        moved = self.base + self.relocated_by
        tags = [(6, moved + at_symbols), (5, moved + at_strings), (10, len(strings))]
        if self.soname:
            tags.append((14, strings.index(self.soname.encode() + b"\0")))
        if self.hash:
            tags.append((0x6FFFFEF5 if self.hash == "gnu" else 4, moved + at_hash))
        dynamic = b"".join(struct.pack("<QQ", *tag) for tag in (*tags, (0, 0)))
        at_dynamic = at
        _put(page, at, dynamic)
        headers = [
            segment(PT_LOAD, R, 0, self.base, PAGE, PAGE, PAGE),
            segment(PT_LOAD, R | X, self.TEXT, self.base + self.TEXT, PAGE, PAGE, PAGE),
            segment(PT_LOAD, R, self.CONSTANTS, self.base + self.CONSTANTS, PAGE, PAGE, PAGE),
            segment(PT_LOAD, R | W, self.DATA, self.base + self.DATA, PAGE, 2 * PAGE, PAGE),
            segment(PT_DYNAMIC, R, at_dynamic, self.base + at_dynamic, len(dynamic), len(dynamic), 8),
            segment(PT_NOTE, R, at_note, self.base + at_note, len(build_id), len(build_id), 4),
        ]
        page[64 : 64 + 6 * 56] = b"".join(headers)
        tail, shoff, count = self._sections(4 * PAGE)
        page[:64] = (
            b"\x7fELF\x02\x01\x01"
            + bytes(9)
            + struct.pack(
                "<HHIQQQIHHHHHH",
                *(ET_DYN, 62, 1, self.entry, 64, shoff, 0, 64, 56, 6, 64, count, max(count - 1, 0)),
            )
        )
        return bytes(page) + self.text + self.constants + self.data + tail

    # .rodata, .symtab, .strtab, .shstrtab at the end of the file, where nothing is loaded from.
    def _sections(self, start: int) -> tuple[bytes, int, int]:
        if not self.sections:
            return b"", 0, 0
        strings, symbols = _symbols(self.static, None)
        names = b"\0.rodata\0.symtab\0.strtab\0.shstrtab\0"
        at_symbols, at_strings = start, start + len(symbols)
        at_names = at_strings + len(strings)
        body = padded(symbols + strings + names, 8)

        def section(name: bytes, kind: int, address: int, offset: int, size: int, link: int = 0) -> bytes:
            return struct.pack(
                "<IIQQQQIIQQ", names.index(name + b"\0"), kind, 0, address, offset, size, link, 0, 1, 0
            )

        headers = (
            bytes(64)
            + section(b".rodata", 1, self.base + self.CONSTANTS, self.CONSTANTS, PAGE)
            + section(b".symtab", 2, 0, at_symbols, len(symbols), 3)
            + section(b".strtab", 3, 0, at_strings, len(strings))
            + section(b".shstrtab", 3, 0, at_names, len(names))
        )
        return body + headers, start + len(body), 5

    def mapped(self, at: int, path: bytes) -> list[tuple[int, int, int, bytes]]:
        """NT_FILE entries of this library at address ``at``."""
        return [(at + o, at + o + PAGE, o, path) for o in (0, self.TEXT, self.CONSTANTS, self.DATA)]


def _put(page: bytearray, at: int, data: bytes) -> int:
    page[at : at + len(data)] = data
    assert len(page) == PAGE, "the tables do not fit in a page"
    return at + len(data) + -len(data) % 8


def _symbols(symbols: list[tuple[str, int, int, int, int]], soname: str | None) -> tuple[bytes, bytes]:
    strings = b"\0" + (soname.encode() + b"\0" if soname else b"")
    table = bytes(24)
    for name, kind, binding, value, size in symbols:
        encoded = name.encode() + b"\0"
        if encoded not in strings:  # so the tail of a longer name is used again, as linkers do
            strings += encoded
        defined = 1 if value else 0
        at = strings.index(encoded)
        table += struct.pack("<IBBHQQ", at, binding << 4 | kind, 0, defined, value, size)
    return strings, table


# One bucket with one chain of all symbols; the hashes are of no interest here.
def _gnu_hash(count: int) -> bytes:
    chain = [2 * i for i in range(count)]
    if chain:
        chain[-1] |= 1
    return struct.pack("<4IQI", 1, 1, 1, 0, 0, 1 if chain else 0) + struct.pack(f"<{count}I", *chain)
