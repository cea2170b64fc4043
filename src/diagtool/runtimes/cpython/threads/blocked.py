"""What each thread is blocked in, with the thing it waits for.

Where a wait is written in Python, the thing is the ``self`` of its frames. Where it is in C, it is found by
what the kernel says: the futex belongs to a lock, the fd to a socket, and the frame is calling it. A thread
whose futex belongs to nothing known (a mutex of a C library) keeps the plain wait "futex".
"""

from __future__ import annotations

from collections.abc import Sequence

from diagtool.capture.model import CapturedThread
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.threads.interpreters import Interpreter, PythonThread, waits_for_gil
from diagtool.runtimes.cpython.threads.things import LOCK_KINDS, ThreadThings
from diagtool.runtimes.cpython.threads.waits import classify, wait_in_python
from diagtool.runtimes.native.stacks.libc import is_libc
from diagtool.runtimes.syscalls import blocking_call, fds_of
from diagtool.runtimes.waits import KernelWaits, ThreadWait
from diagtool.snapshot.model import Thing

__all__ = ("ThreadWait", "ThreadWaits")

#: What locks of the interpreter are made of.
_INTERPRETERS_OWN = ("sem_wait", "pthread_cond_wait")
_INNERMOST = 8  # frames that a wait of the standard library has at most

#: Names of waits by the C type that the futex belongs to.
_LOCK_WAITS = dict(
    zip(
        LOCK_KINDS,
        (
            "threading.Lock.acquire",
            "threading.RLock.acquire",
            "queue.SimpleQueue.get",
            "multiprocessing.Lock.acquire",
        ),
        strict=True,
    )
)

#: Methods of sockets: with a timeout they sleep in poll, and only the method says what for.
_SOCKET_METHODS = {
    **dict.fromkeys(("recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into"), "recv"),
    **dict.fromkeys(("send", "sendall", "sendto", "sendmsg"), "send"),
    **dict.fromkeys(("accept", "_accept"), "accept"),
    **dict.fromkeys(("connect", "connect_ex"), "connect"),
}
_SOCKET_CALLS = ("recv", "send", "accept", "connect", "poll", "ppoll", "read", "write")

#: Waits whose thing is a file descriptor, though Python frames name them.
_IO = ("socket.", "ssl.")

#: Locals that hold the thing, of waits whose outermost frame is a function.
_LOCALS = {"concurrent.futures.wait": "waiter", "concurrent.futures.as_completed": "waiter"}


class ThreadWaits:
    """Names the waits of the threads of one process, and reads the things they wait for."""

    def __init__(self, ctx: Context, interpreters: Sequence[Interpreter]) -> None:
        self.ctx = ctx
        self.interpreters = interpreters
        self.things = ThreadThings(ctx, interpreters)
        self.kernel = KernelWaits(ctx.capture, dict(ctx.native))

    def of(self, thread: PythonThread) -> ThreadWait:
        """The wait of a thread that Python knows."""
        frames = [f for f in map(self.ctx.frame_of, thread.frames[:_INNERMOST]) if f is not None]
        captured, process = thread.captured, self.ctx.capture.process
        number, args = (captured.syscall, captured.syscall_args) if captured else (None, ())
        wchan = captured.wchan if captured else None
        if thread.holds_gil and captured is not None and captured.registers:
            wchan = None  # where it was before the stop; since then it got the GIL, and runs
        gil = "waits" if thread.waits_for_gil else "holds" if thread.holds_gil else None
        name = classify(frames, number, args, wchan, gil, process.machine)
        if not name:
            return ThreadWait()
        if name == "gil":
            return ThreadWait(name, self._gil(thread))
        call = blocking_call(number, args, wchan, process.machine)
        thing: Thing | None = None
        lock = self._native_lock(captured, call)
        if thread.holds_gil:  # blocked all the same: in native code, so not in what the frames say
            name, thing = lock or (name, self.kernel.thing(captured, call))
            return self.kernel.ended(name, thing, captured, call)
        known = wait_in_python(frames, call)
        receiver = self._receiver(thread, call)
        if known is not None and not self._reacquires(thread, receiver):
            frame = thread.frames[known[1] - 1]
            address = self.ctx.local_of(frame, _LOCALS.get(name, "self"))
            if name.startswith(_IO):
                thing = self.kernel.thing(captured, call, address)
            else:
                thing = self.things.read(address, name)
        elif receiver is not None:
            name, thing = self._of_receiver(thread, receiver, name, call)
        elif lock is not None and (name == "futex" or lock[0] == "cuda.synchronize"):
            name, thing = lock
        return self.kernel.ended(name, thing or self.kernel.thing(captured, call), captured, call)

    def of_native(self, captured: CapturedThread) -> ThreadWait:
        """The wait of a thread that runs no Python, by what the kernel and its native frames say."""
        for interpreter in self.interpreters:  # a callback from C: it takes the GIL before it has a frame
            if interpreter.gil and waits_for_gil(captured, interpreter.gil) and interpreter.threads:
                return ThreadWait("gil", self._gil(interpreter.threads[0]))
        return self.kernel.of(captured)

    def _native_lock(self, captured: CapturedThread | None, call: str | None) -> tuple[str, Thing] | None:
        """A lock of native code; none where the interpreter itself waits, whose locks Python objects are."""
        lock = self.kernel.lock(captured, call)
        if lock is None or captured is None or lock[0] not in _INTERPRETERS_OWN:
            return lock
        frames = self.ctx.native.get(captured.tid, ())
        outside = next((f.library for f in frames if not is_libc(f.library)), None)
        return None if outside == self.ctx.runtime.module else lock

    # -- what the frame is calling ----------------------------------------------------------------------

    def _receiver(self, thread: PythonThread, call: str | None) -> tuple[str, int] | None:
        """(method, object) that the innermost frame is calling, confirmed by the kernel's arguments."""
        captured = thread.captured
        if captured is None or not captured.syscall_args or not thread.frames:
            return None
        if call == "futex":
            futex = captured.syscall_args[0]
            parked = self.things.lock_at(futex)
            if parked:
                return "", parked
            candidates = list(self.things.stacks.receivers(thread.frames[0]))
            found = next((c for c in candidates if self.things.semaphore_of(c[1]) == futex), None)
            # where the thread's stack was not captured (gcore, with glibc 2.42's guard pages)
            return found or next((c for c in candidates if self.things.is_contended(c[1])), None)
        if call in _SOCKET_CALLS:
            fds = fds_of(call, captured.syscall_args, self.ctx.objects.memory.try_read)
            for method, address in self.things.stacks.receivers(thread.frames[0]):
                if method in _SOCKET_METHODS and self._fd_of_socket(address) in fds:
                    return method, address
        return None

    def _fd_of_socket(self, address: int) -> int | None:
        field = self.ctx.runtime.layout.get("PySocketSockObject.sock_fd")
        if field is None or not self.ctx.objects.is_a(address, "_socket.socket"):
            return None
        raw = self.ctx.objects.memory.try_read(address + field, 4)
        return int.from_bytes(raw, "little", signed=True) if raw is not None else None

    def _reacquires(self, thread: PythonThread, receiver: tuple[str, int] | None) -> bool:
        """Whether a Condition.wait was notified already and waits for the Condition's lock again."""
        if receiver is None:
            return False
        condition = self.ctx.local_of(thread.frames[0], "self")
        return bool(condition) and self.ctx.objects.attribute(condition, "_lock") == receiver[1]

    def _of_receiver(
        self, thread: PythonThread, receiver: tuple[str, int], name: str, call: str | None
    ) -> tuple[str, Thing | None]:
        method, address = receiver
        if call == "futex":
            name = _LOCK_WAITS.get(self.ctx.objects.kind(address), name)
            thing = self.things.read(address)
            if thing is not None and name == "queue.SimpleQueue.get":
                thing.state.update(self.things.executors.of_frame(thread.frames[0]))
            return name, thing
        thing = self.kernel.thing(thread.captured, call, address)
        return f"socket.{_SOCKET_METHODS[method]}", thing

    def _gil(self, thread: PythonThread) -> Thing | None:
        own = next((i for i in self.interpreters if thread in i.threads), None)
        if own is None or not own.gil:
            return None
        sharing = (t for i in self.interpreters if i.gil == own.gil for t in i.threads)
        holder = next((t for t in sharing if t.holds_gil), None)
        if holder is None:
            return Thing(own.gil, "GIL", "not held", {"locked": False})
        words, state = self.things.owner(holder.ident)
        return Thing(own.gil, "GIL", words, {"locked": True, **state})
