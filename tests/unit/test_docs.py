"""The documentation says what the program says. `tools/make_docs.py` writes those parts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from diagtool.cli import cli

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize(
    ("path", "command"), list(commands(cli)), ids=lambda x: "-".join(x) if isinstance(x, tuple) else ""
)
def test_every_command_has_its_page_with_every_option(path: tuple[str, ...], command: click.Command) -> None:
    page = (DOCS / "commands" / f"{path[0]}.md").read_text("utf-8")
    assert f"$ diagtool {' '.join(path)} --help\n" in page, "run tools/make_docs.py"
    for parameter in command.params:
        for option in parameter.opts:
            if option.startswith("-"):
                assert option in page, "run tools/make_docs.py"
    said = " ".join((command.help or "").replace("\b", "").split())
    assert said in " ".join(page.split()), "run tools/make_docs.py"
    assert f"]({path[0]}.md)" in (DOCS / "commands" / "README.md").read_text("utf-8")


def test_the_documented_schema_is_the_one_that_is_written() -> None:
    page = (DOCS / "snapshot-format.md").read_text("utf-8")
    schema = (ROOT / "src/diagtool/snapshot/schema.sql").read_text("utf-8")
    assert schema.strip() in page, "run tools/make_docs.py"


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda p: p.name)
def test_no_block_is_empty_and_no_link_is_dead(page: Path) -> None:
    text = page.read_text("utf-8")
    assert not re.search(r"<!-- make_docs: .* -->\n<!-- /make_docs -->", text), (
        "run tools/make_docs.py --samples"
    )
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link
