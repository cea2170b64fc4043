"""Where findings are in a repository: paths of frames relative to its root, as CI systems want them.

Decided by the names alone, as the target knew them: its files may be on another machine. Where it ran
with other paths (in a container), mappings say which of them are the repository's.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diagtool.leaks.model import Finding, Report
from diagtool.leaks.own import is_own
from diagtool.snapshot.model import Frame, Target

__all__ = ("Location", "Locations", "root_of")

_MOST_TRIED = 20  # files looked for
_DEEPEST = 30


def root_of(start: Path) -> Path:
    """The root of the repository that ``start`` is in, else ``start``."""
    start = start.resolve()
    for folder in (start, *start.parents):
        if (folder / ".git").exists():  # a file in a worktree
            return folder
    return start


@dataclass(frozen=True, slots=True)
class Location:
    """A place in the repository: ``path`` relative to its root, with slashes; ``line`` None where unknown."""

    path: str
    line: int | None
    frame: Frame


class Locations:
    """Where frames are below ``root``.

    ``mappings`` are pairs (a folder as the target calls it, the same relative to ``root``), the first that
    fits counts: ``("/app", ".")`` makes ``/app/src/x.py`` ``src/x.py``.
    """

    def __init__(self, root: Path, mappings: Iterable[tuple[str, str]] = ()) -> None:
        self.root = root
        absolute = Path.cwd() / root
        roots = dict.fromkeys((_normal(str(absolute)), _normal(str(absolute.resolve()))))
        own = [(_normal(here), _relative(there, absolute)) for here, there in mappings]
        self._folders = [*own, *((folder, ".") for folder in roots)]

    def path(self, file: str) -> str | None:
        """``file`` of a frame relative to the root, None where it is elsewhere."""
        name = file.replace("\\", "/")
        if not name or name.startswith("<") or "\0" in name:
            return None
        if not name.startswith("/"):  # as given on a command line: below where it was started
            name = posixpath.normpath(name)
            return name if not name.startswith("../") and self._is_there(name) else None
        name = _normal(name)
        for folder, there in self._folders:
            if name.startswith(folder.rstrip("/") + "/"):
                path = posixpath.normpath(posixpath.join(there, name[len(folder.rstrip("/")) + 1 :]))
                return None if path.startswith(("../", "/")) else path
        return None

    def of(self, frame: Frame) -> Location | None:
        """Where a frame is in the repository, None where it is not."""
        path = self.path(frame.file)
        return None if path is None else Location(path, frame.line, frame)

    def all(self, frames: Sequence[Frame]) -> Iterator[Location]:
        """Where those of the user's own frames are that are in the repository, innermost first."""
        for frame in frames:
            location = self.of(frame) if is_own(frame) else None
            if location is not None:
                yield location

    def main(self, finding: Finding) -> Location | None:
        """The line that a finding is about: the innermost one of the user's own in the repository.

        Of its stack, else of where that was created; None where neither has one.
        """
        for frames in (finding.frames, finding.created_by or ()):
            found = next(self.all(frames), None)
            if found is not None:
                return found
        return None

    def fallback(self, target: Target) -> str:
        """A path for findings that are nowhere in the repository, for formats that demand one.

        The script that was started if it is there, else the name of the program.
        """
        scripts = [word for word in target.cmdline[1:] if word.endswith(".py")]
        found = next((path for path in map(self.path, scripts) if path is not None), None)
        return found or posixpath.basename(target.exe or "") or "process"

    def elsewhere(self, finding: Finding) -> Frame | None:
        """The innermost own frame of a finding of which nothing is in the repository."""
        if self.main(finding) is not None:
            return None
        frames = (*finding.frames, *(finding.created_by or ()))
        return next((f for f in frames if is_own(f) and f.file.startswith("/")), None)

    def warning(self, report: Report) -> str | None:
        """That findings are in files outside of the repository, as those of a container are; what helps."""
        away = [frame for frame in map(self.elsewhere, report.findings) if frame is not None]
        if not away:
            return None
        mapping = next(filter(None, (self._mapping(frame.file) for frame in away[:_MOST_TRIED])), None)
        helps = "--root DIR names the repository, --map FROM=TO says what a container calls it"
        if mapping is not None:
            helps = f"if {mapping} is the repository, say so with --map {mapping}=."
        return (
            f"{len(away):,} of {len(report.findings):,} findings are in files outside of {self.root}, as "
            f"{away[0].file}: {helps}"
        )

    def _mapping(self, file: str) -> str | None:
        """The folder that could be the repository: what follows it in ``file`` is there."""
        parts = _normal(file).split("/")
        for i in range(2, min(len(parts), _DEEPEST)):
            if self._is_there("/".join(parts[i:])):
                return "/".join(parts[:i])
        return None

    def _is_there(self, name: str) -> bool:
        try:
            return (self.root / name).is_file()
        except (OSError, ValueError):
            return False


def _normal(path: str) -> str:
    path = posixpath.normpath(path.replace("\\", "/"))
    return path[1:] if path.startswith("//") else path


def _relative(there: str, root: Path) -> str:
    """The end of a mapping relative to the root; an absolute one must lie below it."""
    if not there.startswith("/"):
        return posixpath.normpath(there or ".")
    return posixpath.relpath(_normal(there), _normal(str(root)))
