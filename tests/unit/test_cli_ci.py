"""``diagtool leaks`` in CI: several reports in one run, the baseline, and outputs that can't be written."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from made_snapshots import report, starved

import diagtool.leaks
from diagtool.cli import main
from diagtool.cli.formats import FORMATS
from diagtool.leaks.model import Report
from diagtool.leaks.own import is_own
from diagtool.snapshot.model import Frame, Snapshot
from diagtool.snapshot.store import save

Say = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A folder with a snapshot, and in the place of the engine what finds what the test wants found."""
    for name in ("NO_COLOR", "COLUMNS", "DIAGTOOL_DEBUG", "FORCE_COLOR", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    save(starved(), tmp_path / "s.diag")
    asked: list[Any] = [report(2)]

    def find(snapshots: Sequence[Snapshot], **options: Any) -> Report:
        asked.append(options)
        found: Report = asked[0]
        return found

    monkeypatch.setattr(diagtool.leaks, "find_leaks", find)
    monkeypatch.setattr("diagtool.leaks.template.library", lambda folder=None: (folder,))
    return asked


def says(capsys: Say) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in line for line in lines)
    return lines


def told(capsys: Say, *options: str, status: int = 0) -> dict[str, Any]:
    assert main(["leaks", "s.diag", "--format", "json", *options]) == status
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


class TestOutputs:
    def test_several_reports_are_written_in_one_run(self, engine: list[Any], capsys: Say) -> None:
        files = {name: f"r.{name}" for name in FORMATS if name != "terminal"}
        wanted = [f"--format={name}={file}" for name, file in files.items()]
        assert main(["leaks", "s.diag", *wanted, "--format", "terminal"]) == 1
        assert capsys.readouterr().out.startswith("LIKELY  10,000 tasks")
        assert len(engine) == 2  # judged once
        assert sorted(os.listdir()) == sorted([*files.values(), "s.diag"])
        assert json.loads(Path("r.sarif").read_text())["version"] == "2.1.0"
        assert Path("r.junit").read_text().startswith("<?xml")
        assert main(["leaks", "s.diag", "--format=json=a=b.json", "-o", "t.txt", "--format=terminal"]) == 1
        assert Path("a=b.json").exists() and Path("t.txt").read_text().startswith("LIKELY")

    @pytest.mark.parametrize(
        ("options", "what"),
        [
            (
                ["--format=json", "--format=sarif"],
                "Only one --format may go to the standard output or -o FILE",
            ),
            (["--format=json=x", "-o", "y"], "Every --format names its file already"),
            (["--format=json=x", "--format=sarif=./x"], "Two formats can't be written to one file"),
            (["--format=json=x", "--format=terminal", "-o", "x"], "Two formats can't be written to one file"),
            (["--format=json=s.diag"], "s.diag is the file to be read"),
            (["--format=json="], "'json=' names no file: json=FILE."),
            (["--format=yaml"], "'yaml' is not one of terminal, json, sarif,"),
            (["--reason", "x"], "--reason says why entries are written"),
            (["--write-baseline", "--reason", " "], "--reason says why entries are written"),
            (["--write-baseline", "--no-baseline"], "--no-baseline contradicts"),
            (["--map", "/app"], "--map /app is not FROM=TO"),
            (["--root", "absent"], "Directory 'absent' does not exist"),
            (["--baseline", "absent.toml"], "absent.toml cannot be read: No such file or directory"),
            (["--baseline", "/dev/zero"], "/dev/zero: file: is not a plain file"),
        ],
    )
    def test_what_contradicts_itself(
        self, engine: list[Any], capsys: Say, options: list[str], what: str
    ) -> None:
        assert main(["leaks", "s.diag", *options]) == 2
        lines = says(capsys)
        assert what in lines[0] and len(lines) == 2
        assert len(engine) == 1 and os.listdir() == ["s.diag"]

    @pytest.mark.parametrize("name", [name for name in FORMATS if name != "terminal"])
    def test_a_full_disk_leaves_nothing_half_written(
        self, capsys: Say, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        Path("r").write_text("before")
        monkeypatch.setattr("tempfile.mkstemp", full_disk)
        assert main(["leaks", "s.diag", f"--format={name}=r"]) == 3
        assert says(capsys) == [
            "diagtool: r cannot be written: No space left on device",
            "Name another place for it.",
        ]
        assert Path("r").read_text() == "before"
        assert sorted(os.listdir()) == ["r", "s.diag"]

    def test_a_folder_that_cannot_be_written(self, capsys: Say, monkeypatch: pytest.MonkeyPatch) -> None:
        def mkstemp(**options: Any) -> tuple[int, str]:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr("tempfile.mkstemp", mkstemp)
        assert main(["leaks", "s.diag", "--format=sarif=r.sarif", "--format=json"]) == 3
        out = capsys.readouterr()
        assert out.err.startswith("diagtool: r.sarif cannot be written: Read-only file system")
        assert out.out == "" and os.listdir() == ["s.diag"]

    def test_a_job_summary_is_added_to(self, capsys: Say, monkeypatch: pytest.MonkeyPatch) -> None:
        Path("summary.md").write_text("# before\n")
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
        assert main(["leaks", "s.diag", "--format", "github"]) == 1
        assert capsys.readouterr().out.startswith("::error ")
        once = Path("summary.md").read_text()
        assert once.startswith("# before\n## diagtool: 2 findings\n")
        assert main(["leaks", "s.diag", "--format", "sarif=r"]) == 1
        assert Path("summary.md").read_text() == once

    def test_a_job_summary_that_does_not_fit_stays_as_it_was(
        self, capsys: Say, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path("summary.md").write_text("# before\n")
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
        write, calls = os.write, []

        def few(handle: int, data: Any) -> int:
            calls.append(len(data))
            if len(calls) > 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(handle, data[:10])

        monkeypatch.setattr("diagtool.cli.output.os.write", few)
        assert main(["leaks", "s.diag", "--format", "github"]) == 3
        assert says(capsys)[0] == "diagtool: summary.md cannot be written: No space left on device"
        assert len(calls) == 2 and Path("summary.md").read_text() == "# before\n"


def full_disk(**options: Any) -> tuple[int, str]:
    """What tempfile.mkstemp gives, but every write fails."""
    name = Path(options["dir"], ".diagtool-full.tmp")
    name.write_text("")
    return os.open("/dev/full", os.O_WRONLY), str(name)


class TestBaseline:
    def test_what_is_known_is_ignored_and_does_not_fail(self, capsys: Say) -> None:
        Path(".diagtool.toml").write_text('[[ignore]]\nid = "000000"\nreason = "r"\n')
        document = told(capsys, status=1)
        assert [f["id"] for f in document["findings"]] == ["000001"]
        assert document["summary"]["ignored"] == 1
        Path(".diagtool.toml").write_text('[[ignore]]\ntemplate = "asyncio-*"\nreason = "r"\n')
        assert main(["leaks", "s.diag"]) == 0
        assert (
            capsys.readouterr().out.splitlines()[-1].startswith("0 findings, 2 ignored by .diagtool.toml, ")
        )
        assert main(["leaks", "s.diag", "-v"]) == 0
        out = capsys.readouterr().out
        assert "IGNORED 10,000 tasks  waiting in asyncio.Queue.get  asyncio-queue-get-starved\n" in out
        assert "reason   r (.diagtool.toml: ignore[1] (line 1))\n" in out
        assert main(["leaks", "s.diag", "--no-baseline"]) == 1

    def test_settings_count_where_the_command_line_says_nothing(self, engine: list[Any], capsys: Say) -> None:
        Path("t").mkdir()
        Path("own.toml").write_text('fail-on = "proven"\nmin-count = 7\ntemplates = "t"\n')
        told(capsys, "--baseline", "own.toml")
        assert engine[-1]["min_count"] == 7 and engine[-1]["templates"] == (Path("t"),)
        told(capsys, "--baseline", "own.toml", "--fail-on", "likely", "--min-count", "3", status=1)
        assert engine[-1]["min_count"] == 3
        Path("own.toml").write_text('fail-on = "never"\n')
        told(capsys, "--baseline", "own.toml")

    def test_own_code_is_what_the_file_says_for_the_time_of_the_command(self, capsys: Say) -> None:
        Path(".diagtool.toml").write_text('libraries = ["app/worker.py"]\n')
        worker = Frame("leaf", "/srv/app/worker.py", 41)
        main(["leaks", "s.diag"])
        assert "folded" not in capsys.readouterr().out  # there is nothing but libraries
        assert is_own(worker)

    def test_a_mistake_in_it_is_wrong_usage_and_costs_no_stop(self, engine: list[Any], capsys: Say) -> None:
        Path(".diagtool.toml").write_text('[[ignore]]\nid = "000000"\n')
        assert main(["leaks", "s.diag"]) == 2
        assert says(capsys) == [
            f"diagtool: {Path.cwd()}/.diagtool.toml: ignore[1].reason (line 1): is missing: "
            "say why this is no leak, or who repairs it",
            "docs/baseline.md says which keys there are and what they mean.",
        ]
        Path(".diagtool.toml").write_text("version = 2\n")
        assert main(["leaks", "s.diag"]) == 2
        assert says(capsys)[1] == "Use a newer diagtool, or write the file anew with this one."
        assert len(engine) == 1

    def test_what_is_found_is_written_and_known_from_then_on(self, capsys: Say) -> None:
        Path(".git").mkdir()
        Path("deep").mkdir()
        os.chdir("deep")
        assert main(["leaks", "../s.diag", "--write-baseline", "--reason", "#12"]) == 0
        out = capsys.readouterr()
        assert out.out.splitlines()[-1].startswith("0 findings, 2 ignored by .diagtool.toml, ")
        os.chdir("..")
        assert out.err == f"{Path.cwd()}/.diagtool.toml: 2 entries added, 2 in all\n"
        text = Path(".diagtool.toml").read_text()
        assert text.count('reason = "#12"') == 2
        assert "# likely: 10,000 tasks waiting in asyncio.Queue.get, at worker.py:41 in leaf\n" in text
        assert main(["leaks", "s.diag"]) == 0
        assert main(["leaks", "s.diag", "--write-baseline"]) == 0
        assert Path(".diagtool.toml").read_text() == text
        assert says(capsys) == [f"{Path.cwd()}/.diagtool.toml: 0 entries added, 2 in all"]

    def test_a_new_file_where_it_is_asked_for(self, engine: list[Any]) -> None:
        engine[0] = report(0)
        assert main(["leaks", "s.diag", "--baseline", "b.toml", "--write-baseline"]) == 0
        assert "version = 1\n" in Path("b.toml").read_text()

    def test_ends_of_lines_stay(self) -> None:
        Path(".diagtool.toml").write_bytes(b"# mine\r\nversion = 1\r\n")
        assert main(["leaks", "s.diag", "--write-baseline"]) == 0
        assert Path(".diagtool.toml").read_bytes().startswith(b"# mine\r\nversion = 1\r\n\n[[ignore]]\n")
        assert main(["leaks", "s.diag"]) == 0

    def test_a_link_stays_one_and_rights_stay(self) -> None:
        Path("real.toml").write_text("# mine\n")
        os.chmod("real.toml", 0o640)
        Path(".diagtool.toml").symlink_to("real.toml")
        assert main(["leaks", "s.diag", "--write-baseline"]) == 0
        assert Path(".diagtool.toml").is_symlink()
        assert Path("real.toml").read_text().startswith("# mine\n")
        assert os.stat("real.toml").st_mode & 0o777 == 0o640

    def test_a_full_disk_leaves_the_baseline_as_it_was(
        self, capsys: Say, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path(".diagtool.toml").write_text("# mine\n")
        monkeypatch.setattr("tempfile.mkstemp", full_disk)
        assert main(["leaks", "s.diag", "--write-baseline"]) == 3
        assert says(capsys)[0].endswith("/.diagtool.toml cannot be written: No space left on device")
        assert Path(".diagtool.toml").read_text() == "# mine\n"
        assert sorted(os.listdir()) == [".diagtool.toml", "s.diag"]

    def test_names_that_no_comment_may_hold(self, engine: list[Any]) -> None:
        engine[0] = report(wait='a\n[[ignore]]\nid = "*"\x1b\ud800', template=None)
        assert main(["leaks", "s.diag", "--write-baseline", "--reason", 'a\n"b"\\']) == 0
        text = Path(".diagtool.toml").read_text()
        assert text.count("\n[[ignore]]\n") == 1


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["--format", "sa"], ["plain,sarif"]),
        (["--format", "json=s"], ["plain,json=s.diag", "plain,json=sub/"]),
        (["--format", "json=sub/"], ["plain,json=sub/x"]),
        (["--format", "json=absent/"], []),
        (["--fail-on", "p"], ["plain,proven"]),
    ],
)
def test_what_is_completed(
    words: list[str], completed: list[str], capsys: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("sub").mkdir()
    Path("sub/x").touch()
    monkeypatch.setenv("_DIAGTOOL_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(["diagtool", "leaks", *words]))
    monkeypatch.setenv("COMP_CWORD", str(1 + len(words)))
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out.split() == completed


def test_no_line_for_a_person_is_a_command_to_github(
    engine: list[Any], capsys: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine[0] = report(frames=(Frame("f", "::error::x", 1), Frame("##[error]y", "/srv/b.py", 2)))
    main(["leaks", "s.diag"])
    assert re.search(r"^ +::error", capsys.readouterr().out, re.MULTILINE)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    main(["leaks", "s.diag"])
    out = capsys.readouterr().out
    assert not re.search(r"^\s*::|##\[", out, re.MULTILINE) and ": :error: :x:1" in out


def action(tmp_path: Path, **inputs: str) -> tuple[str, dict[str, str]]:
    """What the step of action.yml prints, and its outputs."""
    program = tmp_path / "diagtool"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m diagtool "$@"\n')
    program.chmod(0o755)
    names = "TARGETS RUN FAIL_ON BASELINE MAP OPTIONS SARIF".split()
    given = {f"DIAGTOOL_{name}": inputs.get(name.lower(), "") for name in names}
    output = tmp_path / "output"
    done = subprocess.run(
        ["bash", str(Path(__file__).parents[2] / "tools/github_action.sh")],
        env={
            **os.environ,
            **given,
            "DIAGTOOL_PROGRAM": str(program),
            "DIAGTOOL_PYTHON": sys.executable,
            "DIAGTOOL_SUDO": "false",
            "RUNNER_TEMP": str(tmp_path),
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        },
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0
    return done.stdout, dict(line.split("=", 1) for line in output.read_text().splitlines())


def test_the_action_annotates_and_hands_on_the_status(tmp_path: Path) -> None:
    snap = starved()
    snap.waits = ["", "nobody.knows"]
    save(snap, tmp_path / "odd.diag")
    said, outputs = action(
        tmp_path,
        targets="odd.diag",
        sarif="d.sarif",
        map="/srv/app=src\n/x=y",
        options="--all --fail-on suspect",
    )
    assert said.startswith("::error file=src/worker.py,line=41,")
    upload = tmp_path / "diagtool-upload.sarif"
    assert outputs == {"status": "1", "sarif": str(tmp_path / "d.sarif"), "upload": str(upload)}
    assert len(json.loads(upload.read_text())["runs"][0]["results"]) == 1
    assert (tmp_path / "summary.md").read_text().startswith("## diagtool: ")


def test_the_action_uploads_nothing_that_is_ignored(tmp_path: Path) -> None:
    snap = starved()
    snap.waits = ["", "nobody.knows"]
    save(snap, tmp_path / "odd.diag")
    (tmp_path / ".diagtool.toml").write_text('[[ignore]]\nframe = "leaf"\nreason = "r"\n')
    _, outputs = action(tmp_path, targets="odd.diag", sarif="d.sarif", fail_on="suspect")
    assert outputs["status"] == "0"
    for file, results in ((outputs["sarif"], 1), (outputs["upload"], 0)):
        assert len(json.loads(Path(file).read_text())["runs"][0]["results"]) == results


def test_the_action_says_what_is_missing(tmp_path: Path) -> None:
    for inputs in ({}, {"targets": "1", "run": "true"}):
        said, outputs = action(tmp_path, **inputs)
        assert said.startswith("::error title=diagtool::give targets") and outputs == {"status": "2"}


def test_where_files_of_a_container_are(capsys: Say) -> None:
    assert main(["leaks", "s.diag", "--format", "github"]) == 1
    out = capsys.readouterr().out
    assert (
        "::error title=likely" in out and "::warning title=diagtool::2 of 2 findings are in files out" in out
    )
    assert main(["leaks", "s.diag", "--format", "github", "--map", "/srv/app=src"]) == 1
    assert capsys.readouterr().out.startswith("::error file=src/worker.py,line=41,")
    assert main(["leaks", "s.diag", "--format", "github", "--root", "/srv"]) == 1
    assert capsys.readouterr().out.startswith("::error file=app/worker.py,line=41,")
    Path(".diagtool.toml").write_text('paths = ["/srv=code"]\n')
    assert main(["leaks", "s.diag", "--format", "github"]) == 1
    assert capsys.readouterr().out.startswith("::error file=code/app/worker.py,line=41,")
