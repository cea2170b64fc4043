"""The copy-on-write image of a process: a child that one injected clone() makes and that never runs.

All threads are stopped, one of them makes a clone() (inject.py), and all go on; the child stays in the stop
in which the kernel gives it to us, with the memory of that instant, for as long as our thread that traces it
lives: PTRACE_O_EXITKILL. Its only instructions are system calls: one takes the shared table of open files
from it, so that a socket that the target closes meanwhile is closed; some read what it has inherited of
signals (dispositions.py). What it would do if it ever ran is end.

It has exit signal 0: no SIGCHLD, and waits of the program pass over it (__WCLONE in wait(2)). What this can't
do is in docs/clone.md.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

from diagtool.capture import dispositions, inject, plan, procfs, ptrace, reap, room, steer
from diagtool.capture.errors import NoSuchTarget, Refused, TargetError
from diagtool.capture.gadgets import Gadgets, find_gadgets
from diagtool.capture.inject import CLONE, CLOSE_RANGE, EXIT_GROUP, WAIT4, Injection, Place
from diagtool.capture.model import REGISTERS_X86_64
from diagtool.capture.signals import Signals
from diagtool.capture.stop import Preparation, Stop, Stopped, carried_out, steps

__all__ = ["Image", "obstacle", "take_image"]

_CLONE_FILES = 0x400  # include/uapi/linux/sched.h
_CLOSE_RANGE_UNSHARE = 2
_ALL_FILES = 0xFFFFFFFF
_PATIENCE = 20.0  # seconds for a child to end
_LEAST_ROOM = 64 << 20  # bytes of room for what the target writes to while the image is there
_CALLS = (
    (CLONE, (_CLONE_FILES,)),
    (EXIT_GROUP, (0,)),
    (CLOSE_RANGE, (0, _ALL_FILES, _CLOSE_RANGE_UNSHARE)),
    (WAIT4, ()),
)
_ERRORS = {
    errno.EAGAIN: "it may have no more processes (RLIMIT_NPROC, or the pids limit of its control group)",
    errno.ENOMEM: "there is too little memory to be promised (vm.overcommit_memory), or for page tables",
    errno.EPERM: "a security module or filter forbids it to clone itself",
}


@dataclass(slots=True)
class Image:
    """The child. ``pid`` is its number for us, ``inner`` as the target sees it."""

    target: int
    pid: int
    inner: int
    gadgets: Gadgets
    last_resort: bool
    signals: Signals = field(default_factory=Signals)  # that it has inherited
    _release: threading.Event = field(default_factory=threading.Event, repr=False)
    _gone: threading.Event = field(default_factory=threading.Event, repr=False)

    def close(self) -> None:
        """End the child and have the target reap it. Does nothing the second time."""
        if self._release.is_set():
            return
        atexit.unregister(self.close)
        self._release.set()
        self._gone.wait(_PATIENCE)
        reap.in_target(self.target, [self.inner], self.gadgets, self.last_resort)


# -- before the stop ------------------------------------------------------------------------------------


def obstacle(pid: int) -> str | None:
    """What can be known before the stop to be in the way of an image; None when nothing is."""
    if not _has_close_range():
        return "the kernel is too old (Linux 5.9 is needed)"
    for name in _names_of_files(pid):
        if name == "anon_inode:[userfaultfd]":
            return "it handles page faults itself (userfaultfd)"
    resident = room.resident_bytes(pid)[0]
    # Page tables, and a quarter of the memory written to while the image is there.
    need = resident // 512 + max(_LEAST_ROOM, resident // 4)
    left = room.room_of(pid)
    if left < need:
        return (
            f"it is near the limit of its memory: {left >> 20} MiB are left, {need >> 20} MiB may be needed"
        )
    return None


def _has_close_range() -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(CLOSE_RANGE, _ALL_FILES, _ALL_FILES, 0)) == 0


def _names_of_files(pid: int) -> list[str]:
    with suppress(OSError):
        names = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208 (thousands)
        return [procfs.try_readlink(f"/proc/{pid}/fd/{name}") or "" for name in names]
    return []


# -- the stop -------------------------------------------------------------------------------------------


def take_image(
    prepared: Preparation, *, last_resort: bool = False, vectors: bool = False
) -> tuple[Stopped, Image, dict[int, bytes]]:
    """Stop the process, make the image, let it go: (registers and mappings, image, vector state by thread).

    ``last_resort`` allows a thread whose system call may return early if we are killed in these milliseconds.
    ``vectors``: read NT_X86_XSTATE of all threads, too. Raises Refused, and what stop_and_copy() raises.
    """
    gadgets = find_gadgets(prepared.order.mappings, prepared.reader)
    if gadgets is None:
        raise Refused("it has no code that returns from a signal handler")
    stop = _ImageStop(prepared, gadgets, last_resort, vectors)
    try:
        stopped = carried_out(stop)
    except BaseException:
        stop.release.set()
        if stop.child and stop.gone.wait(_PATIENCE):
            reap.in_target(prepared.pid, reap.leftovers(prepared.pid), gadgets, last_resort)
        raise
    image = Image(
        *(prepared.pid, stop.child, stop.inner, gadgets, last_resort),
        *(stop.signals, stop.release, stop.gone),
    )
    atexit.register(image.close)
    # Should memory become scarce, this is what the kernel ends first.
    with suppress(OSError):
        fd = os.open(f"/proc/{image.pid}/oom_score_adj", os.O_WRONLY)
        try:
            os.write(fd, b"1000")
        finally:
            os.close(fd)
    return stopped, image, stop.vectors


class _ImageStop(Stop):
    """Holds the threads as every stop does, and then, in the same thread of ours, the child."""

    def __init__(self, prepared: Preparation, gadgets: Gadgets, last_resort: bool, vectors: bool) -> None:
        super().__init__(prepared)
        self.child = 0
        self.inner = 0
        self.vectors: dict[int, bytes] = {}
        self.signals = Signals()
        self.release = threading.Event()
        self.gone = threading.Event()
        self._gadgets = gadgets
        self._last_resort = last_resort
        self._wants_vectors = vectors
        self._used: Place | None = None

    def run(self) -> None:
        """The stop, and then the vigil: only the end of this thread, or its word, ends the child."""
        try:
            super().run()
            if self.child and self.error is None:
                self.release.wait()
        finally:
            if self.child:
                _end(self.child, self.hold.looker)
            self.gone.set()

    def take(self) -> Stopped:
        """Make the image."""
        marks = [("hold", time.perf_counter())]
        at, monotonic = time.time(), time.monotonic()
        hold = self.hold
        tids = hold.stopped
        if not tids:
            raise hold.no_thread()
        if hold.pending:
            # They are let go by the end of this thread only, which must live as long as the image.
            raise Refused(f"{len(hold.pending)} of its threads sleep in the kernel and can't be stopped")
        order = self.order_now()
        if self._wants_vectors:
            self.vectors = {tid: steer.get_xstate(tid) for tid in tids}
        if not self._gadgets.still_there(self.prepared.reader):
            raise Refused("its code changed just now")
        place = self._used = inject.find_place(hold, order, self._gadgets, _CALLS, self._last_resort)
        values = hold.registers[[hold.rows[tid] for tid in tids]].tolist()
        marks.append(("prepare", time.perf_counter()))
        injection = Injection(hold.pid, place, self._gadgets, hold.looker)
        call = (CLONE, (_CLONE_FILES, place.frames.child))
        result = injection.make(call, lambda child: self._keep(child, marks))
        hold.let_go()
        ended = time.perf_counter()
        marks.append(("let go", ended))
        if result < 0:
            raise Refused(_ERRORS.get(-result, os.strerror(-result).lower()))
        self.inner = result
        self._take_files()
        self._ask_for_signals(place)
        return Stopped(
            tids=tids,
            registers={tid: tuple(words) for tid, words in zip(tids, values, strict=True)},
            mappings=order.mappings,
            layout=plan.nothing(),
            lost=[],
            unstopped=[],
            at=at,
            monotonic=monotonic,
            pause_seconds=ended - hold.began,
            steps_ms=steps(hold.began, marks),
        )

    # The thread stands in the clone: the memory is the child's from here on, and the other threads may run.
    def _keep(self, child: int, marks: list[tuple[str, float]]) -> None:
        marks.append(("clone", time.perf_counter()))
        self.child = child
        inject.wait_for_stop(self.hold.looker, child)
        steer.set_options(child, steer.EXITKILL | steer.TRACESYSGOOD)
        signals, used = self.hold.signals, self._used
        for tid in [tid for tid in signals if used is None or tid != used.tid]:
            ptrace.detach(tid, signals.pop(tid))

    # The child's own: an empty table of files, in place of the one that it shares with the target.
    def _take_files(self) -> None:
        result = self._call(CLOSE_RANGE, (0, _ALL_FILES, _CLOSE_RANGE_UNSHARE))
        if result:
            raise Refused(f"its files stay shared with the image: {os.strerror(-result).lower()}")

    # Nobody waits for it: the target runs. An image that is ended meanwhile is missed where it is read.
    def _ask_for_signals(self, place: Place) -> None:
        room = place.frames.own  # what the target needs there the child does not
        try:
            self.signals = dispositions.ask_image(self.child, place.tid, self._gadgets, room, self._call)
        except (NoSuchTarget, OSError) as error:
            self.signals.why_not = f"its image could not be asked ({error})"

    # One system call of the child, from its begin to its end: it never gets any further.
    def _call(self, number: int, arguments: tuple[int, ...]) -> int:
        words = dict(zip(REGISTERS_X86_64, steer.get_registers(self.child), strict=True))
        words.update(rip=self._gadgets.call, rax=number, orig_rax=(1 << 64) - 1)
        words.update(zip(("rdi", "rsi", "rdx", "r10"), (*arguments, 0, 0, 0, 0)[:4], strict=True))
        steer.set_registers(self.child, list(words.values()))
        stops = 0
        while stops < 2:
            steer.to_syscall(self.child)
            event = inject.wait_for_stop(self.hold.looker, self.child)
            if event.status == steer.SYSCALL_STOP:
                stops += 1
            elif event.signal:
                raise TargetError(f"the image met signal {event.signal}")
        result = steer.get_registers(self.child)[REGISTERS_X86_64.index("rax")]
        return result - (1 << 64) if result >> 63 else result


# Kill the child and take notice of its end, as its tracer. It stays a zombie until the target takes notice.
def _end(child: int, looker: ptrace.Looker) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    while True:
        event = looker.look(child)
        if event is not None and event.gone:
            ptrace.reap(child)
            return
        time.sleep(1e-4)
