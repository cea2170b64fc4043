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


def why_known(library: str | None, to_data: bool, count: int) -> str | None:
    """Whose ``count`` blocks these are, by what their first word points to; None for the program's."""
    name = (library or "").rpartition("/")[2]
    if not to_data or count > _MOST:
        return None
    return next((f"{owner} own, lost once" for start, owner in _OWNERS if name.startswith(start)), None)
