"""The step in CI that stops a leak: at its line, live and from a core, until it is known; never its twin."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from diagtool.cli import main
from fixture_programs import FIXTURES, interpreters, launch

PROGRAM = FIXTURES["a01"]
WAITS = next(
    number
    for number, line in enumerate(PROGRAM.path.read_text().splitlines(), 1)
    if "return await queue.get()" in line
)


def judged(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    status = main(["leaks", *words, "--no-heap", "--no-native"])
    return status, capsys.readouterr().out


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the program in app/, in which diagtool is started."""
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    (tmp_path / ".git").mkdir()
    shutil.copytree(PROGRAM.path.parent, tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_leak_is_told_at_its_line_and_then_known(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[Any] = []
    with launch(repository / "app" / PROGRAM.path.name, arguments=["leak", "20"]) as program:
        assert main(["core", str(program.pid), "-o", "core"]) == 0
        capsys.readouterr()
        for target in (str(program.pid), "core"):
            options = ["--format=sarif=r.sarif", "--format=junit=r.xml", "--format=github"]
            status, out = judged(capsys, target, *options)
            assert status == 1
            place = f"file=app/{PROGRAM.path.name},line={WAITS},"
            assert out.startswith(f"::error {place}title=proven%3A asyncio-queue-get-starved::20 tasks")
            (result,) = json.loads(Path("r.sarif").read_text())["runs"][0]["results"]
            assert result["level"] == "error"
            told.append(result["partialFingerprints"])
        assert told[0] == told[1]
    status, out = judged(capsys, "core", "--write-baseline")
    assert status == 0 and "0 findings, 1 ignored by .diagtool.toml," in out


def test_a_healthy_twin_passes_without_an_annotation(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with launch(repository / "app" / PROGRAM.path.name, arguments=["healthy", "20"]) as program:
        status, out = judged(capsys, str(program.pid), "--format", "github")
    assert status == 0 and out.startswith("::notice title=diagtool::0 findings, ")


def test_a_program_with_another_root_is_mapped(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in a container: its files have other names there."""
    rooted = [i for i in interpreters() if i.root is not None]
    if not rooted:
        pytest.skip("no interpreter in a root folder of its own")
    with launch(PROGRAM, "leak", rooted[-1], n=20) as program:
        away = judged(capsys, str(program.pid), "--format", "github")[1]
        assert away.startswith("::error title=proven") and "--map FROM=TO" in away
        words = Path(f"/proc/{program.pid}/cmdline").read_bytes().split(b"\0")
        inside = next(Path(w.decode()) for w in words if w.endswith(PROGRAM.path.name.encode()))
        mapped = judged(capsys, str(program.pid), "--format", "github", f"--map={inside.parent}=app")[1]
    assert mapped.startswith(f"::error file=app/{PROGRAM.path.name},line={WAITS},")
