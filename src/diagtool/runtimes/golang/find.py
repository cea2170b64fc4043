"""Finding Go in a process: which file has its runtime, which version, moduledata, the list of goroutines.

Nothing is taken from symbols or debug information, which most programs in production do without. The
version is in the build information, which survives stripping. ``moduledata`` (runtime/symtab.go) is in the
data of the file: its first word points to the head of the function tables, which begins with a magic number.
``allgs`` is found by what it refers to: structures g, whose ``sched.g`` points to themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.errors import NoRuntime, NotSupported
from diagtool.capture.memory import U64, Mask
from diagtool.capture.model import Capture, Mapping
from diagtool.capture.modules import Module
from diagtool.runtimes.golang import layouts
from diagtool.runtimes.golang.files import go_files
from diagtool.runtimes.golang.model import GoModule, GoRuntime

__all__ = ["find_allgs", "find_go", "version_in"]

_Load = Callable[[U64, str, str], tuple[NDArray[Any], Mask]]

_MAGICS = (0xFFFFFFF1, 0xFFFFFFF0)  # of pcHeader: from 1.20 on; 1.18 and 1.19 (runtime/symtab.go)
_OLD_MAGICS = (0xFFFFFFFA, 0xFFFFFFFB)  # 1.16 and 1.17; up to 1.15
_BUILDINFO = b"\xff Go buildinf:"
_INLINE_STRINGS = 2  # flag of the build information: texts lie behind its head (debug/buildinfo)
_STEP = 4 << 20  # bytes of a module's data looked at together
_OVERLAP = 16  # and of the next piece: a slice may lie across
_MOST_DATA = 1 << 30  # bytes of data of one module that are searched
_MOST_MODULES = 256  # in one list of moduledata
_MOST_GOROUTINES = 1 << 25
_SAMPLE = 64  # goroutines of a list that are looked at to know it
_GOOD = 0.75  # of these must point to themselves: one that is just being made does not yet
_VERSION = re.compile(rb"(?:devel )?(?:\+[0-9a-f]+ )?go1\.\d+[\w.+-]*")

#: What to do about a core whose Go can't be read.
FILES = "Name its executable with --exe, or the folder of its files with --sysroot."


def find_go(capture: Capture) -> GoRuntime:
    """The Go runtime of a process, with its goroutines read.

    Raises NoRuntime where there is none, NotSupported where it can't be read, with what is missing.
    """
    missing: list[str] = []
    for module in go_files(capture):
        runtime = _in_file(capture, module, missing)
        if runtime is not None:
            runtime.read_goroutines()
            if runtime.plausible():
                return runtime
            missing.append(
                f"{module.path.rpartition('/')[2]}: what {runtime.version} keeps of goroutines is not where "
                f"{runtime.layout.version} has it"
            )
    if missing:
        raise NotSupported(f"the Go in this process could not be read ({'; '.join(missing[:3])})", FILES)
    raise NoRuntime(
        "no Go runtime was found in this process",
        f"diagtool reads Go 1.{layouts.known()[0]} to 1.{layouts.known()[-1]}.",
    )


def _in_file(capture: Capture, module: Module, missing: list[str]) -> GoRuntime | None:
    name = module.path.rpartition("/")[2]
    spans = _data(capture.mappings, module)
    first, magic = _first_moduledata(capture, module, spans)
    version = _version(capture, module, spans)
    if first is None:
        if magic in _OLD_MAGICS:
            missing.append(f"{name} was built with Go 1.17 or older")
        elif version or not _has_text(capture, module):
            said = f" ({version})" if version else ""
            missing.append(f"{name}{said}: its function tables are not in the capture")
        return None
    minor = layouts.minor_of(version) if version else None
    if minor is None:
        missing.append(f"{name}: the version of Go is not known")
        return None
    try:
        layout = layouts.load(minor, capture.process.machine)
    except KeyError:
        known = layouts.known()
        missing.append(
            f"{name} was built with {version}; tables are there for 1.{known[0]} to 1.{known[-1]}"
            + (", but not 1.20" if minor == 20 and 20 not in known else "")
        )
        return None
    runtime = GoRuntime(capture, version, minor, layout, [])
    runtime.modules = list(_modules(runtime, first, magic))
    if not runtime.modules:
        missing.append(f"{name}: no moduledata where {version} has it")
        return None
    runtime.allgs = find_allgs(runtime)
    if not runtime.allgs:
        missing.append(f"{name}: the list of goroutines was not found")
        return None
    return runtime


def _has_text(capture: Capture, module: Module) -> bool:
    return capture.memory.try_read(module.start, 16) is not None


# -- the data of a file ---------------------------------------------------------------------------------


def _data(mappings: Iterable[Mapping], module: Module) -> list[tuple[int, int]]:
    """Ranges of a file's data, what is written to first, then what was made read-only after relocation."""
    own = [m for m in mappings if m.path == module.path and module.contains(m.start)]
    data = [m for m in own if "x" not in m.permissions]
    data.sort(key=lambda m: (not m.writable, m.start))
    return [(m.start, m.end) for m in data]


def _words(capture: Capture, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, U64]]:
    """(address, aligned words) of the ranges, piece by piece; what can't be read is left out."""
    left = _MOST_DATA
    for low, high in spans:
        for start in range(low, high, _STEP):
            size = min(_STEP + _OVERLAP, high - start) & -8
            left -= size
            if left < 0:
                return
            data = capture.memory.try_read(start, size)
            if data is not None:
                yield start, np.frombuffer(data, "<u8")
                continue
            pages = np.arange(start, start + size, 4096, dtype=np.uint64)
            block, ok = capture.memory.load_block(pages, 4096)
            block[~ok] = 0
            yield start, np.ascontiguousarray(block).reshape(-1).view("<u8")


def _first_moduledata(
    capture: Capture, module: Module, spans: list[tuple[int, int]]
) -> tuple[int | None, int]:
    """(address of the first moduledata in a file's data, the magic number of its tables)."""
    memory = capture.memory
    old = 0
    for start, words in _words(capture, spans):
        inside = np.flatnonzero((words >= module.start) & (words < module.end) & (words % 8 == 0))
        if not len(inside):
            continue
        magic, ok = memory.load(words[inside], "<u4")
        for at, value in zip(inside[ok].tolist(), magic[ok].tolist(), strict=True):
            if value in _OLD_MAGICS:
                old = value
            if value in _MAGICS and _is_moduledata(capture, start + 8 * at, module):
                return start + 8 * at, value
    return None, old


def _is_moduledata(capture: Capture, address: int, module: Module) -> bool:
    """The head of moduledata is the same from 1.18 to 1.27: a pointer and six slices, then addresses."""
    head = capture.memory.try_read(address, 24 * 8)
    if head is None:
        return False
    words = np.frombuffer(head, "<u8").tolist()
    tables = words[0]
    names = capture.memory.try_read(tables, 16)
    if names is None or names[4:6] != b"\0\0" or names[7] != 8:
        return False
    functions = int.from_bytes(names[8:16], "little")
    slices = [words[i : i + 3] for i in (1, 4, 7, 10, 13, 16)]
    if any(not size <= room < 1 << 40 for _, size, room in slices):
        return False
    minpc, maxpc, text = words[20], words[21], words[22]
    return bool(0 < functions <= slices[5][1] <= functions + 2 and minpc <= maxpc and 0 < text <= minpc)


def _modules(runtime: GoRuntime, first: int, magic: int) -> Iterator[GoModule]:
    """The list of modules, from the first on: plugins follow by ``next``."""
    memory, size = runtime.memory, runtime.size("moduledata")
    names = [
        *("noptrdata", "enoptrdata", "data", "edata", "bss", "ebss", "noptrbss", "enoptrbss", "end"),
        *("types", "etypes", "gcdata", "gcbss", "rodata", "gofunc"),
    ]
    seen: set[int] = set()
    address = first
    while address and address not in seen and len(seen) < _MOST_MODULES:
        seen.add(address)
        data = memory.try_read(address, size)
        if data is None:
            return

        def word(name: str, data: bytes = data) -> int:
            at = runtime.o("moduledata", name)
            return int.from_bytes(data[at : at + 8], "little")

        text = word("text")
        path = next((m.path for m in runtime.capture.modules if m.contains(text)), "")
        yield GoModule(
            address,
            path,
            text,
            word("etext"),
            word("minpc"),
            word("maxpc"),
            magic,
            {name: word(name) for name in names if runtime.has("moduledata", name)},
        )
        address = word("next")


def version_in(capture: Capture, module: Module) -> str:
    """Which Go a file was built with, by its data in memory; "" where it is none of Go's."""
    return _version(capture, module, _data(capture.mappings, module))


# -- version --------------------------------------------------------------------------------------------


def _version(capture: Capture, module: Module, spans: list[tuple[int, int]]) -> str:
    """ "go1.22.10", from the build information in a file's data; "" where there is none."""
    pattern = int.from_bytes(_BUILDINFO[:8], "little")
    section = module.section(".go.buildinfo")
    places = [(section[0], section[0] + min(section[1], 1 << 20))] if section else []
    for start, words in _words(capture, [*places, *spans]):
        for at in np.flatnonzero(words == np.uint64(pattern)).tolist():
            found = _buildinfo(capture, start + 8 * at)
            if found:
                return found
    return ""


def _buildinfo(capture: Capture, address: int) -> str:
    memory = capture.memory
    head = memory.try_read(address, 64)
    if head is None or not head.startswith(_BUILDINFO):
        return ""
    if head[15] & _INLINE_STRINGS:
        size, used = head[32], 33
        if size & 0x80:
            size, used = (size & 0x7F) | head[33] << 7, 34
        text = memory.try_read(address + used, min(size, 256)) or b""
    else:  # before 1.18: the address of a string
        where = int.from_bytes(head[16:24], "little")
        string = memory.try_read(where, 16)
        place, size = (int.from_bytes(string[i : i + 8], "little") for i in (0, 8)) if string else (0, 0)
        text = (memory.try_read(place, size) or b"") if 0 < size < 256 else b""
    found = _VERSION.match(text)
    return found[0].decode().rpartition(" ")[2] if found else ""


# -- goroutines -----------------------------------------------------------------------------------------


def find_allgs(runtime: GoRuntime) -> int:
    """The address of the slice ``runtime.allgs``, 0 where it was not found."""
    # What is read after the stop makes all doubtful. Where not all was copied, it is so anyway, and what is
    # there may be an old list.
    if not runtime.capture.left_out:
        found = _find_allgs(runtime, runtime.look)
        if found:
            return found
    return _find_allgs(runtime, runtime.load)


def _find_allgs(runtime: GoRuntime, load: _Load) -> int:
    best = (0, 0)
    spans = [r for module in runtime.modules[:1] for r in module.ranges()]
    for start, words in _words(runtime.capture, spans):
        if len(words) < 3:
            continue
        place, size, room = words[:-2], words[1:-1], words[2:]
        likely = (place > 0x1000) & (place % 8 == 0) & (size > 0) & (size <= room) & (room < _MOST_GOROUTINES)
        at = np.flatnonzero(likely)
        at = at[_looks_like_list(runtime, place[at], load)]
        for i in at.tolist():
            count = int(size[i])
            if count > best[1] and _is_list_of_g(runtime, int(place[i]), count, load):
                best = start + 8 * i, count
    return best[0]


def _looks_like_list(runtime: GoRuntime, places: U64, load: _Load) -> NDArray[np.bool_]:
    first, ok = load(places - np.uint64(runtime.o("g", "sched.g")), "g", "sched.g")
    own, fine = load(first, "g", "sched.g")
    out: NDArray[np.bool_] = ok & fine & (first != 0) & (own == first)
    return out


def _is_list_of_g(runtime: GoRuntime, place: int, count: int, load: _Load) -> bool:
    step = max(1, count // _SAMPLE)
    at = np.arange(0, count, step, dtype=np.uint64) * np.uint64(8) + np.uint64(place)
    listed, ok = load(at - np.uint64(runtime.o("g", "sched.g")), "g", "sched.g")
    own, fine = load(listed, "g", "sched.g")
    goid, _ = load(listed, "g", "goid")
    good = ok & fine & (listed != 0) & (own == listed) & (goid < 1 << 48)
    return bool(good.mean() >= _GOOD)
