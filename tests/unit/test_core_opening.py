"""Which files are opened as cores, compressed or not, and how others are refused."""

from __future__ import annotations

import errno
import gzip
import io
import lzma
import os
from pathlib import Path

import lz4.frame
import numpy as np
import pytest
import zstandard

from cores import HEAP, HEAP_BYTES, mentions, opened, small
from diagtool.capture import decompress
from diagtool.capture.core import open_core
from diagtool.capture.errors import BadCore, NoSuchTarget, NotPermitted, NotSupported, TargetError
from elfwriter import (
    Core,
    Library,
)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"hello\n" * 1000, BadCore, "does not start with an ELF header"),
        (b"", BadCore, "is empty"),
        (b"\x7fELF", BadCore, "ends within the ELF header"),
        (Library().build(), BadCore, "executable or a shared library"),
        (Core(type=1).build(), BadCore, "no core"),
        (Core(ident=b"\x7fELF\x01\x01\x01" + bytes(9)).build(), NotSupported, "32-bit"),
        (Core(ident=b"\x7fELF\x02\x02\x01" + bytes(9)).build(), NotSupported, "big-endian"),
        (Core(ident=b"\x7fELF\x07\x09\x01" + bytes(9)).build(), BadCore, "not a core"),
        (Core(machine=243).build(), NotSupported, "machine"),
        (gzip.compress(b"hello\n" * 1000, mtime=0), BadCore, "does not start with an ELF header"),
        (gzip.compress(b"", mtime=0), BadCore, "does not start with an ELF header"),
        (b"\x1f\x8b\x08 garbage", BadCore, "does not start with an ELF header"),
        (b"\x28\xb5\x2f\xfd garbage", BadCore, "does not start with an ELF header"),
    ],
)
def test_what_is_no_core_is_refused_in_a_sentence(
    tmp_path: Path, data: bytes, error: type[TargetError], words: str
) -> None:
    with pytest.raises(error) as raised:
        opened(tmp_path, data)
    assert words in str(raised.value) and raised.value.hint.endswith(".")
    assert "\n" not in str(raised.value)


def test_what_is_no_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, error in (
        (tmp_path / "absent", NoSuchTarget),
        (tmp_path / "absent" / "deeper", NoSuchTarget),
        ("nul\0byte", NoSuchTarget),
        ("x" * 5000, NoSuchTarget),
        (tmp_path, BadCore),
        (tmp_path / "fifo", BadCore),
        ("/dev/null", BadCore),
    ):
        with pytest.raises(error) as raised:
            open_core(str(path))
        assert raised.value.hint


@pytest.mark.skipif(
    os.geteuid() == 0 and not os.path.exists("/usr/bin/setpriv"), reason="root reads everything"
)
def test_a_core_of_somebody_else_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "core"
    path.write_bytes(small().build())

    def refuse(*args: object, **more: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(NotPermitted, match="may not be read") as raised:
        open_core(str(path))
    assert "root" in raised.value.hint


def test_exe_and_sysroot_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(NoSuchTarget, match="--exe"):
        opened(tmp_path, small().build(), exe=str(tmp_path / "absent"))
    with pytest.raises(NoSuchTarget, match="--sysroot"):
        opened(tmp_path, small().build(), sysroot=str(tmp_path / "absent"))


# -- compressed -----------------------------------------------------------------------------------------

COMPRESSORS = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "lz4": lz4.frame.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_a_compressed_core_is_told_by_its_content(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = tmp_path / "temporary"
    places.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(places))
    data = COMPRESSORS[kind](small().load(HEAP + 0x100000, bytes(1 << 22)).build())
    done: list[tuple[int, int]] = []
    path = tmp_path / "misnamed.txt"
    path.write_bytes(data)
    with open_core(str(path), progress=lambda n, of: done.append((n, of))) as capture:
        assert [t.tid for t in capture.threads] == [100, 101]
        assert capture.memory.read(HEAP, len(HEAP_BYTES)) == HEAP_BYTES
        assert capture.memory.read(HEAP + 0x100000, 1 << 22) == bytes(1 << 22)
        assert list(places.iterdir()) == [], "the unpacked core has no name"
    assert done and all(0 <= n <= of == len(data) for n, of in done)


@pytest.mark.parametrize("kind", COMPRESSORS)
@pytest.mark.parametrize("how", ["cut", "damaged"])
def test_a_damaged_compressed_core_is_read_as_far_as_it_goes(tmp_path: Path, kind: str, how: str) -> None:
    noise = np.random.default_rng(7).integers(0, 256, 4 << 20, dtype=np.uint8).tobytes()
    data = bytearray(COMPRESSORS[kind](small().load(HEAP + 0x1000000, noise).build()))
    if how == "cut":
        del data[len(data) - (1 << 20) :]
    else:
        data[3 << 20 : (3 << 20) + 64] = b"\xa5" * 64
        if kind in ("lz4", "zstd"):
            data[3 << 20 : (3 << 20) + (1 << 18)] = b"\xff" * (1 << 18)
    capture = opened(tmp_path, bytes(data))
    assert [t.tid for t in capture.threads] == [100, 101]
    assert capture.memory.read(HEAP, 8) == HEAP_BYTES[:8]
    assert mentions(capture, "can't be unpacked to its end") or (kind, how) == ("zstd", "cut")
    assert mentions(capture, "is cut off") or (kind, how) == ("xz", "damaged"), "xz checks only at the end"


def test_several_streams_in_one_file_are_one_core(tmp_path: Path) -> None:
    data = small().build()
    for compress in COMPRESSORS.values():
        parts = compress(data[:5000]) + compress(data[5000:])
        assert opened(tmp_path, parts).memory.read(HEAP, len(HEAP_BYTES)) == HEAP_BYTES


def test_a_full_disk_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(decompress.os, "pwrite", full)
    with pytest.raises(TargetError, match="no room") as raised:
        opened(tmp_path, gzip.compress(small().build()))
    assert "TMPDIR" in raised.value.hint


def test_zeros_take_no_room_when_unpacked(tmp_path: Path) -> None:
    data = Core().load(HEAP, bytes(64 << 20)).build()
    target, damage = decompress.decompressed(
        io.BytesIO(gzip.compress(data, mtime=0)), "gzip", lambda head: None
    )
    with target:
        found = os.fstat(target.fileno())
        assert damage is None and found.st_size == len(data)
        assert found.st_blocks * 512 < 1 << 20 and found.st_mode & 0o777 == 0o600 and found.st_nlink == 0
