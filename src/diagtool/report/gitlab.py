"""GitLab's code quality report: https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format.

A list with an issue a finding. The format knows no summary: what the baseline ignores is one issue more, of
severity ``info``, so that it is not forgotten.
"""

from __future__ import annotations

import json
from typing import Any

from diagtool.leaks.model import Finding, Report
from diagtool.report.locations import Locations
from diagtool.report.terminal import baseline_name
from diagtool.report.text import clean
from diagtool.report.words import headline, rule, where

__all__ = ("gitlab",)

#: By verdict; one step milder where the template's severity is low.
_SEVERITIES = {"proven": "critical", "likely": "major", "suspect": "minor"}
_MILDER = {"critical": "major", "major": "minor", "minor": "info"}


def gitlab(report: Report, locations: Locations) -> str:
    """The text of the document, ASCII only."""
    issues = [_issue(finding, report, locations) for finding in report.findings]
    if report.ignored:
        issues.append(_ignored(report, locations))
    return json.dumps(issues, indent=1, ensure_ascii=True) + "\n"


def _issue(finding: Finding, report: Report, locations: Locations) -> dict[str, Any]:
    main = locations.main(finding)
    at = where(finding)
    text = f"{finding.verdict}: {headline(finding)}{', at ' + at if at else ''}: {clean(finding.title, 300)}"
    if finding.fix:
        text += f". Fix: {clean(finding.fix, 500)}"
    severity = _SEVERITIES[finding.verdict]
    path = main.path if main is not None else locations.fallback(report.target)
    line = main.line if main is not None and main.line is not None and main.line > 0 else 1
    return {
        "description": text,
        "check_name": rule(finding),
        "fingerprint": clean(finding.id, 100),
        "severity": _MILDER[severity] if finding.severity == "low" else severity,
        "location": {"path": clean(path, 1000), "lines": {"begin": line}},
    }


def _ignored(report: Report, locations: Locations) -> dict[str, Any]:
    name = baseline_name(report.baseline)
    file = None if report.baseline is None else locations.path(report.baseline.file)
    many = f"{len(report.ignored):,} findings are" if len(report.ignored) > 1 else "1 finding is"
    return {
        "description": f"{many} ignored by {name}",
        "check_name": "diagtool-ignored",
        "fingerprint": "diagtool-ignored",
        "severity": "info",
        "location": {"path": clean(file or name, 1000), "lines": {"begin": 1}},
    }
