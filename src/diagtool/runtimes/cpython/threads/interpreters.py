"""Interpreters and their thread states: who is who, who holds the GIL, whether the collector runs."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from diagtool.capture.errors import NotSupported
from diagtool.capture.memory import MemoryFault
from diagtool.capture.model import CapturedThread
from diagtool.runtimes.cpython.context import Context, RawFrame
from diagtool.runtimes.cpython.frames.walk import thread_frames
from diagtool.runtimes.cpython.runtime import FILES

_MAX_INTERPRETERS = 4096
_MAX_THREADS = 1 << 17
_FUTEX = 202  # x86-64 (arch/x86/entry/syscalls/syscall_64.tbl)
_GAVE_UP = tuple((1 << 64) - error for error in (errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR))
_INNERMOST = 8  # native frames among which take_gil is
_GIL_SIZE = 256  # bytes of struct _gil_runtime_state that a waiter's futex may lie in, at most


@dataclass(slots=True)
class PythonThread:
    """One thread state with its frames (innermost first) and what Python knows of the thread."""

    address: int  # of the PyThreadState
    interpreter: int  # id of the interpreter
    ident: int  # threading.get_ident()
    captured: CapturedThread | None
    frames: list[RawFrame] = field(default_factory=list)
    name: str | None = None
    daemon: bool | None = None
    thread_object: int = 0  # the threading.Thread
    holds_gil: bool | None = None
    waits_for_gil: bool | None = None
    collecting: bool = False
    running_loop: int = 0  # address of the event loop that runs in it (3.13+)
    running_task: int = 0  # 3.14+


@dataclass(slots=True)
class Interpreter:
    """One interpreter: ``modules`` is the address of sys.modules' dict, ``system`` that of sys' dict."""

    address: int
    id: int
    modules: int
    system: int
    gil: int
    threads: list[PythonThread] = field(default_factory=list)
    collecting: bool = False
    collects: bool | None = None  # gc.isenabled(); None where the word is neither 0 nor 1

    def module_dict(self, ctx: Context, name: str) -> int:
        """Address of the ``__dict__`` of a loaded module, 0 when it is not loaded."""
        module = ctx.objects.dict_get(self.modules, name) if self.modules else 0
        if not module:
            return 0
        try:
            return ctx.objects.memory.u64(module + ctx.runtime.layout["PyModuleObject.md_dict"])
        except MemoryFault:
            return 0


def read_interpreters(ctx: Context) -> list[Interpreter]:
    """All interpreters with all their threads; what can't be read becomes a warning."""
    m, lay = ctx.objects.memory, ctx.runtime.layout
    out: list[Interpreter] = []
    seen: set[int] = set()
    try:
        address = m.u64(ctx.runtime.address + lay["_PyRuntimeState.interpreters.head"])
        while address and address not in seen and len(seen) < _MAX_INTERPRETERS:
            seen.add(address)
            out.append(_interpreter(ctx, address))
            address = m.u64(address + lay["PyInterpreterState.next"])
    except MemoryFault as fault:
        ctx.warn(f"the list of interpreters ends early: {fault}")
    return sorted(out, key=lambda i: i.id)


def require_type_names(ctx: Context, interpreters: list[Interpreter]) -> None:
    """Raise NotSupported where the names of types can't be read.

    They lie in the read-only data of the interpreter's file, which a core leaves out; objects are told by
    them, so that without it nothing at all would be found.
    """
    m = ctx.objects.memory
    missing = False
    for interpreter in interpreters:
        try:
            kind = ctx.objects.type_of(interpreter.modules)
            types = (kind, ctx.objects.type_of(kind))  # dict and type; garbage in one of them is no reason
            names = [m.u64(t + ctx.runtime.layout["PyTypeObject.tp_name"]) for t in types]
        except MemoryFault:
            continue
        if any(m.try_read(name, 1) is not None for name in names):
            return
        missing = True
    if missing:
        raise NotSupported(
            f"the Python in this process can't be read without its file {ctx.runtime.module}", FILES
        )


def _interpreter(ctx: Context, address: int) -> Interpreter:
    m, lay = ctx.objects.memory, ctx.runtime.layout
    modules = lay.get("PyInterpreterState.imports.modules")
    if modules is None:
        modules = lay["PyInterpreterState.modules"]
    gil_field = lay.get("PyInterpreterState.ceval.gil")
    interpreter = Interpreter(
        address,
        m.i64(address + lay["PyInterpreterState.id"]),
        m.u64(address + modules),
        m.u64(address + lay["PyInterpreterState.sysdict"]),
        m.u64(address + gil_field)
        if gil_field is not None
        else ctx.runtime.address + lay["_PyRuntimeState.ceval.gil.locked"] - lay["_gil_runtime_state.locked"],
        collecting=bool(m.i32(address + lay["PyInterpreterState.gc.collecting"])),
        collects=_collects(ctx, address),
    )
    _read_threads(ctx, interpreter)
    _name_threads(ctx, interpreter)
    return interpreter


def _collects(ctx: Context, address: int) -> bool | None:
    word = ctx.objects.memory.i32(address + ctx.runtime.layout["PyInterpreterState.gc.enabled"])
    return {0: False, 1: True}.get(word)


def _read_threads(ctx: Context, interpreter: Interpreter) -> None:
    m, lay = ctx.objects.memory, ctx.runtime.layout
    head = lay.get("PyInterpreterState.threads.head")
    if head is None:
        head = lay["PyInterpreterState.tstate_head"]
    locked, holder = _gil_state(ctx, interpreter.gil)
    # A kernel thread of io_uring has the registers of the thread that made it, which comes before it.
    by_pointer = {t.registers.get("fs_base"): t for t in reversed(ctx.capture.threads) if t.registers}
    by_tid = {t.ns_tid or t.tid: t for t in ctx.capture.threads}
    seen: set[int] = set()
    try:
        address = m.u64(interpreter.address + head)
        while address and address not in seen and len(seen) < _MAX_THREADS:
            seen.add(address)
            interpreter.threads.append(_thread(ctx, interpreter, address, by_pointer, by_tid))
            address = m.u64(address + lay["PyThreadState.next"])
    except MemoryFault as fault:
        ctx.warn(f"the list of threads of interpreter {interpreter.id} ends early: {fault}")
    collector = _stopper(ctx, interpreter) if ctx.runtime.free_threaded and interpreter.collecting else 0
    for t in interpreter.threads:
        if locked is not None:
            t.holds_gil = bool(locked) and holder == t.address
            t.waits_for_gil = not t.holds_gil and (
                waits_for_gil(t.captured, interpreter.gil) or _takes_gil(ctx, t.captured)
            )
        t.collecting = interpreter.collecting and (bool(t.holds_gil) or t.address == collector)


def _gil_state(ctx: Context, gil: int) -> tuple[int | None, int]:
    """(locked, thread state of the last holder); locked is None when it can't be read or there is none.

    A free-threaded build has one that is not used, unless PYTHON_GIL=1 or an extension asks for it.
    """
    m, lay = ctx.objects.memory, ctx.runtime.layout
    try:
        if ctx.runtime.free_threaded and not m.i32(gil + lay["_gil_runtime_state.enabled"]):
            return None, 0
        return (
            m.i32(gil + lay["_gil_runtime_state.locked"]),
            m.u64(gil + lay["_gil_runtime_state.last_holder"]),
        )
    except (MemoryFault, KeyError):
        return None, 0


def _stopper(ctx: Context, interpreter: Interpreter) -> int:
    """The thread state that has stopped all others, as the collector does without a GIL; 0 for none."""
    try:
        return ctx.objects.memory.u64(
            interpreter.address + ctx.runtime.layout["PyInterpreterState.stoptheworld.requester"]
        )
    except (MemoryFault, KeyError):
        return 0


def waits_for_gil(thread: CapturedThread | None, gil: int) -> bool:
    """Whether a thread sleeps on a futex inside the GIL's structure (its condition variables).

    It sleeps for 5 ms at a time, so now and then it has just been woken, to go to sleep again.
    """
    if thread is None:
        return False
    if thread.syscall == _FUTEX and thread.syscall_args:
        return gil <= thread.syscall_args[0] < gil + _GIL_SIZE
    registers = thread.registers
    woken = registers.get("orig_rax") == _FUTEX and registers.get("rax") in _GAVE_UP
    return woken and gil <= registers.get("rdi", 0) < gil + _GIL_SIZE


def _takes_gil(ctx: Context, thread: CapturedThread | None) -> bool:
    """Whether a thread is in the function that takes the GIL, by its native frames: between sleeps, say."""
    frames = ctx.native.get(thread.tid, ()) if thread is not None else ()
    return any(frame.function == "take_gil" for frame in frames[:_INNERMOST])


def _thread(
    ctx: Context,
    interpreter: Interpreter,
    address: int,
    by_pointer: dict[int | None, CapturedThread],
    by_tid: dict[int, CapturedThread],
) -> PythonThread:
    m, lay = ctx.objects.memory, ctx.runtime.layout
    ident = m.u64(address + lay["PyThreadState.thread_id"])
    native = lay.get("PyThreadState.native_thread_id")
    captured = by_tid.get(m.u64(address + native)) if native is not None else None
    if captured is None:  # threading.get_ident() is pthread_self(), which is what fs points to
        captured = by_pointer.get(ident)
    if interpreter.id:
        captured = _at_work_for(ctx, address) or captured
    thread = PythonThread(address, interpreter.id, ident, captured)
    for field_name, attribute in (
        ("_PyThreadStateImpl.asyncio_running_loop", "running_loop"),
        ("_PyThreadStateImpl.asyncio_running_task", "running_task"),
    ):
        if field_name in lay:
            word = m.try_read(address + lay[field_name], 8)
            setattr(thread, attribute, int.from_bytes(word or b"", "little"))
    thread.frames = thread_frames(ctx, address)
    return thread


def _at_work_for(ctx: Context, thread_state: int) -> CapturedThread | None:
    """The kernel thread on whose stack a thread state evaluates frames, for 3.10 to 3.12; else None.

    A subinterpreter keeps the ids of the thread that made it, whichever thread it runs in. But its ``cframe``
    lies on the stack of that one (Include/cpython/pystate.h; gone in 3.13, where the ids are right).
    """
    offset = ctx.runtime.layout.get("PyThreadState.cframe")
    word = ctx.objects.memory.try_read(thread_state + offset, 8) if offset is not None else None
    cframe = int.from_bytes(word or b"", "little")
    stack = next((m for m in ctx.capture.mappings if m.start <= cframe < m.end), None)
    if stack is None or stack.path == "[heap]":
        return None
    within = [t for t in ctx.capture.threads if stack.start <= t.registers.get("rsp", 0) <= cframe]
    return max(within, key=lambda t: t.registers["rsp"], default=None)


def _name_threads(ctx: Context, interpreter: Interpreter) -> None:
    """Names and daemon flags from ``threading._active`` (ident -> Thread)."""
    own = interpreter.module_dict(ctx, "threading")
    active = ctx.objects.dict_get(own, "_active") if own else 0
    if not active:
        return
    try:
        keys, values = ctx.objects.dict_items(active)
    except MemoryFault as fault:
        ctx.warn(f"the names of threads could not be read: {fault}")
        return
    by_ident = {t.ident: t for t in interpreter.threads}
    for key, value in zip(keys.tolist(), values.tolist(), strict=True):
        thread = by_ident.get(ctx.objects.integer(key) or -1)
        if thread is not None:
            thread.thread_object = value
            thread.name = ctx.objects.text(ctx.objects.attribute(value, "_name"))
            thread.daemon = ctx.objects.truth(ctx.objects.attribute(value, "_daemonic"))
