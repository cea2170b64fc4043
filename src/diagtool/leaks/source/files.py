"""Source files of the target: where they can be read, and whether they are what runs.

Read only when certain to be harmless: a frame's file name comes from the target and could be any. Nothing is
ever imported or run, only parsed.
"""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from diagtool.leaks.source.golang.module import GoFunction, GoModule
from diagtool.leaks.source.module import Function, Module
from diagtool.leaks.source.same import differs
from diagtool.paths import path_under
from diagtool.snapshot.model import Frame, Target

__all__ = ("Doubt", "Found", "Sources")

#: Longer files are no source code.
MAX_FILE = 4 << 20
#: A report shows a few hundred frames; a hostile core could name any number of files.
MAX_FILES = 500
#: The start of a process is known to about a second (boot time plus clock ticks).
_SLACK_SECONDS = 2.0
#: Bytes of all of them.
_MAX_BYTES = 128 << 20
#: Files below a folder that is given with --source, and folders in it.
_MAX_LISTED = 5_000
_MAX_VISITED = 20_000
_SKIPPED = frozenset(
    "node_modules __pycache__ site-packages venv build dist tests test testdata vendor".split()
)
#: Languages by the ends of their files.
LANGUAGES = {".py": "python", ".go": "go"}
#: Files of one package of Go that are looked at.
_MAX_PACKAGE = 200
_GO_MODULE = re.compile(rb"^module[ \t]+\"?([^\s\"]+)", re.MULTILINE)

#: Why a source is not used: changed since the process started; other lines or names than the running code.
Doubt = Literal["newer", "differs"]


@dataclass(frozen=True, slots=True)
class Found:
    """A file as it was read, and its ``place``. ``given``: it lies in a folder that the user named."""

    data: bytes
    place: str
    given: bool
    newer: bool = False


class Sources:
    """Looks up the files of Python and Go that frames name.

    ``root`` is where the target's paths start: the sysroot, or /proc/PID/root of a live target. Links are
    followed as the target would. Only plain ``.py`` and ``.go`` files are opened, no larger than 4 MiB, and
    only when they were not changed since the process started: then the line may be another one. Without a
    root nothing is looked up for a target of another host or with another root directory than ours.

    ``folders`` are looked in first: for the longest end of the recorded path that is there. When these
    files were changed says nothing (a fresh checkout), so they are compared with ``codes``, rows of the table
    ``code_objects``: what the running code says of its lines and names.
    """

    def __init__(
        self,
        target: Target | None = None,
        root: str | None = None,
        *,
        folders: Sequence[str | os.PathLike[str]] = (),
        codes: Iterable[dict[str, Any]] = (),
    ) -> None:
        self._root = root
        self._folders = [Path(folder) for folder in folders]
        self._not_after: float | None = None
        self._elsewhere = False
        if target is not None:
            known = target.start_time or target.captured_at
            self._not_after = None if known is None else known + _SLACK_SECONDS
            away = target.host not in (None, os.uname().nodename) or bool(target.details.get("root"))
            self._elsewhere = root is None and away
        self._codes: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in codes:
            if isinstance(row, dict) and isinstance(row.get("file"), str):
                self._codes[row["file"]].append(row)
        self._files: dict[str, Found | None] = {}
        self._bytes = 0  # of all files that are kept
        self._lines: dict[str, list[bytes]] = {}
        self._modules: dict[str, Module | GoModule | None] = {}
        self._go_modules: dict[Path, str] = {}
        self._doubts: dict[str, Doubt | None] = {}

    @property
    def is_whole(self) -> bool:
        """Whether the user named folders: then all of the program's files can be looked through."""
        return bool(self._folders)

    # --- lines, for showing ----------------------------------------------------------------------------

    def line(self, frame: Frame) -> str:
        """The text of the frame's line, stripped, or "". It may hold anything: clean it before showing."""
        if frame.line is None or frame.line < 1 or not frame.file.endswith(tuple(LANGUAGES)):
            return ""
        found = self.file(frame.file)
        if found is None or found.newer or (found.given and self._is_another(frame)):
            return ""
        lines = self._lines.get(frame.file)
        if lines is None:
            lines = self._lines[frame.file] = found.data.splitlines()
        if frame.line > len(lines):
            return ""
        return lines[frame.line - 1].decode("utf-8", "replace").strip()[:1000]

    def _is_another(self, frame: Frame) -> bool:
        if frame.file.endswith(".go"):
            return self.function(frame) is None
        return self.doubt(frame.file) is not None

    # --- files, for checks -----------------------------------------------------------------------------

    def file(self, name: str) -> Found | None:
        """The file that frames call ``name``; None where there is none, or it may not be looked at."""
        if name not in self._files:
            if len(self._files) >= MAX_FILES or self._bytes > _MAX_BYTES:
                return None
            self._keep(name, self._find(name))
        return self._files[name]

    def _keep(self, name: str, found: Found | None) -> None:
        self._files[name] = found
        self._bytes += len(found.data) if found is not None else 0

    def module(self, name: str) -> Module | GoModule | None:
        """The same parsed; None where there is none. Not certain to be what runs: ask :meth:`doubt`."""
        if name not in self._modules:
            found = self.file(name)
            self._modules[name] = None if found is None else self._module(name, found)
        return self._modules[name]

    def _module(self, name: str, found: Found) -> Module | GoModule:
        if not name.endswith(".go"):
            return Module(name, found.data)
        return GoModule(name, found.data, lambda: self._package(found.place), self._whole_of_go)

    def _package(self, place: str) -> Iterator[GoModule]:
        """The other files of the folder that the file at ``place`` is in, without tests."""
        folder = Path(place).parent
        try:
            names = sorted(p.name for p in folder.iterdir() if p.suffix == ".go" and p.stem[-5:] != "_test")
        except OSError:
            return
        for each in names[:_MAX_PACKAGE]:
            path = folder / each
            if str(path) != place and (module := self._go_at(path, place)) is not None:
                yield module

    def _go_at(self, path: Path, beside: str) -> GoModule | None:
        name = str(path)
        if name not in self._files:
            if len(self._files) >= MAX_FILES or self._bytes > _MAX_BYTES:
                return None
            data = _read(path, os.O_NOFOLLOW)
            self._keep(name, None if data is None else Found(data[0], name, True))
        module = self.module(name)
        return module if isinstance(module, GoModule) else None

    def _whole_of_go(self) -> Iterator[GoModule]:
        for name in self.listed(".go"):
            module = self.module(name)
            if isinstance(module, GoModule):
                yield module

    def doubt(self, name: str) -> Doubt | None:
        """Why the file that frames call ``name`` is not what runs; None where nothing says so."""
        if name not in self._doubts:
            self._doubts[name] = self._doubted(name)
        return self._doubts[name]

    def _doubted(self, name: str) -> Doubt | None:
        found, module = self.file(name), self.module(name)
        if found is None or module is None:
            return None
        if found.newer:
            return "newer"
        if isinstance(module, GoModule):
            return None  # told by its functions, each by itself
        if any(differs(module, row) for row in self._codes.get(name, ())):
            return "differs"
        return None

    def function(self, frame: Frame) -> Function | GoFunction | None:
        """The function of a frame in its file, None where it is not there: then the source is another."""
        module = self.module(frame.file)
        if module is None or frame.line is None:
            return None
        first = {
            row.get("first_line")
            for row in self._codes.get(frame.file, ())
            if row.get("function") == frame.function and frame.line in (row.get("lines") or ())
        }
        return module.function_of(frame.function, frame.line, first.pop() if len(first) == 1 else None)

    def listed(self, suffix: str = ".py") -> Iterator[str]:
        """Files below the folders that the user named, by their own paths; the first few thousand.

        Tests are left out: what they make and drop no service does.
        """
        left, visited = _MAX_LISTED, 0
        for folder in self._folders:
            for top, folders, files in os.walk(folder):
                visited += 1
                if visited > _MAX_VISITED:
                    return
                folders[:] = sorted(f for f in folders if f not in _SKIPPED and not f.startswith("."))
                for file in sorted(files):
                    if file.endswith(suffix) and not (
                        file.startswith(("test_", "conftest")) or file.endswith("_test.go")
                    ):
                        left -= 1
                        if left < 0:
                            return
                        path = Path(top, file)
                        name = str(path.absolute())
                        room = len(self._files) < MAX_FILES and self._bytes <= _MAX_BYTES
                        if name not in self._files and room:
                            data = _read(path)
                            self._keep(name, None if data is None else Found(data[0], name, True))
                        if self._files.get(name) is not None:
                            yield name

    def _find(self, name: str) -> Found | None:
        suffix = PurePosixPath(name).suffix
        if suffix not in LANGUAGES or "\0" in name:
            return None
        parts = [p for p in PurePosixPath(name).parts if p != "/"]
        if ".." in parts:
            parts = []
        for folder in self._folders:
            for place in self._places(folder, parts):
                read = _read(place)
                if read is not None:
                    return Found(read[0], str(place.absolute()), True)
        if self._elsewhere or not name.startswith("/"):
            return None
        path = path_under(self._root or "/", name)
        if path is None or path.suffix != suffix:  # a link to something else
            return None
        read = _read(path, os.O_NOFOLLOW)
        if read is None:
            return None
        return Found(read[0], str(path), False, self._not_after is not None and read[1] > self._not_after)

    def _places(self, folder: Path, parts: list[str]) -> Iterator[Path]:
        """Where in ``folder`` a file may be: by what go.mod says, then by the ends of its path."""
        if parts and parts[-1].endswith(".go"):
            module = self._go_module(folder)
            path = "/".join(parts)
            if module and path.startswith(module + "/"):
                yield folder.joinpath(*parts[module.count("/") + 1 :])
            # A module of others as -trimpath or the cache has it: example.com/mod@v1.2.3.
            versioned = next((i for i, p in enumerate(parts) if "@" in p), -1)
            if versioned >= 0:
                yield from (folder.joinpath(*parts[start:]) for start in range(versioned + 1))
                parts = [p.partition("@")[0] for p in parts]
                yield from (folder.joinpath("vendor", *parts[start:]) for start in range(versioned + 1))
        yield from (folder.joinpath(*parts[start:]) for start in range(len(parts)))

    def _go_module(self, folder: Path) -> str:
        """The name that go.mod in a folder gives its module."""
        if folder not in self._go_modules:
            read = _read(folder / "go.mod")
            found = _GO_MODULE.search(read[0][:100_000]) if read is not None else None
            self._go_modules[folder] = found[1].decode("utf-8", "replace") if found is not None else ""
        return self._go_modules[folder]


def _read(path: Path, more: int = 0) -> tuple[bytes, float] | None:
    """The bytes of a plain file and when it was changed; None for everything else."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | more)
    except (OSError, ValueError):
        return None
    try:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode) or info.st_size > MAX_FILE:
            return None
        return os.read(handle, MAX_FILE), info.st_mtime
    except OSError:
        return None
    finally:
        os.close(handle)
