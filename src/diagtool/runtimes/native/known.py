"""Unreachable blocks that are no leak of the program: what the C library and the dynamic linker let go of.

A healthy idle CPython 3.9 to 3.15 has none at all here: all memory that is not malloc's counts as root. What
is left are a few blocks that libraries lose on purpose, once; a leak is many blocks, or one that grows.
"""

from __future__ import annotations

__all__ = ["why_known"]

_MOST = 16  # blocks of one kind that a library loses once

#: Whose a block is whose first word points to data of these libraries, by the start of their names.
_OWNERS = (
    ("ld-linux", "the dynamic linker's"),
    ("ld-2.", "the dynamic linker's"),
    ("libc.so", "the C library's"),
    ("libc-2.", "the C library's"),
)


#: Libraries that lose memory with each piece of work of a kind that a healthy program does a few times only.
#: llvmlite 0.4x and later: lists of passes and their data, some 40 KB with each function that numba compiles.
_LOSSY = (("libllvmlite.", "llvmlite's own, lost with each function that it compiles"),)


def why_known(library: str | None, holds: str | None, to_data: bool, count: int) -> str | None:
    """Whose ``count`` blocks these are, by what their first word points to; None for the program's.

    ``holds``: the library of what they point to, where the first word says nothing.
    """
    name = (library or holds or "").rpartition("/")[2]
    for start, why in _LOSSY:
        if name.startswith(start):
            return why
    if not to_data or count > _MOST:
        return None
    name = (library or "").rpartition("/")[2]
    return next((f"{owner} own, lost once" for start, owner in _OWNERS if name.startswith(start)), None)
