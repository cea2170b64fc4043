"""Whether a process can be captured, and if not, why: one sentence of what, one of what to do."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass

from diagtool.capture import procfs, ptrace
from diagtool.capture.errors import NoSuchTarget, NotPermitted, NotSupported, TargetError

_CAP_SYS_PTRACE = 19  # include/uapi/linux/capability.h
_INITIAL_USER_NAMESPACE = "user:[4026531837]"  # PROC_USER_INIT_INO in include/linux/proc_ns.h


def check(pid: int, ours: bool = False) -> None:
    """Refuse what can't be captured. Raises NoSuchTarget, NotPermitted or NotSupported.

    ``ours``: it may be traced by this process of ours already.
    """
    if not ptrace.supported():
        raise NotSupported(
            "live processes are read on Linux on x86-64 only",
            "Make a core there and read it with diagtool here.",
        )
    if pid == os.getpid():
        raise NotSupported(f"process {pid} is diagtool itself", "Give the pid of another process.")
    stat = procfs.parse_stat((procfs.try_read(f"/proc/{pid}/stat") if pid > 0 else None) or b"")
    if stat is None:
        raise NoSuchTarget(f"there is no process {pid}", "`ps -ef` lists the processes.")
    status = procfs.parse_status(procfs.try_read(f"/proc/{pid}/status") or b"")
    process = status.get("Tgid", str(pid))
    if process != str(pid):
        raise NoSuchTarget(
            f"{pid} is a thread of process {process}", f"Give the pid of its process, {process}."
        )
    if stat.flags & procfs.PF_KTHREAD:
        raise NotSupported(f"process {pid} is a kernel thread ({stat.comm})", "Give the pid of a program.")
    if stat.state in "ZX" and stat.threads > 1:
        # For a moment also while another thread does an exec.
        time.sleep(0.02)
        stat = procfs.parse_stat(procfs.try_read(f"/proc/{pid}/stat") or b"") or stat
    if stat.state in "ZX":
        raise _ended(pid, stat)
    if status.get("TracerPid", "0") not in (("0", str(os.getpid())) if ours else ("0",)):
        raise _traced(pid, status["TracerPid"])
    try:
        auxv = procfs.read_file(f"/proc/{pid}/auxv")
    except OSError as error:
        raise refused(pid, error) from None
    if procfs.looks_32_bit(auxv):
        raise NotSupported(f"process {pid} is a 32-bit program", "diagtool reads 64-bit programs only.")


def _ended(pid: int, stat: procfs.Stat) -> TargetError:
    if stat.threads > 1:
        return NotSupported(
            f"the main thread of process {pid} has ended while others run on",
            f"No debugger can read such a process; `kill -ABRT {pid}` ends it, and the kernel leaves a core "
            f"(`prlimit --pid {pid} --core=unlimited` before).",
        )
    return NoSuchTarget(
        f"process {pid} is a zombie: it has ended, and its parent has not taken notice",
        "Its memory is gone: look for its core, or at its parent.",
    )


def _traced(pid: int, tracer: str) -> NotPermitted:
    comm = (procfs.try_read(f"/proc/{tracer}/comm") or b"").decode("utf-8", "replace").strip()
    return NotPermitted(
        f"process {pid} is traced by process {tracer} ({comm or 'unknown'}) already",
        "A process has one tracer at a time: end that debugger, profiler or strace first.",
    )


def refused(pid: int, error: OSError) -> TargetError:
    """The error to raise when the kernel said no about a process."""
    if error.errno in (errno.ESRCH, errno.ENOENT):
        return NoSuchTarget(f"process {pid} ended while it was being looked at")
    access = Access.of(pid)
    reason, remedy = access.obstacle() or (os.strerror(error.errno or errno.EPERM).lower(), "")
    unknown = _MODULE if access.capable else f"`diagtool doctor {pid}` says what is missing."
    return NotPermitted(f"process {pid} may not be read: {reason}", remedy or unknown)


@dataclass(frozen=True, slots=True)
class Access:
    """What decides whether we may trace a process (ptrace(2), "Ptrace access mode checking")."""

    our_uid: int
    their_uids: tuple[int, ...]  # real, effective, saved; () where unknown
    capable: bool  # CAP_SYS_PTRACE is effective
    same_user_namespace: bool | None
    yama: int | None  # kernel.yama.ptrace_scope; None: no Yama
    descendant: bool  # we are an ancestor of it
    seccomp: int  # our own mode: 0 none, 2 filter
    dumpable: bool | None  # None: unknown

    @classmethod
    def of(cls, pid: int) -> Access:
        """Look it up. Never raises."""
        ours = procfs.parse_status(procfs.try_read("/proc/self/status") or b"")
        theirs = procfs.parse_status(procfs.try_read(f"/proc/{pid}/status") or b"")
        namespaces = [procfs.try_readlink(f"/proc/{who}/ns/user") for who in ("self", str(pid))]
        # Root of an inner namespace is refused even this look at processes outside of it.
        outside = namespaces[1] is None and namespaces[0] not in (None, _INITIAL_USER_NAMESPACE)
        scope = (procfs.try_read("/proc/sys/kernel/yama/ptrace_scope") or b"").strip()
        return cls(
            our_uid=os.geteuid(),
            their_uids=tuple(int(uid) for uid in theirs.get("Uid", "").split()[:3] if uid.isdigit()),
            capable=bool(int(ours.get("CapEff", "0"), 16) >> _CAP_SYS_PTRACE & 1),
            same_user_namespace=namespaces[0] == namespaces[1]
            if None not in namespaces
            else (False if outside else None),
            yama=int(scope) if scope.isdigit() else None,
            descendant=_is_ancestor(os.getpid(), pid),
            seccomp=int(ours.get("Seccomp", "0") or 0),
            dumpable=_dumpable(pid, theirs),
        )

    @property
    def same_user(self) -> bool:
        """All three of the target's user ids are ours."""
        return bool(self.their_uids) and set(self.their_uids) == {self.our_uid}

    def obstacle(self) -> tuple[str, str] | None:
        """(what is in the way, what to do about it); None when nothing is known to be."""
        if self.yama == 3:
            return (
                "Yama forbids all tracing (ptrace_scope 3)",
                "Only a reboot lifts it; read a core instead.",
            )
        if self.capable and self.same_user_namespace is not False:
            return _SECCOMP if self.seccomp == 2 else None
        if self.capable:
            return (
                "it is outside of our user namespace, where our CAP_SYS_PTRACE does not count",
                "Run as root of the host, outside of this container.",
            )
        if not self.same_user:
            owner = self.their_uids[0] if self.their_uids else "unknown"
            return (
                f"it belongs to uid {owner}, we are uid {self.our_uid} without CAP_SYS_PTRACE",
                "Run as root (sudo), as that user, or in a container started with --cap-add SYS_PTRACE.",
            )
        if self.yama is not None and self.yama >= 1 and not (self.yama == 1 and self.descendant):
            whom = "ancestors and root" if self.yama == 1 else "root"
            return (
                f"Yama allows it to {whom} only (ptrace_scope {self.yama})",
                "Run as root, or: sysctl kernel.yama.ptrace_scope=0",
            )
        if self.dumpable is False:
            return (
                "it is not dumpable (it changed its uid, or its program may not be read)",
                "Run as root, or with CAP_SYS_PTRACE.",
            )
        return _SECCOMP if self.seccomp == 2 else None


_MODULE = "A security module (AppArmor, SELinux, Landlock) seems to forbid it: read a core instead."
_SECCOMP = (
    "a seccomp filter, as containers have, forbids it",
    "Start our container with --cap-add SYS_PTRACE, or run diagtool on the host.",
)


def _is_ancestor(ancestor: int, pid: int) -> bool:
    for _ in range(256):  # deep enough for any process tree; a race can't make it endless
        if pid == ancestor:
            return True
        status = procfs.parse_status(procfs.try_read(f"/proc/{pid}/status") or b"")
        parent = status.get("PPid", "0")
        if not parent.isdigit() or parent == "0":
            return False
        pid = int(parent)
    return False


# The files of a process that is not dumpable belong to root (proc(5), "ownership of /proc/PID").
def _dumpable(pid: int, status: dict[str, str]) -> bool | None:
    uids = status.get("Uid", "").split()
    if len(uids) < 2 or uids[1] == "0":
        return None
    try:
        return os.stat(f"/proc/{pid}/environ").st_uid == int(uids[1])  # noqa: PTH116 (as everywhere here)
    except OSError:
        return None
