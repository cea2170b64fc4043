"""Modules, exceptions, sockets, queues, locks, context variables."""

import contextvars
import ctypes
import json
import queue
import select
import socket
import threading

from __main__ import TABLE, VERSION, at, check, hamt, has, note, read


def check_the_rest():
    check(id(json), "PyModuleObject.md_dict", json.__dict__)
    check(id(json), "PyModuleObject.md_name", json.__name__)
    try:
        raise KeyError("args") from ValueError()
    except KeyError as error:
        check(id(error), "PyBaseExceptionObject.args", error.args)
        check(id(error), "PyBaseExceptionObject.cause", error.__cause__)
        check(id(error), "PyBaseExceptionObject.traceback", error.__traceback__)
        trace = error.__traceback__
        check(id(trace), "PyTracebackObject.tb_frame", trace.tb_frame)
        check(id(trace), "PyTracebackObject.tb_next", None)
        check(id(trace), "PyTracebackObject.tb_lasti", trace.tb_lasti)
        line = at(id(trace), "PyTracebackObject.tb_lineno")  # all ones: to be found from tb_lasti (3.11)
        note("PyTracebackObject.tb_lineno", line in (trace.tb_lineno, 0xFFFFFFFF), True)
    left, right = socket.socketpair()
    check(id(left), "PySocketSockObject.sock_fd", left.fileno())
    check(id(left), "PySocketSockObject.sock_family", int(socket.AF_UNIX))
    check(id(left), "PySocketSockObject.sock_type", int(socket.SOCK_STREAM))
    left.close(), right.close()
    with select.epoll() as poll:
        check(id(poll), "pyEpoll_Object.epfd", poll.fileno())
    simple = queue.SimpleQueue()
    items = [object() for _ in range(5)]
    for item in items:
        simple.put(item)
    simple.get()
    if has("simplequeueobject.lst"):
        held = ctypes.cast(at(id(simple), "simplequeueobject.lst"), ctypes.py_object).value
        note("simplequeueobject.lst", held[at(id(simple), "simplequeueobject.lst_pos") :] == items[1:], True)
    else:
        check(id(simple), "simplequeueobject.buf.num_items", 4)
        ring, first = (
            at(id(simple), "simplequeueobject.buf.items"),
            at(id(simple), "simplequeueobject.buf.get_idx"),
        )
        note("simplequeueobject.buf.items", read(ring + 8 * first), id(items[1]))


def check_locks():
    for held in (False, True):
        lock = threading.Lock()
        if held:
            lock.acquire()
        if has("lockobject.locked"):
            check(id(lock), "lockobject.locked", int(held))
        else:
            check(id(lock), "lockobject.lock", int(held), mask=1)
    lock = threading.RLock()
    lock.acquire(), lock.acquire()
    if has("rlockobject.rlock_owner"):
        check(id(lock), "rlockobject.rlock_owner", threading.get_ident())
        check(id(lock), "rlockobject.rlock_count", 2)
    else:
        inner = id(lock) + TABLE["rlockobject.lock"]
        check(inner, "_PyRecursiveMutex.thread", threading.get_ident())
        check(inner, "_PyRecursiveMutex.level", 1)
    ready, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (ready.set(), done.wait()), daemon=True)
    thread.start()
    ready.wait()
    if has("PyThreadHandleObject.handle"):
        python = thread._handle if VERSION == (3, 13) else thread._os_thread_handle
        handle = at(id(python), "PyThreadHandleObject.handle")
        check(handle, "ThreadHandle.ident", thread.ident)
        check(handle, "ThreadHandle.state", TABLE["const.THREAD_HANDLE_RUNNING"])
    done.set()
    thread.join()
    if has("ThreadHandle.state"):
        check(handle, "ThreadHandle.state", TABLE["const.THREAD_HANDLE_DONE"])


def check_contexts():
    for count in (3, 60):
        variables = [contextvars.ContextVar(f"v{i}") for i in range(count)]
        context = contextvars.Context()
        for i, variable in enumerate(variables):
            context.run(variable.set, (i,))
        found = {}
        hamt(at(at(id(context), "PyContext.ctx_vars"), "PyHamtObject.h_root"), found)
        note("PyHamtObject.h_root", found == {id(k): id(v) for k, v in context.items()}, True)
        check(at(id(context), "PyContext.ctx_vars"), "PyHamtObject.h_count", count)
        check(id(variables[0]), "PyContextVar.var_name", variables[0].name)


check_the_rest()
check_locks()
check_contexts()
