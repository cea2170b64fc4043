"""Reports for CI: each is what its reader expects, counts what is ignored, and takes no name for its own."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from junitparser import JUnitXml, TestSuite
from made_snapshots import FETCH, GET, LEAF, TREND, finding, report
from markdown_it import MarkdownIt

import diagtool.report.sarif
from diagtool.leaks.baseline import apply
from diagtool.leaks.baseline_toml import read_text
from diagtool.leaks.model import Report, SourceLine, WaitingOn
from diagtool.report.github import github
from diagtool.report.gitlab import gitlab
from diagtool.report.junit import junit
from diagtool.report.locations import Locations
from diagtool.report.markdown import MAX_CHARACTERS, markdown
from diagtool.report.sarif import document, sarif
from diagtool.snapshot.model import Frame, Target

HERE = Locations(Path("/srv"))
AWAY = Locations(Path("/elsewhere"))
SCHEMA = Path(__file__).parents[1] / "data/sarif/sarif-2.1.0-rtm.5.json"
VALIDATOR = jsonschema.Draft4Validator(json.loads(SCHEMA.read_text("utf-8")))

#: Names as a hostile process may have them.
HOSTILE = [
    "a\n::error::b",
    "::set-output name=x::y\r\n::stop-commands::z",
    "%0A::add-mask::%25",
    "</code><script>alert(1)</script>",
    "]]><failure/>&lt;&#0;",
    "a|b\\|c``` \n```\n# head",
    "[x](javascript:alert(1)) ![y](http://evil/z.png) http://evil.example www.evil.example @everyone #1",
    "\x1b[31m\x00\u202e\u2028\ud800\udfff\ufffe",
    "../../etc/passwd",
    "`",
    "",
]


def ignored(found: Report, *ids: str) -> Report:
    text = "".join(f'[[ignore]]\nid = "{i}"\nreason = "known | `so`"\nexpires = 2099-01-31\n' for i in ids)
    return apply(found, read_text(text, Path("/srv/.diagtool.toml")))


def hostile(name: str) -> Report:
    """A report in which everything that comes from a process or a team's template is ``name``."""
    frame = Frame(name, f"/srv/{name}", 3, name)
    changes: dict[str, Any] = {
        "template": name,
        "title": name,
        "wait": name,
        "waiting_on": WaitingOn(name, 1, name),
        "created_by": (frame, Frame(name, name, None, None)),
        "frames": (replace(GET, function=name), frame, Frame(name, "<" + name, -1, name)),
        "held_by": (name,),
        "evidence": (name,),
        "cause": name,
        "fix": name,
        "runbook": name,
        "examples": (name,),
        "source": (SourceLine(f"/srv/{name}", 3, name, name, name), SourceLine(name, 0, name, name, name)),
    }
    made = report(2, **changes)
    target = Target("live", 1, name, name, name, [name, f"{name}.py"])
    made = replace(made, target=target, warnings=(name,))
    return ignored(made, "000001")


def checked(found: Report, locations: Locations = HERE) -> dict[str, Any]:
    """The run of the SARIF document, after the schema has seen it."""
    text = sarif(found, locations)
    assert text.isascii()
    read = json.loads(text)
    VALIDATOR.validate(read)
    run: dict[str, Any] = read["runs"][0]
    return run


class TestSarif:
    def test_a_finding_is_a_result_at_the_innermost_own_line_of_the_repository(self) -> None:
        run = checked(report())
        (rule,) = run["tool"]["driver"]["rules"]
        assert rule["id"] == "asyncio-queue-get-starved" and rule["name"] == "AsyncioQueueGetStarved"
        assert "Fix: give every consumer" in rule["help"]["text"]
        (result,) = run["results"]
        assert (result["ruleId"], result["ruleIndex"], result["level"]) == (rule["id"], 0, "warning")
        assert result["message"]["text"].startswith("10,000 tasks waiting in asyncio.Queue.get (likely): ")
        (place,) = result["locations"]
        assert place["physicalLocation"] == {
            "artifactLocation": {"uri": "app/worker.py", "uriBaseId": "%SRCROOT%"},
            "region": {"startLine": 41},
        }
        assert place["logicalLocations"][0]["fullyQualifiedName"] == "worker.leaf"
        (related,) = result["relatedLocations"]
        assert related["message"]["text"] == "called from fetch_all"
        assert related["physicalLocation"]["region"] == {"startLine": 44}
        frames = result["stacks"][0]["frames"]
        assert [f["module"] for f in frames] == ["asyncio.queues", "worker", "worker"]
        assert frames[0]["location"]["physicalLocation"]["artifactLocation"] == {
            "uri": "file:///usr/lib/python3.12/asyncio/queues.py"
        }
        assert "suppressions" not in result
        assert "/srv" not in json.dumps(run["originalUriBaseIds"])

    def test_lines_that_explain_it_are_related_places(self) -> None:
        line = SourceLine("/srv/app/main.py", 7, "spawn(x)", "task-dropped", "the tasks are started here")
        away = SourceLine("/opt/x.py", 7, "", "", "")
        related = checked(report(source=(line, away)))["results"][0]["relatedLocations"]
        assert [r["message"]["text"] for r in related] == ["called from fetch_all", line.says]
        assert related[1]["physicalLocation"]["artifactLocation"]["uri"] == "app/main.py"
        assert "%0Asee app/main.py:7: the tasks are started here%0A" in github(report(source=(line,)), HERE)

    def test_the_level_is_that_of_the_verdict(self) -> None:
        for verdict, level in (("proven", "error"), ("likely", "warning"), ("suspect", "note")):
            assert checked(report(verdict=verdict))["results"][0]["level"] == level

    def test_the_fingerprint_stays_when_lines_move(self) -> None:
        moved = report(frames=(GET, replace(LEAF, line=99), FETCH))
        prints = [checked(found)["results"][0]["partialFingerprints"] for found in (report(), moved)]
        assert prints == [{"diagtoolFinding/v1": "000000"}] * 2

    def test_a_rule_a_template(self) -> None:
        found = Report.of(
            report().target,
            [finding(id="a"), finding(id="b"), finding(id="c", template=None), finding(id="d", template="x")],
            [],
            stacks=4,
        )
        run = checked(found)
        assert [r["id"] for r in run["tool"]["driver"]["rules"]] == [
            "asyncio-queue-get-starved",
            "unknown-place",
            "x",
        ]
        assert [r["ruleIndex"] for r in run["results"]] == [0, 0, 1, 2]

    def test_what_is_ignored_is_suppressed_with_its_reason(self) -> None:
        run = checked(ignored(report(2), "000001"))
        kept, known = run["results"]
        assert kept["suppressions"] == []
        (suppression,) = known["suppressions"]
        assert suppression["kind"] == "external"
        assert suppression["justification"] == (
            "known | `so` (until 2099-01-31); .diagtool.toml: ignore[1] (line 1)"
        )
        assert suppression["location"]["physicalLocation"]["artifactLocation"]["uri"] == ".diagtool.toml"
        notes = run["invocations"][0]["toolExecutionNotifications"]
        assert "1 ignored by .diagtool.toml" in notes[0]["message"]["text"]
        assert notes[1]["message"]["text"] == "a page was missing"

    def test_runbooks_with_an_address_are_linked(self) -> None:
        run = checked(report(runbook="https://wiki.example/a b#<x>"))
        assert run["tool"]["driver"]["rules"][0]["helpUri"] == "https://wiki.example/a%20b#%3Cx%3E"

    def test_what_is_nowhere_in_the_repository_has_a_place_nevertheless(self) -> None:
        for found in (checked(report(), AWAY), checked(report(frames=(), created_by=None), AWAY)):
            (place,) = found["results"][0]["locations"]
            assert place["physicalLocation"]["artifactLocation"]["uri"] == "python3.12"

    def test_of_very_many_the_worst_are_shown_and_the_rest_counted(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(diagtool.report.sarif, "MAX_RESULTS", 20)
        run = checked(report(27, trend=TREND))
        assert len(run["results"]) == 20
        notes = run["invocations"][0]["toolExecutionNotifications"]
        assert notes[1]["message"]["text"] == "7 findings more: --format json has all of them"

    @pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
    def test_hostile_names(self, name: str) -> None:
        run = checked(hostile(name))
        for result in run["results"]:
            assert "](" not in result["message"]["text"]
            for place in result["locations"]:
                uri = place["physicalLocation"]["artifactLocation"]["uri"]
                assert not uri.startswith(("/", "../")) and re.fullmatch(r"[\w.~/%-]*", uri, re.ASCII)

    @settings(max_examples=30)
    @given(name=st.text(st.characters(), max_size=40))
    def test_any_name(self, name: str) -> None:
        checked(hostile(name))


class TestJunit:
    def read(self, text: str) -> list[Any]:
        assert ET.fromstring(text).tag == "testsuites"
        (suite,) = JUnitXml.fromstring(text.encode())
        return list(suite)

    def test_a_finding_fails_a_test_and_one_says_that_there_was_a_look(self) -> None:
        text = junit(report(), HERE)
        judged, case = self.read(text)
        assert judged.name == "the target could be judged" and not judged.result
        assert judged.system_out.splitlines()[1] == "warning: a page was missing"
        assert case.classname == "diagtool.leaks.asyncio-queue-get-starved"
        assert case.name == "app/worker.py: leaf [000000]"
        (failure,) = case.result
        assert failure.type == "likely"
        assert failure.message.startswith("10,000 tasks waiting in asyncio.Queue.get: ")
        assert re.search(r"/srv/app/worker.py:41 +in leaf", failure.text)
        assert 'file="app/worker.py" line="41"' in text
        root = ET.fromstring(text)
        assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("2", "1", "0")

    def test_what_does_not_fail_the_run_is_no_failure(self) -> None:
        for fail_on in ("proven", None):
            _, case = self.read(junit(report(), HERE, fail_on))  # type: ignore[arg-type]
            assert not case.result and "in leaf" in case.system_out

    def test_cases_are_counted_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not all of them with each one more: of 10,000 findings that is hours."""
        counted, count = [], TestSuite.update_statistics
        monkeypatch.setattr(TestSuite, "update_statistics", lambda self: (counted.append(1), count(self)))
        assert len(self.read(junit(report(50), HERE))) == 51
        assert len(counted) < 5

    def test_nothing_found_is_a_test_that_passes(self) -> None:
        (judged,) = self.read(junit(report(0), HERE))
        assert not judged.result

    def test_what_is_ignored_is_skipped_with_its_reason(self) -> None:
        text = junit(ignored(report(2), "000001"), HERE)
        _, kept, known = self.read(text)
        assert kept.result[0].type == "likely"
        assert known.result[0].message.startswith("known | `so` (.diagtool.toml: ignore[1] (line 1), until")
        assert ET.fromstring(text).get("skipped") == "1"

    @pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
    def test_hostile_names(self, name: str) -> None:
        cases = self.read(junit(hostile(name), HERE))
        assert [len(case.result) for case in cases] == [0, 1, 1]

    @settings(max_examples=30)
    @given(name=st.text(st.characters(), max_size=40))
    def test_any_name(self, name: str) -> None:
        assert len(self.read(junit(hostile(name), HERE))) == 3


class TestGithub:
    def test_a_finding_is_an_annotation_at_its_line(self) -> None:
        first, last = github(report(), HERE).splitlines()
        assert first.startswith(
            "::error file=app/worker.py,line=41,title=likely%3A asyncio-queue-get-starved::"
            "10,000 tasks waiting in asyncio.Queue.get: "
        )
        assert (
            "%0Aat worker.py:41 in leaf%0A" in first and "%0Afrom app/worker.py:44 in fetch_all%0A" in first
        )
        assert last.startswith("::notice title=diagtool::1 finding (1 likely), 2 clusters")

    @pytest.mark.parametrize(
        ("verdict", "fail_on", "command"),
        [
            ("proven", "proven", "error"),
            ("likely", "proven", "warning"),
            ("suspect", "suspect", "error"),
            ("suspect", "likely", "notice"),
            ("proven", None, "warning"),
        ],
    )
    def test_what_fails_the_run_is_an_error(self, verdict: str, fail_on: Any, command: str) -> None:
        assert github(report(verdict=verdict), HERE, fail_on).startswith(f"::{command} ")

    def test_what_is_ignored_is_counted_and_what_is_unused_told(self) -> None:
        lines = github(ignored(report(2), "000001", "gone"), HERE).splitlines()
        assert len(lines) == 3
        assert lines[1].startswith(
            "::notice title=diagtool::1 finding (1 likely), 1 ignored by .diagtool.toml,"
        )
        assert lines[2].startswith("::warning title=diagtool::.diagtool.toml: ignore[2] (line 5) is unused")

    def test_what_is_elsewhere_has_no_line_and_says_what_helps(self) -> None:
        first, _, warning = github(report(), AWAY).splitlines()
        assert first.startswith("::error title=likely%3A ")
        assert warning.endswith("--map FROM=TO says what a container calls it")

    def test_more_than_github_shows_are_counted(self) -> None:
        lines = github(report(80), HERE).splitlines()
        assert len(lines) == 51 and lines[-1].endswith(" · 30 findings more than GitHub shows")

    @pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
    def test_hostile_names(self, name: str) -> None:
        self.every_line_is_ours(github(hostile(name), HERE))

    @settings(max_examples=30)
    @given(name=st.text(st.characters(), max_size=40))
    def test_any_name(self, name: str) -> None:
        self.every_line_is_ours(github(hostile(name), HERE))

    def every_line_is_ours(self, text: str) -> None:
        assert text.endswith("\n") and text.replace("\n", "").isprintable()
        for line in text[:-1].split("\n"):
            match = re.fullmatch(r"::(error|warning|notice) ([^:]*)::(.*)", line)
            assert match is not None and "\r" not in line
            for pair in match[2].split(","):
                assert re.fullmatch(r"(file|line|title)=[^:,]*", pair), line
            assert not re.search("%(?!25|0A|0D|3A|2C)", line)


class TestGitlab:
    def test_a_finding_is_an_issue(self) -> None:
        (issue,) = json.loads(gitlab(report(), HERE))
        assert issue["description"].startswith(
            "likely: 10,000 tasks waiting in asyncio.Queue.get, at worker.py:41"
        )
        assert issue["location"] == {"path": "app/worker.py", "lines": {"begin": 41}}
        assert (issue["severity"], issue["fingerprint"]) == ("major", "000000")
        assert issue["check_name"] == "asyncio-queue-get-starved"

    def test_severities(self) -> None:
        for verdict, severity, told in (
            ("proven", "high", "critical"),
            ("likely", "low", "minor"),
            ("suspect", "medium", "minor"),
            ("suspect", "low", "info"),
        ):
            (issue,) = json.loads(gitlab(report(verdict=verdict, severity=severity), HERE))
            assert issue["severity"] == told

    def test_what_is_ignored_is_one_issue_that_says_so(self) -> None:
        kept, known = json.loads(gitlab(ignored(report(3), "000001", "000002"), HERE))
        assert kept["fingerprint"] == "000000"
        assert known["description"] == "2 findings are ignored by .diagtool.toml"
        assert known["severity"] == "info" and known["location"]["path"] == ".diagtool.toml"
        assert json.loads(gitlab(report(0), HERE)) == []

    @pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
    def test_hostile_names(self, name: str) -> None:
        issues = json.loads(gitlab(hostile(name), AWAY))
        assert {i["severity"] for i in issues} <= {"info", "minor", "major", "critical", "blocker"}
        assert len({i["fingerprint"] for i in issues}) == len(issues) == 2
        for issue in issues:
            assert issue["description"].isprintable() and not issue["location"]["path"].startswith(
                ("/", "..")
            )
            assert issue["location"]["lines"]["begin"] >= 1


class TestMarkdown:
    def rendered(self, text: str) -> str:
        """As GitHub would show it, before it takes out what may not be in a page."""
        made: str = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)
        return made

    def test_a_table_of_findings_and_a_paragraph_each(self) -> None:
        text = markdown(report(), HERE)
        assert text.startswith("## diagtool: 1 finding\n\n| verdict | what | where | template |\n")
        assert (
            "| **likely** | 10,000 tasks waiting in `asyncio.Queue.get` | `app/worker.py:41` in `leaf` "
            "| `asyncio-queue-get-starved` |\n"
        ) in text
        assert "<details><summary>likely: 10,000 tasks, <code>asyncio-queue-get-starved</code> in" in text
        assert "        held by  __main__.background_tasks (set, 10,000 items)\n" in text
        assert "- `a page was missing`\n" in text
        said = "`cpython 3.12.1, pid 4242 · stopped for 3.1 ms`"
        assert text.splitlines()[-1] == f"1 finding (1 likely), 2 clusters, 10,052 stacks · {said}"

    def test_nothing_found_says_so(self) -> None:
        assert markdown(report(0), HERE).startswith("## diagtool: nothing found\n")

    def test_what_is_ignored_is_a_table_too(self) -> None:
        text = markdown(ignored(report(2), "000001"), HERE)
        assert "**1 ignored** by `.diagtool.toml`:" in text
        assert "| `` known \\| `so` `` | 2099-01-31 |" in text
        assert "1 finding (1 likely), 1 ignored by .diagtool.toml, " in text

    def test_runbooks_with_an_address_are_links(self) -> None:
        text = markdown(report(runbook="https://wiki.example/q.md"), HERE)
        assert "[`asyncio-queue-get-starved`](https://wiki.example/q.md)" in text

    def test_thousands_of_findings_fit_into_a_comment(self) -> None:
        text = markdown(
            ignored(report(2_000, evidence=("x" * 900,) * 4), *map("{:06x}".format, range(60))), HERE
        )
        assert len(text) < MAX_CHARACTERS
        assert "… and 1,890 findings more." in text and "… and 10 more." in text
        assert re.search(r"Details of 1,\d\d\d findings do not fit here", text)
        long = Frame("`|" * 400, "/srv/" + "`|" * 400, 3)
        text = markdown(replace(report(100, frames=(long,)), warnings=("|" * 900,) * 30), HERE)
        assert len(text) < MAX_CHARACTERS and re.search(r"… and \d\d findings more\.", text)

    @pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
    def test_hostile_names(self, name: str) -> None:
        self.nothing_of_it_is_markup(markdown(hostile(name), HERE))

    @settings(max_examples=30)
    @given(name=st.text(st.sampled_from("`|\\*_[]()<>&#!~\n\r-+.:@ a/\u202e\ud800"), max_size=30))
    def test_any_name(self, name: str) -> None:
        self.nothing_of_it_is_markup(markdown(hostile(name), HERE))

    def nothing_of_it_is_markup(self, text: str) -> None:
        shown = self.rendered(text)
        plain = re.sub(r"<code.*?>.*?</code>", "", shown, flags=re.DOTALL)
        tags = set(re.findall(r"<[^>]*>", plain))
        assert tags <= {
            *(
                "<h2>",
                "</h2>",
                "<table>",
                "</table>",
                "<thead>",
                "</thead>",
                "<tbody>",
                "</tbody>",
                "<tr>",
                "</tr>",
            ),
            *(
                "<th>",
                "</th>",
                "<td>",
                "</td>",
                "<strong>",
                "</strong>",
                "<p>",
                "</p>",
                "<ul>",
                "</ul>",
                "<li>",
            ),
            *("</li>", "<details>", "</details>", "<summary>", "</summary>", "<pre>", "</pre>"),
        }
        assert (shown.count("<table>"), shown.count("<h2>"), shown.count("<details>")) == (2, 1, 1)
        assert shown.count("<tr>") == 4 and shown.count("<td>") == 8
        assert "javascript:" not in plain and "everyone" not in plain


def test_the_document_says_the_same_twice() -> None:
    assert document(report(3), HERE) == document(report(3), HERE)
