"""Which words of a frame are pointers that are still needed, as the compiler noted it for the collector.

For each place where a function may be stopped there is a bitmap of its locals and one of its arguments
(FUNCDATA_LocalsPointerMaps, FUNCDATA_ArgsPointerMaps, PCDATA_StackMapIndex); variables whose address is taken
are listed apart (FUNCDATA_StackObjects): they are needed if something needed points to them
(runtime/stkframe.go).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagtool.runtimes.golang.model import GoRuntime
from diagtool.runtimes.golang.pclntab import SP_WRITE, TOP_FRAME, Function, Functions

__all__ = ["FrameMap", "StackMaps"]

_Ints = NDArray[np.int64]

_STACK_MAP_INDEX = 1  # PCDATA
_ARGUMENTS, _LOCALS, _OBJECTS = range(3)  # FUNCDATA
_ARGUMENTS_UNKNOWN = 0x80000000
_MOST_BITS = 1 << 20
_MOST_OBJECTS = 1 << 14
_RECORD = 16  # bytes of a stackObjectRecord
_NO_MAPS = frozenset({"reflect.makeFuncStub", "reflect.methodValueCall"})


@dataclass(frozen=True, slots=True)
class FrameMap:
    """What is known of a frame at one place. Offsets are in bytes from where the caller's frame begins.

    ``size``: from the stack pointer to the return address, -1: not known, nor is anything further out.
    ``slots``: words that are needed pointers. ``objects``: n x (offset, bytes) of variables.
    ``arguments``: their bytes.
    ``top``: the outermost frame. ``blind``: how many frames from this one on are to be looked at word by
    word.
    """

    size: int
    slots: _Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    objects: _Ints = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    arguments: int = 0
    top: bool = False
    blind: int = 0


_UNKNOWN = FrameMap(-1)


class StackMaps:
    """Frame maps by address, each decoded once."""

    def __init__(self, runtime: GoRuntime, functions: Functions) -> None:
        self.runtime = runtime
        self.functions = functions
        self._known: dict[tuple[int, bool], FrameMap] = {}
        # What was interrupted, not calling: registers are on the stack, and no map is good for that.
        self._interrupted = {functions.id_of(n) for n in ("asyncPreempt", "debugCallV2")} - {-1}
        self._ends = {functions.id_of(n) for n in ("sigpanic", "cgocallback")} - {-1}

    def at(self, pc: int, innermost: bool) -> FrameMap:
        """The map for a return address, or for where an innermost function stopped."""
        found = self._known.get((pc, innermost))
        if found is None:
            found = self._known[pc, innermost] = self._at(pc, innermost)
        return found

    def _at(self, pc: int, innermost: bool) -> FrameMap:
        function = self.functions.at(pc) if self.runtime.machine == "x86_64" else None
        if function is None or function.id in self._ends:
            return _UNKNOWN
        if function.flag & SP_WRITE and not (function.flag & TOP_FRAME or innermost):
            return _UNKNOWN
        size = self.functions.frame_size(function, pc)
        if size < 0:
            return _UNKNOWN
        top = bool(function.flag & TOP_FRAME)
        words = self.functions.tables_of(function)
        if words is None:
            return FrameMap(size, top=top, blind=2)
        arguments, pcdata, data = words
        unknown = arguments == _ARGUMENTS_UNKNOWN or function.name in _NO_MAPS
        if unknown or function.id in self._interrupted:
            return FrameMap(size, arguments=0 if unknown else arguments, top=top, blind=2)
        index = 0
        if pc != function.entry and len(pcdata) > _STACK_MAP_INDEX:
            # No number where the frame is being made: the first one is right then.
            index = max(self.functions.value(function, pcdata[_STACK_MAP_INDEX], pc - 1), 0)
        slots = self._slots(function, size, index, arguments, data)
        if slots is None:
            return FrameMap(size, arguments=arguments, top=top, blind=2)
        objects = self._objects(data[_OBJECTS] if len(data) > _OBJECTS else 0, _locals_end(size))
        return FrameMap(size, slots, objects, arguments, top)

    def _slots(
        self, function: Function, size: int, index: int, arguments: int, data: list[int]
    ) -> _Ints | None:
        parts = [np.zeros(0, np.int64)]
        if _locals_end(size) + size + 8 > 0:
            bits = self._bitmap(data[_LOCALS] if len(data) > _LOCALS else 0, index)
            if bits is None:
                return None
            parts.append(_locals_end(size) - 8 * len(bits) + 8 * np.flatnonzero(bits))
            if len(bits) * 8 > size:
                return None
        if arguments:
            bits = self._bitmap(data[_ARGUMENTS] if data else 0, index)
            if bits is None:
                return None
            parts.append(8 * np.flatnonzero(bits))
        return np.concatenate(parts)

    # The bitmap number ``index`` of a list: how many there are, bits of each, and then these, byte by byte.
    def _bitmap(self, address: int, index: int) -> NDArray[np.uint8] | None:
        memory = self.runtime.memory
        head = memory.try_read(address, 8) if address else None
        if head is None:
            return None
        count, bits = (int.from_bytes(head[i : i + 4], "little", signed=True) for i in (0, 4))
        if count <= 0 or not 0 <= bits <= _MOST_BITS:
            return None
        if not bits:
            return np.zeros(0, np.uint8)
        size = (bits + 7) // 8
        raw = memory.try_read(address + 8 + index * size, size) if index < count else None
        if raw is None:
            return None
        return np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")[:bits]

    def _objects(self, address: int, end: int) -> _Ints:
        memory = self.runtime.memory
        head = memory.try_read(address, 8) if address else None
        count = int.from_bytes(head, "little") if head else 0
        raw = memory.try_read(address + 8, count * _RECORD) if 0 < count <= _MOST_OBJECTS else None
        if raw is None:
            return np.zeros((0, 2), np.int64)
        records = np.frombuffer(raw, "<i4").reshape(-1, 4).astype(np.int64)
        offset = records[:, 0] + np.where(records[:, 0] < 0, end, 0)
        return np.stack([offset, records[:, 1]], axis=1)


# Where the locals end: below the return address and, where there is a frame, the saved frame pointer.
def _locals_end(size: int) -> int:
    return -16 if size > 0 else -8
