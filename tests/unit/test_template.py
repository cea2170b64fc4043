"""Templates as TOML: ours are sound; a mistake in a user's is told with file, key and the nearest name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from diagtool.leaks.template import (
    LIBRARY,
    TablePattern,
    TemplateError,
    builtin,
    library,
    read_directory,
)
from diagtool.leaks.template_toml import read_text

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
