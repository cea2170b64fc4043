"""What the pytest plugin says: the text of an error, the section at the end, JSON, annotations of GitHub."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diagtool.probes.left import KINDS, NOUNS, Left
from diagtool.probes.sites import Site, shown, without_bottom, without_plumbing

#: Version of the JSON.
FORMAT = 1
#: Frames shown of where it was made and where it waits.
_FRAMES = 6
#: Findings that the terminal shows in full, and annotations: GitHub shows ten a step.
_MOST, _ANNOTATIONS = 50, 50


class Results:
    """All findings of a session, those of xdist's workers too."""

    def __init__(self, config: pytest.Config, mode: str) -> None:
        self.config = config
        self.mode = mode
        self.findings: list[dict[str, Any]] = []
        self.ignored: Counter[str] = Counter()
        self.not_judged = 0
        self.trouble = ""
        self._texts: list[str] = []

    def add(self, item: pytest.Item | None, told: Iterable[tuple[str, str, list[Left]]]) -> str:
        """Keep what was found; the text of the error."""
        texts = []
        for scope, test, leaks in told:
            if scope == "test":  # an attempt that is made again takes the place of the last one
                self.findings = [f for f in self.findings if f["test"] != test or f["scope"] != "test"]
            for group in _alike(leaks):
                found = {**group[0].as_json(), "count": len(group), "test": test, "scope": scope}
                found["names"] = [left.name for left in group[:5]]
                site = group[0].site
                found["file"], found["line"] = _place(site, group[0], item)
                self.findings.append(found)
            texts.append("\n".join(_text(scope, test, leaks)))
        text = "\n".join(texts)
        if text and item is not None:
            for scope, _, leaks in told:
                item.user_properties.append(("diagtool", f"{_count(leaks)} left by this {scope}"))
        return text

    def finish(self) -> None:
        """At the end of the session: a worker hands over, others write their file."""
        output = getattr(self.config, "workeroutput", None)
        if output is not None:
            output["diagtool"] = {
                "findings": self.findings,
                "ignored": dict(self.ignored),
                "not_judged": self.not_judged,
                "trouble": self.trouble,
            }

    def merge(self, other: dict[str, Any]) -> None:
        """What a worker handed over."""
        self.findings += other.get("findings", ())
        self.ignored.update(other.get("ignored", {}))
        self.not_judged += other.get("not_judged", 0)
        self.trouble = self.trouble or other.get("trouble", "")

    def as_json(self) -> dict[str, Any]:
        """The report that ``--diagtool-report`` writes."""
        return {
            "format": FORMAT,
            "mode": self.mode,
            "findings": self.findings,
            "summary": {
                "findings": len(self.findings),
                "things": sum(f["count"] for f in self.findings),
                "ignored": dict(self.ignored),
                "failed_tests_not_judged": self.not_judged,
            },
        }

    def summary(self, terminal: pytest.TerminalReporter) -> None:
        """The section at the end, the file, the annotations."""
        trouble = self._write()
        findings = self.findings
        if self.mode == "report" and findings:
            terminal.section("diagtool: left behind", red=True)
            for found in findings[:_MOST]:
                for line in _finding_lines(found):
                    terminal.write_line(line)
            if len(findings) > _MOST:
                terminal.write_line(f"… and {len(findings) - _MOST:,} more")
        terminal.write_line(self._sentence())
        for text in filter(None, (trouble, self.trouble and f"diagtool: {self.trouble}")):
            terminal.write_line(text, red=True)
        if os.environ.get("GITHUB_ACTIONS") == "true":
            for line in github_lines(findings, self.mode):
                terminal.write_line(line)

    def _sentence(self) -> str:
        tests = len({f["test"] for f in self.findings})
        kinds: Counter[str] = Counter()
        for found in self.findings:
            kinds[found["kind"]] += found["count"]
        said = ", ".join(_counted(kind, kinds[kind]) for kind in KINDS if kinds[kind])
        parts = [
            f"{said} left by {tests} {'test' if tests == 1 else 'tests'}" if said else "nothing was left"
        ]
        if self.ignored:
            why = ", ".join(f"{n} {reason}" for reason, n in self.ignored.most_common(4))
            parts.append(f"{self.ignored.total()} ignored ({why}{', …' if len(self.ignored) > 4 else ''})")
        if self.not_judged:
            one = self.not_judged == 1
            parts.append(f"{self.not_judged} failed {'test' if one else 'tests'} left something, not judged")
        return f"diagtool: {'; '.join(parts)}"

    def _write(self) -> str:
        path = self.config.getoption("diagtool_report")
        if not path or hasattr(self.config, "workerinput"):
            return ""
        target = Path(path)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(self.as_json(), indent=1) + "\n", "utf-8")
            part.replace(target)
        except OSError as error:
            part.unlink(missing_ok=True)
            return f"diagtool: {path} could not be written: {error.strerror or error}"
        return ""


def merge_worker(results: Results, node: object) -> None:
    """What a worker of xdist found; nothing if it crashed."""
    output = getattr(node, "workeroutput", None)
    if isinstance(output, dict) and isinstance(output.get("diagtool"), dict):
        results.merge(output["diagtool"])


def github_lines(findings: list[dict[str, Any]], mode: str) -> Iterator[str]:
    """Workflow commands of GitHub: one a finding, on the line that made it."""
    level = "error" if mode == "fail" else "warning"
    for found in findings[:_ANNOTATIONS]:
        title = _property(f"diagtool: {_counted(found['kind'], found['count'])} left")
        where = f"file={_property(shown(found['file']))},line={found['line']}," if found["file"] else ""
        text = f"{found['name']}, left by {found['test']}"
        if found.get("fix"):
            text += f"\n{found['fix']}"
        yield f"::{level} {where}title={title}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _place(site: Site | None, left: Left, item: pytest.Item | None) -> tuple[str, int]:
    if site is not None and (site.own or left.kind == "heap"):
        return shown(site.file), site.line
    if item is not None:
        path, line, _ = item.location
        return path, (line or 0) + 1
    return (shown(site.file), site.line) if site is not None else ("", 0)


def _alike(leaks: Iterable[Left]) -> list[list[Left]]:
    groups: dict[tuple[object, ...], list[Left]] = {}
    for left in leaks:
        groups.setdefault(left.likeness, []).append(left)
    return sorted(groups.values(), key=lambda group: KINDS.index(group[0].kind))


def _counted(kind: str, n: int) -> str:
    return f"{n:,} {NOUNS[kind][n != 1]}"


def _count(leaks: Iterable[Left]) -> str:
    kinds = Counter(left.kind for left in leaks)
    return ", ".join(_counted(kind, kinds[kind]) for kind in KINDS if kinds[kind])


def _text(scope: str, test: str, leaks: list[Left]) -> Iterator[str]:
    if scope == "test":
        yield f"diagtool: {_count(leaks)} left by {test}"
    else:
        yield f"diagtool: {_count(leaks)} left when the {scope} ended, made in {test}"
    for group in _alike(leaks):
        yield from _group_lines(
            {**group[0].as_json(), "count": len(group), "names": [left.name for left in group[:5]]}
        )


def _finding_lines(found: dict[str, Any]) -> Iterator[str]:
    when = "" if found["scope"] == "test" else f", still there when the {found['scope']} ended"
    yield f"{_counted(found['kind'], found['count'])} left by {found['test']}{when}"
    yield from _group_lines(found)


def _group_lines(found: dict[str, Any]) -> Iterator[str]:
    names = found["names"]
    more = found["count"] - len(names)
    detail = found["detail"]
    yield f"  {names[0]}{', ' + detail if detail else ''}"
    if len(names) > 1:
        yield f"    and {', '.join(names[1:])}{f' and {more:,} more' if more else ''}"
    label = "grows at" if found["kind"] == "heap" else "made at"
    for title, part in ((label, "created"), ("waits at", "waiting")):
        sites = tuple(Site(**site) for site in found[part])
        sites = without_plumbing(sites) if part == "created" else without_bottom(sites)
        for i, site in enumerate(sites[:_FRAMES]):
            yield f"    {title if i == 0 else '':9} {site}"
    if found.get("template"):
        yield f"    {'template':9} {found['template']}: {found.get('title', '')}"
    for part in ("cause", "fix"):
        if found.get(part):
            yield f"    {part:9} {found[part]}"
