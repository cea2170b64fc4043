"""Findings held against the source of their frames: lines that explain them, verdicts raised or lowered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from diagtool.leaks.model import Finding, SourceLine
from diagtool.leaks.own import is_own
from diagtool.leaks.source.check import Ask, Check, Hit
from diagtool.leaks.source.checks import CHECKS
from diagtool.leaks.source.expression import search
from diagtool.leaks.source.files import LANGUAGES, Sources
from diagtool.leaks.source.golang.module import GoFunction, GoModule
from diagtool.leaks.source.module import Function, Module
from diagtool.leaks.source.spawns import sites
from diagtool.leaks.template import SourceRule, Template
from diagtool.snapshot.model import Frame, Snapshot

__all__ = ("Looker", "look_at")

#: Lines that a finding shows, and frames of its stack that are looked at.
MAX_SHOWN = 5
_MAX_FRAMES = 20
#: Files that are looked through where a finding has no frames of its own.
_MAX_FILES = 400
#: Frames that a source of Go is compared with.
_MAX_FITTED = 200
#: Bytes of source that are looked through for one report: a few seconds.
_MAX_BYTES = 16 << 20
_GO_WEIGHT = 3  # so many times as long takes a byte of Go
#: Findings of which is looked up where their tasks are started.
_MAX_STARTED = 20

_END_OF = {language: suffix for suffix, language in LANGUAGES.items()}

_DOUBTS = {
    "newer": "source on disk is newer than the running code: {}",
    "differs": "source on disk is not what runs (its lines or names are others): {}",
}


def look_at(
    findings: Sequence[Finding], templates: Iterable[Template], sources: Sources, snapshot: Snapshot
) -> tuple[list[Finding], list[str]]:
    """``findings`` held against their source, and warnings about source that could not be used."""
    looker = Looker(sources, snapshot)
    by_id = {template.id: template for template in templates}
    out = [looker.look(f, by_id[f.template]) if f.template in by_id else f for f in findings]
    return out, looker.warnings


@dataclass(frozen=True, slots=True)
class _Place:
    """A function, and the line in it where a stack is; 0: nobody is in it."""

    function: Function | GoFunction
    line: int


class Looker:
    """Looks at the source of findings of one snapshot. ``warnings``: what could not be used, and why."""

    def __init__(self, sources: Sources, snapshot: Snapshot) -> None:
        self.sources = sources
        self.snapshot = snapshot
        self.warnings: list[str] = []
        self._started = 0
        #: Of the finding that is looked at: where its goroutines are started, and where they wait.
        self._origin: tuple[GoFunction, int] | None = None
        self._leaf: tuple[GoFunction, int] | None = None
        self._others: dict[str, bool] = {}
        self._listed: dict[str, list[str]] = {}
        self._slow: set[str] = set()
        self._read: dict[str, int] = {}  # bytes of each file that was looked at

    def look(self, finding: Finding, template: Template) -> Finding:
        """``finding`` with the lines that the rules of its template found, and the verdict that they give."""
        self._origin = self._leaf = None
        if template.source and finding.kind == "goroutine":
            self._origin = self._go_place(finding.created_by or ())
            self._leaf = self._go_place(_frames_at("leaf", finding))
        shown: list[SourceLine] = []
        reasons: list[str] = []
        verdict = finding.verdict
        for rule in template.source:
            found = self._lines(rule, finding)
            lines = [line for line in found if line.says]
            shown += lines
            if not lines:
                continue
            if rule.raises and verdict == "suspect" and len(lines) == len(found) and self._is_sure(rule):
                verdict = "likely"
                reasons.append(f"raised from suspect by its source: {_said(lines[0])}")
            elif rule.lowers and verdict == "likely":
                verdict = "suspect"
                reasons.append(f"lowered from likely by its source: {_said(lines[0])}")
        shown += self._where_started(finding, shown)
        if not shown:
            return finding
        lines = list(dict.fromkeys(shown))[:MAX_SHOWN]
        return replace(finding, verdict=verdict, source=tuple(lines), evidence=(*finding.evidence, *reasons))

    def _is_sure(self, rule: SourceRule) -> bool:
        """Whether enough of the program was seen: what is made in other files may be what was found."""
        if rule.at != "files":
            return True
        return self.sources.is_whole or bool(rule.check and CHECKS[rule.check].exact)

    def _lines(self, rule: SourceRule, finding: Finding) -> list[SourceLine]:
        if rule.at == "files":
            return list(self._of_files(rule, finding))
        if rule.at == "created_by":
            return self._of_creation(rule, finding)
        out: list[SourceLine] = []
        for frame in _frames_at(rule.at, finding):
            place = self._place(frame, rule)
            if place is not None:
                out += self._found(rule, place, "")
        return out

    # --- where -----------------------------------------------------------------------------------------

    def _place(self, frame: Frame, rule: SourceRule | None) -> _Place | None:
        """The function of a frame in its source; None where there is none that can be trusted."""
        module = self._module(frame.file, rule)
        if module is None or frame.line is None:
            return None
        if isinstance(module, GoModule) and self._is_another(frame.file):
            return None
        function = self.sources.function(frame)
        if function is None:
            self._say(_DOUBTS["differs"].format(frame.file))
            return None
        return _Place(function, frame.line)

    def _module(self, name: str, rule: SourceRule | None) -> Module | GoModule | None:
        if rule is not None and rule.check and not name.endswith(_END_OF[CHECKS[rule.check].language]):
            return None
        module = self.sources.module(name)
        if module is None:
            return None
        if name not in self._read:
            self._read[name] = module.size * (_GO_WEIGHT if isinstance(module, GoModule) else 1)
            if sum(self._read.values()) > _MAX_BYTES:
                self._say(f"of the source no more than {_MAX_BYTES >> 20} MiB was looked through")
        if sum(self._read.values()) > _MAX_BYTES:
            return None
        if rule is not None and rule.check and not CHECKS[rule.check].words.search(module.text):
            return None
        doubt = self.sources.doubt(name)
        if doubt is not None:
            self._say(_DOUBTS[doubt].format(name))
            return None
        if module.tree is None:
            self._say(f"{name} {module.problem}: its source was only searched, not understood")
            return module if rule is not None and rule.pattern and rule.at == "files" else None
        return module

    def _go_place(self, frames: Sequence[Frame]) -> tuple[GoFunction, int] | None:
        """The function of the first of ``frames`` in its source, and the line."""
        frame = next(iter(frames), None)
        if frame is None or frame.line is None or not is_own(frame):
            return None
        place = self._place(frame, None)
        return (place.function, place.line) if place and isinstance(place.function, GoFunction) else None

    def _of_creation(self, rule: SourceRule, finding: Finding) -> list[SourceLine]:
        recorded = next((f for f in finding.created_by or () if is_own(f)), None)
        if recorded is not None:
            place = self._place(recorded, rule)
            return list(self._found(rule, place, "")) if place is not None else []
        out: list[SourceLine] = []
        for place in self._starts(finding):
            lines = list(self._found(rule, place, ""))
            if not lines:
                return []  # started in another way, too
            out += lines
        return out

    def _starts(self, finding: Finding) -> list[_Place]:
        """Where the tasks or threads of a finding are started, where that is certain."""
        root = next((f for f in reversed(finding.frames) if is_own(f)), None)
        if finding.kind not in ("task", "thread") or root is None or not finding.frames:
            return []
        place = self._place(root, None)
        if place is None or isinstance(place.function, GoFunction) or place.function.name == "<module>":
            return []
        # Only where it is defined: of what others do with it nothing is known.
        found = sites([place.function.module], place.function)
        return [_Place(s.function, s.call.lineno) for s in found or ()]

    def _where_started(self, finding: Finding, shown: Sequence[SourceLine]) -> list[SourceLine]:
        if finding.created_by or self._started >= _MAX_STARTED:
            return []
        self._started += 1
        places = self._starts(finding)
        if len(places) != 1 or any(line.line == places[0].line for line in shown):
            return []
        what = "tasks" if finding.kind == "task" else "threads"
        return [_line(places[0].function, Hit(places[0].line, f"the {what} are started here"), "started")]

    def _of_files(self, rule: SourceRule, finding: Finding) -> Iterator[SourceLine]:
        subject = _subject(finding)
        for name in self._files(
            _END_OF[CHECKS[rule.check].language] if rule.check else _END_OF[_language(finding)]
        ):
            module = self._module(name, rule)
            if module is None or (isinstance(module, GoModule) and self._is_another(name)):
                continue
            if not rule.check:
                yield from self._matching(rule, module.text, module, 1)
                continue
            for function in module.functions:
                yield from self._found(rule, _Place(function, 0), subject)

    def _is_another(self, name: str) -> bool:
        """Whether stacks of the snapshot are where a source of Go has nothing of that name; says so."""
        if name not in self._others:
            frames = [f for f in self.snapshot.traces.frames if f.file == name and f.line][:_MAX_FITTED]
            self._others[name] = any(self.sources.function(f) is None for f in frames)
            if self._others[name]:
                self._say(_DOUBTS["differs"].format(name))
        return self._others[name]

    def _files(self, suffix: str) -> list[str]:
        known = self._listed.get(suffix)
        if known is None:
            known = self._listed[suffix] = self._list(suffix)
        return known

    def _list(self, suffix: str) -> list[str]:
        named = [f.file for f in self.snapshot.traces.frames if f.file.endswith(suffix) and is_own(f)]
        out = list(dict.fromkeys(named))[:_MAX_FILES]
        places = {found.place for name in out if (found := self.sources.file(name)) is not None}
        for name in self.sources.listed(suffix):
            if len(out) >= _MAX_FILES:
                break
            if name not in places:
                out.append(name)
        return out

    # --- what ------------------------------------------------------------------------------------------

    def _found(self, rule: SourceRule, place: _Place, subject: str) -> Iterator[SourceLine]:
        function = place.function
        check: Check | None = CHECKS.get(rule.check)
        if check is None:
            yield from self._matching(rule, function.text(), function.module, function.first_line)
            return
        for hit in check.find(function, Ask(place.line or None, subject, self._origin, self._leaf)):
            yield _line(function, hit, check.name, rule.says)

    def _matching(
        self, rule: SourceRule, text: str, module: Module | GoModule, first: int
    ) -> Iterator[SourceLine]:
        """Where the expression of a team's own rule is in ``text``, which begins at line ``first``."""
        at = search(rule.pattern, text) if rule.pattern not in self._slow else None
        if at is None:
            return
        if at < 0:
            self._slow.add(rule.pattern)  # what is slow once is not tried on hundreds of files
            self._say(f"the pattern {rule.pattern[:60]!r} took too long on {module.name}: left out")
            return
        line = first + text.count("\n", 0, at)
        says = rule.says or f"matches {rule.pattern[:60]}"
        yield SourceLine(module.name, line, _text(module, line), "pattern", says)

    def _say(self, warning: str) -> None:
        if warning not in self.warnings:
            self.warnings.append(warning)


def _frames_at(at: str, finding: Finding) -> list[Frame]:
    own = [f for f in finding.frames if is_own(f) and f.line is not None]
    if at == "leaf":
        return own[:1]
    return own[-1:] if at == "root" else own[:_MAX_FRAMES]


def _language(finding: Finding) -> str:
    return "go" if finding.kind == "goroutine" else "python"


def _subject(finding: Finding) -> str:
    """What a finding is about: of stacks the outermost function; the type, function or callback of rows."""
    if finding.frames:
        return finding.frames[-1].function
    if finding.examples:
        return finding.examples[0]
    return finding.waiting_on.type if finding.waiting_on is not None else ""


def _line(function: Function | GoFunction, hit: Hit, check: str, says: str = "") -> SourceLine:
    module = function.module
    return SourceLine(module.name, hit.line, _text(module, hit.line), check, hit.says and (says or hit.says))


def _text(module: Module | GoModule, line: int) -> str:
    return module.lines[line - 1].strip()[:200] if 0 < line <= len(module.lines) else ""


def _said(line: SourceLine) -> str:
    return f"{line.file.rpartition('/')[2]}:{line.line} {line.says}"
