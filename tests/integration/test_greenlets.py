"""Greenlets of real processes, raw and gevent's: where each is suspended, and what it waits for."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from interpreters import Interpreter, interpreters

from diagtool.capture.live import capture_live
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.frames.codes import Codes
from diagtool.runtimes.cpython.greenlets.decode import Greenlets, add_greenlets
from diagtool.runtimes.cpython.objects.reader import Objects
from diagtool.runtimes.cpython.objects.vectors import Vectors
from diagtool.runtimes.cpython.runtime import find_runtime
from diagtool.runtimes.cpython.threads.interpreters import read_interpreters
from diagtool.snapshot.model import STATES, Snapshot, SnapshotBuilder, Stack, Target
from fixture_programs import with_libraries

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads live processes")

CACHE = Path(__file__).parents[2] / ".cache"

#: (Python, greenlet): the layouts that differ. "" is the newest that gevent of that Python wants.
BUILDS = [
    ("3.9", "1.1.3"),
    ("3.9", ""),
    ("3.10", "1.1.3"),
    ("3.10", "2.0.2"),
    ("3.10", ""),
    ("3.11", "2.0.2"),
    ("3.11", ""),
    ("3.12", "3.0.3"),
    ("3.12", "3.1.1"),
    ("3.12", ""),
    ("3.13", "3.1.1"),
    ("3.13", ""),
]

RAW = r"""
import greenlet, json, os, sys, threading
def inner(back):
    return back.switch()                                # line 4
def outer():
    def gen():
        yield inner(greenlet.getcurrent().parent)       # line 7
    for _ in gen():                                     # line 8
        pass
def deep(n):
    if n:
        return list(map(deep, [n - 1]))                 # line 12: through C
    return greenlet.getcurrent().parent.switch()        # line 13
def recursive(n):
    return recursive(n - 1) if n else greenlet.getcurrent().parent.switch()
class Mine(greenlet.greenlet):
    pass
main = greenlet.getcurrent()
all = {
    "generator": greenlet.greenlet(outer),
    "deep": greenlet.greenlet(deep),
    "recursive": greenlet.greenlet(recursive),
    "fresh": greenlet.greenlet(outer),
    "done": greenlet.greenlet(lambda: 1),
}
all["child"] = Mine(outer, all["fresh"])
all["main"] = main
all["generator"].switch()
all["deep"].switch(5)
all["recursive"].switch(400)
all["done"].switch()
tids, ready = {}, threading.Event()
def other():
    all["other main"] = greenlet.getcurrent()
    all["other"] = greenlet.greenlet(outer)
    all["other"].switch()
    tids["other"] = threading.get_native_id()
    all["nested"] = greenlet.greenlet(lambda: (ready.set(), threading.Event().wait()))
    all["nested"].switch()                              # the thread's main greenlet is suspended now
threading.Thread(target=other, daemon=True).start()
ready.wait()
told = {name: hex(id(g)) for name, g in all.items()}
tids["main"] = os.getpid()
print(json.dumps({"pid": os.getpid(), "greenlets": told, "tids": tids}), flush=True)
sys.stdin.read()
"""

GEVENT = r"""
import gevent, gevent.event, gevent.lock, gevent.pool, gevent.queue, gevent.socket, json, os, sys
import queue, threading
Q, E, S, AR = gevent.queue.Queue(), gevent.event.Event(), gevent.lock.Semaphore(0), gevent.event.AsyncResult()
B = gevent.lock.BoundedSemaphore(1)
B.acquire()
FULL = gevent.queue.Queue(1)
FULL.put(1)
near, far = gevent.socket.socketpair()
server = gevent.socket.socket()
server.bind(("127.0.0.1", 0))
server.listen()
first = gevent.spawn(gevent.sleep, 10000)
truth, spawned, entered = {}, [first], []
def case(wait, thing=None, fd=None):
    def register(function):
        def entry():
            entered.append(1)
            function()
        spawned.append(gevent.spawn(entry))
        truth[function.__name__] = {"address": hex(id(spawned[-1])), "wait": wait, "fd": fd,
                                    "thing": hex(id(thing)) if thing is not None else None}
        return function
    return register
@case("gevent.Queue.get", Q)
def queue_get():
    Q.get()
@case("gevent.Queue.get", Q)
def queue_iterated():
    for _ in Q:
        pass
@case("gevent.Queue.put", FULL)
def queue_put():
    FULL.put(2)
@case("gevent.Event.wait", E)
def event():
    E.wait()
@case("gevent.Event.wait", E)
def event_timeout():
    E.wait(timeout=1000)
@case("gevent.Semaphore.acquire", S)
def semaphore():
    S.acquire()
@case("gevent.BoundedSemaphore.acquire", B)
def semaphore_with():
    with B:
        pass
@case("gevent.AsyncResult.get", AR)
def result():
    AR.get()
@case("gevent.Greenlet.join", first)
def join():
    first.join()
@case("gevent.joinall")
def joinall():
    gevent.joinall([first])
@case("gevent.sleep")
def sleep():
    gevent.sleep(1000)
@case("gevent.socket.recv", near, fd=near.fileno())
def recv():
    near.recv(1)
@case("gevent.socket.accept", server, fd=server.fileno())
def accept():
    server.accept()
many = gevent.spawn(lambda: None)
def leaf(n):
    return leaf(n - 1) if n else (entered.append(1), E.wait())
crowd = [gevent.spawn(leaf, 20) for _ in range(500)]
while len(entered) < len(truth) + len(crowd):
    gevent.sleep(0)
told = {"pid": os.getpid(), "truth": truth, "crowd": [hex(id(g)) for g in crowd]}
watcher = gevent.get_hub().loop.io(0, 1)
def tell():
    print(json.dumps(told), flush=True)
gevent.get_hub().loop.run_callback(tell)  # told by the hub: by then the main greenlet is suspended too
gevent.get_hub().wait(watcher)
os._exit(0)
"""

PATCHED = r"""
from gevent import monkey
monkey.patch_all()
import gevent, json, os, queue, sys, threading
Q, S, C = queue.PriorityQueue(), threading.Semaphore(0), threading.Condition()
entered = []
def entry(function):
    entered.append(1)
    function()
def wait():
    with C:
        C.wait()
all = {"get": gevent.spawn(entry, lambda: Q.get()), "semaphore": gevent.spawn(entry, S.acquire)}
all["condition"] = gevent.spawn(entry, wait)
while len(entered) < 3:
    gevent.sleep(0)
def own(thing, module, method):  # what is replaced differs with the release
    module = "gevent" if type(thing).__module__.startswith("gevent") else module
    return [module + "." + method, hex(id(thing))]
truth = {"get": own(Q, "queue", "PriorityQueue.get" if "gevent" in type(Q).__module__ else "Queue.get")}
truth["semaphore"] = own(S, "threading", "Semaphore.acquire")
truth["condition"] = own(C, "threading", "Condition.wait")
truth = {k: {"address": hex(id(g)), "wait": truth[k][0], "thing": truth[k][1]} for k, g in all.items()}
told = json.dumps({"pid": os.getpid(), "truth": truth})
gevent.get_hub().loop.run_callback(lambda: print(told, flush=True))
gevent.sleep(1000)
"""


def interpreter(version: str) -> Interpreter | None:
    """The release build of a version that is on this machine itself."""
    own = (i for i in interpreters() if i.version == version and i.flavour == "release" and i.root is None)
    return next(own, None)


def named(version: str, greenlet: str = "") -> str:
    """The id of a test: the interpreter's full version first."""
    found = interpreter(version)
    return f"{found.full if found else version},greenlet{greenlet.replace('.', '_')}"


def packages(version: str, greenlet: str, *names: str) -> tuple[str, dict[str, str]]:
    """(executable, environment) of an interpreter that can import these packages, else skips the test."""
    found = interpreter(version)
    if found is None:
        pytest.skip(f"no CPython {version} on this machine")
    if not with_libraries(version):
        pytest.skip("libraries are tested on one version alone (make test-libraries: on all)")
    python = found.argv[0]
    wanted = [f"greenlet=={greenlet}" if greenlet else "greenlet", *names]
    folder = CACHE / "venvs" / "-".join(["greenlets", version, greenlet or "newest", *names])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may want it
        if not (folder / "complete").exists():
            command = [
                python,
                "-m",
                "pip",
                "install",
                "-q",
                "--only-binary",
                ":all:",
                "--target",
                str(folder),
            ]
            done = subprocess.run([*command, *wanted], capture_output=True, text=True, timeout=100)
            if done.returncode:
                pytest.skip(f"no wheel of {wanted} for CPython {version}: {done.stderr.strip()[-100:]}")
            (folder / "complete").touch()
    return python, {**os.environ, "PYTHONPATH": str(folder)}


@contextmanager
def running(python: str, environ: dict[str, str], program: str) -> Iterator[dict[str, Any]]:
    target = subprocess.Popen(
        [python, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
    )
    assert target.stdin is not None and target.stdout is not None
    try:
        yield json.loads(target.stdout.readline())
    finally:
        target.kill()
        target.wait()
        target.stdin.close()
        target.stdout.close()


def look(pid: int) -> tuple[Greenlets, Snapshot, dict[str, Stack]]:
    with capture_live(pid) as capture:
        runtime = find_runtime(capture)
        objects = Objects(capture.memory, runtime.layout, runtime.version, runtime.free_threaded)
        builder = SnapshotBuilder(Target("live", pid))
        ctx = Context(capture, runtime, objects, Vectors(objects), Codes(objects), builder)
        found = add_greenlets(ctx, read_interpreters(ctx))
    snapshot = builder.finish()
    assert found is not None, snapshot.warnings
    assert snapshot.warnings == []
    return found, snapshot, {hex(s.address): s for s in snapshot}


@pytest.mark.parametrize(("version", "greenlet"), BUILDS, ids=[named(*b) for b in BUILDS])
def test_suspended_greenlets_are_where_they_were_left(version: str, greenlet: str) -> None:
    with running(*packages(version, greenlet), RAW) as told:
        found, snapshot, stacks = look(told["pid"])
        names = {a: name for name, a in told["greenlets"].items()}
        state = {names[hex(a)]: STATES[s] for a, s in zip(found.address, found.state, strict=True)}
        assert state == {
            "main": "running",
            "generator": "waiting",
            "deep": "waiting",
            "recursive": "waiting",
            "fresh": "created",
            "child": "created",
            "done": "done",
            "other main": "waiting",
            "other": "waiting",
            "nested": "running",
        }
        assert len(snapshot.stacks) == 8  # those that run are their threads

        def frames(name: str) -> list[tuple[str, int | None]]:
            own = stacks[told["greenlets"][name]].frames
            return [(f.function.rpartition(".")[2], f.line) for f in own]

        assert frames("generator") == frames("other") == [("inner", 4), ("gen", 7), ("outer", 8)]
        assert frames("deep") == [("deep", 13), *[("deep", 12)] * 5]
        assert [f for f, _ in frames("recursive")] == ["recursive"] * 401
        assert frames("fresh") == frames("done") == []
        assert frames("other main")[0][0] == "other"
        assert stacks[told["greenlets"]["generator"]].wait == "greenlet.switch"


@pytest.mark.parametrize(("version", "greenlet"), BUILDS, ids=[named(*b) for b in BUILDS])
def test_greenlets_know_their_parent_and_their_thread(version: str, greenlet: str) -> None:
    with running(*packages(version, greenlet), RAW) as told:
        found, _, _ = look(told["pid"])
        names = {int(a, 16): name for name, a in told["greenlets"].items()}
        parents = {
            names[a]: names.get(p) for a, p in zip(found.address.tolist(), found.parent.tolist(), strict=True)
        }
        own, other = ["generator", "deep", "recursive", "fresh", "done"], ["other", "nested"]
        assert parents == {
            **dict.fromkeys(own, "main"),
            **dict.fromkeys(other, "other main"),
            "child": "fresh",
            "main": None,
            "other main": None,
        }
        threads = {names[a]: t for a, t in zip(found.address.tolist(), found.thread.tolist(), strict=True)}
        assert threads == {
            **dict.fromkeys([*own, "child", "main"], told["tids"]["main"]),
            **dict.fromkeys([*other, "other main"], told["tids"]["other"]),
        }


GEVENT_VERSIONS = ["3.9", "3.10", "3.11", "3.12", "3.13"]


@pytest.mark.parametrize("version", GEVENT_VERSIONS, ids=named)
def test_waits_of_gevent_have_their_name_and_their_thing(version: str) -> None:
    with running(*packages(version, "", "gevent"), GEVENT) as told:
        _, snapshot, stacks = look(told["pid"])
        truth = told["truth"]
        main = next(s for s in stacks.values() if s.frames and s.frames[-1].function == "<module>")
        assert (main.wait, main.thing) == (
            "greenlet.switch",
            None,
        )  # not what its stack has from earlier calls
        assert {n: stacks[t["address"]].wait for n, t in truth.items()} == {
            n: t["wait"] for n, t in truth.items()
        }
        for name, t in truth.items():
            stack = stacks[t["address"]]
            if t["thing"] is not None:
                assert stack.thing is not None and hex(stack.thing.address) == t["thing"], name
            if t["fd"] is not None:
                assert stack.thing is not None and stack.thing.state["fd"] == t["fd"], name
            assert name in [f.function.rpartition(".")[2] for f in stack.frames], name
        crowd = [stacks[a] for a in told["crowd"]]
        assert {s.wait for s in crowd} == {"gevent.Event.wait"}
        assert {tuple(f.function for f in s.frames) for s in crowd} == {("leaf",) * 21}
        assert len(set(snapshot.stacks.trace[[s.index for s in crowd]].tolist())) == 1


@pytest.mark.parametrize("version", GEVENT_VERSIONS, ids=named)
def test_patched_threads_wait_in_threading(version: str) -> None:
    with running(*packages(version, "", "gevent"), PATCHED) as told:
        _, _, stacks = look(told["pid"])
        for t in told["truth"].values():
            stack = stacks[t["address"]]
            assert (stack.wait, stack.thing and hex(stack.thing.address)) == (t["wait"], t["thing"])
