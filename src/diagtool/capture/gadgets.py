"""Two pieces of code that every C library has: ``syscall; ret``, and the ``rt_sigreturn`` behind handlers.

Looked for in whatever file the process has mapped to execute (glibc, musl, a static program, the vdso), in
its memory, so that no symbol and no file of it is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diagtool.capture.model import Mapping
from diagtool.capture.vmread import MemoryReader

__all__ = ["Gadgets", "find_gadgets", "gadgets_in"]

CALL = b"\x0f\x05\xc3"  # syscall; ret
RESTORE = (
    b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05",  # mov $15, %rax; syscall: __restore_rt of glibc and musl
    b"\xb8\x0f\x00\x00\x00\x0f\x05",  # mov $15, %eax; syscall
)

_MOST = 64 << 20  # bytes looked through in all
_MOST_OF_ONE = 16 << 20  # bytes of one mapping
_LIBC = ("libc.so", "libc-", "ld-musl", "libc.musl")


@dataclass(frozen=True, slots=True)
class Gadgets:
    """Addresses in the process."""

    call: int
    restore: int

    def still_there(self, reader: MemoryReader) -> bool:
        """Whether the code is what it was."""
        code = [_read(reader, self.call, len(CALL)), _read(reader, self.restore, len(RESTORE[0]))]
        return code[0] == CALL and code[1].startswith(RESTORE)


def find_gadgets(mappings: Sequence[Mapping], reader: MemoryReader) -> Gadgets | None:
    """Where they are; None when the process has none of one of them."""
    call = restore = 0
    room = _MOST
    for mapping in sorted(filter(_is_code, mappings), key=_rank):
        size = min(mapping.end - mapping.start, _MOST_OF_ONE, room)
        if size <= 0:
            break
        room -= size
        found = gadgets_in(_read(reader, mapping.start, size))
        call = call or (found[0] + mapping.start if found[0] >= 0 else 0)
        restore = restore or (found[1] + mapping.start if found[1] >= 0 else 0)
        if call and restore:
            return Gadgets(call, restore)
    return None


def gadgets_in(code: bytes) -> tuple[int, int]:
    """(offset of ``syscall; ret``, offset of rt_sigreturn), -1 where there is none."""
    places = [at for at in map(code.find, RESTORE) if at >= 0]
    return code.find(CALL), min(places, default=-1)


# Files only: code that a just-in-time compiler wrote may be gone in the stop.
def _is_code(mapping: Mapping) -> bool:
    if not mapping.permissions.startswith("r-x"):
        return False
    return mapping.path == "[vdso]" or (mapping.path.startswith("/") and not mapping.path.startswith("/dev/"))


def _rank(mapping: Mapping) -> tuple[int, int]:
    name = mapping.path.rpartition("/")[2]
    return (0 if name.startswith(_LIBC) else 2 if mapping.path == "[vdso]" else 1, mapping.start)


def _read(reader: MemoryReader, address: int, size: int) -> bytes:
    data = np.zeros(size, dtype=np.uint8)
    try:
        reader.read(np.array([[address, size]], dtype=np.uint64), int(data.ctypes.data))
    except OSError:
        return b""
    return data.tobytes()
