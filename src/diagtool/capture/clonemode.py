"""When a copy-on-write image of a process is taken (image.py), for those who don't take one."""

from __future__ import annotations

from typing import Literal

from diagtool.capture import room

__all__ = ["AUTO_BYTES", "CloneMode", "wanted"]

CloneMode = Literal["auto", "always", "never"]

#: Bytes of anonymous memory up to which "auto" copies in the stop: about 6 ms at 5 GiB/s, which is what an
#: image costs altogether (two stops, page tables, and a fault for each page that is written to meanwhile).
AUTO_BYTES = 32 << 20


def wanted(pid: int, mode: CloneMode, least: int = AUTO_BYTES) -> bool:
    """Whether an image is to be taken of a process."""
    return mode == "always" or (mode == "auto" and room.resident_bytes(pid)[0] > least)
