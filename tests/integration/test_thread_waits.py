"""Waits of real threads, in every interpreter: named as what they are, with the thing and its owner."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from interpreters import Interpreter, interpreters

from diagtool.capture.core import open_core
from diagtool.capture.live import capture_live
from diagtool.capture.model import Capture
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.frames.codes import Codes
from diagtool.runtimes.cpython.objects.reader import Objects
from diagtool.runtimes.cpython.objects.vectors import Vectors
from diagtool.runtimes.cpython.runtime import find_runtime
from diagtool.runtimes.cpython.threads.blocked import ThreadWait, ThreadWaits
from diagtool.runtimes.cpython.threads.interpreters import read_interpreters
from diagtool.snapshot.model import SnapshotBuilder, Target

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads live processes")

# A thread for each way to wait. Prints {"pid", "truth": {thread: {"wait", "type" and "on" (id) of the thing,
# "state" (what its state must say)}}} in one line. It runs in every version from 3.9 on.
TARGET = r"""
import concurrent.futures as cf, concurrent.futures.thread, functools, json, os, queue, select, signal, socket
import subprocess, sys, tempfile, threading, time, fcntl
import multiprocessing as mp, multiprocessing.connection
def die(*error):
    sys.__excepthook__(*error)
    os._exit(1)
sys.excepthook = die
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
truth, keep, started = {}, [], []
def expect(name, wait, type, on, state):
    truth[name] = {"wait": wait, "type": type, "on": hex(id(on)) if on is not None else None, "state": state}
def case(wait, type=None, on=None, **state):
    def register(function):
        name = function.__name__
        expect(name, wait, type, on, state)
        keep.append(on)
        started.append(threading.Thread(target=function, name=name, daemon=True))
        return function
    return register
def hold(lock):
    keeper = threading.Thread(target=lock.acquire, name="keeper")
    keeper.start()
    keeper.join()
LOCK, GONE, OWN, gone = threading.Lock(), threading.RLock(), threading.RLock(), threading.Event()
LOCK.acquire()
OWN.acquire()
OWN.acquire()
SHARED = threading.Lock()
COND, CLOCK = threading.Condition(), threading.Condition(threading.Lock())
ABBA = threading.Lock(), threading.Lock()
both = threading.Barrier(2)
inside = threading.Event()

@case("threading.Lock.acquire", "_thread.lock", LOCK, locked=True, timed=False)
def lock_acquire():
    LOCK.acquire()
@case("threading.Lock.acquire", "_thread.lock", LOCK, timed=True)
def lock_timeout():
    keep.append([1, LOCK.acquire(timeout=3600), 2])
@case("threading.Lock.acquire", "_thread.lock", LOCK)
def lock_with():
    with LOCK:
        pass
@case("threading.Lock.acquire", "_thread.lock", LOCK)
def lock_star():
    LOCK.acquire(*(True,), **{"timeout": -1})
@case("threading.Lock.acquire", "_thread.lock", LOCK)
def lock_iterated():
    for _ in iter(LOCK.acquire, None):
        pass
@case("threading.Lock.acquire", "_thread.lock", LOCK)
def lock_partial():
    functools.partial(LOCK.acquire)()
@case("threading.Lock.acquire", "_thread.lock", LOCK)
def lock_after_others():  # what was called before leaves its traces on the evaluation stack
    with threading.Lock(), threading.RLock():
        [[1, [2, [3, [4, threading.Lock().acquire()]]]]]
    LOCK.acquire()
@case("threading.RLock.acquire", "_thread.RLock", GONE, owner_alive=False, count=1)
def rlock_of_the_dead():
    gone.wait()
    GONE.acquire()
@case("threading.RLock.acquire", "_thread.RLock", OWN, owner="MainThread", owner_alive=True, count=2)
def rlock_with():
    with OWN:
        pass
@case("time.sleep", "timer", timed=True)
def holder():
    with threading.Lock(), SHARED:
        inside.set()
        time.sleep(3600)
@case("threading.Lock.acquire", "_thread.lock", SHARED, owner="holder", owner_alive=True)
def lock_held_in_with():
    inside.wait()
    SHARED.acquire()
@case("threading.Lock.acquire", "_thread.lock", ABBA[1], owner="abba_b")
def abba_a():
    with ABBA[0]:
        both.wait()
        with ABBA[1]:
            pass
@case("threading.Lock.acquire", "_thread.lock", ABBA[0], owner="abba_a")
def abba_b():
    with ABBA[1]:
        both.wait()
        ABBA[0].acquire()
@case("threading.Condition.wait", "threading.Condition", COND, waiters=2, locked=False)
def condition():
    with COND:
        COND.wait()
@case("threading.Condition.wait", "threading.Condition", COND)
def condition_wait_for():
    with COND:
        COND.wait_for(lambda: False, 3600)
NOTIFIED, notified = threading.Condition(), threading.Event()
def keeps_condition():
    with NOTIFIED:
        NOTIFIED.notify()
        notified.set()
        time.sleep(3600)
@case("threading.RLock.acquire", "_thread.RLock", NOTIFIED._lock, owner="keeps_condition")
def condition_notified():
    with NOTIFIED:
        started.append(threading.Thread(target=keeps_condition, name="keeps_condition", daemon=True))
        started[-1].start()
        NOTIFIED.wait()
EVENT = threading.Event()
@case("threading.Event.wait", "threading.Event", EVENT, set=False, waiters=1)
def event():
    EVENT.wait()
SEM = threading.BoundedSemaphore(1)
SEM.acquire()
@case("threading.Semaphore.acquire", "threading.BoundedSemaphore", SEM, value=0, waiters=1, bound=1)
def semaphore():
    with SEM:
        pass
BARRIER = threading.Barrier(3)
@case("threading.Barrier.wait", "threading.Barrier", BARRIER, parties=3, count=1)
def barrier():
    BARRIER.wait()
MAIN = threading.main_thread()
@case("threading.Thread.join", "threading._MainThread", MAIN, alive=True, owner="MainThread")
def join():
    MAIN.join()
EMPTY, FULL, UNDONE = queue.PriorityQueue(), queue.Queue(2), queue.Queue()
for q in (FULL, FULL, UNDONE):
    q.put(0)
@case("queue.Queue.get", "queue.PriorityQueue", EMPTY, size=0, getters=2, maxsize=0)
def queue_get():
    EMPTY.get()
@case("queue.Queue.get", "queue.PriorityQueue", EMPTY)
def queue_get_timeout():
    EMPTY.get(timeout=3600)
@case("queue.Queue.put", "queue.Queue", FULL, size=2, maxsize=2, putters=1)
def queue_put():
    FULL.put(1)
@case("queue.Queue.join", "queue.Queue", UNDONE, size=1, unfinished=1)
def queue_join():
    UNDONE.join()
SIMPLE = queue.SimpleQueue()
@case("queue.SimpleQueue.get", "_queue.SimpleQueue", SIMPLE, size=0)
def simple_queue():
    SIMPLE.get()
@case("queue.SimpleQueue.get", "_queue.SimpleQueue", SIMPLE)
def simple_queue_iterated():
    for _ in iter(SIMPLE.get, None):
        pass
POOL = cf.ThreadPoolExecutor(2, thread_name_prefix="pool")
BUSY = POOL.submit(threading.Event().wait)
POOL.submit(int).result()
expect("pool_1", "queue.SimpleQueue.get", "_queue.SimpleQueue", POOL._work_queue,
       {"size": 0, "executor_prefix": "pool", "max_workers": 2, "executor_shutdown": False})
FULL_POOL = cf.ThreadPoolExecutor(1, thread_name_prefix="full")
keep.extend(FULL_POOL.submit(threading.Event().wait) for _ in range(4))
NEVER, RESULT = cf.Future(), "concurrent.futures.Future.result"
@case(RESULT, "concurrent.futures._base.Future", NEVER, future="pending")
def future():
    NEVER.result()
@case(RESULT, "concurrent.futures._base.Future", BUSY, future="running", executor_thread="pool_0")
def future_busy():
    BUSY.result()
@case("concurrent.futures.wait", pending=1)
def futures_wait():
    cf.wait([NEVER])
@case("time.sleep", "timer", timed=True)
def sleep():
    time.sleep(3600)
R, W = os.pipe()
A, B = socket.socketpair()
C, D = socket.socketpair()
E, F = socket.socketpair()
C.settimeout(3600)
LISTEN = socket.create_server(("127.0.0.1", 0))
POLL, EPOLL = select.poll(), select.epoll()
POLL.register(R, select.POLLIN)
EPOLL.register(R, select.EPOLLIN)
@case("select", "fd", fd=R, timed=False)
def select_():
    select.select([R], [], [])
@case("poll", "fd", fd=R, timed=True)
def poll():
    POLL.poll(3600000)
@case("epoll", "fd", fd=EPOLL.fileno())
def epoll():
    EPOLL.poll()
@case("read", "fd", fd=R)
def read():
    os.read(R, 1)
@case("socket.recv", "fd", fd=A.fileno())
def recv():
    A.recv(1)
@case("socket.recv", "fd", C, fd=C.fileno(), timed=True)
def recv_timeout():
    C.recv(1)
@case("socket.recv", "fd", fd=B.fileno())
def recv_file():
    B.makefile("rb").read(1)
@case("socket.accept", "fd", LISTEN, fd=LISTEN.fileno())
def accept():
    LISTEN.accept()
@case("socket.send", "fd", fd=E.fileno())
def sendall():
    E.setblocking(False)
    try:
        while True:
            E.send(bytes(1 << 16))
    except BlockingIOError:
        E.setblocking(True)
    E.sendall(b"1")
@case("signal.sigwait")
def sigwait():
    signal.sigwait({signal.SIGUSR1})
CHILD = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
@case("subprocess.wait", "subprocess.Popen", CHILD, pid=CHILD.pid)
def popen_wait():
    CHILD.wait()
SECOND = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
@case("os.waitpid", "process", pid=SECOND.pid)
def waitpid():
    os.waitpid(SECOND.pid, 0)
FILE = tempfile.NamedTemporaryFile()
fcntl.flock(FILE, fcntl.LOCK_EX)
OTHER = open(FILE.name)
@case("flock", "fd", fd=OTHER.fileno())
def flock():
    fcntl.flock(OTHER, fcntl.LOCK_EX)
RECEIVER, SENDER = mp.Pipe(duplex=False)
CONNECTION = "multiprocessing.connection.Connection"
@case("multiprocessing.Connection.recv", CONNECTION, RECEIVER, fd=RECEIVER.fileno())
def connection():
    RECEIVER.recv()
try:
    MPQ, MPLOCK = mp.get_context("fork").Queue(), mp.get_context("fork").RLock()
except OSError:  # no /dev/shm
    pass
else:
    MPLOCK.acquire()
    @case("multiprocessing.Queue.get", "multiprocessing.queues.Queue", MPQ)
    def mp_queue():
        MPQ.get()
    SEMLOCK = MPLOCK._semlock
    @case("multiprocessing.Lock.acquire", "_multiprocessing.SemLock", SEMLOCK, count=1, owner="MainThread")
    def mp_lock():
        MPLOCK.acquire()
    @case("multiprocessing.Lock.acquire", "multiprocessing.synchronize.RLock", MPLOCK, owner="MainThread")
    def mp_lock_with():
        with MPLOCK:
            pass
for t in list(started):
    t.start()
notified.wait()
hold(GONE)  # no thread begins after this one ended: another one would get its ident
gone.set()
print(json.dumps({"pid": os.getpid(), "truth": truth}), flush=True)
sys.stdin.read()
os._exit(0)
"""


@dataclass
class Seen:
    """The waits of a target by thread name, and tids by thread name."""

    truth: dict[str, dict[str, Any]]
    waits: dict[str, ThreadWait] = field(default_factory=dict)
    tids: dict[str, int] = field(default_factory=dict)
    executors: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def look(capture: Capture, seen: Seen) -> None:
    runtime = find_runtime(capture)
    objects = Objects(capture.memory, runtime.layout, runtime.version, runtime.free_threaded)
    builder = SnapshotBuilder(Target("live"))
    ctx = Context(capture, runtime, objects, Vectors(objects), Codes(objects), builder)
    interpreters = read_interpreters(ctx)
    waits = ThreadWaits(ctx, interpreters)
    threads = [t for i in interpreters for t in i.threads]
    seen.waits = {t.name or "": waits.of(t) for t in threads}
    seen.tids = {t.name or "": t.captured.tid for t in threads if t.captured}
    seen.executors = waits.things.executors.table()
    seen.warnings = builder.snapshot.warnings


@contextmanager
def running(interpreter: Interpreter, program: str) -> Iterator[dict[str, Any]]:
    """A target, and the line of JSON that it printed when it was ready."""
    target = subprocess.Popen(
        [*interpreter.argv, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert target.stdout is not None and target.stdin is not None
    try:
        yield json.loads(target.stdout.readline())
    finally:
        target.kill()
        target.wait()
        target.stdin.close()
        target.stdout.close()


Both = dict[str, "Seen | None"]


@pytest.fixture(scope="module", params=interpreters(), ids=str)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with running(request.param, TARGET) as told:
        live = Seen(told["truth"])
        deadline = time.monotonic() + 20
        while True:  # until every thread has come to rest where it said it would
            with capture_live(told["pid"]) as capture:
                look(capture, live)
            if all(live.waits.get(n, ThreadWait()).name == t["wait"] for n, t in live.truth.items()):
                break
            if time.monotonic() > deadline:
                break  # the tests say which
        core = None
        # (gdb 13 loses thread stacks that newer C libraries guard: gcore only where this machine's own runs)
        if request.param.flavour == "release" and request.param.root is None and shutil.which("gcore"):
            path = tmp_path_factory.mktemp("core") / "core"
            command = ["gcore", "-o", str(path), str(told["pid"])]
            subprocess.run(command, capture_output=True, check=True, timeout=100)
            core = Seen(told["truth"])
            with open_core(f"{path}.{told['pid']}") as capture:
                look(capture, core)
        yield {"live": live, "core": core}


@pytest.fixture(params=["live", "core"])
def seen(request: pytest.FixtureRequest, both: Both) -> Seen:
    found = both[request.param]
    if found is None:
        pytest.skip("cores are made of this machine's own release builds, by gcore")
    return found


def test_every_wait_has_its_name(seen: Seen) -> None:
    names = {n: seen.waits[n].name if n in seen.waits else None for n in seen.truth}
    assert names == {n: t["wait"] for n, t in seen.truth.items()}
    assert not seen.warnings


def test_every_wait_has_its_thing(seen: Seen) -> None:
    for name, truth in seen.truth.items():
        thing = seen.waits[name].thing
        if truth["type"] is not None:
            assert thing is not None, name
            assert thing.type == truth["type"], name
        if truth["on"] is not None:
            assert thing is not None and hex(thing.address) == truth["on"], name


def test_things_say_their_state_and_owner(seen: Seen) -> None:
    for name, truth in seen.truth.items():
        wait = seen.waits[name]
        state = wait.thing.state if wait.thing is not None else {}
        for key, value in truth["state"].items():
            got = wait.timed if key == "timed" else state.get(key)
            if key in ("owner", "executor_thread"):
                value = seen.tids[value]
            assert got == value, (name, key, state)


def test_waits_that_end_say_when(both: Both) -> None:
    seen = both["live"]
    assert seen is not None
    for name in ("lock_timeout", "sleep", "holder"):
        left = seen.waits[name].time_left
        assert left is not None and 3000 < left <= 3600, name


BUSY = r"""
import json, os, sys, threading
def spin():
    while True:
        pass
threads = [threading.Thread(target=spin, name=name, daemon=True) for name in "ab"]
for t in threads:
    t.start()
print(json.dumps({"pid": os.getpid()}), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("interpreter", [i for i in interpreters() if "free" not in i.flavour], ids=str)
def test_who_waits_for_the_gil_and_who_holds_it(interpreter: Interpreter) -> None:
    with running(interpreter, BUSY) as told:
        deadline = time.monotonic() + 20
        waiting: list[str] = []
        while not waiting and time.monotonic() < deadline:  # now and then nobody holds it
            seen = Seen({})
            with capture_live(told["pid"]) as capture:
                look(capture, seen)
            held = [n for n in "ab" if (t := seen.waits[n].thing) is not None and t.state.get("owner")]
            waiting = [
                n for n in held if seen.waits[n].name == "gil" and seen.waits["ab".strip(n)].name == ""
            ]
        (waiter,) = waiting
        thing = seen.waits[waiter].thing
        assert thing is not None and thing.type == "GIL"
        assert thing.state["owner"] == seen.tids["ab".strip(waiter)]


def test_executors_know_their_threads_and_their_backlog(seen: Seen) -> None:
    (pool, full) = sorted(seen.executors, key=lambda e: e["prefix"], reverse=True)
    assert pool["prefix"] == "pool" and pool["alive"] and pool["shutdown"] is False
    assert sorted(pool["threads"]) == sorted([seen.tids["pool_0"], seen.tids["pool_1"]])
    assert (pool["max_workers"], pool["busy"], pool["queued"]) == (2, 1, 0)
    assert full["prefix"] == "full" and full["threads"] == [seen.tids["full_0"]]
    assert (full["max_workers"], full["busy"], full["queued"]) == (1, 1, 3)
