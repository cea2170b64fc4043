"""Unreachable blocks that are no leak of the program: what the C library and the interpreter let go of."""

from __future__ import annotations

__all__ = ["why_known"]

#: Libraries whose own blocks are theirs to lose, by the start of their names.
_OWNERS = (
    ("ld-linux", "the dynamic linker's"),
    ("ld-2.", "the dynamic linker's"),
    ("libc.so", "the C library's"),
    ("libc-2.", "the C library's"),
)


def why_known(library: str | None, symbol: str | None) -> str | None:
    """Whose block this is, where its first word says so; None for the program's."""
    name = (library or "").rpartition("/")[2]
    for start, owner in _OWNERS:
        if name.startswith(start):
            return f"{owner} own"
    return None
