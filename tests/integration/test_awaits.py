"""Who awaits whom, holds what and works for whom, in a program that says so by the names of its tasks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diagtool.capture.live import capture_live
from diagtool.runtimes.cpython.decode import decode
from diagtool.snapshot.model import Snapshot, Stack
from fixture_programs import Interpreter, interpreters, launch

PROGRAM = """
import asyncio, os, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
keep = []
def task(coro, name):
    keep.append(asyncio.get_running_loop().create_task(coro))
    keep[-1].set_name(name)
    return keep[-1]
async def holds(lock, event):
    async with lock:
        await event.wait()
async def wants(lock):
    async with lock:
        pass
async def waits_in(condition):
    async with condition:
        await condition.wait()
async def as_completed(tasks):
    for future in asyncio.as_completed(tasks):
        await future
async def wait_first(tasks):
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
async def shields(task):
    await asyncio.shield(task)
async def nested(a, b, c):
    await asyncio.gather(a, asyncio.gather(asyncio.shield(b), asyncio.gather(c)))
async def directly(task):
    return await task
async def group(event):
    async with asyncio.TaskGroup() as g:
        for i in range(2):
            keep.append(g.create_task(event.wait(), name="member-%d" % i))
async def limited(task):
    await asyncio.wait_for(asyncio.shield(task), 3600)
async def remote(name):
    asyncio.current_task().set_name(name)
    await asyncio.Event().wait()
async def wrapped(future):
    await asyncio.wrap_future(future)
async def in_pool(pool, work):
    await asyncio.get_running_loop().run_in_executor(pool, work)
async def main():
    loop, event, gate = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    lock, semaphore, condition = asyncio.Lock(), asyncio.Semaphore(2), asyncio.Condition()
    for coro, name in (
        (holds(lock, event), "holder"), (wants(lock), "wants-lock"),
        (holds(semaphore, event), "permit-0"), (holds(semaphore, event), "permit-1"),
        (wants(semaphore), "wants-permit"),
        (waits_in(condition), "in-condition"), (holds(condition, event), "condition-holder"),
        (waits_in(condition), "wants-condition"),
    ):
        task(coro, name)
        await asyncio.sleep(0)
    a, b, c = (task(event.wait(), n) for n in "abc")
    task(as_completed([a, b]), "as-completed")
    task(wait_first([b, c]), "wait-first")
    task(shields(a), "shields")
    task(nested(a, b, c), "nested")
    task(directly(a), "directly")
    task(limited(c), "limited")
    cycle = []
    async def one():
        await cycle[1]
    async def two():
        await cycle[0]
    cycle += [task(one(), "one"), task(two(), "two")]
    if sys.version_info >= (3, 11):
        task(group(event), "group")
    other = asyncio.new_event_loop()
    threading.Thread(target=other.run_forever, daemon=True, name="other loop").start()
    task(wrapped(asyncio.run_coroutine_threadsafe(remote("remote-0"), other)), "wraps")
    future = asyncio.run_coroutine_threadsafe(remote("remote-1"), other)
    threading.Thread(target=future.result, daemon=True, name="waits-for-future").start()
    pool = ThreadPoolExecutor(1, thread_name_prefix="small")
    for i in range(4):
        task(in_pool(pool, gate.wait), "job-%d" % i)
        while pool._work_queue.qsize() < i:
            await asyncio.sleep(0.001)
    done = task(asyncio.sleep(0), "done")
    def parked():
        others = (asyncio.all_tasks(loop) | asyncio.all_tasks(other)) - {asyncio.current_task()}
        return len(asyncio.all_tasks(other)) == 2 and all(t._fut_waiter is not None for t in others)
    while not (done.done() and parked() and future._condition._waiters):
        await asyncio.sleep(0.001)
    print("READY", os.getpid(), flush=True)
    await asyncio.sleep(3600)
asyncio.run(main())
"""

AWAITS = {
    "as-completed": {"a", "b"},
    "wait-first": {"b", "c"},
    "shields": {"a"},
    "nested": {"a", "b", "c"},
    "directly": {"a"},
    "limited": {"c"},
    "one": {"two"},
    "two": {"one"},
    "wraps": {"remote-0"},
    "waits-for-future": {"remote-1"},
}


ATTEMPTS = 100


@pytest.fixture(scope="module", params=interpreters(), ids=str)
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshot]:
    interpreter: Interpreter = request.param
    program = Path(tmp_path_factory.mktemp("awaits")) / "awaits.py"
    program.write_text(PROGRAM)
    with launch(program, interpreter=interpreter) as running:
        for _ in range(ATTEMPTS):  # the thread may be on its way into its lock still
            with capture_live(running.pid) as capture:
                snapshot = decode(capture)
            if named(snapshot, "waits-for-future").wait:
                break
    yield snapshot


def named(seen: Snapshot, name: str) -> Stack:
    (stack,) = [s for s in seen if s.name == name]
    return stack


def state(seen: Snapshot, name: str) -> dict[str, Any]:
    thing = named(seen, name).thing
    assert thing is not None
    return thing.state


def test_who_awaits_whom(seen: Snapshot) -> None:
    names = seen.stacks.name
    found: dict[str, set[str]] = {}
    for awaiting, awaited in seen.awaits.tolist():
        found.setdefault(names[awaiting], set()).add(names[awaited])
    expected = dict(AWAITS)
    if "group" in names:
        expected["group"] = {"member-0", "member-1"}
    assert found == expected


def test_each_pair_is_there_once(seen: Snapshot) -> None:
    rows = [tuple(row) for row in seen.awaits.tolist()]
    assert len(set(rows)) == len(rows)


def test_locks_say_who_holds_them(seen: Snapshot) -> None:
    lock = state(seen, "wants-lock")
    assert (lock["owner_name"], lock["owner_alive"], lock["locked"]) == ("holder", True, True)
    assert lock["owner"] == named(seen, "holder").address


def test_a_condition_is_held_by_who_is_in_its_block_not_by_who_waits_in_it(seen: Snapshot) -> None:
    assert named(seen, "in-condition").wait == "asyncio.Condition.wait"
    condition = state(seen, "in-condition")
    assert (condition["owner_name"], condition["waiters"], condition["locked"]) == (
        "condition-holder",
        1,
        True,
    )
    assert named(seen, "wants-condition").wait == "asyncio.Lock.acquire"
    assert state(seen, "wants-condition")["owner_name"] == "condition-holder"


def test_semaphores_say_how_many_hold_them_and_claim_no_single_owner(seen: Snapshot) -> None:
    semaphore = state(seen, "wants-permit")
    assert (semaphore["owners"], semaphore["value"], semaphore["waiters"]) == (2, 0, 1)
    assert "owner" not in semaphore
    thing = named(seen, "wants-permit").thing
    assert thing is not None and "permit-0, permit-1" in thing.detail


def test_jobs_of_a_pool_are_at_work_or_queued(seen: Snapshot) -> None:
    (worker,) = [s for s in seen if s.kind == "thread" and s.name == "small_0"]
    assert state(seen, "job-0")["executor_thread"] == worker.address
    for i in (1, 2, 3):
        queued = state(seen, f"job-{i}")
        assert (queued["executor_thread"], queued["queued_behind"]) == (None, i - 1)
        assert queued["executor_prefix"] == "small"
    (executor,) = [row for row in seen.tables["executors"] if row["prefix"] == "small"]
    assert (executor["threads"], executor["busy"], executor["queued"]) == ([worker.address], 1, 3)


def test_waits_across_loops_are_no_work_of_a_pool(seen: Snapshot) -> None:
    assert named(seen, "wraps").wait == "asyncio.wrap_future"
    assert state(seen, "wraps")["task"] == "remote-0"
    assert named(seen, "job-0").wait == "asyncio.run_in_executor"


def test_futures_say_what_they_stand_for(seen: Snapshot) -> None:
    details = {n: t.detail for n in ("shields", "wait-first", "as-completed") if (t := named(seen, n).thing)}
    assert details == {
        "shields": "pending, stands for task a",
        "wait-first": "pending, stands for 2 tasks",
        "as-completed": "pending, stands for 2 tasks",
    }
    assert state(seen, "nested")["pending"] == 2
