"""Paths as a process with another root directory sees them."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

__all__ = ["path_under"]

_MAX_LINKS = 40  # as many as the kernel follows (MAXSYMLINKS)
_MAX_PARTS = 1024


def path_under(root: str, path: str) -> Path | None:
    """Where ``path`` leads for a process whose root directory is ``root``; None if it leads nowhere.

    Links are followed as that process would: an absolute one starts again at ``root``, and ``..`` never
    leaves it, so that names out of a core can't reach other files of this machine.
    """
    top = Path(root)
    todo = list(reversed(PurePosixPath(path).parts))
    here: list[str] = []
    links = steps = 0
    while todo:
        part = todo.pop()
        steps += 1
        if steps > _MAX_PARTS or "\0" in part:
            return None
        if part in ("/", "//"):  # PurePosixPath keeps two slashes at the start as they are
            here.clear()
        elif part == ".":
            continue
        elif part == "..":
            del here[-1:]
        else:
            try:
                target = os.readlink(top.joinpath(*here, part))  # noqa: PTH115 (Path normalises ".." away)
            except (OSError, ValueError):  # no link; a name that no file can have
                here.append(part)
                continue
            links += 1
            if links > _MAX_LINKS:
                return None
            todo.extend(reversed(PurePosixPath(target).parts))
    return top.joinpath(*here)
