"""Frames of threads: the chain from the innermost frame outwards, in every version.

3.9 and 3.10 have a PyFrameObject each; from 3.11 on frames are ``_PyInterpreterFrame`` in chunks of a data
stack or inside generators. 3.12 put shim frames (owned by the C stack) between; they carry no Python code.
"""

from __future__ import annotations

from diagtool.capture.memory import MemoryFault
from diagtool.runtimes.cpython.context import STACKREF_TAGS, Context, RawFrame

MAX_FRAMES = 100_000  # of one thread; deeper stacks are cut with a warning


def thread_frames(ctx: Context, thread_state: int) -> list[RawFrame]:
    """The frames of a thread, innermost first. Cycles and garbage end the walk with a warning."""
    frames: list[RawFrame] = []
    seen: set[int] = set()
    try:
        address = innermost_frame(ctx, thread_state)
    except MemoryFault as fault:
        ctx.warn(f"the frames of thread state {thread_state:#x} could not be read: {fault}")
        return frames
    read = _frame_object if ctx.runtime.version < (3, 11) else _interpreter_frame
    while address:
        if address in seen or len(seen) >= MAX_FRAMES:
            why = "they form a cycle" if address in seen else f"more than {MAX_FRAMES:,} frames"
            ctx.warn(f"the frames of thread state {thread_state:#x} were cut: {why}")
            break
        seen.add(address)
        place = address
        try:
            frame, address = read(ctx, address)
        except MemoryFault as fault:
            ctx.warn(f"the frames of thread state {thread_state:#x} end early: {fault}")
            break
        if frame is not None:
            frames.append(frame)
        elif frames and not frames[-1].shim and _is_shim(ctx, place):
            frames[-1].shim = place
    return frames


def innermost_frame(ctx: Context, thread_state: int) -> int:
    """Address of a thread's innermost frame, 0 when it runs no Python code."""
    m, lay = ctx.objects.memory, ctx.runtime.layout
    if ctx.runtime.version < (3, 11):
        return m.u64(thread_state + lay["PyThreadState.frame"])
    if ctx.runtime.version < (3, 13):
        cframe = m.u64(thread_state + lay["PyThreadState.cframe"])
        return m.u64(cframe + lay["_PyCFrame.current_frame"]) if cframe else 0
    return m.u64(thread_state + lay["PyThreadState.current_frame"])


def _frame_object(ctx: Context, address: int) -> tuple[RawFrame | None, int]:
    m, lay = ctx.objects.memory, ctx.runtime.layout
    code = m.u64(address + lay["PyFrameObject.f_code"])
    offset = m.i32(address + lay["PyFrameObject.f_lasti"])
    frame = RawFrame(
        address,
        code,
        offset * 2 if ctx.runtime.version == (3, 10) and offset >= 0 else offset,
        m.u64(address + lay["PyFrameObject.f_globals"]),
        address + lay["PyFrameObject.f_localsplus"],
    )
    if ctx.codes.get(code) is None:
        raise MemoryFault(address, 8)
    return frame, m.u64(address + lay["PyFrameObject.f_back"])


def _interpreter_frame(ctx: Context, address: int) -> tuple[RawFrame | None, int]:
    m, lay = ctx.objects.memory, ctx.runtime.layout
    code_field = lay.get("_PyInterpreterFrame.f_executable")
    if code_field is None:
        code_field = lay["_PyInterpreterFrame.f_code"]
    code = m.u64(address + code_field) & ~STACKREF_TAGS
    previous = m.u64(address + lay["_PyInterpreterFrame.previous"])
    decoded = ctx.codes.get(code) if not _is_shim(ctx, address) else None
    if decoded is not None and decoded.name == decoded.filename == "__init__":
        decoded = None  # _Py_InitCleanup (3.13+): what a specialised call of a class leaves behind __init__
    if decoded is None:  # a shim, or garbage: the chain goes on, the caps hold
        return None, previous
    return (
        RawFrame(
            address,
            code,
            instruction_offset(ctx, address, code, decoded.start),
            m.u64(address + lay["_PyInterpreterFrame.f_globals"]),
            address + lay["_PyInterpreterFrame.localsplus"],
        ),
        previous,
    )


def instruction_offset(ctx: Context, frame: int, code: int, start: int) -> int:
    """Offset in bytes of a frame's current instruction (3.11+); -1 where it points outside of the code."""
    m, lay = ctx.objects.memory, ctx.runtime.layout
    field = lay.get("_PyInterpreterFrame.instr_ptr")
    pointer = m.u64(frame + (field if field is not None else lay["_PyInterpreterFrame.prev_instr"]))
    if ctx.runtime.free_threaded and "PyCodeObject.co_tlbc" in lay:
        copy = _thread_local_code(ctx, frame, code)
        start = copy or start
    offset = pointer - start
    return offset if 0 <= offset < 1 << 30 else -1


def _thread_local_code(ctx: Context, frame: int, code: int) -> int:
    """Free-threaded 3.14+: each thread may run a copy of the bytecode of its own (PyCodeObject.co_tlbc)."""
    m, lay = ctx.objects.memory, ctx.runtime.layout
    index = m.u32(frame + lay["_PyInterpreterFrame.tlbc_index"])
    table = m.u64(code + lay["PyCodeObject.co_tlbc"])
    if not index or not table or index >= m.u64(table):
        return 0
    return m.u64(table + 8 + 8 * index)


def _is_shim(ctx: Context, address: int) -> bool:
    """Frames that only mark where C called into the interpreter (3.12+)."""
    m, lay = ctx.objects.memory, ctx.runtime.layout
    if ctx.runtime.version < (3, 12):
        return False
    owner = m.u8(address + lay["_PyInterpreterFrame.owner"])
    names = ("const.FRAME_OWNED_BY_CSTACK", "const.FRAME_OWNED_BY_INTERPRETER")
    return any(lay.get(n) == owner for n in names)
