"""What version a library is, as well as it can be told, and how that is known; which libraries are copies.

Nothing in an ELF file says its version. In order of trust: what its distribution noted in it, what the
library says of itself in its text, the name of its file, the highest of its symbol versions (at least that
one), and the number in its soname, which counts incompatible changes only.
"""

from __future__ import annotations

import re
from typing import Final

from diagtool.capture.elf import PF_W, PF_X, ElfFile
from diagtool.capture.linking import Linking
from diagtool.capture.memory import AddressSpace, MemoryFault
from diagtool.capture.modules import Module

__all__ = ["base_name", "version_of"]

_MAX_SEARCHED = 64 << 20  # bytes of constant data of one file
_MAX_VERSION = 40  # characters

#: What libraries say of themselves in their constant data, by the start of their names.
_SAYS: Final = {
    "libc.so": re.compile(rb"GNU C Library [^\n]{0,120}release version (\d+\.\d+)"),
    "libc-2.": re.compile(rb"GNU C Library [^\n]{0,120}release version (\d+\.\d+)"),
    "libcrypto": re.compile(rb"(?:OpenSSL|LibreSSL|AWS-LC) (\d+\.\d+\.\d+[a-z]{0,2})\b"),
    "libssl": re.compile(rb"(?:OpenSSL|LibreSSL|AWS-LC) (\d+\.\d+\.\d+[a-z]{0,2})\b"),
    "libopenblas": re.compile(rb"OpenBLAS (\d+\.\d+\.\d+(?:\.dev)?)"),
    "libscipy_openblas": re.compile(rb"OpenBLAS (\d+\.\d+\.\d+(?:\.dev)?)"),
    "libz.": re.compile(rb"deflate (\d+\.\d+[.\d]*)"),
    "libcurl": re.compile(rb"libcurl/(\d+\.\d+\.\d+)"),
    "libmkl_core": re.compile(rb"Math Kernel Library Version (\d+\.[.\d]+)"),
}
#: Symbols whose text is the version.
_SYMBOLS = {"libsqlite3": "sqlite3_version"}

_AFTER = re.compile(r"\.so\.(\d+(?:\.\d+)*[a-z]{0,2})$")  # libstdc++.so.6.0.30, libssl.so.1.1.1k
_BEFORE = re.compile(r"[-.](\d+(?:\.\d+)+(?:\.[a-z]{2,4})?)\.so")  # libc-2.31.so, libopenblas…3.23.dev.so
_PYTHON = re.compile(r"^libpython(\d\.\d+)")
_NUMBERED = re.compile(r"^(.*?)_?(\d+(?:\.\d+)+)$")  # GLIBC_2.36, OPENSSL_3.0.0
_HASH = re.compile(r"-[0-9a-f]{8,}(?=[.-]|$)")  # what auditwheel adds: libgomp-a34b3233.so.1.0.0
_TAIL = re.compile(r"[-.]\d[\d.]*$")  # of libc-2.31, not of libc10


def version_of(
    module: Module, linking: Linking | None, memory: AddressSpace
) -> tuple[str | None, str | None]:
    """(version, how it is known): "package", "text", "file name", "symbols" (at least that) or "soname"."""
    name = module.path.removesuffix(" (deleted)").rpartition("/")[2]
    if linking is not None and linking.package is not None:
        return linking.package[1][:_MAX_VERSION], "package"
    said = _said(name, module, memory)
    if said is not None:
        return said[:_MAX_VERSION], "text"
    python = _PYTHON.match(name)
    if python is not None:
        return python[1], "file name"
    named = _AFTER.search(name)
    if named is not None and "." in named[1]:
        return named[1][:_MAX_VERSION], "file name"
    before = _BEFORE.search(_HASH.sub("", name))
    if before is not None:
        return before[1][:_MAX_VERSION], "file name"
    highest = _highest(linking.versions if linking is not None else ())
    if highest is not None:
        return highest, "symbols"
    number = named or _AFTER.search((linking.soname or "") if linking is not None else "")
    return (number[1][:_MAX_VERSION], "soname") if number is not None else (None, None)


def base_name(path: str) -> str:
    """What a library is called without versions and hashes: copies of one library have the same.

    ``libgomp`` of ``libgomp-a34b3233.so.1.0.0`` and of ``libgomp.so.1``; all builds of OpenBLAS are one.
    """
    name = path.removesuffix(" (deleted)").rpartition("/")[2].partition(".so")[0]
    name = _HASH.sub("", name)
    if "openblas" in name:
        return "libopenblas"
    short = _TAIL.sub("", name)
    # libpython3.so is another library than libpython3.12.so, and goes with it.
    return name if len(short) <= 3 or short.startswith("libpython") else short


def _said(name: str, module: Module, memory: AddressSpace) -> str | None:
    for start, symbol in _SYMBOLS.items():
        at = module.symbol(symbol) if name.startswith(start) else None
        if at is not None:
            try:
                text = memory.cstring(at, _MAX_VERSION).decode("ascii", "replace")
            except MemoryFault:
                continue
            return text if re.fullmatch(r"\d+(\.\d+)+", text) else None
    for start, pattern in _SAYS.items():
        file = module.file if name.startswith(start) else None
        if file is not None:
            found = _search(file, pattern)
            file.release()
            if found is not None:
                return found
    return None


def _search(file: ElfFile, pattern: re.Pattern[bytes]) -> str | None:
    # Constant data has a segment of its own, or is beside the code.
    for segment in sorted(file.loads, key=lambda s: int(s["flags"]) & PF_X):
        offset = int(segment["offset"])
        if int(segment["flags"]) & PF_W:
            continue
        size = min(int(segment["filesz"]), _MAX_SEARCHED)
        found = pattern.search(file.data, offset, min(offset + size, len(file.data)))
        if found is not None:
            return found[1].decode("ascii", "replace")
    return None


def _highest(versions: tuple[str, ...]) -> str | None:
    """The highest version of the name that most of them have."""
    numbers: dict[str, list[tuple[int, ...]]] = {}
    for version in versions:
        found = _NUMBERED.match(version)
        if found is not None and len(found[2]) <= _MAX_VERSION:
            numbers.setdefault(found[1], []).append(tuple(map(int, found[2].split("."))))
    if not numbers:
        return None
    most = max(numbers.values(), key=len)
    return ".".join(map(str, max(most)))
