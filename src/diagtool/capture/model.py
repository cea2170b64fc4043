"""The Capture: one process at one instant as bytes. Live or core, the reader can't tell."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from diagtool.capture.signals import Signals

if TYPE_CHECKING:
    from diagtool.capture.children import Children
    from diagtool.capture.descriptors import Descriptor
    from diagtool.capture.memory import AddressSpace
    from diagtool.capture.modules import Module

#: Order of ``user_regs_struct`` on x86-64 (sys/user.h), as NT_PRSTATUS and PTRACE_GETREGSET give it.
REGISTERS_X86_64 = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss "
    "fs_base gs_base ds es fs gs"
).split()


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps, or one entry of NT_FILE / PT_LOAD."""

    start: int
    end: int
    permissions: str  # "rw-p"
    offset: int  # of the file, in bytes
    inode: int  # 0 where unknown
    path: str  # "" for anonymous memory, "[heap]", "[vdso]" …

    @property
    def writable(self) -> bool:
        return "w" in self.permissions


@dataclass(slots=True)
class CapturedThread:
    """One kernel thread as it stood in the stop.

    ``registers`` maps the names of REGISTERS_X86_64 to values. ``syscall`` is the number of the system call
    the thread is blocked in (None when it runs user code), with its six arguments. ``wchan`` was read just
    before the stop. ``cpu_seconds`` is user + system time.
    """

    tid: int
    registers: dict[str, int] = field(default_factory=dict)
    comm: str | None = None
    state: str | None = None  # R, S, D, T …: before the stop
    syscall: int | None = None
    syscall_args: tuple[int, ...] = ()
    wchan: str | None = None
    cpu_seconds: float | None = None
    vectors: bytes = b""  # floating-point and vector state as NT_X86_XSTATE, where somebody asked for it
    ns_tid: int | None = None  # the tid as the target's own pid namespace sees it
    #: Signals that it blocks, and that wait for it alone, as bits: before the stop (capture/signals.py).
    blocked: int | None = None
    pending: int = 0


@dataclass(slots=True)
class ProcessInfo:
    """What is known of the process itself. Unknown fields are None or empty."""

    pid: int
    ns_pid: int | None = None  # as the process sees itself
    exe: str | None = None
    cmdline: list[str] = field(default_factory=list)
    environ: dict[str, str] = field(default_factory=dict)  # only names of interest, never secrets
    uid: int | None = None
    gid: int | None = None
    cgroup: str | None = None
    namespaces: dict[str, str] = field(default_factory=dict)
    start_time: float | None = None  # seconds since the epoch
    captured_at: float | None = None  # seconds since the epoch
    monotonic: float | None = None  # CLOCK_MONOTONIC at the capture, for timers
    machine: str = "x86_64"
    signal: int | None = None  # that killed it (cores)
    boot_id: str | None = None
    host: str | None = None  # the machine or container that its paths are of
    root: str | None = None  # its root directory, where that is not ours
    children: Children | None = None  # a core does not tell
    #: Bytes, of /proc/PID/status: VmRSS, VmHWM, RssAnon, RssFile, RssShmem, VmSwap; a core does not tell
    memory: dict[str, int] = field(default_factory=dict)
    auxv: bytes = b""  # the auxiliary vector (getauxval(3)), as the kernel gave it to the process


@dataclass(slots=True)
class Capture:
    """One process at one instant: threads with registers, memory, mapped modules."""

    kind: Literal["live", "core"]
    process: ProcessInfo
    threads: list[CapturedThread]
    mappings: list[Mapping]
    modules: list[Module]
    memory: AddressSpace
    pause_ms: float | None = None
    warnings: list[str] = field(default_factory=list)
    #: fd -> what it is ("socket:[123] 127.0.0.1:80 -> 127.0.0.1:5000 ESTABLISHED", a path …); empty for cores
    fds: dict[int, str] = field(default_factory=dict)
    #: The same in parts; empty for cores.
    descriptors: list[Descriptor] = field(default_factory=list)
    #: Ranges of writable memory that were not copied in the stop, for want of room: read when asked for.
    left_out: list[tuple[int, int]] = field(default_factory=list)
    #: Insides of big buffers that were not copied in the stop, on purpose: read when asked for.
    skipped: list[tuple[int, int]] = field(default_factory=list)
    #: What the image has: all but memory that a fork leaves out (MADV_DONTFORK).
    imaged: list[tuple[int, int]] = field(default_factory=list)
    #: Bytes of the process that were swapped out.
    swapped: int = 0
    #: Bytes of memory that a core cut off should have and has not.
    missing: int = 0
    #: Pages of writable memory that were read after the stop: they may have changed since.
    late_pages: int = 0
    #: Memory is read from a copy-on-write image of that instant: all of it is of one instant, and held until
    #: close().
    image: bool = False
    image_pid: int = 0  # the process that the image is, while it is there
    #: Signals: dispositions, masks (of a process just before the stop), and what ended it (cores).
    signals: Signals = field(default_factory=Signals)
    #: What one decoder found and another one asks for again, by its name.
    found: dict[str, object] = field(default_factory=dict, repr=False)
    _closers: list[object] = field(default_factory=list, repr=False)

    @property
    def of_one_instant(self) -> bool:
        """Whether all that was read so far is the state of one instant.

        Not so where pages were read after the stop, where a thread did not stop, or where a core is cut off.
        """
        stopped = self.kind == "core" or all(t.registers for t in self.threads)
        return stopped and not self.late_pages and not self.missing

    def __enter__(self) -> Capture:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of files and memory. The target was let go long before."""
        for closer in self._closers:
            close = getattr(closer, "close", None)
            if close is not None:
                close()
        self._closers.clear()
