"""Open descriptors, with what they lead to and who owns them; those of GPUs apart.

The kernel's list is compared; only for what is left over are the objects of the process searched for its
owner, once for all of it.
"""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Collection, Hashable
from typing import Any

from diagtool.probes import ignore
from diagtool.probes.left import Left
from diagtool.probes.origins import Notes
from diagtool.probes.proc import Folder
from diagtool.probes.sites import Origin, by_import, spelled

#: Device nodes of accelerators: NVIDIA, DRM (AMD, Intel), AMD's compute, others (Documentation/accel).
GPU = ("/dev/nvidia", "/dev/dri/", "/dev/kfd", "/dev/accel")

#: What libraries in C open for themselves, without an owner in Python: event loops of their own.
_ANONYMOUS = ("anon_inode:[eventfd]", "anon_inode:[eventpoll]", "anon_inode:[timerfd]", "anon_inode:inotify")


class Descriptors:
    """See :class:`diagtool.probes.left.Probe`. Keys are (number, target)."""

    def __init__(self, notes: Notes, ours: Collection[Folder] = (), gpu: tuple[str, ...] = GPU) -> None:
        self._notes = notes
        self.folder = Folder("/proc/self/fd")
        self._ours = (*ours, self.folder)
        self._gpu = gpu
        self._counts = self.folder.size() > 0
        self._known: dict[int, str] = {}
        self._devices: set[str] = set()
        self._opens = self._size = self._libraries = 0
        self._owners: dict[int, tuple[str, str, Origin | None]] | None = None
        self._wanted: set[int] = set()
        self._inodes: dict[int, tuple[int, str]] = {}
        self._latest: dict[int, str] | None = None

    def changed(self) -> bool:
        """Something was opened, or more or less is open than was."""
        if self._notes.opens != self._opens:
            return True
        size = self.folder.size() if self._counts else len(self.folder.names())
        return size != self._size

    def adopt(self, pending: Collection[Hashable] = (), same: bool = False) -> None:
        """See Probe."""
        self._known = self._latest if same and self._latest is not None else self._now()
        self._latest = None
        self._devices = {t for t in self._known.values() if t.startswith(self._gpu)}
        self._opens = self._notes.opens
        self._size = self.folder.size() if self._counts else len(self.folder.names())
        self._libraries = self._notes.libraries
        self._owners = None

    def new(self) -> list[Hashable]:
        """See Probe."""
        self._owners = None
        known = self._known
        self._latest = self._now()
        found = [(fd, target) for fd, target in self._latest.items() if known.get(fd) != target]
        self._wanted = {fd for fd, _ in found}
        return list(found)

    def describe(self, key: Hashable) -> Left | None:
        """See Probe."""
        assert isinstance(key, tuple)
        fd, target = key
        if self._target(fd) != target:
            return None
        if target.startswith(self._gpu):
            left = Left("gpu", key, f"{target} (descriptor {fd})")
            if target not in self._devices:
                left.ignored = "the first use of a device"
            return left
        if self._owners is None:
            self._owners = _owners(self._wanted | {fd}, self._notes)
        owner, why, origin = self._owners.get(fd, ("", "", None))
        if origin is None and target.startswith("/"):
            origin = self._notes.opened.get(target.removesuffix(" (deleted)")) or self._named(target)
        what = _named_socket(fd, target) if target.startswith("socket:") else target
        name = f"fd {fd}: {what}"
        left = Left("fds", key, name, owner or "no Python object owns it", spelled(origin))
        left.owned = bool(owner)
        left.ignored = why or self._ignored(target, owner)
        if not left.ignored and by_import(origin):
            left.ignored = "opened by an import"
        return left

    def _ignored(self, target: str, owner: str) -> str:
        if ignore.matches(target, ignore.TARGETS):
            return f"leads to {target}"
        if not owner and target in _ANONYMOUS and self._notes.libraries != self._libraries:
            return "opened with a library"
        return ""

    # Programs open by relative names and through links; the kernel says where that led.
    def _named(self, target: str) -> Origin | None:
        base = os.path.basename(target)
        for path, origin in self._notes.opened.items():
            if path.endswith(base) and os.path.realpath(path) == target:
                return origin
        return None

    def _now(self) -> dict[int, str]:
        ours = {folder.fd for folder in self._ours}
        out = {}
        for name in self.folder.names():
            fd = int(name)
            if fd > 2 and fd not in ours:  # those of 0 to 2 change with who captures output
                target = self._target(fd)
                if target is not None:
                    out[fd] = target
        return out

    # Reading a link takes thrice as long as asking for the inode, which says whether it is still the same.
    def _target(self, fd: int) -> str | None:
        try:
            inode = os.fstat(fd).st_ino
        except OSError:
            return None
        known = self._inodes.get(fd)
        if known is not None and known[0] == inode:
            return known[1]
        target = self.folder.link(fd)
        if target is not None:
            self._inodes[fd] = (inode, target)
        return target

    def close(self) -> None:
        """Give the folder back."""
        self.folder.close()


# Of descriptors that an object of Python owns: what it is, why it is no leak, where it was opened.
def _owners(wanted: set[int], notes: Notes) -> dict[int, tuple[str, str, Origin | None]]:
    out: dict[int, tuple[str, str, Origin | None]] = {}
    socket, base = sys.modules.get("_socket"), sys.modules.get("asyncio.base_events")
    loops = []
    for thing in gc.get_objects():
        kind = type(thing)
        if issubclass(kind, io.FileIO):
            fd = _fileno(io.FileIO, thing)
            if fd in wanted:
                out[fd] = (_owner_name(thing), _kept(thing), None)
        elif socket is not None and issubclass(kind, socket.socket):
            fd = _fileno(socket.socket, thing)
            if fd in wanted:
                out[fd] = (_owner_name(thing), _kept(thing), _socket_origin(notes, thing))
        elif base is not None and issubclass(kind, base.BaseEventLoop):
            loops.append(thing)
    for loop in loops:
        why = "of the event loop that is set" if loop is _set_loop() else ""
        for part in ("_ssock", "_csock", "_selector"):
            try:
                fd = getattr(loop, part).fileno()
            except (AttributeError, ValueError, OSError):
                continue
            out[fd] = (f"{type(loop).__name__} that is not closed", why, _socket_origin(notes, loop._ssock))
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    server = sys.modules.get("multiprocessing.forkserver")
    for owner in (getattr(tracker, "_resource_tracker", None), getattr(server, "_forkserver", None)):
        for part in ("_fd", "_forkserver_alive_fd"):
            number = getattr(owner, part, None)
            if isinstance(number, int):
                out[number] = ("multiprocessing", "of multiprocessing, once for all", None)
    return out


def _kept(thing: Any) -> str:
    owner = ignore.singleton(thing)
    return f"kept by {owner}" if owner else ""


# Not the methods of subclasses, which are the program's.
def _fileno(kind: Any, thing: Any) -> int:
    try:
        return int(kind.fileno(thing))
    except (ValueError, OSError):
        return -1


def _socket_origin(notes: Notes, thing: Any) -> Origin | None:
    try:
        return notes.sockets.get(thing)
    except TypeError:  # no weak references to those of _socket itself
        return None


def _set_loop() -> Any:
    events = sys.modules.get("asyncio.events")
    policy = getattr(events, "_event_loop_policy", None)
    return getattr(getattr(policy, "_local", None), "_loop", None)


def _owner_name(thing: Any) -> str:
    kind = type(thing)
    name = f"{kind.__module__.lstrip('_')}.{kind.__qualname__}"
    mode = getattr(thing, "mode", None) if kind is io.FileIO else None
    return f"{name}, mode {mode}" if isinstance(mode, str) else name


def _named_socket(fd: int, target: str) -> str:
    import socket

    try:
        with socket.socket(fileno=os.dup(fd)) as copy:
            if copy.family == socket.AF_UNIX:
                path = copy.getsockname()
                return f"unix socket {path}" if path else target
            words = [f"{copy.family.name.removeprefix('AF_').lower()} socket {_address(copy.getsockname())}"]
            try:
                words.append(f"to {_address(copy.getpeername())}")
            except OSError:
                if copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    words.append("that listens")
            return " ".join(words)
    except OSError:
        return target


def _address(address: Any) -> str:
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) and len(address) > 1 else str(address)
