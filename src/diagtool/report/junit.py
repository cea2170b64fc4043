"""JUnit's XML, as Jenkins, GitLab and others read it: a test case a finding.

What fails the run is a failure, what is milder a case that passes with the finding in its output, what the
baseline ignores is skipped. One more case says that the target could be judged at all, so that a report
without findings is not taken for one of a check that never ran.
"""

from __future__ import annotations

import io

from junitparser import Attr, Failure, IntAttr, JUnitXml, Skipped, TestCase, TestSuite

from diagtool.leaks.model import VERDICTS, Finding, Report, Verdict
from diagtool.report.locations import Locations
from diagtool.report.sources import Sources
from diagtool.report.terminal import View, about, paragraph, totals
from diagtool.report.text import clean, write
from diagtool.report.words import at as place_of
from diagtool.report.words import headline, rule, short

__all__ = ("junit",)

_WIDTH = 100


class _Case(TestCase):
    """With the two attributes that pytest once wrote, and that show where it is."""

    file = Attr("file")
    line = IntAttr("line")


def junit(
    report: Report, locations: Locations, fail_on: Verdict | None = "likely", sources: Sources | None = None
) -> str:
    """The text of the document. ``fail_on``: the verdict from which on findings are failures; None: never."""
    suite = TestSuite("diagtool leaks")
    for name, value in _properties(report).items():
        suite.add_property(name, value)
    cases = [_judged(report)]
    for finding in report.findings:
        case = _case(finding, locations)
        text = _text(finding, sources)
        if fail_on is not None and VERDICTS.index(finding.verdict) <= VERDICTS.index(fail_on):
            failure = Failure(f"{headline(finding)}: {clean(finding.title, 300)}", finding.verdict)
            failure.text = text
            case.result = [failure]
        else:
            case.system_out = text
        cases.append(case)
    for known in report.ignored:
        case = _case(known.finding, locations)
        until = f", until {known.expires.isoformat()}" if known.expires is not None else ""
        case.result = [Skipped(f"{clean(known.reason, 1000)} ({clean(known.entry)}{until})")]
        case.system_out = _text(known.finding, sources)
        cases.append(case)
    suite.add_testcases(cases)  # one by one it would count them all each time
    document = JUnitXml("diagtool")
    document.add_testsuite(suite)
    document.update_statistics()  # type: ignore[no-untyped-call]
    return _written(document)


def _written(document: JUnitXml) -> str:
    # junitparser writes to files; ET, which it uses, also to streams of bytes.
    out = io.BytesIO()
    document.write(out, pretty=False)
    return out.getvalue().decode("utf-8") + "\n"


def _judged(report: Report) -> TestCase:
    case = TestCase("the target could be judged", "diagtool.leaks", 0)
    warnings = [f"warning: {clean(w, 1000)}" for w in report.warnings]
    case.system_out = "\n".join([totals(report) + about(report.target, report.pause_ms), *warnings])
    return case


def _case(finding: Finding, locations: Locations) -> _Case:
    """Its name is the same in the next run, so that a CI system can follow it: no counts, no line."""
    main = locations.main(finding)
    frame = place_of(finding)
    name = clean(finding.title, 200)
    if main is not None:
        name = f"{clean(main.path)}: {short(main.frame.function)}"
    elif frame is not None:
        name = f"{clean((frame.file or frame.library or '?').rpartition('/')[2])}: {short(frame.function)}"
    case = _Case(f"{name} [{clean(finding.id, 100)}]", f"diagtool.leaks.{rule(finding)}", 0)
    if main is not None:
        case.file = clean(main.path)
        if main.line is not None and main.line > 0:
            case.line = main.line
    return case


def _text(finding: Finding, sources: Sources | None) -> str:
    out = io.StringIO()
    write(paragraph(finding, View(_WIDTH, verbose=True, sources=sources)), out, color=False)
    return out.getvalue()


def _properties(report: Report) -> dict[str, str]:
    target = report.target
    found = {
        "target": target.kind,
        "runtime": target.runtime,
        "pid": "" if target.pid is None else str(target.pid),
        "ignored": str(report.summary.ignored),
        "stacks": str(report.summary.stacks),
    }
    return {name: clean(value) for name, value in found.items() if value}
