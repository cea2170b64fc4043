"""ELF symbol tables: an address by name, a function by address.

A name is found in the string table with one search of bytes, its symbol with one comparison of a whole
column: the tables of a large library have a million entries.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.elf import PT_DYNAMIC, PT_LOAD, SHT_NOBITS, SHT_SYMTAB, Data, ElfFile, Records

__all__ = ["Locate", "SymbolTable", "dynamic_symbols", "static_symbols"]

#: ``locate(address, size)``: where that many bytes at a virtual address of the ELF file are: in which data,
#: at which offset. None where they can't be had. So a table in a mapped file is never copied.
Locate = Callable[[int, int], "tuple[Data, int] | None"]

SYMBOL = np.dtype(
    [
        ("name", "<u4"),
        ("info", "u1"),
        ("other", "u1"),
        ("section", "<u2"),
        ("value", "<u8"),
        ("size", "<u8"),
    ]
)
_STT_NOTYPE, _STT_OBJECT, _STT_FUNC, _STT_COMMON, _STT_TLS, _STT_GNU_IFUNC = 0, 1, 2, 5, 6, 10
_ADDRESSED = (_STT_NOTYPE, _STT_OBJECT, _STT_FUNC, _STT_COMMON, _STT_GNU_IFUNC)
_FUNCTIONS = (_STT_FUNC, _STT_GNU_IFUNC)
_SHN_UNDEF, _SHN_ABS = 0, 0xFFF1
_STB_LOCAL = 0

_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SONAME, _DT_GNU_HASH = 4, 5, 6, 10, 14, 0x6FFFFEF5

_MAX_SYMBOLS = 1 << 22  # of one table: 100 MB
_MAX_STRINGS = 1 << 28  # bytes of one string table in a file
_MAX_NAME = 4096  # C++ goes that far
_MAX_CHAIN = 1 << 16  # symbols of one hash chain
_MAX_MATCHES = 256  # places in a string table where a name ends: more are garbage


class SymbolTable:
    """Symbols (an array of SYMBOL) and the range of ``strings`` that holds their names."""

    def __init__(self, symbols: Records, strings: Data, start: int = 0, size: int | None = None) -> None:
        self._symbols = symbols
        self._strings = strings
        self._start = min(start, len(strings))
        self._end = len(strings) if size is None else min(start + size, len(strings))
        self._functions: tuple[NDArray[np.uint64], Records] | None = None

    def __len__(self) -> int:
        return len(self._symbols)

    def value(self, name: str) -> int | None:
        """The value (a virtual address) of a defined symbol; global ones before local ones."""
        wanted = name.encode() + b"\0"
        if wanted == b"\0":
            return None
        places: list[int] = []
        at = self._strings.find(wanted, self._start, self._end)
        while at >= 0 and len(places) < _MAX_MATCHES:
            # Not only whole strings: "_PyRuntime" may be stored as the tail of a longer name.
            places.append(at - self._start)
            at = self._strings.find(wanted, at + 1, self._end)
        if not places:
            return None
        found = self._symbols[np.isin(self._symbols["name"], np.array(places, dtype=np.uint32))]
        found = found[_defined(found) & np.isin(found["info"] & 15, _ADDRESSED)]
        if not len(found):
            return None
        outside = found[found["info"] >> 4 != _STB_LOCAL]
        return int((outside if len(outside) else found)["value"][0])

    def at(self, value: int) -> str | None:
        """The name of the function that begins at a virtual address, a global one if there are several.

        Quicker than :meth:`nearest` for a few addresses: nothing is sorted.
        """
        if not 0 < value < 1 << 64:
            return None
        found = self._symbols[self._symbols["value"] == np.uint64(value)]
        found = found[_defined(found) & np.isin(found["info"] & 15, _FUNCTIONS)]
        if not len(found):
            return None
        outside = found[found["info"] >> 4 != _STB_LOCAL]
        first = (outside if len(outside) else found)[0]
        return _name(self._strings, self._start + int(first["name"]), self._end) or None

    def nearest(self, value: int) -> tuple[str, int] | None:
        """(name, offset in bytes) of the function that covers a virtual address."""
        if self._functions is None:
            s = self._symbols
            functions = s[_defined(s) & np.isin(s["info"] & 15, _FUNCTIONS)]
            # Of several names at one address the global one: local aliases come first in the sort.
            functions = functions[np.lexsort((functions["info"] >> 4, functions["value"]))]
            self._functions = functions["value"].astype(np.uint64), functions
        values, functions = self._functions
        if not 0 <= value < 1 << 64:
            return None
        i = int(np.searchsorted(values, np.uint64(value), side="right")) - 1
        if i < 0:
            return None
        offset, size = value - int(values[i]), int(functions["size"][i])
        if size and offset >= size:
            return None
        name = _name(self._strings, self._start + int(functions["name"][i]), self._end)
        return (name, offset) if name else None

    def variable(self, value: int) -> tuple[str, int, int] | None:
        """(name, virtual address, size in bytes) of the variable that covers a virtual address."""
        s = self._symbols
        around = _defined(s) & (s["info"] & 15 == _STT_OBJECT)
        if not 0 <= value < 1 << 63:
            return None
        around &= (s["value"] <= value) & (s["value"] + s["size"] > value)
        for symbol in s[around][:1]:
            name = _name(self._strings, self._start + int(symbol["name"]), self._end)
            return name, int(symbol["value"]), int(symbol["size"])
        return None


def _defined(symbols: Records) -> NDArray[np.bool_]:
    section = symbols["section"]
    defined: NDArray[np.bool_] = (section != _SHN_UNDEF) & (section != _SHN_ABS) & (symbols["value"] != 0)
    return defined


def static_symbols(file: ElfFile) -> SymbolTable | None:
    """The .symtab of a file, None where it was stripped."""
    sections = file.sections
    for section in sections[sections["type"] == SHT_SYMTAB][:1]:
        link = int(section["link"])
        if not 0 < link < len(sections) or int(sections[link]["type"]) == SHT_NOBITS:
            return None  # a file of debug symbols' other half
        offset, size = int(section["offset"]), int(section["size"])
        count = min(size // SYMBOL.itemsize, max(0, len(file.data) - offset) // SYMBOL.itemsize, _MAX_SYMBOLS)
        if int(section["type"]) == SHT_NOBITS or count <= 0:
            return None
        symbols = np.frombuffer(file.data, dtype=SYMBOL, count=count, offset=offset)
        strings = sections[link]
        return SymbolTable(
            symbols, file.data, int(strings["offset"]), min(int(strings["size"]), _MAX_STRINGS)
        )
    return None


def dynamic_symbols(
    segments: Records, locate: Locate, bias: int = 0
) -> tuple[SymbolTable | None, str | None]:
    """(.dynsym, DT_SONAME) through PT_DYNAMIC, from a file or from the memory of a process.

    The dynamic linker relocates the pointers of the dynamic section in place (glibc; not of the vDSO, musl
    not at all), so both kinds are understood: ``bias`` is what it would have added, 0 for a file.
    """
    tags = _dynamic(segments, locate)
    symbols_at, strings_at = tags.get(_DT_SYMTAB), tags.get(_DT_STRTAB)
    if symbols_at is None or strings_at is None:
        return None, None
    low, high = _span(segments)

    def virtual(address: int) -> int:
        return (
            address - bias if bias and not low <= address < high and low <= address - bias < high else address
        )

    symbols_at, strings_at = virtual(symbols_at), virtual(strings_at)
    strings_size = min(tags.get(_DT_STRSZ, 0), _MAX_STRINGS)
    strings = locate(strings_at, strings_size)
    if not strings:
        return None, None
    soname = None
    if tags.get(_DT_SONAME, strings_size) < strings_size:
        soname = _name(strings[0], strings[1] + tags[_DT_SONAME], strings[1] + strings_size) or None
    count = 0
    if _DT_GNU_HASH in tags:
        count = _count_by_gnu_hash(virtual(tags[_DT_GNU_HASH]), locate)
    if not count and _DT_HASH in tags:
        chains = _read(locate, virtual(tags[_DT_HASH]) + 4, 4)  # nbucket, nchain: one chain entry a symbol
        count = int.from_bytes(chains, "little") if chains else 0
    if not count and strings_at > symbols_at:
        count = (strings_at - symbols_at) // SYMBOL.itemsize  # no hash table: linkers put one after the other
    count = min(count, _MAX_SYMBOLS)
    table = locate(symbols_at, count * SYMBOL.itemsize) if count else None
    if not table:
        return None, soname
    symbols = np.frombuffer(table[0], dtype=SYMBOL, count=count, offset=table[1])
    return SymbolTable(symbols, strings[0], strings[1], strings_size), soname


# The dynamic section as tag -> value.
def _dynamic(segments: Records, locate: Locate) -> dict[int, int]:
    for segment in segments[segments["type"] == PT_DYNAMIC][:1]:
        size = min(int(segment["memsz"]), int(segment["filesz"]), 1 << 16) & -16
        raw = _read(locate, int(segment["address"]), size)
        if raw:
            pairs = np.frombuffer(raw, dtype="<u8").reshape(-1, 2)
            end = np.flatnonzero(pairs[:, 0] == 0)
            return dict(pairs[: end[0] if len(end) else None].tolist())
    return {}


def _span(segments: Records) -> tuple[int, int]:
    loads = segments[segments["type"] == PT_LOAD]
    if not len(loads):
        return 0, 0
    return int(loads["address"].min()), max(int(s["address"]) + int(s["memsz"]) for s in loads)


# A DT_GNU_HASH table does not hold the number of symbols: it is one more than the last one of the last chain
# (https://sourceware.org/legacy-ml/binutils/2006-10/msg00377.html; the low bit of a hash ends its chain).
def _count_by_gnu_hash(address: int, locate: Locate) -> int:
    head = _read(locate, address, 16)
    if not head:
        return 0
    buckets_n: int
    first: int
    bloom_n: int
    buckets_n, first, bloom_n, _ = struct.unpack("<4I", head)
    if max(buckets_n, first, bloom_n) > _MAX_SYMBOLS:
        return 0
    at = address + 16 + 8 * bloom_n
    raw = _read(locate, at, 4 * buckets_n)
    if not raw:
        return 0
    last: int = max(struct.unpack(f"<{buckets_n}I", raw))
    if last < first:
        return first  # no symbol is hashed, all are undefined
    at += 4 * (buckets_n - first)
    for _ in range(_MAX_CHAIN):
        word = _read(locate, at + 4 * last, 4)
        if not word:
            return 0
        last += 1
        if word[0] & 1:
            return last
    return 0


def _read(locate: Locate, address: int, size: int) -> bytes | None:
    found = locate(address, size) if size else None
    return found[0][found[1] : found[1] + size] if found else None


def _name(strings: Data, start: int, end: int) -> str:
    return strings[start : min(start + _MAX_NAME, end)].split(b"\0", 1)[0].decode("utf-8", "replace")
