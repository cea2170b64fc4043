"""Every leak template has a runbook that is current and complete."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from diagtool.leaks.template import builtin
from diagtool.leaks.template_toml import GROUP_FACTS, SERIES_FACTS, STACK_FACTS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_runbooks", ROOT / "tools" / "make_runbooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_runbooks_are_current_and_complete(tool: ModuleType) -> None:
    assert list(tool.problems()) == []


def test_what_people_wrote_stays(tool: ModuleType) -> None:
    template = next(t for t in builtin() if not t.idle)
    page = tool.filled(template, "## Symptom\n\nmine\n")
    assert "## Symptom\n\nmine\n" in page
    assert all(f"## {s}\n" in page for s in tool.SECTIONS)
    assert tool.filled(template, page) == page


def test_a_section_without_text_is_told(tool: ModuleType) -> None:
    template = next(t for t in builtin() if not t.idle)
    page = tool.filled(template, "## Symptom\n\nmine\n")
    assert tool.missing(page) == ["Confirm", "Stop the bleeding", "Prevent"]


@pytest.mark.parametrize("fact", [*STACK_FACTS, *GROUP_FACTS, *SERIES_FACTS])
def test_every_fact_is_documented(fact: str) -> None:
    assert f"`{fact}`" in (ROOT / "docs" / "templates.md").read_text("utf-8")


def test_every_table_that_a_template_asks_for_is_documented() -> None:
    text = (ROOT / "docs" / "templates.md").read_text("utf-8")
    tables = {t.match.table for t in builtin() if t.kind == "table"}  # type: ignore[union-attr]
    assert tables
    assert all(f"| `{table}` |" in text for table in tables)
