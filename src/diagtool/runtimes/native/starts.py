"""Who started each thread: the function that it began with, and the library that this belongs to.

    tid   library                      start
    4243  libopenblas64_p-r0-0cf9.so   blas_thread_server
    4301  libc10.so                    std::thread → c10::ThreadPool::main_loop

glibc keeps the start routine and its argument side by side in ``struct pthread`` (nptl/descr.h), to which
``fs_base`` points. Where in it, glibc itself says for libthread_db: ``_thread_db_pthread_start_routine`` is
{bits, number, offset} (nptl_db/structs.def), exported since 2.34 and a symbol of libpthread before. Where
that is stripped, it is the first word that points to code in every thread. musl leaves both on the stack.

A start routine that only passes on what it was given is looked through: ``std::thread`` of libstdc++ (the
argument is a ``std::thread::_State``, whose virtual table is in the library that made the thread) and threads
of GLib (the argument begins with the function, ``GThread``).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.elf import PF_X
from diagtool.capture.memory import PAGE, U64
from diagtool.capture.model import Capture, CapturedThread
from diagtool.capture.modules import Module

__all__ = ["Code", "Start", "thread_starts"]

_SELF = 16  # tcbhead_t.self on x86-64: the thread pointer again
_FIRST, _LAST = 0x200, 0xA00  # bytes of struct pthread in which the start routine is looked for
_MUSL_FIRST, _MUSL_LAST = 0x30, 0x80  # the same of musl's, of which the stack is looked for
_START_ARGS = 32  # sizeof(struct start_args) on x86-64
_SAMPLE = 64  # threads that are looked at for it
_CPU_ID = 4  # in struct rseq (linux/rseq.h), which has the processor that the thread ran on last
_MOST_CPUS = 1 << 16
_STATE_WORDS = 8  # of a std::thread::_State that are looked through for a function
_MAX_NAME = 200
_0 = np.uint64(0)

#: Libraries whose start routine passes on what it was given, by the start of their names.
_STD_THREAD, _GLIB = "libstdc++.so", "libglib-2.0.so"


@dataclass(frozen=True, slots=True)
class Code:
    """A place in code: the module that holds it (None: in no file), and the function there if it is known."""

    address: int
    module: Module | None
    symbol: str | None


@dataclass(frozen=True, slots=True)
class Start:
    """Where one thread began. ``code`` is None where that is not known.

    ``via``: what passed it on ("std::thread", "GThread"), or "". ``cpu``: the processor that it ran on last,
    where the kernel tells it (rseq, glibc 2.35 and later).
    """

    tid: int
    code: Code | None
    via: str = ""
    cpu: int | None = None


def thread_starts(capture: Capture) -> list[Start]:
    """The start of each thread, in the order of ``capture.threads``.

    That of the main thread is ``main`` of the executable. With other C libraries than glibc and musl, or on
    another machine than x86-64, nothing is known of the others.
    """
    reader = _Starts(capture)
    return reader.all(capture.threads)


class _Starts:
    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._memory = capture.memory
        self._modules = sorted(capture.modules, key=lambda m: m.start)
        self._starts = [m.start for m in self._modules]
        made = sorted((m.start, m.end) for m in capture.mappings if "x" in m.permissions and not m.path)
        self._made = made  # code that the process made itself
        self._codes: dict[int, Code | None] = {}

    def all(self, threads: list[CapturedThread]) -> list[Start]:
        bases = np.array([t.registers.get("fs_base", 0) for t in threads], np.uint64)
        bases = np.where(bases % np.uint64(8) == 0, bases, _0)
        pointers = np.where(self._words(bases, _SELF) == bases, bases, _0)
        main = np.array([t.tid == self._capture.process.pid for t in threads], np.bool_)
        cpus = self._cpus(pointers)
        offset = self._offset(pointers[~main & (pointers != 0)])
        if offset is not None:
            routines, arguments = self._words(pointers, offset), self._words(pointers, offset + 8)
        else:
            routines, arguments = self._of_musl(np.where(self._words(bases, 0) == bases, bases, _0))
        out = []
        for thread, is_main, routine, argument, cpu in zip(
            threads, main.tolist(), routines.tolist(), arguments.tolist(), cpus.tolist(), strict=True
        ):
            ran_on = cpu if cpu >= 0 else None
            if is_main:
                out.append(Start(thread.tid, self._main(), "", ran_on))
                continue
            code, via = self._behind(self._code(routine), argument)
            out.append(Start(thread.tid, code, via, ran_on))
        return out

    # --- where it is ---------------------------------------------------------------------------------------

    def _offset(self, pointers: U64) -> int | None:
        """Of the start routine in struct pthread."""
        for name in ("libc.so", "libc-2.", "libpthread.so", "libpthread-2."):
            for module in self._named(name):
                at = module.symbol("_thread_db_pthread_start_routine")
                words = self._memory.try_read(at, 12) if at is not None else None
                if words is None:
                    continue
                bits, number, offset = np.frombuffer(words, "<u4").tolist()
                if bits == 64 and number == 1 and _FIRST <= offset < _LAST and offset % 8 == 0:
                    return int(offset)
        return self._guessed(pointers)

    def _guessed(self, pointers: U64) -> int | None:
        """The first word that points to code in every thread, of those that have the thread's id in them."""
        pointers = pointers[:_SAMPLE]
        if not len(pointers) or not self._named("libc.so", "libc-2."):
            return None
        for offset in range(_FIRST, _LAST, 8):
            words = np.unique(self._words(pointers, offset))
            if len(words) and all(self._is_code(int(w)) for w in words.tolist()):
                return offset
        return None

    def _of_musl(self, pointers: U64) -> tuple[U64, U64]:
        """Start routines and arguments with musl, which has them on top of each thread's stack.

        struct pthread (src/internal/pthread_impl.h) begins with itself; map_base, map_size, stack and
        stack_size follow each other in it. Below ``stack`` is a struct start_args (pthread_create.c).
        """
        tops = np.zeros(len(pointers), np.uint64)
        for offset in range(_MUSL_FIRST, _MUSL_LAST, 8):
            base, size, stack, room = (self._words(pointers, offset + 8 * i) for i in range(4))
            pages = (base != 0) & (size != 0) & ((base | size) % np.uint64(PAGE) == 0)
            fits = pages & (base < stack) & (stack - base <= size) & (room != 0) & (room <= size)
            tops = np.where(fits & (tops == 0), stack & ~np.uint64(7), tops)
        arguments = np.where(tops != 0, tops - np.uint64(_START_ARGS), _0)
        return self._words(arguments, 0), self._words(arguments, 8)

    def _cpus(self, pointers: U64) -> NDArray[np.int64]:
        """The processor that each thread ran on last, -1 where it is not known."""
        unknown = np.full(len(pointers), -1, np.int64)
        for module in self._named("ld-linux", "ld-2."):
            at, size = module.symbol("__rseq_offset"), module.symbol("__rseq_size")
            offset = self._memory.try_read(at, 8) if at is not None else None
            length = self._memory.try_read(size, 4) if size is not None else None
            if not offset or not length or not any(length):
                continue
            shift = int.from_bytes(offset, "little", signed=True)
            if not -(1 << 20) < shift < 1 << 20:
                continue
            areas = pointers + np.uint64(shift + _CPU_ID & (1 << 64) - 1)
            found, read = self._memory.load(areas, "<u4")
            good = read & (pointers != 0) & (found < _MOST_CPUS)
            return np.where(good, found.astype(np.int64), unknown)
        return unknown

    def _words(self, addresses: U64, offset: int) -> U64:
        values, read = self._memory.load(addresses + np.uint64(offset))
        return np.where((addresses != 0) & read, values, _0)

    # --- what it is ----------------------------------------------------------------------------------------

    def _main(self) -> Code | None:
        exe = self._capture.process.exe
        module = next((m for m in self._modules if m.path.removesuffix(" (deleted)") == exe), None)
        return None if module is None else Code(0, module, "main")

    def _behind(self, code: Code | None, argument: int) -> tuple[Code | None, str]:
        name = _name(code.module) if code is not None and code.module is not None else ""
        if name.startswith(_STD_THREAD):
            return self._of_state(argument) or code, "std::thread"
        if name.startswith(_GLIB):
            return self._code(self._word(argument)) or code, "GThread"
        return code, ""

    def _of_state(self, state: int) -> Code | None:
        """Of a std::thread::_State: the function among what it was made of, else the type of that.

        _State_impl<_Invoker<tuple<…>>> (bits/std_thread.h): a virtual table, then the tuple. The table is in
        the library that has the code, its second word before is the type, whose second word is the name.
        """
        table = self._word(state)
        module = self._module(table)
        if module is None:
            return None
        for i in range(1, _STATE_WORDS):
            code = self._code(self._word(state + 8 * i))
            if code is not None and code.module is not None and not _name(code.module).startswith("libc."):
                return code
        name = self._word(self._word(table - 8) + 8)
        text = self._memory.cstring(name, _MAX_NAME) if self._memory.try_read(name, 1) else b""
        named = text.lstrip(b"*").decode("ascii", "replace") if text.isascii() else ""
        return Code(table, module, named or None)

    def _code(self, address: int) -> Code | None:
        if address not in self._codes:
            self._codes[address] = self._find_code(address)
        return self._codes[address]

    def _find_code(self, address: int) -> Code | None:
        if not self._is_code(address):
            return None
        module = self._module(address)
        return Code(address, module, module.function_at(address) if module is not None else None)

    def _is_code(self, address: int) -> bool:
        module = self._module(address)
        if module is not None:
            return bool(module.flags_at(address) & PF_X)
        i = bisect_right(self._made, (address, 1 << 64)) - 1
        return i >= 0 and address < self._made[i][1]

    def _module(self, address: int) -> Module | None:
        i = bisect_right(self._starts, address) - 1
        module = self._modules[i] if i >= 0 else None
        return module if module is not None and module.contains(address) else None

    def _word(self, address: int) -> int:
        raw = self._memory.try_read(address, 8) if 4096 <= address < 1 << 63 else None
        return int.from_bytes(raw, "little") if raw else 0

    def _named(self, *starts: str) -> list[Module]:
        return [m for m in self._modules if _name(m).startswith(starts)]


def _name(module: Module) -> str:
    return module.path.rpartition("/")[2]
