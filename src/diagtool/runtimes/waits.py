"""What a thread waits for, as far as the kernel and its native frames tell it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diagtool.capture.model import Capture, CapturedThread
from diagtool.capture.modules import Module
from diagtool.runtimes.native.called import with_entry
from diagtool.runtimes.native.stacks.libc import is_libc
from diagtool.runtimes.native.stacks.model import NativeFrame
from diagtool.runtimes.native.waits import NativeLock, lock_of
from diagtool.runtimes.syscalls import blocking_call, fds_of, seconds_left
from diagtool.snapshot.model import Thing

__all__ = ["CALLS", "KernelWaits", "ThreadWait"]

#: Names of waits that only the system call knows.
CALLS = {
    "accept": "socket.accept",
    "connect": "socket.connect",
    "recv": "socket.recv",
    "send": "socket.send",
    "sleep": "time.sleep",
    "wait": "os.waitpid",
    "sigwait": "signal.sigwait",
    "pause": "signal.pause",
    "ppoll": "poll",
    "futex_waitv": "futex",
}
#: Whose functions wait for a GPU: of NVIDIA's driver, which all of CUDA goes through.
_GPU_DRIVER = ("libcuda.so",)
_P_PID = 1  # idtype of waitid (linux/wait.h)
_WAITIDS = (247, 95)  # waitid on x86-64 and aarch64; wait4 takes the pid first


@dataclass(frozen=True, slots=True)
class ThreadWait:
    """What a thread waits for. ``name`` is "" when it does not wait.

    ``timed`` says whether the wait ends by itself (None: unknown), ``time_left`` in how many seconds at most.
    """

    name: str = ""
    thing: Thing | None = None
    timed: bool | None = None
    time_left: float | None = None


class KernelWaits:
    """Waits of the threads of one capture. ``native``: their native frames by tid, where they are known."""

    def __init__(self, capture: Capture, native: dict[int, Sequence[NativeFrame]]) -> None:
        self.capture = capture
        self.native = native
        # glibc's pthread_self() is what fs points to, and its locks have tids as the process sees them.
        self._threads = {
            t.registers.get("fs_base", 0): t.ns_tid or t.tid for t in reversed(capture.threads) if t.registers
        }
        self._tids = {t.ns_tid or t.tid: t.tid for t in capture.threads}

    def of(self, thread: CapturedThread) -> ThreadWait:
        """The wait of a thread that runs no code that we decode."""
        call = self.call(thread)
        if not call or call == "ioctl":
            return ThreadWait()
        lock = self.lock(thread, call)
        if lock is not None:
            return self.ended(lock[0], lock[1], thread, call)
        name = "sleep" if call == "sleep" else CALLS.get(call, call)
        thing = self.thing(thread, call)
        if thing is None and call == "futex" and thread.syscall_args and thread.syscall_args[0]:
            thing = Thing(thread.syscall_args[0], "futex")
        return self.ended(name, thing, thread, call)

    def call(self, thread: CapturedThread) -> str | None:
        """What kind of waiting the system call is that a thread is in (``syscalls.blocking_call``)."""
        machine, wchan = self.capture.process.machine, thread.wchan
        frames = self.native.get(thread.tid)
        if frames and frames[0].language == "go" and thread.registers:
            wchan = None  # where it was before the stop: goroutines move between threads all the time
        return blocking_call(thread.syscall, thread.syscall_args, wchan, machine)

    def lock(self, thread: CapturedThread | None, call: str | None) -> tuple[str, Thing] | None:
        """(name of the wait, lock of native code that a thread waits for); None where it is not known."""
        if thread is None or not call:
            return None
        frames = self.native.get(thread.tid, ())
        outside = next((f.library for f in frames if not is_libc(f.library)), None)
        if outside is not None and outside.rpartition("/")[2].startswith(_GPU_DRIVER):
            return "cuda.synchronize", Thing(0, "GPU", f"in {outside}")
        if call != "futex" or not thread.syscall_args:
            return None
        read = self.capture.memory.try_read
        frames = with_entry(frames, read, self._module_at)
        lock = lock_of(frames, thread.syscall_args[0], read, self._threads)
        return None if lock is None else (lock.name, self._thing_of(lock, thread))

    def _module_at(self, address: int) -> Module | None:
        return next((m for m in self.capture.modules if m.contains(address)), None)

    def _thing_of(self, lock: NativeLock, thread: CapturedThread) -> Thing:
        state, detail = dict(lock.state), lock.detail
        if state.get("owner_alive"):
            state["owner"] = self._tids.get(state["owner"], state["owner"])
        elif lock.inside is not None:
            tid = self._at_work(lock, thread)
            if tid:
                state.update(owner=tid, owner_alive=True, inferred=True)
                detail = f"thread {tid} is in it"
        return Thing(lock.address, lock.type, detail, state)

    def _at_work(self, lock: NativeLock, waiter: CapturedThread) -> int:
        """The one thread that is inside what others wait for to be done once, 0 where it is not known."""
        inside = lock.inside
        found = [
            t.tid
            for t in self.capture.threads
            if t.tid != waiter.tid
            and (not t.syscall_args or t.syscall_args[0] != waiter.syscall_args[0])
            and any((f.library, f.function) == inside for f in self.native.get(t.tid, ()))
        ]
        return found[0] if len(found) == 1 else 0

    def ended(
        self, name: str, thing: Thing | None, thread: CapturedThread | None, call: str | None
    ) -> ThreadWait:
        """A wait with when it ends by itself."""
        if thread is None or not call:
            return ThreadWait(name, thing)
        process, read = self.capture.process, self.capture.memory.try_read
        timed, left = seconds_left(
            call, thread.syscall, thread.syscall_args, read, process.monotonic, process.captured_at
        )
        if thing is not None and not thing.address and timed is not None:  # nobody else waits on this one
            thing.state.update(timed=timed, time_left=left)
        return ThreadWait(name, thing, timed, left)

    def thing(self, thread: CapturedThread | None, call: str | None, address: int = 0) -> Thing | None:
        """A file descriptor (``address``: of its socket), a child or a timer; None where there is no such."""
        if thread is None or not call:
            return None
        args = thread.syscall_args
        if call == "sleep":
            return Thing(0, "timer")
        if call == "wait" and len(args) > 1:
            pid = args[0] if thread.syscall not in _WAITIDS else args[1] if args[0] == _P_PID else 0
            pid = pid if pid < 1 << 31 else 0  # -1 and groups
            return Thing(0, "process", f"pid {pid}" if pid else "any child", {"pid": pid or None})
        fds = fds_of(call, args, self.capture.memory.try_read)
        if not fds:
            return None
        described = [f"fd {fd} {self.capture.fds.get(fd, '')}".rstrip() for fd in fds]
        words = ", ".join(described[:4]) + (", …" if len(fds) > 4 else "")
        return Thing(address, "fd", words, {"fd": fds[0], "fds": fds} if len(fds) > 1 else {"fd": fds[0]})
