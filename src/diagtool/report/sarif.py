"""SARIF 2.1.0 (OASIS standard, with errata 01), as code scanning of GitHub and others read it.

A rule a template, a result a finding, its place in the repository relative to ``%SRCROOT%``. What the
baseline ignores is there with a suppression. Nothing says where the repository lies on this machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

from diagtool._version import __version__
from diagtool.leaks.model import Finding, Ignored, Report
from diagtool.leaks.own import is_own
from diagtool.report.locations import Locations
from diagtool.report.markdown import escaped
from diagtool.report.terminal import about, thing, totals
from diagtool.report.text import clean, count
from diagtool.report.words import headline, rule, short, where
from diagtool.snapshot.model import Frame

__all__ = ("document", "sarif")

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_ROOT = "%SRCROOT%"

#: What code scanning of GitHub shows of one run; it refuses files with more than five times as many.
MAX_RESULTS = 5_000
#: Frames of one stack.
MAX_FRAMES = 100
#: Places that a result names besides its own.
MAX_RELATED = 20
#: Warnings of the run.
MAX_WARNINGS = 100

_LEVELS = {"proven": "error", "likely": "warning", "suspect": "note"}
_PRECISION = {"proven": "very-high", "likely": "high", "suspect": "low"}


def sarif(report: Report, locations: Locations) -> str:
    """The text of the document, ASCII only."""
    return json.dumps(document(report, locations), indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def document(report: Report, locations: Locations) -> dict[str, Any]:
    """The document: one run."""
    told: list[Finding | Ignored] = [*report.findings, *report.ignored]
    shown = told[:MAX_RESULTS]
    rules: dict[str, Finding] = {}
    for one in shown:
        finding = one.finding if isinstance(one, Ignored) else one
        rules.setdefault(rule(finding), finding)  # the worst one, as findings are in order
    numbers = {name: i for i, name in enumerate(rules)}
    results = [_result(one, numbers, report, locations) for one in shown]
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "diagtool",
                        "version": __version__,
                        "semanticVersion": __version__,
                        "rules": [_rule(name, finding) for name, finding in rules.items()],
                    }
                },
                "automationDetails": {"id": "diagtool/leaks/"},
                "columnKind": "unicodeCodePoints",
                "originalUriBaseIds": {_ROOT: {"description": {"text": "The root of the repository."}}},
                "invocations": [
                    {
                        "executionSuccessful": True,
                        "toolExecutionNotifications": _notifications(report, len(told) - len(shown)),
                    }
                ],
                "results": results,
            }
        ],
    }


def _notifications(report: Report, left_out: int) -> list[dict[str, Any]]:
    text = totals(report) + about(report.target, report.pause_ms)
    found = [{"level": "note", "message": {"text": text}}]
    if left_out:
        said = f"{count(left_out, 'finding')} more: --format json has all of them"
        found.append({"level": "warning", "message": {"text": said}})
    for warning in report.warnings[:MAX_WARNINGS]:
        found.append({"level": "warning", "message": {"text": clean(warning, 1000)}})
    return found


def _rule(name: str, finding: Finding) -> dict[str, Any]:
    cause, fix = clean(finding.cause, 2000), clean(finding.fix, 2000)
    runbook = clean(finding.runbook or "", 500)
    lines = [("Cause", cause), ("Fix", fix), ("Runbook", runbook)]
    described: dict[str, Any] = {
        "id": name,
        "name": "".join(part.capitalize() for part in name.split("-")),
        "shortDescription": {"text": clean(finding.title, 200) or name},
        "fullDescription": {"text": cause or clean(finding.title, 1000) or name},
        "help": {
            "text": "\n".join(f"{label}: {text}" for label, text in lines if text) or name,
            "markdown": "\n\n".join(f"**{label}**: {escaped(text)}" for label, text in lines if text) or name,
        },
        "defaultConfiguration": {"level": _LEVELS[finding.verdict]},
        "properties": {
            "tags": ["leak", finding.kind],
            "precision": _PRECISION[finding.verdict],
            "problem.severity": {"error": "error", "warning": "warning", "note": "recommendation"}[
                _LEVELS[finding.verdict]
            ],
        },
    }
    if runbook.startswith(("https://", "http://")):
        described["helpUri"] = quote(runbook, safe=":/?#[]@!$&'()*+,;=%~")
    return described


def _result(
    one: Finding | Ignored, rules: dict[str, int], report: Report, locations: Locations
) -> dict[str, Any]:
    finding = one.finding if isinstance(one, Ignored) else one
    main = locations.main(finding)
    if main is not None:
        place = {"physicalLocation": _physical(main.path, main.line or 1), **_logical(main.frame)}
    else:  # GitHub takes no result without a place and a line
        place = {"physicalLocation": _physical(locations.fallback(report.target), 1)}
    result: dict[str, Any] = {
        "ruleId": rule(finding),
        "ruleIndex": rules[rule(finding)],
        "level": _LEVELS[finding.verdict],
        "message": {"text": _message(finding)},
        "locations": [place],
        "partialFingerprints": {"diagtoolFinding/v1": clean(finding.id, 100)},
        "properties": {
            "verdict": finding.verdict,
            "severity": finding.severity,
            "count": finding.count,
            "bytes": finding.bytes,
            "state": finding.state,
            "wait": None if finding.wait is None else clean(finding.wait),
            "evidence": [clean(text, 1000) for text in finding.evidence],
            "heldBy": [clean(text, 1000) for text in finding.held_by],
        },
    }
    stacks = [
        _stack(frames, text, locations)
        for frames, text in (
            (finding.frames, headline(finding)),
            (finding.created_by or (), "Where it was created"),
        )
        if frames
    ]
    if stacks:
        result["stacks"] = stacks
    related = list(_related(finding, locations))
    if related:
        result["relatedLocations"] = related
    if report.baseline is not None:
        result["suppressions"] = [_suppression(one, report, locations)] if isinstance(one, Ignored) else []
    return result


def _message(finding: Finding) -> str:
    text = f"{headline(finding)} ({finding.verdict}): {clean(finding.title, 300)}."
    if finding.waiting_on is not None:
        text += f" On {thing(finding.waiting_on)}."
    at = where(finding)
    text += f" At {at}." if at else ""
    if finding.fix:
        text += f" Fix: {clean(finding.fix, 1000).rstrip('.')}."
    return text.replace("](", "] (")  # else a link, whoever gave the name


def _suppression(known: Ignored, report: Report, locations: Locations) -> dict[str, Any]:
    until = f" (until {known.expires.isoformat()})" if known.expires is not None else ""
    text = f"{clean(known.reason, 1000)}{until}; {clean(known.entry)}"
    suppression: dict[str, Any] = {"kind": "external", "status": "accepted", "justification": text}
    file = None if report.baseline is None else locations.path(report.baseline.file)
    if file is not None:
        suppression["location"] = {"physicalLocation": _physical(file, None)}
    return suppression


def _stack(frames: Sequence[Frame], text: str, locations: Locations) -> dict[str, Any]:
    shown = [
        {"location": _location(frame, locations), "module": clean(frame.module or frame.library or "", 300)}
        for frame in frames[:MAX_FRAMES]
    ]
    if len(frames) > MAX_FRAMES:
        text += f" ({count(len(frames) - MAX_FRAMES, 'frame')} more)"
    return {"message": {"text": text}, "frames": shown}


def _related(finding: Finding, locations: Locations) -> Iterable[dict[str, Any]]:
    """The user's own other frames, where it was created, what the source shows; each place once."""
    main = locations.main(finding)
    seen = {(main.path, main.line)} if main is not None else set()
    places: list[tuple[str | None, int | None, str]] = []
    for frames, said in ((finding.frames, "called from"), (finding.created_by or (), "created in")):
        own = [frame for frame in frames if is_own(frame)]
        places += [(locations.path(f.file), f.line, f"{said} {short(f.function)}") for f in own]
    places += [(locations.path(s.file), s.line, clean(s.says, 300)) for s in finding.source]
    number = 0
    for path, line, text in places:
        if path is None or (path, line) in seen or number == MAX_RELATED:
            continue
        seen.add((path, line))
        number += 1
        yield {"id": number, "physicalLocation": _physical(path, line), "message": {"text": text}}


def _location(frame: Frame, locations: Locations) -> dict[str, Any]:
    at = locations.of(frame)
    if at is not None:
        return {"physicalLocation": _physical(at.path, at.line), **_logical(frame)}
    if frame.file.startswith("/"):
        address = {"uri": "file://" + _quoted(frame.file)}
        return {"physicalLocation": {"artifactLocation": address, **_region(frame.line)}, **_logical(frame)}
    return _logical(frame)


def _physical(path: str, line: int | None) -> dict[str, Any]:
    return {"artifactLocation": {"uri": _quoted(path), "uriBaseId": _ROOT}, **_region(line)}


def _region(line: int | None) -> dict[str, Any]:
    return {} if line is None or line < 1 else {"region": {"startLine": line}}


def _logical(frame: Frame) -> dict[str, Any]:
    name = clean(f"{frame.module}.{frame.function}" if frame.module else frame.function or "?", 500)
    return {"logicalLocations": [{"fullyQualifiedName": name, "kind": "function"}]}


def _quoted(path: str) -> str:
    return quote(path.encode("utf-8", "surrogatepass"), safe="/~")
