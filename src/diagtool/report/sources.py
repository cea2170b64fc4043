"""Source lines of the target's code, for showing beside a frame. Read only when certain to be harmless."""

from __future__ import annotations

import os
import stat

from diagtool.paths import path_under
from diagtool.report.text import clean
from diagtool.snapshot.model import Frame, Target

#: Longer files are no source code.
_MAX_FILE = 4 << 20

#: A report shows a few hundred frames; a hostile core could name any number of files.
_MAX_FILES = 500

#: The start of a process is known to about a second (boot time plus clock ticks).
_SLACK_SECONDS = 2.0


class Sources:
    """Looks up lines of Python files named by frames.

    ``root`` is where the target's paths start: the sysroot, or /proc/PID/root of a live target. Links are
    followed as the target would. Only plain ``.py`` files are opened (a frame's file name comes from the
    target and could be any), no larger than 4 MiB, and only when they were not changed since the process
    started: then the line may be another one. Without a root nothing is looked up for a target of another
    host or with another root directory than ours.
    """

    def __init__(self, target: Target | None = None, root: str | None = None) -> None:
        self._root = root
        self._not_after: float | None = None
        self._elsewhere = False
        if target is not None:
            known = target.start_time or target.captured_at
            self._not_after = None if known is None else known + _SLACK_SECONDS
            away = target.host not in (None, os.uname().nodename) or bool(target.details.get("root"))
            self._elsewhere = root is None and away
        self._files: dict[str, list[bytes]] = {}

    def line(self, frame: Frame) -> str:
        """The text of the frame's line, stripped and clean, or ""."""
        if frame.line is None or frame.line < 1 or not frame.file.endswith(".py"):
            return ""
        if self._elsewhere or not frame.file.startswith("/"):
            return ""
        lines = self._lines(frame.file)
        if frame.line > len(lines):
            return ""
        return clean(lines[frame.line - 1].decode("utf-8", "replace").strip(), 200)

    def _lines(self, file: str) -> list[bytes]:
        known = self._files.get(file)
        if known is None:
            known = []
            if len(self._files) < _MAX_FILES:
                known = self._files[file] = self._read(file)
        return known

    def _read(self, file: str) -> list[bytes]:
        path = path_under(self._root or "/", file)
        if path is None or path.suffix != ".py":  # a link to something else
            return []
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | os.O_NOFOLLOW)
        except (OSError, ValueError):
            return []
        try:
            info = os.fstat(handle)
            if not stat.S_ISREG(info.st_mode) or info.st_size > _MAX_FILE:
                return []
            if self._not_after is not None and info.st_mtime > self._not_after:
                return []
            return os.read(handle, _MAX_FILE).splitlines()
        except OSError:
            return []
        finally:
            os.close(handle)
