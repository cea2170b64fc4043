"""Templates as TOML: ours are sound; a mistake in a user's is told with file, key and the nearest name."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from diagtool.leaks.source.checks import CHECKS
from diagtool.leaks.template import (
    LIBRARY,
    TablePattern,
    TemplateError,
    builtin,
    library,
    read_directory,
)
from diagtool.leaks.template_table import tomllib
from diagtool.leaks.template_toml import read_text
from diagtool.leaks.tomllines import line_of, lines_of

GOOD = """
[[template]]
id = "my-leak"
title = "My leak"
kind = "task"
severity = "high"
cause = "because"
fix = "so"
match = { wait = "asyncio.Event.wait" }
verdict = [{ level = "likely", min_count = 5, stack = "stuck == true" }]
"""

CATALOGUE = [
    *(f"A{n:02}" for n in range(1, 20)),
    *(f"C{n:02}" for n in range(1, 13)),
    "B01",
    "B02",
    "B03",
    "B04",
    "B08",
]


def problems(text: str) -> list[str]:
    return [str(p) for p in read_text(text, "mine.toml")[1]]


def test_our_own_templates_are_sound() -> None:
    templates, wrong = read_directory(LIBRARY)
    assert wrong == []
    assert len(templates) == len({t.id for t in templates})


def test_every_leak_of_the_catalogue_has_a_template() -> None:
    assert set(CATALOGUE) <= {t.catalogue for t in builtin()}


@pytest.mark.parametrize("template", [t for t in builtin() if not t.idle], ids=lambda t: t.id)
def test_a_leak_template_says_what_it_must(template) -> None:  # type: ignore[no-untyped-def]
    assert len(template.cause) > 40
    assert len(template.fix) > 40
    assert template.references
    assert all(r.startswith("https://") for r in template.references)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", template.id)


@pytest.mark.parametrize("template", [t for t in builtin() if not t.idle], ids=lambda t: t.id)
def test_a_count_alone_is_never_likely(template) -> None:  # type: ignore[no-untyped-def]
    """`likely` fails a build: it needs more than stacks at one place."""
    if isinstance(template.match, TablePattern):
        return
    for rule in template.rules:
        if rule.level == "likely":
            assert rule.stack or rule.thing or rule.group or rule.series or rule.present


def test_a_sound_template_is_read() -> None:
    templates, wrong = read_text(GOOD, "mine.toml")
    assert wrong == []
    (template,) = templates
    assert (template.id, template.severity, template.file) == ("my-leak", "high", "mine.toml")
    assert template.match.states == ("waiting", "cancelling")  # type: ignore[union-attr]
    assert [(r.level, r.min_count) for r in template.rules] == [("likely", 5)]
    assert template.runbook == "docs/runbooks/my-leak.md"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('severity = "high"', 'severty = "high"', "my-leak.severty: no such key (did you mean 'severity'?)"),
        (
            'severity = "high"',
            'severity = "awful"',
            "my-leak.severity: 'awful' is not one of high, medium, low",
        ),
        ('kind = "task"', 'kind = "tasks"', "my-leak.kind: 'tasks' is not one of thread, task"),
        ('id = "my-leak"', 'id = "My Leak"', "'My Leak' must be lower case"),
        ('title = "My leak"', "", "my-leak.title: is missing"),
        ('cause = "because"', "", "my-leak.cause: is missing"),
        ("wait =", "wiat =", "my-leak.match.wiat: no such key (did you mean 'wait'?)"),
        ('"asyncio.Event.wait" }', '"x", states = ["idle"] }', "'idle' is not one of unknown, running"),
        ('"asyncio.Event.wait" }', '"x", frames = "queue.py" }', "not a frame pattern: 'queue.py'"),
        ("wait = ", "thing = ", "not a comparison: 'asyncio.Event.wait'"),
        ("stuck == true", "stuk == true", "no fact 'stuk' (did you mean 'stuck'?)"),
        ("stuck == true", "stuck = true", "not a comparison: 'stuck = true'"),
        ("min_count = 5", 'min_count = "5"', "verdict[0].min_count: must be a whole number, is str"),
        ("min_count = 5", "min_count = true", "must be a whole number, is bool"),
        ('level = "likely"', 'level = "proven"', "proven is never a template's to give"),
        ('level = "likely"', 'level = "sure"', "'sure' is not one of proven, likely, suspect"),
        ('match = { wait = "asyncio.Event.wait" }', "", "my-leak.match: needs exactly one [template.match]"),
        ('{ wait = "asyncio.Event.wait" }', "{ }", "my-leak.match: matches every stack"),
        ("verdict = [", "idle = true\nverdict = [", "an idle template has no verdicts"),
        ("verdict = [{", "wordict = [{", "no such key (did you mean 'verdict'?)"),
        ("min_count = 5", "min_count = -5", "verdict[0].min_count: must be 1 or more, is -5"),
        (
            "min_count = 5",
            'min_count = 5, evidence = "{cuont} tasks"',
            "verdict[0].evidence: no fact 'cuont' (did you mean 'count'?)",
        ),
        ("stuck == true", "stuck == true" + " " * 3000, "verdict[0].stack: is 3,013 characters long"),
    ],
)
def test_a_mistake_is_told_with_its_place(old: str, new: str, problem: str) -> None:
    assert old in GOOD
    found = problems(GOOD.replace(old, new))
    assert any(problem in p for p in found), found
    assert all(re.match(r"mine\.toml:\d+: ", p) for p in found)


def test_a_template_with_a_mistake_is_not_used_and_the_others_are() -> None:
    templates, wrong = read_text(
        GOOD + GOOD.replace("my-leak", "other").replace("stuck", "stuk"), "mine.toml"
    )
    assert [t.id for t in templates] == ["my-leak"]
    assert len(wrong) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("template = 3", "must be a table or a list of tables"),
        ("[[template]", "not TOML"),
        ("", "no [[template]] in this file"),
        ("[[tmplate]]\nid = 'x'", "no such key (did you mean 'template'?)"),
        ("[[template]]\nid = 3", "must be a string, is int"),
    ],
)
def test_a_file_that_is_none_is_told(text: str, problem: str) -> None:
    assert any(problem in p for p in problems(text))


def test_a_users_template_replaces_ours_of_the_same_id(tmp_path: Path) -> None:
    text = GOOD.replace("my-leak", "asyncio-queue-get-starved")
    (tmp_path / "mine.toml").write_text(text + GOOD)
    ids = [t.id for t in library(tmp_path)]
    assert len(ids) == len(builtin()) + 1
    (replaced,) = [t for t in library(tmp_path) if t.id == "asyncio-queue-get-starved"]
    assert replaced.title == "My leak"


def test_a_users_mistake_stops_with_all_problems_and_a_hint(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(GOOD.replace("severity", "severty").replace("stuck", "stuk"))
    with pytest.raises(TemplateError, match="did you mean") as caught:
        library(tmp_path)
    assert len(caught.value.problems) == 2
    assert "templates check" in caught.value.hint


def test_what_is_no_plain_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mine.toml")
    assert "it is no plain file" in str(read_directory(tmp_path)[1][0])


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_file_that_can_not_be_read_is_told(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "mine.toml"
    if content is None:
        file.symlink_to(tmp_path / "nowhere")
    else:
        file.write_bytes(content)
    _, wrong = read_directory(tmp_path)
    assert "can't be read" in str(wrong[0])


def test_an_empty_directory_is_told(tmp_path: Path) -> None:
    _, wrong = read_directory(tmp_path)
    assert "no template files here" in str(wrong[0])


def test_the_same_id_twice_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(GOOD)
    (tmp_path / "b.toml").write_text(GOOD)
    _, wrong = read_directory(tmp_path)
    assert str(wrong[0]) == "b.toml:3: my-leak: is also in a.toml:3"


# -- lines ------------------------------------------------------------------------------------------------

TRICKY = (
    '''
title = """[[template]]
id = "no"
"""  # x = 1
"quoted key" = 'a'''
    + """'
[[template]]
id = "a" # [b]
list = [ # comment ]
  "x]", { k = 1, "l m" = [2,
    3] },
]
a.b . c = 1

[[template.verdict]]
level = 1
  [template.verdict.with]
  kinds = '''
]
'''
[[template.verdict]]
level = 2
[[template]]
id = "b"
[other]
x = 1979-05-27T07:32:00Z
"""
)


def test_each_key_has_its_line() -> None:
    at = lines_of(TRICKY)
    places = {
        ("title",): 2,
        ("quoted key",): 5,
        ("template", 0): 6,
        ("template", 0, "id"): 7,
        ("template", 0, "list"): 8,
        ("template", 0, "list", 1, "k"): 9,
        ("template", 0, "list", 1, "l m"): 9,
        ("template", 0, "list", 1, "l m", 1): 10,
        ("template", 0, "a", "b", "c"): 12,
        ("template", 0, "verdict", 0, "level"): 15,
        ("template", 0, "verdict", 0, "with", "kinds"): 17,
        ("template", 0, "verdict", 1, "level"): 21,
        ("template", 1, "id"): 23,
        ("other", "x"): 25,
    }
    assert {path: at.get(path) for path in places} == places
    assert line_of(at, ("template", 1, "fix")) == 22
    assert line_of({}, ("x",)) is None


@pytest.mark.parametrize("file", sorted(LIBRARY.glob("*.toml")), ids=lambda f: f.name)
def test_lines_of_our_own_templates(file: Path) -> None:
    text = file.read_text("utf-8")
    at, lines = lines_of(text), text.split("\n")
    todo: list[tuple[tuple[str | int, ...], object]] = [((), tomllib().loads(text))]
    while todo:
        path, value = todo.pop()
        if path and not (isinstance(value, list) and (*path, 0) in at):
            assert path in at
            assert isinstance(path[-1], int) or str(path[-1]) in lines[at[path] - 1]
        if isinstance(value, dict):
            todo += [((*path, key), item) for key, item in value.items()]
        elif isinstance(value, list):
            todo += [((*path, i), item) for i, item in enumerate(value)]


@pytest.mark.parametrize(
    "text", ["[", "[[", "x", "x =", 'x = "', "x = [", "x = {", "]", "= 1", "[a]\n]]\n\0", '"""']
)
def test_what_is_no_toml_has_an_end(text: str) -> None:
    lines_of(text)
    assert read_text(text, "mine.toml")[1]


def test_a_mistake_in_toml_has_its_line() -> None:
    assert problems("[[template]]\nid = 'x'\nx = = 1\n")[0].startswith("mine.toml:3: file: not TOML: ")
    assert problems("x = " + "[" * 100_000)[0].startswith("mine.toml")


# -- extends ----------------------------------------------------------------------------------------------


def short(id_: str, extends: str, more: str = "") -> str:
    return f'[[template]]\nid = "{id_}"\nextends = "{extends}"\n{more}\n'


def test_what_a_template_does_not_say_is_taken_from_the_other() -> None:
    text = GOOD + short("other", "my-leak", 'fix = "our way"') + short("third", "other")
    _, other, third = read_text(text, "mine.toml")[0]
    assert (other.id, other.fix, other.cause, other.severity) == ("other", "our way", "because", "high")
    assert (third.id, third.fix, [r.min_count for r in third.rules]) == ("third", "our way", [5])


def test_ours_can_be_changed_under_their_own_name_or_another() -> None:
    ours = next(t for t in builtin() if t.id == "asyncio-queue-get-starved")
    for id_ in (ours.id, "our-queue"):
        (changed,), wrong = read_text(short(id_, ours.id, 'fix = "our way"'), "mine.toml")
        assert wrong == []
        assert (changed.id, changed.fix, changed.match) == (id_, "our way", ours.match)
        assert changed.runbook == ours.runbook


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            short("a-a", "b-b") + short("b-b", "a-a"),
            "mine.toml:3: a-a.extends: goes in a circle: a-a → b-b → a-a",
        ),
        (short("a-a", "b-b") + short("b-b", "c-c") + short("c-c", "b-b"), "a-a.extends: goes in a circle"),
        (short("a-a", "a-a"), "a-a.extends: there is no template 'a-a'"),
        (short("a-a", "asyncio-queue-get-starve"), "(did you mean 'asyncio-queue-get-starved'?)"),
        (GOOD + "[[template]]\nextends = 'my-leak'\n", "mine.toml:11: template[1].id: is missing"),
        ("[[template]]\nid = 'a-a'\nextends = 3\n", "a-a.extends: must be the id of a template"),
    ],
)
def test_what_can_not_be_extended_is_told(text: str, problem: str) -> None:
    assert any(problem in p for p in problems(text)), problems(text)


# -- source -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "problem", "allowed"),
    [
        ('chek = "task-dropped"', "source[0].chek: no such key (did you mean 'check'?)", "pattern"),
        ('check = "task-droped"', "'task-droped' is not one of task-dropped, ", ""),
        ('check = "task-dropped"\nat = "line"', "source[0].at: 'line' is not one of leaf, own, ", ""),
        ('check = "task-dropped"\nraises = "proven"', "source[0].raises: 'proven' is not one of likely", ""),
        (
            'check = "task-dropped"\npattern = "x"',
            "say either a check or a pattern",
            "acquire-without-release",
        ),
        ('at = "leaf"', "say either a check or a pattern", "task-dropped"),
        ('pattern = "("', "source[0].pattern: '(' is no regular expression", ""),
        ("pattern = 3", "source[0].pattern: must be a string, is int", ""),
        ('check = "task-dropped"\nraises = "likely"\nlowers = "suspect"', "either raises or lowers", ""),
    ],
)
def test_a_mistake_in_a_source_rule_is_told(rule: str, problem: str, allowed: str) -> None:
    found = read_text(f"{GOOD}[[template.source]]\n{rule}\n", "mine.toml")[1]
    assert any(problem in str(p) for p in found), found
    assert any(allowed in p.allowed for p in found) or not allowed


def test_a_source_rule_of_rows_looks_in_all_files() -> None:
    text = GOOD.replace('"task"', '"table"').replace('wait = "asyncio.Event.wait"', 'table = "fds"')
    text = text.replace(', stack = "stuck == true"', "")
    for at, problem in (("files", False), ("leaf", True)):
        rule = f'[[template.source]]\ncheck = "session-per-call"\nat = "{at}"\n'
        found = problems(text + rule)
        assert any("rows of a table have no leaf: say files" in p for p in found) is problem, found


def test_every_check_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs/templates.md").read_text("utf-8")
    assert [name for name in CHECKS if f"| `{name}` |" not in page] == []


def test_the_templates_of_the_tutorial_are_what_it_says() -> None:
    folder = Path(__file__).parents[2] / "fixtures/templates"
    assert len(read_directory(folder / "first-try.toml")[1]) == 6
    for name in ("second-try.toml", "baskets.toml"):
        assert read_directory(folder / name)[1] == []
