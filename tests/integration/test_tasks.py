"""Tasks and coroutines of a real program, live and from its core, against what the program says of itself.

The program is fixtures/python/zoo.py: a task in every kind of wait and shape, in several loops at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from diagtool.capture.core import open_core
from diagtool.capture.live import capture_live
from diagtool.runtimes.cpython.decode import decode
from diagtool.snapshot.model import Frame, Snapshot, Stack
from fixture_programs import FIXTURES, Interpreter, all_interpreters, interpreters, launch, some

pytestmark = pytest.mark.timeout(300)

#: The zoo names the innermost method; a decoder names the one that the program itself calls.
CALLED = {
    "stream-readline": "asyncio.StreamReader.readline",
    "condition-wait-for": "asyncio.Condition.wait_for",
}


@dataclass
class Zoo:
    """What the zoo says, and what was seen of it."""

    truth: dict[str, Any]
    live: Snapshot
    core: Snapshot

    @property
    def version(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.truth["python"].split(".")[:2])


@pytest.fixture(scope="module", params=all_interpreters(), ids=str)
def zoo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    interpreter: Interpreter = request.param
    with launch(FIXTURES["zoo"], "full", interpreter) as program:
        truth = json.loads(program.wait_line(r"\{"))
        with capture_live(program.pid) as capture:
            live = decode(capture)
        # gdb's gcore gives up where glibc 2.41 and later have guard pages: half of each stack is missing.
        dump = program.kernel_core if interpreter.minor >= 14 else program.gcore
        core = dump(tmp_path_factory.mktemp("core"))
        with open_core(str(core), sysroot=str(interpreter.root) if interpreter.root else None) as capture:
            dead = decode(capture)
        core.unlink()
    yield Zoo(truth, live, dead)


@pytest.fixture(params=["live", "core"], ids=str.upper)
def seen(request: pytest.FixtureRequest, zoo: Zoo) -> Snapshot:
    snapshot: Snapshot = getattr(zoo, request.param)
    return snapshot


def by_address(snapshot: Snapshot, kind: str = "task") -> dict[int, Stack]:
    found = [s for s in snapshot if s.kind == kind]
    addresses = {s.address: s for s in found}
    assert len(addresses) == len(found), f"a {kind} twice"
    return addresses


def pairs(zoo: Zoo, snapshot: Snapshot) -> Iterator[tuple[dict[str, Any], Stack]]:
    """(what the zoo says of a task, what was seen of it), for every task."""
    tasks = by_address(snapshot)
    for truth in zoo.truth["tasks"]:
        yield truth, tasks[int(truth["address"], 16)]


def shown(frames: list[Frame], version: tuple[int, ...]) -> list[tuple[str, str, int | None]]:
    """Frames as the zoo gives them: code objects have qualified names from 3.11 on."""
    return [
        (f.function if version >= (3, 11) else f.function.rpartition(".")[2], f.file, f.line) for f in frames
    ]


def told(frames: list[dict[str, Any]]) -> list[tuple[str, str, int | None]]:
    return [(f["function"], f["file"], f["line"]) for f in frames]


def test_every_task_is_there_once_and_no_other(zoo: Zoo, seen: Snapshot) -> None:
    expected = {int(t["address"], 16) for t in zoo.truth["tasks"]}
    # all_tasks() of 3.14 forgets tasks written in Python that another thread's loop has; the zoo knows them.
    children = {int(awaited, 16) for _, awaited in zoo.truth["awaits"]}
    assert expected <= set(by_address(seen)) <= expected | children


def test_tasks_have_name_loop_and_thread(zoo: Zoo, seen: Snapshot) -> None:
    for truth, task in pairs(zoo, seen):
        assert task.name == truth["name"]
        assert task.loop == int(truth["loop"], 16), truth["name"]
        assert task.thread == truth["thread"], truth["name"]


def test_states(zoo: Zoo, seen: Snapshot) -> None:
    for truth, task in pairs(zoo, seen):
        # Who was cancelled and goes on waiting all the same is still to be told from those that were not.
        expected = "cancelling" if truth["state"] == "waiting" and truth["cancelling"] else truth["state"]
        assert task.state == expected, truth["name"]


def test_chains_with_lines(zoo: Zoo, seen: Snapshot) -> None:
    for truth, task in pairs(zoo, seen):
        if truth["frames"] is not None:
            assert shown(task.frames, zoo.version) == told(truth["frames"]), truth["name"]


def test_a_running_task_has_its_threads_frames(zoo: Zoo, seen: Snapshot) -> None:
    for truth, task in pairs(zoo, seen):
        if truth["state"] == "running":
            functions = [f.function.rpartition(".")[2] for f in task.frames]
            assert functions[-1] == "blocks" and functions[0] == "wait", truth["name"]


def test_waits_are_named_after_the_call(zoo: Zoo, seen: Snapshot) -> None:
    for truth, task in pairs(zoo, seen):
        expected = CALLED.get(truth["name"], truth["wait"])
        if truth["name"] == "wait-for" and zoo.version >= (3, 12):
            expected = "asyncio.Event.wait"  # it is inline from here on
        if expected is not None and truth["state"] != "done":
            assert task.wait == expected, truth["name"]


def test_what_is_waited_on(zoo: Zoo, seen: Snapshot) -> None:
    for truth, task in pairs(zoo, seen):
        on = truth["waiting_on"]
        if on is None:
            continue
        assert task.thing is not None, truth["name"]
        if truth["name"] == "wait-for" and zoo.version < (3, 12):
            # The coroutine is a task of its own here: it is that one which waits for the event.
            inner = by_address(seen)[task.thing.address]
            assert inner.thing is not None and inner.wait == "asyncio.Event.wait"
            task = inner
        assert task.thing is not None
        assert (hex(task.thing.address), task.thing.type) == (on["address"], on["type"]), truth["name"]


def test_who_awaits_whom(zoo: Zoo, seen: Snapshot) -> None:
    addresses = seen.stacks.address.tolist()
    found = {(hex(addresses[a]), hex(addresses[b])) for a, b in seen.awaits.tolist()}
    expected = {tuple(pair) for pair in zoo.truth["awaits"]}
    if zoo.version < (3, 12):
        outer, task = next((t, s) for t, s in pairs(zoo, seen) if t["name"] == "wait-for")
        assert task.thing is not None
        expected.add((outer["address"], hex(task.thing.address)))
    assert found == expected


def test_where_tasks_were_created(zoo: Zoo, seen: Snapshot) -> None:
    recorded = 0
    for truth, task in pairs(zoo, seen):
        assert [(f.function, f.file, f.line) for f in task.created_by] == told(truth["created_by"])
        recorded += bool(truth["created_by"])
    assert recorded


def test_labels(zoo: Zoo, seen: Snapshot) -> None:
    for truth, task in pairs(zoo, seen):
        labels = {name: value for row, name, value in seen.labels if row == task.index}
        assert labels == truth["labels"], truth["name"]


def test_which_executor_thread_works_for_a_task(zoo: Zoo, seen: Snapshot) -> None:
    workers = 0
    for truth, task in pairs(zoo, seen):
        if truth["worker"] is not None:
            assert task.thing is not None
            assert task.thing.state["executor_thread"] == truth["worker"], truth["name"]
            assert f"(tid {truth['worker']})" in task.thing.detail
            workers += 1
    assert workers == 2
    (executor,) = [row for row in seen.tables["executors"] if row["busy"] == 2]
    assert executor["queued"] == 0 and executor["prefix"] == "asyncio"


@pytest.mark.parametrize(("kind", "key"), [("coroutine", "coroutines"), ("asyncgen", "asyncgens")])
def test_coroutines_and_async_generators_without_a_task(
    zoo: Zoo, seen: Snapshot, kind: str, key: str
) -> None:
    found = by_address(seen, kind)
    assert {hex(a) for a in found} == {t["address"] for t in zoo.truth[key]}
    for truth in zoo.truth[key]:
        stack = found[int(truth["address"], 16)]
        assert stack.name.rpartition(".")[2] == truth["name"]
        assert shown(stack.frames, zoo.version) == told(truth["frames"])
        assert stack.state in ("created", "suspended")


def test_loops(zoo: Zoo, seen: Snapshot) -> None:
    rows = {row["address"]: row for row in seen.tables["loops"]}
    assert set(rows) == {int(loop["address"], 16) for loop in zoo.truth["loops"]}
    for loop in zoo.truth["loops"]:
        row = rows[int(loop["address"], 16)]
        assert (row["type"], row["thread"], row["running"]) == (loop["type"], loop["thread"], loop["running"])
        assert row["debug"] == (loop["name"] == "debug") and row["closed"] is False
        if loop["name"] == "blocked":
            assert row["ready"] > 0


def test_timers_say_how_much_is_left(zoo: Zoo, seen: Snapshot) -> None:
    for truth, task in pairs(zoo, seen):
        if truth["wait"] == "asyncio.sleep":
            assert task.thing is not None
            assert 3000 < task.thing.state["time_left"] <= 3600, truth["name"]
    tasks = {s.index: s for s in by_address(seen).values()}
    limits = {row["stack"]: row["left"] for row in seen.tables["timeouts"] if row["stack"] in tasks}
    for truth, task in pairs(zoo, seen):
        timed = truth["wait"] == "asyncio.sleep" or truth["name"] in ("wait-for", "timeout")
        if timed:
            assert 3000 < limits.pop(task.index) <= 3600, truth["name"]
    assert all(tasks[row].wait == "asyncio.sleep" for row in limits)


@pytest.mark.parametrize("interpreter", some(interpreters(), 9, 11, 12, 14), ids=str)
def test_a_task_500_coroutines_deep(interpreter: Interpreter) -> None:
    with launch(FIXTURES["zoo"], "deep", interpreter) as program:
        truth = json.loads(program.wait_line(r"\{", within=60))
        with capture_live(program.pid) as capture:
            snapshot = decode(capture)
    (told_of,) = [t for t in truth["tasks"] if t["name"] == "deep-task"]
    task = by_address(snapshot)[int(told_of["address"], 16)]
    assert len(task.frames) > 500
    assert shown(task.frames, (3, interpreter.minor)) == told(told_of["frames"])


IN_SUBINTERPRETER = """
import os, threading
try:
    import _interpreters as api
except ImportError:
    import _xxsubinterpreters as api
r, w = os.pipe()
code = '''
import asyncio, os
async def main():
    queue = asyncio.Queue()
    keep = [asyncio.create_task(queue.get(), name="inside") for _ in range(3)]
    while not all(t._fut_waiter for t in keep):
        await asyncio.sleep(0)
    os.write(%d, b"x")
    await asyncio.sleep(3600)
asyncio.run(main())
''' % w
inside = threading.Thread(target=api.run_string, args=(api.create(), code), daemon=True)
inside.start()
os.read(r, 1)
print("READY", os.getpid(), flush=True)
print("TID", inside.native_id, flush=True)
inside.join()
"""


@pytest.mark.parametrize("interpreter", [i for i in interpreters() if i.minor >= 10], ids=str)
def test_tasks_of_a_subinterpreter(interpreter: Interpreter, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(IN_SUBINTERPRETER)
    with launch(tmp_path / "program.py", interpreter=interpreter) as program:
        tid = int(program.wait_line("TID ").split()[1])
        with capture_live(program.pid) as capture:
            snapshot = decode(capture)
    inside = [s for s in snapshot if s.name == "inside"]
    assert [(s.state, s.wait, s.thread) for s in inside] == [("waiting", "asyncio.Queue.get", tid)] * 3
    threads = [s for s in snapshot if s.kind == "thread" and s.frames]
    (loop,) = [
        s for s in threads if s.frames[-1].file.startswith("<") and s.frames[-1].function == "<module>"
    ]
    assert (loop.thread, loop.wait) == (tid, "epoll"), "the thread that made the interpreter is another one"


def test_nothing_was_unreadable(zoo: Zoo) -> None:
    assert zoo.live.warnings == []
