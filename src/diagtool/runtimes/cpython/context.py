"""What every decoder of one CPython process shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from diagtool.capture.memory import MemoryFault
from diagtool.capture.model import Capture
from diagtool.runtimes.cpython.frames.codes import Codes
from diagtool.runtimes.cpython.frames.qualnames import qualname_of
from diagtool.runtimes.cpython.objects.reader import Objects
from diagtool.runtimes.cpython.objects.vectors import Vectors
from diagtool.runtimes.cpython.runtime import Runtime
from diagtool.runtimes.native.stacks.model import NativeFrame
from diagtool.snapshot.model import Frame, SnapshotBuilder

#: Low bits of a _PyStackRef (3.14+) that are no part of the address; clear in every version before.
STACKREF_TAGS = 3


@dataclass(slots=True)
class RawFrame:
    """One frame in memory: ``offset`` is that of the instruction in bytes, ``locals`` that of localsplus."""

    address: int
    code: int
    offset: int
    globals: int
    locals: int
    #: Address of the shim from which it was called, where C called it (3.12+); 0: it was not, or not known.
    shim: int = 0


@dataclass(slots=True)
class Context:
    """The capture, the runtime found in it, readers over its memory, and the snapshot being built."""

    capture: Capture
    runtime: Runtime
    objects: Objects
    vectors: Vectors
    codes: Codes
    builder: SnapshotBuilder
    #: Native frames of threads (tid), innermost first; empty where nobody asked for them.
    native: Mapping[int, Sequence[NativeFrame]] = field(default_factory=dict)
    #: CLOCK_MONOTONIC at the capture in seconds. A core does not tell it: then the latest time that an event
    #: loop noted (None: none did), which was earlier; ``now_exact`` says which it is.
    now: float | None = None
    now_exact: bool = True
    _modules: dict[int, str | None] = field(default_factory=dict)
    _qualnames: dict[int, str | None] = field(default_factory=dict)

    def warn(self, text: str) -> None:
        """Note what could not be read, and why (once)."""
        warnings = self.builder.snapshot.warnings
        if text not in warnings:
            warnings.append(text)

    def module_name(self, globals_address: int) -> str | None:
        """``__name__`` in a module's globals."""
        if globals_address not in self._modules:
            name = (
                self.objects.text(self.objects.dict_get(globals_address, "__name__"))
                if globals_address
                else None
            )
            self._modules[globals_address] = name
        return self._modules[globals_address]

    def frame_of(self, raw: RawFrame) -> Frame | None:
        """The decoded frame of a thread."""
        return self.codes.frame(raw.code, raw.offset, self.module_name(raw.globals), self._qualname(raw))

    def _qualname(self, raw: RawFrame) -> str | None:
        if self.runtime.version >= (3, 11):
            return None  # the code object has it
        if raw.code not in self._qualnames:
            code = self.codes.get(raw.code)
            names = self.codes.local_names(code) if code else []
            first = self.local_of(raw, names[0]) if code and code.argcount and names else 0
            found = qualname_of(self.objects, raw.code, code.name, first, raw.globals) if code else None
            self._qualnames[raw.code] = found
        return self._qualnames[raw.code]

    def local_of(self, raw: RawFrame, name: str) -> int:
        """Address of a fast local of a thread's frame by name, 0 when there is none."""
        code = self.codes.get(raw.code)
        names = self.codes.local_names(code) if code else []
        if name not in names:
            return 0
        try:
            value = self.objects.memory.u64(raw.locals + 8 * names.index(name)) & ~STACKREF_TAGS
            if self.objects.kind(value) == "cell":
                value = self.objects.memory.u64(value + self.runtime.layout["PyCellObject.ob_ref"])
        except MemoryFault:
            return 0
        return value
