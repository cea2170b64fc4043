"""Whose a mapping is, by what the kernel says of it: its name, its permissions, its neighbours."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from diagtool.capture.elf import PF_W
from diagtool.capture.model import Mapping
from diagtool.capture.modules import Module

__all__ = ["BREAK", "NOTES", "UNKNOWN", "Owners", "part_of_library"]

MAIN_STACK = "main stack"
ENDED_STACKS = "stacks of ended threads"
LIBRARIES = "programs and libraries"
KERNEL = "kernel pages"
FILES = "files"
DELETED = "deleted files"
SHARED = "shared memory"
SYSV = "SysV shared memory"
SHARED_ANONYMOUS = "shared anonymous memory"
MEMFD = "memfd"
CUDA = "CUDA"
ROCM = "ROCm"
DRM = "DRM"
DEVICES = "devices"
IO_URING = "io_uring"
KERNEL_OBJECTS = "kernel objects"
HUGE = "hugetlb pages"
BREAK = "break heap, not malloc's"
CODE = "code made at run time"
RESERVED = "reserved, not accessible"
READ_ONLY = "read-only anonymous memory"
UNKNOWN = "unknown anonymous memory"

_EXCLUDED = "most likely: it is loaded, and nobody else is known to own this"

#: What an owner is, where its name does not say it.
NOTES = {
    ENDED_STACKS: "glibc keeps up to 40 MiB of them for new threads",
    RESERVED: "addresses without memory: guard pages, what arenas may grow into",
    UNKNOWN: "mmap() by nobody that diagtool knows",
    "Go heap, free pages": "kept for later, or given back already where nothing of it is resident",
    "Go stacks": "of goroutines, and what the runtime itself keeps in spans",
    BREAK: "the heap that brk(2) grows, of another allocator or of none",
    CODE: "executable memory without a file: just-in-time compilers, libffi's closures",
    "jemalloc": _EXCLUDED,
    "tcmalloc": _EXCLUDED,
    "mimalloc": _EXCLUDED,
    SHARED_ANONYMOUS: "mmap(MAP_SHARED) without a file: shared with child processes",
    DELETED: "no name leads to them any more: they are freed when unmapped",
}

_KERNEL = 0xFFFF_FFFF_FF60_0000  # vsyscall, the only page of the upper half that a process sees
_GUARD = 1 << 20  # bytes of a guard below a stack, at most
_USUAL_STACK = 8 << 20  # bytes, RLIMIT_STACK at its default


class Owners:
    """Tells owners of mappings.

    ``stack_sizes``: bytes of the mappings of known stacks; ``tmpfs``: folders whose files are memory.
    """

    def __init__(
        self,
        modules: Sequence[Module],
        stack_sizes: frozenset[int] = frozenset(),
        tmpfs: Sequence[str] = (),
    ) -> None:
        self._ordered = sorted(modules, key=lambda m: m.start)
        self._starts = [m.start for m in self._ordered]
        self._known: dict[tuple[str, str], str | None] = {}
        self._programs = {m.path for m in modules}
        self._stack_sizes = stack_sizes
        self._tmpfs = tuple(f"{folder.rstrip('/')}/" for folder in tmpfs)

    def module_at(self, address: int) -> Module | None:
        """The module that has an address between its first and its last byte."""
        i = bisect_right(self._starts, address) - 1
        return self._ordered[i] if i >= 0 and address < self._ordered[i].end else None

    def of(self, mappings: Sequence[Mapping]) -> list[str]:
        """The owner of each mapping, as far as its own line tells it; sorted by address."""
        programs = {m.path for m in mappings if "x" in m.permissions and m.path.startswith("/")}
        self._programs |= {p for p in programs if not p.startswith(("/dev/", "/memfd:", "/SYSV"))}
        out = []
        for i, m in enumerate(mappings):
            key = m.path, m.permissions
            if key not in self._known:
                self._known[key] = self._by_name(m)
            owner = self._known[key]
            out.append(owner if owner is not None else self._anonymous(mappings, i))
        return out

    def _by_name(self, m: Mapping) -> str | None:
        path = m.path
        if not path or path.startswith("["):
            return self._special(path)
        plain = path.removesuffix(" (deleted)")
        for prefix, owner in _PREFIXES:
            if plain.startswith(prefix):
                return owner
        if path in self._programs and not path.endswith(" (deleted)"):
            return LIBRARIES
        if plain.startswith(self._tmpfs):
            return SHARED
        return DELETED if path.endswith(" (deleted)") else FILES

    def _special(self, path: str) -> str | None:
        if path.startswith("[stack"):
            return MAIN_STACK
        if path.startswith(("[v", "[uprobes")):  # vdso, vvar, vvar_vclock, vsyscall
            return KERNEL
        if path.startswith("[anon_shmem"):
            return SHARED_ANONYMOUS
        return None

    def _anonymous(self, mappings: Sequence[Mapping], i: int) -> str:
        m = mappings[i]
        if m.start >= _KERNEL:
            return KERNEL  # vsyscall, which has no name in a core
        module = self.module_at(m.start)
        if module is not None and m.path != "[heap]":
            return LIBRARIES  # .bss, or data that was cut by mprotect()
        before = mappings[i - 1] if i else None
        if m.permissions.startswith("---"):
            return RESERVED
        if "x" in m.permissions:
            return CODE
        if m.permissions.endswith("s"):
            return SHARED_ANONYMOUS
        if m.path == "[heap]":
            return BREAK
        if "w" not in m.permissions:
            return READ_ONLY
        return ENDED_STACKS if self._was_stack(before, m) else UNKNOWN

    # A guard below it, and as large as stacks are here.
    def _was_stack(self, before: Mapping | None, m: Mapping) -> bool:
        if before is None or before.end != m.start or before.permissions[:3] != "---" or before.path:
            return False
        guard, size = before.end - before.start, m.end - m.start
        usual = size in self._stack_sizes or size in (_USUAL_STACK, _USUAL_STACK - guard)
        return guard <= _GUARD and usual


_PREFIXES = (
    ("/dev/nvidia", CUDA),
    ("/dev/dri/", DRM),
    ("/dev/kfd", ROCM),
    ("/i915", DRM),
    ("/drm mm object", DRM),
    ("anon_inode:i915", DRM),
    ("/dev/shm/", SHARED),
    ("/SYSV", SYSV),
    ("/dev/zero", SHARED_ANONYMOUS),
    ("/memfd:", MEMFD),
    ("/anon_hugepage", HUGE),
    ("/dev/hugepages", HUGE),
    ("anon_inode:[io_uring]", IO_URING),
    ("anon_inode:", KERNEL_OBJECTS),
    ("socket:", KERNEL_OBJECTS),
    ("/dev/", DEVICES),
)


def part_of_library(mapping: Mapping, module: Module | None) -> str:
    """text, data, relro or rodata."""
    if "x" in mapping.permissions:
        return "text"
    if "w" in mapping.permissions:
        return "data"
    relocated = module is not None and module.flags_at(mapping.start) & PF_W
    return "relro" if relocated else "rodata"
