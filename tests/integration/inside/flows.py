"""Generators, coroutines, asyncio."""

import asyncio
import ctypes
import os

from __main__ import TABLE, VERSION, at, call, check, has, note, offsets, read


class Awaitable:
    def __await__(self):
        yield self


async def outer():
    await Awaitable()


def check_generators():
    def generator():
        local = yield
        yield local

    made, started = generator(), generator()
    next(started)
    coroutine, closed = outer(), outer()
    coroutine.send(None)
    closed.close()
    flow = TABLE.get
    suspended = flow("const.FRAME_SUSPENDED")
    below = flow("const.FRAME_SUSPENDED_YIELD_FROM", suspended)
    for one, prefix, state in [
        (made, "PyGenObject.gi", flow("const.FRAME_CREATED")),
        (started, "PyGenObject.gi", suspended),
        (coroutine, "PyCoroObject.cr", below),
        (closed, "PyCoroObject.cr", None),
    ]:
        base, short = id(one), prefix[-2:]
        check(base, prefix + "_name", one.__name__)
        check(base, prefix + "_qualname", one.__qualname__)
        check(base, prefix + "_code", getattr(one, short + "_code"))
        if one is not closed and VERSION < (3, 11):
            check(base, prefix + "_frame", getattr(one, short + "_frame"))
        if has(prefix + "_frame_state") and one is closed:
            ended = [flow("const.FRAME_" + n) for n in ("COMPLETED", "CLEARED")]
            note(prefix + "_frame_state", at(base, prefix + "_frame_state") in ended, True)
        elif has(prefix + "_frame_state"):
            note(prefix + "_frame_state", at(base, prefix + "_frame_state", signed=True), state)
        elif VERSION == (3, 10) and one is not closed:
            found = at(id(getattr(one, short + "_frame")), "PyFrameObject.f_state", signed=True)
            note("PyFrameObject.f_state", found, state)
    for one, prefix in ((started, "PyGenObject.gi"), (coroutine, "PyCoroObject.cr")):
        if has(prefix + "_iframe"):
            inner = id(one) + TABLE[prefix + "_iframe"]
            code = id(getattr(one, prefix[-2:] + "_code"))
            key = next(
                k for k in ("_PyInterpreterFrame.f_code", "_PyInterpreterFrame.f_executable") if has(k)
            )
            check(inner, key, code, mask=~3)
            check(inner, "_PyInterpreterFrame.owner", TABLE["const.FRAME_OWNED_BY_GENERATOR"])
    if has("PyCoroObject.cr_iframe"):  # what it awaits lies on top of its stack
        inner = id(coroutine) + TABLE["PyCoroObject.cr_iframe"]
        if has("_PyInterpreterFrame.stackpointer"):
            top = at(inner, "_PyInterpreterFrame.stackpointer")
        else:
            depth = at(inner, "_PyInterpreterFrame.stacktop")
            top = inner + TABLE["_PyInterpreterFrame.localsplus"] + 8 * depth
        places = [read(top - 8 * i) & ~3 for i in (1, 2)]
        note("_PyInterpreterFrame.stacktop", id(coroutine.cr_await) in places, True)
    elif has("PyFrameObject.f_stackdepth"):
        frame = id(coroutine.cr_frame)
        stack, depth = at(frame, "PyFrameObject.f_valuestack"), at(frame, "PyFrameObject.f_stackdepth")
        note("PyFrameObject.f_stackdepth", read(stack + 8 * (depth - 1)), id(coroutine.cr_await))
    else:
        top = at(id(coroutine.cr_frame), "PyFrameObject.f_stacktop")
        note("PyFrameObject.f_stacktop", read(top - 8), id(coroutine.cr_await))
    coroutine.close()

    async def agen():
        yield 1

    flow = agen()
    check(id(flow), "PyAsyncGenObject.ag_name", flow.__name__)
    check(id(flow), "PyAsyncGenObject.ag_code", flow.ag_code)
    value = object()
    send = flow.asend(value)
    check(id(send), "PyAsyncGenASend.ags_gen", flow)
    check(id(send), "PyAsyncGenASend.ags_sendval", value)
    send.close()
    throw = agen().athrow(KeyError)
    check(id(throw), "PyAsyncGenAThrow.agt_typ", KeyError)
    note(
        "PyAsyncGenAThrow.agt_gen",
        at(at(id(throw), "PyAsyncGenAThrow.agt_gen"), "PyObject.ob_type"),
        id(type(flow)),
    )
    throw.close()
    if has("anextawaitableobject.wrapped"):
        default = object()
        wait = anext(agen(), default)
        check(id(wait), "anextawaitableobject.default_value", default)
        kind = at(at(id(wait), "anextawaitableobject.wrapped"), "PyObject.ob_type")
        note("anextawaitableobject.wrapped", kind, id(type(send)))
        wait.close()
    coroutine = outer()
    wrapper = coroutine.__await__()
    check(id(wrapper), "PyCoroWrapper.cw_coroutine", coroutine)
    wrapper.close()


async def check_asyncio():
    loop = asyncio.get_running_loop()
    tstate = call("PyThreadState_Get")
    check(tstate, "_PyThreadStateImpl.asyncio_running_loop", loop)
    check(tstate, "_PyThreadStateImpl.asyncio_running_task", asyncio.current_task())
    future = loop.create_future()
    coroutine = wait_for_it(future)
    task = loop.create_task(coroutine, name="a name")
    await asyncio.sleep(0)
    base = id(task)
    check(base, "TaskObj.task_loop", loop)
    check(base, "TaskObj.task_coro", coroutine)
    check(base, "TaskObj.task_name", task.get_name())
    check(base, "TaskObj.task_fut_waiter", future)
    check(base, "TaskObj.task_state", TABLE["const.STATE_PENDING"])
    check(base, "TaskObj.task_is_task", 1)
    check(base, "TaskObj.task_must_cancel", 0)
    check(base, "TaskObj.task_log_destroy_pending", 1)
    if hasattr(task, "get_context"):
        check(base, "TaskObj.task_context", task.get_context())
    check(id(future), "FutureObj.fut_loop", loop)
    check(id(future), "FutureObj.fut_state", TABLE["const.STATE_PENDING"])
    check(id(future), "FutureObj.fut_blocking", 0)
    check(id(future), "FutureObj.fut_awaited_by", task)
    check(id(future), "FutureObj.fut_is_task", 0)
    callback = at(id(future), "FutureObj.fut_callback0")
    kind = ctypes.string_at(at(at(callback, "PyObject.ob_type"), "PyTypeObject.tp_name"))
    if has("TaskWakeupMethWrapper.ww_task"):
        note("TaskWakeupMethWrapper.ww_task", at(callback, "TaskWakeupMethWrapper.ww_task"), base)
    else:
        note("FutureObj.fut_callback0", [kind, at(callback, "PyCFunctionObject.m_self")],
             [b"builtin_function_or_method", base])  # fmt: skip
    future.add_done_callback(print)
    check(
        id(future),
        "FutureObj.fut_callbacks",
        future._callbacks[1:] and at(id(future), "FutureObj.fut_callbacks"),
    )
    future.remove_done_callback(print)
    iterator = loop.create_future().__await__()
    inner = at(id(iterator), "futureiterobject.future")
    note("futureiterobject.future", at(inner, "PyObject.ob_type"), id(type(future)))
    check_task_list(task, tstate)
    check_asyncio_offsets()
    later = loop.create_task(wait_for_it(future))
    step = loop._ready[-1]._callback
    if type(step).__name__ == "TaskStepMethWrapper":
        check(id(step), "TaskStepMethWrapper.sw_task", later)
    result = object()
    future.set_result(result)
    check(id(future), "FutureObj.fut_result", result)
    check(id(future), "FutureObj.fut_state", TABLE["const.STATE_FINISHED"])
    await task
    error = loop.create_future()
    error.set_exception(KeyError("lost"))
    check(id(error), "FutureObj.fut_exception", error.exception())
    cancelled = loop.create_task(wait_for_it(loop.create_future()))
    await asyncio.sleep(0)
    cancelled.cancel()
    check(id(cancelled), "TaskObj.task_num_cancels_requested", 1)
    await asyncio.wait([cancelled])
    check(id(cancelled), "TaskObj.task_state", TABLE["const.STATE_CANCELLED"])
    if has("PyRunningLoopHolder.rl_loop"):
        attributes = ctypes.cast(at(tstate, "PyThreadState.dict"), ctypes.py_object).value
        holder = attributes["__asyncio_running_event_loop__"]
        check(id(holder), "PyRunningLoopHolder.rl_loop", loop)
        check(id(holder), "PyRunningLoopHolder.rl_pid", os.getpid())


async def wait_for_it(future):
    return await future


def check_task_list(task, tstate):
    if has("TaskObj.task_node"):
        head = tstate + TABLE["_PyThreadStateImpl.asyncio_tasks_head"]
        node, found = at(head, "llist_node.next"), []
        while node != head and len(found) < 100:
            found.append(node - TABLE["TaskObj.task_node"])
            node = at(node, "llist_node.next")
        note("_PyThreadStateImpl.asyncio_tasks_head", sorted(found), sorted(map(id, asyncio.all_tasks())))
        interp = call("PyInterpreterState_Get") + TABLE["PyInterpreterState.asyncio_tasks_head"]
        note("PyInterpreterState.asyncio_tasks_head", at(interp, "llist_node.next"), interp)
    if has("asyncio_state.scheduled_tasks"):
        import _asyncio

        state = at(id(_asyncio), "PyModuleObject.md_state")
        check(state, "asyncio_state.TaskType", _asyncio.Task)
        check(state, "asyncio_state.scheduled_tasks", _asyncio._scheduled_tasks)
        check(state, "asyncio_state.current_tasks", _asyncio._current_tasks)
        check(state, "asyncio_state.eager_tasks", _asyncio._eager_tasks)


def check_asyncio_offsets():
    if not has("asyncio_state.debug_offsets"):
        return
    import _asyncio

    state = at(id(_asyncio), "PyModuleObject.md_state")
    check(state, "asyncio_state.TaskType", _asyncio.Task)
    block = at(state, "asyncio_state.debug_offsets")
    for group, names in [
        ("asyncio_task_object", ["TaskObj"]),
        ("asyncio_interpreter_state", ["PyInterpreterState"]),
        ("asyncio_thread_state", ["_PyThreadStateImpl"]),
    ]:
        offsets(block, "Py_AsyncioModuleDebugOffsets." + group, names[0], {})


check_generators()
asyncio.run(check_asyncio())
