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
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import numpy as np

from diagtool.capture import access, plan, processors, procfs
from diagtool.capture.bigbuffers import big_buffers
from diagtool.capture.children import Children
from diagtool.capture.descriptors import read_descriptors
from diagtool.capture.memory import PAGE, U64, AddressSpace, Bytes, Segment
from diagtool.capture.model import REGISTERS_X86_64, Capture, CapturedThread, Mapping
from diagtool.capture.modulefiles import Candidate, ModuleFiles
from diagtool.capture.modules import modules_from_mappings
from diagtool.capture.residency import Residency
from diagtool.capture.restarted import CODE, RESTART_SYSCALL, restarted_syscall
from diagtool.capture.room import headroom, resident_bytes
from diagtool.capture.stop import Asleep, Preparation, Stopped, stop_and_copy
from diagtool.capture.syscalls import blocked_syscall
from diagtool.capture.vmread import IOV_MAX, MemoryReader

__all__ = ["MAX_COPY", "ExtraPages", "capture_live"]

MAX_COPY = 512 << 20  # bytes copied in the stop, at most

#: Given the mappings before the stop, address ranges to copy that would not be otherwise.
ExtraPages = Callable[[Sequence[Mapping]], Sequence[tuple[int, int]]]

_MADV_POPULATE_WRITE = 23  # Linux 5.14, include/uapi/asm-generic/mman-common.h
_HUGE_PAGE = 2 << 20
_SLACK = 8 << 20  # bytes of room for what the target allocates between the look and the stop
_REHEARSED = 64 << 20  # bytes up to which a copy is rehearsed: more does not stay in any cache
_STACK_ROOM = 64 << 20  # bytes of room for stacks, at most
_NAPS = (0.05, 0.2, 0.5)  # seconds between tries to stop a process that waits for its disk


def capture_live(pid: int, *, max_copy: int = MAX_COPY, extra_pages: ExtraPages | None = None) -> Capture:
    """Capture a running process: registers, memory, and what /proc says of it.

    ``max_copy`` bounds the bytes that are copied in the stop. The target runs on afterwards (one that was
    stopped stays stopped), whatever happens here. Close the capture when done: until then files that it maps
    can be read. Raises NoSuchTarget, NotPermitted or NotSupported.

    A child of our own can be captured, but not while another thread of ours waits for it (Popen.poll and
    wait, too): wait(2) would tell that thread of the stop, which then goes unnoticed here.
    """
    access.check(pid)
    try:
        reader = MemoryReader(pid)
    except OSError as error:
        raise access.refused(pid, error) from None
    try:
        for pause in _NAPS:
            with suppress(Asleep):
                return _capture(pid, reader, max_copy, extra_pages)
            time.sleep(pause)
        return _capture(pid, reader, max_copy, extra_pages)
    except BaseException:
        reader.close()
        raise


def _capture(pid: int, reader: MemoryReader, max_copy: int, extra_pages: ExtraPages | None) -> Capture:
    warnings: list[str] = []
    process = procfs.read_process(pid)
    process.children = Children(pid)
    before = {tid: procfs.read_thread(pid, tid) for tid in procfs.task_ids(pid)}
    prepared = _prepare(pid, reader, max_copy, extra_pages, len(before), warnings)
    try:
        stopped = stop_and_copy(prepared)
    except OSError as error:
        raise access.refused(pid, error) from None
    finally:
        os.close(prepared.maps_fd)
        prepared.residency.close()
    processors.keep_off_again(pid)
    process.captured_at = stopped.at
    process.monotonic = stopped.monotonic + procfs.monotonic_shift(pid)
    capture = Capture(
        kind="live",
        process=process,
        threads=[],
        mappings=stopped.mappings,
        modules=[],
        memory=AddressSpace(),
        pause_ms=stopped.pause_seconds * 1e3,
        warnings=warnings,
        left_out=stopped.layout.left_out,
    )
    capture.memory = _address_space(capture, stopped, prepared.buffer, reader)
    for tid in sorted([*stopped.tids, *stopped.unstopped], key=lambda tid: (tid != pid, tid)):
        thread = before.get(tid) or procfs.read_thread(pid, tid)
        _add_registers(thread, stopped.registers.get(tid), capture.memory)
        capture.threads.append(thread)
    files = ModuleFiles(capture.mappings, capture.memory.try_read, _finder(pid), warnings)
    capture._closers.append(files)
    capture.modules = modules_from_mappings(capture.mappings, capture.memory, files, warnings)
    capture.fds, notes = read_descriptors(pid)
    warnings.extend(notes)
    _warn(capture, stopped)
    capture._closers += [reader, capture.memory]
    return capture


def _prepare(
    pid: int,
    reader: MemoryReader,
    max_copy: int,
    extra_pages: ExtraPages | None,
    threads: int,
    warnings: list[str],
) -> Preparation:
    """Everything that can be done before the stop: files open, buffer in memory, code paths warm."""
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
    asked = list(extra_pages(order.mappings)) if extra_pages is not None else []
    capacity = min(max_copy, headroom())
    if capacity < max_copy:
        warnings.append(f"little memory is free here: at most {capacity >> 20} MiB are copied in the stop")
    skipped = big_buffers(order.outside_heap(), residency, reader)
    layout = plan.choose(order, residency, [], capacity, asked, skipped)
    stacks = min(threads * plan.STACK_COPY, _STACK_ROOM)
    size = min(capacity, layout.size + layout.size // 4 + stacks + _SLACK)
    buffer = _buffer(size)
    _rehearse(reader, layout, buffer)
    return Preparation(pid, reader, maps_fd, text, known, order, residency, buffer, asked, skipped)


def _rehearse(reader: MemoryReader, layout: plan.Layout, buffer: Bytes) -> None:
    """Copy once while the process runs: what is in the caches is copied 10 to 20 % quicker in the stop."""
    if layout.size > _REHEARSED:
        return
    chunks = plan.chunked(layout)
    with suppress(OSError):  # the stop will say what is wrong
        for number, offset in enumerate(chunks.offset):
            vectors = chunks.vectors[chunks.first[number] : chunks.first[number + 1]]
            reader.read(vectors, int(buffer.ctypes.data) + offset)


def _buffer(size: int) -> Bytes:
    """Anonymous memory that is really there, on huge pages where possible, so that no copy to it faults."""
    size = (max(size, PAGE) + _HUGE_PAGE - 1) & -_HUGE_PAGE
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # no huge pages on this kernel
        area.madvise(mmap.MADV_HUGEPAGE)
    data: Bytes = np.frombuffer(area, dtype=np.uint8)
    try:
        area.madvise(_MADV_POPULATE_WRITE)
    except OSError:
        data[::PAGE] = 0
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
    space = AddressSpace(_late_reader(capture, reader))
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


def _late_reader(capture: Capture, reader: MemoryReader) -> Callable[[U64], tuple[U64, Bytes]]:
    """A fault handler for what was not copied. Counts the pages that may have changed since the stop."""
    mappings = [m for m in capture.mappings if m.permissions.startswith("r") and not _is_device(m)]
    starts = [m.start for m in mappings]

    def writable(page: int) -> bool | None:
        place = bisect_right(starts, page) - 1
        return mappings[place].writable if place >= 0 and page < mappings[place].end else None

    def read(pages: U64) -> tuple[U64, Bytes]:
        kinds = [writable(page) for page in pages.tolist()]
        wanted = pages[[kind is not None for kind in kinds]]
        data = np.zeros((len(wanted), PAGE), dtype=np.uint8)
        vectors = np.stack([wanted, np.full(len(wanted), PAGE, dtype=np.uint64)], axis=1)
        lost: list[tuple[int, int]] = []
        try:
            for at in range(0, len(wanted), IOV_MAX):
                part = np.ascontiguousarray(vectors[at : at + IOV_MAX])
                lost += reader.read(part, int(data.ctypes.data) + at * PAGE)
        except OSError:  # the process has ended
            return pages[:0], data[:0]
        if not len(wanted) or not reader.alive(int(wanted[0])):  # it may be another program by now
            return pages[:0], data[:0]
        got = ~np.isin(wanted, np.array([low for low, _ in lost], dtype=np.uint64))
        capture.late_pages += sum(bool(writable(page)) for page in wanted[got].tolist())
        return wanted[got], data[got]

    return read


def _finder(pid: int) -> Callable[[Mapping], Iterator[Candidate]]:
    """Where the files behind mappings are looked for: as the process itself sees them."""

    def find(mapping: Mapping) -> Iterator[Candidate]:
        for fd, proof in procfs.open_mapped(pid, mapping):
            yield Candidate(fd, mapping.path, proof)

    return find


def _is_device(mapping: Mapping) -> bool:
    """Memory of a device: reading it may act on the device."""
    path = mapping.path
    return path.startswith("/dev/") and not path.startswith(("/dev/shm/", "/dev/zero", "/dev/hugepages"))


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
    swapped = resident_bytes(capture.process.pid)[1]
    if swapped:
        warn(f"{swapped >> 20} MiB of the process are swapped out; parts are read after the stop")
