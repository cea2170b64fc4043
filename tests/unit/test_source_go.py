"""Goroutines are held against the source that runs: found by its path, told from another, never run."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

import diagtool
from diagtool.api import load_series
from diagtool.leaks.model import Finding
from diagtool.leaks.source.files import Sources
from diagtool.leaks.source.golang.module import GoModule, without_comments
from diagtool.snapshot.model import Frame, Target
from go_programs import PROGRAMS

DATA = Path(__file__).parents[1] / "data" / "go"

MAIN = """package main

// A comment with close(jobs).
func (s *Server[T]) run(jobs chan int) {
	go func() {
		defer func() { recover() }()
		jobs <- 1
	}()
	for range jobs {

	}
}

func init() { start() }

var hook = func() { <-done }

func serve(jobs chan int) {
	go work(jobs)
}
"""


@pytest.mark.parametrize(
    ("function", "line", "first_line"),
    [
        ("main.(*Server[...]).run", 9, 4),
        ("main.(*Server[...]).run", 5, 4),  # the go statement
        ("main.(*Server[...]).run.func1", 7, 5),
        ("main.(*Server[...]).run.func1.1", 6, 6),
        ("main.(*Server[...]).run.gowrap1", 5, 4),
        ("example%2ecom/x/main.(*Server[...]).run", 9, 4),
        ("main.other.(*Server[...]).run.func2", 7, 5),  # inlined into main.other
        ("main.other.func3", 7, 5),  # the same before 1.21
        ("main.init.0", 14, 14),
        ("main.glob..func1", 16, 16),
        ("main.serve.func1", 19, 18),  # the wrapper of a go statement before 1.22
        ("main.serve.func1", 18, None),
        ("main.(*Server[...]).stop", 9, None),  # another method
        ("main.(*Server[...]).run.func1", 9, None),  # no literal is there
        ("main.(*Server[...]).run", 10, None),  # an empty line
        ("main.(*Server[...]).run", 3, None),
        ("main.(*Server[...]).run", 99, None),
    ],
)
def test_a_frame_is_in_the_function_that_its_name_says(
    function: str, line: int, first_line: int | None
) -> None:
    found = GoModule("main.go", MAIN.encode()).function_of(function, line)
    assert (None if found is None else found.first_line) == first_line


def test_comments_and_strings_are_no_code() -> None:
    code = without_comments('a := "close(x)" // close(y)\n/* close(z)\n*/ b := `close(\n`; close(c)')
    assert code.count("close") == 1 and code.endswith("; close(c)")
    assert code.count("\n") == 3


@pytest.mark.parametrize(
    "recorded",
    [
        "/build/src/app/queue/work.go",
        "example.com/app/queue/work.go",  # -trimpath
        "example.com/dep@v1.2.3/dep.go",
        "/go/pkg/mod/example.com/dep@v1.2.3/dep.go",
        "/build/src/app/vendor/example.com/dep/dep.go",
    ],
)
def test_files_are_found_however_the_compiler_recorded_them(recorded: str, tmp_path: Path) -> None:
    (tmp_path / "go.mod").write_text('module example.com/app // "x"\n\ngo 1.21\n')
    for place in ("queue/work.go", "vendor/example.com/dep/dep.go", "dep.go"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(f"package x // {place}\n")
    found = Sources(folders=[tmp_path]).file(recorded)
    assert found is not None and found.given
    if "work.go" in recorded:
        assert found.place == str(tmp_path / "queue/work.go")
    else:
        assert b"// vendor/" in found.data


def test_of_two_files_of_one_name_that_of_the_module_is_taken(tmp_path: Path) -> None:
    (tmp_path / "go.mod").write_text("module example.com/app\n")
    (tmp_path / "app").mkdir()
    (tmp_path / "app/main.go").write_text("package wrong\n")
    (tmp_path / "main.go").write_text("package right\n")
    found = Sources(folders=[tmp_path]).file("example.com/app/main.go")
    assert found is not None and found.data == b"package right\n"


def test_a_file_changed_after_the_start_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "main.go"
    path.write_text(MAIN)
    now = time.time()
    os.utime(path, (now, now))
    target = Target(kind="live", start_time=now - 100, host=os.uname().nodename)
    assert Sources(target).doubt(str(path)) == "newer"
    assert Sources(target).line(Frame("main.run", str(path), 9, "main", "go")) == ""
    os.utime(path, (now - 200, now - 200))
    assert Sources(target).doubt(str(path)) is None


# --- findings of real dumps ------------------------------------------------------------------------------


def findings(minor: str, folder: Path) -> tuple[tuple[Finding, ...], str]:
    """Findings of all leaks of fixtures/go/leaks, and the warnings."""
    report = diagtool.find_leaks(load_series(DATA / minor / "debug2-series.txt"), sources=[folder])
    return report.findings, " ".join(report.warnings)


@pytest.mark.parametrize("minor", ["1.19", "1.23", "1.27"])
def test_findings_show_the_lines_that_explain_them(minor: str) -> None:
    found, warnings = findings(minor, PROGRAMS)
    assert "not what runs" not in warnings
    (twice,) = [f for f in found if any(s.check == "go-lock-taken-again" for s in f.source)]
    (line,) = [s for s in twice.source if s.check == "go-lock-taken-again"]
    assert line.text == "a.deposit(1)"
    assert line.file.endswith("locks.go")
    assert twice.verdict == "likely"


def test_another_source_is_not_used_and_that_is_said(tmp_path: Path) -> None:
    text = (PROGRAMS / "leaks/locks.go").read_text()
    (tmp_path / "leaks").mkdir()
    (tmp_path / "leaks/locks.go").write_text(text.replace("package main", "package main\n\n\n\n\n\n"))
    found, warnings = findings("1.27", tmp_path)
    assert "source on disk is not what runs (its lines or names are others)" in warnings
    assert not [s for f in found for s in f.source]
    plain, _ = findings("1.27", tmp_path / "nothing")
    assert {f.id: f.verdict for f in found} == {f.id: f.verdict for f in plain}


def test_what_is_no_go_is_left_out_and_said(tmp_path: Path) -> None:
    (tmp_path / "leaks").mkdir()
    (tmp_path / "leaks/locks.go").write_text("package main\nfunc ( {{{\x00" + "mutex.Lock(" * 100)
    found, warnings = findings("1.27", tmp_path)
    assert "is no Go that is understood" in warnings
    assert not [s for f in found for s in f.source]
