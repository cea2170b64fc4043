"""Child processes that still run, or ended and were not waited for."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Hashable

from diagtool.probes import ignore
from diagtool.probes.left import Left
from diagtool.probes.origins import Notes
from diagtool.probes.sites import Origin, spelled

#: Characters of a command line that are shown.
_SHOWN = 120


class Processes:
    """See :class:`diagtool.probes.left.Probe`. Keys are (pid, time of start in clock ticks)."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._known: set[tuple[int, str]] = set()

    def changed(self) -> bool:
        """There are children, or there were. Asks the kernel without waiting for one."""
        return bool(self._known) or _has_children()

    def adopt(self, pending: Collection[Hashable] = (), same: bool = False) -> None:
        """See Probe."""
        self._known = _children()

    def new(self) -> list[tuple[int, str]]:
        """See Probe."""
        return sorted(_children() - self._known)

    def describe(self, key: Hashable) -> Left | None:
        """See Probe."""
        assert isinstance(key, tuple)
        pid = key[0]
        found = _stat(pid)
        if found is None or found[1] != key[1]:
            return None
        state = found[0]
        words = _command(pid)
        shown = " ".join(words)[:_SHOWN] or _name(pid)
        left = Left(
            "processes",
            key,
            f"process {pid}: {shown}",
            "has ended, nobody waited for it" if state == "Z" else "runs",
            spelled(self._origin(words)),
            extra={"pid": pid},
        )
        if any(any(known in word for word in words) for known in ignore.PROCESSES):
            left.ignored = "of multiprocessing"
        return left

    def _origin(self, words: list[str]) -> Origin | None:
        for command, origin in reversed(self._notes.processes):
            if command and list(command) == words:
                return origin
        return next((o for c, o in reversed(self._notes.processes) if not c or not words), None)

    def close(self) -> None:
        """Nothing is held."""


def reap() -> None:
    """What the next start of a process would do: wait for those that ended and that nobody has any more."""
    for name in ("subprocess", "multiprocessing.process"):
        cleanup = getattr(sys.modules.get(name), "_cleanup", None)
        if cleanup is not None:
            cleanup()


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _children() -> set[tuple[int, str]]:
    if not _has_children():
        return set()
    pids: set[int] = set()
    try:
        for tid in os.listdir("/proc/self/task"):
            try:
                with open(f"/proc/self/task/{tid}/children") as file:
                    pids.update(map(int, file.read().split()))
            except FileNotFoundError:
                continue
    except OSError:
        return set()
    out = set()
    for pid in pids:
        found = _stat(pid)
        if found is not None:
            out.add((pid, found[1]))
    return out


# State and time of start. The name in brackets may hold anything, brackets too.
def _stat(pid: int) -> tuple[str, str] | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return fields[0].decode(), fields[19].decode()
    except (OSError, IndexError):
        return None


def _command(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return [w.decode("utf-8", "replace") for w in file.read(4096).split(b"\0") if w]
    except OSError:
        return []


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return f"[{file.read().strip()}]"
    except OSError:
        return "?"
