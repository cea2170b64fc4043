"""uvloop's loop, timers and transports, which are C structures without a header, next to asyncio's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diagtool.capture.core import open_core
from diagtool.capture.live import capture_live
from diagtool.runtimes.cpython.decode import decode
from diagtool.snapshot.model import Snapshot, Stack
from fixture_programs import Fixture, Interpreter, interpreters, launch

PROGRAM = """
import asyncio, json, os, socket, sys, threading, uvloop
keep = []
def task(coro, name):
    keep.append(asyncio.get_running_loop().create_task(coro))
    keep[-1].set_name(name)
    return keep[-1]
async def read(reader):
    await reader.read(1)
async def limited(event):
    if sys.version_info < (3, 11):
        await asyncio.wait_for(event.wait(), 500)
    else:
        async with asyncio.timeout(500):
            await event.wait()
async def serve(reader, writer):
    keep.append(writer)
    asyncio.current_task().set_name("server-side")
    await reader.readline()
async def main():
    loop = asyncio.get_running_loop()
    task(asyncio.sleep(1000), "sleep")
    task(limited(asyncio.Event()), "limited")
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    task(read(reader), "client-side")
    task(server.serve_forever(), "serve-forever")
    near, far = socket.socketpair()
    near.setblocking(False)
    keep.extend([writer, server, far, near, loop.call_later(777, print)])
    task(loop.sock_recv(near, 1), "sock-recv")
    task(asyncio.to_thread(threading.Event().wait), "to-thread")
    me = asyncio.current_task()
    while len(asyncio.all_tasks()) < 8 or any(t._fut_waiter is None for t in asyncio.all_tasks() - {me}):
        await asyncio.sleep(0.001)
    print("READY", os.getpid(), flush=True)
    ends = writer.get_extra_info("socket")
    truth = {"fd": ends.fileno(), "local": ends.getsockname()[1], "peer": ends.getpeername()[1]}
    print(json.dumps({**truth, "loop": id(loop)}), flush=True)
    await asyncio.sleep(3600)
loop = uvloop.new_event_loop()
asyncio.set_event_loop(loop)
loop.run_until_complete(main())
"""


class Seen:
    """What the program says of itself, and a snapshot of it."""

    def __init__(self, truth: dict[str, Any], snapshot: Snapshot) -> None:
        self.truth = truth
        self.snapshot = snapshot

    def task(self, name: str) -> Stack:
        (stack,) = [s for s in self.snapshot if s.kind == "task" and s.name == name]
        return stack

    def state(self, name: str) -> dict[str, Any]:
        thing = self.task(name).thing
        assert thing is not None
        return thing.state


@pytest.fixture(scope="module", params=interpreters(), ids=str)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Seen]]:
    interpreter: Interpreter = request.param
    folder = Path(tmp_path_factory.mktemp("uvloop"))
    (folder / "program.py").write_text(PROGRAM)
    fixture = Fixture("uvloop waits", str(folder / "program.py"), requirements=("uvloop",))
    with launch(fixture, "", interpreter) as program:
        truth = json.loads(program.wait_line(r"\{"))
        with capture_live(program.pid) as capture:
            live = decode(capture)
        dump = program.kernel_core if interpreter.minor >= 14 else program.gcore
        core = dump(folder)
        root = str(interpreter.root) if interpreter.root else None
        with open_core(str(core), sysroot=root) as capture:
            dead = decode(capture)
        core.unlink()
    yield {"live": Seen(truth, live), "core": Seen(truth, dead)}


@pytest.fixture(params=["live", "core"], ids=str.upper)
def seen(request: pytest.FixtureRequest, both: dict[str, Seen]) -> Seen:
    return both[request.param]


def test_the_loop_and_its_thread(seen: Seen) -> None:
    (row,) = seen.snapshot.tables["loops"]
    assert (row["address"], row["type"]) == (seen.truth["loop"], "uvloop.Loop")
    assert row["thread"] == seen.task("sleep").thread == seen.snapshot.target.pid
    assert (row["running"], row["closed"], row["debug"]) == (True, False, False)
    assert row["tasks"] == sum(s.kind == "task" for s in seen.snapshot)
    assert row["scheduled"] >= 4


def test_timers_and_time_limits(both: dict[str, Seen]) -> None:
    live = both["live"]
    assert live.task("sleep").wait == "asyncio.sleep"
    assert 900 < live.state("sleep")["time_left"] <= 1000
    left = {row["stack"]: row["left"] for row in live.snapshot.tables["timeouts"]}
    assert 400 < left[live.task("limited").index] <= 500
    assert 900 < left[live.task("sleep").index] <= 1000
    (timer,) = [row for row in live.snapshot.tables["timers"] if row["callback"] == "print"]
    assert 700 < timer["time_left"] <= 777 and timer["count"] == 1


def test_which_timer_leads_to_which_task_is_known_in_a_core_too(both: dict[str, Seen]) -> None:
    core = both["core"]
    timed = {row["stack"] for row in core.snapshot.tables["timeouts"]}
    assert {core.task("limited").index, core.task("sleep").index} <= timed
    assert core.task("client-side").index not in timed
    assert core.state("sleep")["when"] == both["live"].state("sleep")["when"]


def test_streams_have_their_descriptor_and_side(seen: Seen) -> None:
    client, server = seen.state("client-side"), seen.state("server-side")
    assert (client["fd"], client["server"], server["server"]) == (seen.truth["fd"], False, True)
    assert seen.task("client-side").wait == "asyncio.StreamReader.read"
    assert seen.task("server-side").wait == "asyncio.StreamReader.readline"


def test_addresses_of_a_live_connection(both: dict[str, Seen]) -> None:
    client = both["live"].state("client-side")
    truth = both["live"].truth
    assert (client["local"], client["peer"]) == (
        f"127.0.0.1:{truth['local']}",
        f"127.0.0.1:{truth['peer']}",
    )


def test_coroutines_of_cython_are_frames(seen: Seen) -> None:
    recv, forever = seen.task("sock-recv"), seen.task("serve-forever")
    assert [(f.function, f.module, f.language) for f in recv.frames] == [
        ("Loop.sock_recv", "uvloop.loop", "cython")
    ]
    assert [f.function for f in forever.frames] == ["Server.serve_forever"]
    assert (recv.wait, forever.wait) == ("asyncio.sock_recv", "asyncio.Server.serve_forever")
    assert recv.state == forever.state == "waiting"


def test_work_of_the_default_executor(seen: Seen) -> None:
    names = ("uvloop_", "asyncio_", "ThreadPoolExecutor-")
    (worker,) = [s for s in seen.snapshot if s.kind == "thread" and s.name.startswith(names)]
    assert seen.state("to-thread")["executor_thread"] == worker.address
