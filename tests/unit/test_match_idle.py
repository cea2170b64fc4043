"""Idle templates: what waits because it has nothing to do is said to be idle, and is never a finding."""

from __future__ import annotations

import pytest
from made_stacks import LOOP, QUEUE_GET, SLEEP, T_QUEUE_GET, THREAD, WORKER, World

from diagtool.leaks import find_leaks
from diagtool.leaks.template import builtin

SELECT = "selectors.py:EpollSelector.select:468"
MP = "multiprocessing/"
RECV = f"{MP}connection.py:Connection._recv:378 {MP}connection.py:Connection._recv_bytes:413"

#: (idle template, wait, frames), a hundred threads each
THREADS = [
    ("executor-worker-idle", "queue.SimpleQueue.get", WORKER),
    ("event-loop-idle", "epoll", f"{SELECT} {LOOP} asyncio/runners.py:run:194"),
    ("uvloop-idle", "epoll", "asyncio/runners.py:Runner.run:118 asyncio/runners.py:run:194 app.py:main:3"),
    ("trio-idle", "epoll", "trio/_core/_io_epoll.py:EpollIOManager.get_events:234 trio/_core/_run.py:run:1"),
    (
        "trio-worker-idle",
        "threading.Lock.acquire",
        f"trio/_core/_thread_cache.py:WorkerThread._work:1 {THREAD}",
    ),
    ("anyio-worker-idle", "queue.Queue.get", f"{T_QUEUE_GET} anyio/_backends/_asyncio.py:WorkerThread.run:1"),
    ("tornado-idle", "epoll", "tornado/platform/epoll.py:poll:1 tornado/ioloop.py:PollIOLoop.start:863"),
    ("gevent-hub-idle", "epoll", "gevent/hub.py:Hub.run:647"),
    ("selector-idle", "poll", f"app.py:serve:9 {THREAD}"),
    ("go-scheduler-threads", "futex", "sys.s:runtime.futex:1 proc.go:runtime.mPark:2 asm.s:runtime.mcall:3"),
    ("go-goroutine-threads", "read", "fd.go:syscall.read:1 main.go:main.main:2 asm.s:runtime.goexit:3"),
    (
        "socketserver-idle",
        "poll",
        f"selectors.py:select:1 socketserver.py:BaseServer.serve_forever:235 {THREAD}",
    ),
    (
        "socketserver-connection-idle",
        "socket.recv",
        "socket.py:SocketIO.readinto:720 http/server.py:BaseHTTPRequestHandler.handle:440 "
        f"socketserver.py:ThreadingMixIn.process_request_thread:692 {THREAD}",
    ),
    ("accept-loop-idle", "socket.accept", f"socket.py:socket.accept:295 app.py:serve:9 {THREAD}"),
    ("multiprocessing-pool-idle", "time.sleep", f"{MP}pool.py:Pool._wait_for_updates:502 {THREAD}"),
    (
        "multiprocessing-pool-idle",
        "multiprocessing.Queue.get",
        f"{RECV} {MP}pool.py:Pool._handle_results:579",
    ),
    (
        "multiprocessing-worker-idle",
        "multiprocessing.SimpleQueue.get",
        f"{RECV} {MP}queues.py:SimpleQueue.get:386 {MP}pool.py:worker:114",
    ),
    (
        "process-pool-idle",
        "multiprocessing.connection.wait",
        f"{SELECT} {MP}connection.py:wait:947 "
        "concurrent/futures/process.py:_ExecutorManagerThread.wait_result_broken_or_wakeup:425",
    ),
    (
        "process-pool-idle",
        "multiprocessing.Queue.get",
        f"{RECV} concurrent/futures/process.py:_process_worker:249",
    ),
    ("gunicorn-idle", "select", "gunicorn/arbiter.py:Arbiter.sleep:357 gunicorn/arbiter.py:Arbiter.run:209"),
    (
        "uvicorn-supervisor-idle",
        "threading.Event.wait",
        "uvicorn/supervisors/multiprocess.py:Multiprocess.run:1",
    ),
    ("celery-idle", "epoll", "kombu/asynchronous/hub.py:create_loop:1 celery/worker/loops.py:asynloop:97"),
    ("rq-idle", "socket.recv", "redis/connection.py:x:1 rq/worker.py:Worker.dequeue_job_and_maintain_ttl:1"),
    ("debugger-thread", "threading.Event.wait", "_pydevd_bundle/pydevd_comm.py:ReaderThread._on_run:1"),
    (
        "telemetry-thread",
        "queue.Queue.get",
        f"{T_QUEUE_GET} sentry_sdk/worker.py:BackgroundWorker._target:125",
    ),
    (
        "client-library-thread",
        "threading.Condition.wait",
        "pymongo/periodic_executor.py:PeriodicExecutor._run:1",
    ),
    ("child-watcher-idle", "os.waitpid", "asyncio/unix_events.py:ThreadedChildWatcher._do_waitpid:1412"),
    ("thread-sleeps", "time.sleep", f"app.py:refresh:9 {THREAD}"),
    ("child-process-awaited", "subprocess.wait", f"subprocess.py:Popen.wait:1 app.py:supervise:2 {THREAD}"),
    ("gevent-threadpool-idle", "threading.Lock.acquire", "gevent/threadpool.py:_WorkerGreenlet.run:1"),
    ("signal-thread-idle", "signal.sigwait", f"app.py:signals:9 {THREAD}"),
]

TASKS = [
    ("asyncio-sleeps", "asyncio.sleep", f"{SLEEP} app.py:tick:3"),
    (
        "asyncio-server-forever",
        "asyncio.Future",
        "asyncio/base_events.py:Server.serve_forever:380 app.py:main:3",
    ),
    ("asgi-lifespan-idle", "asyncio.Queue.get", f"{QUEUE_GET} uvicorn/lifespan/on.py:LifespanOn.receive:137"),
    ("web-connection-idle", "asyncio.Future", "aiohttp/web_protocol.py:RequestHandler.start:462"),
    ("web-connection-idle", "asyncio.wait", "asyncio/tasks.py:wait:1 websockets/legacy/protocol.py:recv:541"),
    ("client-listener-idle", "asyncio.StreamReader.read", "redis/asyncio/client.py:PubSub.listen:924"),
]


def idle_of(kind: str, wait: str, text: str) -> list[str | None]:
    w = World()
    (w.threads if kind == "thread" else w.tasks)(100, wait, text, w.thing(exclusive=None))
    report = find_leaks([w.build()])
    assert report.findings == ()
    return [c.template if c.idle else None for c in report.clusters]


@pytest.mark.parametrize(("template", "wait", "text"), THREADS, ids=lambda v: v if " " not in v else "")
def test_an_idle_thread_is_said_to_be(template: str, wait: str, text: str) -> None:
    assert idle_of("thread", wait, text) == [template]


@pytest.mark.parametrize(("template", "wait", "text"), TASKS, ids=lambda v: v if " " not in v else "")
def test_an_idle_task_is_said_to_be(template: str, wait: str, text: str) -> None:
    assert idle_of("task", wait, text) == [template]


@pytest.mark.parametrize(
    ("template", "wait", "state"),
    [
        ("asyncio-queue-worker-pool", "asyncio.Queue.get", {"exclusive": False}),
        ("asyncio-server-connection-idle", "asyncio.StreamReader.read", {"exclusive": False, "server": True}),
        ("asyncio-waits-forever", "asyncio.Future", {"exclusive": True, "made_in_place": True}),
    ],
)
def test_what_a_task_waits_on_may_tell(template: str, wait: str, state: dict[str, bool]) -> None:
    w = World()
    w.tasks(100, wait, "app.py:f:1", w.thing(**state))
    (cluster,) = find_leaks([w.build()]).clusters
    assert (cluster.template, cluster.idle) == (template, True)


@pytest.mark.parametrize("wait", ["queue.Queue.get", "queue.SimpleQueue.get"])
def test_a_pool_of_threads_of_ones_own_is_idle(wait: str) -> None:
    w = World()
    w.threads(100, wait, f"app.py:work:9 {THREAD}", w.thing("queue.Queue", exclusive=False))
    (cluster,) = find_leaks([w.build()]).clusters
    assert (cluster.template, cluster.idle) == ("thread-queue-worker-pool", True)


def test_one_waits_for_the_end_of_the_program_a_crowd_does_not() -> None:
    for count, idle in ((1, True), (2, False)):
        w = World()
        w.tasks(count, "asyncio.Future", "app.py:main:1", w.thing(exclusive=False))
        (cluster,) = find_leaks([w.build()]).clusters
        assert cluster.idle is idle


def test_a_worker_with_a_job_is_not_idle() -> None:
    w = World()
    job = "concurrent/futures/thread.py:_WorkItem.run:58 concurrent/futures/thread.py:_worker:83"
    w.threads(9, "threading.Event.wait", f"app.py:job:3 {job}", w.thing(exclusive=False))
    (cluster,) = find_leaks([w.build()]).clusters
    assert not cluster.idle


def test_every_idle_template_has_a_stack_here() -> None:
    shown = {name for name, *_ in (*THREADS, *TASKS)} | {
        "asyncio-queue-worker-pool",
        "asyncio-server-connection-idle",
        "asyncio-waits-forever",
        "asyncio-main-forever",
        "thread-queue-worker-pool",
    }
    other = {
        "greenlet-idle",
        "trio-task",
        "native-worker-idle",
        "uwsgi-idle",
        "logging-listener-idle",
        "timer-thread",
        "thread-polls",
        "main-thread-waits",
    }
    # Those of Go are in test_match_go.py.
    assert {t.id for t in builtin() if t.idle and t.kind != "goroutine"} == shown | other


@pytest.mark.parametrize(
    ("template", "wait", "text", "more"),
    [
        ("native-worker-idle", "futex", "", {"names": ["libuv-worker"]}),
        ("uwsgi-idle", "epoll", "app.py:f:1", {"names": ["uWSGIWorker1Core0"]}),
        (
            "logging-listener-idle",
            "queue.Queue.get",
            f"{T_QUEUE_GET} logging/handlers.py:QueueListener._monitor:1",
            {},
        ),
        ("timer-thread", "threading.Event.wait", f"threading.py:Timer.run:1 {THREAD}", {}),
        ("main-thread-waits", "signal.pause", "app.py:main:1", {"main": True}),
    ],
)
def test_a_single_idle_thread_is_said_to_be(
    template: str, wait: str, text: str, more: dict[str, object]
) -> None:
    w = World()
    w.threads(1, wait, text, w.thing(exclusive=False), **more)  # type: ignore[arg-type]
    (cluster,) = find_leaks([w.build()]).clusters
    assert cluster.idle
    assert cluster.template == template


@pytest.mark.parametrize(
    ("template", "kind", "wait", "text", "state"),
    [
        (
            "greenlet-idle",
            "greenlet",
            "gevent.socket.recv",
            "gevent/_socketcommon.py:SocketMixin.recv:1",
            "waiting",
        ),
        (
            "trio-task",
            "coroutine",
            "",
            "trio/_core/_traps.py:wait_task_rescheduled:1 app.py:f:1",
            "suspended",
        ),
    ],
)
def test_stacks_of_other_frameworks_are_idle(
    template: str, kind: str, wait: str, text: str, state: str
) -> None:
    w = World()
    w.stacks(kind, 500, wait, text, state=state)
    report = find_leaks([w.build()])
    assert report.findings == ()
    assert [c.template for c in report.clusters if c.idle] == [template]


def test_threads_that_poll_with_a_time_limit_are_idle() -> None:
    w = World()
    w.threads(20, "threading.Event.wait", f"app.py:poll:9 {THREAD}", w.thing(exclusive=False, timeout=1.0))
    (cluster,) = find_leaks([w.build()]).clusters
    assert (cluster.template, cluster.idle) == ("thread-polls", True)
