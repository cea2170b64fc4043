"""Libraries of the C library: those whose functions wait on behalf of others."""

from __future__ import annotations

__all__ = ["is_libc"]

_LIBRARIES = ("libc.so", "libc-", "libpthread", "ld-linux", "ld-musl", "libc.musl", "[vdso]", "linux-vdso")


def is_libc(path: str | None) -> bool:
    """Whether a path is that of the C library, the dynamic linker or the vDSO."""
    return path is not None and path.rpartition("/")[2].startswith(_LIBRARIES)
