"""The Go runtime of one process, as far as it was found: version, layout, modules, goroutines as columns."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, AddressSpace, Mask
from diagtool.capture.model import Capture
from diagtool.runtimes.golang.layouts import Layout

__all__ = ["GoModule", "GoRuntime", "Goroutines", "Status"]

_SCAN = 0x1000  # a bit of the status: the collector has the goroutine's stack
_MOST_DATA = 1 << 36  # bytes of one kind of data of a module
_BATCH = 1 << 15  # goroutines read at a time: a g has some 450 bytes
_MOST_GOROUTINES = 20_000_000
_MOST_GOID = 1 << 48
_PLAUSIBLE = 0.5  # of all goroutines; the others may be damaged


class Status:
    """Values of ``g.atomicstatus`` (runtime/runtime2.go), the same from 1.19 to 1.27; leaked from 1.26 on."""

    IDLE, RUNNABLE, RUNNING, SYSCALL, WAITING = 0, 1, 2, 3, 4
    DEAD, COPYSTACK, PREEMPTED, LEAKED, DEADEXTRA = 6, 8, 9, 10, 11
    NAMES: ClassVar = {
        IDLE: "idle",
        RUNNABLE: "runnable",
        RUNNING: "running",
        SYSCALL: "syscall",
        WAITING: "waiting",
        DEAD: "dead",
        COPYSTACK: "copystack",
        PREEMPTED: "preempted",
        LEAKED: "leaked",
        DEADEXTRA: "dead",
    }


@dataclass(frozen=True, slots=True)
class GoModule:
    """One ``moduledata``: a program, a plugin, a shared library. All but ``path`` are addresses.

    ``words``: further fields by name, as far as the layout has them: data, edata, bss, ebss, noptrdata,
    enoptrdata, noptrbss, enoptrbss, types, etypes, gcdata, gcbss, gofunc, rodata, end.
    """

    address: int
    path: str  # of the ELF file
    text: int
    etext: int
    minpc: int
    maxpc: int
    magic: int
    words: dict[str, int] = field(default_factory=dict)

    def ranges(self) -> list[tuple[int, int]]:
        """Its writable memory: (start, end) of noptrdata, data, bss, noptrbss, without empty ones."""
        w = self.words
        named = ("noptrdata", "data", "bss", "noptrbss")
        pairs = [(w.get(n, 0), w.get("e" + n, 0)) for n in named]
        return [(low, high) for low, high in pairs if 0 < low < high < low + _MOST_DATA]


def _column(dtype: str) -> Any:
    return field(default_factory=lambda: np.zeros(0, dtype))


@dataclass(slots=True)
class Goroutines:
    """All of allgs that could be read, dead ones too, as columns of one length.

    status without the scan bit. sp, pc, bp: of sched; syscall_sp, syscall_pc: 0 where it is in none.
    waitsince: nanotime of the runtime, 0 where not set. parent: goid of who made it (from 1.21 on). lo, hi:
    its stack. waiting: address of a sudog. labels: what pprof made of them. locked: the m it is locked to.
    """

    address: NDArray[np.uint64] = _column("u8")
    goid: NDArray[np.uint64] = _column("u8")
    status: NDArray[np.uint32] = _column("u4")
    scan: NDArray[np.bool_] = _column("?")
    waitreason: NDArray[np.uint8] = _column("u1")
    waitsince: NDArray[np.int64] = _column("i8")
    parent: NDArray[np.uint64] = _column("u8")
    gopc: NDArray[np.uint64] = _column("u8")
    startpc: NDArray[np.uint64] = _column("u8")
    sp: NDArray[np.uint64] = _column("u8")
    pc: NDArray[np.uint64] = _column("u8")
    bp: NDArray[np.uint64] = _column("u8")
    lr: NDArray[np.uint64] = _column("u8")
    syscall_sp: NDArray[np.uint64] = _column("u8")
    syscall_pc: NDArray[np.uint64] = _column("u8")
    m: NDArray[np.uint64] = _column("u8")
    locked: NDArray[np.uint64] = _column("u8")
    waiting: NDArray[np.uint64] = _column("u8")
    labels: NDArray[np.uint64] = _column("u8")
    lo: NDArray[np.uint64] = _column("u8")
    hi: NDArray[np.uint64] = _column("u8")

    def __len__(self) -> int:
        return len(self.address)

    def take(self, rows: NDArray[Any]) -> Goroutines:
        """Some of them."""
        return Goroutines(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


#: column -> (field of runtime.g, dtype)
_FIELDS = {
    "goid": ("goid", "<u8"),
    "status": ("atomicstatus", "<u4"),
    "waitreason": ("waitreason", "u1"),
    "waitsince": ("waitsince", "<i8"),
    "parent": ("parentGoid", "<u8"),
    "gopc": ("gopc", "<u8"),
    "startpc": ("startpc", "<u8"),
    "sp": ("sched.sp", "<u8"),
    "pc": ("sched.pc", "<u8"),
    "bp": ("sched.bp", "<u8"),
    "lr": ("sched.lr", "<u8"),
    "syscall_sp": ("syscallsp", "<u8"),
    "syscall_pc": ("syscallpc", "<u8"),
    "m": ("m", "<u8"),
    "locked": ("lockedm", "<u8"),
    "waiting": ("waiting", "<u8"),
    "labels": ("labels", "<u8"),
    "lo": ("stack.lo", "<u8"),
    "hi": ("stack.hi", "<u8"),
}


@dataclass(slots=True)
class GoRuntime:
    """One Go runtime in a process.

    ``version``: "go1.22.10". ``allgs``: address of the slice. ``goroutines``: by :meth:`read_goroutines`.
    ``warnings``: what could not be read.
    """

    capture: Capture
    version: str
    minor: int  # 22 for Go 1.22
    layout: Layout
    modules: list[GoModule]
    allgs: int = 0
    goroutines: Goroutines = field(default_factory=Goroutines)
    warnings: list[str] = field(default_factory=list)

    @property
    def memory(self) -> AddressSpace:
        """The memory of the process."""
        return self.capture.memory

    @property
    def machine(self) -> str:
        """x86_64 or aarch64."""
        return self.layout.machine

    def o(self, struct: str, name: str) -> int:
        """Offset in bytes of a field; ``struct`` without a package is the runtime's. Raises KeyError."""
        return self.layout.fields[f"{_qualified(struct)}.{name}"]

    def has(self, struct: str, name: str) -> bool:
        """Whether this version has a field."""
        return f"{_qualified(struct)}.{name}" in self.layout.fields

    def size(self, struct: str) -> int:
        """Size in bytes of a structure. Raises KeyError."""
        return self.layout.fields[f"{_qualified(struct)}:size"]

    def const(self, name: str, default: int | None = None) -> int:
        """A constant ("heapArenaBytes", "internal/abi.Chan"). Raises KeyError without default."""
        value = self.layout.constants.get(_qualified(name), default)
        if value is None:
            raise KeyError(name)
        return value

    def load(self, addresses: U64, struct: str, name: str, dtype: str = "<u8") -> tuple[NDArray[Any], Mask]:
        """A field of the structures at each address: (values, ok), see ``AddressSpace.load``."""
        return self.memory.load(addresses + np.uint64(self.o(struct, name)), dtype)

    def look(self, addresses: U64, struct: str, name: str, dtype: str = "<u8") -> tuple[NDArray[Any], Mask]:
        """Like :meth:`load`, but only of memory that was captured already: for words that may be anything.

        What is read after a stop makes all that is said of a capture doubtful.
        """
        at = addresses + np.uint64(self.o(struct, name))
        there = self.memory.mapped(at, np.dtype(dtype).itemsize)
        values = np.zeros(len(at), np.dtype(dtype))
        values[there], fine = self.memory.load(at[there], dtype)
        there[there] = fine
        return values, there

    def word(self, address: int, struct: str, name: str) -> int:
        """A word of one structure; 0 where it can't be read."""
        data = self.memory.try_read(address + self.o(struct, name), 8)
        return int.from_bytes(data, "little") if data else 0

    def string(self, address: int, limit: int = 4096) -> str:
        """A Go string whose header is at ``address``, cut at ``limit``; "" where it can't be read."""
        head = self.memory.try_read(address, 16)
        if head is None:
            return ""
        place, size = int.from_bytes(head[:8], "little"), int.from_bytes(head[8:], "little")
        data = self.memory.try_read(place, min(size, limit)) if 0 < size < 1 << 40 else None
        return data.decode("utf-8", "replace") if data else ""

    def read_goroutines(self) -> None:
        """Fill ``goroutines``: all of allgs, those whose memory is there."""
        memory = self.memory
        head = memory.try_read(self.allgs, 24) if self.allgs else None
        if head is None:
            self.warnings.append("the list of all goroutines could not be read")
            return
        place, count, capacity = (int.from_bytes(head[i : i + 8], "little") for i in (0, 8, 16))
        if not count <= capacity <= _MOST_GOROUTINES:
            self.warnings.append(f"the list of all goroutines is damaged: it says {count:,} of {capacity:,}")
            return
        offsets = np.arange(count, dtype=np.uint64) * np.uint64(8) + np.uint64(place)
        addresses, ok = memory.load(offsets)
        lost = int((~ok).sum())
        addresses = addresses[ok & (addresses != 0)]
        addresses = addresses[np.sort(np.unique(addresses, return_index=True)[1])]
        self.goroutines = self._columns(addresses)
        lost += len(addresses) - len(self.goroutines)
        if lost:
            self.warnings.append(f"{lost:,} of {count:,} goroutines are not in the capture")

    def plausible(self) -> bool:
        """Whether what was read of goroutines can be: else the layout is not that of this build."""
        g = self.goroutines
        if not len(g):
            return True
        known = np.isin(g.status, np.array(list(Status.NAMES), np.uint32))
        reasons = g.waitreason < len(self.layout.wait_reasons)
        return bool((known & reasons & (g.goid < _MOST_GOID) & (g.lo <= g.hi)).mean() > _PLAUSIBLE)

    def _columns(self, addresses: U64) -> Goroutines:
        size = self.size("g")
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in (*_FIELDS, "address")}
        for first in range(0, len(addresses), _BATCH):
            batch = addresses[first : first + _BATCH]
            block, ok = self.memory.load_block(batch, size)
            block, batch = block[ok], batch[ok]
            parts["address"].append(batch)
            for column, (name, dtype) in _FIELDS.items():
                kind = np.dtype(dtype)
                if self.has("g", name):
                    at = self.o("g", name)
                    values = np.ascontiguousarray(block[:, at : at + kind.itemsize]).view(kind).reshape(-1)
                else:
                    values = np.zeros(len(batch), kind)
                parts[column].append(values)
        columns = {k: np.concatenate(v) if v else np.zeros(0, "u8") for k, v in parts.items()}
        raw = columns["status"].astype(np.uint32)
        columns["scan"] = (raw & _SCAN) != 0
        columns["status"] = raw & np.uint32(_SCAN - 1)
        return Goroutines(**columns)

    def wait_reason(self, number: int) -> str:
        """The text of a wait reason, "" where there is none."""
        texts = self.layout.wait_reasons
        return texts[number] if 0 <= number < len(texts) else ""


def _qualified(name: str) -> str:
    return name if "." in name and not name.startswith(".") and _has_package(name) else f"runtime.{name}"


def _has_package(name: str) -> bool:
    return "/" in name or name.partition(".")[0] in ("runtime", "sync", "time", "net", "os", "context")
