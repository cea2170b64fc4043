"""The views of ``diagtool heap`` exclude each other, in one sentence that is the same for all."""

from __future__ import annotations

from itertools import combinations

import click
import pytest

from diagtool.cli import heap, main
from diagtool.cli.heapviews import VIEWS

#: How each is asked for.
GIVEN = {
    "why": ["--why", "app.Image"],
    "show": ["--show", "caches"],
    "values": ["--values"],
    "sites": ["--sites"],
    "retained": ["--retained"],
    "garbage": ["--garbage"],
    "native": ["--native"],
    "go": ["--go"],
}


def test_every_view_has_an_option_and_a_test() -> None:
    options = {p.name for p in heap.command.params if isinstance(p, click.Option)}
    assert set(VIEWS) - {"types"} == set(GIVEN)
    assert set(GIVEN) <= options


@pytest.mark.parametrize(("one", "other"), list(combinations(GIVEN, 2)), ids="-".join)
def test_two_views_are_refused_before_the_target_is_looked_at(
    one: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["heap", "no such file", *GIVEN[one], *GIVEN[other]]) == 2
    said = capsys.readouterr().err.splitlines()[0]
    assert said.startswith("diagtool: ")
    assert said.endswith(" are views of their own: choose one of them.")
    assert f"--{one}" in said
    assert f"--{other}" in said


def test_three_are_named_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heap", "no such file", "--garbage", "--native", "--sites"]) == 2
    said = capsys.readouterr().err
    assert all(option in said for option in ("--garbage", "--native", "--sites"))


@pytest.mark.parametrize("name", [name for name, view in VIEWS.items() if view.typed is False])
def test_what_has_no_type_takes_none(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heap", "no such file", *GIVEN[name], "--type", "app.Image"]) == 2
    assert f"--{name}" in capsys.readouterr().err


def test_values_are_shown_of_a_type_that_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heap", "no such file", "--values"]) == 2
    assert "--values needs --type TYPE" in capsys.readouterr().err
