"""Adding to a baseline file: entries for findings, with everything else in it as it was, comments too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from diagtool.leaks.baseline import VERSION
from diagtool.leaks.model import Finding

__all__ = ("with_entries",)

_HEAD = (
    "What diagtool knows about and does not report as new: docs/baseline.md.",
    "Every entry needs a reason; give it a last day with expires = 2027-01-31.",
)


def with_entries(
    text: str, findings: Iterable[tuple[Finding, str]], reason: str, table: tuple[str, ...] = ()
) -> str:
    """The text of a baseline file with an ``[[ignore]]`` more for each finding and its comment.

    ``text`` is what the file holds now, "" for a new one; ``table`` the path of keys to the baseline in it.
    Comments must be one line each, of printable characters.
    """
    import tomlkit
    from tomlkit.items import AoT

    findings = list(findings)
    if text and not text.endswith("\n"):  # tomlkit writes on in the last line
        text += "\n"
    document = tomlkit.parse(text)
    place: Any = document
    for key in table:
        if key not in place:
            place.add(key, tomlkit.table(is_super_table=key != table[-1]))
        place = place[key]
    if not text.strip():
        for line in _HEAD:
            document.add(tomlkit.comment(line))
        document.add("version", tomlkit.item(VERSION))
        document.add(tomlkit.nl())
    if "ignore" not in place:
        place.append("ignore", tomlkit.aot())
    entries = place["ignore"]
    for finding, comment in findings:
        entry = tomlkit.table() if isinstance(entries, AoT) else tomlkit.inline_table()
        if isinstance(entries, AoT):
            entry.add(tomlkit.comment(comment))
        entry.add("id", finding.id)
        if finding.template is not None:
            entry.add("template", finding.template)
        entry.add("reason", reason)
        entries.append(entry)
    return _spaced(tomlkit.dumps(document), {f"# {comment}" for _, comment in findings})


def _spaced(text: str, comments: set[str]) -> str:
    """``text`` with an empty line before and after each table that begins with one of the comments."""
    before = text.split("\n")
    after: list[str] = []
    new = False  # within a table of ours
    for i, line in enumerate(before):
        begins = line.startswith("[")
        ours = begins and i + 1 < len(before) and before[i + 1] in comments
        if begins and (ours or new) and after and after[-1].strip():
            after.append("")
        new = ours if begins else new
        after.append(line)
    return "\n".join(after)
