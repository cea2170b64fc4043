"""What /proc says of a process: parsers of its files, and readers that survive a process that goes away.

Every parser takes bytes and gives plain data; none of them raises on garbage (the process writes its own
comm, command line and environment). Facts: proc(5), Linux Documentation/filesystems/proc.rst, fs/proc/*.c.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

from diagtool.capture.model import CapturedThread, Mapping, ProcessInfo

PF_KTHREAD = 0x00200000  # include/linux/sched.h
AT_PHENT = 4  # include/uapi/linux/auxvec.h

_ELF64_PHENT = 56  # sizeof(Elf64_Phdr); 32 in a 32-bit process
_MAX_FILE = 64 << 20  # no file of /proc that is read whole is larger
_MAX_VALUE = 4096  # characters kept of one environment value
_READ_STEP = 1 << 16

_ENVIRON_OF_INTEREST = re.compile(
    r"PYTHON\w*|VIRTUAL_ENV|CONDA_(PREFIX|DEFAULT_ENV)|MALLOC_\w*|GLIBC_TUNABLES|LD_(PRELOAD|LIBRARY_PATH|AUDIT)"
    r"|OMP_\w+|OPENBLAS_NUM_THREADS|BLIS_NUM_THREADS|POLARS_MAX_THREADS|NUMBA_NUM_THREADS|MKL_\w+|KMP_\w+|NUMEXPR_\w+|CUDA_\w+|NVIDIA_VISIBLE_DEVICES|PYTORCH_\w+|TORCH_\w+"
    r"|TF_(ENABLE|FORCE|NUM|GPU|XLA|INTER|INTRA)\w*|JAX_\w+|XLA_\w+|NCCL_\w+|GO(GC|MEMLIMIT|MAXPROCS|DEBUG|TRACEBACK)|GEVENT_\w+|EVENTLET_\w+|DIAGTOOL_\w+|TZ"
    r"|LANG|LC_ALL"
)
_SECRET_NAME = re.compile(
    r"secret|token|passw|passphrase|credential|cookie|private|auth|_?key(_|$)", re.IGNORECASE
)
_USERINFO = re.compile(r"(://)[^/@\s]+@")

#: Lines of /proc/PID/status (fs/proc/task_mmu.c, task_mem).
_MEMORY = ("VmRSS", "VmHWM", "RssAnon", "RssFile", "RssShmem", "VmSwap")


def read_file(path: str, limit: int = _MAX_FILE) -> bytes:
    """A file of /proc, whole, up to ``limit`` bytes. Raises OSError (ENOENT, ESRCH, EACCES, EPERM …)."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return read_descriptor(fd, limit)
    finally:
        os.close(fd)


def read_descriptor(fd: int, limit: int = _MAX_FILE) -> bytes:
    """All of an open file of /proc from its beginning: each call makes the kernel write it anew."""
    parts: list[bytes] = []
    at = 0
    while at < limit:
        part = os.pread(fd, _READ_STEP, at)
        if not part:
            break
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def try_read(path: str) -> bytes | None:
    """Like :func:`read_file`, but None where it can't be read."""
    try:
        return read_file(path)
    except OSError:
        return None


def try_readlink(path: str) -> str | None:
    """Where a link of /proc points to; None where that can't be read."""
    try:
        return os.readlink(path)  # noqa: PTH115 (called for every descriptor)
    except OSError:
        return None


# -- parsers --------------------------------------------------------------------------------------------


def parse_maps(text: bytes, known: dict[bytes, Mapping] | None = None) -> list[Mapping]:
    """The lines of /proc/PID/maps, in their order; lines that make no sense are left out.

    ``known`` keeps what a line meant, so that a second reading costs only what has changed.

        7f12a000-7f12b000 r-xp 00001000 fe:00 1234    /usr/lib/libc.so.6
    """
    known = {} if known is None else known
    out: list[Mapping] = []
    for line in text.split(b"\n"):
        mapping = known.get(line)
        if mapping is None:
            mapping = _parse_map(line)
            if mapping is None:
                continue
            known[line] = mapping
        out.append(mapping)
    return out


def _parse_map(line: bytes) -> Mapping | None:
    fields = line.split(None, 5)
    if len(fields) < 5 or len(fields[1]) != 4:
        return None
    low, dash, high = fields[0].partition(b"-")
    try:
        start, end, offset, inode = int(low, 16), int(high, 16), int(fields[2], 16), int(fields[4])
    except ValueError:
        return None
    if not dash or end <= start or end > 1 << 64:
        return None
    # The kernel writes a newline in a name as \012 and nothing else in octal (seq_file_path, "\n").
    path = os.fsdecode(fields[5].replace(b"\\012", b"\n")) if len(fields) > 5 else ""
    return Mapping(start, end, fields[1].decode("ascii", "replace"), offset, inode, path)


@dataclass(frozen=True, slots=True)
class Stat:
    """What is used of /proc/PID/stat. Times in clock ticks; start time since boot."""

    comm: str
    state: str
    parent: int
    flags: int
    utime: int
    stime: int
    threads: int
    start_ticks: int


def parse_stat(text: bytes) -> Stat | None:
    """/proc/PID/stat: ``1 (a ) name) S 0 …``. The name may hold anything, so it ends at the last ``)``."""
    opening, closing = text.find(b"("), text.rfind(b")")
    rest = text[closing + 1 :].split()
    if opening < 0 or closing < opening or len(rest) < 20:
        return None
    try:
        return Stat(
            comm=text[opening + 1 : closing].decode("utf-8", "replace"),
            state=rest[0].decode("ascii", "replace")[:1],
            parent=int(rest[1]),
            flags=int(rest[6]),
            utime=int(rest[11]),
            stime=int(rest[12]),
            threads=int(rest[17]),
            start_ticks=int(rest[19]),
        )
    except ValueError:
        return None


def parse_status(text: bytes) -> dict[str, str]:
    """/proc/PID/status as name -> value, both as written."""
    out: dict[str, str] = {}
    for line in text.split(b"\n"):
        name, colon, value = line.partition(b":")
        if colon:
            out[name.decode("ascii", "replace")] = value.strip().decode("utf-8", "replace")
    return out


def parse_syscall(text: bytes) -> tuple[int, tuple[int, ...]] | None:
    """/proc/TID/syscall: (number, six arguments), or None for ``running`` and ``-1 sp pc`` (not in one)."""
    fields = text.split()
    if len(fields) < 7:
        return None
    try:
        number = int(fields[0])
        return None if number < 0 else (number, tuple(int(f, 16) for f in fields[1:7]))
    except ValueError:
        return None


def parse_auxv(data: bytes) -> dict[int, int]:
    """The 64-bit auxiliary vector: type -> value, up to AT_NULL."""
    out: dict[int, int] = {}
    for kind, value in struct.iter_unpack("<QQ", data[: len(data) & -16]):
        if kind == 0:
            break
        out[kind] = value
    return out


def looks_32_bit(auxv: bytes) -> bool:
    """Whether an auxiliary vector is that of a 32-bit process (its entries are two words of four bytes)."""
    if parse_auxv(auxv).get(AT_PHENT) == _ELF64_PHENT:
        return False
    entries = struct.iter_unpack("<II", auxv[: len(auxv) & -8])
    return any(kind == AT_PHENT and value == 32 for kind, value in entries)


def environ_of_interest(data: bytes) -> dict[str, str]:
    """Of /proc/PID/environ what bears on the program's behaviour; nothing whose name looks like a secret.

    Names and values that diagtool does not know to be harmless stay in the process: an allow-list, then a
    refusal of secret-looking names, then user names and passwords cut out of addresses.
    """
    out: dict[str, str] = {}
    for entry in data.split(b"\0"):
        raw_name, equals, raw_value = entry.partition(b"=")
        if not equals or len(raw_name) > 256:
            continue
        name = os.fsdecode(raw_name)
        if _ENVIRON_OF_INTEREST.fullmatch(name) and not _SECRET_NAME.search(name):
            out[name] = _USERINFO.sub(r"\1…@", os.fsdecode(raw_value[:_MAX_VALUE]))
    return out


# -- readers --------------------------------------------------------------------------------------------


def task_ids(pid: int) -> list[int]:
    """The threads of a process, as our pid namespace numbers them; [] when it is gone."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208 (ten times faster)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # ours to mend; it says nothing of the process
        return []


def read_thread(pid: int, tid: int) -> CapturedThread:
    """What /proc says of one thread now; fields that can't be read stay None."""
    base = f"/proc/{pid}/task/{tid}/"
    thread = CapturedThread(tid)
    stat = parse_stat(try_read(base + "stat") or b"")
    if stat is not None:
        thread.comm, thread.state = stat.comm, stat.state
        thread.cpu_seconds = (stat.utime + stat.stime) / os.sysconf("SC_CLK_TCK")
    schedstat = (try_read(base + "schedstat") or b"").split()
    if schedstat and schedstat[0].isdigit():
        thread.cpu_seconds = int(schedstat[0]) / 1e9  # the same time, in nanoseconds instead of ticks
    wchan = (try_read(base + "wchan") or b"").decode("ascii", "replace").strip("\0\n")
    thread.wchan = wchan if wchan not in ("", "0") else None
    call = parse_syscall(try_read(base + "syscall") or b"")
    if call is not None:
        thread.syscall, thread.syscall_args = call
    status = parse_status(try_read(base + "status") or b"")
    thread.ns_tid = innermost_pid(status)
    thread.blocked, thread.pending = signal_set(status, "SigBlk"), signal_set(status, "SigPnd") or 0
    return thread


def signal_set(status: dict[str, str], name: str) -> int | None:
    """A set of signals of /proc/PID/status as bits, signal 1 the lowest."""
    try:
        return int(status[name], 16)
    except (KeyError, ValueError):
        return None


def innermost_pid(status: dict[str, str]) -> int | None:
    """The id that a process or thread knows itself by: the last of NSpid."""
    ids = status.get("NSpid", "").split()
    return int(ids[-1]) if ids and ids[-1].isdigit() else None


def read_process(pid: int) -> ProcessInfo:
    """What /proc says of a process now; fields that can't be read stay empty."""
    base = f"/proc/{pid}/"
    status = parse_status(try_read(base + "status") or b"")
    stat = parse_stat(try_read(base + "stat") or b"")
    uid, gid = status.get("Uid", "").split(), status.get("Gid", "").split()
    cgroup = (try_read(base + "cgroup") or b"").decode("utf-8", "replace").strip()
    boot_id = (try_read("/proc/sys/kernel/random/boot_id") or b"").decode("ascii", "replace").strip()
    command = try_read(base + "cmdline") or b""
    return ProcessInfo(
        pid=pid,
        ns_pid=innermost_pid(status),
        exe=try_readlink(base + "exe"),
        cmdline=[os.fsdecode(part) for part in command[:-1].split(b"\0")] if command else [],
        environ=environ_of_interest(try_read(base + "environ") or b""),
        # The effective ids (the second column): what the process may do, not who started it.
        uid=int(uid[1]) if len(uid) > 1 else None,
        gid=int(gid[1]) if len(gid) > 1 else None,
        cgroup=cgroup or None,
        namespaces=_namespaces(pid),
        start_time=_boot_time() + stat.start_ticks / os.sysconf("SC_CLK_TCK") if stat else None,
        machine=os.uname().machine,
        boot_id=boot_id or None,
        host=os.uname().nodename,
        root=_other_root(pid),
        memory=memory_of(status),
        auxv=try_read(base + "auxv") or b"",
    )


def memory_of(status: dict[str, str]) -> dict[str, int]:
    """Bytes of memory by the names that /proc/PID/status has for them; names it lacks are left out."""
    values = {name: status.get(name, "").split() for name in _MEMORY}
    return {n: int(v[0]) << 10 for n, v in values.items() if len(v) == 2 and v[0].isdigit() and v[1] == "kB"}


def _namespaces(pid: int) -> dict[str, str]:
    out = {}
    for name in ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"):
        link = try_readlink(f"/proc/{pid}/ns/{name}")
        if link is not None:
            out[name] = link
    return out


# In a container the link says "/", as it does for ours: the directories are told apart by what they are.
def _other_root(pid: int) -> str | None:
    link = f"/proc/{pid}/root"
    try:
        return None if os.path.samefile(link, "/") else os.readlink(link)  # noqa: PTH115, PTH121
    except OSError:
        return None


def _boot_time() -> float:
    # /proc/stat's btime is rounded to seconds; this is not, and start times of a process stay comparable.
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def monotonic_shift(pid: int) -> float:
    """Seconds to add to our CLOCK_MONOTONIC to get that of the process (time namespaces shift it)."""
    return _timens_offset(str(pid)) - _timens_offset("self")


def _timens_offset(pid: str) -> float:
    for line in (try_read(f"/proc/{pid}/timens_offsets") or b"").split(b"\n"):
        fields = line.split()
        if len(fields) == 3 and fields[0] in (b"monotonic", b"1"):
            try:
                return int(fields[1]) + int(fields[2]) / 1e9
            except ValueError:
                return 0.0
    return 0.0


def open_mapped(pid: int, mapping: Mapping) -> Iterator[tuple[int, bool]]:
    """Files that may be behind a mapping: (descriptor, owned by the caller; whether proof is needed).

    The surest first. /proc/PID/map_files is the very file, replaced or deleted or not (it takes CAP_SYS_ADMIN
    or CAP_CHECKPOINT_RESTORE), and so is /proc/PID/exe. What the kernel writes as a path is how *we* would
    reach the file, if we can (d_path in fs/d_path.c): a chroot is part of it, another mount namespace is not,
    and there the way is /proc/PID/root.
    """
    if not mapping.path.startswith("/"):
        return
    base = f"/proc/{pid}"
    ways = [(f"{base}/map_files/{mapping.start:x}-{mapping.end:x}", False)]
    if mapping.path == try_readlink(f"{base}/exe"):
        ways.append((f"{base}/exe", False))
    inside = f"{base}/root{mapping.path}"
    if try_readlink(f"{base}/ns/mnt") == try_readlink("/proc/self/ns/mnt"):
        ways += [(mapping.path, False), (inside, True)]
    else:
        ways += [(inside, False), (mapping.path, True)]
    for way, proof in ways:
        fd = open_regular(way)
        if fd is not None:
            yield fd, proof


def open_regular(path: str) -> int | None:
    """Open a plain file for reading; None for what is none: a FIFO or a device that poses as one."""
    try:
        fd = os.open(os.fsencode(path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError):
        return None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None
