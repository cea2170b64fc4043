"""What stands between this user and a process: capabilities, Yama, containers, and what would help.

Nothing is stopped for this. The kernel's own decision (ptrace_may_access in kernel/ptrace.c, the security
modules included) is asked for by opening /proc/PID/mem, which needs the right to attach but does not attach.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diagtool.capture import access, procfs, ptrace
from diagtool.capture.errors import TargetError
from diagtool.capture.room import resident_bytes

#: CAP_SYS_PTRACE, include/uapi/linux/capability.h.
_CAP_SYS_PTRACE = 19

_MAX_COPY = 512 << 20  # bytes copied in the stop: MAX_COPY of live.py, which would take numpy with it

_YAMA = "/proc/sys/kernel/yama/ptrace_scope"
_CORE_PATTERN = "/proc/sys/kernel/core_pattern"

#: Values of kernel.yama.ptrace_scope, Documentation/admin-guide/LSM/Yama.rst.
_SCOPES = {
    "0": "any process of the same user",
    "1": "own children only, unless with CAP_SYS_PTRACE",
    "2": "those with CAP_SYS_PTRACE",
    "3": "nobody, until the next boot",
}

_GAIN = (
    "Use sudo; in Docker --cap-add=SYS_PTRACE, in Kubernetes securityContext.capabilities.add: [SYS_PTRACE]."
)
_YAMA_HINTS = {
    "1": f"{_GAIN} Or, as root: sysctl kernel.yama.ptrace_scope=0",
    "3": "It can't be changed before a reboot; read a core instead.",
}

_PYTHON = re.compile(r"^(?:lib)?python(\d\.\d+t?)(?:\.so[.\d]*)?$")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. ``ok`` None: a fact without judgement. ``hint`` says what to do about it."""

    name: str
    ok: bool | None
    what: str
    hint: str = ""


def examine(pid: int | None = None) -> list[Check]:
    """Everything worth knowing before a snapshot, of this machine and, if given, of one process.

    The last check whose ``ok`` is not None answers the question itself: can it be captured.
    """
    return list(_checks(pid))


def _checks(pid: int | None) -> Iterator[Check]:
    name = os.uname()
    yield Check(
        "machine",
        ptrace.supported(),
        f"{name.sysname} {name.release}, {name.machine}, Python {sys.version.split()[0]}",
        "" if ptrace.supported() else "Live processes are read on Linux on x86-64; cores anywhere.",
    )
    status = procfs.parse_status(procfs.try_read("/proc/self/status") or b"")
    capable = bool(_hex(status.get("CapEff", "0")) >> _CAP_SYS_PTRACE & 1)
    yield Check("user", None, f"uid {os.geteuid()}, {'with' if capable else 'without'} CAP_SYS_PTRACE")
    scope = (procfs.try_read(_YAMA) or b"").decode("ascii", "replace").strip()
    if scope:
        allowed = scope == "0" or (capable and scope in ("1", "2"))
        what = f"ptrace_scope is {scope}: tracing is for {_SCOPES.get(scope, 'an unknown set')}"
        yield Check("yama", allowed, what, "" if allowed else _YAMA_HINTS.get(scope, _GAIN))
    container = _container()
    if container:
        yield Check(
            "container",
            None,
            f"runs in {container}: it sees the processes of its own pid namespace only",
            "For another container: docker run --pid=container:NAME --cap-add=SYS_PTRACE, or kubectl debug "
            "--target=NAME --profile=sysadmin.",
        )
    tracing = _ptrace_works()
    yield tracing
    yield _cores()
    gdb = shutil.which("gdb")
    yield Check(
        "gdb",
        None,
        f"at {gdb}; gcore takes cores with it" if gdb else "not found: not needed by diagtool",
        "" if gdb else "For cores of processes that run (gcore), install the package gdb.",
    )
    if pid is not None:
        yield from _process(pid, tracing)


def _process(pid: int, tracing: Check) -> Iterator[Check]:
    try:
        access.check(pid)
    except TargetError as error:
        yield _refusal(f"process {pid}", error)
        return
    process = procfs.read_process(pid)
    yield Check(f"process {pid}", None, f"{process.exe or 'unknown executable'}, uid {process.uid}")
    if process.ns_pid not in (None, pid):
        yield Check("namespace", None, f"in another pid namespace, where it is process {process.ns_pid}")
    version = _python_of(pid)
    yield Check(
        "python",
        None,
        f"CPython {version}" if version else "no libpython or python executable is mapped by that name",
        "" if version else "A program that embeds or renames Python may still be read; try it.",
    )
    yield _size(pid)
    try:
        os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        yield _refusal("access", access.refused(pid, error))
        return
    if tracing.ok:
        yield Check("access", True, f"process {pid} can be captured")
    else:
        yield Check("access", False, f"process {pid} can't be captured: no process can be traced here")


def _size(pid: int) -> Check:
    # About what the stop takes on a machine of 2020: 0.2 ms a MiB copied, 30 us a thread.
    threads = len(procfs.task_ids(pid))
    anonymous, swapped = resident_bytes(pid)
    copied = min(anonymous, _MAX_COPY)
    milliseconds = 1 + copied / (1 << 20) * 0.2 + threads * 0.03
    what = f"{anonymous >> 20:,} MiB of its own, {threads:,} thread{'s' * (threads != 1)}: "
    what += f"a stop of about {milliseconds:,.0f} ms"
    if copied < anonymous:
        what += f" that copies the first {copied >> 20:,} MiB"
    if swapped:
        what += f"; {swapped >> 20:,} MiB are swapped out"
    return Check("size", None, what)


def _refusal(name: str, error: TargetError) -> Check:
    # Where the kernel said no and nothing known is in the way, the hint is to ask us: guesses are left.
    hint = _GAIN if "diagtool doctor" in error.hint else error.hint
    return Check(name, False, str(error), hint)


def _ptrace_works() -> Check:
    # On a child of our own, which Yama always allows: what is refused now is refused by a seccomp filter
    # (containers) or by the kernel's configuration.
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        code = ptrace.seize(child.pid) if ptrace.supported() else errno.ENOSYS
    finally:
        child.kill()  # a traced process dies of it, too, and the trace ends with it
        child.communicate()
    if not code:
        return Check("ptrace", True, "works on a child of our own")
    return Check(
        "ptrace",
        False,
        f"is refused even on a child of our own: {os.strerror(code)}",
        "A seccomp filter or a security module forbids it: docker run --cap-add=SYS_PTRACE (or "
        "--security-opt seccomp=unconfined), or run diagtool on the host.",
    )


def _cores() -> Check:
    import resource

    pattern = (procfs.try_read(_CORE_PATTERN) or b"").decode("utf-8", "replace").strip()
    soft, _ = resource.getrlimit(resource.RLIMIT_CORE)
    limit = (
        "unlimited" if soft == resource.RLIM_INFINITY else "none" if soft == 0 else f"up to {soft:,} bytes"
    )
    hint = ""
    if pattern.startswith("|") and "systemd-coredump" in pattern:
        hint = "`coredumpctl dump PID -o core` takes one out."
    elif pattern.startswith("|"):
        hint = "A program takes the cores of this machine; see its documentation for where it puts them."
    elif soft == 0:
        hint = "`ulimit -c unlimited` before the start of a program lets it leave one."
    return Check("cores", None, f"go to {pattern or 'an unknown place'}; limit of this shell: {limit}", hint)


def _container() -> str:
    if Path("/.dockerenv").exists():
        return "a Docker container"
    if Path("/run/.containerenv").exists():
        return "a Podman container"
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return "a Kubernetes pod"
    return ""


def _python_of(pid: int) -> str:
    maps = procfs.parse_maps(procfs.try_read(f"/proc/{pid}/maps") or b"")
    for path in dict.fromkeys(m.path for m in maps):
        match = _PYTHON.match(path.rpartition("/")[2])
        if match:
            return match[1]
    return ""


def _hex(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return 0
