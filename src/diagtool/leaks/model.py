"""What the leaks engine says: findings, clusters, and the report that holds both.

The fields follow the contract of ``leaks --format json`` (``report/schema/leaks-1.json``): what is here is
there, under the same name. Addresses are integers here and hex strings there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Literal

from diagtool.leaks.own import is_own
from diagtool.snapshot.model import Frame, Target

Verdict = Literal["proven", "likely", "suspect"]

#: Worst first: the order of findings in every report, and what ``--fail-on`` compares with.
VERDICTS: tuple[Verdict, ...] = ("proven", "likely", "suspect")

#: Worst first.
SEVERITIES = ("high", "medium", "low")

#: Kinds of findings that are about rows of a table: no stacks.
NO_STACKS = ("object", "block", "descriptor", "byte", "signal", "process")

#: How many names of stacks are kept as examples of a finding or a cluster.
MAX_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class WaitingOn:
    """The thing that the stacks of a finding wait on. ``address`` 0: they wait on several of one type."""

    type: str
    address: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Trend:
    """How a finding's count went over a series of snapshots of one process, oldest first.

    ``seconds`` are the times of the snapshots since the first (NaN where a snapshot has no time);
    ``counts`` the number of its stacks in each; ``persisted`` how many of them are the same stacks in all,
    None where nobody can tell.
    """

    counts: tuple[int, ...]
    seconds: tuple[float, ...]
    persisted: int | None = 0


@dataclass(frozen=True, slots=True)
class SourceLine:
    """A line of the target's source that explains a finding: which ``check`` found it, what it ``says``.

    ``file`` is as frames call it. ``text`` and ``file`` come from the target: clean them before showing.
    """

    file: str
    line: int
    text: str
    check: str
    says: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A cluster that is a leak or a hang, with its template, verdict and evidence.

    ``id`` is a stable hash: the same leak gets the same id in another snapshot of another run.
    ``template`` is None when many stacks wait at one place that no template knows (a suspect).
    ``kind``, ``state`` are names of ``snapshot.model.KINDS`` and ``STATES``. ``bytes`` is None where unknown.
    ``wait_seconds`` and ``age_seconds`` are of the longest-waiting and the oldest stack. ``frames`` and
    ``created_by`` are innermost first. ``held_by`` are retention paths, nearest first. ``runbook`` is a path
    in the documentation. ``examples`` are names of stacks, at most MAX_EXAMPLES.
    """

    id: str
    template: str | None
    verdict: Verdict
    severity: str
    kind: str
    count: int
    title: str
    state: str
    wait: str | None = None
    bytes: int | None = None
    waiting_on: WaitingOn | None = None
    wait_seconds: float | None = None
    age_seconds: float | None = None
    created_by: tuple[Frame, ...] | None = None
    frames: tuple[Frame, ...] = ()
    held_by: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    cause: str = ""
    fix: str = ""
    runbook: str | None = None
    examples: tuple[str, ...] = ()
    trend: Trend | None = None
    source: tuple[SourceLine, ...] = ()


@dataclass(frozen=True, slots=True)
class Cluster:
    """Stacks that are alike: same kind, state, wait and frames (line numbers kept, addresses not).

    ``idle``: an idle template (``template``) matched, so it is no finding; ``finding`` is the id of the
    finding it became, if it did. ``waiting_on`` is the summary of the things its stacks wait on.
    """

    id: str
    kind: str
    count: int
    state: str
    wait: str | None = None
    template: str | None = None
    idle: bool = False
    frames: tuple[Frame, ...] = ()
    waiting_on: WaitingOn | None = None
    things: int = 0  # how many different things its stacks wait on
    wait_seconds: float | None = None
    examples: tuple[str, ...] = ()
    finding: str | None = None


@dataclass(frozen=True, slots=True)
class Ignored:
    """A finding that an entry of the baseline file says is known: not counted, never hidden.

    ``entry`` is where it says so (``.diagtool.toml: ignore[2] (line 14)``), ``reason`` why, ``expires`` until
    when, that day included.
    """

    finding: Finding
    entry: str
    reason: str
    expires: date | None = None


@dataclass(frozen=True, slots=True)
class BaselineUse:
    """What became of the baseline file: how many entries it has, and those that need somebody's attention.

    ``unused`` matched nothing, ``expired`` no longer count, ``exceeded`` matched more than they allow.
    """

    file: str
    entries: int = 0
    unused: tuple[str, ...] = ()
    expired: tuple[str, ...] = ()
    exceeded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of the last line of a report. Findings that are ``ignored`` count nowhere else."""

    stacks: int = 0
    clusters: int = 0
    findings: int = 0
    by_verdict: dict[Verdict, int] = field(default_factory=lambda: dict.fromkeys(VERDICTS, 0))
    ignored: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What ``find_leaks`` returns: findings worst first, clusters largest first.

    ``target`` and ``pause_ms`` are of the last snapshot. ``warnings`` are those of the snapshots and of the
    analysis, without repetition. ``ignored``: what the baseline file says is known (``leaks.baseline``).
    """

    target: Target
    findings: tuple[Finding, ...] = ()
    clusters: tuple[Cluster, ...] = ()
    summary: Summary = field(default_factory=Summary)
    warnings: tuple[str, ...] = ()
    pause_ms: float | None = None
    ignored: tuple[Ignored, ...] = ()
    baseline: BaselineUse | None = None

    @classmethod
    def of(
        cls,
        target: Target,
        findings: Sequence[Finding],
        clusters: Sequence[Cluster],
        *,
        stacks: int,
        warnings: Sequence[str] = (),
        pause_ms: float | None = None,
    ) -> Report:
        """A report with its findings and clusters in order and its summary counted."""
        by_verdict = dict.fromkeys(VERDICTS, 0)
        for finding in findings:
            by_verdict[finding.verdict] += 1
        return cls(
            target=target,
            findings=tuple(sorted(findings, key=_rank)),
            clusters=tuple(sorted(clusters, key=lambda c: (-c.count, c.id))),
            summary=Summary(stacks, len(clusters), len(findings), by_verdict),
            warnings=tuple(dict.fromkeys(warnings)),
            pause_ms=pause_ms,
        )

    def at_least(self, verdict: Verdict) -> list[Finding]:
        """The findings whose verdict is ``verdict`` or worse."""
        worst = VERDICTS[: VERDICTS.index(verdict) + 1]
        return [f for f in self.findings if f.verdict in worst]


def _rank(finding: Finding) -> tuple[object, ...]:
    """Worst first: verdict, severity, own code before libraries', then count, growth and bytes."""
    severity = SEVERITIES.index(finding.severity) if finding.severity in SEVERITIES else len(SEVERITIES)
    frames = (*finding.frames, *(finding.created_by or ()))
    foreign = bool(frames) and not any(is_own(f) for f in frames)
    counts = finding.trend.counts if finding.trend is not None else (0,)
    growth = counts[-1] - counts[0]
    verdict = VERDICTS.index(finding.verdict)
    return verdict, severity, foreign, -finding.count, -growth, -(finding.bytes or 0), finding.id
