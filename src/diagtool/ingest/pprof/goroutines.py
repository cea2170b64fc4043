"""Goroutine profiles as stacks. A profile has no numbers, states, times or creators: frames tell the wait."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diagtool.golang.goroutines import Goroutines, Kind
from diagtool.golang.names import package_of
from diagtool.ingest.pprof.frames import Frames
from diagtool.ingest.pprof.profile import Profile
from diagtool.snapshot.model import KIND, Frame, SnapshotBuilder

__all__ = ["MOST_GOROUTINES", "add_goroutines", "reason_of"]

#: Goroutines that are made of a profile.
MOST_GOROUTINES = 2_000_000
_MOST_LABELS = 1_000_000
_MOST_FRAMES = 2_000_000  # of all distinct stacks

#: Frames that the runtime keeps of one stack: 32 until Go 1.22, 128 from 1.23 on.
_DEPTHS = (32, 128)

_PARKED = ("runtime.gopark", "runtime.goparkunlock")
_SYSCALLS = ("syscall", "internal/runtime/syscall", "runtime/internal/syscall", "golang.org/x/sys/unix")
_WRITES = ("runtime.goroutineProfileWithLabels", "runtime/pprof.runtime_goroutineProfileWithLabels")


def reason_of(frames: Sequence[Frame]) -> str:
    """The status of a goroutine with these frames (innermost first), as far as its innermost frame tells."""
    innermost = frames[0].function if frames else ""
    if innermost in _PARKED:
        return "waiting"
    if innermost in ("runtime.cgocall", "runtime.notetsleepg") or package_of(innermost) in _SYSCALLS:
        return "syscall"
    return "running" if innermost in _WRITES else "runnable"


def add_goroutines(builder: SnapshotBuilder, profile: Profile, proved: Profile | None = None) -> list[str]:
    """Add the goroutines of a profile, as many as it counts; warnings of what is left out.

    ``proved``: those that the runtime proved to wait for ever, the same profile or one taken before.
    """
    warnings: list[str] = []
    counts = np.maximum(profile.values[:, 0], 0)
    counts, left_out = _capped(counts, MOST_GOROUTINES)
    if left_out:
        warnings.append(
            f"{left_out:,} goroutines of the profile are not counted: at most {MOST_GOROUTINES:,} are, the "
            "places with most are shortened"
        )
    kinds, depths, missing = _kinds(builder, profile)
    if missing:
        warnings.append(f"{missing:,} stacks of the profile are left out: it has too many frames")
    table = np.array(
        [(k.state, k.wait, k.trace, k.merged) if k is not None else (0, 0, 0, 0) for k in kinds], np.int64
    ).reshape(-1, 4)
    known = np.array([k is not None for k in kinds], np.bool_)
    counts = np.where(known[profile.stack], counts, 0)
    rows = np.repeat(profile.stack, counts)
    stuck = _stuck(profile, proved, counts)
    state, wait, trace, merged = table[rows].T
    first = builder.add(
        [""] * len(rows),
        kind=KIND["goroutine"],
        state=state,
        wait=wait,
        trace=trace,
        merged=merged,
        stuck=stuck,
    )
    warnings += _label(builder, profile, first, counts)
    cut = int(np.maximum(profile.values[:, 0], 0)[np.isin(depths, _DEPTHS)[profile.stack]].sum())
    if cut:
        warnings.append(
            f"{cut:,} stacks of the profile have {_DEPTHS[0]} or {_DEPTHS[1]} frames, as many as the runtime "
            "keeps at most: outer frames may be missing"
        )
    return warnings


def _kinds(builder: SnapshotBuilder, profile: Profile) -> tuple[list[Kind | None], NDArray[np.int64], int]:
    """Of each stack what its goroutines have in common and how many frames it has; how many are left out."""
    goroutines, frames = Goroutines(builder), Frames(profile)
    out: list[Kind | None] = []
    depths = np.zeros(len(profile.stacks), np.int64)
    made = missing = 0
    for stack in range(len(profile.stacks)):
        found = frames.of(stack)
        depths[stack] = len(found)
        made += len(found)
        if made > _MOST_FRAMES:
            missing += 1
            out.append(None)
            continue
        out.append(goroutines.kind(reason_of(found), found))
    return out, depths, missing


def _stuck(profile: Profile, proved: Profile | None, counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Which rows are among those that are proved: of each stack with its labels so many, the first ones."""
    if proved is None or proved is profile:
        return np.full(int(counts.sum()), proved is profile and proved is not None, np.uint8)
    known: dict[object, int] = {}
    for sample, (stack, count) in enumerate(zip(proved.stack.tolist(), proved.values[:, 0], strict=True)):
        key = (tuple(proved.places(stack)), frozenset(proved.labels_of(sample)))
        known[key] = known.get(key, 0) + max(int(count), 0)
    many = np.zeros(len(counts), np.int64)
    for sample, (stack, count) in enumerate(zip(profile.stack.tolist(), counts.tolist(), strict=True)):
        key = (tuple(profile.places(stack)), frozenset(profile.labels_of(sample)))
        many[sample] = min(known.get(key, 0), count)
        known[key] = known.get(key, 0) - int(many[sample])
    starts = np.cumsum(counts) - counts
    number = np.arange(int(counts.sum())) - np.repeat(starts, counts)
    return (number < np.repeat(many, counts)).astype(np.uint8)


def _label(builder: SnapshotBuilder, profile: Profile, first: int, counts: NDArray[np.int64]) -> list[str]:
    labels = builder.snapshot.labels
    before, row = len(labels), first
    for sample, count in enumerate(counts.tolist()):
        found = [label for label in profile.labels_of(sample) if label.text]
        if len(labels) - before + count * len(found) > _MOST_LABELS:
            return [f"only the first {len(labels) - before:,} labels of goroutines are kept"]
        labels += [(at, key, value) for at in range(row, row + count) for key, value, _ in found]
        row += count
    return []


def _capped(counts: NDArray[np.int64], most: int) -> tuple[NDArray[np.int64], int]:
    """``counts`` whose sum is at most ``most``, the largest shortened to one length; how much is gone.

    No number is kept whole that the sum of 64 bits can't hold.
    """
    counts = np.minimum(counts, 1 << 40)
    whole = int(counts.sum(dtype=np.float64))
    if whole <= most:
        return counts, 0
    ordered = np.sort(counts)
    below = np.concatenate([[0], np.cumsum(ordered)])[:-1]
    left = np.arange(len(ordered), 0, -1)
    # Cut at the length of each in turn: all shorter ones whole, the others as long as this one.
    fits = np.flatnonzero(below + left * ordered <= most)
    at = int(fits[-1]) + 1 if len(fits) else 0
    length = max(0, (most - int(below[at])) // int(left[at]))
    capped = np.minimum(counts, length)
    return capped, whole - int(capped.sum())
