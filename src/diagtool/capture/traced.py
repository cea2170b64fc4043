"""Processes that are traced for as long as they live, so that one can be looked at before it goes away.

A Tracer belongs to one thread of ours, in which all its methods but :meth:`Tracer.call` are called, and in
which the stops of captures are carried out (stop.py): a thread has one tracer. Threads are SEIZEd and run
freely; they stop for a moment when they get a signal, end, or (with ``follow``) fork. Nothing is set that
would do harm if this process is killed: no EXITKILL, no breakpoint; the kernel lets every thread go then, and
gives it the signal that it stopped for, because stops are looked at and never consumed (ptrace.py).

Threads that are started later are not traced until :meth:`Tracer.seize_new` finds them: to be told of each
one (PTRACE_O_TRACECLONE) would cost the program two stops a thread.
"""

from __future__ import annotations

import _thread
import ctypes
import errno
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from diagtool.capture import ptrace, steer
from diagtool.capture.procfs import parse_stat, task_ids, try_read
from diagtool.capture.signals import SignalInfo, parse_siginfo

if TYPE_CHECKING:
    from diagtool.capture.hold import Hold

__all__ = ["Notice", "Tracer"]

_TRACEFORK, _TRACEVFORK, _TRACEEXIT = 0x02, 0x04, 0x40  # PTRACE_O_…, include/uapi/linux/ptrace.h
_EVENT_FORK, _EVENT_VFORK, _EVENT_EXIT = 1, 2, 6  # PTRACE_EVENT_…
_LISTEN, _GETSIGINFO = 0x4208, 0x4202
_SYS_EXIT = 60  # of one thread: asm/unistd_64.h
_ORIG_RAX = 15  # place in user_regs_struct
_PATIENCE = 0.1  # seconds between the ends of the first and the last thread of a process that ends
_SOON = 0.05  # seconds that a SEIZE may take
_TRIES, _NAP = 50, 2e-4
_STOPPING = (19, 20, 21, 22)  # SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU

_libc = ctypes.PyDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


@dataclass(frozen=True, slots=True)
class Notice:
    """What happened to a traced thread.

    signal: it is about to get ``signal`` (``info`` says more) and stands until :meth:`Tracer.go_on`.
    exit: its process is about to end with ``status`` (as wait(2) has it) and stands until then, too.
    stopped: its process was stopped by ``signal`` (job control). forked: process ``pid`` is a new one.
    gone: the process is no more.
    """

    what: Literal["signal", "exit", "stopped", "forked", "gone"]
    pid: int
    tid: int
    signal: int = 0
    status: int = 0
    info: SignalInfo | None = None


class Tracer:
    """Traces processes. ``interesting(pid, signal)`` says of which signals there is a notice."""

    def __init__(
        self,
        interesting: Callable[[int, SignalInfo], bool],
        call: Callable[[Callable[[], None]], None],
        follow: bool = False,
    ) -> None:
        #: Our own child, whose status is left for us to take.
        self.child = 0
        #: Notices that came up in the stop of a capture.
        self.told: list[Notice] = []
        self._interesting = interesting
        self._call = call
        self._options = (_TRACEFORK | _TRACEVFORK) if follow else 0
        self._threads: dict[int, int] = {}  # tid -> pid
        self._standing: set[int] = set()  # tids that wait for go_on()
        self._frozen: set[int] = set()  # pids of which nothing is let go
        #: First threads that end: until when the others of their process are waited for.
        self._ending: dict[int, float] = {}
        #: When the seizing of a thread began that is not over, by time.monotonic().
        self.seizing: float | None = None
        self._looker = ptrace.Looker()
        self._registers = (ctypes.c_uint64 * ptrace.REGISTER_WORDS)()

    # -- for captures (stop.Keeper) -----------------------------------------------------------------------

    def hold(self, pid: int) -> Hold:
        """For a stop of a process: all its threads are let go afterwards that did not stand before."""
        from diagtool.capture.kepthold import (
            KeptHold,
        )  # takes numpy with it, which a command need not wait for

        return KeptHold(self, pid)

    def call(self, work: Callable[[], None]) -> None:
        """Have the tracing thread do something, from any thread; returns at once."""
        self._call(work)

    # -- what is traced -----------------------------------------------------------------------------------

    def processes(self) -> set[int]:
        """The processes that are traced."""
        return set(self._threads.values())

    def threads(self, pid: int) -> list[int]:
        """The traced threads of a process."""
        return [tid for tid, owner in self._threads.items() if owner == pid]

    def stands(self, tid: int) -> bool:
        """Whether a thread waits for :meth:`go_on`."""
        return tid in self._standing

    def seize(self, pid: int, tid: int) -> int:
        """Begin to trace a thread; 0 or an errno: EAGAIN where it can't be said now.

        An exec waits until the other threads have gone, which we have to let go, and a SEIZE waits for the
        exec (cred_guard_mutex in ptrace_attach(), kernel/ptrace.c). So another thread of ours tries it first.
        """
        if pid in self._threads and not _can_be_seized(tid):
            return errno.EAGAIN
        self.seizing = time.monotonic()
        # Only the first thread stands in its end: the process ends after that.
        options = self._options | (_TRACEEXIT if tid == pid else 0)
        error = ptrace.seize(tid, options)
        for _ in range(_TRIES):
            if error != errno.EPERM or pid not in self._threads:
                break
            time.sleep(_NAP)  # the thread that tried it has not let go yet
            error = ptrace.seize(tid, options)
        self.seizing = None
        if not error:
            self._threads[tid] = pid
        return error

    def seize_new(self, pid: int) -> int:
        """Begin to trace the threads of a process that are not yet; 0 or the errno of its first thread."""
        first = 0
        for tid in task_ids(pid):
            if tid not in self._threads and not _dead(pid, tid):
                error = self.seize(pid, tid)
                first = error if tid == pid else first
                if error == errno.EAGAIN:
                    break
        return first

    def freeze(self, pid: int) -> None:
        """Let no thread of a process go that stops from now on."""
        self._frozen.add(pid)

    def thaw(self, pid: int) -> None:
        """Let those threads go that don't stand for a notice."""
        self._frozen.discard(pid)

    def go_on(self, tid: int, signal: int = 0) -> None:
        """Let a thread that stands run, with a signal."""
        self._standing.discard(tid)
        with suppress(OSError):  # killed meanwhile
            steer.go_on(tid, signal)

    def let_go(self, pid: int) -> None:
        """Let all threads of a process run that stand in their end."""
        for tid in [t for t in self.threads(pid) if t in self._standing]:
            event = self._looker.look(tid)
            if event is None or event.gone or event.status >> 8 == _EVENT_EXIT:
                self.go_on(tid)

    def release(self) -> None:
        """Let all threads go that stand, each with its signal."""
        self._frozen.clear()
        for tid in list(self._standing):
            event = self._looker.look(tid)
            self.go_on(tid, event.signal if event is not None and not event.gone else 0)

    def waits(self) -> bool:
        """Whether :meth:`attend` is to be called again soon, though no SIGCHLD may come."""
        return bool(self._ending)

    # -- what happens -------------------------------------------------------------------------------------

    def attend(self) -> list[Notice]:
        """Look at all threads, let go what is of no interest, and tell what is. Doesn't wait."""
        out, self.told = self.told, []
        for tid in list(self._threads):
            self.attend_to(tid, out)
        for pid, until in list(self._ending.items()):
            if pid not in self._threads:
                del self._ending[pid]
            elif self._is_alone(pid):
                del self._ending[pid]
                with suppress(OSError):
                    status = steer.event_message(pid)
                    out.append(Notice("exit", pid, pid, status & 0x7F, status))
            elif time.monotonic() > until:
                # Not the end of the process, but an exec in another thread, which waits for this one.
                del self._ending[pid]
                self.go_on(pid)
        return out

    def attend_to(self, tid: int, out: list[Notice]) -> None:
        """The same for one thread."""
        pid = self._threads.get(tid)
        if pid is None or tid in self._standing:
            return
        event = self._looker.look(tid)
        if event is None:
            return
        if event.gone:
            self._gone(pid, tid, out)
            return
        if pid in self._frozen:
            return
        kind = event.status >> 8
        with suppress(OSError):  # killed meanwhile: the next look tells
            if kind == steer.EVENT_STOP:
                self._stopped(pid, tid, event.status & 0x7F, out)
            elif kind == _EVENT_EXIT:
                self._exits(pid, tid, out)
            elif kind in (_EVENT_FORK, _EVENT_VFORK):
                child = steer.event_message(tid)
                self._threads[child] = child
                out.append(Notice("forked", child, child))
                steer.go_on(tid)
                self.attend_to(child, out)  # whose first stop may have been told of before
            elif kind:
                steer.go_on(tid)
            else:
                self._signalled(pid, tid, event.signal, out)

    def _gone(self, pid: int, tid: int, out: list[Notice]) -> None:
        del self._threads[tid]
        self._standing.discard(tid)
        if tid == pid:
            if pid != self.child:
                ptrace.reap(tid)  # its parent is told after that
            # Threads that an exec has replaced, or that nobody saw end, are gone with it.
            for other in self.threads(pid):
                del self._threads[other]
                self._standing.discard(other)
            out.append(Notice("gone", pid, tid))
        else:
            ptrace.reap(tid)

    def _stopped(self, pid: int, tid: int, number: int, out: list[Notice]) -> None:
        if number not in _STOPPING:
            steer.go_on(tid)  # our own interrupt, a new process, or the end of a stop
            return
        _ptrace(_LISTEN, tid, None, None)  # it stays stopped, and goes on when somebody says so
        if tid == pid:
            out.append(Notice("stopped", pid, tid, number))

    def _exits(self, pid: int, tid: int, out: list[Notice]) -> None:
        address = ctypes.addressof(self._registers)
        one = self._looker.registers(tid, address) and self._registers[_ORIG_RAX] == _SYS_EXIT
        if tid != pid or (one and not self._is_alone(pid)):  # a thread that ends while others go on
            steer.go_on(tid)
            return
        self._standing.add(tid)
        self._ending[tid] = time.monotonic() + _PATIENCE

    def _is_alone(self, pid: int) -> bool:
        """Whether all threads but the first have ended; they are about to where the process ends."""
        return all(tid == pid or _dead(pid, tid) for tid in task_ids(pid))

    def _signalled(self, pid: int, tid: int, number: int, out: list[Notice]) -> None:
        raw = ctypes.create_string_buffer(128)
        found = _ptrace(_GETSIGINFO, tid, None, ctypes.addressof(raw)) == 0
        info = (parse_siginfo(raw.raw) if found else None) or SignalInfo(number, 0)
        if not self._interesting(pid, info):
            steer.go_on(tid, number)
            return
        self._standing.add(tid)
        out.append(Notice("signal", pid, tid, number, info=info))


def _dead(pid: int, tid: int) -> bool:
    stat = parse_stat(try_read(f"/proc/{pid}/task/{tid}/stat") or b"")
    return stat is None or stat.state in "ZX"


# A thread of ours seizes it and ends, with which the kernel lets it go again. True if that was quick.
def _can_be_seized(tid: int) -> bool:
    done = _thread.allocate_lock()
    done.acquire()

    def attempt() -> None:
        ptrace.seize(tid)
        done.release()

    try:
        _thread.start_new_thread(attempt, ())
    except RuntimeError:
        return False
    return done.acquire(timeout=_SOON)
