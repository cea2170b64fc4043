"""Open files of a process: what each descriptor is, sockets with their addresses.

    {0: "/dev/null", 5: "anon_inode:[eventpoll] watches 6 7", 6: "socket:[2107] 127.0.0.1:8080 LISTEN",
     7: "socket:[2110] 127.0.0.1:8080 -> 127.0.0.1:50110 ESTABLISHED", 8: "socket:[2111] unix /run/x.sock"}

Facts: proc(5). More about each: :mod:`diagtool.capture.fdinfo`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from diagtool.capture.procfs import try_read, try_readlink
from diagtool.capture.sockets import Socket, read_sockets

__all__ = ["MAX_DESCRIPTORS", "Descriptor", "read_descriptors", "read_links", "texts"]

MAX_DESCRIPTORS = 100_000  # descriptors that are looked at

_WATCHED = 12  # descriptors of one epoll that are named
_SOCKET = re.compile(r"socket:\[(\d{1,18})\]$")
_PIDFD = re.compile(r"(anon_inode:\[pidfd\]|pidfd:\[\d+\])$")
_EPOLL = "anon_inode:[eventpoll]"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One descriptor just after the stop. ``link``: what /proc says it is. ``settled``: before the stop it
    was the same, so that it was open in it, too. ``detail``: what an epoll watches, whose a pidfd is."""

    number: int
    link: str
    settled: bool = False
    socket: Socket | None = None
    detail: str = ""

    @property
    def text(self) -> str:
        """What it is, in one line."""
        return self.link + (f" {self.socket.text}" if self.socket is not None else self.detail)


def texts(descriptors: list[Descriptor]) -> dict[int, str]:
    """Descriptor -> what it is, in one line."""
    return {d.number: d.text for d in descriptors}


def read_links(pid: int) -> tuple[dict[int, str], list[str]]:
    """Descriptor -> its link in /proc, and warnings. Empty when the process is gone or may not be read."""
    try:
        numbers = sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 (many)
    except (OSError, ValueError) as error:
        return {}, [f"open files could not be read: {getattr(error, 'strerror', None) or error}"]
    warnings = []
    if len(numbers) > MAX_DESCRIPTORS:
        warnings.append(f"only the first {MAX_DESCRIPTORS:,} of {len(numbers):,} open files were read")
    out = {}
    for number in numbers[:MAX_DESCRIPTORS]:
        link = try_readlink(f"/proc/{pid}/fd/{number}")
        if link is not None:  # else closed meanwhile
            out[number] = link
    return out, warnings


def read_descriptors(pid: int, before: Mapping[int, str] | None = None) -> tuple[list[Descriptor], list[str]]:
    """The descriptors, and warnings. ``before``: the links as they were before the stop."""
    links, warnings = read_links(pid)
    inodes = {n: int(match[1]) for n, link in links.items() if (match := _SOCKET.match(link))}
    sockets = read_sockets(pid, set(inodes.values()))
    out = []
    for number, link in links.items():
        detail = ""
        if link == _EPOLL or _PIDFD.match(link):
            detail = _details(try_read(f"/proc/{pid}/fdinfo/{number}") or b"")
        settled = before is not None and before.get(number) == link
        out.append(Descriptor(number, link, settled, sockets.get(inodes.get(number, -1)), detail))
    return out, warnings


# What fdinfo adds: "tfd:  7 events: 19 …" for each watched descriptor of an epoll, "Pid: 42" of a pidfd.
def _details(fdinfo: bytes) -> str:
    watched = []
    for line in fdinfo.split(b"\n"):
        words = line.split()
        if len(words) < 2:
            continue
        if words[0] == b"tfd:":
            watched.append(words[1].decode("ascii", "replace"))
        elif words[0] == b"Pid:":
            return f" {words[1].decode('ascii', 'replace')}"
    if not watched:
        return ""
    more = f" … {len(watched) - _WATCHED:,} more" if len(watched) > _WATCHED else ""
    watched.sort(key=lambda fd: (len(fd), fd))  # numbers
    return " watches " + " ".join(watched[:_WATCHED]) + more
