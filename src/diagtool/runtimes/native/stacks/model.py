"""What an unwinder says of a thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["NativeFrame", "NativeStacks"]


@dataclass(frozen=True, slots=True)
class NativeFrame:
    """One native frame. An inlined function is a frame of its own, with the pc of the one it is part of.

    ``function`` is the demangled name, "" where there is no symbol; ``offset`` is that of ``pc`` in bytes,
    from the beginning of the function, else from that of the library. ``sp``: the stack pointer in this
    frame.
    ``guessed``: found by looking for a return address, because what lies inside can't be unwound.
    """

    pc: int
    sp: int
    function: str = ""
    offset: int = 0
    library: str | None = None  # path, as the process sees it
    file: str | None = None  # of the source
    line: int | None = None
    inline: bool = False
    language: str = "native"  # c | c++ | rust | native: not known
    guessed: bool = False


@dataclass(slots=True)
class NativeStacks:
    """``frames``: of each thread (tid) innermost first. ``cut``: threads whose outermost frames are missing,
    and why."""

    frames: Mapping[int, Sequence[NativeFrame]] = field(default_factory=dict)
    cut: dict[int, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
