"""Where the stack of each goroutine begins: where it parked, its system call, or its thread's registers.

A goroutine that runs has its registers in its thread (``m.procid`` is the tid). That thread may be on
another stack for a moment: on the scheduler's (g0), then ``sched`` holds what is on the goroutine's own; or
on the one for signals (gsignal), then the kernel's frame on that has the registers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.capture.model import CapturedThread
from diagtool.runtimes.golang.model import Goroutines, GoRuntime, Status
from diagtool.runtimes.golang.pclntab import Functions
from diagtool.runtimes.golang.unwind import Starts

__all__ = ["Owners", "owners", "registers_of", "saved_by_kernel", "starts_of"]

_SIGNAL_STACK = 64 << 10  # bytes of a signal stack that are searched; the runtime's has 32 KiB
#: Of struct rt_sigframe behind its return address: uc_flags, uc_link, uc_stack, then sigcontext
#: (arch/x86/include/uapi/asm/sigcontext.h): r8 to r15, di, si, bp, bx, dx, ax, cx, sp, ip.
_SAVED_SP, _SAVED_IP = 8 + 40 + 8 * 15, 8 + 40 + 8 * 16
_RETURNS = ("runtime.sigreturn__sigaction", "runtime.sigreturn")


class Owners:
    """Which thread each m is, and which thread a goroutine runs on or is locked to (0: none)."""

    def __init__(self, tids: Mapping[int, int], threads: Mapping[int, CapturedThread]) -> None:
        self.tids = dict(tids)
        self.threads = dict(threads)

    def of(self, machines: U64) -> NDArray[np.int64]:
        """The tid of each m, 0 where it is not known."""
        distinct, inverse = np.unique(machines, return_inverse=True)
        tids = np.array([self.tids.get(m, 0) for m in distinct.tolist()], np.int64)
        return tids[inverse] if len(distinct) else np.zeros(0, np.int64)


def owners(runtime: GoRuntime) -> Owners:
    """The threads of all ms that goroutines name."""
    table = runtime.goroutines
    machines = np.unique(np.concatenate([table.m, table.locked]))
    machines = machines[machines != 0]
    numbers, ok = runtime.load(machines, "m", "procid")
    by_number = {t.ns_tid or t.tid: t for t in runtime.capture.threads}
    tids = {}
    for m, number, fine in zip(machines.tolist(), numbers.tolist(), ok.tolist(), strict=True):
        if fine and number in by_number:
            tids[m] = by_number[number].tid
    return Owners(tids, {t.tid: t for t in runtime.capture.threads})


def registers_of(thread: CapturedThread) -> tuple[int, int, int]:
    """(pc, sp, link register) of a thread, zeros where it has no registers."""
    r = thread.registers
    if "rip" in r:
        return r["rip"], r["rsp"], 0
    return r.get("pc", 0), r.get("sp", 0), r.get("x30", 0)


def starts_of(
    runtime: GoRuntime, functions: Functions, who: Owners, table: Goroutines | None = None
) -> tuple[Starts, NDArray[np.bool_]]:
    """(where each goroutine's stack begins, which of them ran without saying where: no stack is known)."""
    g = runtime.goroutines if table is None else table
    in_call = g.syscall_sp != 0
    starts = Starts(
        pc=np.where(in_call, g.syscall_pc, g.pc),
        sp=np.where(in_call, g.syscall_sp, g.sp),
        lr=np.where(in_call, np.uint64(0), g.lr)
        if runtime.machine == "aarch64"
        else np.zeros(len(g), np.uint64),
        lo=g.lo,
        hi=g.hi,
        exact=np.zeros(len(g), np.bool_),
    )
    unknown = np.zeros(len(g), np.bool_)
    tids = who.of(g.m)
    for row in np.flatnonzero((g.status == Status.RUNNING) & ~in_call).tolist():
        thread = who.threads.get(int(tids[row]))
        found = _on_its_stack(runtime, functions, thread, int(g.lo[row]), int(g.hi[row])) if thread else None
        if found is not None:
            starts.pc[row], starts.sp[row], starts.lr[row] = found
            starts.exact[row] = True
        elif not g.lo[row] <= starts.sp[row] < g.hi[row]:
            starts.pc[row] = 0
            unknown[row] = True
    return starts, unknown


def _on_its_stack(
    runtime: GoRuntime, functions: Functions, thread: CapturedThread, lo: int, hi: int
) -> tuple[int, int, int] | None:
    pc, sp, link = registers_of(thread)
    if lo <= sp < hi:
        return pc, sp, link
    saved = saved_by_kernel(runtime, functions, sp) if runtime.machine == "x86_64" else None
    if saved is not None and lo <= saved[1] < hi:
        return saved[0], saved[1], 0
    return None


def saved_by_kernel(runtime: GoRuntime, functions: Functions, sp: int) -> tuple[int, int] | None:
    """(pc, sp) from the frame of a signal that lies further out on the stack that ``sp`` is on."""
    if not sp:
        return None
    size = _SIGNAL_STACK
    data = runtime.memory.try_read(sp & -8, size)
    while data is None and size > 512:
        size //= 2
        data = runtime.memory.try_read(sp & -8, size)
    if data is None:
        return None
    words = np.frombuffer(data, "<u8")
    for at in np.flatnonzero(functions.contains(words)).tolist():
        function = functions.at(int(words[at]))
        if function is None or function.name.removesuffix(".abi0") not in _RETURNS:
            continue
        if int(words[at]) != function.entry or 8 * at + _SAVED_IP + 8 > len(data):
            continue
        return int(words[at + _SAVED_IP // 8]), int(words[at + _SAVED_SP // 8])
    return None
