"""A slim core: registers, stacks, data segments, and what a decoder looked at; no heap.

A small process is in it whole. Of a larger one it has

- the stacks of all threads, from their stack pointers upwards, and their thread control blocks;
- the data segments of the program and its libraries, also what was made read-only after relocation;
- the list of libraries as the dynamic linker keeps it, without which gdb finds none;
- every page that was read while the process was decoded (:meth:`AddressSpace.watch`): interpreter and thread
  states, frames, code objects, tasks and what they wait on.

Memory that is left out is part of no segment's contents, so that no reader takes it for zeros. A note of our
own says how much it is: a reader that knows it does not conclude anything from what it can't find.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_left, bisect_right
from contextlib import suppress

import numpy as np

from diagtool.capture import plan
from diagtool.capture.corenotes import core_notes, left_out_note
from diagtool.capture.corewriter import Sink, write_segments, written_to
from diagtool.capture.memory import PAGE
from diagtool.capture.model import Capture, Mapping
from diagtool.capture.segments import both, merged

__all__ = ["write_slim_core"]

#: A process with no more writable private memory than this is in its slim core whole, in bytes.
WHOLE = 32 << 20

_JOINED = 64 << 10  # bytes between two ranges that are not worth a segment of their own
_STACK = 8 << 20  # bytes of a stack, at most
_CONTROL_BLOCK = 4096  # bytes of struct pthread, and what is before it: thread-local data
_MAX_LIBRARIES = 10_000
_LINK_MAP = 40  # l_addr, l_name, l_ld, l_next, l_prev (link.h)


def write_slim_core(capture: Capture, sink: Sink) -> int:
    """Write the slim core of a live capture; gives the bytes of memory in it. Raises OSError.

    What the decoder read is known if the capture's memory was watched (``AddressSpace.watch``).
    """
    source = _Slim(capture)
    notes = core_notes(capture)
    if source.left_out:
        notes += left_out_note(source.left_out)
    return write_segments(sink, capture.mappings, notes, source)


class _Slim:
    """What belongs into the core: see :func:`write_segments`."""

    hole = PAGE

    def __init__(self, capture: Capture) -> None:
        self._memory = capture.memory
        order = plan.MappingOrder(capture.mappings)
        private = merged([(start, end) for start, end, _ in order.spans])
        seen = [*capture.memory.touched(), *_stacks(capture, order), *_libraries(capture)]
        seen += [(s.start, s.end) for s in _data_segments(order)]
        held = merged([(s.start, s.end) for s in capture.memory.segments])
        own = both(held, private)
        size = _size(own)
        whole = size <= WHOLE and not capture.left_out
        wanted = own if whole else both(_close_together(merged(seen)), held)
        self._wanted = wanted
        self._files = {m.start for m in order.mappings if m.path.startswith("/") and _is_data(capture, m)}
        #: Bytes of the process's own memory that are not in it.
        self.left_out = size - _size(both(wanted, private)) + _size(capture.left_out)

    def present(self, mapping: Mapping) -> list[tuple[int, int]]:
        """Ranges of a mapping that belong into the core, sorted."""
        if mapping.permissions[0] != "r" or mapping.permissions[3] == "s":
            return []
        if mapping.path in ("[vvar]", "[vvar_vclock]", "[vsyscall]") or mapping.path.startswith("/dev/"):
            return []
        if mapping.path == "[vdso]" or mapping.start in self._files:
            return [(mapping.start, mapping.end)]
        if plan.is_anonymous(mapping):
            first = max(0, bisect_right(self._wanted, (mapping.start, mapping.end)) - 1)
            beyond = bisect_left(self._wanted, (mapping.end, mapping.end))
            return both(self._wanted[first:beyond], [(mapping.start, mapping.end)])
        return [(mapping.start, mapping.start + PAGE)] if mapping.offset == 0 else []

    def zeros(self, mapping: Mapping) -> bool:
        """What is not in it was left out."""
        return False

    def read(self, address: int, size: int) -> bytes:
        """Bytes; zeros for what can't be read."""
        pages = np.arange(address, address + size, PAGE, dtype=np.uint64)
        return self._memory.load_block(pages, PAGE)[0].tobytes()


# Of a mapped file a part that was written to is in the core whole: what is missing in a core is taken for
# what the file has. That is also so of what became read-only after relocation: gdb begins there.
def _is_data(capture: Capture, mapping: Mapping) -> bool:
    if mapping.permissions[0] != "r" or mapping.permissions[3] != "p":
        return False
    if mapping.end - mapping.start > plan.FILE_DATA_LIMIT:
        return False
    if "w" in mapping.permissions:
        return True
    if mapping.permissions[2] == "x":
        return False
    if capture.kind == "core":  # it has what was written to; the rest comes from files
        own = (s for s in capture.memory.segments if not s.buffer)
        return any(s.start < mapping.end and mapping.start < s.end for s in own)
    with suppress(OSError):
        pagemap = os.open(f"/proc/{capture.image_pid or capture.process.pid}/pagemap", os.O_RDONLY)
        try:
            return written_to(pagemap, mapping)
        finally:
            os.close(pagemap)
    return False


def _data_segments(order: plan.MappingOrder) -> list[Mapping]:
    """The writable parts of mapped files with what follows them: .data, .bss."""
    out = []
    for place, mapping in enumerate(order.mappings):
        small = mapping.end - mapping.start <= plan.FILE_DATA_LIMIT
        if plan.is_writable_private(mapping) and small and order.is_data(place):
            out.append(mapping)
    return out


def _stacks(capture: Capture, order: plan.MappingOrder) -> list[tuple[int, int]]:
    out = []
    for thread in capture.threads:
        pointer = thread.registers.get("rsp", 0)
        place = order.holding(pointer)
        if place is not None:
            low = pointer - plan.RED_ZONE
            bound = _STACK if order.is_stack(place) else plan.STACK_COPY
            out.append((low, min(order.mappings[place].end, pointer + bound)))
        block = thread.registers.get("fs_base", 0)
        if order.holding(block) is not None:
            out.append((block - _CONTROL_BLOCK, block + _CONTROL_BLOCK))
    return [(low & -PAGE, high + PAGE - 1 & -PAGE) for low, high in out]


# The linker's list of what is loaded, with the names: struct r_debug, struct link_map (link.h).
def _libraries(capture: Capture) -> list[tuple[int, int]]:
    memory = capture.memory
    out: list[int] = []
    for module in capture.modules:
        debug = module.symbol("_r_debug") if "ld-" in module.path.rpartition("/")[2] else None
        if not debug:
            continue
        head = memory.try_read(debug, 16)
        at = int.from_bytes(head[8:], "little") if head else 0
        seen: set[int] = set()
        while at and at not in seen and len(seen) < _MAX_LIBRARIES:
            seen.add(at)
            data = memory.try_read(at, _LINK_MAP)
            if data is None:
                break
            name, following = struct.unpack_from("<Q8xQ", data, 8)
            out += [at, at + _LINK_MAP - 1, name]
            at = following
    pages = {address & -PAGE for address in out if 0 < address < 1 << 63}
    return [(page, page + PAGE) for page in pages]


def _size(ranges: list[tuple[int, int]]) -> int:
    return sum(high - low for low, high in ranges)


def _close_together(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted ranges, those joined that have little between them."""
    out: list[tuple[int, int]] = []
    for low, high in ranges:
        if out and low - out[-1][1] <= _JOINED:
            out[-1] = (out[-1][0], high)
        else:
            out.append((low, high))
    return out
