"""All that was seen of a command, judged: one report.

Looks while it ran are a series of each process (``leaks/series.py``): only what stayed or grew counts, and of
a single one only what is proven, which is true at any time. A look for a reason (a threshold, a signal, the
end, a hang) is judged alone, too, as ``diagtool leaks`` would. What is found more than once is one finding.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diagtool.capture.signals import name_of
from diagtool.leaks import find_leaks
from diagtool.leaks.model import VERDICTS, Cluster, Finding, Report
from diagtool.leaks.series import SeriesError
from diagtool.leaks.template import Template
from diagtool.snapshot.model import Frame, Snapshot, Target
from diagtool.supervise.analyst import Look
from diagtool.supervise.plan import Ended, Orphan

if TYPE_CHECKING:
    from diagtool.leaks.source.files import Sources

__all__ = ["judge"]

_SERIES = ("sample", "every", "asked", "exit", "signal", "hang", "threshold")
_ALONE = ("asked", "exit", "signal", "hang", "threshold", "crash")
#: What is late where a process was held.
_BY_THE_CLOCK = ("event-loop-blocked",)
_BY_CHANCE = ("sample", "every", "check", "threshold")
_MOST_FAILED = 3  # looks of one process
_MOST_NAMED = 20  # orphans

#: (finding, the look it is of)
_Found = tuple[Finding, Look | None]


def judge(
    ended: Ended,
    *,
    templates: Sequence[Template] | None = None,
    min_count: int | None = None,
    sources_of: Callable[[Snapshot], Sources] | None = None,
) -> tuple[Report, list[Snapshot]]:
    """The report about a command, and the snapshots it is made of, oldest first.

    ``sources_of`` gives where the source of a process can be read; see :func:`diagtool.leaks.find_leaks`.
    """

    def found_in(snapshots: Sequence[Snapshot]) -> Report:
        sources = None if sources_of is None else sources_of(snapshots[-1])
        return find_leaks(snapshots, templates=templates, min_count=min_count, sources=sources)

    by_pid: dict[int, list[Look]] = {}
    for look in ended.looks:
        if look.snapshot is not None:
            by_pid.setdefault(look.pid, []).append(look)
    found: list[_Found] = []
    reports: list[Report] = []
    warnings: list[str] = [*ended.notes, *_troubles(ended.looks)]
    for looks in by_pid.values():
        for judged, report in _judged(looks, found_in):
            last = judged[-1]
            found += [(f, last) for f in report.findings if _counts(judged, f)]
            if last.pid == ended.pid:
                reports.append(report)
            warnings += report.warnings
    found += [(crash, look) for look in ended.looks if (crash := _crash(look)) is not None]
    hang = _hang(ended)
    if hang is not None:
        found.append(hang)
    found += [(finding, None) for finding in _orphans(ended.orphans)]
    main = next((looks for pid, looks in by_pid.items() if pid == ended.pid), None)
    shown = main or next(iter(by_pid.values()), None)
    snapshots = [look.snapshot for look in shown or () if look.snapshot is not None]
    clusters: tuple[Cluster, ...] = reports[-1].clusters if reports else ()
    target = snapshots[-1].target if snapshots else Target("live", ended.pid)
    pauses = [s.pause_ms for s in snapshots if s.pause_ms is not None]
    report = Report.of(
        target,
        _merged(found, ended),
        clusters,
        stacks=len(snapshots[-1].stacks) if snapshots else 0,
        warnings=warnings,
        pause_ms=max(pauses, default=None),
    )
    return report, snapshots


def _judged(
    looks: list[Look], found_in: Callable[[Sequence[Snapshot]], Report]
) -> Iterable[tuple[list[Look], Report]]:
    series = [look for look in looks if look.why in _SERIES]
    alone = [look for look in looks if look.why in _ALONE]
    groups = [[look] for look in alone]
    if len(series) > 1 or (series and series[0] not in alone):
        groups.append(series)
    for group in groups:
        snapshots = [look.snapshot for look in group if look.snapshot is not None]
        try:
            yield group, found_in(snapshots)
        except SeriesError:  # it went on with another program (exec): the last one counts
            yield group[-1:], found_in(snapshots[-1:])


def _counts(looks: list[Look], finding: Finding) -> bool:
    look = looks[-1]
    if look.stood and finding.template in _BY_THE_CLOCK:
        return False
    # Of one look while it ran, by chance, only what can't be otherwise.
    return len(looks) > 1 or look.why in _ALONE or finding.verdict == "proven"


def _merged(found: list[_Found], ended: Ended) -> list[Finding]:
    best: dict[str, _Found] = {}
    pids: dict[str, set[int]] = {}
    for finding, look in found:
        if look is not None:
            pids.setdefault(finding.id, set()).add(look.pid)
        known = best.get(finding.id)
        if known is None or _better((finding, look), known):
            best[finding.id] = (finding, look)
    out = []
    for finding, look in best.values():
        said = list(finding.evidence)
        if look is not None:
            said.append(_when(look, ended))
            others = len(pids[finding.id]) - 1
            if look.pid != ended.pid:
                said.append(f"in process {look.pid}: {look.command[:200]}")
            if others:
                said.append(f"the same in {others} other process{'es' if others > 1 else ''}")
        out.append(replace(finding, evidence=tuple(said)))
    return out


# The worse verdict; else what a series says, which knows more; else the later one.
def _better(one: _Found, other: _Found) -> bool:
    def rank(found: _Found) -> tuple[int, bool, float]:
        finding, look = found
        return -VERDICTS.index(finding.verdict), finding.trend is not None, look.at if look else 0.0

    return rank(one) > rank(other)


def _when(look: Look, ended: Ended) -> str:
    return f"seen {look.text}, {look.at:.1f} s after the start; the command ended after {ended.seconds:.1f} s"


def _troubles(looks: Sequence[Look]) -> list[str]:
    out = []
    read = {look.pid for look in looks if look.snapshot is not None}
    failed = Counter(look.pid for look in looks if look.error is not None)
    for look in looks:
        if look.core_error:
            out.append(f"no core was written: {look.core_error}")
        # In its end a Python has taken its interpreter down, as a rule.
        if look.error is None or look.why == "exit":
            continue
        # One look by chance may be too early or too late.
        chance = look.why in _BY_CHANCE
        if chance and (look.gone or look.pid in read or failed[look.pid] < _MOST_FAILED):
            continue
        what = f"process {look.pid} could not be read"
        out.append(f"{what}: {look.error}" if chance else f"{what} {look.text}: {look.error}")
    return out


# -- what no template says ------------------------------------------------------------------------------


def _crash(look: Look) -> Finding | None:
    """The end by a signal, as a finding in the frame where it happened."""
    if look.why != "crash":
        return None
    number = look.signal.number if look.signal is not None else 0
    crash: dict[str, Any] = {}
    frames: tuple[Frame, ...] = ()
    if look.snapshot is not None:
        crash = look.snapshot.target.details.get("crash") or {}
        frames = _frames_of(look.snapshot, look.tid)
    name = name_of(number) if number else "a signal"
    return Finding(
        id=_identity("crash", name, *(f.function for f in frames[:8])),
        template=None,
        verdict="proven",
        severity="high",
        kind="thread",
        count=1,
        title=f"The process was ended by {name}",
        state="running",
        frames=frames,
        evidence=(str(crash["text"]),) if crash.get("text") else (),
        cause="Memory that is not there, an instruction that can't be, or an abort on purpose.",
        fix="Look at the innermost frames, and at the core (--core) with `diagtool stacks CORE --native`.",
    )


def _hang(ended: Ended) -> _Found | None:
    """That a time limit was reached, as a finding where the main thread is."""
    if not ended.timed_out:
        return None
    looks = [look for look in ended.looks if look.why == "hang"]
    look = next((one for one in looks if one.pid == ended.pid), looks[0] if looks else None)
    frames = () if look is None or look.snapshot is None else _frames_of(look.snapshot, look.pid)
    finding = Finding(
        id=_identity("hang", *(f.function for f in frames[:8])),
        template=None,
        verdict="likely",
        severity="high",
        kind="thread",
        count=1,
        title="The command had not ended when its time was over",
        state="waiting" if frames else "unknown",
        frames=frames,
        evidence=("the command had not ended when its time was over, and was told to",),
        cause="What it waits for did not come in time, or it needs longer than --timeout says.",
        fix="The other findings may say who keeps it waiting; else look at the main thread's frames.",
    )
    return finding, look


def _frames_of(snap: Snapshot, tid: int | None) -> tuple[Frame, ...]:
    for info in snap.threads:
        if info.tid == tid and 0 <= info.stack < len(snap.stacks):
            stack = snap.stack(info.stack)
            return tuple(stack.merged or stack.frames)
    return ()


def _orphans(orphans: Sequence[Orphan]) -> list[Finding]:
    out = []
    for daemon in (False, True):
        group = [o for o in orphans if o.daemon == daemon]
        if not group:
            continue
        said = [f"outlives the command: process {o.pid}, {o.command[:200]}" for o in group[:_MOST_NAMED]]
        out.append(
            Finding(
                id=_identity("orphans", str(daemon), *sorted({o.command.split(" ")[0] for o in group})),
                template=None,
                verdict="suspect" if daemon else "likely",
                severity="low" if daemon else "medium",
                kind="process",
                count=len(group),
                title="Processes outlive the command that they came of",
                state="running",
                evidence=tuple(said),
                cause="A child process was started and neither waited for nor ended."
                + (" It made itself a session of its own, as daemons do on purpose." if daemon else ""),
                fix="terminate() and wait() for it in finally, or start it in `with`. It was left alone.",
                examples=tuple(str(o.pid) for o in group[:5]),
            )
        )
    return out


def _identity(*words: str) -> str:
    return hashlib.blake2b("\0".join(words).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
