"""Which other processes have the other ends of pipes and of unix sockets: only where somebody asked.

Rows of the table ``fds`` get ``peers``: ``["4243 worker (fd 7, r)", …]``, at most a few. All open files of
all processes that may be looked at are listed for it, so it ends after a number of these, and of seconds.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from typing import Any

from diagtool.capture.model import Capture
from diagtool.capture.procfs import try_read, try_readlink
from diagtool.snapshot.model import Snapshot

__all__ = ["add"]

_LINK = re.compile(r"(pipe|socket):\[(\d{1,18})\]$")
_MOST_LINKS = 300_000
_SECONDS = 2.0
_NAMED = 4
_ACCESS = ("r", "w", "rw", "")


def add(capture: Capture, snapshot: Snapshot) -> None:
    """Add ``peers`` to the rows of pipes and unix sockets. A warning says when not all were looked at."""
    rows = snapshot.tables.get("fds", ())
    wanted: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        inode = row.get("inode") if row["kind"] == "pipe" else row.get("pair")
        if isinstance(inode, int) and row["kind"] in ("pipe", "socket"):
            wanted.setdefault((row["kind"], inode), []).append(row)
    if capture.kind != "live" or not wanted:
        return
    until = time.monotonic() + _SECONDS
    for number, (pid, fd, link) in enumerate(_links(capture.process.pid)):
        if number >= _MOST_LINKS or time.monotonic() > until:
            snapshot.warnings.append(
                "not all processes were searched for the other ends of pipes and sockets"
            )
            return
        match = _LINK.match(link)
        held = wanted.get((match[1], int(match[2]))) if match else None
        if not held:
            continue
        access = _access(pid, fd) if match and match[1] == "pipe" else ""
        text = f"{pid} {_name(pid)} (fd {fd}{f', {access}' if access else ''})"
        for row in held:
            peers = row.setdefault("peers", [])
            if len(peers) < _NAMED and access != row.get("access", "") and text not in peers:
                peers.append(text)


def _links(own: int) -> Iterator[tuple[int, int, str]]:
    for name in os.listdir("/proc"):  # noqa: PTH208 (many)
        if not name.isdigit() or int(name) in (own, os.getpid()):
            continue
        try:
            fds = os.listdir(f"/proc/{name}/fd")  # noqa: PTH208
        except OSError:
            continue  # gone, or not ours to see
        for fd in fds:
            link = try_readlink(f"/proc/{name}/fd/{fd}")
            if link is not None:
                yield int(name), int(fd), link


def _access(pid: int, fd: int) -> str:
    for line in (try_read(f"/proc/{pid}/fdinfo/{fd}") or b"").split(b"\n"):
        if line.startswith(b"flags:"):
            try:
                return _ACCESS[int(line[6:].strip(), 8) & 3]
            except ValueError:
                return ""
    return ""


def _name(pid: int) -> str:
    return (try_read(f"/proc/{pid}/comm") or b"?").decode("utf-8", "replace").strip()
