"""Unreachable blocks put together by size and by what their first word points into.

The first word of an object of C++ is its vtable, of a Python object or a C structure often a pointer to a
table of a library: that names who made it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.elf import PF_X
from diagtool.capture.memory import U64, AddressSpace, Mask, MemoryFault
from diagtool.capture.modules import Module
from diagtool.runtimes.native.hanging import causes
from diagtool.runtimes.native.known import why_known
from diagtool.runtimes.native.model import UnreachableGroup

__all__ = ["class_name", "grouped"]

_EXAMPLES = 5
_MOST_NAMED = 1000  # first words that are looked up; the others are grouped by size alone
_LONGEST_NAME = 512


def grouped(
    memory: AddressSpace,
    modules: Sequence[Module],
    address: U64,
    size: U64,
    links: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> tuple[list[UnreachableGroup], NDArray[np.int64]]:
    """Groups, the one with most bytes first, and for each block the index of its own.

    ``links``: (source, target) of pointers between the blocks.
    """
    if not len(address):
        return [], np.zeros(0, dtype=np.int64)
    heads = np.ones(len(address), dtype=np.bool_)
    heads[links[1]] = False
    words = memory.load(address)[0]
    names = _Names(memory, modules)
    keys = np.where(names.inside(words), words, np.uint64(0))
    distinct, count = np.unique(keys, return_counts=True)
    rare = distinct[np.argsort(-count, kind="stable")[_MOST_NAMED:]]
    keys[np.isin(keys, rare)] = 0
    holds = _held(names.number(keys), links)
    order = np.lexsort((holds, keys, size))
    changes = (np.diff(size[order]) != 0) | (np.diff(keys[order]) != 0) | (np.diff(holds[order]) != 0)
    first = np.concatenate([[0], np.flatnonzero(changes) + 1, [len(order)]])
    kinds = np.empty(len(order), dtype=np.int64)
    kinds[order] = np.cumsum(np.concatenate([[0], changes.astype(np.int64)]))
    cause = causes(kinds, heads, *links)
    hangs = cause != kinds
    own = np.bincount(kinds[hangs], minlength=len(first) - 1)
    more = np.bincount(cause[hangs], minlength=len(first) - 1)
    more_bytes = np.bincount(cause[hangs], weights=size[hangs].astype(np.float64), minlength=len(first) - 1)
    out = []
    for number, (low, high) in enumerate(pairwise(first.tolist())):
        rows = order[low:high]
        bytes_each, word = int(size[rows[0]]), int(keys[rows[0]])
        library, symbol, kind = names.of(word) if word else (None, None, None)
        held = names.path(int(holds[rows[0]]))
        out.append(
            UnreachableGroup(
                size=bytes_each,
                count=len(rows),
                bytes=bytes_each * len(rows),
                heads=int(heads[rows].sum()),
                hangs=int(own[number]),
                hanging=int(more[number]),
                hanging_bytes=int(more_bytes[number]),
                library=library,
                symbol=symbol,
                type=kind,
                holds=held,
                known=why_known(library, held, bool(word) and not names.is_code(word), len(rows)),
                examples=tuple(address[rows[:_EXAMPLES]].tolist()),
            )
        )
    ranked = sorted(range(len(out)), key=lambda i: (-out[i].bytes, out[i].size, out[i].library or ""))
    rank = np.empty(len(out), dtype=np.int64)
    rank[ranked] = np.arange(len(out))
    return [out[i] for i in ranked], rank[kinds]


# For blocks that don't begin with a pointer into a module: the module (by number) into which one begins that
# they point to, themselves or through one more. The table of a list of objects is told so.
def _held(module: NDArray[np.int64], links: tuple[NDArray[np.int64], NDArray[np.int64]]) -> NDArray[np.int64]:
    source, target = links
    seen = module.copy()
    for _ in range(2):
        some = (seen[source] == 0) & (seen[target] != 0)
        found = np.zeros(len(seen), dtype=np.int64)
        np.maximum.at(found, source[some], seen[target[some]])
        seen = np.where(seen == 0, found, seen)
    return np.where(module == 0, seen, 0)


class _Names:
    """Which library an address belongs to, and what stands there."""

    def __init__(self, memory: AddressSpace, modules: Sequence[Module]) -> None:
        self._memory = memory
        self._modules = sorted(modules, key=lambda m: m.start)
        self._starts = [m.start for m in self._modules]

    def inside(self, words: U64) -> Mask:
        """Which words point into some module."""
        starts = np.array(self._starts, dtype=np.uint64)
        ends = np.array([m.end for m in self._modules], dtype=np.uint64)
        if not len(starts):
            return np.zeros(len(words), dtype=np.bool_)
        at = np.searchsorted(starts, words, side="right") - 1
        inside: Mask = (at >= 0) & (words < ends[np.maximum(at, 0)])
        return inside

    def number(self, words: U64) -> NDArray[np.int64]:
        """The number of the module that each word points into, from 1; 0 for none."""
        starts = np.array(self._starts, dtype=np.uint64)
        at = np.searchsorted(starts, words, side="right").astype(np.int64)
        return np.where(self.inside(words), at, 0)

    def path(self, number: int) -> str | None:
        """The path of a module by number."""
        return self._modules[number - 1].path if number else None

    def is_code(self, word: int) -> bool:
        """Whether an address is in the code of a module."""
        module = self._module(word)
        return module is not None and bool(module.flags_at(word) & PF_X)

    def of(self, word: int) -> tuple[str | None, str | None, str | None]:
        """(path of the library, function and offset, class of the object whose vtable this is)."""
        module = self._module(word)
        if module is None:
            return None, None, None
        symbol = None
        if module.flags_at(word) & PF_X:
            found = module.symbol_at(word)
            if found is not None:
                symbol = found[0] if not found[1] else f"{found[0]}+{found[1]:#x}"
        return module.path, symbol, None if symbol else self._class(word)

    def _module(self, address: int) -> Module | None:
        i = bisect_right(self._starts, address) - 1
        return self._modules[i] if i >= 0 and self._modules[i].contains(address) else None

    # Itanium C++ ABI 2.9: the word before a vtable's first entry is its type_info, whose second word is
    # its name, mangled. Both are in libraries; a vtable has at least one function behind it, too.
    def _class(self, vtable: int) -> str | None:
        try:
            info = self._memory.u64(vtable - 8)
            function = self._memory.u64(vtable)
            if self._module(info) is None or info % 8:
                return None
            code = self._module(function)
            if code is None or not code.flags_at(function) & PF_X:
                return None
            name = self._memory.u64(info + 8)
            if self._module(name) is None:
                return None
            text = self._memory.cstring(name, _LONGEST_NAME)
        except MemoryFault:
            return None
        return class_name(text.decode("ascii", "replace"))


def class_name(mangled: str) -> str | None:
    """The class "app::Node" of a type_info's name "N3app4NodeE"; what is harder stays as it is."""
    mangled = mangled.lstrip("*")
    if not re.fullmatch(r"[A-Za-z0-9_$.]{2,}", mangled) or not re.match(r"\d|N|St|S[absiod]", mangled):
        return None
    nested = mangled.startswith("N") and mangled.endswith("E")
    rest, parts = mangled[1:-1] if nested else mangled, []
    while rest:
        length = re.match(r"[1-9]\d*", rest)
        if length is None:
            return mangled
        start = length.end()
        end = start + int(length.group())
        if end > len(rest):
            return mangled
        parts.append(rest[start:end])
        rest = rest[end:]
    return "::".join(parts) if parts and (nested or len(parts) == 1) else mangled
