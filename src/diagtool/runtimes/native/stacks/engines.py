"""The unwinders, and which one is used."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from diagtool.capture.model import Capture
from diagtool.runtimes.native.stacks.model import NativeStacks

__all__ = ["UNWINDERS", "Unwinder", "native_stacks"]

Unwinder = Literal["auto", "drgn", "gdb"]
UNWINDERS: tuple[Unwinder, ...] = ("auto", "drgn", "gdb")


def native_stacks(
    capture: Capture,
    unwinder: Unwinder = "auto",
    debug_directories: Sequence[str] = (),
    without: Collection[int] = (),
) -> NativeStacks:
    """The native frames of all threads of a capture; what is wrong with them is a warning of the result.

    ``auto`` is drgn, and gdb where drgn is not installed or can't be used. ``debug_directories``: where
    separate debug files are, besides /usr/lib/debug. ``without``: threads (tids) that somebody else unwinds.
    """
    stacks: NativeStacks | None = None
    why = ""
    if without and all(t.tid in without for t in capture.threads if t.registers):
        return NativeStacks()
    if unwinder != "gdb":
        try:
            from diagtool.runtimes.native.stacks.drgnengine import unwind

            stacks = unwind(capture, debug_directories, without)
        except ImportError:
            why = "drgn is not installed"
        except Exception as error:  # noqa: BLE001 - a library that unwinds garbage may raise anything
            why = f"drgn failed: {str(error).partition(chr(10))[0] or type(error).__name__}"
    if stacks is None and unwinder != "drgn":
        from diagtool.runtimes.native.stacks.gdbengine import NoGdb
        from diagtool.runtimes.native.stacks.gdbengine import unwind as unwind_with_gdb

        try:
            stacks = unwind_with_gdb(capture, debug_directories)
            stacks.frames = {tid: frames for tid, frames in stacks.frames.items() if tid not in without}
            stacks.cut = {tid: text for tid, text in stacks.cut.items() if tid not in without}
        except NoGdb as error:
            why = f"{why}; {error}" if why else str(error)
    if stacks is None:
        return NativeStacks(warnings=[f"native frames are missing: {why}"])
    if why:
        stacks.warnings.append(f"native frames were found with gdb: {why}")
    return stacks
