"""The loop beside a command: it passes signals on, answers stops, watches triggers and has looks taken.

All signals are blocked and waited for (sigtimedwait), so that nothing is lost and each can be told by who
sent it: what the terminal sends has reached the command already, which is in the same process group.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from diagtool.capture import procfs, ptrace
from diagtool.capture.signals import SignalInfo, name_of
from diagtool.capture.traced import Notice, Tracer
from diagtool.supervise import child, tree
from diagtool.supervise.analyst import Analyst, Look, Why
from diagtool.supervise.plan import Ended, Orphan, Plan
from diagtool.supervise.triggers import Figures, Thresholds

if TYPE_CHECKING:
    from diagtool.capture.stop import Keeper

__all__ = ["Supervisor"]

#: Signals that leave a core where nobody handles them (signal(7)), SIGQUIT apart, which people send.
CRASHES = {4, 5, 6, 7, 8, 11, 24, 25, 31}
#: By which a program is asked to end: INT, HUP, QUIT, TERM.
ENDING = {2, 1, 3, 15}
#: Those that do nothing, or stop a process, where nobody handles them (signal(7)).
_HARMLESS = {17, 18, 19, 20, 21, 22, 23, 28}
_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP}
_SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGSYS} - _FAULTS
_JOB_CONTROL = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_SI_KERNEL = 0x80

POLL = 0.25  # seconds between two looks at figures, new threads and processes
_SOON = 0.02
_FIRST, _LONGEST = 0.5, 60.0  # seconds to the first sample; between two, at most
_MOST_LOOKED_AT = 32  # processes of the command at one time
_CHECK_COST = 20  # times as long as a look at tasks takes is waited before the next
_LATE = 2.0  # seconds that what is left is given to end by itself, at most
_STUCK = 5.0  # seconds in one request to the kernel
_SAMPLES = 6  # kept of one process


class Supervisor:
    """Runs one command. Use it in the main thread, once."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._calls: deque[Callable[[], None]] = deque()
        self._kinds = {t.kind for t in plan.triggers}
        self._asked = {int(t.value) for t in plan.triggers if t.kind == "signal" and t.value}
        self._asks = any(t.kind == "signal" and not t.value for t in plan.triggers)
        self._thresholds = Thresholds([t for t in plan.triggers if t.kind in ("rss", "threads", "fds")])
        self._tasks = Thresholds([t for t in plan.triggers if t.kind == "tasks"])
        self._every = min((t.value for t in plan.triggers if t.kind == "every"), default=None)
        self._tracer = Tracer(self._is_interesting, self._call, plan.follow)
        self._analyst = Analyst(self._keeper_of, plan.keep)
        self._looker = ptrace.Looker()
        self._samples: dict[int, list[Look]] = {}
        self._signalled: set[int] = set()  # by which it was asked to end
        self._seen: dict[int, tuple[int, float]] = {}  # signal that reached the command -> (sender, when)
        self._dying: set[int] = set()  # processes that were looked at in their end
        self._polled = 0.0
        self._over = False
        self._killed = False
        self._stopping = False  # it is to be ended when it was looked at
        self._ended = Ended(0)

    def run(self) -> Ended:
        """Start the command, wait for its end. Raises NotStarted."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        reaped = child.is_subreaper(True)
        try:
            self._began = time.monotonic()
            self._ended.pid = child.start(self.plan.command, {int(n) for n in before}, self._trace)
            self._schedule()
            threading.Thread(target=self._watch, name="diagtool-watchdog", daemon=True).start()
            while not self._over:
                try:
                    self._turn(self._until_next())
                except Exception as error:  # noqa: BLE001 - whatever is wrong here, the command goes on
                    self._give_up(error)
            self._ended.seconds = self._since()
            while self._analyst.busy:
                self._turn(_SOON)
            self._analyst.finish()
            self._find_orphans()
        finally:
            child.is_subreaper(reaped)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for samples in self._samples.values():
            self._ended.looks += samples
        self._ended.looks.sort(key=lambda look: look.at)
        return self._ended

    # -- the parts of a turn ------------------------------------------------------------------------------

    def _turn(self, wait: float) -> None:
        info = signal.sigtimedwait(_SIGNALS, wait)
        while self._calls:
            self._calls.popleft()()
        for notice in self._tracer.attend():
            self._noticed(notice)
        if info is not None and info.si_signo != signal.SIGCHLD:
            self._got(info)
        self._look_at_child()
        if self._stopping and not self._analyst.busy:
            self._terminate()
        now = time.monotonic()
        if not self._over and now >= self._polled:
            self._polled = now + POLL
            self._poll()

    def _until_next(self) -> float:
        if self._calls or self._tracer.waits():
            return _SOON
        return max(0.0, min(self._polled - time.monotonic(), POLL))

    def _call(self, work: Callable[[], None]) -> None:
        self._calls.append(work)
        os.kill(os.getpid(), signal.SIGCHLD)  # ends the wait

    def _since(self) -> float:
        return time.monotonic() - self._began

    def _schedule(self) -> None:
        now = time.monotonic()
        self._polled = now + POLL / 4
        self._next_sample = now + (self._every if self._every is not None else _FIRST)
        self._next_check = now + _FIRST
        self._deadline = None if self.plan.timeout is None else self._began + self.plan.timeout

    # What must not be: a SEIZE that waits for an exec that waits for us (Tracer.seize). If we end, the kernel
    # lets everybody go.
    def _watch(self) -> None:
        while not self._over:
            time.sleep(1.0)
            since = self._tracer.seizing
            if since is not None and time.monotonic() - since > _STUCK:
                os.write(2, b"diagtool: the kernel does not answer; the command runs on without diagtool\n")
                os._exit(3)

    # -- tracing ------------------------------------------------------------------------------------------

    def _trace(self, pid: int) -> None:
        self._tracer.child = pid
        if not self._kinds & {"exit", "signal", "crash"}:
            return
        program = self.plan.command[0]
        if not ptrace.supported():
            self._note("its end can't be looked at: that needs Linux on x86-64")
        elif child.gains_privileges(program):
            self._note(
                f"{program} gets other rights when it is run, so it is not traced: its end is not seen"
            )
        elif error := self._tracer.seize(pid, pid):
            self._note(f"its end can't be looked at: it may not be traced ({os.strerror(error).lower()})")

    def _keeper_of(self, pid: int) -> Keeper | None:
        return self._tracer if pid in self._tracer.processes() else None

    def _is_interesting(self, pid: int, info: SignalInfo) -> bool:
        number = info.number
        self._seen[number] = (info.pid or 0, time.monotonic())
        if number in _HARMLESS or number == signal.SIGKILL or pid in self._dying:
            return False
        status = procfs.parse_status(procfs.try_read(f"/proc/{pid}/status") or b"")
        bit = 1 << number - 1
        if (procfs.signal_set(status, "SigCgt") or 0) & bit:
            asked = self._asks and number in ENDING and number not in self._signalled
            return asked and pid == self._tracer.child
        ignored = bool((procfs.signal_set(status, "SigIgn") or 0) & bit)
        if ignored and not (number in CRASHES and info.code > 0):  # a fault is not ignored
            return False
        if number in CRASHES:
            return "crash" in self._kinds
        return bool(self._kinds & {"exit", "signal"}) and pid == self._tracer.child

    def _noticed(self, notice: Notice) -> None:
        pid, tid = notice.pid, notice.tid
        if notice.what == "signal":
            self._on_signal(notice)
        elif notice.what == "exit":
            killed = notice.status & 0x7F == signal.SIGKILL
            wanted = "exit" in self._kinds and pid == self._ended.pid and pid not in self._dying
            if killed or not wanted or not tree.is_python(pid):
                self._tracer.let_go(pid)
                return
            look = self._look(pid, "exit", "as it ended", standing=True, whole=True)
            look.tid, look.stood = tid, True
            look.captured = lambda: self._call(lambda: self._tracer.let_go(pid))
            self._analyst.take(look)
        elif notice.what == "stopped" and pid == self._ended.pid and notice.signal in _JOB_CONTROL:
            self._stop_too()

    def _on_signal(self, notice: Notice) -> None:
        pid, tid, number = notice.pid, notice.tid, notice.signal
        status = procfs.parse_status(procfs.try_read(f"/proc/{pid}/status") or b"")
        fatal = not (procfs.signal_set(status, "SigCgt") or 0) >> number - 1 & 1
        crashes = number in CRASHES
        name = name_of(number)
        if not crashes and not tree.is_python(pid):
            self._tracer.go_on(tid, number)
            return
        why: Why = "crash" if crashes else "signal"
        text = f"as it got {name}"
        if fatal:
            text = f"as {name} ended {'it' if pid == self._ended.pid else 'that'}"
            look = self._look(pid, why, text, standing=True, whole=True)
            if crashes:
                look.signal, look.tid = notice.info, tid
                look.core = None if self.plan.core is None else self.plan.core(pid)
            self._dying.add(pid)
        else:
            self._signalled.add(number)
            look = self._look(pid, why, text)
        look.stood = True
        look.captured = lambda: self._call(lambda: self._tracer.go_on(tid, number))
        if pid == self._ended.pid:  # the others first: it may be about to end them
            self._look_at_all(why if why != "crash" else "signal", text, but=pid)
        self._analyst.take(look)

    # Looks no more. What stands gets what it stood for; signals are passed on as before.
    def _give_up(self, error: Exception) -> None:
        self._note(f"it was not looked at any more: internal error: {type(error).__name__}: {error}")
        self._kinds, self._asks = set(), False
        self._thresholds.triggers, self._tasks.triggers, self._every = [], [], None
        self._tracer.release()

    # -- looks --------------------------------------------------------------------------------------------

    def _look(self, pid: int, why: Why, text: str, standing: bool = False, whole: bool = False) -> Look:
        command = tree.command_of(pid)
        look = Look(pid, why, text, self._since(), command, standing=standing, whole=whole)
        look.done = lambda taken: self._call(lambda: self._done(taken))
        return look

    def _done(self, look: Look) -> None:
        if look.why == "check":
            self._next_check = time.monotonic() + max(1.0, _CHECK_COST * look.seconds)
            fired = self._tasks.fired(look.pid, Figures(tasks=_tasks_in(look)))
            if not fired:
                return
            look.why, look.text = "threshold", f"at {fired[0].text}"
        if look.why in ("sample", "every"):
            kept = self._samples.setdefault(look.pid, [])
            if look.snapshot is not None:
                kept.append(look)
                if len(kept) > _SAMPLES:
                    del kept[1]
                return
        self._ended.looks.append(look)

    def _processes(self) -> list[int]:
        pid = self._ended.pid
        return [p for p in [pid, *tree.below(pid)][:_MOST_LOOKED_AT] if tree.alive(p)]

    def _look_at_all(self, why: Why, text: str, whole: bool = False, but: int = 0) -> None:
        for pid in self._processes():
            if tree.is_python(pid) and pid not in self._dying and pid != but:
                self._analyst.take(self._look(pid, why, text, whole=whole))

    def _poll(self) -> None:
        now = time.monotonic()
        for pid in self._tracer.processes():
            self._tracer.seize_new(pid)
        if self._deadline is not None and now >= self._deadline:
            self._time_is_up(now)
        if self._thresholds.triggers:
            for pid in self._processes():
                for trigger in self._thresholds.fired(pid, tree.figures(pid)):
                    self._look_at_all("threshold", f"at {trigger.text} (process {pid})")
        if self._analyst.busy:
            return  # one after the other: what is late is left out
        self._reap()
        if self._tasks.triggers and now >= self._next_check:
            self._next_check = now + 1.0
            self._look_at_all("check", "")
        elif self._every is not None and now >= self._next_sample:
            self._next_sample = now + self._every
            self._look_at_all("every", f"every {self._every:g} s")
        elif self._every is None and "exit" in self._kinds and now >= self._next_sample:
            self._next_sample = now + min(max(self._since(), _FIRST), _LONGEST)
            self._look_at_all("sample", "while it ran")

    # -- signals to us ------------------------------------------------------------------------------------

    def _got(self, info: signal.struct_siginfo) -> None:
        number = info.si_signo
        if number in _JOB_CONTROL:
            self._stop_too()
            return
        if number in self._asked:
            self._look_at_all("asked", f"as {name_of(number)} asked for it")
            return
        if info.si_code == _SI_KERNEL:
            return  # of the terminal: the command has it, too
        if info.si_pid in (self._ended.pid, *tree.below(self._ended.pid)):
            return  # it sent it to its whole group
        sender, when = self._seen.get(number, (0, 0.0))
        if sender == info.si_pid and time.monotonic() - when < 0.1:
            return  # who sent it to the whole group reached the command, too
        pid = self._ended.pid
        if self._asks and number in ENDING and number not in self._signalled and not self._keeper_of(pid):
            self._signalled.add(number)  # not traced: then it is looked at before it is told
            if tree.is_python(pid):
                look = self._look(pid, "signal", f"before it got {name_of(number)}")
                look.captured = lambda: self._call(lambda: self._send(number))
                self._analyst.take(look)
                return
        self._send(number)

    def _send(self, number: int) -> None:
        if not self._over:
            with suppress(OSError):
                os.kill(self._ended.pid, number)

    # The shell waits for us: where the command stands, so do we.
    def _stop_too(self) -> None:
        end = time.monotonic() + 0.05
        stands = False
        while not stands and time.monotonic() < end:  # it got the same signal, and must be let have it first
            for notice in self._tracer.attend():
                if notice.what == "stopped":
                    stands = True
                else:
                    self._noticed(notice)
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGSTOP)
        # Here we go on.
        stat = procfs.parse_stat(procfs.try_read(f"/proc/{self._ended.pid}/stat") or b"")
        if stat is not None and stat.state in "Tt":
            self._send(signal.SIGCONT)

    def _time_is_up(self, now: float) -> None:
        if not self._ended.timed_out:
            self._ended.timed_out = True
            self._deadline = now + self.plan.grace
            self._stopping = True
            if "hang" in self._kinds:
                self._look_at_all("hang", "when its time was over", whole=True)
                if not self._analyst.busy:  # no Python: native threads may tell, too
                    pid = self._ended.pid
                    self._analyst.take(self._look(pid, "hang", "when its time was over", whole=True))
        elif not self._killed and not self._stopping:
            self._killed = True
            self._note(f"it was killed: it did not end within {self.plan.grace:g} s after SIGTERM")
            self._send(signal.SIGKILL)

    def _terminate(self) -> None:
        self._stopping = False
        self._signalled |= ENDING  # it was looked at just now
        self._dying.add(self._ended.pid)
        self._deadline = time.monotonic() + self.plan.grace
        self._send(signal.SIGTERM)
        self._send(signal.SIGCONT)  # a stopped one could not end

    # -- the end ------------------------------------------------------------------------------------------

    def _look_at_child(self) -> None:
        event = self._looker.look(self._ended.pid)
        if event is None or not event.gone or self._over:
            return
        self._over = True
        with suppress(ChildProcessError):
            self._ended.status = os.waitpid(self._ended.pid, 0)[1]
        if self._ended.status & 0x7F == signal.SIGKILL and not self._killed:
            self._note("it was ended by SIGKILL (by somebody, or for want of memory): nobody can look then")

    # Processes that lost their parent are our children now. The analyst starts none that outlive a look.
    def _reap(self) -> None:
        for pid in tree.children(os.getpid()):
            if pid != self._ended.pid and not tree.alive(pid):
                ptrace.reap(pid)

    def _find_orphans(self) -> None:
        end = time.monotonic() + min(self.plan.grace, _LATE)
        while True:
            self._reap()
            left = [pid for pid in tree.children(os.getpid()) if tree.alive(pid)]
            if not left or time.monotonic() >= end:
                break
            self._turn(0.05)
        for pid in left:
            self._ended.orphans.append(Orphan(pid, tree.command_of(pid), tree.own_session(pid)))

    def _note(self, text: str) -> None:
        if text not in self._ended.notes:
            self._ended.notes.append(text)


def _tasks_in(look: Look) -> int | None:
    if look.snapshot is None:
        return None
    return look.snapshot.count("task", "waiting", "ready", "running", "cancelling", "unknown")
