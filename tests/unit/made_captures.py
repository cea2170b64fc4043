"""Captures without a process, for tests of what is made of them."""

from __future__ import annotations

from typing import Literal

from diagtool.capture.memory import AddressSpace
from diagtool.capture.model import Capture, CapturedThread, Mapping, ProcessInfo
from diagtool.capture.modules import Module


def capture_of(
    kind: Literal["live", "core"] | str = "live",
    *,
    modules: list[Module] | None = None,
    mappings: list[Mapping] | None = None,
    threads: list[CapturedThread] | None = None,
    memory: AddressSpace | None = None,
) -> Capture:
    """A capture of process 7, whose executable is /usr/bin/app."""
    return Capture(
        kind="core" if kind == "core" else "live",
        process=ProcessInfo(7, exe="/usr/bin/app"),
        threads=threads or [],
        mappings=mappings or [],
        modules=modules or [],
        memory=memory or AddressSpace(),
    )
