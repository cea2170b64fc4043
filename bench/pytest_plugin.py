"""What ``pytest --diagtool`` costs: the same tests with it, without it, and with pyleak's marks.

1,000 tests of our own, which take some ten milliseconds each as tests do, and two suites that were made for
this: 1,000 tests of two milliseconds that start tasks and threads, and 1,000 that do nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from common import BIN, ROOT, Row, Table

#: Four kinds of tests as suites have them: calculation, a file, asyncio with a few tasks, a thread.
SUITE = """
import asyncio, json, threading
import pytest

pytestmark = {mark}

@pytest.mark.parametrize("i", range(400))
def test_calculation(i):
    words = sorted(str(k * 7919 % 5003) for k in range(2000))
    assert words[0] == "0" and len(set(words)) == 2000

@pytest.mark.parametrize("i", range(250))
def test_file(tmp_path, i):
    data = {{str(k): [k] * 20 for k in range(200)}}
    file = tmp_path / "x.json"
    file.write_text(json.dumps(data))
    assert json.loads(file.read_text()) == data

async def add(queue, n):
    await queue.put(n)
    await asyncio.sleep(0)
    return n

@pytest.mark.parametrize("i", range(250))
@pytest.mark.asyncio
async def test_tasks(i):
    queue = asyncio.Queue()
    done = await asyncio.gather(*(add(queue, n) for n in range(10)))
    assert sum(done) == 45 and json.loads(json.dumps(list(range(3000))))[7] == 7

@pytest.mark.parametrize("i", range(100))
def test_thread(i):
    out = []
    thread = threading.Thread(target=lambda: out.extend(range(20000)))
    thread.start()
    thread.join()
    assert len(out) == 20000
"""

NOTHING = """
import pytest
@pytest.mark.parametrize("i", range(1000))
def test_nothing(i):
    assert i + 1 > i
"""


#: About 1,000 tests: what reads templates, judges, stores, exports, reports.
OWN = (
    "test_template.py",
    "test_match.py",
    "test_match_idle.py",
    "test_match_fds.py",
    "test_match_clients.py",
    "test_store.py",
    "test_report_ci.py",
    "test_source.py",
    "test_export.py",
    "test_sql.py",
    "test_cli_ci.py",
    "test_native_reach.py",
)


def _cpu(suites: Sequence[Path], *args: str, path: str = "") -> tuple[float, int]:
    """(CPU seconds, exit status) of one run of pytest. Of wall time a busy machine says little."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [
        str(BIN / "python"),
        "-m",
        "pytest",
        "-q",
        "-c",
        "/dev/null",
        "--rootdir",
        str(ROOT if ROOT in suites[0].parents else suites[0].parent),
    ]
    command += [
        "-p",
        "no:cacheprovider",
        "-o",
        "asyncio_default_fixture_loop_scope=function",
        *args,
        *map(str, suites),
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**environment, "PYTHONPATH": path} if path else environment,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime, process.returncode


def _pyleak() -> str:
    """A folder with pyleak, apart from the environment, whose tests all would load its plugin; "" without."""
    folder = ROOT / ".cache/venvs/pyleak"
    if not (folder / "pyleak").is_dir():
        line = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--target",
            str(folder),
            "pyleak>=0.2",
            "exceptiongroup",
            "sniffio",
        ]
        subprocess.run(line, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return str(folder) if (folder / "pyleak").is_dir() else ""


def pytest_plugin(rounds: int) -> Iterator[Table]:
    """CPU time of 1,000 tests that do a little each, and of 1,000 that do nothing."""
    pyleak = _pyleak()
    if not pyleak:
        print("(pyleak could not be had: it is left out)")
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "test_plain.py")
        plain.write_text(SUITE.format(mark="[]"))
        marked = Path(folder, "test_marked.py")
        marked.write_text(SUITE.format(mark='pytest.mark.no_leaks("tasks", "threads")'))
        nothing = Path(folder, "test_nothing.py")
        nothing.write_text(NOTHING)
        off, on = ("-p", "no:diagtool"), ("--diagtool",)
        own = [ROOT / "tests" / "unit" / name for name in OWN]
        path = str(ROOT / "tests")
        runs: list[Run] = [
            ("pytest without it", own, off, path),
            ("pytest --diagtool", own, ("--diagtool=report",), path),
        ]
        yield _table("1,000 of diagtool's own tests", runs, max(2, rounds // 2))
        runs = [
            ("pytest without it", [plain], off, ""),
            ("installed, not asked for", [plain], (), ""),
            ("pytest --diagtool", [plain], on, ""),
        ]
        yield _table("1,000 tests of 2 ms: calculation, files, tasks, threads", runs, rounds)
        if pyleak:  # it waits after each test: once is enough
            runs = [("pytest without it", [plain], off, ""), ("pyleak", [marked], off, pyleak)]
            yield _table("the same with pyleak, tasks and threads", runs, 1)
        runs = [("pytest without it", [nothing], off, ""), ("pytest --diagtool", [nothing], on, "")]
        yield _table("1,000 tests that do nothing", runs, rounds)


#: Name, suites, arguments, PYTHONPATH.
Run = tuple[str, list[Path], tuple[str, ...], str]


def _table(title: str, runs: list[Run], rounds: int) -> Table:
    """All in turn, round by round; the least of each counts: what is added to it is the machine's."""
    seconds: dict[str, list[float]] = {name: [] for name, *_ in runs}
    notes: dict[str, str] = {}
    for number in range(rounds + 1):
        for name, suites, args, path in runs:
            used, status = _cpu(suites, *args, path=path)
            if number:  # the first round writes bytecode
                seconds[name].append(used)
            if status:
                notes[name] = f"failed (status {status})"
    table = Table(f"{title} (CPU seconds, least of {rounds} runs)", ["CPU", "more than without, %"])
    base = min(seconds[runs[0][0]])
    for name, *_ in runs:
        least = min(seconds[name])
        figures: dict[str, float | None] = {"CPU": least, "more than without, %": 100 * (least / base - 1)}
        table.rows.append(Row(name, figures, notes.get(name, "")))
    return table
