"""Memory of another process, read in bulk: process_vm_readv(2), or /proc/PID/mem where that is forbidden."""

from __future__ import annotations

import ctypes
import errno
import os

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import PAGE

Vectors = NDArray[np.uint64]  # n x (address, bytes): struct iovec as the kernel reads it

IOV_MAX = 1024  # vectors of one call, include/uapi/linux/uio.h

_libc = ctypes.CDLL(None, use_errno=True)  # lets go of the interpreter lock, so that copies run side by side
_readv = _libc.process_vm_readv
_readv.restype = ctypes.c_ssize_t
_readv.argtypes = [
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_ulong,
]


class MemoryReader:
    """The memory of one process. It stays that of the very same program.

    An open /proc/PID/mem belongs to the address space that it was opened on: after an exec, or when the pid
    went to another process, it reads nothing. It is kept open to tell (process_vm_readv goes by the pid
    alone), and to read with where process_vm_readv is forbidden (seccomp). It is not the first choice: it is
    slower, and of device memory it would read the device itself, which process_vm_readv refuses.
    """

    def __init__(self, pid: int) -> None:
        """Raises OSError (EACCES, EPERM, ENOENT, ESRCH)."""
        self.pid = pid
        self._fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
        self._by_pid = True
        self._few = ctypes.create_string_buffer(256)
        self._local = (ctypes.c_uint64 * 2)(ctypes.addressof(self._few), 0)
        self._remote = (ctypes.c_uint64 * 2)()
        self._local_at, self._remote_at = ctypes.addressof(self._local), ctypes.addressof(self._remote)

    def probe(self, address: int) -> None:
        """Find out which way of reading is allowed. Raises OSError when none is."""
        page = np.zeros(1, dtype=np.uint64)
        vectors = np.array([[address, 8]], dtype=np.uint64)
        try:
            _read_vectors(self.pid, int(page.ctypes.data), 8, int(vectors.ctypes.data), 1)
        except PermissionError:
            self._by_pid = False
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            self._by_pid = False
        if not self._by_pid:
            os.pread(self._fd, 8, address)

    def read(self, vectors: Vectors, at: int) -> list[tuple[int, int]]:
        """Copy ranges, one behind the other, to our address ``at``. Returns what could not be read.

        ``vectors`` is C-contiguous, with at most IOV_MAX rows. What can't be read (the page vanished, is no
        memory) leaves its place untouched. Raises OSError when the process is gone.
        """
        lost: list[tuple[int, int]] = []
        while len(vectors):
            size = int(vectors[:, 1].sum())
            got = self._read_some(vectors, at, size)
            if got == size:
                break
            # Where it stopped: inside vector ``place``. Go on behind the page that failed.
            ends = np.cumsum(vectors[:, 1], dtype=np.uint64)
            place = int(np.searchsorted(ends, np.uint64(got), side="right"))
            inside = got - (int(ends[place - 1]) if place else 0)
            address, length = int(vectors[place, 0]) + inside, int(vectors[place, 1]) - inside
            failed = min(length, PAGE - address % PAGE)
            lost.append((address, address + failed))
            at += got + failed
            vectors = vectors[place:].copy()
            vectors[0] = address + failed, length - failed
            if length == failed:
                vectors = vectors[1:].copy()
        return lost

    def few(self, address: int, size: int) -> bytes | None:
        """Up to 256 bytes at one place, with as little ado as there can be; None where they can't be read."""
        if not self._by_pid:
            try:
                data = os.pread(self._fd, size, address)
            except OSError:
                return None
            return data if len(data) == size else None
        local, remote = self._local, self._remote
        local[1] = remote[1] = size
        remote[0] = address
        if int(_readv(self.pid, self._local_at, 1, self._remote_at, 1, 0)) != size:
            return None
        return self._few.raw[:size]

    def scatter(self, remote: Vectors, local: Vectors) -> list[tuple[int, int]]:
        """Copy ranges of the process each to a place of its own; both n x (address, bytes), of equal bytes.

        Returns the parts of ``local`` that could not be read: they are left as they are.
        """
        lost: list[tuple[int, int]] = []
        for first in range(0, len(remote), IOV_MAX):
            theirs = np.ascontiguousarray(remote[first : first + IOV_MAX])
            ours = np.ascontiguousarray(local[first : first + IOV_MAX])
            size = int(theirs[:, 1].sum())
            if self._by_pid and _scatter(self.pid, theirs, ours) == size:
                continue
            for (address, length), (place, _) in zip(theirs.tolist(), ours.tolist(), strict=True):
                try:
                    failed = self.read(np.array([[address, length]], dtype=np.uint64), place)
                except OSError:
                    failed = [(address, address + length)]
                lost += [(low - address + place, high - address + place) for low, high in failed]
        return lost

    # Bytes read, from the first on without a gap.
    def _read_some(self, vectors: Vectors, at: int, size: int) -> int:
        if self._by_pid:
            return _read_vectors(self.pid, at, size, int(vectors.ctypes.data), len(vectors))
        done = 0
        for address, length in vectors.tolist():
            into = memoryview((ctypes.c_char * length).from_address(at + done)).cast("B")
            try:
                got = os.preadv(self._fd, [into], address)
            except OSError as error:
                if error.errno not in (errno.EIO, errno.EFAULT, errno.ENOMEM):
                    raise
                got = 0
            done += got
            if got < length:
                break
        return done

    def alive(self, address: int) -> bool:
        """Whether the address space is still in use. ``address`` is any that was once mapped."""
        try:
            return os.pread(self._fd, 1, address) != b""
        except OSError as error:
            return error.errno == errno.EIO  # no memory there now, but an address space that was asked

    def close(self) -> None:
        """Close the file. Nothing can be read afterwards."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


# Bytes that one process_vm_readv read; fewer than all of them whatever went wrong.
def _scatter(pid: int, remote: Vectors, local: Vectors) -> int:
    ours, theirs = int(local.ctypes.data), int(remote.ctypes.data)
    return int(_readv(pid, ours, len(local), theirs, len(remote), 0))


def _read_vectors(pid: int, at: int, size: int, vectors: int, count: int) -> int:
    """One process_vm_readv: bytes read without a gap. Raises OSError for what no other address would cure."""
    where = (ctypes.c_uint64 * 2)(at, size)
    got = int(_readv(pid, ctypes.addressof(where), 1, vectors, count, 0))
    if got >= 0:
        return got
    error = ctypes.get_errno()
    if error in (errno.EFAULT, errno.EIO, errno.ENOMEM):
        return 0
    raise OSError(error, os.strerror(error))
