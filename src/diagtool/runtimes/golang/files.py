"""Which files of a process are Go's: a quick look, as most processes have none."""

from __future__ import annotations

from diagtool.capture.model import Capture
from diagtool.capture.modulefiles import elf_in_memory
from diagtool.capture.modules import Module

__all__ = ["go_files"]

_SECTIONS = (".gopclntab", ".data.rel.ro.gopclntab", ".go.buildinfo")
_LEAST = 1 << 19  # bytes of a file with a runtime of Go in it: an empty program has 0.9 MiB in memory
_PT_NOTE = 4


def go_files(capture: Capture) -> list[Module]:
    """The files of a process that are Go's, its executable first: by their build id, or their sections."""
    exe = capture.process.exe
    ranked = sorted(capture.modules, key=lambda m: m.path != exe)
    return [m for m in ranked if m.end - m.start >= _LEAST and _is_go(capture, m)]


def _is_go(capture: Capture, module: Module) -> bool:
    elf = elf_in_memory(capture.memory.try_read, module.start)
    if elf is not None:
        for segment in elf.segments[elf.segments["type"] == _PT_NOTE]:
            size = min(int(segment["filesz"]), 4096)
            note = capture.memory.try_read(elf.bias + int(segment["address"]), size) if size else None
            if note and note[12:16] == b"Go\0\0":
                return True
    if any(module.section(name) is not None for name in _SECTIONS):
        return True
    # A core without its executable, or one that was stripped of the names of its sections, too.
    if module.path == capture.process.exe and module.section(".text") is None:
        from diagtool.runtimes.golang.find import version_in

        return bool(version_in(capture, module))
    return False
