"""What the kernel tells of one open file: its kind, how it was opened, and what is behind it.

    /proc/PID/fdinfo/7:  pos: 0, flags: 02000002, mnt_id: 16, ino: 1061, then lines of the kind's own:
    "eventfd-count: 3", "tfd: 8 events: 19 data: … pos:0 ino:2f sdev:8" of an epoll, "Pid: 42" of a pidfd …

Facts: proc_pid_fdinfo(5), fs/proc/fd.c and show_fdinfo() of each kind; statx(2). Nothing is opened, and no
file system that may not answer (NFS and others over a network) is asked anything.
"""

from __future__ import annotations

import ctypes
import os
import re
import stat
import struct
from dataclasses import dataclass, field

from diagtool.capture.procfs import try_read

__all__ = ["FileFacts", "Look", "OpenFile", "Watched", "kind_of", "open_file_limit", "parse_fdinfo"]

#: Links of /proc/PID/fd that name no path, and what they are. fs/anon_inodes.c and those who call it.
_KINDS = {
    "[eventfd]": "eventfd",
    "[eventpoll]": "epoll",
    "[timerfd]": "timerfd",
    "[signalfd]": "signalfd",
    "inotify": "inotify",
    "[fanotify]": "fanotify",
    "[pidfd]": "pidfd",
    "[io_uring]": "io_uring",
    "[userfaultfd]": "userfaultfd",
    "[perf_event]": "perf_event",
    "bpf-map": "bpf",
    "bpf-prog": "bpf",
    "bpf_link": "bpf",
}
_NUMBERED = re.compile(r"(\w+):\[(\d{1,18})\]$")
_WATCHED_MOST = 10_000  # descriptors of one epoll that are looked at
_LARGEST = 1 << 22  # bytes of one fdinfo
_ENCLOSED = re.compile(r"\S+:\s*\S+")

#: File systems of which nothing is asked: who serves them may not answer. (Types of /proc/PID/mountinfo.)
_REMOTE = re.compile(
    r"nfs4?|cifs|smb[23]?|ceph|fuse(\..*)?|9p|afs|lustre|glusterfs|gpfs|beegfs|ocfs2|gfs2|autofs"
)

_DEVICES = (
    ("/dev/dri/", "DRM"),
    ("/dev/nvidia", "NVIDIA"),
    ("/dev/kfd", "AMD GPU"),
    ("/dev/infiniband/", "InfiniBand"),
    ("/dev/video", "video"),
    ("/dev/snd/", "sound"),
    ("/dev/fuse", "FUSE"),
    ("/dev/kvm", "KVM"),
    ("/dev/net/tun", "TUN"),
    ("/dev/pts/", "terminal"),
    ("/dev/ptmx", "terminal"),
    ("/dev/tty", "terminal"),
)


@dataclass(frozen=True, slots=True)
class Watched:
    """One member of an epoll: its descriptor when it was added, events, and of which file it is."""

    fd: int
    events: int
    inode: int | None
    device: int | None  # as the kernel has it: major << 20 | minor


@dataclass(slots=True)
class OpenFile:
    """What fdinfo says. ``flags`` as of open(2); ``facts``: the kind's own lines, by lower-case name."""

    position: int | None = None
    flags: int | None = None
    mount: int | None = None
    inode: int | None = None
    facts: dict[str, str] = field(default_factory=dict)
    watched: list[Watched] = field(default_factory=list)
    watches: int = 0  # of an epoll, an inotify
    cut: bool = False  # not all members were read


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What stat says. Bytes; ``device`` as the kernel has it: major << 20 | minor."""

    mode: int
    inode: int
    device: int
    links: int
    size: int
    allocated: int


def kind_of(link: str) -> tuple[str, str]:
    """(kind, what it is called) of a link of /proc/PID/fd; the kind is "" where only stat tells.

    ("socket", "[2107]"), ("memfd", "frames"), ("epoll", ""), ("device", "/dev/null"), ("", "/srv/app.log").
    """
    if link.startswith("anon_inode:"):
        name = link[len("anon_inode:") :]
        return _KINDS.get(name, "anonymous"), "" if name in _KINDS else name.strip("[]")
    if link.startswith("/memfd:"):
        return "memfd", link[len("/memfd:") :].removesuffix(" (deleted)")
    if link.startswith("/dmabuf:"):
        return "dmabuf", link[len("/dmabuf:") :]
    if link.startswith("/dev/") and not link.startswith(("/dev/shm/", "/dev/mqueue/", "/dev/hugepages/")):
        return "device", link
    if link.startswith("/[aio]"):
        return "aio", ""
    numbered = _NUMBERED.match(link)
    if numbered:
        name = numbered[1]
        return (name, link) if name in ("socket", "pipe", "pidfd") else ("namespace", link)
    return "", link


def device_of(path: str) -> str:
    """Whose device a path below /dev is, in a word; "" where it says that itself."""
    return next((word for start, word in _DEVICES if path.startswith(start)), "")


def kind_of_mode(mode: int) -> str:
    """The kind of file of a mode of stat(2)."""
    for test, kind in (
        (stat.S_ISREG, "file"),
        (stat.S_ISDIR, "directory"),
        (stat.S_ISFIFO, "pipe"),
        (stat.S_ISCHR, "device"),
        (stat.S_ISBLK, "device"),
        (stat.S_ISSOCK, "socket"),
    ):
        if test(mode):
            return kind
    return "file"


def parse_fdinfo(text: bytes) -> OpenFile:
    """The lines of /proc/PID/fdinfo/FD; what makes no sense is left out."""
    out = OpenFile()
    for line in text.decode("utf-8", "replace").split("\n"):
        name, colon, value = line.partition(":")
        name, value = name.strip().lower(), value.strip()
        if name == "tfd" and colon:
            out.watches += 1
            if len(out.watched) < _WATCHED_MOST:
                watched = _member(value)
                if watched is not None:
                    out.watched.append(watched)
            else:
                out.cut = True
        elif name.startswith("inotify wd"):
            out.watches += 1
        elif name == "pos":
            out.position = _whole(value, 10)
        elif name == "flags":
            out.flags = _whole(value, 8)
        elif name == "mnt_id":
            out.mount = _whole(value, 10)
        elif name == "ino":
            out.inode = _whole(value, 10)
        elif colon and len(out.facts) < 64:
            out.facts[name[:64]] = value[:256]
    return out


# "       7 events:       19 data:                7  pos:0 ino:2f sdev:8", behind "tfd:"
def _member(value: str) -> Watched | None:
    fd, _, rest = value.partition(" ")
    number = _whole(fd, 10)
    if number is None:
        return None
    facts = dict(p.split(":", 1) for p in re.sub(r":\s+", ":", rest).split() if ":" in p)
    events = _whole(facts.get("events", ""), 16)
    return Watched(number, events or 0, _whole(facts.get("ino", ""), 16), _whole(facts.get("sdev", ""), 16))


def _whole(text: str, base: int) -> int | None:
    try:
        value = int(text[:32], base)
    except ValueError:
        return None
    return value if -(1 << 63) <= value < 1 << 63 else None


def open_file_limit(text: bytes) -> tuple[int | None, int | None]:
    """(soft, hard) of ``Max open files`` in /proc/PID/limits; None: unlimited or not told."""
    for line in text.split(b"\n"):
        if line.startswith(b"Max open files"):
            words = line[len(b"Max open files") :].split()
            soft, hard = (int(w) if w.isdigit() and len(w) < 19 else None for w in [*words, b"", b""][:2])
            return soft, hard
    return None, None


# --- looking ------------------------------------------------------------------------------------------------

_AT_FDCWD = -100
_AT_STATX_DONT_SYNC = 0x4000
_STATX_BASIC = 0x7FF
_STATX = struct.Struct("=IIQIIIHHQQQQ")  # mask … attributes_mask, include/uapi/linux/stat.h
_STATX_DEVICE = 136  # stx_dev_major, after three words of attributes, four times and stx_rdev


class Look:
    """Looks at open files of one process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._remote = _remote_mounts(try_read(f"/proc/{pid}/mountinfo") or b"")
        self._buffer = ctypes.create_string_buffer(256)
        self._statx = getattr(ctypes.CDLL(None), "statx", None)

    def fdinfo(self, fd: int) -> OpenFile | None:
        """What fdinfo says of a descriptor; None where it is closed or may not be read."""
        try:
            number = os.open(f"/proc/{self.pid}/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            text = os.read(number, 4096)
            if len(text) >= 2048:  # kinds with members; each read of /proc ends with a line
                parts, size = [text], len(text)
                while size < _LARGEST and (more := os.read(number, 1 << 16)):
                    parts.append(more)
                    size += len(more)
                text = b"".join(parts)
        except OSError:
            return None
        finally:
            os.close(number)
        return parse_fdinfo(text)

    def is_remote(self, file: OpenFile) -> bool:
        """Whether it lies on a file system that is asked nothing."""
        return file.mount in self._remote

    def stat(self, fd: int) -> FileFacts | None:
        """What stat says of it, without asking a server; None where it can't be read."""
        if self._statx is None:
            return None
        path = b"/proc/%d/fd/%d" % (self.pid, fd)
        if self._statx(_AT_FDCWD, path, _AT_STATX_DONT_SYNC, _STATX_BASIC, self._buffer):
            return None
        _, _, _, links, _, _, mode, _, inode, size, blocks, _ = _STATX.unpack_from(self._buffer)
        major, minor = struct.unpack_from("=II", self._buffer, _STATX_DEVICE)
        return FileFacts(mode, inode, major << 20 | minor, links, size, blocks * 512)


def _remote_mounts(text: bytes) -> frozenset[int]:
    """Numbers of the mounts whose file system is one of _REMOTE.

    36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    """
    out = set()
    for line in text.split(b"\n"):
        head, dash, rest = line.partition(b" - ")
        words = rest.split()
        first = head.split(None, 1)
        sound = dash and words and first and first[0].isdigit()
        if sound and _REMOTE.fullmatch(words[0].decode("ascii", "replace")):
            out.add(int(first[0]))
    return frozenset(out)
