"""The things that threads wait for: locks, queues, threads, futures …, with their state and their owner.

One at a time, for threads are few next to tasks. Attribute names are those of Lib/threading.py, queue.py,
concurrent/futures and multiprocessing of 3.9 to 3.15; what a version or a subclass lacks is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from diagtool.capture.memory import MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.frames.evalstack import EvalStacks
from diagtool.runtimes.cpython.tasks.executors import Executors, simple_queue_size
from diagtool.runtimes.cpython.threads.interpreters import Interpreter
from diagtool.snapshot.model import Thing

__all__ = ("LOCK_KINDS", "ThreadThings")

State = dict[str, Any]

#: C types that a thread can sleep on in a futex.
LOCK_KINDS = ("_thread.lock", "_thread.RLock", "_queue.SimpleQueue", "_multiprocessing.SemLock")

_MAX_WALK = 2000  # frames of one thread that are looked through for open with blocks
_MUTEX_LOCKED, _MUTEX_PARKED = 1, 2  # bits of PyMutex._bits, Include/internal/pycore_lock.h
_RECURSIVE_MUTEX = 0  # kind of a SemLock, Modules/_multiprocessing/semaphore.c


class ThreadThings:
    """Reads the things of one process that threads wait for."""

    def __init__(self, ctx: Context, interpreters: Sequence[Interpreter]) -> None:
        self.ctx = ctx
        self.interpreters = interpreters
        self.stacks = EvalStacks(ctx)
        self.executors = Executors(ctx, interpreters)
        self._threads = {t.ident: t for i in interpreters for t in i.threads if t.ident}
        self._readers: dict[str, Callable[[int], tuple[str, State]]] = {
            "_thread.lock": self._lock,
            "_thread.RLock": self._rlock,
            "_queue.SimpleQueue": self._simple_queue,
            "_multiprocessing.SemLock": self._semlock,
            "threading.Condition": self._condition,
            "threading.Event": self._event,
            "threading.Semaphore": self._semaphore,
            "threading.Barrier": self._barrier,
            "threading.Thread": self._thread,
            "threading.RLock": self._python_rlock,
            "queue.Queue": self._queue,
            "queue.SimpleQueue": self._python_simple_queue,
            "concurrent.futures.Future": self._future,
            "concurrent.futures": self._waiter,
            "importlib": self._module_lock,
            "subprocess": self._process,
            "multiprocessing.Process": self._process,
            "multiprocessing.Lock": self._wrapped_semlock,
            "multiprocessing.Condition": self._wrapped_condition,
            "multiprocessing.Event": self._wrapped_event,
            "multiprocessing.Connection": self._connection,
            "multiprocessing.Queue": self._pipe_queue,
            "multiprocessing.SimpleQueue": self._pipe_queue,
            "multiprocessing.JoinableQueue": self._pipe_queue,
        }

    def read(self, address: int, wait: str = "") -> Thing | None:
        """The thing at ``address``, read as what the wait ("queue.Queue.get") says it is, or by its type."""
        o = self.ctx.objects
        kind = o.kind(address)
        if not kind or kind == "NoneType":
            return None
        reader = self._readers.get(kind) or self._readers.get(wait.rpartition(".")[0])
        detail, state = reader(address) if reader else ("", {})
        return Thing(
            address, o.qualified_kind(address) or kind, detail, state, references=o.references(address)
        )

    # -- attributes -------------------------------------------------------------------------------------

    def _number(self, address: int, name: str) -> int | None:
        return self.ctx.objects.integer(self.ctx.objects.attribute(address, name))

    def _length(self, address: int, *path: str) -> int | None:
        o = self.ctx.objects
        for name in path:
            address = o.attribute(address, name)
        return o.size(address) if address and not o.is_none(address) else None

    def word(self, address: int, field: str) -> int:
        """A 64-bit field by its name in the layout; 0 where there is none or it can't be read."""
        offset = self.ctx.runtime.layout.get(field)
        return self._read(address + offset) if offset is not None else 0

    def _read(self, address: int) -> int:
        try:
            return self.ctx.objects.memory.u64(address)
        except MemoryFault:
            return 0

    def _byte(self, address: int, field: str) -> int:
        return self.word(address, field) & 0xFF

    # -- owners -----------------------------------------------------------------------------------------

    def owner(self, ident: int) -> tuple[str, State]:
        """Words and state for the thread with this ``threading.get_ident()`` as the owner of something."""
        thread = self._threads.get(ident)
        if thread is None:
            return f"held by thread {ident:#x}, which is gone", {"owner": ident, "owner_alive": False}
        tid = thread.captured.tid if thread.captured else 0
        name = thread.name or ""
        words = f"held by thread {tid or hex(ident)}" + (f" ({name})" if name else "")
        return words, {"owner": tid or ident, "owner_alive": True, "owner_name": name}

    @cached_property
    def _holders(self) -> dict[int, list[int]]:
        # Lock -> idents of the threads that are inside a with block of it: a Lock itself knows no owner.
        out: dict[int, list[int]] = {}
        o = self.ctx.objects
        for ident, thread in self._threads.items():
            for frame in thread.frames[:_MAX_WALK]:
                for manager in self.stacks.managers(frame):
                    if o.kind(manager) not in LOCK_KINDS:
                        manager = o.attribute(manager, "_lock")  # of a Condition
                    if manager and o.kind(manager) in LOCK_KINDS and ident not in out.get(manager, ()):
                        out.setdefault(manager, []).append(ident)
        return out

    # -- locks ------------------------------------------------------------------------------------------

    def lock_at(self, futex: int) -> int:
        """The lock, RLock or SimpleQueue that a sleeper of 3.13+'s parking lot waits on, 0 for none.

        Its futex is part of a ``struct wait_entry`` on its own stack, and the address that it waits on lies
        right before it (Python/parking_lot.c).
        """
        o, lay = self.ctx.objects, self.ctx.runtime.layout
        if self.ctx.runtime.version < (3, 13):
            return 0
        try:
            address = o.memory.u64(futex - 8)
        except MemoryFault:
            return 0
        for kind, field in (
            ("_thread.lock", "lockobject.lock"),
            ("_thread.RLock", "rlockobject.lock"),
            ("_queue.SimpleQueue", "simplequeueobject.has_threads_waiting"),
        ):
            offset = lay.get(field)
            if offset is not None and address > 1 << 12 and o.kind(address - offset) == kind:
                return address - offset
        return 0

    def is_contended(self, address: int) -> bool:
        """Whether a lock of 3.14+ or a SimpleQueue of 3.13+ says itself that somebody sleeps on it."""
        kind = self.ctx.objects.kind(address)
        if kind == "_queue.SimpleQueue":
            return self._byte(address, "simplequeueobject.has_threads_waiting") == 1
        field = {"_thread.lock": "lockobject.lock", "_thread.RLock": "rlockobject.lock"}.get(kind)
        return field is not None and self._byte(address, field) == _MUTEX_LOCKED | _MUTEX_PARKED

    def semaphore_of(self, address: int) -> int:
        """The semaphore (its futex) inside of a lock object, 0 where it has none."""
        field = {
            "_thread.lock": "lockobject.lock_lock",  # to 3.13
            "_thread.RLock": "rlockobject.rlock_lock",  # to 3.13
            "_queue.SimpleQueue": "simplequeueobject.lock",  # to 3.12
            "_multiprocessing.SemLock": "sizeof.PyObject",  # SemLockObject: PyObject_HEAD, sem_t *handle
        }.get(self.ctx.objects.kind(address))
        if field == "sizeof.PyObject":
            return self._read(address + self.ctx.runtime.layout[field])
        return self.word(address, field) if field else 0

    def _lock(self, address: int) -> tuple[str, State]:
        if "lockobject.locked" in self.ctx.runtime.layout:
            locked = bool(self._byte(address, "lockobject.locked"))
        else:
            locked = bool(self._byte(address, "lockobject.lock") & _MUTEX_LOCKED)
        if not locked:
            return "not locked", {"locked": False}
        idents = self._holders.get(address, [])
        if len(idents) != 1:
            return "locked", {"locked": True}
        words, state = self.owner(idents[0])
        return words, {"locked": True, "inferred": True, **state}

    def _rlock(self, address: int) -> tuple[str, State]:
        lay = self.ctx.runtime.layout
        if "rlockobject.rlock_owner" in lay:
            ident, count = (self.word(address, f"rlockobject.rlock_{f}") for f in ("owner", "count"))
            count = count if ident else 0
        else:
            mutex = address + lay["rlockobject.lock"]
            locked = self._byte(mutex, "_PyRecursiveMutex.mutex") & _MUTEX_LOCKED
            ident = self.word(mutex, "_PyRecursiveMutex.thread")
            count = self.word(mutex, "_PyRecursiveMutex.level") + 1 if locked else 0
        if not count:
            return "not locked", {"locked": False, "count": 0}
        words, state = self.owner(ident)
        return words, {"locked": True, "count": count, **state}

    def _semlock(self, address: int) -> tuple[str, State]:
        # SemLockObject: handle, unsigned long last_tid, int count, int maxvalue, int kind
        o, head = self.ctx.objects, self.ctx.runtime.layout["sizeof.PyObject"]
        try:
            handle, last, count, maximum, kind = o.memory.unpack("<QQiii", address + head)
            value = o.memory.u32(handle)
        except MemoryFault:
            return "", {}
        state: State = {"value": value, "maxsize": maximum, "locked": value == 0}
        if count > 0 and kind == _RECURSIVE_MUTEX:
            words, owner = self.owner(last)
            return words, {**state, "count": count, **owner}
        return f"{value:,} of {maximum:,} free", state

    def _python_rlock(self, address: int) -> tuple[str, State]:
        ident, count = self._number(address, "_owner"), self._number(address, "_count") or 0
        if not ident:
            return "not locked", {"locked": False, "count": 0}
        words, state = self.owner(ident)
        return words, {"locked": True, "count": count, **state}

    def _wrapped_semlock(self, address: int) -> tuple[str, State]:
        return self._semlock(self.ctx.objects.attribute(address, "_semlock"))

    def _module_lock(self, address: int) -> tuple[str, State]:
        o = self.ctx.objects
        module = o.text(o.attribute(address, "name")) or ""
        ident = self._number(address, "owner")
        if not ident:
            return f"import of {module}", {"locked": False, "module": module}
        words, state = self.owner(ident)
        return f"import of {module}, {words}", {"locked": True, "module": module, **state}

    # -- threading --------------------------------------------------------------------------------------

    def _condition(self, address: int) -> tuple[str, State]:
        lock = self.ctx.objects.attribute(address, "_lock")
        own = self.read(lock) if lock else None
        state = {k: v for k, v in own.state.items() if k != "count"} if own else {}
        waiters = self._length(address, "_waiters")
        words = [_plural(waiters, "waiter")] if waiters is not None else []
        if own is not None and own.state.get("locked"):
            words.append(own.detail)
        return ", ".join(words), {**state, "waiters": waiters}

    def _event(self, address: int) -> tuple[str, State]:
        value = self.ctx.objects.truth(self.ctx.objects.attribute(address, "_flag"))
        waiters = self._length(address, "_cond", "_waiters")
        words = ["set" if value else "not set"] if value is not None else []
        return _joined(words, waiters, "waiter"), {"set": value, "waiters": waiters}

    def _semaphore(self, address: int) -> tuple[str, State]:
        value, waiters = self._number(address, "_value"), self._length(address, "_cond", "_waiters")
        state: State = {"value": value, "waiters": waiters}
        bound = self._number(address, "_initial_value")  # of a BoundedSemaphore
        if bound is not None:
            state["bound"] = bound
        words = [f"{value:,} permits left"] if value is not None else []
        return _joined(words, waiters, "waiter"), state

    def _barrier(self, address: int) -> tuple[str, State]:
        parties, count = self._number(address, "_parties"), self._number(address, "_count")
        words = f"{count:,} of {parties:,} arrived" if parties is not None and count is not None else ""
        return words, {"parties": parties, "count": count, "waiters": count}

    def _thread(self, address: int) -> tuple[str, State]:
        o = self.ctx.objects
        name, ident = o.text(o.attribute(address, "_name")) or "", self._number(address, "_ident")
        thread = self._threads.get(ident or 0)
        alive = thread is not None and thread.thread_object in (0, address)
        tid = thread.captured.tid if thread is not None and thread.captured is not None and alive else 0
        state = {
            "name": name,
            "ident": ident,
            "owner": tid or ident,
            "owner_alive": alive,
            "alive": alive,
            "daemon": o.truth(o.attribute(address, "_daemonic")),
        }
        return f"thread {tid or ident} ({name}), {'alive' if alive else 'gone'}", state

    # -- queues and futures -----------------------------------------------------------------------------

    def _queue(self, address: int) -> tuple[str, State]:
        size, maxsize = self._length(address, "queue"), self._number(address, "maxsize")
        getters = self._length(address, "not_empty", "_waiters") or 0
        putters = self._length(address, "not_full", "_waiters") or 0
        unfinished = self._number(address, "unfinished_tasks")
        state = {
            "size": size,
            "maxsize": max(maxsize or 0, 0),
            "getters": getters,
            "putters": putters,
            "waiters": getters + putters,
            "unfinished": unfinished,
        }
        shut = self.ctx.objects.truth(self.ctx.objects.attribute(address, "is_shutdown"))
        if shut:
            state["shutdown"] = True
        words = [_filling(size, maxsize)] if size is not None else []
        words += [_plural(n, w) for n, w in ((getters, "getter"), (putters, "putter")) if n]
        words += [f"{unfinished:,} unfinished"] if unfinished else []
        return ", ".join(words), state

    def _simple_queue(self, address: int) -> tuple[str, State]:
        size = simple_queue_size(self.ctx, address)
        return _filling(size, 0) if size is not None else "", {"size": size}

    def _python_simple_queue(self, address: int) -> tuple[str, State]:
        size = self._length(address, "_queue")
        return _filling(size, 0) if size is not None else "", {"size": size}

    def _future(self, address: int) -> tuple[str, State]:
        o = self.ctx.objects
        future = (o.text(o.attribute(address, "_state")) or "").lower()
        state: State = {
            "future": future,
            "waiters": self._length(address, "_condition", "_waiters"),
            "callbacks": self._length(address, "_done_callbacks"),
        }
        thread = self.executors.running.get(address)
        if thread is None:
            return future, state
        tid = thread.captured.tid if thread.captured else thread.ident
        return f"{future} in thread {tid} ({thread.name or ''})", {**state, "executor_thread": tid}

    def _waiter(self, address: int) -> tuple[str, State]:
        pending, finished = (
            self._number(address, "num_pending_calls"),
            self._length(address, "finished_futures"),
        )
        words = f"{pending:,} futures pending" if pending is not None else ""
        return words, {"pending": pending, "finished": finished}

    # -- processes --------------------------------------------------------------------------------------

    def _process(self, address: int) -> tuple[str, State]:
        pid = self._number(address, "pid")
        return f"pid {pid}" if pid else "", {"pid": pid}

    def _connection(self, address: int) -> tuple[str, State]:
        fd = self._number(address, "_handle")
        if fd is None:
            return "", {}
        return f"fd {fd} {self.ctx.capture.fds.get(fd, '')}".rstrip(), {"fd": fd}

    def _pipe_queue(self, address: int) -> tuple[str, State]:
        detail, state = self._connection(self.ctx.objects.attribute(address, "_reader"))
        return detail, {**state, "maxsize": self._number(address, "_maxsize")}

    def _wrapped_condition(self, address: int) -> tuple[str, State]:
        lock = self.ctx.objects.attribute(address, "_lock")
        return self._wrapped_semlock(lock) if lock else ("", {})

    def _wrapped_event(self, address: int) -> tuple[str, State]:
        detail, state = self._wrapped_semlock(self.ctx.objects.attribute(address, "_flag"))
        return ("set" if state.get("value") else "not set") if detail else "", {
            "set": state.get("value") == 1
        }


def _plural(n: int, word: str) -> str:
    return f"{n:,} {word}" + ("" if n == 1 else "s")


def _joined(words: list[str], number: int | None, word: str) -> str:
    return ", ".join([*words, _plural(number, word)] if number is not None else words)


def _filling(size: int, maxsize: int | None) -> str:
    if size == 0:
        return "empty"
    return f"full, {_plural(size, 'item')}" if maxsize and size >= maxsize > 0 else _plural(size, "item")
