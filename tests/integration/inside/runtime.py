"""The runtime, interpreter and thread states, the collector, the small-object allocator, frames."""

import contextvars
import gc
import os
import sys
import threading

from __main__ import FREE_THREADED, TABLE, VERSION, at, call, check, hamt, has, note, read, symbol


def check_runtime():
    runtime, interp, tstate = symbol("_PyRuntime"), call("PyInterpreterState_Get"), call("PyThreadState_Get")
    check(runtime, "_PyRuntimeState.interpreters.head", interp)
    check(runtime, "_PyRuntimeState.interpreters.main", interp)
    check(runtime, "_PyRuntimeState.main_thread", threading.get_ident())
    check(runtime, "_PyRuntimeState._finalizing", None)
    check(runtime, "_PyRuntimeState.gilstate.tstate_current", tstate)
    check(interp, "PyInterpreterState.runtime", runtime)
    check(interp, "PyInterpreterState.next", None)
    check(interp, "PyInterpreterState.id", 0)
    check(interp, "PyInterpreterState.tstate_head", tstate)
    check(interp, "PyInterpreterState.threads.head", tstate)
    check(interp, "PyInterpreterState.threads.main", tstate)
    for name in ("modules", "imports.modules"):
        check(interp, "PyInterpreterState." + name, sys.modules)
    check(interp, "PyInterpreterState.sysdict", sys.__dict__)
    check(interp, "PyInterpreterState.builtins", __builtins__.__dict__)
    gil = None
    if has("PyInterpreterState.ceval.gil"):
        gil = at(interp, "PyInterpreterState.ceval.gil")
        check(gil, "_gil_runtime_state.last_holder", tstate)
        check(gil, "_gil_runtime_state.locked", int(not FREE_THREADED))
    check(runtime, "_PyRuntimeState.ceval.gil.last_holder", tstate)
    check(runtime, "_PyRuntimeState.ceval.gil.locked", 1)
    check(tstate, "PyThreadState.interp", interp)
    check(tstate, "PyThreadState.next", None)
    check(tstate, "PyThreadState.prev", None)
    check(tstate, "PyThreadState.thread_id", threading.get_ident())
    check(tstate, "PyThreadState.native_thread_id", threading.get_native_id())
    check(tstate, "PyThreadState._status.initialized", 1)
    check(tstate, "PyThreadState._status.bound", 1)
    check(tstate, "PyThreadState._status.finalizing", 0)
    check(tstate, "PyThreadState._status.holds_gil", int(not FREE_THREADED))
    check(tstate, "PyThreadState.holds_gil", int(not FREE_THREADED))
    states = []

    def other():
        mine = call("PyThreadState_Get")
        states.append(mine)
        check(mine, "PyThreadState.next", tstate)
        check(tstate, "PyThreadState.prev", mine)
        check(mine, "PyThreadState.native_thread_id", threading.get_native_id())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    variable = contextvars.ContextVar("here")
    variable.set(1)
    context = at(call("PyThreadState_Get"), "PyThreadState.context")
    found = {}
    hamt(at(at(context, "PyContext.ctx_vars"), "PyHamtObject.h_root"), found)
    note("PyThreadState.context", id(variable) in found, True)
    check_gc(interp)
    if not FREE_THREADED:  # that one allocates with mimalloc
        check_pools(interp)


def check_gc(interp):
    base = interp
    check(base, "PyInterpreterState.gc.enabled", 1)
    check(base, "PyInterpreterState.gc.collecting", 0)
    check(base, "PyInterpreterState.gc.garbage", gc.garbage)
    check(base, "PyInterpreterState.gc.callbacks", gc.callbacks)
    seen = []

    def callback(phase, info):
        seen.append(at(base, "PyInterpreterState.gc.collecting"))

    gc.callbacks.append(callback)
    gc.collect()
    gc.callbacks.remove(callback)
    note("PyInterpreterState.gc.collecting", seen, [1, 1])
    if FREE_THREADED or not has("PyInterpreterState.gc.generations"):
        return
    young = []
    wanted = id(young) - TABLE["sizeof.PyGC_Head"]
    size = TABLE["sizeof.gc_generation"]
    heads = [base + TABLE["PyInterpreterState.gc.generations"] + size * i for i in range(3)]
    if VERSION == (3, 13) and at(base, "PyInterpreterState.gc.generation0") == heads[0] - 4:
        heads = [head - 4 for head in heads]  # Debian's own alignment
    found = 0
    for head in heads:
        node = at(head, "PyGC_Head._gc_next") & ~3
        while node != head and not found:
            found = node == wanted
            node = at(node, "PyGC_Head._gc_next") & ~3
    note("PyInterpreterState.gc.generations", bool(found), True)
    if has("PyInterpreterState.gc.generation0"):
        check(base, "PyInterpreterState.gc.generation0", heads[0])


def check_pools(interp):
    if not has("const.POOL_SIZE") or sys.flags.dev_mode or not hasattr(sys, "_debugmallocstats"):
        return
    small = [b"x" * 20 for _ in range(10)]
    debug = 24 if hasattr(sys, "gettotalrefcount") else 0  # the debug allocator's own bytes
    size = sys.getsizeof(small[0]) + debug + 8 * bool(debug)
    pool = id(small[0]) & -TABLE["const.POOL_SIZE"]
    klass = (size + TABLE["const.ALIGNMENT"] - 1) // TABLE["const.ALIGNMENT"] - 1
    if os.environ.get("PYTHONMALLOC") is None and not debug and has("pool_header.szidx"):
        check(pool, "pool_header.szidx", klass)
    if not has("PyInterpreterState.obmalloc") or debug:
        return
    state = interp + TABLE["PyInterpreterState.obmalloc"]
    if TABLE.get("sizeof.PyInterpreterState.obmalloc", 8) == 8:
        state = read(state)
    arenas, count = at(state, "_obmalloc_state.mgmt.arenas"), at(state, "_obmalloc_state.mgmt.maxarenas")
    index = at(pool, "pool_header.arenaindex")
    note("_obmalloc_state.mgmt.maxarenas", index < count, True)
    start = at(arenas + TABLE["sizeof.arena_object"] * index, "arena_object.address")
    note("arena_object.address", start <= pool < start + TABLE["const.ARENA_SIZE"], True)


def check_frames():
    frame = sys._getframe()
    check(id(frame), "PyFrameObject.f_back", frame.f_back if VERSION < (3, 11) else None)
    if VERSION < (3, 11):
        check(id(frame), "PyFrameObject.f_code", frame.f_code)
        check(id(frame), "PyFrameObject.f_globals", frame.f_globals)
        check(id(frame), "PyFrameObject.f_builtins", frame.f_builtins)
        top, callers = at(call("PyThreadState_Get"), "PyThreadState.frame"), []
        while top:
            callers.append(top)
            top = at(top, "PyFrameObject.f_back")
        note("PyThreadState.frame", id(frame) in callers and id(frame.f_back) in callers, True)
        if has("PyFrameObject.f_state"):
            check(id(frame), "PyFrameObject.f_state", TABLE["const.FRAME_EXECUTING"])
        note("PyFrameObject.f_localsplus", read(id(frame) + TABLE["PyFrameObject.f_localsplus"]), id(frame))
        lasti = at(id(frame), "PyFrameObject.f_lasti")
        note(
            "PyFrameObject.f_lasti",
            0 < lasti * (2 if VERSION == (3, 10) else 1) < len(frame.f_code.co_code),
            True,
        )
        return
    inner = at(id(frame), "PyFrameObject.f_frame")
    code = frame.f_code
    check(inner, "_PyInterpreterFrame.f_code", code)
    check(inner, "_PyInterpreterFrame.f_executable", id(code), mask=~3)
    check(inner, "_PyInterpreterFrame.f_func", check_frames)
    check(inner, "_PyInterpreterFrame.f_funcobj", id(check_frames), mask=~3)
    check(inner, "_PyInterpreterFrame.f_globals", frame.f_globals)
    check(inner, "_PyInterpreterFrame.f_builtins", frame.f_builtins)
    check(inner, "_PyInterpreterFrame.frame_obj", frame)
    check(inner, "_PyInterpreterFrame.owner", TABLE["const.FRAME_OWNED_BY_THREAD"])
    note(
        "_PyInterpreterFrame.localsplus",
        read(inner + TABLE["_PyInterpreterFrame.localsplus"]) & ~3,
        id(frame),
    )
    previous = at(inner, "_PyInterpreterFrame.previous")
    key = (
        "_PyInterpreterFrame.f_code"
        if has("_PyInterpreterFrame.f_code")
        else "_PyInterpreterFrame.f_executable"
    )
    note("_PyInterpreterFrame.previous", at(previous, key) & ~3, id(frame.f_back.f_code))
    tstate = call("PyThreadState_Get")
    if has("PyThreadState.cframe"):
        top = at(at(tstate, "PyThreadState.cframe"), "_PyCFrame.current_frame")
    else:
        top = at(tstate, "PyThreadState.current_frame")
    codes = []
    while top and len(codes) < 20:
        codes.append(at(top, key) & ~3)
        top = at(top, "_PyInterpreterFrame.previous")
    note("PyThreadState.current_frame", id(code) in codes and id(frame.f_back.f_code) in codes, True)
    chunk = at(tstate, "PyThreadState.datastack_chunk")
    inside = chunk + TABLE["_PyStackChunk.data"] <= inner < chunk + at(chunk, "_PyStackChunk.size")
    note("_PyStackChunk.data", inside, True)
    start = id(code) + TABLE["PyCodeObject.co_code_adaptive"]
    pointer = "instr_ptr" if has("_PyInterpreterFrame.instr_ptr") else "prev_instr"
    here = at(inner, "_PyInterpreterFrame." + pointer)
    if not has("PyCodeObject.co_tlbc"):
        note("_PyInterpreterFrame." + pointer, start <= here < start + len(code.co_code), True)


check_runtime()
check_frames()
