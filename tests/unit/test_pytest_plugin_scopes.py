"""pytest --diagtool with fixtures of wider scopes and with other plugins: who owns what, and who is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from diagtool.probes.engine import Engine
from diagtool.probes.left import Left

pytest_plugins = ["pytester"]

QUICK = ("--diagtool-no-engine", "--diagtool-timeout=0.05", "-p", "no:cacheprovider")
LOOP_SCOPE = ("-o", "asyncio_default_fixture_loop_scope=function")

WIDE = """
import threading, pytest

def thread(name, event):
    threading.Thread(target=event.wait, name=name, daemon=True).start()

@pytest.fixture(scope="{scope}")
def server():
    ended = threading.Event()
    thread("{scope} server", ended)
    yield lambda: thread("{scope} worker", ended)
    {end}

def test_first(server):
    server()

def test_second(server):
    server()
"""


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess(*(args or ("--diagtool",)), *QUICK, "-p", "no:asyncio")


def test_what_a_wider_fixture_owns_is_judged_when_it_ends(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_good=WIDE.format(scope="module", end="ended.set()"),
        test_leaky=WIDE.format(scope="module", end="pass"),
        test_other="def test_nothing(): pass",
    )
    result = run(pytester)
    result.assert_outcomes(passed=5, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_second*",
            "diagtool: 1 thread left by test_leaky.py::test_second",
            '  thread "module worker", daemon',
            "diagtool: 2 threads left when the module ended, made in test_leaky.py::test_first",
            '  thread "module server", daemon',
            '  thread "module worker", daemon',
        ]
    )
    result.stdout.no_fnmatch_line("*test_good.py::*left*")


def test_setups_of_classes_and_modules_own_what_they_made(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import socket, unittest
        def setup_module(module):
            module.open = socket.socket()
        def teardown_module(module):
            module.open.close()
        class TestCase(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                cls.sockets = [socket.socket()]
            @classmethod
            def tearDownClass(cls):
                for each in cls.sockets:
                    each.close()
            def setUp(self):
                self.own = socket.socket()  # goes with the instance
            def test_more(self):
                self.sockets.append(socket.socket())
            def test_some(self):
                assert self.sockets
        kept = []
        class TestLeaky(unittest.IsolatedAsyncioTestCase):
            async def test_leak(self):
                kept.append(socket.socket())
            async def test_nothing(self):
                pass
        """
    )
    result = run(pytester)
    result.assert_outcomes(passed=4, errors=1)
    result.stdout.fnmatch_lines(["*left when the module ended, made in *::TestLeaky::test_leak"])


def test_a_file_that_was_deleted_meanwhile_is_still_open(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import os, pytest
        kept = []
        @pytest.fixture(scope="module")
        def pool():
            return kept
        def test_open(pool):
            kept.append(open("log.txt", "w"))
        def test_delete(pool):
            os.unlink("log.txt")
        """
    )
    result = run(pytester)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(
        ["diagtool: 1 file descriptor left when the module ended, made in *::test_open"]
    )


ASYNC = """
import asyncio, anyio, pytest, threading
kept = []
async def forever():
    await asyncio.Event().wait()
async def soon():
    for _ in range(10):
        await asyncio.sleep(0)

@pytest.fixture
async def started():
    task = asyncio.create_task(forever())
    yield
    task.cancel()

@pytest.mark.{mark}
async def test_leaky():
    kept.append(asyncio.create_task(forever(), name="left"))

@pytest.mark.{mark}
async def test_of_a_fixture(started):
    asyncio.create_task(soon())

@pytest.mark.{mark}
async def test_workers():
    await anyio.to_thread.run_sync(int)
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 0)
"""


@pytest.mark.parametrize("mark", ["asyncio", "anyio"])
def test_loops_of_test_runners_are_looked_at_before_they_are_closed(
    pytester: pytest.Pytester, mark: str
) -> None:
    program = ASYNC.format(mark=mark)
    if mark == "asyncio":
        program = program.replace("@pytest.fixture\n", "@__import__('pytest_asyncio').fixture\n")
    pytester.makepyfile(program)
    pytester.makeconftest("import pytest\n@pytest.fixture\ndef anyio_backend(): return 'asyncio'")
    result = pytester.runpytest_subprocess("--diagtool", *QUICK, *LOOP_SCOPE)
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_leaky*",
            "  task left (forever), its loop was closed*",
            "*made at*test_leaky*",
        ]
    )


def test_loops_that_live_on_are_looked_at_after_each_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import asyncio, pytest
        pytestmark = pytest.mark.asyncio(loop_scope="module")
        async def forever():
            await asyncio.Event().wait()
        async def test_leaky():
            asyncio.current_task().get_loop().kept = asyncio.create_task(forever(), name="left")
        async def test_soon():
            asyncio.create_task(asyncio.sleep(0))
        async def test_nothing():
            pass
        """
    )
    result = pytester.runpytest_subprocess("--diagtool", *QUICK, *LOOP_SCOPE)
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_leaky*", "  task left (forever)"])


def test_trio_and_its_idle_threads_are_left_alone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import anyio, pytest
        pytestmark = pytest.mark.anyio
        @pytest.fixture
        def anyio_backend():
            return "trio"
        async def test_threads():
            assert await anyio.to_thread.run_sync(int) == 0
        async def test_tasks():
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep, 0)
        """
    )
    run(pytester).assert_outcomes(passed=2)


def test_tasks_of_uvloop_are_told_with_their_place_and_its_own_pipe_is_not(pytester: pytest.Pytester) -> None:
    pytest.importorskip("uvloop")
    pytester.makepyfile(
        """
        import asyncio, pytest, uvloop
        kept = []
        pytestmark = pytest.mark.anyio
        @pytest.fixture
        def anyio_backend():
            return "asyncio", {"use_uvloop": True}
        async def test_leaky():
            assert "uvloop" in type(asyncio.get_running_loop()).__module__
            kept.append(asyncio.create_task(asyncio.Event().wait(), name="forever"))
        async def test_healthy():
            await asyncio.create_task(asyncio.sleep(0))
        """
    )
    result = run(pytester)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*task forever*", "*made at *test_leaky *"])


def test_workers_of_xdist_hand_over_what_they_found(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import os, pytest\n@pytest.mark.parametrize('i', range(4))\ndef test_it(i):\n    i % 2 and os.pipe()"
    )
    report = pytester.path / "out" / "leaks.json"
    result = run(pytester, "--diagtool=report", "-n2", f"--diagtool-report={report}", "--junit-xml=j.xml")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["*diagtool: left behind*", "diagtool: 4 file descriptors left by 2 tests"])
    said = json.loads(report.read_text())
    assert {f["test"].rpartition("[")[2] for f in said["findings"]} == {"1]", "3]"}
    assert said["summary"]["things"] == 4
    assert (pytester.path / "j.xml").read_text().count('name="diagtool"') == 2


def test_a_test_that_is_run_again_is_told_once(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import os
        runs = []
        def test_leaks_once():
            runs.append(os.pipe() if not runs else None)
        def test_fails_once():
            runs.append(os.pipe())
            assert len(runs) != 3
        """
    )
    report = pytester.path / "leaks.json"
    result = run(pytester, "--diagtool", "--reruns=1", f"--diagtool-report={report}")
    assert result.parseoutcomes()["rerun"] == 2
    said = json.loads(report.read_text())
    assert said["summary"]["failed_tests_not_judged"] == 1
    assert {f["test"].rpartition("::")[2] for f in said["findings"]} == {"test_leaks_once", "test_fails_once"}


def test_the_first_of_many_failures_ends_the_run_and_hides_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        WIDE.format(scope="session", end="pass") + "def test_fails(): assert 0\ndef test_never(): pass"
    )
    result = run(pytester, "--diagtool", "-x")
    result.assert_outcomes(passed=2, failed=1, errors=1)
    result.stdout.fnmatch_lines(["*assert 0", "diagtool: 3 threads left by 2 tests"])


def test_what_templates_say_is_said(tmp_path: Path) -> None:
    import queue
    import threading

    thread = threading.Thread(target=queue.Queue().get, daemon=True)
    thread.start()
    left = Left("threads", thread.native_id, "x", native_id=thread.native_id or 0)
    again = Left("threads", 1, "x", native_id=1)
    engine = Engine(seconds=100)
    engine.explain([left])
    assert (left.template, bool(left.fix)) == ("thread-queue-get-starved", True)
    assert left.runbook == "docs/runbooks/thread-queue-get-starved.md"
    engine.explain([again])  # alike: not asked about again
    assert again.template == left.template


def test_templates_say_nothing_about_what_they_do_not_know() -> None:
    import asyncio

    async def main() -> tuple[str, str]:
        finished = [asyncio.create_task(asyncio.sleep(0)) for _ in range(20)]
        waits = asyncio.create_task(asyncio.sleep(1000))
        await asyncio.wait(finished)
        left = Left("tasks", id(waits), "x", address=id(waits))
        await asyncio.to_thread(Engine(seconds=100).explain, [left])
        waits.cancel()
        return left.template, left.fix

    assert asyncio.run(main()) == ("", "")


def test_an_engine_that_does_not_start_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    left = Left("threads", 1, "x", native_id=1)
    Engine().explain([left])
    assert not left.template
