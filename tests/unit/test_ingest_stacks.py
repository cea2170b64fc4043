"""Stacks that other tools wrote down are read, with waits in our own words, whatever stands around them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from diagtool.api import find_leaks, kind_of, load_series
from diagtool.capture.errors import BadEvidence, TargetError
from diagtool.ingest import reader_of
from diagtool.ingest.stacks.lines import plain
from diagtool.ingest.stacks.waits import native_wait
from diagtool.snapshot.model import Snapshot, Stack

DATA = Path(__file__).parents[1] / "data" / "evidence"
FILES = sorted(str(p.relative_to(DATA)) for p in DATA.glob("*/*"))

#: What the functions of fixtures/evidence/threads.py wait for. Of the last two not every tool tells it.
WAITS = {
    "consume": {"queue.Queue.get"},
    "wait_for_event": {"threading.Event.wait"},
    "accept": {"socket.accept"},
    "receive": {"socket.recv"},
    "join": {"threading.Thread.join"},
    "result": {"concurrent.futures.Future.result"},
    "sleep": {"time.sleep", "select", None},  # before 3.11 it is a select
    "hold": {"threading.Lock.acquire", "futex", None},
}
READERS = {
    "py-spy.json": "py-spy dump --json",
    "py-spy": "py-spy dump",
    "gdb": "gdb backtrace",
    "asyncio": "asyncio ps",
    "": "dump of Python threads",
}


def own_function(stack: Stack) -> str:
    return next((f.function for f in stack.frames if f.file.endswith("threads.py") and "app" in f.file), "")


def only(path: Path) -> Snapshot:
    (snapshot,) = load_series(path)
    return snapshot


def written(folder: Path, text: str | bytes, name: str = "log") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("file", FILES)
def test_what_tools_wrote_is_recognised_and_read_without_a_line_left(file: str) -> None:
    expected = next(v for k, v in READERS.items() if Path(file).name.startswith(k))
    reader = reader_of(DATA / file)
    assert reader is not None and reader.name == expected
    assert kind_of(DATA / file) == "evidence"
    snapshot = only(DATA / file)
    assert snapshot.target.kind == "evidence"
    assert len(snapshot.stacks) in (9, 11, 12, 15)
    assert not [w for w in snapshot.warnings if "Python frames were not printed" not in w]


@pytest.mark.parametrize("file", [f for f in FILES if "asyncio" not in f and not f.endswith("gdb.txt")])
def test_waits_of_threads_have_the_names_that_a_live_look_gives_them(file: str) -> None:
    seen = {}
    version = file.partition("/")[0]
    for stack in only(DATA / file):
        functions = [f.function.rpartition(".")[2] for f in stack.frames]
        own = next((f for f in functions if f in WAITS and f != "accept"), "accept")
        if functions[0] == "_worker":
            assert stack.wait == "queue.SimpleQueue.get"
        elif functions[-1] != "<module>":
            assert stack.wait in WAITS[own], own
            seen[own] = seen.get(own, 0) + 1
    assert seen.keys() == WAITS.keys()
    assert seen["consume"] == (2 if "fatal" in file or "current" in file else 6 if "grown" in file else 3)
    assert only(DATA / file).target.runtime.startswith(f"cpython {version}")


@pytest.mark.parametrize(
    "file", [f for f in FILES if "pystack" in f or "gdb-py" in f or "current-frames" in f]
)
def test_where_source_lines_are_printed_they_name_waits_in_c(file: str) -> None:
    if file in ("3.14/pystack.txt", "3.15/pystack.txt"):  # no source there
        return
    waits = {s.frames[0].function: s.wait for s in only(DATA / file) if s.frames[-1].function != "<module>"}
    assert waits["sleep"] == "time.sleep"
    assert waits["hold"] == "threading.Lock.acquire"


def test_native_frames_are_kept_apart_from_pythons() -> None:
    (stack,) = [s for s in only(DATA / "3.12/py-spy-native.txt") if s.name == "lock"]
    assert [f.function for f in stack.frames][:2] == ["hold", "Thread.run"]
    assert {f.language for f in stack.frames} == {"python"}
    assert "PyThread_acquire_lock_timed" in [f.function for f in stack.merged]
    assert stack.wait == "threading.Lock.acquire"


def test_without_pythons_frames_a_lock_of_python_is_no_more_than_a_futex() -> None:
    snapshot = only(DATA / "3.13/gdb.txt")
    assert "12 threads run Python" in " ".join(snapshot.warnings)
    assert sorted({s.wait for s in snapshot}) == sorted(
        ["futex", "queue.SimpleQueue.get", "read", "sleep", "socket.accept", "socket.recv"]
    )
    assert all(f.library for s in snapshot for f in s.frames)


def test_of_a_crash_the_signal_and_the_c_stack_are_kept() -> None:
    snapshot = only(DATA / "3.14/faulthandler-fatal.txt")
    assert snapshot.target.signal == 11
    assert snapshot.target.details["fatal"] == "Segmentation fault"
    (main,) = [s for s in snapshot if s.frames[-1].function == "<module>"]
    assert main.merged[0].function == "_Py_DumpStack"
    assert main.merged[-1] == main.frames[-1]
    assert main.name == "python3.14"


@pytest.mark.parametrize("file", ["3.14/asyncio-ps.txt", "3.15/asyncio-ps.txt", "3.14/asyncio-pstree.txt"])
def test_tasks_of_asyncio_ps_have_their_waits_and_who_awaits_them(file: str) -> None:
    snapshot = only(DATA / file)
    by_name = {s.name: s for s in snapshot}
    assert {s.kind for s in snapshot} == {"task"}
    assert [by_name[f"consumer-{i}"].wait for i in range(3)] == ["asyncio.Queue.get"] * 3
    assert [f.function for f in by_name["consumer-0"].frames] == ["Queue.get", "take", "consume"]
    assert by_name["leaf-2"].wait == "asyncio.Event.wait"
    assert by_name["Task-2"].wait == "asyncio.TaskGroup"
    assert by_name["gathered"].wait == "asyncio.gather"
    pairs = {(snapshot.stacks.name[a], snapshot.stacks.name[b]) for a, b in snapshot.awaits.tolist()}
    assert pairs == {
        ("gathered", "Task-2"),
        ("gathered", "Task-3"),
        ("Task-2", "leaf-1"),
        ("Task-2", "leaf-2"),
    }


def test_columns_of_ps_that_are_too_wide_push_the_others() -> None:
    from diagtool.ingest.stacks.tasks import _fields

    name, stack = (
        "a-name-of-more-than-twenty",
        "Queue.get -> take -> " + "consume_with_a_very_long_name -> " * 2 + "run",
    )
    rest = f"{name:<20} {stack:<50} {'':<50} {'':<15} "
    assert _fields(rest)[:2] == [name, stack]


# --- logs ------------------------------------------------------------------------------------------------

PREFIXES = (
    "2024-05-01T10:11:12.123456789Z stderr F ",
    "2024-05-01 10:11:12,123 ",
    "web-1  | ",
    "[pod/web-5d4f/app] ",
    "May  1 10:11:12 host app[123]: ",
    "> ",
    "\t",
    "\x1b[2m2024-05-01T10:11:12Z\x1b[0m ",
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(
    "file", ["3.13/faulthandler.txt", "3.13/current-frames.txt", "3.13/pystack.txt", "3.13/py-spy.txt"]
)
def test_prefixes_of_logs_change_nothing(prefix: str, file: str, tmp_path: Path) -> None:
    text = (DATA / file).read_text()
    path = written(tmp_path, "starting\n" + "".join(prefix + line for line in text.splitlines(True)))
    there, here = only(DATA / file), only(path)
    assert [(s.wait, s.frames, s.address) for s in here] == [(s.wait, s.frames, s.address) for s in there]


def test_a_prefix_is_taken_off_and_what_is_none_stays() -> None:
    assert plain('2024-05-01T10:11:12Z stderr F   File "x"') == '  File "x"'
    assert plain('  File "x", line 1 in > y') == '  File "x", line 1 in > y'
    assert plain("Thread 0x7f (most recent call first):") == "Thread 0x7f (most recent call first):"


def test_several_dumps_in_a_file_are_a_series(tmp_path: Path) -> None:
    text = (DATA / "3.13/faulthandler.txt").read_text() + "GET / 200\n" * 5
    path = written(tmp_path, text + (DATA / "3.13/faulthandler-grown.txt").read_text())
    assert [len(s.stacks) for s in load_series(path)] == [12, 15]
    # New threads are written first: which dump they are of is told by the main thread, which is last.
    path = written(
        tmp_path, text.replace("GET / 200\n", "") + (DATA / "3.13/faulthandler-grown.txt").read_text()
    )
    assert [len(s.stacks) for s in load_series(path)] == [12, 15]
    grown = [f for f in find_leaks(load_series(path)).findings if f.template == "thread-queue-get-starved"]
    assert not grown  # three more of three are too few


@pytest.mark.parametrize(
    "name", ["py-spy.txt", "py-spy.json", "gdb-py.txt", "asyncio-ps.txt", "current-frames.txt"]
)
def test_a_dump_twice_in_a_file_is_a_series_of_two(name: str, tmp_path: Path) -> None:
    text = (sorted(DATA.glob(f"*/{name}"))[-1]).read_text()
    first, second = load_series(written(tmp_path, text + "\n" + text))
    assert [s.frames for s in first] == [s.frames for s in second]


EXCEPTIONS = """
ERROR job failed
Traceback (most recent call last):
  File "/srv/app/jobs.py", line 10, in run
    work(1)
    ~~~~^^^
  File "/srv/app/jobs.py", line 20, in work
    raise ValueError("x")
ValueError: x

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/srv/app/jobs.py", line 12, in run
    raise app.Broken() from None
app.errors.Broken
  + Exception Group Traceback (most recent call last):
  |   File "/srv/app/main.py", line 3, in <module>
  |     raise ExceptionGroup("many", [OSError(1)])
  | ExceptionGroup: many (1 sub-exception)
  +-+---------------- 1 ----------------
    | OSError: 1
    +------------------------------------
"""


def test_exceptions_are_no_stacks_of_threads_and_are_told(tmp_path: Path) -> None:
    dump = (DATA / "3.13/faulthandler.txt").read_text()
    alone = only(written(tmp_path, dump))
    mixed = only(written(tmp_path, EXCEPTIONS + dump + EXCEPTIONS))
    assert [s.frames for s in mixed] == [s.frames for s in alone]
    (told,) = [w for w in mixed.warnings if "tracebacks of" in w]
    assert "tracebacks of 6 exceptions" in told
    assert "ValueError at jobs.py:20 in work (2)" in told
    with pytest.raises(BadEvidence, match=r"holds tracebacks of 3 exceptions .* and no stack of a thread"):
        load_series(written(tmp_path, EXCEPTIONS))


def test_exceptions_as_loguru_prints_them_are_exceptions(tmp_path: Path) -> None:
    text = """2024-05-01 10:11:12.345 | ERROR    | app:main:10 - failed
Traceback (most recent call last):

  File "/srv/app/main.py", line 15, in <module>
    main()
    └ <function main at 0x7f>

> File "/srv/app/main.py", line 10, in main
    f(1)
    └ <function f at 0x7f>

ZeroDivisionError: division by zero
INFO next
"""
    with pytest.raises(BadEvidence, match=r"1 exception \(ZeroDivisionError at main.py:10 in main\)"):
        load_series(written(tmp_path, text))


OWN_DUMPS = {
    "--- Thread worker-1 (ident=140735) ---": ("worker-1", 140735),
    "# ThreadID: 140123456789 Name: worker-1": ("worker-1", 140123456789),
    "Thread 140123456789 (worker-1)": ("worker-1", 140123456789),
    "<Thread(worker-1, started daemon 140123456789)>": ("worker-1", 140123456789),
    'Thread 0x7f0123456789 "worker-1":': ("worker-1", 0x7F0123456789),
    "Thread name='worker-1' tid=4711": ("worker-1", 4711),
    "Thread: worker-1": ("worker-1", 0),
}


@pytest.mark.parametrize("header", OWN_DUMPS)
def test_programs_that_print_their_own_threads_say_which_in_many_ways(header: str, tmp_path: Path) -> None:
    body = '  File "/srv/app/x.py", line 7, in work\n    time.sleep(1)\n'
    stack = next(
        iter(only(written(tmp_path, f"dumping threads\n{header}\n{body}\nThread 17 (other)\n{body}")))
    )
    assert (stack.name, stack.address) == OWN_DUMPS[header]
    assert stack.wait == "time.sleep"


def test_a_task_that_prints_its_stack_is_a_task(tmp_path: Path) -> None:
    text = (
        "Stack for <Task pending name='job-1' coro=<job() running at /srv/app/x.py:3> wait_for=<Future>> "
        '(most recent call last):\n  File "/srv/app/x.py", line 3, in job\n    await items.get()\n'
        '  File "/usr/lib/python3.11/asyncio/queues.py", line 158, in get\n    await getter\n'
    )
    (stack,) = only(written(tmp_path, text))
    assert (stack.kind, stack.name, [f.function for f in stack.frames]) == ("task", "job-1", ["get", "job"])


FAULT = """Timeout (0:00:01)!
Thread 0x00007f0000000010 [\\xe9t\\u20ac] (most recent call first):
  Garbage-collecting
  File "/srv/app/\\u20ac.py", line 1 in f
  File ???, line ??? in ???
  ...

Thread 0x00007f0000000020 (most recent call first):
  <no Python frame>
"""


def test_the_odd_lines_of_faulthandler(tmp_path: Path) -> None:
    snapshot = only(written(tmp_path, FAULT + "\nExtension modules: numpy.core, a.b (total: 2)\n"))
    first, second = snapshot
    assert first.name == "ét€"
    assert [(f.file, f.line, f.function) for f in first.frames] == [
        ("/srv/app/€.py", 1, "f"),
        ("<unknown>", None, "???"),
    ]
    assert second.frames == []
    assert snapshot.target.details["timeout"] is True
    assert snapshot.target.details["extension_modules"] == ["numpy.core", "a.b"]
    assert any("1 stacks are cut" in w for w in snapshot.warnings)


def test_a_dump_that_faulthandler_cut_off_at_a_hundred_threads_ends_there(tmp_path: Path) -> None:
    thread = 'Thread 0x%016x (most recent call first):\n  File "/srv/app/x.py", line 1 in f\n'
    dump = "".join(thread % (0x7F0000000000 + i) + "\n" for i in range(3)) + "...\n"
    first, second = load_series(written(tmp_path, dump + dump.replace("7f", "7e")))
    assert [len(first.stacks), len(second.stacks)] == [3, 3]
    assert any("2 dumps end before all threads" in w for w in second.warnings)


def test_dumps_of_several_processes_are_not_mixed(tmp_path: Path) -> None:
    text = (DATA / "3.13/py-spy.txt").read_text()
    other = "Process 77: python x\nPython v3.13.0 (/usr/bin/py)\n\nThread 77 (active)\n    f (x.py:1)\n"
    snapshot = only(written(tmp_path, text + other))
    assert len(snapshot.stacks) == 12
    assert any("the others are 77" in w for w in snapshot.warnings)


def test_of_json_that_is_cut_off_the_threads_before_are_read(tmp_path: Path) -> None:
    text = (DATA / "3.12/py-spy.json").read_text()
    snapshot = only(written(tmp_path, text[: len(text) // 2]))
    assert [s.name for s in snapshot][:2] == ["waiter", "joiner"]
    assert any("cut off or damaged" in w for w in snapshot.warnings)
    with pytest.raises(BadEvidence, match="is no JSON that makes sense"):
        load_series(written(tmp_path, text[:600]))


# --- hostile ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "faulthandler-fatal.txt",
        "py-spy-native.txt",
        "py-spy.json",
        "gdb.txt",
        "pystack-native.txt",
        "asyncio-ps.txt",
        "asyncio-pstree.txt",
    ],
)
def test_what_is_cut_off_or_damaged_is_read_or_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    data = sorted(DATA.glob(f"*/{name}"))[-1].read_bytes()
    dice = random.Random(4711)
    for _ in range(12):
        damaged = bytearray(data[: dice.randrange(len(data))])
        for _ in range(dice.randrange(6)):
            if damaged:
                at = dice.randrange(len(damaged))
                damaged[at : at + dice.randrange(9)] = dice.randbytes(dice.randrange(40))
        path = written(tmp_path, bytes(damaged))
        try:
            for snapshot in load_series(path):
                assert all(isinstance(s.frames, list) for s in snapshot)
        except TargetError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "Thread 0x1 (most recent call first):\n" + '  File "f", line 1 in g\n' * 30_000,
        "Thread 0x" + "f" * 300 + " (most recent call first):\n" + '  File "f", line ' + "9" * 5000 + " in g",
        'Thread 1 (idle): "' + "x" * 100_000 + '"\n' + "    f (x.py:1)\n" + "(" * 20_000,
        "Thread 1 (LWP 2):\n#0 " + "a(" * 30_000 + "\n",
        "Thread " * 50_000 + '\n  File "f", line 1, in g\n',
        '[{"pid": 1, "thread_id": 1, "thread_name": ' + "[" * 100_000,
        "└── (T) a\n" + "    └──  f /x.py:1\n" * 20_000,
        "tid task id task name coroutine stack awaiter chain awaiter name awaiter id\n1 0x1 "
        + " -> " * 20_000
        + "0x2\n",
    ],
    ids=["deep", "numbers", "names", "parentheses", "header", "brackets", "tree", "table"],
)  # fmt: skip
def test_hostile_dumps_take_neither_long_nor_much(text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    if reader_of(path) is None:
        return
    try:
        (snapshot,) = load_series(path)
    except TargetError:
        return
    assert max((len(s.frames) for s in snapshot), default=0) <= 2000
    assert all(len(f.function) <= 600 and len(f.file) <= 600 for s in snapshot for f in s.frames)


def test_native_functions_name_waits_whatever_their_decoration() -> None:
    assert native_wait(["__futex_abstimed_wait_common64", "__GI___pthread_cond_wait"]) == "pthread_cond_wait"
    assert native_wait(["__lll_lock_wait", "___pthread_mutex_lock"]) == "pthread_mutex_lock"
    assert native_wait(["__GI___clock_nanosleep", "__GI___nanosleep"]) == "sleep"
    assert native_wait(["__libc_read"]) == "read"
    assert native_wait(["do_work"]) == ""
