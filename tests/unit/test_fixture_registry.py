"""The registry of fixture programs says what is there: no program and no mode is forgotten."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from fixture_programs import FIXTURES, PROGRAMS, REQUIREMENTS, Fixture, cases

#: Modules that programs import, not programs.
#: No fixtures: parts of them, and the service of test_memory_leak.py and the docs.
PARTS = {
    "_files.py",
    "_fixture.py",
    "_http.py",
    "_native.py",
    "_postgres.py",
    "_redis.py",
    "zoo_tasks.py",
    "zoo_threads.py",
    "thumbnails.py",
    "baskets.py",
}
TEMPLATES = (
    {f"A{i:02}" for i in range(1, 20)}
    | {f"C{i:02}" for i in range(1, 13)}
    | {"B01", "B02", "B03", "B04", "B05", "B07", "B08", "B09", "B10", "B12", "B14", "B15", "F04"}
    | {"D01", "D03", "D04", "D08", "D09", "D11", "E01"}
    | {"E03", "E04", "E05", "E10"}
    | {"G01", "G03", "G04", "G05", "G06"}
    | {f"H{i:02}" for i in range(1, 6)}
)


def modes_in(program: Path) -> set[str]:
    """Names of the functions with the @mode decorator."""
    return {
        node.name
        for node in ast.parse(program.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and any(isinstance(d, ast.Name) and d.id == "mode" for d in node.decorator_list)
    }


def test_every_program_is_registered() -> None:
    assert {f.program for f in FIXTURES.values()} == {p.name for p in PROGRAMS.glob("*.py")} - PARTS


@pytest.mark.parametrize("fixture", FIXTURES.values(), ids=str)
def test_every_mode_is_registered_once(fixture: Fixture) -> None:
    if fixture.name != "service":  # which has an argument parser of its own
        assert sorted(fixture.modes) == sorted(modes_in(fixture.path))


def test_every_template_of_the_first_release_has_a_leak_and_a_healthy_twin() -> None:
    def with_modes(kind: str) -> set[str]:
        return {(fixture.template or "").partition(",")[0] for fixture, _ in cases(kind)}

    assert with_modes("leak") >= TEMPLATES
    assert with_modes("healthy") >= TEMPLATES


@pytest.mark.parametrize("fixture", FIXTURES.values(), ids=str)
def test_the_docstring_names_the_template_and_says_how_it_is_recognised(fixture: Fixture) -> None:
    text = ast.get_docstring(ast.parse(fixture.path.read_text())) or ""
    if fixture.template and fixture.name not in ("service", "uvloop"):
        assert text.startswith(f"{fixture.template.partition(',')[0]}: ")
        assert "Recognised by" in text
    assert text


def test_every_requirement_is_pinned() -> None:
    pinned = set(re.findall(r"^([a-z0-9-]+)==", REQUIREMENTS.read_text(), re.MULTILINE))
    assert {name for f in FIXTURES.values() for name in f.requirements} <= pinned
