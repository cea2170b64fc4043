"""Workflow commands of GitHub Actions: an annotation a finding, at its line in the repository.

https://docs.github.com/actions/reference/workflow-commands-for-github-actions. Whatever is in a name, a line
is one command of ours and nothing else: what ends a line or a value is escaped as the runner expects it.
"""

from __future__ import annotations

from diagtool.leaks.model import VERDICTS, Finding, Report, Verdict
from diagtool.report.locations import Locations
from diagtool.report.terminal import about, thing, totals
from diagtool.report.text import clean, count
from diagtool.report.words import headline, rule, short, where

__all__ = ("MAX_SUMMARY", "github")

#: GitHub shows ten errors, ten warnings and ten notices of a step, and fifty of a job.
MAX_ANNOTATIONS = 50
#: Bytes of a step's summary: it takes a mebibyte, and this is a part of one.
MAX_SUMMARY = 1 << 20

_MAX_FRAMES = 12


def github(report: Report, locations: Locations, fail_on: Verdict | None = "likely") -> str:
    """The commands, a line each. What fails the run (``fail_on`` and worse) is an error, else a warning."""
    lines = [_annotation(f, locations, fail_on) for f in report.findings[:MAX_ANNOTATIONS]]
    left_out = len(report.findings) - len(lines)
    text = totals(report) + about(report.target, report.pause_ms)
    if left_out > 0:
        text += f" · {count(left_out, 'finding')} more than GitHub shows"
    lines.append(f"::notice title=diagtool::{_data(text)}")
    told = [*_about_baseline(report), *filter(None, [locations.warning(report)])]
    lines += [f"::warning title=diagtool::{_data(clean(w, 1000))}" for w in told]
    return "\n".join(lines) + "\n"


def _about_baseline(report: Report) -> list[str]:
    """Warnings about the baseline file; the others are in the summary."""
    use = report.baseline
    if use is None or not (use.unused or use.expired or use.exceeded):
        return []
    name = use.file.rpartition("/")[2]
    return [w for w in report.warnings if w.startswith(f"{name}: ignore[")][:10]


def _annotation(finding: Finding, locations: Locations, fail_on: Verdict | None) -> str:
    fails = fail_on is not None and VERDICTS.index(finding.verdict) <= VERDICTS.index(fail_on)
    command = "error" if fails else "notice" if finding.verdict == "suspect" else "warning"
    main = locations.main(finding)
    properties = {}
    if main is not None:
        properties["file"] = main.path
        if main.line is not None and main.line > 0:
            properties["line"] = str(main.line)
    properties["title"] = f"{finding.verdict}: {rule(finding)}"
    told = ",".join(f"{name}={_property(clean(value, 1000))}" for name, value in properties.items())
    return f"::{command} {told}::{_data(_message(finding, locations))}"


def _message(finding: Finding, locations: Locations) -> str:
    lines = [f"{headline(finding)}: {clean(finding.title, 300)}."]
    at = where(finding)
    if at:
        lines.append(f"at {at}")
    if finding.waiting_on is not None:
        lines.append(f"on {thing(finding.waiting_on)}")
    lines += [f"because {clean(reason, 500)}" for reason in finding.evidence[:3]]
    own = list(locations.all(finding.frames))[1:_MAX_FRAMES]
    lines += [f"from {clean(p.path)}:{p.line} in {short(p.frame.function)}" for p in own]
    for line in finding.source[:3]:
        path = locations.path(line.file) or line.file
        lines.append(f"see {clean(path)}:{line.line}: {clean(line.says, 300)}")
    if finding.fix:
        lines.append(f"fix: {clean(finding.fix, 1000)}")
    if finding.runbook:
        lines.append(f"runbook: {clean(finding.runbook, 500)}")
    return "\n".join(lines)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
