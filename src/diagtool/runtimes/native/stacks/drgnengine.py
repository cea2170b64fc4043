"""Unwinding with drgn, of any capture: live or core, with or without debug information.

drgn unwinds cores. So it is given one that has nothing but the registers; memory it reads through a function,
from the capture, and modules are told to it one by one, with the files that the capture has checked. So a
live process is unwound when it runs again, and a core with the files of its own machine (``--sysroot``).
"""

from __future__ import annotations

import logging
import os
import resource
import struct
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import numpy as np

from diagtool.capture.corenotes import status_note
from diagtool.capture.demangle import demangle, language_of
from diagtool.capture.elf import EM_X86_64, ET_CORE, PT_NOTE
from diagtool.capture.model import Capture, CapturedThread
from diagtool.capture.modules import Module
from diagtool.capture.segments import both, merged
from diagtool.runtimes.native.stacks.alike import Unwound, Waiting
from diagtool.runtimes.native.stacks.model import NativeFrame, NativeStacks
from diagtool.runtimes.native.stacks.resync import CallSites
from diagtool.runtimes.native.stacks.unwindsections import as_drgn_reads_it

if TYPE_CHECKING:
    import drgn

__all__ = ["unwind"]

_USER = (0x1000, (1 << 47) - 0x2000)  # addresses that a process has: (first, size)
_MOST_FRAMES = 20_000  # of one thread; what lies further out is left out
_SECONDS = 30.0  # for all threads: what takes longer is left out, with a warning
_MOST_GUESSES = 8  # times that a stack is taken up again behind something that can't be unwound
_LOOKED_AT = 256 << 10  # bytes of each stack in which is looked for the modules that matter
_MAX_FILES = 4096  # descriptors that we may have open
#: Without one of these variables no server is asked.
_DEBUGINFOD = "DEBUGINFOD_URLS"
_SILENCE = 5  # seconds in which a server must send something
_ASKING = 120.0  # seconds in which it may send files
_DISABLE_PLUGINS = "DRGN_DISABLE_PLUGINS"


def unwind(
    capture: Capture, debug_directories: Sequence[str] = (), without: Collection[int] = ()
) -> NativeStacks:
    """The native frames of all threads that have registers, but those of ``without`` (tids).

    ``debug_directories``: where separate debug files are looked for, besides /usr/lib/debug. Raises
    ImportError where drgn is not installed.
    """
    with _without_plugins():
        import drgn
    logging.getLogger("drgn").setLevel(logging.CRITICAL)  # what is missing shows in the frames
    stacks = NativeStacks()
    threads = [t for t in capture.threads if t.registers and t.tid not in without]
    if not threads:
        return stacks
    with _more_files():
        with _without_plugins():  # they are loaded when the first program is given something to look at
            unwinder = _Unwinder(drgn.Program(), capture, threads, debug_directories)
        stacks.warnings += unwinder.warnings
        frames: dict[int, Sequence[NativeFrame]] = {}
        waiting = Waiting(capture.memory, threads)
        until = time.monotonic() + _SECONDS
        for number, thread in enumerate(threads):
            if thread.tid in frames:
                continue
            if time.monotonic() > until:
                left = len(threads) - len(frames)
                stacks.warnings.append(
                    f"native frames of {left:,} threads are missing: it took too long to find all"
                )
                break
            waiting.take(number)
            frames[thread.tid], why = unwinder.frames(thread)
            if why:
                stacks.cut[thread.tid] = why
            elif unwinder.reads:
                unwound = Unwound(thread, frames[thread.tid], unwinder.reads)
                for other in waiting.alike(number, unwound):
                    frames[threads[other].tid] = unwound.at(threads[other].registers["rsp"])
        stacks.frames = {t.tid: frames[t.tid] for t in threads if t.tid in frames}
    return stacks


def _is_missing(error: Exception) -> bool:
    return type(error).__name__ == "MissingDebugInfoError"


# Its own limits, a minute and a half and two more attempts for each file, are none for a report.
@contextmanager
def _patience() -> Iterator[float]:
    """Seconds after which libdebuginfod gives up on a server that sends nothing; the user's own count."""
    ours = {"DEBUGINFOD_TIMEOUT": str(_SILENCE), "DEBUGINFOD_RETRY_LIMIT": "0"}
    added = [name for name in ours if name not in os.environ]
    os.environ.update({name: ours[name] for name in added})
    try:
        told = os.environ["DEBUGINFOD_TIMEOUT"].strip()
        yield float(told) if told.isdecimal() and told != "0" else _SILENCE
    finally:
        for name in added:
            os.environ.pop(name, None)


# Plugins are commands and helpers for people at drgn's prompt: half of the time that loading it takes. The
# environment is not ours alone.
@contextmanager
def _without_plugins() -> Iterator[None]:
    if _DISABLE_PLUGINS in os.environ:
        yield
        return
    os.environ[_DISABLE_PLUGINS] = "*"
    try:
        yield
    finally:
        os.environ.pop(_DISABLE_PLUGINS, None)


@contextmanager
def _more_files() -> Iterator[None]:
    # Every library keeps a descriptor, and many programs have more libraries than the usual limit allows.
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        hard = before[1] if before[1] != resource.RLIM_INFINITY else _MAX_FILES
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], min(hard, _MAX_FILES)), before[1]))
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, before)


class _Unwinder:
    def __init__(
        self,
        program: drgn.Program,
        capture: Capture,
        threads: Sequence[CapturedThread],
        debug_directories: Sequence[str],
    ) -> None:
        self.program = program
        self.capture = capture
        self.warnings: list[str] = []
        self._fault = _fault_error()
        program.set_core_dump(_registers_only(threads))
        program.add_memory_segment(*_USER, self._read)
        self.modules = _needed(capture, threads)
        self.sites = CallSites(capture.memory, self.modules, capture.mappings)
        self._add_modules(debug_directories)
        #: What was read of memory for the last stack; nothing where a part of it is a guess.
        self.reads: list[tuple[int, bytes]] = []
        self._registers_type: drgn.Type | None = None
        self._symbols: dict[tuple[int, bool], tuple[str, int] | None] = {}

    # -- what drgn is given -----------------------------------------------------------------------------

    def _read(self, address: int, count: int, offset: int, physical: bool) -> bytes:
        data = self.capture.memory.try_read(address, count)
        if data is None:
            raise self._fault(f"{count} bytes at {address:#x} are not in the capture", address)
        self.reads.append((address, data))
        return data

    def _add_modules(self, debug_directories: Sequence[str]) -> None:
        known = []
        for number, module in enumerate(self.modules):
            with suppress(LookupError, ValueError, OSError):
                made = self.program.extra_module(module.path, number, create=True)
                if isinstance(made, tuple):  # newer versions say whether it is a new one
                    made = made[0]
                made.address_range = (module.start, module.end)
                if module.build_id:
                    made.build_id = bytes.fromhex(module.build_id)
                fd = module.descriptor()
                if fd is not None:
                    other = as_drgn_reads_it(fd)
                    if other is not None:
                        os.close(fd)
                        fd = other
                    # Its build-id was compared when the file was found; where it has none, its first page.
                    made.try_file(module.path, fd=fd, force=not module.build_id)
                    known.append(made)
        self._find_debug_files([m for m in known if m.wants_debug_file()], debug_directories)

    def _find_debug_files(self, modules: Sequence[drgn.Module], directories: Sequence[str]) -> None:
        options = self.program.debug_info_options
        options.directories = (*directories, *options.directories)
        # Paths that a process names are of its own machine: nothing but build-ids counts, and in directories
        # that the user names a debug link, which has a checksum.
        options.debug_link_directories = tuple(directories)
        options.try_module_name = options.try_procfs = options.try_embedded_vdso = False
        with_id = [m for m in modules if m.build_id]
        try:
            self.program.find_standard_debug_info(modules if directories else with_id, options)
            if os.environ.get(_DEBUGINFOD, "").strip():
                self.program.set_enabled_debug_info_finders(["debuginfod"])
                self._ask_server([m for m in with_id if m.wants_debug_file()])
        except Exception as error:  # noqa: BLE001 - drgn raises many kinds; without names a stack is still one
            if not _is_missing(error):
                first = str(error).partition("\n")[0]
                self.warnings.append(f"debug files could not be read: {first}")

    # One after the other: a server that does not answer is asked for one, not for hundreds.
    def _ask_server(self, modules: Sequence[drgn.Module]) -> None:
        began = time.monotonic()
        with _patience() as patience:
            for number, module in enumerate(modules):
                asked = time.monotonic()
                try:
                    self.program.load_module_debug_info(module)
                except Exception as error:
                    if not _is_missing(error):
                        raise
                now = time.monotonic()
                silent = module.wants_debug_file() and now - asked >= patience - 0.5
                if silent or now - began >= _ASKING:
                    left = len(modules) - number - (not silent)
                    why = f"it did not answer for {patience:,.0f} s" if silent else "it took too long"
                    if left:
                        self.warnings.append(f"debuginfod was not asked for {left:,} libraries: {why}")
                    return

    # -- frames -----------------------------------------------------------------------------------------

    def frames(self, thread: CapturedThread) -> tuple[list[NativeFrame], str]:
        """(frames of a thread, innermost first; why outermost ones are missing, "" where none are)."""
        found: list[NativeFrame] = []
        guesses = 0
        guessed = False
        start: int | drgn.Object = thread.ns_tid or thread.tid
        lowest = 0
        skip = 0
        self.reads = []
        while True:
            try:
                trace = self.program.stack_trace(start)
            except Exception as error:  # noqa: BLE001 - see above
                return found, str(error).partition("\n")[0]
            made, last, ended = self._made(trace, skip, guessed)
            good = self._believable(made)
            if good < len(made):
                made, ended, last = made[:good], False, None
            found += made
            if len(found) >= _MOST_FRAMES:
                return found[:_MOST_FRAMES], f"it has more than {_MOST_FRAMES:,} frames"
            if ended and found:
                if guesses:
                    self.reads = []
                return found, ""
            registers = {} if last is None else last.registers()
            if not found:
                return found, "its stack pointer leads nowhere"
            stack = registers.get("rsp", 0)
            if last is not None and len(trace) >= _DRGN_FRAMES and stack > lowest:
                lowest, skip, guessed = stack, 1, False  # drgn ends a long stack early: go on from there
                start = self._at(registers)
                continue
            place = max(stack, lowest, found[-1].sp)
            if self.capture.memory.try_read(place & -8, 8) is None:
                return found, "a part of the stack is not in the capture"
            site = self.sites.next_return(place) if guesses < _MOST_GUESSES else None
            if site is None:
                return found, "what follows can't be unwound"
            guesses += 1
            lowest, skip, guessed = site[0], 0, True
            start = self._at({**registers, "rip": site[1], "rsp": site[0] + 8, "rbp": 0})

    def _believable(self, frames: Sequence[NativeFrame]) -> int:
        """How many of the frames are, from the innermost on.

        Without unwind information drgn follows the frame pointer, which most code uses for something else.
        Where that leads is no code, or not further up the stack.
        """
        for number, frame in enumerate(frames):
            known = self.sites.module_at(frame.pc) is not None
            if number and not known and not self.sites.is_code(frame.pc):
                return number
            before = frames[number - 1] if number else None
            if before is None or frame.sp == before.sp:  # inlined
                continue
            followed = self.sites.module_at(before.pc) is None
            if frame.sp & 7 or frame.sp < before.sp or (followed and not self.sites.is_return(frame.pc)):
                return number
        return len(frames)

    def _made(
        self, trace: drgn.StackTrace, skip: int, guessed: bool
    ) -> tuple[list[NativeFrame], drgn.StackFrame | None, bool]:
        """(frames, the last one as drgn has it, whether nothing called that)."""
        out: list[NativeFrame] = []
        last: drgn.StackFrame | None = None
        ended = False
        for frame in trace:
            try:
                pc = frame.pc
            except LookupError:  # what begins a thread says that nothing has called it
                ended = True
                break
            if not pc:
                break
            last = frame
            out.append(self._named(frame, pc, guessed and not out))
        if skip and out:  # the frame from which it was taken up again, with what is inlined there
            first = out[0].pc
            at = next((i for i, f in enumerate(out) if not f.inline and f.pc == first), 0)
            out = out[at + 1 :]
        return out, last, ended

    def _named(self, frame: drgn.StackFrame, pc: int, guessed: bool) -> NativeFrame:
        module = self.sites.module_at(pc)
        name, offset, language = "", pc - module.bias if module is not None else 0, "native"
        inline = frame.is_inline
        own = frame.function_name  # of the debug information: for C++ without the class it is in
        if not inline:
            symbol = self._symbol(pc, frame.interrupted)
            if symbol is not None:
                name, offset, language = symbol[0], pc - symbol[1], language_of(symbol[0])
        if own and (not name or language == "c"):
            name, language = own, language if name else "native"
        file, line = self._source(frame)
        return NativeFrame(
            pc=pc,
            sp=_stack_pointer(frame),
            function=demangle(name),
            offset=offset,
            library=module.path if module is not None else None,
            file=file,
            line=line,
            inline=inline,
            language=language if name else "native",
            guessed=guessed,
        )

    def _symbol(self, pc: int, interrupted: bool) -> tuple[str, int] | None:
        """(name, address) of the function that a frame is in; threads that are alike have the same ones."""
        key = pc, interrupted
        if key not in self._symbols:
            self._symbols[key] = None
            with suppress(LookupError):
                # A return address may be the first one behind its function, where that never returns.
                symbol = self.program.symbol(pc - (0 if interrupted else 1))
                self._symbols[key] = symbol.name, symbol.address
        return self._symbols[key]

    def _source(self, frame: drgn.StackFrame) -> tuple[str | None, int | None]:
        try:
            place = frame.source()
        except LookupError:
            return None, None
        return (place[0] or None), (place[1] or None)

    def _at(self, registers: dict[str, int]) -> drgn.Object:
        """Registers as drgn takes them in place of a thread's."""
        import drgn

        if self._registers_type is None:
            word = self.program.int_type("unsigned long", 8, False)
            members = [
                drgn.TypeMember(word, name=name, bit_offset=64 * number)
                for number, name in enumerate(_PT_REGS)
            ]
            self._registers_type = self.program.struct_type("pt_regs", 8 * len(_PT_REGS), members)
        words = [registers.get(_DRGN_NAMES.get(name, name), 0) & (1 << 64) - 1 for name in _PT_REGS]
        packed = struct.pack(f"<{len(words)}Q", *words)
        return drgn.Object.from_bytes_(self.program, self._registers_type, packed)


#: struct pt_regs of the kernel (arch/x86/include/asm/ptrace.h): names as drgn looks for them.
_PT_REGS = (
    "r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di orig_ax ip cs flags sp ss"
).split()  # fmt: skip
_DRGN_NAMES = {
    **{name: f"r{name}" for name in ("bp", "bx", "ax", "cx", "dx", "si", "di", "sp", "ip")},
    "flags": "rflags",
}
_DRGN_FRAMES = 1024  # that drgn finds in one go (libdrgn/stack_trace.c)


def _stack_pointer(frame: drgn.StackFrame) -> int:
    try:
        return int(frame.sp)
    except LookupError:
        return 0


def _fault_error() -> Callable[[str, int], Exception]:
    import drgn

    made: Callable[[str, int], Exception] = drgn.FaultError
    return made


def _registers_only(threads: Iterable[CapturedThread]) -> int:
    """A descriptor of a core with NT_PRSTATUS of each thread and no memory."""
    notes = b"".join(status_note(thread) for thread in threads)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = ident + struct.pack("<HHIQQQIHHHHHH", ET_CORE, EM_X86_64, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", PT_NOTE, 4, 120, 0, 0, len(notes), len(notes), 4)
    fd = os.memfd_create("registers", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(head + segment + notes)
    return fd


def _needed(capture: Capture, threads: Sequence[CapturedThread]) -> list[Module]:
    """The modules that words of stacks point into: of a thousand libraries a few dozen have frames."""
    modules = sorted(capture.modules, key=lambda m: m.start)
    if not modules:
        return []
    starts = np.array([m.start for m in modules], np.uint64)
    ends = np.array([m.end for m in modules], np.uint64)
    pointers = np.array([t.registers["rip"] for t in threads], np.uint64)
    wanted = np.zeros(len(modules), np.bool_)
    stacks = merged((t.registers["rsp"] & -8, t.registers["rsp"] + _LOOKED_AT & -8) for t in threads)
    held = merged((s.start, s.end) for s in capture.memory.segments)
    looked_at = [(low + 7 & -8, high & -8) for low, high in both(stacks, held)]
    for words in (pointers, *(w for _, w in capture.memory.blocks([r for r in looked_at if r[0] < r[1]]))):
        at = np.searchsorted(starts, words, side="right") - 1
        good = (at >= 0) & (words < ends[np.maximum(at, 0)])
        wanted[at[good]] = True
    return [m for m, yes in zip(modules, wanted.tolist(), strict=True) if yes or m.path == "[vdso]"]
