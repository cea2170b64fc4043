#!/usr/bin/env python3
"""Write what templates say into the runbooks, docs/runbooks/<template>.md; the rest of a page stays.

usage: make_runbooks.py [--check]

The top of a page, down to the second comment, comes from the template: title, when it is reported, cause,
fix, references. Below it people write what only they know, under the headings SECTIONS. --check writes
nothing, and fails when a page is missing, not current, or lacks a section.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from diagtool.leaks.condition import Condition
from diagtool.leaks.pattern import StackPattern
from diagtool.leaks.source.checks import CHECKS
from diagtool.leaks.template import Rule, SourceRule, TablePattern, Template, builtin

ROOT = Path(__file__).resolve().parent.parent
RUNBOOKS = ROOT / "docs" / "runbooks"

#: What people write, in this order.
SECTIONS = ("Symptom", "Confirm", "Stop the bleeding", "Prevent")

BEGIN = "<!-- tools/make_runbooks.py writes from here; edit src/diagtool/leaks/library/{file} instead -->\n"
END = "<!-- and up to here -->\n"
_WRITTEN = re.compile(r"^<!-- tools/make_runbooks\.py.*?<!-- and up to here -->\n", re.DOTALL | re.MULTILINE)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    RUNBOOKS.mkdir(exist_ok=True)
    if not check:
        for template in leak_templates():
            page = RUNBOOKS / f"{template.id}.md"
            page.write_text(filled(template, page.read_text("utf-8") if page.exists() else ""), "utf-8")
        (RUNBOOKS / "README.md").write_text(index(), "utf-8")
    wrong = list(problems())
    for problem in wrong:
        print(problem, file=sys.stderr)
    return 1 if wrong else 0


def leak_templates() -> list[Template]:
    """The templates that have a runbook, by catalogue number."""
    return sorted((t for t in builtin() if not t.idle), key=lambda t: (t.catalogue, t.id))


def problems() -> Iterator[str]:
    """What is wrong with the pages, a line each."""
    pages = {page.stem for page in RUNBOOKS.glob("*.md")} - {"README"}
    for template in leak_templates():
        pages.discard(template.id)
        page = RUNBOOKS / f"{template.id}.md"
        text = page.read_text("utf-8") if page.exists() else ""
        if text != filled(template, text):
            yield f"docs/runbooks/{template.id}.md: not current, run tools/make_runbooks.py"
        yield from (f"docs/runbooks/{template.id}.md: nothing under {s!r}" for s in missing(text))
    for stray in sorted(pages):
        yield f"docs/runbooks/{stray}.md: no template of this name"
    readme = RUNBOOKS / "README.md"
    if not readme.exists() or readme.read_text("utf-8") != index():
        yield "docs/runbooks/README.md: not current, run tools/make_runbooks.py"


def missing(text: str) -> list[str]:
    """The sections of which a page has no text."""
    parts = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    return [s for s in SECTIONS if not parts.get(s, "").strip()]


def filled(template: Template, page: str) -> str:
    """The page with its written part made new; headings that are missing are added."""
    own = _WRITTEN.sub("", page).strip("\n")
    for section in SECTIONS:
        if f"## {section}\n" not in own + "\n":
            own = f"{own}\n\n## {section}".lstrip("\n")
    return f"{BEGIN.format(file=template.file)}{written(template)}{END}\n{own}\n"


def written(template: Template) -> str:
    """What the template says, as Markdown."""
    facts = [f"`{template.id}`", template.catalogue, f"severity {template.severity}"]
    lines = [f"# {template.title}", "", " · ".join(f for f in facts if f), ""]
    lines += ["**When it is reported**", "", f"About {about(template)}.", ""]
    lines += [f"- **{rule.level}**: {when(template, rule)}" for rule in template.rules]
    if template.source:
        lines += ["", "**What the source says**", "", "Where it can be read (docs/templates.md):", ""]
        lines += [f"- {look(rule)}" for rule in template.source]
    lines += ["", "**Cause**", "", template.cause, "", "**Fix**", "", template.fix, ""]
    lines += ["**See also**", "", *(f"- <{reference}>" for reference in template.references), ""]
    return "\n".join(lines)


def about(template: Template) -> str:
    """What a template is about, in words."""
    match = template.match
    if isinstance(match, TablePattern):
        where = f" with {conditions(match.where)}" if match.where else ""
        return f"rows of the table `{match.table}`{where}"
    return f"{template.kind}s{stacks(match)}"


def stacks(pattern: StackPattern) -> str:
    """What a pattern asks for, in words, with a space before."""
    parts = []
    if pattern.wait:
        parts.append("that wait in " + either(pattern.wait))
    elif pattern.states:
        parts.append("that are " + " or ".join(pattern.states))
    if pattern.not_wait:
        parts.append("not in " + either(pattern.not_wait))
    frames = [*pattern.top, *pattern.frames, *pattern.bottom]
    if frames:
        parts.append("under " + ", ".join(f"`{f}`" for f in frames))
    if pattern.any_frames:
        parts.append("under " + either([str(f) for f in pattern.any_frames]))
    if pattern.not_frames:
        parts.append("not under " + either([str(f) for f in pattern.not_frames]))
    if pattern.names:
        parts.append("named " + either(pattern.names))
    if pattern.thing or pattern.stack:
        parts.append("with " + conditions((*pattern.thing, *pattern.stack)))
    return "".join(f" {part}" for part in parts)


def when(template: Template, rule: Rule) -> str:
    """What must hold for a verdict, in words."""
    counted = getattr(template.match, "unit", template.kind)
    unit = "objects" if counted == "block" else f"{counted}s"
    parts = [f"{rule.min_count} or more {unit}" if rule.min_count > 1 else f"any such {unit[:-1]}"]
    held = (*rule.thing, *rule.stack, *rule.group)
    if held:
        parts.append("with " + conditions(held))
    if rule.series:
        parts.append("over several snapshots with " + conditions(rule.series))
    for pattern in rule.present:
        parts.append(f"while there are {kinds(pattern)}{stacks(pattern)}")
    for pattern in rule.absent:
        parts.append(f"and no {kinds(pattern)}{stacks(pattern)}")
    return ", ".join(parts)


#: Where a source rule looks, in words.
PLACES = {
    "leaf": "where the stacks are",
    "own": "in the functions of the stack",
    "root": "in the outermost function",
    "created_by": "where they were started",
    "files": "in all files of the program",
}


def look(rule: SourceRule) -> str:
    """What a source rule does, in words."""
    what = f"`{rule.check}` ({CHECKS[rule.check].about})" if rule.check else f"`{rule.pattern}`"
    then = (
        "makes a suspect likely" if rule.raises else "makes a likely a suspect" if rule.lowers else "is shown"
    )
    return f"{what} {PLACES[rule.at]} {then}"


def kinds(pattern: StackPattern) -> str:
    return "s or ".join(pattern.kinds or ("stack",)) + "s"


def conditions(held: tuple[Condition, ...]) -> str:
    return " and ".join(f"`{' '.join(c.text.split())}`" for c in held)


def either(names: list[str] | tuple[str, ...]) -> str:
    return " or ".join(f"`{n}`" for n in names)


def index() -> str:
    """docs/runbooks/README.md: all runbooks."""
    lines = [
        "# Runbooks",
        "",
        "One page for each leak that diagtool knows. `tools/make_runbooks.py` writes this list.",
        "",
    ]
    lines += ["| | leak | severity |", "|---|---|---|"]
    lines += [f"| {t.catalogue} | [{t.title}]({t.id}.md) | {t.severity} |" for t in leak_templates()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
