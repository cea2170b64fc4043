"""Compressed cores: gzip, xz, lz4 and zstd, told apart by their first bytes.

They are unpacked, stream by stream, to a file without a name in ``$TMPDIR`` that only we can read and that is
gone with us, however we end. Zero pages become holes in it.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

import numpy as np

from diagtool.capture.errors import BadCore, TargetError

__all__ = ["COMPRESSED_MAGIC", "Damaged", "compression_of", "decompressed", "unpacked"]

#: First bytes of a compressed file -> its format: RFC 1952, the .xz file format, LZ4 frame format, RFC 8878.
COMPRESSED_MAGIC = {
    b"\x1f\x8b\x08": "gzip",
    b"\xfd7zXZ\x00": "xz",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x28\xb5\x2f\xfd": "zstd",
}

_IN = 64 << 10  # compressed bytes read at a time
_OUT = 1 << 20  # at most so many bytes come out at a time: a zero page costs zstd four bytes for 128 KiB
_HOLE = 64 << 10  # zeros are left out in units of this
_MAX_SIZE = 1 << 42  # nobody has a core of 4 TiB: a bomb


def compression_of(head: bytes) -> str | None:
    """``gzip``, ``xz``, ``lz4``, ``zstd``, or None for a file that starts with ``head``."""
    for magic, name in COMPRESSED_MAGIC.items():
        if head.startswith(magic):
            return name
    return None


def unpacked(source: BinaryIO, kind: str) -> Iterator[memoryview]:
    """What ``source``, compressed as ``kind`` says, holds: a megabyte at most at a time.

    Raises :class:`Damaged` where the stream breaks off; what came before is good. A block is good until the
    next one is asked for.
    """
    return _zstd(source) if kind == "zstd" else _stream(source, kind)


def decompressed(
    source: BinaryIO,
    kind: str,
    accept: Callable[[bytes], None],
    progress: Callable[[int], None] | None = None,
) -> tuple[BinaryIO, str | None]:
    """Unpack ``source``; returns an unnamed temporary file and, if the stream was damaged, what was wrong.

    ``accept`` sees the first bytes and raises if they are of no use, before gigabytes are written for
    nothing. ``progress`` is called with the number of bytes read of ``source``. Raises TargetError when the
    disk is full or there is no place for temporary files.
    """
    try:
        target: BinaryIO = tempfile.TemporaryFile(prefix="diagtool-")  # noqa: SIM115 (handed to the caller)
    except OSError as error:
        raise TargetError(
            "there is no place for the unpacked core", "Set TMPDIR to a directory that you may write to."
        ) from error
    try:
        return target, _unpack(source, kind, target, accept, progress)
    except OSError as error:
        target.close()
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise TargetError(
                f"there is no room in {tempfile.gettempdir()} to unpack the core",
                "Set TMPDIR to a directory with more room, or unpack the core yourself.",
            ) from error
        raise BadCore(f"the core can't be unpacked: {error.strerror or error}") from error
    except BaseException:
        target.close()
        raise


def _unpack(
    source: BinaryIO,
    kind: str,
    target: BinaryIO,
    accept: Callable[[bytes], None],
    progress: Callable[[int], None] | None,
) -> str | None:
    fd = target.fileno()
    size, head = 0, b""
    damage: str | None = None
    stream = unpacked(source, kind)
    while True:
        try:
            block = next(stream, None)
        except Damaged as error:
            damage = str(error)
            break
        if block is None:
            break
        if len(head) < 64:
            head += bytes(block[: 64 - len(head)])
            if len(head) == 64:
                accept(head)
        _write_sparse(fd, block, size)
        size += len(block)
        if size > _MAX_SIZE:
            raise BadCore("the core unpacks to more than 4 TiB", "This is no core that a process left.")
        if progress is not None:
            progress(source.tell())
    os.ftruncate(fd, size)
    if len(head) < 64:
        accept(head)
    return damage


def _write_sparse(fd: int, block: memoryview, at: int) -> None:
    for i in range(0, len(block), _HOLE):
        part = block[i : i + _HOLE]
        if not np.frombuffer(part, dtype=np.uint8).any():
            continue
        while len(part):
            n = os.pwrite(fd, part, at + i)
            part, i = part[n:], i + n


class Damaged(Exception):
    """The stream broke off; what came before is good."""


# What zlib, lzma and lz4 have in common.
class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes | None: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


# Several streams in one file are one file; zeros between and after them are padding; anything else ends it.
def _stream(source: BinaryIO, kind: str) -> Iterator[memoryview]:
    make, failures = _maker(kind)
    data = source.read(_IN)
    while compression_of(data) == kind:
        machine = make()
        try:
            for out in _one_stream(machine, data, source):
                yield memoryview(out)
        except failures as error:
            raise Damaged(f"the {kind} stream is damaged ({error})") from error
        if not machine.eof:
            raise Damaged(f"the {kind} stream ends early")
        data = machine.unused_data or b""
        data = (data + source.read(_IN)).lstrip(b"\0")


def _one_stream(machine: _Decompressor, data: bytes, source: BinaryIO) -> Iterator[bytes]:
    while data:
        out = machine.decompress(data, _OUT)
        while out:
            yield out
            if machine.eof:
                return
            # What did not fit: zlib hands its input back, the others keep it.
            out = machine.decompress(getattr(machine, "unconsumed_tail", b""), _OUT)
        if machine.eof:
            return
        data = source.read(_IN)


def _maker(kind: str) -> tuple[Callable[[], _Decompressor], tuple[type[Exception], ...]]:
    if kind == "gzip":
        import zlib

        return lambda: zlib.decompressobj(wbits=31), (zlib.error,)
    if kind == "xz":
        import lzma

        return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ), (lzma.LZMAError, EOFError)
    import lz4.frame

    return lz4.frame.LZ4FrameDecompressor, (RuntimeError, EOFError)


# zstandard's reader is the only one of its interfaces that bounds what comes out for what goes in. It does
# not tell a stream that ends early from one that ends: the ELF headers then do.
def _zstd(source: BinaryIO) -> Iterator[memoryview]:
    import zstandard

    buffer = bytearray(_OUT)
    try:
        reader = zstandard.ZstdDecompressor().stream_reader(source, read_size=_IN, read_across_frames=True)
        while n := reader.readinto(buffer):
            yield memoryview(buffer)[:n]
    except zstandard.ZstdError as error:
        raise Damaged(f"the zstd stream is damaged ({error})") from error
