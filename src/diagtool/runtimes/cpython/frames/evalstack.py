"""Evaluation stacks of frames that stand in a call: what is being called, and which ``with`` blocks are open.

A frame whose thread is in C code keeps callee and arguments on its evaluation stack. Up to 3.13 nobody writes
down where that stack ends while the frame runs, and slots beyond it hold what was there before: so receivers
are candidates only, and whoever asks must check them against the kernel (the futex, the fd). From 3.14 on
``stackpointer`` is kept. Open ``with`` blocks are exact in every version: the block stack of 3.9, 3.10 and
later the exception table say how deep the stack is at least, and where the block's ``__exit__`` lies.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from diagtool.capture.memory import MemoryFault
from diagtool.runtimes.cpython.context import STACKREF_TAGS, Context, RawFrame

__all__ = ("EvalStacks", "exception_depths", "exception_table")

_MAX_SLOTS = 4096  # of one evaluation stack
_MAX_TABLE = 1 << 20  # bytes of one exception table
_MAX_BLOCKS = 20  # CO_MAXBLOCKS, Include/cpython/code.h
_BLOCK = struct.Struct("<iii")  # PyTryBlock: b_type, b_handler, b_level

_BUILTINS = ("builtin_function_or_method", "builtin_method")
_DESCRIPTORS = ("method_descriptor", "wrapper_descriptor")

#: (start, end, target, depth): the handler at ``target`` is for code in bytes [start, end), and begins by
#: cutting the evaluation stack to ``depth`` slots.
Handlers = list[tuple[int, int, int, int]]


class EvalStacks:
    """Reads evaluation stacks of one process."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self._handlers: dict[int, Handlers] = {}

    def slots(self, frame: RawFrame) -> list[int]:
        """Addresses in the slots of a frame's evaluation stack, lowest first; 0 for an empty one."""
        base, count = self._bounds(frame)
        raw = self.ctx.objects.memory.try_read(base, 8 * count) if count else None
        return [w & ~STACKREF_TAGS for w in struct.unpack(f"<{count}Q", raw)] if raw else []

    def _bounds(self, frame: RawFrame) -> tuple[int, int]:
        # (address of the first slot, number of slots)
        m, lay = self.ctx.objects.memory, self.ctx.runtime.layout
        try:
            count = m.i32(frame.code + lay["PyCodeObject.co_stacksize"])
            if "PyFrameObject.f_valuestack" in lay:
                base = m.u64(frame.address + lay["PyFrameObject.f_valuestack"])
            else:
                base = frame.locals + 8 * m.i32(frame.code + lay["PyCodeObject.co_nlocalsplus"])
            pointer = lay.get("_PyInterpreterFrame.stackpointer")
            if pointer is not None:
                end = m.u64(frame.address + pointer)
                if base <= end <= base + 8 * _MAX_SLOTS:
                    # Beyond co_stacksize too: 3.14 unpacks the receivers of a call there.
                    count = (end - base) // 8
        except MemoryFault:
            return 0, 0
        return base, count if 0 < count <= _MAX_SLOTS else 0

    def receivers(self, frame: RawFrame) -> Iterator[tuple[str, int]]:
        """(method, object) of what the frame may be calling right now, the likeliest first.

        The method is "" for an object that only lies on the stack.
        """
        slots = self.slots(frame)
        for i in range(len(slots) - 1, -1, -1):
            if slots[i]:
                following = slots[i + 1] if i + 1 < len(slots) else 0
                yield from self._receivers(slots[i], following)

    def _receivers(self, callee: int, following: int) -> Iterator[tuple[str, int]]:
        o, lay = self.ctx.objects, self.ctx.runtime.layout
        kind = o.kind(callee)
        try:
            if kind == "callable_iterator":  # iter(queue.get, None): PyObject_HEAD, it_callable
                callee = o.memory.u64(callee + lay["sizeof.PyObject"])
                kind = o.kind(callee)
            elif kind == "functools.partial":
                callee = o.memory.u64(callee + lay["partialobject.fn"])
                kind = o.kind(callee)
            if kind in _BUILTINS:
                definition = o.memory.u64(callee + lay["PyCFunctionObject.m_ml"])
                name = o.memory.cstring(o.memory.u64(definition + lay["PyMethodDef.ml_name"]), 64)
                yield name.decode("ascii", "replace"), o.memory.u64(callee + lay["PyCFunctionObject.m_self"])
            elif kind in _DESCRIPTORS:
                if following:
                    yield o.text(o.memory.u64(callee + lay["PyDescrObject.d_name"])) or "", following
            elif kind == "method":
                yield "", o.memory.u64(callee + lay["PyMethodObject.im_self"])
            elif kind:
                yield "", callee
        except MemoryFault:
            return

    # -- with blocks ------------------------------------------------------------------------------------

    def managers(self, frame: RawFrame) -> list[int]:
        """Addresses of the objects whose ``with`` blocks the frame is in, innermost first."""
        if self.ctx.runtime.version < (3, 11):
            depths = self._block_depths(frame)
        else:
            depths = exception_depths(self._handlers_of(frame.code), frame.offset)
        if not depths:
            return []
        slots = self.slots(frame)
        out: list[int] = []
        for depth in depths:
            # __exit__ is the last slot that the handler keeps, from 3.14 on with its self behind it
            # (LOAD_SPECIAL), or with NULL behind it where it is a bound method.
            for at in (depth - 1, depth - 2):
                manager = self._exits(slots, at) if 0 <= at < len(slots) else 0
                if manager and manager not in out:
                    out.append(manager)
                    break
        return out

    def surely_used(self, frame: RawFrame) -> int:
        """Slots at the bottom of the evaluation stack that are in use whatever the frame is doing now.

        A block or handler that the frame is in cuts the stack to a known depth, so that much is there.
        """
        if self.ctx.runtime.version < (3, 11):
            return max(self._block_depths(frame), default=0)
        return max(exception_depths(self._handlers_of(frame.code), frame.offset), default=0)

    def _exits(self, slots: list[int], at: int) -> int:
        # The object whose __exit__ (or __aexit__) lies in a slot, 0 if something else does.
        o, lay = self.ctx.objects, self.ctx.runtime.layout
        callee = slots[at]
        following = slots[at + 1] if at + 1 < len(slots) else 0
        kind = o.kind(callee) if callee else ""
        try:
            if kind in (*_BUILTINS, *_DESCRIPTORS):
                name, receiver = next(self._receivers(callee, following), ("", 0))
                return receiver if name == "__exit__" else 0
            if kind == "method":
                function = o.memory.u64(callee + lay["PyMethodObject.im_func"])
                if self._name_of(function) == "__exit__":
                    return o.memory.u64(callee + lay["PyMethodObject.im_self"])
            if kind == "function" and self._name_of(callee) == "__exit__":
                return following
        except MemoryFault:
            pass
        return 0

    def _name_of(self, function: int) -> str | None:
        o = self.ctx.objects
        return o.text(o.memory.u64(function + self.ctx.runtime.layout["PyFunctionObject.func_name"]))

    def _block_depths(self, frame: RawFrame) -> list[int]:
        m, lay = self.ctx.objects.memory, self.ctx.runtime.layout
        field = lay.get("PyFrameObject.f_blockstack")
        try:
            count = m.i32(frame.address + lay["PyFrameObject.f_iblock"])
            if field is None or not 0 < count <= _MAX_BLOCKS:
                return []
            raw = m.read(frame.address + field, count * _BLOCK.size)
        except MemoryFault:
            return []
        return [level for _, _, level in _BLOCK.iter_unpack(raw)][::-1]

    def _handlers_of(self, code: int) -> Handlers:
        known = self._handlers.get(code)
        if known is None:
            o = self.ctx.objects
            try:
                field = o.memory.u64(code + self.ctx.runtime.layout["PyCodeObject.co_exceptiontable"])
                table = o.bytes_of(field, _MAX_TABLE) or b""
            except MemoryFault:
                table = b""
            known = self._handlers[code] = exception_table(table)
        return known


def exception_table(table: bytes) -> Handlers:
    """The entries of ``co_exceptiontable`` (3.11+, Objects/exception_handling_notes.txt); garbage ends it."""
    out: Handlers = []
    i = 0
    while i < len(table):
        values = []
        for _ in range(4):
            value, i = _varint(table, i)
            if value is None:
                return out
            values.append(value)
        start, length, target, depth = values
        out.append((start * 2, (start + length) * 2, target * 2, depth >> 1))
    return out


def _varint(table: bytes, i: int) -> tuple[int | None, int]:
    # Six bits a byte, the highest first; bit 6 says that another byte follows, bit 7 marks an entry's first.
    value = 0
    for _ in range(6):
        if i >= len(table):
            return None, i
        byte = table[i]
        i += 1
        value = value << 6 | byte & 63
        if not byte & 64:
            return value, i
    return None, i


def exception_depths(handlers: Handlers, offset: int) -> list[int]:
    """Stack depths of the handlers around an instruction, innermost first, each smaller than the one before.

    The table names only the innermost handler of an instruction; the next one is that of the handler itself.
    Slots below the first depth are surely in use at ``offset``, so larger depths on the way are left out.
    """
    out: list[int] = []
    seen: set[int] = set()
    while offset not in seen and len(seen) < 64:
        seen.add(offset)
        entry = next((h for h in handlers if h[0] <= offset < h[1]), None)
        if entry is None:
            break
        _, _, offset, depth = entry
        if not out or depth < out[-1]:
            out.append(depth)
    return out
