"""Native and Python frames of a thread as one stack, in the order in which they were called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diagtool.runtimes.native.stacks.model import NativeFrame
from diagtool.snapshot.model import Frame

__all__ = ["PythonRun", "merge", "native_frames"]

#: Functions that run Python frames, where nothing tells it better (3.9). Tail calls: 3.14 on.
_EVALUATES = ("_PyEval_EvalFrameDefault", "_PyEval_EvalFrame", "PyEval_EvalFrameEx", "_TAIL_CALL_")
_NOT_MERGED = Frame(
    "[Python frames, of which it is not known where between these they belong]", "", None, language="native"
)
_UNKNOWN = Frame("[frames that can't be unwound]", "", None, language="native")

_MADE = "[code that is in no file]"  # a JIT's, or no code at all


@dataclass(frozen=True, slots=True)
class PythonRun:
    """Python frames, innermost first, of one call of the interpreter. ``anchor``: see ``Evaluation``."""

    frames: Sequence[Frame]
    anchor: int = 0


def merge(native: Sequence[NativeFrame], runs: Sequence[PythonRun]) -> list[Frame]:
    """All frames of a thread, innermost first: each call of the interpreter in ``native`` is replaced by the
    Python frames that it runs. Without native frames those of Python alone."""
    if not native:
        return [frame for run in runs for frame in run.frames]
    groups = list(_physical(native))
    place = _by_anchor(groups, runs)
    if not any(p >= 0 for p in place) and runs:
        place = _by_name(groups, len(runs))
        if not place:
            return [*native_frames(native), _NOT_MERGED, *(f for run in runs for f in run.frames)]
    out: list[Frame] = []
    at = 0
    for run, where in zip(runs, place, strict=True):
        if where >= at:
            out += _shown(groups[at:where])
            at = where + 1
        out += run.frames
    return out + _shown(groups[at:])


def native_frames(native: Sequence[NativeFrame]) -> list[Frame]:
    """Native frames as those of a snapshot."""
    return _shown(_physical(native))


_Group = Sequence[NativeFrame]  # what is inlined, innermost first, and the function that it is inlined in


def _physical(native: Sequence[NativeFrame]) -> Iterator[_Group]:
    group: list[NativeFrame] = []
    for frame in native:
        group.append(frame)
        if not frame.inline:
            yield group
            group = []
    if group:
        yield group


def _by_anchor(groups: Sequence[_Group], runs: Sequence[PythonRun]) -> list[int]:
    """Of each run the group in whose part of the stack its anchor lies, -1 for none."""
    stack = [group[-1].sp for group in groups]
    out: list[int] = []
    at = 0
    for run in runs:
        found = -1
        if run.anchor:
            number = at
            # A frame reaches from its own stack pointer to that of its caller.
            while number + 1 < len(groups) and stack[number + 1] <= run.anchor:
                number += 1
            if number < len(groups) and stack[number] <= run.anchor and number + 1 < len(groups):
                found, at = number, number + 1
        out.append(found)
    return out


def _by_name(groups: Sequence[_Group], runs: int) -> list[int]:
    named = [i for i, group in enumerate(groups) if group[-1].function.startswith(_EVALUATES)]
    return named if len(named) == runs else []


def _shown(groups: Sequence[_Group] | Iterator[_Group]) -> list[Frame]:
    out = []
    for group in groups:
        if group[0].guessed:
            out.append(_UNKNOWN)
        out += [_frame(frame) for frame in group]
    return out


def _frame(native: NativeFrame) -> Frame:
    name = native.function or (f"+{native.offset:#x}" if native.library else _MADE)
    library = native.library or "?"
    return Frame(name, native.file or "", native.line, None, native.language, library)
