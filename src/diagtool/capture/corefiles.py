"""Where the files of a core are on this machine: --exe, --sysroot, or where the process had them."""

from __future__ import annotations

import os
from collections.abc import Iterator

from diagtool.capture.model import Mapping
from diagtool.capture.modulefiles import Candidate, Find
from diagtool.capture.procfs import open_regular
from diagtool.paths import path_under

__all__ = ["core_files"]

_DELETED = " (deleted)"  # d_path() of an unlinked file (fs/d_path.c)


def core_files(main_path: str | None, exe: str | None, sysroot: str | None, taken_at: float) -> Find:
    """Files that may be behind a mapping of a core.

    ``main_path`` is the path of the executable as the process had it, ``exe`` the one the user named for it,
    ``taken_at`` the time of the core in seconds since the epoch. A file that was changed later, or is not
    where it was said to be, must be shown to be the same.
    """

    def opened(path: str, proof: bool) -> Iterator[Candidate]:
        try:
            fd = open_regular(path)
        except ValueError:  # a NUL in the name
            return
        if fd is not None:
            yield Candidate(fd, path, proof or os.fstat(fd).st_mtime > taken_at)

    def find(mapping: Mapping) -> Iterator[Candidate]:
        if exe is not None and mapping.path == main_path:
            yield from opened(exe, proof=False)
        path = mapping.path.removesuffix(_DELETED)
        deleted = path != mapping.path
        if not path.startswith("/"):
            return
        if sysroot is not None:
            inside = path_under(sysroot, path)
            if inside is not None:
                yield from opened(str(inside), proof=deleted)
        yield from opened(path, proof=deleted or sysroot is not None)

    return find
