"""Open files: what every descriptor of a process is, and who owns it.

Table ``fds``, a row a descriptor; what is not known or does not apply is left out:

- ``fd``, ``kind`` (file, directory, socket, pipe, device, epoll, eventfd, timerfd, signalfd, inotify,
  fanotify, memfd, pidfd, io_uring, dmabuf, namespace, anonymous …), ``name`` (path, addresses),
  ``detail`` (in words);
- ``group``: what is alike, in words (``file /srv/log/#.log``, ``tcp to 10.0.0.1:5432``); ``alike``: the same
  for templates, where nobody owns it;
- ``access`` (r, w, rw), ``append``, ``position``, ``size``, ``allocated`` (bytes on disk), ``inode``,
  ``deleted``;
- ``protocol``, ``local``, ``remote``, ``state``, ``receive`` and ``send`` (bytes in its queues; of a
  listening one connections that wait, and how many may), ``idle`` (seconds since data came or went),
  ``accepted`` (the other side called), ``place`` (the other side, or the port that it called);
- ``ends``: descriptors of this process that are the other end of a pipe or a pair of sockets; ``peers``:
  other processes that have it, where somebody asked (:mod:`diagtool.inventory.peers`);
- ``value`` (of an eventfd), ``watches``, ``dead`` and ``dead_fds`` (of an epoll: members whose descriptor is
  closed, or another file now), ``pid`` and ``alive`` (of a pidfd);
- ``settled``: it was open before the stop and after it;
- ``owner``, ``owner_address``, ``owner_text``, ``also``: the object that owns it, as the tables of a runtime
  know (``fd_owners``); ``owned``: whether one does, left out where nobody looked or it may have come later;
  ``number``: whether any number that the runtime keeps has its value (``fd_numbers``); ``twin``: of a socket
  that nobody owns or keeps by this number, another one by which an object does.

Table ``fd_limits``, one row: ``open``, ``count`` (the same), ``highest``, ``soft``, ``hard``, ``share`` (of
soft), ``most`` (the largest group, in words), ``known`` (false: a core has no table of open files).

Everything is read while the process runs, and nothing of it is opened.
"""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from diagtool.capture.descriptors import Descriptor
from diagtool.capture.fdinfo import (
    FileFacts,
    Look,
    OpenFile,
    device_of,
    kind_of,
    kind_of_mode,
    open_file_limit,
)
from diagtool.capture.model import Capture
from diagtool.capture.procfs import parse_stat, try_read, try_readlink
from diagtool.capture.sockets import protocol_of
from diagtool.inventory.fdgroups import name_groups
from diagtool.snapshot.model import Snapshot

__all__ = ["add"]

Row = dict[str, Any]

_O_ACCMODE, _O_APPEND, _O_NONBLOCK = 0o3, 0o2000, 0o4000
_ACCESS = ("r", "w", "rw", None)
_NAMED = 16  # descriptors that one row names
_STDIO = 3
_TIMES = re.compile(r"\((\d{1,18}), (\d{1,9})\)")
_SIZED = ("file", "memfd", "dmabuf")


def add(capture: Capture, snapshot: Snapshot) -> None:
    """Add the tables ``fds`` and ``fd_limits``."""
    tables = snapshot.tables
    if capture.kind != "live":
        from diagtool.inventory.fdheap import rows_of_owners

        tables["fds"] = rows_of_owners(tables.get("fd_owners", ()))
        tables["fd_limits"] = [{"known": False}]
        return
    look = Look(capture.process.pid)
    seen: dict[int, tuple[OpenFile | None, FileFacts | None]] = {}
    rows = [_row(look, d, seen) for d in capture.descriptors]
    _pair_ends(rows)
    _judge_members(look, rows, seen)
    _accepted(rows)
    _own(rows, tables.get("fd_owners"))
    _numbers(rows, tables.get("fd_numbers", ()))
    _twins(rows)
    name_groups(rows)
    tables["fds"] = [{k: v for k, v in row.items() if v is not None} for row in rows]
    tables["fd_limits"] = [_limits(capture.process.pid, rows)]


def _limits(pid: int, rows: list[Row]) -> Row:
    soft, hard = open_file_limit(try_read(f"/proc/{pid}/limits") or b"")
    most = Counter(row["group"] for row in rows).most_common(1)
    return {
        "known": True,
        "open": len(rows),
        "count": len(rows),
        "highest": max((row["fd"] for row in rows), default=-1),
        "soft": soft,
        "hard": hard,
        "share": round(len(rows) / soft, 4) if soft else None,
        "most": f"{most[0][1]:,} of {most[0][0]}" if most else None,
    }


# --- one descriptor ----------------------------------------------------------------------------------------


def _row(
    look: Look, descriptor: Descriptor, seen: dict[int, tuple[OpenFile | None, FileFacts | None]]
) -> Row:
    fd, link = descriptor.number, descriptor.link
    kind, name = kind_of(link)
    if kind == "socket":
        return _socket(look.pid, descriptor, link)
    file = look.fdinfo(fd)
    facts = None if file is None or look.is_remote(file) else look.stat(fd)
    seen[fd] = file, facts
    row: Row = {"fd": fd, "kind": kind or "file", "name": name, "settled": descriptor.settled}
    if file is not None and file.flags is not None:
        row["access"] = _ACCESS[file.flags & _O_ACCMODE]
        row["append"] = True if file.flags & _O_APPEND else None
    if facts is not None:
        row["inode"] = facts.inode
        if not kind:
            row["kind"] = kind_of_mode(facts.mode)
        if row["kind"] in _SIZED:
            row["size"], row["allocated"] = facts.size, facts.allocated
            row["position"] = file.position if file is not None else None
    if not kind and link.endswith(" (deleted)") and (facts is None or facts.links == 0):
        row["deleted"] = True
        row["name"] = link.removesuffix(" (deleted)")
    if row["kind"] == "device":
        row["detail"] = device_of(link) or None
    if file is not None and (kind == "" or kind in _TELL):
        _TELL.get(kind, _tell_nothing)(row, file)
    if try_readlink(f"/proc/{look.pid}/fd/{fd}") != link:
        # Closed, or another one now: what was read may be of that.
        row = {"fd": fd, "kind": row["kind"], "name": name, "settled": False, "detail": "closed meanwhile"}
        seen[fd] = None, None
    return row


def _socket(pid: int, descriptor: Descriptor, link: str) -> Row:
    """A socket; all that is told of it was read with its link."""
    row: Row = {"fd": descriptor.number, "kind": "socket", "name": "", "settled": descriptor.settled}
    row["inode"] = int(link[len("socket:[") : -1])
    found = descriptor.socket
    if found is None:
        protocol = protocol_of(pid, descriptor.number)
        row["protocol"] = protocol or None
        row["state"] = "unconnected" if protocol in ("tcp", "udp") else None
        return row
    row["protocol"], row["local"], row["remote"] = found.protocol, found.local or None, found.remote or None
    row["state"], row["receive"], row["send"] = found.state or None, found.receive, found.send
    row["idle"], row["pair"] = found.idle, found.peer
    row["name"] = f"{found.local} -> {found.remote}" if found.remote else found.local
    return row


def _tell_nothing(row: Row, file: OpenFile) -> None:
    if "drm-driver" in file.facts:
        row["detail"] = file.facts["drm-driver"]


def _tell_eventfd(row: Row, file: OpenFile) -> None:
    text = file.facts.get("eventfd-count", "")
    try:
        row["value"] = int(text, 16)  # fs/eventfd.c: "%16llx"
    except ValueError:
        return
    row["detail"] = f"value {row['value']:,}"


def _tell_epoll(row: Row, file: OpenFile) -> None:
    row["watches"] = file.watches
    row["detail"] = f"watches {file.watches:,}"


def _tell_inotify(row: Row, file: OpenFile) -> None:
    row["watches"] = file.watches
    row["detail"] = f"{file.watches:,} watch{'' if file.watches == 1 else 'es'}"


def _tell_timerfd(row: Row, file: OpenFile) -> None:
    value, interval = (_seconds(file.facts.get(key, "")) for key in ("it_value", "it_interval"))
    if value is None:
        return
    row["detail"] = f"in {value:.3g} s" if value else "not armed"
    if value and interval:
        row["detail"] += f", then every {interval:.3g} s"


def _seconds(text: str) -> float | None:
    found = _TIMES.match(text)
    return int(found[1]) + int(found[2]) / 1e9 if found else None


def _tell_signalfd(row: Row, file: OpenFile) -> None:
    try:
        mask = int(file.facts.get("sigmask", ""), 16)
    except ValueError:
        return
    names = [_signal_name(n) for n in range(1, 65) if mask >> n - 1 & 1]
    row["detail"] = " ".join(names[:8]) + (f" … {len(names) - 8} more" if len(names) > 8 else "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _tell_pidfd(row: Row, file: OpenFile) -> None:
    try:
        pid = int(file.facts.get("pid", ""))
    except ValueError:
        return
    if pid > 0:
        stat = parse_stat(try_read(f"/proc/{pid}/stat") or b"")
        row["pid"] = pid
        row["alive"] = stat is not None and stat.state not in ("Z", "X")
        row["detail"] = f"pid {pid}" + ("" if row["alive"] else ", ended")
    elif pid == -1:
        row["alive"] = False
        row["detail"] = "of a process that has ended"


def _tell_uring(row: Row, file: OpenFile) -> None:
    words = [f"{file.facts[k]} {word}" for k, word in _URING if file.facts.get(k, "0").isdigit()]
    row["detail"] = ", ".join(w for w in words if not w.startswith("0 ")) or None


_URING = (("userfiles", "files"), ("userbufs", "buffers"))

_TELL: dict[str, Callable[[Row, OpenFile], None]] = {
    "eventfd": _tell_eventfd,
    "epoll": _tell_epoll,
    "inotify": _tell_inotify,
    "timerfd": _tell_timerfd,
    "signalfd": _tell_signalfd,
    "pidfd": _tell_pidfd,
    "io_uring": _tell_uring,
    "device": _tell_nothing,
}


# --- several together --------------------------------------------------------------------------------------


def _pair_ends(rows: list[Row]) -> None:
    """Other ends of pipes (one inode, the other access) and of pairs of sockets, in this process."""
    by_end: dict[tuple[str, int, str], list[int]] = {}
    for row in rows:
        if row["kind"] in ("pipe", "socket") and "inode" in row:
            access = row.get("access") or "" if row["kind"] == "pipe" else ""  # sockets have one end each
            for end in ("r", "w") if access == "rw" else (access,):
                ends = by_end.setdefault((row["kind"], row["inode"], end), [])
                if len(ends) < _NAMED:
                    ends.append(row["fd"])
    for row in rows:
        if row["kind"] == "pipe" and "inode" in row and row.get("access") in ("r", "w"):
            other = "w" if row["access"] == "r" else "r"
            row["ends"] = by_end.get(("pipe", row["inode"], other), [])
        elif row["kind"] == "socket" and row.get("pair"):
            row["ends"] = by_end.get(("socket", row["pair"], ""), [])


def _judge_members(
    look: Look, rows: list[Row], seen: dict[int, tuple[OpenFile | None, FileFacts | None]]
) -> None:
    """Members of epolls that are dead: their descriptor is closed, or is another file now.

    The kernel drops a member when the file is closed for good. It stays while anybody has the same file under
    another number or in another process; then its events still come, and nobody can take it out any more.
    """
    for row in rows:
        if row["kind"] != "epoll":
            continue
        file = seen[row["fd"]][0]
        first = _dead(look, file, seen)
        if not first:
            continue
        # Once more: both may have changed between the two looks.
        gone = {fd for fd, _ in first}
        now = {fd: facts for fd, facts in seen.items() if fd not in gone}
        dead = first & _dead(look, look.fdinfo(row["fd"]), now)
        if dead:
            row["dead"] = len(dead)
            row["dead_fds"] = sorted(fd for fd, _ in dead)[:_NAMED]
            row["detail"] += f", {len(dead):,} of them dead"


def _dead(
    look: Look, file: OpenFile | None, seen: dict[int, tuple[OpenFile | None, FileFacts | None]]
) -> set[tuple[int, int]]:
    out = set()
    for member in file.watched if file is not None else ():
        if member.inode is None:
            continue
        facts = seen[member.fd][1] if member.fd in seen else look.stat(member.fd)
        if facts is None and member.fd in seen:
            continue  # open, and not looked at
        if facts is None or (facts.inode, facts.device) != (member.inode, member.device):
            out.add((member.fd, member.inode))
    return out


def _accepted(rows: list[Row]) -> None:
    """Whether the other side of a connection called: its local port is one that the process listens on."""
    ports = {r["local"].rpartition(":")[2] for r in rows if r.get("state") == "LISTEN" and r.get("local")}
    for row in rows:
        if row.get("remote") and row.get("protocol") == "tcp":
            row["accepted"] = row["local"].rpartition(":")[2] in ports


def _own(rows: list[Row], owners: Iterable[Row] | None) -> None:
    """Join with what a runtime knows. An owner of another kind of file has closed this number long ago."""
    if owners is None:
        return
    by_fd: dict[int, list[Row]] = {}
    for owner in owners:
        by_fd.setdefault(owner["fd"], []).append(owner)
    for row in rows:
        fits = [o for o in by_fd.get(row["fd"], ()) if _fits(o.get("kind"), row["kind"])]
        if fits:
            first = fits[0]
            row["owner"], row["owner_address"] = first["type"], first["address"]
            row["owner_text"] = first.get("text")
            row["also"] = [o.get("text") or o["type"] for o in fits[1:_NAMED]] or None
            row["owned"] = True
        elif row["settled"] and row["fd"] >= _STDIO:
            row["owned"] = False


def _numbers(rows: list[Row], told: Iterable[Row]) -> None:
    """Whether a descriptor's number is the value of any int of the runtime, where that means anything."""
    for known in told:
        values = set(known["known"])
        for row in rows:
            if row["fd"] >= known["least"] and row["settled"]:
                row["number"] = row["fd"] in values


def _twins(rows: list[Row]) -> None:
    """Sockets that are open twice, by one number that an object owns and one that nobody does."""
    sockets = [r for r in rows if r["kind"] == "socket" and r.get("inode")]  # others have ended meanwhile
    owned = {r["inode"]: r["fd"] for r in sockets if r.get("owned")}
    for row in sockets:
        if row.get("owned") is False and not row.get("number"):
            row["twin"] = owned.get(row["inode"])


def _fits(wanted: str | None, kind: str) -> bool:
    if wanted in (None, "any"):
        return True
    return wanted == kind or (wanted == "file" and kind not in ("socket", "epoll"))
