"""Files whose unwind tables drgn does not take for such, as drgn takes them.

Some linkers give ``.eh_frame`` the type SHT_X86_64_UNWIND, which the x86-64 ABI has for it; drgn (0.3) knows
it only as SHT_PROGBITS. PyTorch's libraries are so. Of such a file a copy is made, in memory and sparse, that
has headers, symbols, notes and tables, with the type changed; code and data, which nobody unwinds by, are
holes.
"""

from __future__ import annotations

import os
import struct

import numpy as np

__all__ = ["as_drgn_reads_it"]

_PROGBITS, _NOBITS, _UNWIND = 1, 8, 0x70000001
_HEADER, _SECTION, _SEGMENT = 64, 64, 56  # sizes of the ELF structures, in bytes
_MOST_SECTIONS = 10_000
_MOST_COPIED = 1 << 30  # bytes
_STEP = 8 << 20
_FRAMES = b".eh_frame"
#: sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size, sh_link, sh_info, sh_addralign, sh_entsize
_HEADERS = np.dtype(
    [
        *(("name", "<u4"), ("type", "<u4"), ("flags", "<u8"), ("address", "<u8"), ("offset", "<u8")),
        *(("size", "<u8"), ("link", "<u4"), ("info", "<u4"), ("align", "<u8"), ("entry", "<u8")),
    ]
)


def as_drgn_reads_it(fd: int) -> int | None:
    """A descriptor of such a copy of an open ELF file; None where none is needed, or none can be made.

    The file may be garbage: what does not fit together is left as it is.
    """
    try:
        return _copied(fd)
    except (OSError, struct.error, ValueError):
        return None


def _copied(fd: int) -> int | None:
    size = os.fstat(fd).st_size
    head = os.pread(fd, _HEADER, 0)
    if head[:6] != b"\x7fELF\x02\x01":
        return None
    phoff, shoff = struct.unpack_from("<QQ", head, 32)
    phnum, shentsize, shnum, shstrndx = (struct.unpack_from("<H", head, at)[0] for at in (56, 58, 60, 62))
    if shentsize != _SECTION or not 0 < shnum <= _MOST_SECTIONS or shstrndx >= shnum:
        return None
    sections = np.frombuffer(os.pread(fd, shnum * _SECTION, shoff), _HEADERS).copy()
    if len(sections) != shnum or not (sections["type"] == _UNWIND).any():
        return None
    names = os.pread(fd, min(int(sections["size"][shstrndx]), 1 << 20), int(sections["offset"][shstrndx]))
    called = [names[n : names.find(b"\0", n)] if n < len(names) else b"" for n in sections["name"].tolist()]
    wanted = [
        number
        for number, (kind, name) in enumerate(zip(sections["type"].tolist(), called, strict=True))
        if kind not in (0, _NOBITS) and (kind != _PROGBITS or name.startswith((_FRAMES, b".debug", b".gnu")))
    ]
    ranges = [(0, _HEADER), (phoff, phnum * _SEGMENT)]
    ranges += [(int(sections["offset"][n]), int(sections["size"][n])) for n in wanted]
    if sum(length for _, length in ranges) > _MOST_COPIED or any(a + n > size for a, n in ranges):
        return None
    sections["type"][sections["type"] == _UNWIND] = _PROGBITS
    # Of several tables drgn takes any: the largest is the program's, others are the linker's leftovers.
    frames = [n for n, name in enumerate(called) if name == _FRAMES]
    for number in frames:
        if number != max(frames, key=lambda n: int(sections["size"][n])):
            sections["name"][number] = 0
    made = os.memfd_create("module", os.MFD_CLOEXEC)
    try:
        os.truncate(made, size)
        for start, length in ranges:
            for at in range(start, start + length, _STEP):
                os.pwrite(made, os.pread(fd, min(_STEP, start + length - at), at), at)
        os.pwrite(made, sections.tobytes(), shoff)
    except BaseException:
        os.close(made)
        raise
    return made
