"""What docs/api.md shows is what happens: every example, in order, on a real process."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

import diagtool
from fixture_programs import ROOT, launch

PAGE = ROOT / "docs" / "api.md"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def test_every_example_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    examples = doctest.DocTestParser().get_examples("\n".join(blocks))
    assert len(examples) > 30
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    with launch(ROOT / "fixtures/python/service.py", arguments=["leak", "200"]) as program:
        test = doctest.DocTest(examples, {"pid": program.pid}, "api.md", str(PAGE), 0, None)
        failed, _ = doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=said.append)
    assert not failed, "".join(said)


def test_every_public_name_is_there_and_on_the_page() -> None:
    page = PAGE.read_text("utf-8")
    for name in diagtool.__all__:
        assert getattr(diagtool, name) is not None
        assert re.search(rf"\b{name}\b", page), name
        assert name in dir(diagtool)
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        _ = diagtool.absent
