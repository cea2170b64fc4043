"""Findings are held against the source that runs, and against no other; the source is never trusted."""

from __future__ import annotations

import dataclasses
import os
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from made_snapshots import report
from made_stacks import QUEUE_GET, SEMAPHORE, World

from diagtool.leaks import find_leaks
from diagtool.leaks.model import Finding, Report, SourceLine
from diagtool.leaks.source.expression import problem_of
from diagtool.leaks.source.files import Sources
from diagtool.leaks.source.module import Module
from diagtool.leaks.source.same import differs
from diagtool.leaks.source.spawns import sites
from diagtool.leaks.template import SourceRule, Template
from diagtool.leaks.template_toml import read_text
from diagtool.report import json as documents
from diagtool.report import terminal
from diagtool.snapshot.model import Frame, Snapshot, Target

WORKER = textwrap.dedent(
    """
    import asyncio

    class Client:
        def __init__(self):
            self.limit = asyncio.Semaphore(5)

        async def fetch(self, url):
            await self.limit.acquire()
            body = await self.get(url)
            self.limit.release()
            return body

        async def start(self, urls):
            for url in urls:
                asyncio.create_task(self.fetch(url))
    """
).lstrip()
HEALTHY = WORKER.replace(
    "        body = await self.get(url)\n        self.limit.release()\n        return body\n",
    "        try:\n            return await self.get(url)\n"
    "        finally:\n            self.limit.release()\n",
)
#: Line of `await self.limit.acquire()`.
AT = 8


def codes_of(text: str, file: str = "/srv/app/worker.py") -> list[dict[str, Any]]:
    """What the decoder writes down of each function of a program."""
    out = []
    todo = [compile(text, file, "exec")]
    while todo:
        code = todo.pop()
        todo += [c for c in code.co_consts if isinstance(c, types.CodeType)]
        if not code.co_flags & 2:  # modules and classes
            continue
        lines = sorted({line for _, _, line in code.co_lines() if line})
        names = sorted({*code.co_names, *code.co_varnames, *code.co_cellvars, *code.co_freevars})
        out.append(
            {
                "file": file,
                "function": getattr(code, "co_qualname", code.co_name),
                "name": code.co_name,
                "first_line": code.co_firstlineno,
                "lines": lines,
                "names": names,
            }
        )
    return out


def waiting(count: int = 20, running: str = WORKER, **thing: Any) -> Snapshot:
    """A service whose tasks wait for a semaphore: a suspect by its stacks alone."""
    world = World()
    state = {"value": 0, "other_frames": 0, **thing}
    world.tasks(
        count, "asyncio.Semaphore.acquire", f"{SEMAPHORE} worker.py:Client.fetch:{AT}", world.thing(**state)
    )
    snapshot = world.build()
    snapshot.tables["code_objects"] = codes_of(running)
    return snapshot


def judged(folder: Path, text: str, snapshot: Snapshot | None = None, **options: Any) -> Report:
    (folder / "worker.py").write_text(text)
    snapshot = snapshot or waiting()
    sources = Sources(snapshot.target, folders=[folder], codes=snapshot.tables["code_objects"])
    return find_leaks([snapshot], sources=sources, **options)


def only(report: Report) -> Finding:
    (finding,) = report.findings
    return finding


class TestVerdicts:
    def test_a_line_that_explains_it_makes_a_suspect_likely(self, tmp_path: Path) -> None:
        assert only(find_leaks([waiting()])).verdict == "suspect"
        finding = only(judged(tmp_path, WORKER))
        assert finding.verdict == "likely"
        line = finding.source[0]
        assert (line.line, line.text, line.check) == (10, "self.limit.release()", "acquire-without-release")
        assert line.file == "/srv/app/worker.py"
        assert "is in no finally" in line.says
        assert finding.evidence[-1].startswith("raised from suspect by its source: worker.py:10 ")

    def test_a_source_that_is_right_raises_nothing(self, tmp_path: Path) -> None:
        finding = only(judged(tmp_path, HEALTHY, waiting(running=HEALTHY)))
        assert finding.verdict == "suspect"
        assert [line.check for line in finding.source] == ["started"]

    def test_where_the_tasks_are_started_is_shown(self, tmp_path: Path) -> None:
        line = only(judged(tmp_path, HEALTHY, waiting(running=HEALTHY))).source[0]
        assert line.text == "asyncio.create_task(self.fetch(url))"

    def test_another_source_than_what_runs_is_not_used_and_that_is_said(self, tmp_path: Path) -> None:
        """On disk is the mistake, but what runs has it mended already; and the other way round."""
        report = judged(tmp_path, WORKER, waiting(running=HEALTHY))
        assert (only(report).verdict, only(report).source) == ("suspect", ())
        assert any("is not what runs" in w and "/srv/app/worker.py" in w for w in report.warnings)
        assert only(judged(tmp_path, HEALTHY)).verdict == "suspect"

    def test_a_source_that_was_changed_since_the_start_is_not_used_and_that_is_said(
        self, tmp_path: Path
    ) -> None:
        snapshot = waiting()
        root = tmp_path / "root"
        (root / "srv/app").mkdir(parents=True)
        (root / "srv/app/worker.py").write_text(WORKER)
        sources = Sources(snapshot.target, str(root), codes=snapshot.tables["code_objects"])
        report = find_leaks([snapshot], sources=sources)  # it started in 1970
        assert only(report).verdict == "suspect"
        assert "source on disk is newer than the running code: /srv/app/worker.py" in report.warnings
        os.utime(root / "srv/app/worker.py", (0, 0))
        sources = Sources(snapshot.target, str(root), codes=snapshot.tables["code_objects"])
        assert only(find_leaks([snapshot], sources=sources)).verdict == "likely"

    def test_a_snapshot_that_says_nothing_of_its_code_is_compared_by_function_and_line(
        self, tmp_path: Path
    ) -> None:
        snapshot = waiting()
        snapshot.tables["code_objects"] = []
        assert only(judged(tmp_path, WORKER, snapshot)).verdict == "likely"
        report = judged(tmp_path, "\n\n\n\n\n\n\n" + WORKER, snapshot)
        assert only(report).verdict == "suspect"

    def test_a_line_may_speak_for_health(self, tmp_path: Path) -> None:
        text = WORKER.replace("self.limit.acquire()", "self.queue.get()")
        world = World()
        world.tasks(
            9, "asyncio.Queue.get", f"{QUEUE_GET} worker.py:Client.fetch:{AT}", world.thing(exclusive=True)
        )
        snapshot = world.build()
        snapshot.tables["code_objects"] = codes_of(text)
        (template,) = read_text(TEMPLATE.format("[]", 'lowers = "suspect"'), "t.toml")[0]
        plain = only(find_leaks([snapshot], templates=[template])).verdict
        told = only(judged(tmp_path, text, snapshot, templates=[template]))
        assert (plain, told.verdict) == ("likely", "suspect")
        assert told.evidence[-1].startswith("lowered from likely by its source")


TEMPLATE = """
[[template]]
id = "mine"
title = "t"
cause = "c"
fix = "f"
match = {{ wait = "asyncio.*" }}
verdict = [{{ level = "likely", thing = {0} }}]
[[template.source]]
pattern = 'await self\\.get'
{1}
"""


def team(rule: str, level: str = "suspect") -> Template:
    text = TEMPLATE.format("[]", rule).replace('"likely", thing', f'"{level}", thing', 1)
    templates, wrong = read_text(text, "mine.toml")
    assert wrong == []
    return templates[0]


class TestRules:
    @pytest.mark.parametrize(
        ("at", "lines"), [("leaf", [9]), ("own", [9]), ("root", [9]), ("created_by", []), ("files", [9])]
    )
    def test_an_expression_is_searched_where_the_rule_says(
        self, tmp_path: Path, at: str, lines: list[int]
    ) -> None:
        report = judged(tmp_path, WORKER, templates=[team(f'at = "{at}"')])
        found = [(line.line, line.says) for line in only(report).source if line.check == "pattern"]
        assert found == [(n, "matches await self\\.get") for n in lines]

    def test_a_rule_says_what_the_team_wants_it_to_say(self, tmp_path: Path) -> None:
        rule = 'raises = "likely"\nsays = "gets without a time limit"'
        finding = only(judged(tmp_path, WORKER, templates=[team(rule)]))
        assert (finding.verdict, finding.source[0].says) == ("likely", "gets without a time limit")

    def test_what_is_in_a_file_raises_only_where_the_whole_program_is_there(self, tmp_path: Path) -> None:
        snapshot = waiting()
        root = tmp_path / "root"
        (root / "srv/app").mkdir(parents=True)
        (root / "srv/app/worker.py").write_text(WORKER)
        os.utime(root / "srv/app/worker.py", (0, 0))
        template = team('at = "files"\nraises = "likely"')
        sources = Sources(snapshot.target, str(root), codes=snapshot.tables["code_objects"])
        finding = only(find_leaks([snapshot], sources=sources, templates=[template]))
        assert finding.verdict == "suspect" and finding.source
        assert only(judged(tmp_path, WORKER, templates=[template])).verdict == "likely"

    def test_an_expression_that_takes_too_long_is_left_out_and_that_is_said(self, tmp_path: Path) -> None:
        """Templates are checked, but no check knows every text."""
        rule = SourceRule("files", pattern=r"(x|xx)+$", raises=True)
        template = dataclasses.replace(team('at = "files"'), source=(rule,))
        report = judged(tmp_path, WORKER + "# " + "x" * 200 + "!\n", templates=[template])
        assert only(report).verdict == "suspect"
        assert [line for line in only(report).source if line.check == "pattern"] == []
        assert any("took too long on /srv/app/worker.py: left out" in w for w in report.warnings)


class TestFiles:
    def test_the_longest_end_of_the_path_is_taken(self, tmp_path: Path) -> None:
        (tmp_path / "app/shop").mkdir(parents=True)
        (tmp_path / "basket.py").write_text("other = 1\n")
        (tmp_path / "app/shop/basket.py").write_text("right = 1\n")
        frame = Frame("f", "/srv/app/shop/basket.py", 1)
        assert Sources(folders=[tmp_path]).line(frame) == "right = 1"
        assert Sources(folders=[tmp_path / "app"]).line(frame) == "right = 1"
        assert Sources(folders=[tmp_path / "nothing", tmp_path]).line(frame) == "right = 1"

    def test_a_name_of_the_target_leads_to_nothing_else(self, tmp_path: Path) -> None:
        (tmp_path / "secret.py").write_text("password = 1\n")
        (tmp_path / "in").mkdir()
        elsewhere = Target("live", host="surely-another-host")
        for name in ("/../secret.py", "../secret.py", "/in/../../secret.py", "nul\0.py", "/"):
            assert Sources(elsewhere, folders=[tmp_path / "in"]).line(Frame("f", name, 1)) == ""

    def test_a_line_of_another_source_is_not_shown(self, tmp_path: Path) -> None:
        (tmp_path / "worker.py").write_text(WORKER)
        frame = Frame("Client.fetch", "/srv/app/worker.py", AT)
        assert Sources(folders=[tmp_path], codes=codes_of(WORKER)).line(frame) == "await self.limit.acquire()"
        assert Sources(folders=[tmp_path], codes=codes_of(HEALTHY)).line(frame) == ""

    def test_rows_that_no_diagtool_wrote_do_no_harm(self, tmp_path: Path) -> None:
        (tmp_path / "worker.py").write_text(WORKER)
        good = codes_of(WORKER)[0]
        rows: list[Any] = [
            3,
            {},
            {"file": 3},
            {**good, "lines": "x"},
            {**good, "names": [1]},
            {**good, "lines": [None]},
        ]
        rows += [{**good, "first_line": None}, {**good, "name": 7}, {"file": good["file"]}]
        sources = Sources(folders=[tmp_path], codes=rows)
        assert sources.doubt("/srv/app/worker.py") is None
        assert sources.function(Frame("Client.fetch", "/srv/app/worker.py", AT)) is not None


class TestSame:
    def test_a_source_is_itself(self) -> None:
        for text in (WORKER, HEALTHY, Path(__file__).read_text()):
            module = Module("worker.py", text.encode())
            assert [row["name"] for row in codes_of(text) if differs(module, row)] == []

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("import asyncio\n", "import asyncio\n\n"),  # a line more above
            ("await self.get(url)", "await self.get(url, retry)"),  # a name more
            ("await self.get(url)", "await self.fetched(url)"),  # another name
            ("        self.limit.release()\n", ""),  # a line less
            ("async def fetch(", "async def fetched("),
            ("    async def fetch", "    @logged\n    async def fetch"),
            (
                "            self.limit.release()\n",
                "            self.limit.release()\n            log(url)\n",
            ),
        ],
    )
    def test_what_was_edited_is_told(self, old: str, new: str) -> None:
        text = WORKER if old in WORKER else HEALTHY
        assert old in text
        module = Module("worker.py", text.replace(old, new, 1).encode())
        assert any(differs(module, row) for row in codes_of(text))
        module = Module("worker.py", text.encode())
        assert any(differs(module, row) for row in codes_of(text.replace(old, new, 1)))


DEEP = 100_000
NO_SOURCES = {
    "no python": b"def f(:\n",
    "cut off": b"def f():\n    x = (1,\n",
    "null bytes": b"x = 1\0\n",
    "binary": bytes(range(256)) * 64,
    "attributes": b"a" + b".a" * DEEP,
    "minus": b"-" * DEEP + b"1",
    "parentheses": b"(" * DEEP,
    "calls": b"f" + b"()" * DEEP,
    "elif": b"if a: pass\n" + b"elif a: pass\n" * 30_000,
    "too long": b"x = 1\n" * 200_000,
    "an odd encoding": b"# coding: utf-7\nx = 1\n",
    "no encoding at all": b"# -*- coding: nonsense -*-\nx = 1\n",
}


class TestModule:
    @pytest.mark.parametrize("data", NO_SOURCES.values(), ids=NO_SOURCES)
    def test_what_can_not_be_parsed_says_why(self, data: bytes) -> None:
        module = Module("x.py", data)
        if module.tree is None:
            assert module.problem
            assert module.functions == []
        assert module.lines

    def test_syntax_of_a_newer_python_is_searched_only_and_that_is_said(self, tmp_path: Path) -> None:
        newer = WORKER + "\ntemplate = new syntax\n"
        report = judged(tmp_path, newer, templates=[team('at = "leaf"')])
        assert only(report).source == ()
        version = "{}.{}".format(*sys.version_info[:2])
        assert any(f"is no Python {version} at line " in w and "only searched" in w for w in report.warnings)
        report = judged(tmp_path, newer, templates=[team('at = "files"')])
        assert [line.line for line in only(report).source] == [9]

    def test_lines_are_those_of_python(self) -> None:
        """Form feeds and what Unicode calls a line separator end no line; carriage returns do."""
        module = Module("x.py", "\ufeffa = 1\r\nb = '\u2028'\x0c\nc = 3\r".encode())
        assert module.lines[:3] == ["a = 1", "b = '\u2028'\x0c", "c = 3"]
        assert Module("x.py", b"# coding: latin-1\nx = '\xe9'\n").lines[1] == "x = 'é'"

    def test_functions_are_found_by_name_and_line(self) -> None:
        text = """
        @cached(lambda self: 1)
        def f(a, b=lambda: 2):
            def g():
                return [x for x in (lambda: 3)()]
            class C:
                def g(self): return 1
            return g
        """
        module = Module("x.py", textwrap.dedent(text).lstrip().encode())
        names = [(f.qualname, f.first_line) for f in module.functions[1:]]
        assert ("f", 1) in names and ("f.<locals>.g", 3) in names and ("f.<locals>.C.g", 6) in names
        inner = module.function_of("f.<locals>.C.g", 6)
        assert inner is not None and inner.qualname == "f.<locals>.C.g"
        comprehension = module.function_of("f.<locals>.g.<locals>.<listcomp>", 4)
        assert comprehension is not None and comprehension.qualname == "f.<locals>.g"
        assert module.function_of("g", 1) is None
        assert module.function_of("f", 2, first_line=2) is None


class TestSpawns:
    @pytest.mark.parametrize(
        ("text", "lines"),
        [
            ("asyncio.create_task(work())", [3]),
            ("group.create_task(self.work())", [3]),
            ("threading.Thread(target=work, args=(1,)).start()", [3]),
            ("pool.submit(work, 1)", [3]),
            ("await work()", []),
            ("register(work)", None),
            ("task = work()", None),
            ("TASKS['work'] = work", None),
        ],
    )
    def test_where_a_function_is_started(self, text: str, lines: list[int] | None) -> None:
        module = Module("x.py", f"async def work(): pass\nasync def main():\n    {text}\n".encode())
        found = sites([module], module.functions[1])
        assert (None if found is None else [s.call.lineno for s in found]) == lines


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        (r"await self\.paid\.wait\(\)", None),
        (r"(\w+\.)+wait\(", None),
        ("(", "is no regular expression: "),
        ("a*", "matches everything"),
        (r"(\w|\w\w)+$", "may search for ever"),
        ("x" * 2000, "is 2,000 characters long"),
    ],
)
def test_an_absurd_expression_is_told(pattern: str, problem: str | None) -> None:
    found = problem_of(pattern)
    assert found is None if problem is None else found is not None and problem in found


class TestReports:
    HOSTILE = SourceLine(
        "/srv/\x1b[31m.py", 7, "x = '\x1b]0;owned\x07\u202e'" + "y" * 300, "pattern", "says\x9b31m it"
    )

    def test_lines_of_the_source_are_shown_and_can_do_nothing_to_a_terminal(self) -> None:
        lines = list(terminal.leaks(report(source=(self.HOSTILE,)), terminal.View()))
        text = ["".join(part for part, _ in line) for line in lines]
        assert all(part.isprintable() for part in text)
        assert max(map(len, text[:-1])) <= 80
        assert any(line.strip().startswith("source   ") and ".py:7: x = '" in line for line in text)

    def test_the_document_has_them_by_the_schema(self) -> None:
        document = documents.leaks(report(source=(self.HOSTILE,)))
        jsonschema.validate(document, documents.schema("leaks"))
        (line,) = document["findings"][0]["source"]
        assert (line["file"], line["line"], line["check"]) == (self.HOSTILE.file, 7, "pattern")
