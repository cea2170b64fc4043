"""Whether a mapped file is still the one of its name: of this process, which may look at itself."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diagtool.capture.model import Mapping
from diagtool.capture.ondisk import OnDisk, on_disk
from diagtool.capture.procfs import parse_maps, read_file
from elfwriter import Library

ONE, TWO = Library(build_id=b"\x11" * 20).build(), Library(build_id=b"\x22" * 20).build()
ID = "11" * 20


@contextmanager
def mapped(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDONLY)
    try:
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ):
            yield
    finally:
        os.close(fd)


def mapping(path: Path) -> Mapping:
    name = str(path)
    found = [m for m in parse_maps(read_file("/proc/self/maps")) if m.path.removesuffix(" (deleted)") == name]
    return found[0]


def state(path: Path, build_id: str | None = ID) -> OnDisk:
    return on_disk(os.getpid(), mapping(path), build_id)


def test_what_became_of_the_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(ONE)
    with mapped(path):
        assert state(path) == OnDisk("same")
        (tmp_path / "new").write_bytes(TWO)
        (tmp_path / "new").replace(path)
        assert state(path) == OnDisk("replaced", "22" * 20)
        (tmp_path / "same").write_bytes(ONE)
        (tmp_path / "same").replace(path)
        assert state(path) == OnDisk("same")
        path.unlink()
        assert state(path) == OnDisk("deleted")
        os.mkfifo(path)  # poses as the file; nobody waits for it
        assert state(path) == OnDisk("deleted")


def test_without_build_ids_another_file_is_another_file(tmp_path: Path) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(b"no ELF file")
    with mapped(path):
        assert state(path, None) == OnDisk("same")
        (tmp_path / "new").write_bytes(b"another one")
        (tmp_path / "new").replace(path)
        assert state(path, None) == OnDisk("replaced")


def test_of_who_is_gone_or_was_never_on_disk_nothing_is_known() -> None:
    assert on_disk(os.getpid(), Mapping(0, 4096, "r-xp", 0, 5, "/memfd:code (deleted)"), None) == OnDisk(None)
    gone = on_disk(1 << 22, Mapping(0, 4096, "r-xp", 0, 5, "/usr/lib/libnever.so"), ID)
    assert gone.state != "same" and gone.build_id is None
