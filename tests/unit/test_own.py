"""Whose code a frame is: told by rules of the team first, then by its path; and own code is ranked first."""

from __future__ import annotations

import pytest

from diagtool.leaks.model import Finding, Report
from diagtool.leaks.own import is_own, use
from diagtool.snapshot.model import Frame, Target

OWN = Frame("work", "/srv/app/worker.py", 3)
VENDORED = Frame("get", "/srv/app/vendor/pool.py", 3)
INSTALLED = Frame("get", "/srv/venv/lib/python3.12/site-packages/ours/pool.py", 3)
NATIVE = Frame("run", "", None, language="native", library="/opt/app/lib/libours.so")
LIBC = Frame("poll", "", None, language="native", library="/lib/x86_64-linux-gnu/libc.so.6")


def test_without_rules_the_path_decides() -> None:
    assert [is_own(f) for f in (OWN, VENDORED, INSTALLED, NATIVE, LIBC)] == [True, True, False, True, False]


def test_rules_say_what_the_path_does_not() -> None:
    with use(own=["*/site-packages/ours/*"], libraries=["/srv/app/vendor/*", "*/libours.so"]):
        assert [is_own(f) for f in (OWN, VENDORED, INSTALLED, NATIVE)] == [True, False, True, False]
    assert is_own(VENDORED)


def test_a_library_wins_over_own_and_the_c_library_is_never_own() -> None:
    with use(own=["*"], libraries=["*/vendor/*"]):
        assert [is_own(f) for f in (OWN, VENDORED, LIBC)] == [True, False, False]


@pytest.mark.parametrize("frames", [(), (Frame("f", "", None),)])
def test_frames_without_a_path_do_no_harm(frames: tuple[Frame, ...]) -> None:
    with use(own=["*"]):
        assert [is_own(f) for f in frames] == [False] * len(frames)


@pytest.mark.parametrize(
    ("file", "module", "own"),
    [
        ("/srv/app/worker.go", "main", True),
        ("example.org/app/worker.go", "example.org/app", True),
        ("/srv/app/net/pool.go", "example.org/net", True),
        ("/usr/local/go/src/net/http/server.go", "net/http", False),
        ("/root/go/pkg/mod/github.com/lib/pq@v1.10.9/conn.go", "github.com/lib/pq", False),
        ("github.com/lib/pq@v1.10.9/conn.go", "github.com/lib/pq", False),
        ("/srv/app/vendor/github.com/lib/pq/conn.go", "github.com/lib/pq", False),
        ("", None, False),
    ],
)
def test_code_of_go_is_own_outside_the_standard_library_and_modules(
    file: str, module: str | None, own: bool
) -> None:
    assert is_own(Frame("f", file, 1, module, "go")) is own


def found(name: str, verdict: str, severity: str, count: int, frame: Frame, size: int = 0) -> Finding:
    return Finding(
        name,
        name,
        verdict,
        severity,
        "task",
        count,
        "",
        "waiting",
        bytes=size,
        frames=(frame,),  # type: ignore[arg-type]
    )


def test_findings_come_by_verdict_severity_own_code_count_and_bytes() -> None:
    findings = [
        found("few", "likely", "high", 2, OWN),
        found("many", "likely", "high", 9, OWN),
        found("large", "likely", "high", 2, OWN, 500),
        found("library", "likely", "high", 99, INSTALLED),
        found("low", "likely", "low", 99, OWN),
        found("suspect", "suspect", "high", 99, OWN),
        found("proven", "proven", "low", 1, INSTALLED),
    ]
    report = Report.of(Target("live"), findings, [], stacks=0)
    names = [f.id for f in report.findings]
    assert names == ["proven", "many", "large", "few", "library", "low", "suspect"]
