"""The command line: exit status, what is said on which stream, and never a traceback."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
from click.testing import CliRunner
from made_snapshots import report, starved

import diagtool.leaks
from diagtool import api
from diagtool.capture.errors import BadCore, NotPermitted, NotSupported
from diagtool.capture.memory import AddressSpace
from diagtool.capture.model import Capture, ProcessInfo
from diagtool.cli import cli, main
from diagtool.cli.lazy import LazyGroup
from diagtool.leaks.model import Report
from diagtool.report.json import schema
from diagtool.snapshot.model import Snapshot
from diagtool.snapshot.store import load, save

Say = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def nobody_asked_for_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "COLUMNS", "DIAGTOOL_DEBUG", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    save(starved(), tmp_path / "service.diag")
    return "service.diag"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """In the place of the engine: says what it was asked, and finds what the test wants found."""
    asked: list[Any] = [report()]

    def find(snapshots: Sequence[Snapshot], **options: Any) -> Report:
        asked.append((snapshots, options))
        found: Report = asked[0]
        return found

    monkeypatch.setattr(diagtool.leaks, "find_leaks", find)
    monkeypatch.setattr("diagtool.leaks.template.library", lambda folder=None: ())
    return asked


def says(capsys: Say) -> list[str]:
    """The lines on stderr, which must be few and no traceback."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 2 and not any("Traceback" in line for line in lines)
    return lines


class TestLeaks:
    def test_findings_make_it_fail(self, service: str, engine: list[Any], capsys: Say) -> None:
        assert main(["leaks", service]) == 1
        out = capsys.readouterr()
        assert out.out.startswith("LIKELY  10,000 tasks  waiting in asyncio.Queue.get")
        assert out.err == ""

    @pytest.mark.parametrize(
        ("verdict", "fail_on", "status"),
        [
            ("proven", "proven", 1),
            ("proven", "suspect", 1),
            ("likely", "proven", 0),
            ("likely", "likely", 1),
            ("suspect", "likely", 0),
            ("suspect", "suspect", 1),
            ("proven", "never", 0),
        ],
    )
    def test_fail_on(self, service: str, engine: list[Any], verdict: str, fail_on: str, status: int) -> None:
        engine[0] = report(verdict=verdict)
        assert main(["leaks", service, "--fail-on", fail_on]) == status

    def test_nothing_found_is_success(self, service: str, engine: list[Any], capsys: Say) -> None:
        engine[0] = report(0)
        assert main(["leaks", service]) == 0
        assert capsys.readouterr().out.splitlines()[-1].startswith("0 findings, 2 clusters, 10,052 stacks")

    def test_json_is_the_contract(self, service: str, engine: list[Any], capsys: Say) -> None:
        assert main(["leaks", service, "--format", "json"]) == 1
        jsonschema.validate(json.loads(capsys.readouterr().out), schema("leaks"))

    def test_what_the_engine_is_asked(self, service: str, engine: list[Any]) -> None:
        main(["leaks", service, service, "--min-count", "7"])
        snapshots, options = engine[1]
        assert [len(s.stacks) for s in snapshots] == [303, 303]
        assert options.pop("sources") is not None
        assert options == {"templates": (), "min_count": 7, "labels": ()}

    def test_a_file_gets_the_report_whole_or_not_at_all(
        self, service: str, engine: list[Any], capsys: Say, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = os.umask(0o027)
        try:
            assert main(["leaks", service, "--format", "json", "-o", "r.json"]) == 1
        finally:
            os.umask(old)
        assert capsys.readouterr().out == ""
        assert stat.S_IMODE(os.stat("r.json").st_mode) == 0o640
        before = Path("r.json").read_text()

        def fails(document: object) -> str:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("diagtool.report.json.dumps", fails)
        assert main(["leaks", service, "--format", "json", "-o", "r.json"]) == 3
        assert Path("r.json").read_text() == before
        assert sorted(os.listdir()) == ["r.json", "service.diag"]

    def test_a_report_that_cannot_be_written(self, service: str, engine: list[Any], capsys: Say) -> None:
        assert main(["leaks", service, "-o", "/dev/full"]) == 3
        assert says(capsys)[0] == "diagtool: /dev/full cannot be written: No space left on device"
        assert main(["leaks", service, "-o", "absent/r.txt"]) == 3
        assert says(capsys)[0] == "diagtool: absent/r.txt cannot be written: No such file or directory"

    def test_colour(
        self, service: str, engine: list[Any], capsys: Say, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def coloured(*arguments: str) -> bool:
            main(list(arguments))
            return "\x1b[" in capsys.readouterr().out

        monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True, raising=False)
        assert coloured("leaks", service)
        assert not coloured("leaks", service, "--color", "never")
        assert not coloured("--color", "never", "leaks", service)
        monkeypatch.setenv("NO_COLOR", "1")
        assert not coloured("leaks", service)
        main(["leaks", service, "--color", "always"])
        assert "\x1b[1;33mLIKELY" in capsys.readouterr().out
        monkeypatch.delenv("NO_COLOR")
        monkeypatch.setenv("TERM", "dumb")
        assert not coloured("leaks", service)
        monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: False, raising=False)
        monkeypatch.setenv("TERM", "xterm")
        assert not coloured("leaks", service)

    def test_no_target_is_wrong_usage(self, capsys: Say) -> None:
        assert main(["leaks"]) == 2
        assert says(capsys) == ["diagtool: Missing argument 'TARGET...'.", "Try 'diagtool leaks --help'."]

    def test_snapshots_of_different_processes_are_wrong_usage(self, service: str, capsys: Say) -> None:
        other = starved()
        other.target.pid = 5555
        save(other, "other.diag")
        assert main(["leaks", service, "other.diag"]) == 2
        assert "one process" in " ".join(says(capsys))

    def test_templates_that_cannot_be_used(self, service: str, tmp_path: Path, capsys: Say) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "bad.toml").write_text("[[template]]\nid = 5\n")
        assert main(["leaks", service, "--templates", "mine"]) == 2
        assert says(capsys)[1] == "`diagtool templates check DIR` says all that is wrong."


class TestStacks:
    def test_the_clusters(self, service: str, engine: list[Any], capsys: Say) -> None:
        assert main(["stacks", service]) == 0
        assert "10,000  task  waiting  asyncio.Queue.get  worker.py:41 in leaf" in capsys.readouterr().out

    def test_the_tree(self, service: str, engine: list[Any], capsys: Say) -> None:
        assert main(["stacks", service, "--tree"]) == 0
        out = capsys.readouterr().out
        assert "2 tasks (fetch-0 …)  waiting in asyncio.Queue.get" in out
        assert "  └ task fetch-1  waiting in asyncio.Queue.get" in out

    def test_json(self, service: str, engine: list[Any], capsys: Say) -> None:
        assert main(["stacks", service, "--format", "json", "--all", "--tree"]) == 0
        document = json.loads(capsys.readouterr().out)
        jsonschema.validate(document, schema("stacks"))
        assert len(document["stacks"]) == 303 and document["tree"]


class TestSnapshot:
    @pytest.fixture(autouse=True)
    def live(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        monkeypatch.chdir(tmp_path)
        looked: list[str] = []

        def snapshot(target: str, **_: object) -> Snapshot:
            looked.append(target)
            return starved()

        monkeypatch.setattr("diagtool.cli.target.snapshot", snapshot)
        return looked

    def test_json_says_what_was_written(self, capsys: Say) -> None:
        assert main(["snapshot", "4242", "-o", "a.diag", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        jsonschema.validate(document, schema("snapshot"))
        assert (document["file"], document["pid"], document["tasks"]) == ("a.diag", 4242, 300)
        assert len(load("a.diag").stacks) == 303

    def test_the_default_name_has_pid_and_time_and_replaces_nothing(self, capsys: Say) -> None:
        for _ in range(3):
            assert main(["snapshot", "4242"]) == 0
        stem = "diagtool-4242-20231114T221420Z"
        assert sorted(os.listdir()) == [f"{stem}-2.diag", f"{stem}-3.diag", f"{stem}.diag"]
        assert f"read it with: diagtool leaks {stem}.diag\n" in capsys.readouterr().out

    def test_it_tells_a_person_what_happened(self, capsys: Say) -> None:
        main(["snapshot", "4242", "-o", "a.diag"])
        out = capsys.readouterr().out
        assert "303 stacks: 2 threads, 300 tasks · cpython 3.12.1, pid 4242 · stopped for 3.1 ms\n" in out
        assert "warning: one page could not be read\n" in out

    def test_a_snapshot_of_a_snapshot_is_wrong_usage(self, capsys: Say) -> None:
        save(starved(1), "a.diag")
        assert main(["snapshot", "a.diag"]) == 2
        assert "a.diag is a snapshot already." in says(capsys)[0]

    def test_no_process_is_stopped_for_a_file_that_cannot_be_written(
        self, live: list[str], capsys: Say
    ) -> None:
        assert main(["snapshot", "4242", "-o", "absent/a.diag"]) == 3
        assert says(capsys) == [
            "diagtool: absent/a.diag cannot be written: there is no folder absent",
            "Create it, or use -o.",
        ]
        assert live == []


class TestTargets:
    def test_a_pid_is_digits_unless_a_file_is_so_called(self, service: str, tmp_path: Path) -> None:
        assert api.kind_of("4242") == "live"
        assert api.kind_of(4242) == "live"
        os.rename(service, "4242")
        assert api.kind_of("4242") == "store"

    @pytest.mark.parametrize("command", ["leaks", "stacks", "snapshot"])
    def test_what_is_read_is_never_written(
        self, command: str, tmp_path: Path, capsys: Say, engine: Any
    ) -> None:
        core = tmp_path / "core"
        core.write_bytes(b"\x7fELF, of which there is one only")
        assert main([command, str(core), "-o", str(tmp_path / "." / "core")]) == 2
        assert "is the file to be read" in says(capsys)[0]
        assert core.read_bytes() == b"\x7fELF, of which there is one only"

    def test_files_are_told_by_their_content(self, service: str, tmp_path: Path) -> None:
        os.rename(service, "core.1")
        (tmp_path / "x.diag").write_bytes(b"\x7fELF")
        assert api.kind_of("core.1") == "store"
        assert api.kind_of(tmp_path / "x.diag") == "core"

    @pytest.mark.parametrize(
        "name", ["absent", "", "folder", "pipe", "-1x", "٤٢", "a\nb", "nul\0", "x" * 5000]
    )
    @pytest.mark.parametrize("command", ["leaks", "stacks", "snapshot"])
    def test_what_is_no_target(
        self,
        command: str,
        name: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: Say,
        engine: Any,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        os.mkdir("folder")
        os.mkfifo("pipe")
        assert main([command, "--", name]) == 3
        lines = says(capsys)
        assert lines[0].startswith("diagtool: ") and "  " not in lines[0] and len(lines) == 2
        assert sorted(os.listdir()) == ["folder", "pipe"]

    @pytest.mark.parametrize("pid", ["0", "4194304", "9" * 400])
    def test_no_such_process(self, pid: str, capsys: Say, engine: Any) -> None:
        assert main(["leaks", pid]) == 3
        assert "there is no process" in says(capsys)[0]

    def test_a_text_file_is_no_core(self, tmp_path: Path, capsys: Say, engine: Any) -> None:
        (tmp_path / "text").write_text("hello\n" * 1000)
        assert main(["leaks", str(tmp_path / "text")]) == 3
        assert says(capsys)[0].startswith("diagtool: ")

    @pytest.mark.parametrize("damage", [b"", b"SQLite format 3\0", b"SQLite format 3\0" + b"\0" * 5000])
    def test_a_damaged_snapshot(self, damage: bytes, tmp_path: Path, capsys: Say, engine: Any) -> None:
        (tmp_path / "a.diag").write_bytes(damage)
        assert main(["leaks", str(tmp_path / "a.diag")]) == 3
        assert len(says(capsys)) == 2

    @pytest.mark.parametrize(
        "error", [NotPermitted("no right to read it", "Use sudo."), BadCore("not a core", "Use sudo.")]
    )
    def test_errors_of_the_target_are_two_lines(
        self, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: Say, engine: Any
    ) -> None:
        def fails(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr("diagtool.cli.target.snapshot", fails)
        assert main(["leaks", "4242"]) == 3
        assert says(capsys) == [f"diagtool: {error}", "Use sudo."]


class TestTemplates:
    def test_check_says_what_is_wrong_where(self, tmp_path: Path, capsys: Say) -> None:
        (tmp_path / "bad.toml").write_text('[[template]]\nid = "x"\nfrobs = 1\n')
        assert main(["templates", "check", str(tmp_path)]) == 1
        out = capsys.readouterr().out
        assert "bad.toml:3: x.frobs: no such key\n    allowed: id, extends, " in out
        assert out.splitlines()[-1].startswith("0 templates, ")

    def test_an_unknown_template(self, capsys: Say, engine: Any) -> None:
        assert main(["templates", "show", "nonsense"]) == 2
        assert "there is no template nonsense" in says(capsys)[0]

    def test_ours_are_listed_shown_and_right(self, capsys: Say) -> None:
        assert main(["templates", "check"]) == 0
        assert main(["templates", "list", "--all"]) == 0
        assert "asyncio-queue-get-starved" in capsys.readouterr().out
        assert main(["templates", "show", "asyncio-queue-get-starved"]) == 0
        assert "cause" in capsys.readouterr().out


class TestErrors:
    def test_too_few_files_are_no_bug(self, monkeypatch: pytest.MonkeyPatch, capsys: Say) -> None:
        def broken(*_: object, **__: object) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr("diagtool.cli.target.snapshot", broken)
        assert main(["leaks", "4242"]) == 3
        assert says(capsys) == [
            "diagtool: diagtool may not open as many files as it needs",
            "Raise the limit: ulimit -n 1024.",
        ]

    def test_a_bug_is_one_line_and_a_request(
        self, monkeypatch: pytest.MonkeyPatch, capsys: Say, engine: Any
    ) -> None:
        def broken(*_: object, **__: object) -> None:
            raise KeyError("\x1b[31mx")

        monkeypatch.setattr("diagtool.cli.target.snapshot", broken)
        assert main(["leaks", "4242"]) == 3
        assert says(capsys) == [
            r"diagtool: internal error: KeyError: '\x1b[31mx'",
            "Please report it, with what DIAGTOOL_DEBUG=1 prints for the same command.",
        ]
        monkeypatch.setenv("DIAGTOOL_DEBUG", "1")
        assert main(["leaks", "4242"]) == 3
        assert "Traceback" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "arguments", [["nonsense"], ["leaks", "--nonsense"], ["--color", "pink", "leaks"]]
    )
    def test_wrong_usage(self, arguments: list[str], capsys: Say) -> None:
        assert main(arguments) == 2
        lines = says(capsys)
        assert lines[0].startswith("diagtool: ") and lines[1].startswith("Try 'diagtool")

    def test_no_command_is_wrong_usage_and_help(self, capsys: Say) -> None:
        assert main([]) == 2
        assert capsys.readouterr().out.startswith("Usage: diagtool")


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path]
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None and command.name == name
        found += commands(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]
    return found


@pytest.mark.parametrize("path", commands(cli), ids="-".join)
def test_every_help_is_a_page_for_a_tired_person(path: tuple[str, ...]) -> None:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(cli, [*path, "--help"], prog_name="diagtool")
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80
    if len(path) == 1 and path[0] not in ("templates", "completion"):
        assert "Examples:" in result.output and "Exit status:" in result.output
    if path and path[0] in ("snapshot", "leaks", "stacks", "heap"):
        assert "stopped" in result.output  # what it costs the target


def test_the_group_knows_only_its_own_commands() -> None:
    assert isinstance(cli, LazyGroup)
    assert cli.get_command(click.Context(cli), "lazy") is None


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: Say) -> None:
    assert main(["completion", shell]) == 0
    assert "_DIAGTOOL_COMPLETE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("diagtool leaks core.", ["file,core."]),
        ("diagtool stacks ", ["file,"]),
        ("diagtool snapshot c", ["file,c"]),
        ("diagtool templates show asyncio-task-", ["plain,asyncio-task-dropped"]),
        ("diagtool --color n", ["plain,never"]),
    ],
)
def test_what_is_completed(
    words: str, completed: list[str], capsys: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_DIAGTOOL_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out.split() == completed


def test_what_was_missing_is_said_when_nothing_could_be_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Say, engine: Any
) -> None:
    """A core that is cut off has no interpreter in it: then the cut is the thing to know."""

    def no_python(capture: Capture, **_: object) -> Snapshot:
        raise NotSupported("no CPython interpreter was found in this process", "Name the executable.")

    def opened(*_: object, **__: object) -> Capture:
        process = ProcessInfo(pid=1)
        return Capture(
            "core", process, [], [], [], AddressSpace(), warnings=["the core is cut off after 3 MB."]
        )

    (tmp_path / "core.1").write_bytes(b"\x7fELF")
    monkeypatch.setattr("diagtool.capture.core.open_core", opened)
    monkeypatch.setattr("diagtool.runtimes.decode.decode_cpython", no_python)
    assert main(["leaks", str(tmp_path / "core.1")]) == 3
    assert says(capsys) == [
        "diagtool: no CPython interpreter was found in this process",
        "the core is cut off after 3 MB. Name the executable.",
    ]
