"""Allocators other than glibc's: recognised by their symbols and names, sized, not read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diagtool.capture.model import Capture
from diagtool.capture.modules import Module
from diagtool.capture.plan import is_anonymous, is_writable_private
from diagtool.capture.segments import without
from diagtool.runtimes.native.memorymap import Ranges, is_libc
from diagtool.runtimes.native.model import ForeignAllocator

__all__ = ["foreign_allocators", "named_allocators"]


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    files: tuple[str, ...]  # how the names of its libraries begin
    symbols: tuple[str, ...]  # functions that only it has; also where it is linked into the program


_KINDS = (
    _Kind("jemalloc", ("libjemalloc",), ("je_mallctl", "mallctl", "je_malloc_stats_print", "_rjem_mallctl")),
    _Kind(
        "tcmalloc",
        ("libtcmalloc",),
        ("MallocExtension_GetNumericProperty", "tc_malloc", "TCMalloc_Internal_GetStats"),
    ),
    _Kind("mimalloc", ("libmimalloc",), ("mi_malloc", "mi_heap_new", "mi_version")),
)
_MUSL = ("ld-musl-", "libc.musl-")
# CPython brings a mimalloc of its own since 3.13 and uses it for objects in free-threaded builds, which alone
# have the second function (Python/brc.c), or where PYTHONMALLOC says so.
_PYTHON, _FREE_THREADED = "_PyRuntime", "_Py_brc_queue_object"
_MOST_ASKED = 2000  # modules whose symbols are looked at


def foreign_allocators(capture: Capture, taken: Ranges) -> list[ForeignAllocator]:
    """The other allocators of a process. ``taken``: memory that is known to be somebody else's, sorted.

    What one of them has mapped can't be told from other anonymous memory without reading it, so ``mapped`` is
    all of that; with two of them, both are told the same number.
    """
    rest = _anonymous_bytes(capture, taken)
    out = []
    for kind in _KINDS:
        found = _find(kind, capture.modules[:_MOST_ASKED])
        if found is not None:
            module, sign = found
            own = module.symbol(_PYTHON) is not None
            if own and not _python_uses_it(capture, module):
                continue
            owner = " (CPython's own)" if own else ""
            note = f"{kind.name}{owner} by {sign}: its blocks are not read"
            out.append(ForeignAllocator(kind.name, module.path, rest, note))
    musl = next((m for m in capture.modules if _named(m).startswith(_MUSL)), None)
    if musl is not None:
        out.append(
            ForeignAllocator(
                "musl", musl.path, rest, f"musl's malloc by {_named(musl)}: its blocks are not read"
            )
        )
    return out


def named_allocators(modules: Sequence[Module]) -> list[tuple[str, str]]:
    """(name, path) of the allocators whose own libraries are mapped; reads no symbols."""
    out = []
    for kind in _KINDS:
        found = next((m for m in modules if _named(m).startswith(kind.files)), None)
        if found is not None:
            out.append((kind.name, found.path))
    return out


# Private anonymous memory that is not in ``taken``.
def _anonymous_bytes(capture: Capture, taken: Ranges) -> int:
    ranges = [
        (m.start, m.end)
        for m in capture.mappings
        if is_writable_private(m) and is_anonymous(m) and not m.path.startswith("[stack")
    ]
    return sum(end - start for start, end in without(sorted(ranges), taken))


def _python_uses_it(capture: Capture, module: Module) -> bool:
    asked = capture.process.environ.get("PYTHONMALLOC", "")
    return module.symbol(_FREE_THREADED) is not None or asked.startswith("mimalloc")


def _find(kind: _Kind, modules: Sequence[Module]) -> tuple[Module, str] | None:
    for module in modules:
        if _named(module).startswith(kind.files):
            return module, f"the library {_named(module)}"
    for module in modules:
        if is_libc(module):
            continue
        for symbol in kind.symbols:
            if module.symbol(symbol) is not None:
                return module, f"the symbol {symbol} in {_named(module)}"
    return None


def _named(module: Module) -> str:
    return module.path.rpartition("/")[2]
