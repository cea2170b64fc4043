"""The report in Markdown (GitHub's and GitLab's kind): for a job summary, or as a comment on a merge request.

A table of all findings, then a paragraph each, folded, as the terminal shows it. What comes out of the
process is only ever inside of code, where no name can become a link, a mention, a heading or HTML.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator

from diagtool.leaks.model import Finding, Ignored, Report
from diagtool.report.locations import Locations
from diagtool.report.sources import Sources
from diagtool.report.terminal import View, about, baseline_name, doing, ended_by, paragraph, totals
from diagtool.report.text import Line, clean, count, size, write
from diagtool.report.words import at, rule, short

__all__ = ("escaped", "markdown")

#: A comment on GitHub takes 65,536 characters.
MAX_CHARACTERS = 60_000
#: Rows of a table.
MAX_ROWS = 50
_WIDTH = 100
_MAX_WARNINGS = 20


def markdown(report: Report, locations: Locations, sources: Sources | None = None) -> str:
    """The text. At most MAX_CHARACTERS: what does not fit is counted."""
    rows = MAX_ROWS
    while True:
        parts, tail = list(_head(report, locations, rows)), list(_tail(report, locations, rows))
        room = MAX_CHARACTERS - sum(len(part) + 2 for part in (*parts, *tail)) - 200
        if room > 0 or rows == 1:
            break
        rows //= 2  # names may be long
    shown = 0
    for finding in report.findings:
        details = _details(finding, sources)
        room -= len(details) + 2
        if room < 0:
            break
        parts.append(details)
        shown += 1
    left_out = len(report.findings) - shown
    if left_out:
        parts.append(f"Details of {count(left_out, 'finding')} do not fit here; `--format json` has them.")
    return "\n\n".join([*parts, *tail]) + "\n"


def _head(report: Report, locations: Locations, most: int) -> Iterator[str]:
    found = report.summary.findings
    yield f"## diagtool: {count(found, 'finding') if found else 'nothing found'}"
    for line in ended_by(report.target, View(10_000)):
        if line:
            yield code("".join(text for text, _ in line).strip())
    if not report.findings:
        return
    rows = ["| verdict | what | where | template |", "|---|---|---|---|"]
    for finding in report.findings[:most]:
        rows.append(
            f"| **{finding.verdict}** | {_what(finding)} | {_where(finding, locations)} | {_rule(finding)} |"
        )
    yield "\n".join(rows)
    if len(report.findings) > most:
        yield f"… and {count(len(report.findings) - most, 'finding')} more."


def _tail(report: Report, locations: Locations, most: int) -> Iterator[str]:
    if report.ignored:
        name = baseline_name(report.baseline)
        rows = [f"**{len(report.ignored):,} ignored** by {code(name)}:", ""]
        rows += ["| what | where | reason | until |", "|---|---|---|---|"]
        rows += [_ignored_row(known, locations) for known in report.ignored[:most]]
        yield "\n".join(rows)
        if len(report.ignored) > most:
            yield f"… and {len(report.ignored) - most:,} more."
    if report.warnings:
        lines = [f"- {code(warning, 500)}" for warning in report.warnings[:_MAX_WARNINGS]]
        more = len(report.warnings) - len(lines)
        yield "\n".join(
            ["**Warnings**", "", *lines, *([f"- … {count(more, 'warning')} more"] if more > 0 else [])]
        )
    said = about(report.target, report.pause_ms).strip(" ·")
    yield f"{escaped(totals(report))} · {code(said)}"


def _what(finding: Finding) -> str:
    number = count(finding.count, finding.kind)
    if finding.bytes is not None:
        number += f", {size(finding.bytes)}"
    does, wait = doing(finding.state, finding.wait), clean(finding.wait or "")
    before, found, after = does.rpartition(wait) if wait else ("", "", does)
    return f"{number} {before}{code(found)}{after}"


def _where(finding: Finding, locations: Locations) -> str:
    main = locations.main(finding)
    if main is not None:
        line = "" if main.line is None else f":{main.line}"
        return f"{code(main.path + line, 200)} in {code(short(main.frame.function))}"
    frame = at(finding)
    if frame is None:
        return ""
    file = (frame.file or frame.library or "?") + ("" if frame.line is None else f":{frame.line}")
    return f"{code(file, 200)} in {code(short(frame.function))}"


def _rule(finding: Finding) -> str:
    name = code(rule(finding))
    address = finding.runbook or ""
    plain = re.fullmatch(r"https?://[\w.~/?#&=%+:-]+", address, re.ASCII)
    return f"[{name}]({address})" if plain else name


def _ignored_row(known: Ignored, locations: Locations) -> str:
    until = known.expires.isoformat() if known.expires is not None else ""
    finding = known.finding
    return f"| {_what(finding)} | {_where(finding, locations)} | {code(known.reason, 300)} | {until} |"


def _details(finding: Finding, sources: Sources | None) -> str:
    """One finding as the terminal shows it, folded."""
    where = at(finding)
    text = f"{finding.verdict}: {count(finding.count, finding.kind)}"
    text += f", <code>{html.escape(rule(finding))}</code>"
    if where is not None:
        text += f" in <code>{html.escape(short(where.function))}</code>"
    lines = paragraph(finding, View(_WIDTH, sources=sources))
    return f"<details><summary>{text}</summary>\n\n{_block(_text(lines))}\n\n</details>"


def _text(lines: Iterator[Line]) -> str:
    out = io.StringIO()
    write(lines, out, color=False)
    return out.getvalue().rstrip("\n")


def _block(text: str) -> str:
    fence = "`" * max(3, _ticks(text) + 1)
    return f"{fence}text\n{text}\n{fence}"


def code(text: str, limit: int = 300) -> str:
    """``text`` as code within a line, also of a table, whatever it holds."""
    text = clean(text, limit).strip()
    if not text:
        return ""
    fence = "`" * (_ticks(text) + 1)
    edge = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{edge}{text}{edge}{fence}".replace("|", "\\|")


def _ticks(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def escaped(text: str) -> str:
    """``text``, which is ours or a template's, with whatever Markdown would take for its own as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", clean(text, 10_000)).replace("@", "@\u2060")
