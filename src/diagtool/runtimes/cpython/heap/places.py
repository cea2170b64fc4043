"""Roots: where references come from that need no other object to last."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import Context, RawFrame
from diagtool.runtimes.cpython.objects.addresssets import contains, distinct
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

_MAX_FRAMES = 500  # of one thread
_EVALUATION = 64  # slots of a frame's evaluation stack that are told as such
_RED_ZONE = 128  # bytes below the stack pointer that a function may use (x86-64 psABI)


class Places:
    """What is a root: by the word that refers, and by the object that it lies in."""

    #: Ranks: the lower, the more it says to a person.
    OWN, LIBRARY, LOCAL, TASK, NATIVE = range(5)

    def __init__(self, ctx: Context, interpreters: Sequence[Interpreter], tasks: U64) -> None:
        self.ctx = ctx
        self._modules: dict[int, tuple[str, bool]] = {}  # address of the module or its dict: name, the user's
        self._dicts: dict[int, int] = {}  # module: its dict
        self._tasks = distinct(tasks[tasks != 0])
        self._locals: list[tuple[int, int, int, str, str]] = []  # start, end, code, function, thread
        for interpreter in interpreters:
            self._add_modules(interpreter)
            for thread in interpreter.threads:
                name = thread.name or (str(thread.captured.tid) if thread.captured else "?")
                self._add_frames(thread.frames[:_MAX_FRAMES], name)
        self._locals.sort()
        self._starts = [entry[0] for entry in self._locals]
        self._roots = distinct(np.array([*self._modules, *self._tasks.tolist()], np.uint64))

    def _add_modules(self, interpreter: Interpreter) -> None:
        try:
            names, modules = self.ctx.objects.dict_items(interpreter.modules)
        except MemoryFault:
            return
        v, o = self.ctx.vectors, self.ctx.objects
        dicts = v.field(v.only(modules, "module"), "PyModuleObject.md_dict")
        for name, module, own in zip(v.texts(names), modules.tolist(), dicts.tolist(), strict=True):
            if not own:
                continue
            path = o.text(o.dict_get(own, "__file__")) or ""
            users = bool(path) and "/lib/python3" not in path and "site-packages" not in path
            self._dicts[module] = own
            self._modules.setdefault(own, (name, users or name == "__main__"))
            self._modules.setdefault(module, (name, users or name == "__main__"))

    def _add_frames(self, frames: Sequence[RawFrame], thread: str) -> None:
        for raw in frames:
            code = self.ctx.codes.get(raw.code)
            first = raw.locals
            if code is None or not first:
                continue
            end = first + 8 * (len(self.ctx.codes.local_names(code)) + _EVALUATION)
            self._locals.append((first, end, code.address, code.qualname, thread))

    def dict_of(self, holder: int) -> int:
        """The dict of a module; a dict is its own."""
        return self._dicts.get(holder, holder)

    @property
    def roots(self) -> U64:
        """Sorted addresses of what :meth:`is_root`."""
        return self._roots

    def is_root(self, holders: U64) -> NDArray[np.bool_]:
        """Which objects are roots themselves: modules, their dicts, tasks."""
        return contains(self._roots, holders)

    def rank(self, word: int, holder: int) -> int | None:
        """How good a root this reference is; None when it is none, but one from another object."""
        if holder in self._modules:
            return self.OWN if self._modules[holder][1] else self.LIBRARY
        frame = self._frame_at(word)
        if frame is not None:
            return self.LOCAL if self._local_name(frame, word) else self.NATIVE
        if holder and contains(self._tasks, np.array([holder], np.uint64))[0]:
            return self.TASK
        return None if holder else self.NATIVE

    def _frame_at(self, word: int) -> tuple[int, int, int, str, str] | None:
        i = bisect_right(self._starts, word) - 1
        return self._locals[i] if i >= 0 and word < self._locals[i][1] else None

    def name(self, word: int, holder: int, inner: int) -> tuple[str, str, str | None]:
        """(kind of root, the root in words, name of what it refers to, if it has one)."""
        if holder in self._modules:
            return "module", f"module {self._modules[holder][0]}", None
        frame = self._frame_at(word)
        if frame is not None:
            name = self._local_name(frame, word)
            if name is None:
                where = f"the evaluation stack of {frame[3]} in thread {frame[4]}, or what is left there"
                return "native", where, None
            return "local", f"local of {frame[3]} in thread {frame[4]}", name
        if holder:
            o = self.ctx.objects
            said = o.text(o.attribute(holder, "_name")) or self._task_name(holder)
            return "task", f"task {said}", None
        return "native", self._native(word), None

    def _local_name(self, frame: tuple[int, int, int, str, str], word: int) -> str | None:
        code = self.ctx.codes.get(frame[2])
        names = self.ctx.codes.local_names(code) if code else []
        slot = (word - frame[0]) // 8
        return names[slot] if slot < len(names) else None

    def _task_name(self, task: int) -> str:
        lay = self.ctx.runtime.layout
        try:
            name = self.ctx.objects.memory.u64(task + lay["TaskObj.task_name"])
        except (MemoryFault, KeyError):
            return hex(task)
        return self.ctx.objects.text(name) or hex(task)

    def _native(self, word: int) -> str:
        for thread in self.ctx.capture.threads:
            low = thread.registers.get("rsp", 0) - _RED_ZONE
            if low <= word < low + (8 << 20) and self._mapping(low) == self._mapping(word):
                return f"the native stack of thread {thread.tid}"
        mapping = self._mapping(word)
        path = mapping[2] if mapping else ""
        if path and not path.startswith("["):
            return f"C data of {path.rpartition('/')[2]}"
        for module in self.ctx.capture.modules:
            if module.path.startswith("/") and module.start <= word < module.end:
                return f"C data of {module.path.rpartition('/')[2]}"
        return f"memory of C code at {word:#x}"

    def _mapping(self, address: int) -> tuple[int, int, str] | None:
        for m in self.ctx.capture.mappings:
            if m.start <= address < m.end:
                return m.start, m.end, m.path
        return None
