"""pytest --diagtool: each kind of leak is an error that names its place, each healthy twin is silent."""

from __future__ import annotations

import pytest
from pytest import LineMatcher

pytest_plugins = ["pytester"]

#: No process of the engine, and short pauses: what leaks here leaks for good.
QUICK = ("--diagtool-no-engine", "--diagtool-timeout=0.05", "-p", "no:cacheprovider", "-p", "no:asyncio")

LEAKS = {
    "threads": (
        """
        import threading
        forever = threading.Event()
        def start():
            threading.Thread(target=forever.wait, name="poller", daemon=True).start()
        def test_it():
            start()
        """,
        [
            '  thread "poller", daemon',
            "*made at*start*.py:4",
            "*test_it*.py:6",
            "*waits at*wait*threading.py*",
        ],
    ),
    "threads-of-executor": (
        """
        from concurrent.futures import ThreadPoolExecutor
        kept = []
        def test_it():
            kept.append(ThreadPoolExecutor(2))
            kept[0].submit(int).result()
        """,
        ['  thread "ThreadPoolExecutor-*"*', "*made at*test_it*.py:5"],
    ),
    "raw-threads": (
        """
        import _thread, threading
        forever, ready = threading.Event(), threading.Event()
        def run():
            ready.set()
            forever.wait()
        def test_it():
            _thread.start_new_thread(run, ())
            ready.wait()
        """,
        ["  thread *, started by _thread", "*run*.py:5"],
    ),
    "tasks": (
        """
        import asyncio
        async def forever():
            await asyncio.Event().wait()
        async def handler():
            asyncio.create_task(forever(), name="refresher")
        def test_it():
            asyncio.run(handler())
        """,
        [
            "  task refresher (forever), its loop was closed*",
            "*made at*handler*.py:5",
            "*waits at*Event.wait*",
        ],
    ),
    "asyncgens": (
        """
        import asyncio
        kept = []
        async def numbers():
            yield 1
            yield 2
        async def first():
            kept.append(numbers())
            return await kept[0].__anext__()
        def test_it():
            assert asyncio.run(first()) == 1
        """,
        ["  async generator numbers, neither read to its end nor closed*", "*waits at*numbers*.py:4"],
    ),
    "fds": (
        """
        kept = []
        def test_it(tmp_path):
            kept.append(open(tmp_path / "log.txt", "w"))
        """,
        ["  fd *log.txt, io.FileIO, mode wb", "*made at*test_it*.py:3"],
    ),
    "sockets": (
        """
        import socket
        kept = []
        def test_it():
            kept.append(socket.create_server(("127.0.0.1", 0)))
        """,
        ["  fd *: inet socket 127.0.0.1:* that listens, socket.socket", "*made at*test_it*.py:4"],
    ),
    "pipes": (
        """
        import os
        def test_it():
            os.pipe()
        """,
        ["  fd *: pipe:*, no Python object owns it"],
    ),
    "loops": (
        """
        import asyncio
        kept = []
        def test_it():
            kept.append(asyncio.new_event_loop())
        """,
        ["*_UnixSelectorEventLoop that is not closed*"],
    ),
    "processes": (
        """
        import subprocess, sys, atexit
        kept = []
        def test_it():
            kept.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
            atexit.register(kept[0].communicate)
        """,
        ["  process *input(), runs", "*made at*test_it*.py:4"],
    ),
    "zombies": (
        """
        import os
        def test_it():
            pid = os.fork()
            if not pid:
                os._exit(0)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        """,
        ["  process *, has ended, nobody waited for it"],
    ),
    "temp-files": (
        """
        import tempfile
        def test_it():
            tempfile.mkdtemp()
        """,
        ["  temporary folder */tmp*", "*made at*test_it*.py:3"],
    ),
}

HEALTHY = {
    "threads": """
        import threading
        def test_it():
            ended = threading.Event()
            thread = threading.Thread(target=ended.wait)
            thread.start()
            ended.set()  # not joined: it is given time
        """,
    "threads-of-executor": """
        from concurrent.futures import ThreadPoolExecutor
        def test_it():
            with ThreadPoolExecutor(2) as executor:
                executor.submit(int).result()
        def test_dropped():
            ThreadPoolExecutor(2).submit(int).result()
        """,
    "tasks": """
        import asyncio
        async def soon():
            for _ in range(20):
                await asyncio.sleep(0)
        async def handler():
            asyncio.create_task(soon())
        def test_it():
            asyncio.run(handler())
        async def cancelled():
            asyncio.create_task(asyncio.sleep(1000)).cancel()
        def test_cancelled():
            asyncio.run(cancelled())
        async def fails():
            asyncio.create_task(asyncio.sleep(1000))
            raise KeyError
        def test_what_a_failed_body_left_is_not_told():
            try:
                asyncio.run(fails())
            except KeyError:
                pass
        async def in_executor():
            return await asyncio.get_running_loop().run_in_executor(None, int)
        def test_default_executor():
            assert asyncio.run(in_executor()) == 0
        """,
    "asyncgens": """
        import asyncio
        async def numbers():
            yield 1
            yield 2
        async def first():
            async for number in numbers():
                return number
        def test_it():
            assert asyncio.run(first()) == 1
        """,
    "fds": """
        import gc, os, socket
        class Node: pass
        def test_closed(tmp_path):
            with open(tmp_path / "log.txt", "w"):
                pass
        def test_in_a_cycle(tmp_path):
            node = Node()
            node.me, node.file = node, open(os.devnull)
            node.socket = socket.socket()
        def test_from_a_fixture_that_returns_it(opened):
            assert opened.fileno() > 2
        import pytest
        @pytest.fixture
        def opened(tmp_path):
            return open(tmp_path / "log.txt", "w")
        """,
    "processes": """
        import subprocess, sys, tempfile
        def test_it():
            subprocess.run([sys.executable, "-c", ""], check=True)
        def test_dropped():
            subprocess.Popen([sys.executable, "-c", ""])
        """,
    "temp-files": """
        import tempfile
        def test_it(tmp_path, tmp_path_factory):
            with tempfile.TemporaryDirectory(), tempfile.NamedTemporaryFile():
                tmp_path_factory.mktemp("x")
        """,
    "expected-failures": """
        import socket, pytest
        @pytest.mark.xfail
        def test_it():
            kept = socket.socket()
            assert not kept
        @pytest.mark.skip
        def test_skipped(): pass
        def test_after(): pass
        """,
    "heap": """
        import pytest
        kept, cache = [], {}
        @pytest.mark.leaks(repeat=8, warmup=1)
        def test_it(caplog):
            import logging, warnings
            logging.getLogger().warning("each run logs")
            warnings.warn("and warns")
            kept[:] = [object() for _ in range(1000)]
        runs = []
        @pytest.mark.leaks(repeat=8, warmup=1)
        def test_a_cache_that_fills_is_no_leak():
            runs.append(0) if len(runs) < 12 else None
            cache[len(runs)] = bytearray(100)
        """,
}


def test_each_leak_is_an_error_of_its_test_with_the_place_that_made_it(pytester: pytest.Pytester) -> None:
    # All kinds in one run, in order of their files, and in a process of its own: they live on.
    kinds = sorted(LEAKS)
    pytester.makepyfile(**{f"test_{i:02}": LEAKS[kind][0] for i, kind in enumerate(kinds)})
    result = pytester.runpytest_subprocess("--diagtool", *QUICK)
    result.assert_outcomes(passed=len(kinds), errors=len(kinds))
    text = result.stdout.str()
    for i, kind in enumerate(kinds):
        part = text.partition(f" left by test_{i:02}.py::test_it\n")[2].partition("\n____")[0].splitlines()
        LineMatcher(part).fnmatch_lines(LEAKS[kind][1])


def test_what_is_given_back_is_no_leak(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(**{f"test_{name.replace('-', '_')}": text for name, text in HEALTHY.items()})
    result = pytester.runpytest_subprocess("--diagtool", *QUICK, "--diagtool-timeout=20")
    result.assert_outcomes(passed=17, skipped=1, xfailed=1, warnings=1)
    result.stdout.fnmatch_lines(["diagtool: nothing was left*1 failed test left something, not judged*"])
