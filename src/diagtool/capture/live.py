"""Capture of a live process: look, stop for milliseconds, copy, let go; all else happens afterwards.

What is consistent: the registers of all threads and the memory that was copied, taken in one stop (stop.py;
what is copied: plan.py). What is not: names, states, wchan and CPU times, read just before the stop; open
files, read just after it; memory that was not copied, read when somebody asks for it and, where the program
may have written to it meanwhile, counted in ``late_pages``.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import numpy as np

from diagtool.capture import access, clonemode, plan, processors, procfs
from diagtool.capture.bigbuffers import LEAST, big_buffers
from diagtool.capture.children import Children
from diagtool.capture.clonemode import AUTO_BYTES, CloneMode
from diagtool.capture.descriptors import read_descriptors, read_links, texts
from diagtool.capture.errors import NotSupported, Refused, Unsuitable
from diagtool.capture.hold import Asleep
from diagtool.capture.late import LateReader
from diagtool.capture.memory import PAGE, AddressSpace, Bytes, Segment
from diagtool.capture.model import REGISTERS_X86_64, Capture, CapturedThread, Mapping
from diagtool.capture.modulefiles import Candidate, ModuleFiles
from diagtool.capture.modules import modules_from_mappings
from diagtool.capture.residency import Residency
from diagtool.capture.restarted import CODE, RESTART_SYSCALL, restarted_syscall
from diagtool.capture.room import headroom, resident_bytes
from diagtool.capture.signalmasks import read_masks
from diagtool.capture.signals import SignalInfo, Signals
from diagtool.capture.stop import Keeper, Preparation, Stopped, stop_and_copy, stop_and_stay
from diagtool.capture.syscalls import blocked_syscall
from diagtool.capture.vmread import MemoryReader

__all__ = ["MAX_COPY", "ExtraPages", "capture_live", "capture_standing"]

MAX_COPY = 512 << 20  # bytes copied in the stop, at most

#: Given the mappings before the stop, address ranges to copy that would not be otherwise.
ExtraPages = Callable[[Sequence[Mapping]], Sequence[tuple[int, int]]]

_NOT_ASKED = "only a copy-on-write image of the process can be asked for them, and none was made"
_MADV_POPULATE_WRITE = 23  # Linux 5.14, include/uapi/asm-generic/mman-common.h
_HUGE_PAGE = 2 << 20
_SLACK = 8 << 20  # bytes of room for what the target allocates between the look and the stop
_REHEARSED = 64 << 20  # bytes up to which a copy is rehearsed: more does not stay in any cache
_STACK_ROOM = 64 << 20  # bytes of room for stacks, at most
_NAPS = (0.05, 0.2, 0.5)  # seconds between tries to stop a process that waits for its disk


def capture_live(
    pid: int,
    *,
    max_copy: int = MAX_COPY,
    extra_pages: ExtraPages | None = None,
    clone: CloneMode = "never",
    image_from: int = AUTO_BYTES,
    vectors: bool = False,
    keeper: Keeper | None = None,
) -> Capture:
    """Capture a running process: registers, memory, and what /proc says of it.

    ``max_copy`` bounds the bytes that are copied in the stop. ``clone`` is about a copy-on-write image in
    place of the copy (capture/image.py): memory of one instant, held until the capture is closed. "auto"
    takes one of a process with more than ``image_from`` bytes of anonymous memory. ``vectors`` asks for the
    vector registers of each thread, which come with an image only. ``keeper`` traces it already and stops it
    for us; of such a process no image is made. The target runs on afterwards (one that was stopped stays
    stopped), whatever happens here. Close the capture when done: until then files that it maps can be read.
    Raises NoSuchTarget, NotPermitted or NotSupported.

    A child of our own can be captured, but not while another thread of ours waits for it (Popen.poll and
    wait, too): wait(2) would tell that thread of the stop, which then goes unnoticed here.
    """
    access.check(pid, ours=keeper is not None)
    try:
        reader = MemoryReader(pid)
    except OSError as error:
        raise access.refused(pid, error) from None
    refusal = None
    try:
        if keeper is None and clonemode.wanted(pid, clone, image_from):
            try:
                return _patiently(lambda: _capture_image(pid, reader, clone == "always", vectors))
            except Refused as error:
                refusal = str(error)
        if refusal is not None and clone == "always":
            raise NotSupported(
                f"no copy-on-write image of process {pid} can be made: {refusal}",
                "With --clone auto its memory is read in place.",
            )
        capture = _patiently(lambda: _capture(pid, reader, max_copy, extra_pages, keeper))
    except BaseException:
        reader.close()
        raise
    if refusal is not None:
        stood = f"the process stood for {capture.pause_ms or 0:.0f} ms"
        capture.warnings.append(f"no copy-on-write image ({refusal}): memory was read in place, {stood}")
    return capture


def capture_standing(
    pid: int, keeper: Keeper, signal: SignalInfo | None = None, tid: int | None = None
) -> Capture:
    """Capture a process that ``keeper`` traces and that is not to run on before the capture is closed.

    Nothing is copied: all of its memory is read where it is, as a core would have it. For one that ends
    anyway. ``signal`` is what ends it, in thread ``tid``, which comes first then. Close it in any case, and
    have ``keeper.thaw(pid)`` called in the tracing thread if this raises. Raises as :func:`capture_live`.
    """
    from diagtool.capture.image import FrozenMemory

    access.check(pid, ours=True)
    try:
        reader = MemoryReader(pid)
    except OSError as error:
        raise access.refused(pid, error) from None
    try:
        about = _About(pid)
        prepared = _looked_at(pid, reader)
        prepared.keeper = keeper
        try:
            stopped = stop_and_stay(prepared)
        except OSError as error:
            raise access.refused(pid, error) from None
        finally:
            prepared.close()
        frozen = FrozenMemory(prepared, stopped, _Standing(pid, keeper))
        capture = about.capture(stopped)
        capture.image, capture.image_pid = True, pid
        capture.pause_ms = None  # it does not run on
        about.complete(capture, stopped, frozen.address_space(capture))
    except OSError as error:
        reader.close()
        raise access.refused(pid, error) from None
    except BaseException:
        reader.close()
        raise
    capture.threads.sort(key=lambda thread: thread.tid != tid)
    if signal is not None:
        about.process.signal, about.signals.info = signal.number, signal
    capture._closers += [capture.memory, frozen, reader]
    return capture


class _Standing:
    """A process that is its own image."""

    def __init__(self, pid: int, keeper: Keeper) -> None:
        self.pid = pid
        self._keeper = keeper

    def close(self) -> None:
        self._keeper.call(lambda: self._keeper.thaw(self.pid))


def _patiently(take: Callable[[], Capture]) -> Capture:
    for pause in _NAPS:
        with suppress(Asleep, Unsuitable):
            return take()
        time.sleep(pause)
    return take()


def _capture(
    pid: int,
    reader: MemoryReader,
    max_copy: int,
    extra_pages: ExtraPages | None,
    keeper: Keeper | None,
) -> Capture:
    about = _About(pid)
    prepared = _prepare(pid, reader, max_copy, extra_pages, len(about.threads), about.warnings)
    prepared.keeper = keeper
    try:
        stopped = stop_and_copy(prepared)
    except OSError as error:
        raise access.refused(pid, error) from None
    finally:
        prepared.close()
    capture = about.capture(stopped)
    capture.skipped = list(prepared.skipped)
    about.complete(capture, stopped, _address_space(capture, stopped, prepared.buffer, reader))
    capture._closers += [reader, capture.memory]
    return capture


def _capture_image(pid: int, reader: MemoryReader, last_resort: bool, vectors: bool) -> Capture:
    from diagtool.capture import clone, image  # a quarter of what there is to import for a capture

    about = _About(pid)
    obstacle = clone.obstacle(pid)
    if obstacle is not None:
        raise Refused(obstacle)
    prepared = _looked_at(pid, reader)
    try:
        image.reap_leftovers(pid, prepared.order.mappings, reader)
        stopped, child, states = clone.take_image(prepared, last_resort=last_resort, vectors=vectors)
    except OSError as error:
        raise access.refused(pid, error) from None
    finally:
        prepared.close()
    try:
        frozen = image.FrozenMemory(prepared, stopped, child)
        capture = about.capture(stopped)
        capture.image, capture.image_pid = True, child.pid
        about.signals.actions, about.signals.stacks = child.signals.actions, child.signals.stacks
        about.signals.why_not = child.signals.why_not
        about.complete(capture, stopped, frozen.address_space(capture))
    except OSError as error:
        child.close()
        raise Refused(f"it was ended again ({error.strerror})") from None
    except BaseException:
        child.close()
        raise
    for thread in capture.threads:
        thread.vectors = states.get(thread.tid, b"")
    capture._closers += [capture.memory, frozen, reader]
    return capture


class _About:
    """What is looked up before the stop and is no memory, and what becomes of it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.warnings: list[str] = []
        self.process = procfs.read_process(pid)
        self.process.children = Children(pid)
        self.links = read_links(pid)[0]
        self.threads = {tid: procfs.read_thread(pid, tid) for tid in procfs.task_ids(pid)}
        self.signals = Signals(read_masks(pid, ()), why_not=_NOT_ASKED)
        for tid, thread in self.threads.items():
            if thread.blocked is not None:
                self.signals.masks.blocked[tid] = thread.blocked
                self.signals.masks.thread_pending[tid] = thread.pending

    def capture(self, stopped: Stopped) -> Capture:
        """A capture, without memory yet."""
        processors.keep_off_again(self.pid)
        self.process.captured_at = stopped.at
        self.process.monotonic = stopped.monotonic + procfs.monotonic_shift(self.pid)
        return Capture(
            kind="live",
            process=self.process,
            threads=[],
            mappings=stopped.mappings,
            modules=[],
            memory=AddressSpace(),
            pause_ms=stopped.pause_seconds * 1e3,
            warnings=self.warnings,
            left_out=stopped.layout.left_out,
            signals=self.signals,
        )

    def complete(self, capture: Capture, stopped: Stopped, memory: AddressSpace) -> None:
        """Add memory, threads, modules, files and warnings."""
        capture.memory = memory
        for tid in sorted([*stopped.tids, *stopped.unstopped], key=lambda tid: (tid != self.pid, tid)):
            thread = self.threads.get(tid) or procfs.read_thread(self.pid, tid)
            _add_registers(thread, stopped.registers.get(tid), memory)
            capture.threads.append(thread)
        files = ModuleFiles(capture.mappings, memory.try_read, _finder(self.pid), self.warnings)
        capture._closers.append(files)
        capture.modules = modules_from_mappings(capture.mappings, memory, files, self.warnings)
        capture.descriptors, notes = read_descriptors(self.pid, self.links)
        capture.fds = texts(capture.descriptors)
        self.warnings.extend(notes)
        _warn(capture, stopped)


def _looked_at(pid: int, reader: MemoryReader) -> Preparation:
    """What every stop needs: files open, mappings known."""
    try:
        maps_fd = os.open(f"/proc/{pid}/maps", os.O_RDONLY)
    except OSError as error:
        raise access.refused(pid, error) from None
    residency = Residency(pid)
    try:
        text = procfs.read_descriptor(maps_fd)
        known: dict[bytes, Mapping] = {}
        order = plan.MappingOrder(procfs.parse_maps(text, known))
        if order.spans:
            reader.probe(order.spans[0][0])
    except OSError as error:
        os.close(maps_fd)
        residency.close()
        raise access.refused(pid, error) from None
    return Preparation(pid, reader, maps_fd, text, known, order, residency, np.zeros(0, dtype=np.uint8))


def _prepare(
    pid: int,
    reader: MemoryReader,
    max_copy: int,
    extra_pages: ExtraPages | None,
    threads: int,
    warnings: list[str],
) -> Preparation:
    """Everything that can be done before the stop: files open, buffer in memory, code paths warm."""
    prepared = _looked_at(pid, reader)
    order, residency = prepared.order, prepared.residency
    asked = list(extra_pages(order.mappings)) if extra_pages is not None else []
    capacity = min(max_copy, headroom())
    if capacity < max_copy:
        warnings.append(f"little memory is free here: at most {capacity >> 20} MiB are copied in the stop")
    # Where little is copied anyway, it is the little that comes first.
    skipped = big_buffers(order.outside_heap(), residency, reader) if capacity > LEAST else []
    # With a stack pointer that is as good as any: what is first done in the stop takes ten times as long.
    pointers = [m.end - PAGE for m in order.mappings if m.path == "[stack]"]
    layout = plan.choose(order, residency, pointers, capacity, asked, skipped)
    stacks = min(threads * plan.STACK_COPY, _STACK_ROOM)
    size = min(capacity, layout.size + layout.size // 4 + stacks + _SLACK)
    # All of the threads' stacks is in the layout, and of each only a part is copied. So it takes a process
    # that grows to get beyond this, and then the kernel finds the room in the stop.
    buffer = _buffer(size, min(size, layout.size + layout.size // 16 + plan.MAIN_STACK_COPY))
    _rehearse(reader, layout, buffer)
    prepared.buffer, prepared.asked, prepared.skipped = buffer, asked, skipped
    return prepared


def _rehearse(reader: MemoryReader, layout: plan.Layout, buffer: Bytes) -> None:
    """Copy once while the process runs: what is in the caches is copied 10 to 20 % quicker in the stop."""
    if layout.size > _REHEARSED:
        return
    chunks = plan.chunked(layout)
    with suppress(OSError):  # the stop will say what is wrong
        for number, offset in enumerate(chunks.offset):
            vectors = chunks.vectors[chunks.first[number] : chunks.first[number + 1]]
            reader.read(vectors, int(buffer.ctypes.data) + offset)


def _buffer(size: int, there: int) -> Bytes:
    """Anonymous memory, on huge pages where possible, the first ``there`` bytes of which are really there, so
    that no copy to them faults."""
    size = (max(size, PAGE) + _HUGE_PAGE - 1) & -_HUGE_PAGE
    there = (max(there, PAGE) + _HUGE_PAGE - 1) & -_HUGE_PAGE
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # no huge pages on this kernel
        area.madvise(mmap.MADV_HUGEPAGE)
    data: Bytes = np.frombuffer(area, dtype=np.uint8)
    try:
        area.madvise(_MADV_POPULATE_WRITE, 0, there)
    except OSError:
        data[:there:PAGE] = 0
    return data


def _add_registers(thread: CapturedThread, words: tuple[int, ...] | None, memory: AddressSpace) -> None:
    if words is None:
        return  # it did not stop: what was known before stays
    thread.registers = dict(zip(REGISTERS_X86_64, words, strict=True))
    thread.syscall, thread.syscall_args = blocked_syscall(thread.registers) or (None, ())
    if thread.syscall == RESTART_SYSCALL:
        code = memory.try_read(thread.registers["rip"] - CODE, CODE)
        thread.syscall = restarted_syscall(code, thread.wchan)


def _address_space(capture: Capture, stopped: Stopped, buffer: Bytes, reader: MemoryReader) -> AddressSpace:
    layout = stopped.layout
    space = AddressSpace(LateReader(capture, reader))
    number = space.add_buffer(buffer[: layout.size])
    segments = []
    for (start, end), offset in zip(layout.ranges.tolist(), layout.offsets.tolist(), strict=True):
        cursor = start
        for low, high in stopped.lost:
            if start <= low < end:
                segments.append(Segment(cursor, low, number, offset + cursor - start))
                cursor = high
        segments.append(Segment(cursor, end, number, offset + cursor - start))
    space.add_segments([s for s in segments if s.end > s.start])
    return space


def _finder(pid: int) -> Callable[[Mapping], Iterator[Candidate]]:
    """Where the files behind mappings are looked for: as the process itself sees them."""

    def find(mapping: Mapping) -> Iterator[Candidate]:
        for fd, proof in procfs.open_mapped(pid, mapping):
            yield Candidate(fd, mapping.path, proof)

    return find


def _warn(capture: Capture, stopped: Stopped) -> None:
    warn = capture.warnings.append
    if stopped.unstopped:
        tids = ", ".join(str(tid) for tid in stopped.unstopped[:8])
        warn(
            f"{len(stopped.unstopped)} threads did not stop (asleep in the kernel, or in vfork) "
            f"and have no registers: {tids}"
        )
    if capture.left_out:
        size = sum(end - start for start, end in capture.left_out)
        warn(f"up to {size >> 20} MiB of writable memory were not copied in the stop; parts are read later")
    if stopped.lost:
        size = sum(end - start for start, end in stopped.lost)
        warn(f"{size >> 10} KiB of memory could not be read in the stop")
    capture.swapped = resident_bytes(capture.process.pid)[1]
    if capture.swapped:
        warn(f"{capture.swapped >> 20} MiB of the process are swapped out; parts are read after the stop")
