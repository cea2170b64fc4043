"""pytest --diagtool: marks, ini keys and options; what they refuse; reports for machines; heap growth."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from diagtool.probes.descriptors import Descriptors
from diagtool.probes.heapgrowth import Limits, measure
from diagtool.probes.origins import Notes

pytest_plugins = ["pytester"]

QUICK = ("--diagtool-no-engine", "--diagtool-timeout=0.01", "-p", "no:cacheprovider", "-p", "no:asyncio")
LEAKY = "import os, pytest\n{mark}\ndef test_it():\n    os.pipe()\n"


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess(*args, *QUICK)


@pytest.mark.parametrize(
    ("mark", "errors"),
    [
        ("@pytest.mark.diagtool(allow=['fds'])", 0),
        ("@pytest.mark.diagtool(allow='fds')", 0),
        ("@pytest.mark.diagtool(allow=['threads'])", 1),
        ("@pytest.mark.diagtool(ignore='fd *: pipe:*')", 0),
        ("@pytest.mark.diagtool(ignore=['nothing*'])", 1),
        ("@pytest.mark.diagtool(off=True)", 0),
        ("@pytest.mark.leaks(repeat=2, warmup=0)", 1),
    ],
)
def test_marks_say_what_a_test_may_leave(pytester: pytest.Pytester, mark: str, errors: int) -> None:
    pytester.makepyfile(LEAKY.format(mark=mark))
    run(pytester, "--diagtool", "--strict-markers").assert_outcomes(passed=1, errors=errors)


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        (
            "@pytest.mark.diagtool(allow=['thread'])",
            "there is no kind 'thread' to allow; there are threads, *",
        ),
        ("@pytest.mark.diagtool(alow=['threads'])", "mark diagtool does not know 'alow'; it knows allow, *"),
        ("@pytest.mark.diagtool('threads')", "mark diagtool does not know a value without a name*"),
        ("@pytest.mark.diagtool(ignore=3)", "ignore of mark diagtool is a word or a list of words, not 3"),
        ("@pytest.mark.diagtool(off='no')", "off is True or False"),
        ("@pytest.mark.leaks(repeat='ten')", "repeat of mark leaks is a whole number from 2, not 'ten'"),
    ],
)
def test_a_mark_with_an_unknown_word_is_a_usage_error(
    pytester: pytest.Pytester, mark: str, said: str
) -> None:
    pytester.makepyfile(LEAKY.format(mark=mark))
    result = run(pytester, "--diagtool")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *::test_it: {said}"])


@pytest.mark.parametrize(
    ("ini", "said"),
    [
        ("diagtool = yes", "diagtool = yes in the ini file: it takes off, report, fail"),
        ("diagtool = fail\ndiagtool_kinds = threads fd", "diagtool_kinds: there is no kind fd; there are *"),
        ("diagtool = fail\ndiagtool_timeout = soon", "diagtool_timeout = soon in the ini file: *"),
    ],
)
def test_a_setting_that_makes_no_sense_is_a_usage_error(
    pytester: pytest.Pytester, ini: str, said: str
) -> None:
    pytester.makeini(f"[pytest]\n{ini}")
    result = pytester.runpytest_inprocess("-p", "no:asyncio")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {said}"])


def test_an_unknown_mode_is_a_usage_error_and_a_path_is_none(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_one=LEAKY.format(mark=""))
    assert run(pytester, "--diagtool=sometimes").ret == pytest.ExitCode.USAGE_ERROR
    run(pytester, "--diagtool", "test_one.py").assert_outcomes(passed=1, errors=1)


def test_the_ini_file_is_the_default(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(LEAKY.format(mark=""))
    run(pytester).assert_outcomes(passed=1)
    pytester.makeini("[pytest]\ndiagtool = fail")
    run(pytester).assert_outcomes(passed=1, errors=1)
    run(pytester, "--diagtool=off").assert_outcomes(passed=1)
    pytester.makeini("[pytest]\ndiagtool = fail\ndiagtool_kinds = threads tasks")
    run(pytester).assert_outcomes(passed=1)
    pytester.makeini("[pytest]\ndiagtool = fail\ndiagtool_ignore =\n    fd *: pipe*\n    *.py:nobody")
    result = run(pytester)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["diagtool: nothing was left; 2 ignored (2 ignored by 'fd *: pipe*')"])


def test_reports_fail_nothing_and_machines_can_read_them(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    pytester.makepyfile("import socket\nkept = []\ndef test_it():\n    kept.append(socket.socket())\n")
    result = run(pytester, "--diagtool=report", "--diagtool-report=x/leaks.json", "--junit-xml=j.xml")
    assert result.ret == 0
    file = "test_reports_fail_nothing_and_machines_can_read_them.py"
    result.stdout.fnmatch_lines(
        [f"::warning file={file},line=4,title=diagtool%3A 1 file descriptor left::fd *, left by *::test_it"]
    )
    said = json.loads((pytester.path / "x/leaks.json").read_text())
    (found,) = said["findings"]
    assert (found["kind"], found["file"], found["line"], found["scope"]) == ("fds", file, 4, "test")
    assert "test_it" in [frame["function"] for frame in found["created"]]
    assert '<property name="diagtool" value="1 file descriptor left by this test"' in (
        pytester.path / "j.xml"
    ).read_text("utf-8")
    result = run(pytester, "--diagtool=report", "--diagtool-report=/proc/leaks.json")
    result.stdout.fnmatch_lines(["diagtool: /proc/leaks.json could not be written: *"])
    assert result.ret == 0


def test_without_it_nothing_is_imported_or_replaced(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys, threading
        def test_it():
            ours = {name for name in sys.modules if name.startswith("diagtool.probes.")}
            assert ours == {"diagtool.probes.pytest_plugin"}
            assert threading.Thread.start.__module__ == "threading"
        """
    )
    pytester.runpytest_subprocess("-p", "no:asyncio", "-p", "no:cacheprovider").assert_outcomes(passed=1)
    pytester.makepyfile("import sys\ndef test_it():\n    assert 'diagtool' not in sys.modules")
    pytester.runpytest_subprocess("-p", "no:diagtool", "-p", "no:asyncio").assert_outcomes(passed=1)


def test_what_looks_needs_no_numpy() -> None:
    program = (
        "import sys, diagtool.probes.pytest_session, diagtool.probes.pytest_heap, diagtool.probes.engine\n"
        "print({'numpy', 'asyncio', 'ctypes'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout == "set()\n"


def test_everything_is_given_back(pytester: pytest.Pytester) -> None:
    import asyncio
    import threading

    before = (threading.Thread.start, asyncio.BaseEventLoop.create_task, asyncio.runners._cancel_all_tasks)
    pytester.makepyfile("def test_it(): pass")
    run(pytester, "--diagtool").assert_outcomes(passed=1)
    assert before == (
        threading.Thread.start,
        asyncio.BaseEventLoop.create_task,
        asyncio.runners._cancel_all_tasks,
    )


def test_heap_growth_names_type_and_line(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        kept = []
        class Session:
            def __init__(self):
                self.items = [1]
        @pytest.mark.leaks(repeat=8)
        def test_it():
            kept.append(Session())
        @pytest.mark.leaks(repeat=8, max_objects=100)
        def test_allowed():
            kept.append(Session())
        """
    )
    result = run(pytester, "--diagtool")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_it*",
            "  each of 24 runs adds * memory blocks*Session*",
            "*grows at*.py:8",
        ]
    )
    run(pytester, "--diagtool=off").assert_outcomes(passed=2)


def test_growth_in_malloc_alone_is_growth() -> None:
    import ctypes

    malloc = ctypes.CDLL(None).malloc
    malloc.restype = ctypes.c_void_p
    growth = measure(lambda: malloc(400) and None, Limits(repeat=60, warmup=2))
    assert growth is not None
    assert growth.blocks == 0
    assert 300 <= growth.native_bytes <= 500


def test_gpu_handles_are_leaks_from_the_second_use_of_a_device_on(tmp_path: object) -> None:
    """Simulated: a plain file in the place of /dev/nvidia0. The first use opens a device for good."""
    device = str(tmp_path) + "/nvidia0"
    probe = Descriptors(Notes(), gpu=(device,))
    try:
        probe.adopt()
        with open(device, "w"):
            first = [probe.describe(key) for key in probe.new()]
            probe.adopt()
            with open(device):
                second = [probe.describe(key) for key in probe.new()]
    finally:
        probe.close()
    assert [(left.kind, left.ignored) for left in first if left] == [("gpu", "the first use of a device")]
    assert [(left.kind, left.ignored) for left in second if left] == [("gpu", "")]


def test_what_a_team_has_accepted_is_counted_and_no_error(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import os\n\ndef leak():\n    os.pipe()\n\ndef test_it():\n    leak()\n")
    baseline = pytester.path / ".diagtool.toml"
    baseline.write_text(
        'version = 1\n[[ignore]]\nreason = "known"\nname = "fd *pipe*"\n'
        '[[ignore]]\nreason = "was known"\nname = "fd*"\nexpires = 2020-01-01\n'
    )
    result = run(pytester, "--diagtool")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["diagtool: *2 ignored (2 accepted in .diagtool.toml: known)"])
    baseline.write_text(baseline.read_text().replace("pipe", "socket"))
    run(pytester, "--diagtool").assert_outcomes(passed=1, errors=1)
    baseline.write_text("[[ignore]]\nnonsense = 1\n")
    result = run(pytester, "--diagtool")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["diagtool: *.diagtool.toml: *"])
