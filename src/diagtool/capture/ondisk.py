"""Whether a file that a live process has mapped is still the one that is on disk under its name.

Facts: proc(5) (maps, map_files, root). The inode of a mapping and that of its path differ on file systems in
layers (overlayfs, btrfs) though it is one file, so an inode that is the same proves it and another one does
not: then the file under /proc/PID/map_files is compared, and build-ids.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from diagtool.capture.elf import ElfFile, NotElf
from diagtool.capture.model import Mapping
from diagtool.capture.paging import MappedFile
from diagtool.capture.procfs import open_regular, try_readlink

__all__ = ["DELETED", "OnDisk", "on_disk"]

#: What the kernel writes behind the name of a file that has none any more.
DELETED = " (deleted)"
#: Files without a name on any disk: memfd_create(2).
_NEVER_ON_DISK = "/memfd:"


@dataclass(frozen=True, slots=True)
class OnDisk:
    """``state``: the file is the "same", was "replaced" by another one, or "deleted"; None: not known.

    ``build_id`` is that of the file that has its name now, where it is another one.
    """

    state: Literal["same", "replaced", "deleted"] | None
    build_id: str | None = None


def on_disk(pid: int, mapping: Mapping, build_id: str | None) -> OnDisk:
    """What has become of the file behind a mapping. ``build_id``: of what is in memory."""
    if mapping.path.startswith(_NEVER_ON_DISK):
        return OnDisk(None)
    path = mapping.path.removesuffix(DELETED)
    gone = mapping.path.endswith(DELETED)
    with _opened(pid, path) as fd:
        if fd is None:
            return OnDisk("deleted" if gone or _is_missing(pid, path) else None)
        found = os.fstat(fd)
        if not gone and found.st_ino == mapping.inode:
            return OnDisk("same")
        there = _identity(f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}")
        if there is not None and there == (found.st_dev, found.st_ino):
            return OnDisk("same")
        now = _build_id(fd, found.st_size)
        if now is not None and now == build_id:
            return OnDisk("same")  # as good as: the same program in another file
        if (now is not None and build_id is not None) or there is not None or gone:
            return OnDisk("replaced", now)
        return OnDisk(None)


# Files as the process sees them; in our own mount namespace the path is that of maps (see open_mapped).
def _place(pid: int, path: str) -> str:
    if try_readlink(f"/proc/{pid}/ns/mnt") == try_readlink("/proc/self/ns/mnt"):
        return path
    return f"/proc/{pid}/root{path}"


@contextmanager
def _opened(pid: int, path: str) -> Iterator[int | None]:
    fd = open_regular(_place(pid, path))
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def _is_missing(pid: int, path: str) -> bool:
    try:
        os.stat(_place(pid, path))  # noqa: PTH116
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return False


def _identity(link: str) -> tuple[int, int] | None:
    try:
        found = os.stat(link)  # noqa: PTH116
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _build_id(fd: int, size: int) -> str | None:
    try:
        mapped = MappedFile(fd, size)
    except (OSError, ValueError, OverflowError):
        return None
    try:
        return ElfFile(mapped.map).build_id
    except NotElf:
        return None
    finally:
        mapped.close()
