"""Each template finds its leak, and stays silent for its healthy twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from made_stacks import (
    EVENT,
    HANDLE,
    JOB,
    LOCK,
    LOOP,
    QUEUE_GET,
    QUEUE_JOIN,
    QUEUE_PUT,
    SEMAPHORE,
    SLEEP,
    T_CONDITION,
    T_EVENT,
    T_QUEUE_GET,
    THREAD,
    WORKER,
    World,
)

from diagtool.leaks import find_leaks
from diagtool.leaks.model import Finding
from diagtool.leaks.template import builtin

Build = Callable[[World], Any]
MONITOR = "logging/handlers.py:QueueListener._monitor:1536"
TIMER = f"{T_EVENT} threading.py:Timer.run:1430"
RESULT = f"{T_CONDITION} concurrent/futures/_base.py:Future.result:451"


def findings(build: Build, **options: Any) -> tuple[Finding, ...]:
    world = World()
    build(world)
    return find_leaks([world.build()], **options).findings


LEAKS: list[tuple[str, str, str, int, Build]] = []  # (name, template, verdict, count, build)
HEALTHY: list[tuple[str, Build]] = []


def leak(template: str, count: int, verdict: str = "likely") -> Callable[[Build], Build]:
    def note(build: Build) -> Build:
        LEAKS.append((build.__name__, template, verdict, count, build))
        return build

    return note


def healthy(build: Build) -> Build:
    HEALTHY.append((build.__name__, build))
    return build


# -- asyncio: what nobody can give ------------------------------------------------------------------------


@leak("asyncio-queue-get-starved", 300)
def consumers_of_a_queue_that_only_they_have(w: World) -> None:
    w.tasks(300, "asyncio.Queue.get", f"{QUEUE_GET} worker.py:fetch:41", w.thing(exclusive=True, size=0))


@healthy
def consumers_of_a_queue_that_somebody_has(w: World) -> None:
    w.tasks(300, "asyncio.Queue.get", f"{QUEUE_GET} worker.py:fetch:41", w.thing(exclusive=False, size=0))


@healthy
def consumers_of_a_queue_of_which_the_references_are_unknown(w: World) -> None:
    w.tasks(300, "asyncio.Queue.get", f"{QUEUE_GET} worker.py:fetch:41", w.thing(size=0))


@healthy
def two_consumers_are_too_few(w: World) -> None:
    w.tasks(2, "asyncio.Queue.get", f"{QUEUE_GET} worker.py:fetch:41", w.thing(exclusive=True))


@healthy
def consumers_with_a_time_limit(w: World) -> None:
    rows = w.tasks(9, "asyncio.Queue.get", f"{QUEUE_GET} worker.py:poll:4", w.thing(exclusive=True))
    w.table("timeouts", *({"stack": r, "left": 2.5} for r in rows))


@leak("asyncio-queue-put-blocked", 7)
def producers_before_a_full_queue_that_only_they_have(w: World) -> None:
    queue = w.thing(exclusive=True, size=4, maxsize=4)
    w.tasks(7, "asyncio.Queue.put", f"{QUEUE_PUT} app.py:produce:9", queue)


@healthy
def producers_held_back_by_a_slow_consumer(w: World) -> None:
    queue = w.thing(exclusive=False, size=4, maxsize=4)
    w.tasks(200, "asyncio.Queue.put", f"{QUEUE_PUT} app.py:produce:9", queue)


@leak("asyncio-queue-join-unfinished", 1)
def one_task_in_join_and_workers_that_forgot_task_done(w: World) -> None:
    queue = w.thing(exclusive=True, size=0, maxsize=0, unfinished=12)
    w.tasks(1, "asyncio.Queue.join", f"{QUEUE_JOIN} app.py:main:9", queue)
    w.tasks(5, "asyncio.Queue.get", f"{QUEUE_GET} app.py:work:4", queue)


@healthy
def join_while_a_worker_works(w: World) -> None:
    queue = w.thing(exclusive=False, size=3, unfinished=12)
    w.tasks(5, "asyncio.Queue.join", f"{QUEUE_JOIN} app.py:main:9", queue)


@leak("asyncio-semaphore-never-released", 50)
def a_semaphore_that_only_its_waiters_have(w: World) -> None:
    semaphore = w.thing("asyncio.locks.Semaphore", exclusive=True, value=0)
    w.tasks(50, "asyncio.Semaphore.acquire", f"{SEMAPHORE} app.py:query:9", semaphore)


@leak("asyncio-semaphore-never-released", 50, "suspect")
def a_global_semaphore_whose_holders_are_gone(w: World) -> None:
    semaphore = w.thing("asyncio.locks.Semaphore", exclusive=False, value=0, other_frames=0)
    w.tasks(50, "asyncio.Semaphore.acquire", f"{SEMAPHORE} app.py:query:9", semaphore)


@healthy
def a_global_semaphore_with_holders_at_work_in_the_same_function(w: World) -> None:
    semaphore = w.thing("asyncio.locks.Semaphore", exclusive=False, value=0, other_frames=0)
    w.tasks(50, "asyncio.Semaphore.acquire", f"{SEMAPHORE} app.py:query:9", semaphore)
    w.tasks(2, "asyncio.sleep", f"{SLEEP} app.py:query:11")


@healthy
def a_semaphore_that_a_live_frame_holds(w: World) -> None:
    semaphore = w.thing("asyncio.locks.Semaphore", exclusive=False, value=0, other_frames=1)
    w.tasks(500, "asyncio.Semaphore.acquire", f"{SEMAPHORE} app.py:query:9", semaphore)


@leak("asyncio-lock-orphaned", 20)
def a_lock_that_only_its_waiters_have(w: World) -> None:
    lock = w.thing("asyncio.locks.Lock", exclusive=True, locked=True)
    w.tasks(20, "asyncio.Lock.acquire", f"{LOCK} app.py:update:9", lock)


@leak("asyncio-lock-orphaned", 20)
def a_free_lock_with_waiters_that_nobody_woke(w: World) -> None:
    lock = w.thing("asyncio.locks.Lock", exclusive=False, locked=False)
    w.tasks(20, "asyncio.Lock.acquire", f"{LOCK} app.py:update:9", lock)


@healthy
def a_free_lock_whose_next_owner_is_about_to_run(w: World) -> None:
    lock = w.thing("asyncio.locks.Lock", exclusive=False, locked=False)
    w.tasks(20, "asyncio.Lock.acquire", f"{LOCK} app.py:update:9", lock)
    w.tasks(1, "", f"{LOCK} app.py:update:9", state="ready")


@leak("asyncio-wait-never-satisfied", 60)
def events_of_their_own_that_nobody_can_set(w: World) -> None:
    events = [w.thing("asyncio.locks.Event", exclusive=True) for _ in range(60)]
    w.tasks(60, "asyncio.Event.wait", f"{EVENT} app.py:waits:9", events)


@healthy
def many_tasks_on_an_event_for_the_end(w: World) -> None:
    event = w.thing("asyncio.locks.Event", exclusive=False)
    w.tasks(5_000, "asyncio.Event.wait", f"{EVENT} app.py:waits:9", event)


@healthy
def main_awaits_an_event_for_ever(w: World) -> None:
    w.tasks(1, "asyncio.Event.wait", f"{EVENT} app.py:main:9", w.thing("asyncio.locks.Event", exclusive=True))


@leak("asyncio-children-never-finish", 20)
def parents_of_stuck_children(w: World) -> None:
    events = [w.thing("asyncio.locks.Event", exclusive=True) for _ in range(40)]
    children = w.tasks(40, "asyncio.Event.wait", f"{EVENT} app.py:child:9", events, holder=-1)
    gathers = [w.thing("asyncio.tasks._GatheringFuture", exclusive=False) for _ in range(20)]
    parents = w.tasks(20, "asyncio.gather", "app.py:parent:5", gathers)
    w.awaits = [(parents[i // 2], child) for i, child in enumerate(children)]


@healthy
def parents_with_one_child_that_moves(w: World) -> None:
    gathers = [w.thing("asyncio.tasks._GatheringFuture", exclusive=False) for _ in range(20)]
    parents = w.tasks(20, "asyncio.gather", "app.py:parent:5", gathers)
    sleeping = w.tasks(20, "asyncio.sleep", f"{SLEEP} app.py:child:3")
    stuck = w.tasks(1, "asyncio.Event.wait", f"{EVENT} app.py:child:9", w.thing(exclusive=True))
    w.awaits = [*zip(parents, sleeping, strict=True), *((p, stuck[0]) for p in parents)]


@leak("asyncio-task-dropped", 9)
def tasks_that_nobody_keeps(w: World) -> None:
    futures = [w.thing("_asyncio.Future", exclusive=True) for _ in range(9)]
    w.tasks(9, "asyncio.Future", "app.py:report:5", futures, holder=-1)


@leak("asyncio-cancel-ignored", 5)
def cancelled_tasks_that_are_stuck(w: World) -> None:
    event = w.thing("asyncio.locks.Event", exclusive=True)
    w.tasks(5, "asyncio.Event.wait", f"{EVENT} app.py:stubborn:9", event, state="cancelling")


@healthy
def cancelled_tasks_that_clean_up(w: World) -> None:
    w.tasks(5, "asyncio.sleep", f"{SLEEP} app.py:close:9", state="cancelling")


# -- asyncio: what piles up -------------------------------------------------------------------------------


@leak("asyncio-duplicated-loops", 6, "suspect")
def one_client_with_six_ping_loops(w: World) -> None:
    rows = w.tasks(6, "asyncio.sleep", f"{SLEEP} client.py:Client._ping:25", address=0x1000)
    w.table("tasks", *({"address": 0x1000 + 0x100 * i, "owner": 77} for i in range(len(rows))))


@healthy
def six_clients_with_a_ping_loop_each(w: World) -> None:
    rows = w.tasks(6, "asyncio.sleep", f"{SLEEP} client.py:Client._ping:25", address=0x1000)
    w.table("tasks", *({"address": 0x1000 + 0x100 * i, "owner": i} for i in range(len(rows))))


@leak("asyncio-finished-tasks-kept", 150, "suspect")
def finished_tasks_in_a_global(w: World) -> None:
    w.builder.snapshot.holders = ["app.tasks (set, 150 items)"]
    w.tasks(150, "", "", state="done", holder=0)


@healthy
def finished_tasks_of_a_batch_under_way(w: World) -> None:
    w.builder.snapshot.holders = ["local made of batch (list, 151 items)"]
    w.tasks(150, "", "", state="done", holder=0)


@healthy
def finished_tasks_that_somebody_awaits(w: World) -> None:
    w.builder.snapshot.holders = ["app.tasks (set, 150 items)"]
    done = w.tasks(150, "", "", state="done", holder=0)
    parent = w.tasks(1, "asyncio.gather", "app.py:main:3")
    w.awaits = [(parent[0], child) for child in done]


@leak("asyncio-shield-long-future", 200, "suspect")
def callbacks_of_requests_that_are_over(w: World) -> None:
    w.table(
        "futures", {"address": 1, "type": "_asyncio.Future", "callbacks": 201, "shields": 200, "waiters": 1}
    )


@healthy
def callbacks_of_requests_that_wait(w: World) -> None:
    w.table(
        "futures", {"address": 1, "type": "_asyncio.Future", "callbacks": 200, "shields": 200, "waiters": 200}
    )


@healthy
def callbacks_of_requests_with_a_time_limit(w: World) -> None:
    """Before 3.12 wait_for() awaits a future of its own."""
    w.table("futures", {"address": 1, "callbacks": 200, "shields": 200, "waiters": 0})
    w.tasks(200, "asyncio.wait_for", "asyncio/tasks.py:wait_for:479 app.py:request:9")


@leak("asyncgen-never-closed", 30)
def generators_that_nobody_iterates(w: World) -> None:
    things = [w.thing("async_generator", driven=False) for _ in range(30)]
    w.stacks("asyncgen", 30, "", "db.py:rows:9", things, state="suspended")


@healthy
def generators_in_the_body_of_their_loop(w: World) -> None:
    things = [w.thing("async_generator", driven=True) for _ in range(300)]
    w.stacks("asyncgen", 300, "", "db.py:rows:9", things, state="suspended")


def _timers(w: World, **more: Any) -> None:
    row = {
        "callback": "app.expire",
        "time_left": 3600.0,
        "context_private": True,
        "context_vars": 2,
        "cancelled": False,
    }
    w.table("timers", *({**row, **more} for _ in range(80)))


@leak("asyncio-timers-keep-context", 80, "suspect")
def timers_of_an_hour_with_the_request_in_their_context(w: World) -> None:
    _timers(w)


@healthy
def timers_with_an_empty_context(w: World) -> None:
    _timers(w, context_vars=0)


@healthy
def timers_that_are_due_soon(w: World) -> None:
    _timers(w, time_left=30.0)


@leak("contextvar-keeps-exception", 90, "suspect")
def exceptions_in_contexts(w: World) -> None:
    w.table(
        "context_values", {"variable": "last_error", "type": "ValueError", "exception": True, "count": 90}
    )


@healthy
def texts_in_contexts(w: World) -> None:
    w.table("context_values", {"variable": "last_error", "type": "str", "exception": False, "count": 90})


@leak("asyncio-transport-cycles", 120, "suspect")
def closed_transports(w: World) -> None:
    w.table(
        "transports", {"type": "_SelectorSocketTransport", "closed": True, "count": 120, "gc_enabled": False}
    )


@healthy
def closed_transports_that_the_next_collection_frees(w: World) -> None:
    w.table(
        "transports", {"type": "_SelectorSocketTransport", "closed": True, "count": 150, "gc_enabled": True}
    )
    w.table("transports", {"type": "_SelectorSocketTransport", "closed": True, "count": 150})


@healthy
def open_transports(w: World) -> None:
    w.table("transports", *({"type": "_SelectorSocketTransport", "closed": False} for _ in range(1_200)))


_MIDDLEWARE = "starlette/middleware/base.py:BaseHTTPMiddleware.__call__.<locals>.call_next.<locals>.coro:70"


@leak("starlette-middleware-holds-response", 4)
def middleware_tasks_of_clients_that_are_gone(w: World) -> None:
    w.tasks(4, "asyncio.Event.wait", f"{EVENT} {_MIDDLEWARE}", w.thing(exclusive=True), holder=-1)


@healthy
def requests_under_way_behind_the_middleware(w: World) -> None:
    w.tasks(400, "asyncio.Event.wait", f"{EVENT} {_MIDDLEWARE}", w.thing(exclusive=False))


# -- asyncio and the world outside ------------------------------------------------------------------------


def _executor(w: World, things: Any, wait: str = "threading.Event.wait", tasks: int = 9) -> None:
    w.threads(4, wait, f"{T_EVENT} app.py:job:3 {JOB}", things, names=[f"asyncio_{i}" for i in range(4)])
    futures = [w.thing("_asyncio.Future", exclusive=False) for _ in range(tasks)]
    w.tasks(tasks, "asyncio.to_thread", "asyncio/threads.py:to_thread:25 app.py:request:9", futures)


@leak("default-executor-exhausted", 9)
def all_threads_of_the_executor_are_stuck(w: World) -> None:
    _executor(w, w.thing("threading.Event", exclusive=True))


@leak("default-executor-exhausted", 9, "suspect")
def all_threads_of_the_executor_wait_for_a_peer(w: World) -> None:
    _executor(w, None, wait="socket.recv")


@healthy
def threads_of_the_executor_wait_for_what_somebody_will_set(w: World) -> None:
    _executor(w, w.thing("threading.Event", exclusive=False))


@healthy
def threads_of_the_executor_sleep_between_tries(w: World) -> None:
    _executor(w, None, wait="time.sleep", tasks=90)


@healthy
def a_thread_of_the_executor_is_free(w: World) -> None:
    w.threads(1, "queue.SimpleQueue.get", WORKER, w.thing(exclusive=False), names=["asyncio_4"])
    _executor(w, w.thing("threading.Event", exclusive=False))


@leak("event-loop-blocked", 1)
def a_coroutine_sleeps_the_thread(w: World) -> None:
    timer = w.thing("timer", time_left=3600.0)
    w.threads(1, "time.sleep", f"app.py:handler:9 {HANDLE}", timer, main=True)


@leak("event-loop-blocked", 1)
def a_computation_makes_the_timers_late(w: World) -> None:
    (_thread,) = w.threads(1, "", f"app.py:compute:9 {HANDLE}", main=True, state="running")
    timers = [w.thing("asyncio.events.TimerHandle", time_left=-4.5) for _ in range(5)]
    w.tasks(5, "asyncio.sleep", f"{SLEEP} app.py:tick:3", timers, thread=100)


@leak("event-loop-blocked", 1, "suspect")
def a_callback_reads_from_a_socket(w: World) -> None:
    w.threads(1, "socket.recv", f"app.py:handler:9 {HANDLE}", main=True)


@healthy
def a_loop_that_waits_in_its_selector(w: World) -> None:
    w.threads(1, "epoll", f"selectors.py:EpollSelector.select:468 {LOOP}", main=True)


@healthy
def a_loop_at_work(w: World) -> None:
    w.threads(1, "", f"app.py:handler:9 {HANDLE}", main=True, state="running")
    timers = [w.thing("asyncio.events.TimerHandle", time_left=0.2) for _ in range(5)]
    w.tasks(5, "asyncio.sleep", f"{SLEEP} app.py:tick:3", timers, thread=100)


@healthy
def a_loop_that_waits_for_the_lock_of_a_logger(w: World) -> None:
    lock = w.thing("_thread.RLock", exclusive=False, locked=True)
    w.threads(
        1, "threading.RLock.acquire", f"logging/__init__.py:Handler.acquire:9 {HANDLE}", lock, main=True
    )


@healthy
def a_thread_beside_the_loop_sleeps(w: World) -> None:
    w.threads(40, "time.sleep", f"app.py:refresh:9 {THREAD}", w.thing("timer", time_left=60.0))


@leak("subprocess-wait-never-returns", 6)
def waits_for_children_that_are_zombies(w: World) -> None:
    children = [w.thing("asyncio.subprocess.Process", child="zombie", pid=7) for _ in range(6)]
    w.tasks(6, "asyncio.Process.wait", "asyncio/subprocess.py:Process.wait:137 app.py:run:3", children)


@leak("subprocess-wait-never-returns", 6, "suspect")
def communicates_with_children_that_have_ended(w: World) -> None:
    children = [w.thing("asyncio.subprocess.Process", returncode=0, pid=7) for _ in range(6)]
    text = "asyncio/subprocess.py:Process.communicate:201 app.py:run:3"
    w.tasks(6, "asyncio.Process.communicate", text, children)


_PROCESS_WAIT = "asyncio/subprocess.py:Process.wait:137 app.py:run:3"


@healthy
def children_that_came_and_went_around_the_snapshot(w: World) -> None:
    children = [w.thing("asyncio.subprocess.Process", child="gone", pid=7) for _ in range(6)]
    w.tasks(6, "asyncio.Process.wait", _PROCESS_WAIT, children)


@healthy
def zombies_that_a_busy_loop_has_not_come_to(w: World) -> None:
    children = [w.thing("asyncio.subprocess.Process", child="zombie", pid=7) for _ in range(6)]
    w.tasks(6, "asyncio.Process.wait", _PROCESS_WAIT, children)
    w.threads(1, "", f"app.py:compute:9 {HANDLE}", main=True, state="running")


@healthy
def outputs_that_a_busy_loop_has_not_come_to(w: World) -> None:
    children = [w.thing("asyncio.subprocess.Process", returncode=0, pid=7) for _ in range(6)]
    w.tasks(6, "asyncio.Process.wait", _PROCESS_WAIT, children)
    w.threads(1, "", f"app.py:compute:9 {HANDLE}", main=True, state="running")


@leak("subprocess-wait-never-returns", 1, "suspect")
def waits_for_one_zombie(w: World) -> None:
    child = w.thing("asyncio.subprocess.Process", child="zombie", pid=7)
    w.tasks(1, "asyncio.Process.wait", _PROCESS_WAIT, child)


@healthy
def output_goes_on_after_the_child_was_reaped(w: World) -> None:
    child = w.thing("asyncio.subprocess.Process", child="gone", returncode=0, pid=7)
    w.tasks(
        1, "asyncio.Process.communicate", "asyncio/subprocess.py:Process.communicate:201 app.py:run:3", child
    )


@healthy
def waits_for_children_that_run(w: World) -> None:
    children = [w.thing("asyncio.subprocess.Process", child="running", pid=7) for _ in range(60)]
    w.tasks(60, "asyncio.Process.wait", "asyncio/subprocess.py:Process.wait:137 app.py:run:3", children)


_READ = (
    "asyncio/streams.py:StreamReader._wait_for_data:533 asyncio/streams.py:StreamReader.readline:568 "
    "app.py:fetch:9"
)


@leak("peer-never-answers", 80, "suspect")
def client_connections_without_time_limit(w: World) -> None:
    readers = [w.thing("asyncio.streams.StreamReader", server=False, buffered=0) for _ in range(80)]
    w.tasks(80, "asyncio.StreamReader.readline", _READ, readers)


@healthy
def idle_connections_of_a_server(w: World) -> None:
    readers = [w.thing("asyncio.streams.StreamReader", server=True, buffered=0) for _ in range(8_000)]
    w.tasks(8_000, "asyncio.StreamReader.readline", _READ, readers)


@healthy
def client_connections_with_time_limits(w: World) -> None:
    readers = [w.thing("asyncio.streams.StreamReader", server=False, buffered=0) for _ in range(80)]
    rows = w.tasks(80, "asyncio.StreamReader.readline", _READ, readers)
    w.table("timeouts", *({"stack": r, "left": 9.0} for r in rows))


@leak("loop-waits-for-itself", 1)
def a_callback_waits_for_a_coroutine_of_its_own_loop(w: World) -> None:
    future = w.thing("concurrent.futures._base.Future", exclusive=False)
    w.threads(1, "concurrent.futures.Future.result", f"{RESULT} app.py:handler:9 {HANDLE}", future, main=True)


@leak("executor-waits-for-itself", 2)
def all_workers_wait_for_jobs_of_their_executor(w: World) -> None:
    names = ["jobs_0", "jobs_1"]
    futures = [w.thing("concurrent.futures._base.Future", exclusive=False, callbacks=0) for _ in range(2)]
    rows = w.threads(
        2, "concurrent.futures.Future.result", f"{RESULT} app.py:outer:9 {JOB}", futures, names=names
    )
    tids = [int(w.builder._columns["address"][-1][i]) for i in range(len(rows))]
    w.table("executors", {"prefix": "jobs", "threads": tids, "queued": 2, "max_workers": 2})


@healthy
def workers_wait_for_coroutines_of_a_loop(w: World) -> None:
    """run_coroutine_threadsafe(...).result() in jobs, as it should be."""
    futures = [w.thing("concurrent.futures._base.Future", exclusive=False, callbacks=1) for _ in range(2)]
    text = f"{RESULT} app.py:outer:9 {JOB}"
    w.threads(2, "concurrent.futures.Future.result", text, futures, names=["a_0", "a_1"])
    w.threads(1, "epoll", f"selectors.py:EpollSelector.select:468 {LOOP}", main=True)
    w.table("executors", {"prefix": "a", "threads": [0], "queued": 5})


@leak("loop-waits-for-itself", 1, "suspect")
def a_callback_waits_for_what_another_thread_may_complete(w: World) -> None:
    future = w.thing("concurrent.futures._base.Future", exclusive=False)
    text = f"{RESULT} app.py:handler:9 {HANDLE}"
    w.threads(1, "concurrent.futures.Future.result", text, future, main=True)
    w.threads(1, "socket.recv", f"driver.py:read:9 {THREAD}")


@healthy
def workers_wait_for_another_executor_that_works(w: World) -> None:
    futures = [w.thing("concurrent.futures._base.Future", exclusive=False) for _ in range(2)]
    w.threads(
        2, "concurrent.futures.Future.result", f"{RESULT} app.py:outer:9 {JOB}", futures, names=["a_0", "a_1"]
    )
    w.threads(2, "socket.recv", f"app.py:inner:9 {JOB}", names=["b_0", "b_1"])


@leak("executor-thread-outlives-task", 3)
def threads_of_tasks_that_were_cancelled(w: World) -> None:
    queue = w.thing("queue.Queue", exclusive=True)
    names = ["asyncio_0", "asyncio_1", "asyncio_2"]
    w.threads(3, "queue.Queue.get", f"{T_QUEUE_GET} app.py:take:9 {JOB}", queue, names=names)


@healthy
def threads_that_work_for_a_task(w: World) -> None:
    queue = w.thing("queue.Queue", exclusive=False)
    names = ["asyncio_0", "asyncio_1", "asyncio_2"]
    w.threads(3, "queue.Queue.get", f"{T_QUEUE_GET} app.py:take:9 {JOB}", queue, names=names)
    w.tasks(3, "asyncio.to_thread", "asyncio/threads.py:to_thread:25 app.py:request:9")


# -- threads ----------------------------------------------------------------------------------------------


@leak("thread-queue-get-starved", 20)
def threads_on_a_queue_that_only_they_have(w: World) -> None:
    w.threads(
        20, "queue.Queue.get", f"{T_QUEUE_GET} app.py:work:9 {THREAD}", w.thing("queue.Queue", exclusive=True)
    )


@healthy
def a_pool_of_threads(w: World) -> None:
    w.threads(
        200,
        "queue.Queue.get",
        f"{T_QUEUE_GET} app.py:work:9 {THREAD}",
        w.thing("queue.Queue", exclusive=False),
    )


@leak("thread-queue-put-blocked", 4)
def producer_threads_before_a_queue_that_only_they_have(w: World) -> None:
    queue = w.thing("queue.Queue", exclusive=True, size=1, maxsize=1)
    w.threads(4, "queue.Queue.put", f"{T_CONDITION} queue.py:Queue.put:140 app.py:work:9 {THREAD}", queue)


@leak("logging-listener-duplicated", 8)
def one_listener_started_eight_times(w: World) -> None:
    queue = w.thing("queue.Queue", exclusive=False)
    w.threads(8, "queue.Queue.get", f"{T_QUEUE_GET} {MONITOR} {THREAD}", queue)


@leak("logging-listener-duplicated", 8)
def listeners_whose_handlers_are_gone(w: World) -> None:
    queues = [w.thing("queue.Queue", exclusive=True) for _ in range(8)]
    w.threads(8, "queue.Queue.get", f"{T_QUEUE_GET} {MONITOR} {THREAD}", queues)


@healthy
def listeners_of_several_loggers(w: World) -> None:
    queues = [w.thing("queue.Queue", exclusive=False) for _ in range(20)]
    w.threads(20, "queue.Queue.get", f"{T_QUEUE_GET} {MONITOR} {THREAD}", queues)


@leak("sdk-thread-not-stopped", 6)
def flush_threads_of_clients_that_are_gone(w: World) -> None:
    events = [w.thing("threading.Event", exclusive=False, abandoned=True) for _ in range(6)]
    w.threads(6, "threading.Event.wait", f"{T_EVENT} sdk.py:Client._flush_loop:9 {THREAD}", events)


@healthy
def flush_threads_of_clients_in_use(w: World) -> None:
    events = [w.thing("threading.Event", exclusive=False) for _ in range(40)]
    w.threads(40, "threading.Event.wait", f"{T_EVENT} sdk.py:Client._flush_loop:9 {THREAD}", events)


@healthy
def three_threads_that_park(w: World) -> None:
    events = [w.thing("threading.Event", exclusive=True) for _ in range(3)]
    w.threads(3, "threading.Event.wait", f"{T_EVENT} {THREAD}", events)


@leak("timer-not-cancelled", 9)
def timers_that_nobody_can_cancel(w: World) -> None:
    events = [w.thing("threading.Event", exclusive=False, abandoned=True) for _ in range(9)]
    w.threads(9, "threading.Event.wait", f"{TIMER} {THREAD}", events)


@healthy
def timers_that_their_connections_keep(w: World) -> None:
    events = [w.thing("threading.Event", exclusive=False, timeout=3000.0) for _ in range(90)]
    w.threads(90, "threading.Event.wait", f"{TIMER} {THREAD}", events)


@leak("executor-never-shut-down", 24)
def an_executor_for_every_call(w: World) -> None:
    for i in range(12):
        names = [f"ThreadPoolExecutor-{i}_{j}" for j in range(2)]
        w.threads(
            2, "queue.SimpleQueue.get", WORKER, w.thing("_queue.SimpleQueue", exclusive=False), names=names
        )


@leak("executor-never-shut-down", 24)
def an_executor_for_every_call_all_of_one_name(w: World) -> None:
    for _ in range(12):
        names = ["resize_0", "resize_1"]
        w.threads(
            2, "queue.SimpleQueue.get", WORKER, w.thing("_queue.SimpleQueue", exclusive=False), names=names
        )


@healthy
def one_large_executor(w: World) -> None:
    names = [f"ThreadPoolExecutor-0_{j}" for j in range(64)]
    w.threads(
        64, "queue.SimpleQueue.get", WORKER, w.thing("_queue.SimpleQueue", exclusive=False), names=names
    )


@leak("threads-never-joined", 400, "suspect")
def thread_objects_of_ended_threads(w: World) -> None:
    w.table("threading", {"alive": 3, "finished": 400, "shutdown_locks": 0})


@healthy
def thread_objects_of_living_threads(w: World) -> None:
    w.table("threading", {"alive": 400, "finished": 120})


_SHUTDOWN = "threading.py:_shutdown:1624"


@leak("exit-blocked-by-threads", 2)
def the_main_thread_joins_threads_that_never_end(w: World) -> None:
    w.threads(1, "threading._shutdown", _SHUTDOWN, main=True, daemon=False)
    queue = w.thing("queue.Queue", exclusive=False)
    w.threads(2, "queue.Queue.get", f"{T_QUEUE_GET} app.py:work:9 {THREAD}", queue, daemon=False)


@healthy
def the_main_thread_joins_a_server(w: World) -> None:
    w.threads(1, "threading._shutdown", _SHUTDOWN, main=True, daemon=False)
    queue = w.thing("queue.Queue", exclusive=False)
    w.threads(2, "queue.Queue.get", f"{T_QUEUE_GET} app.py:work:9 {THREAD}", queue, daemon=False)
    w.threads(1, "epoll", f"selectors.py:EpollSelector.select:468 {LOOP} {THREAD}", daemon=False)


@healthy
def the_main_thread_is_not_at_its_end(w: World) -> None:
    w.threads(1, "signal.pause", "app.py:main:9", main=True, daemon=False)
    queue = w.thing("queue.Queue", exclusive=False)
    w.threads(2, "queue.Queue.get", f"{T_QUEUE_GET} app.py:work:9 {THREAD}", queue, daemon=False)


@leak("lock-order-deadlock", 2)
def two_threads_with_each_others_locks(w: World) -> None:
    one = w.thing("_thread.RLock", exclusive=False, owner=0x5100, owner_alive=True)
    two = w.thing("_thread.RLock", exclusive=False, owner=0x5000, owner_alive=True)
    w.threads(1, "threading.RLock.acquire", f"app.py:first:9 {THREAD}", one, address=0x5000)
    w.threads(1, "threading.RLock.acquire", f"app.py:second:9 {THREAD}", two, address=0x5100)
    w.threads(1, "threading.RLock.acquire", f"app.py:first:9 {THREAD}", one, address=0x5200)  # waits only


@healthy
def threads_that_wait_for_an_owner_at_work(w: World) -> None:
    lock = w.thing("_thread.RLock", exclusive=False, owner=0x5000, owner_alive=True)
    w.threads(1, "time.sleep", f"app.py:first:9 {THREAD}", address=0x5000)
    w.threads(9, "threading.RLock.acquire", f"app.py:second:9 {THREAD}", lock, address=0x6000)


@leak("lock-owner-gone", 2)
def a_lock_of_a_thread_that_has_ended(w: World) -> None:
    lock = w.thing("_thread.RLock", exclusive=False, owner=5, owner_alive=False)
    w.threads(2, "threading.RLock.acquire", f"app.py:second:9 {THREAD}", lock)


# -- pools of connections ---------------------------------------------------------------------------------

_POOL = (
    "httpcore/_async/connection_pool.py:AsyncPoolRequest.wait_for_connection:35 "
    "httpcore/_async/connection_pool.py:AsyncConnectionPool.handle_async_request:228 app.py:call:3"
)
_GET_CONN = (
    f"{T_QUEUE_GET} urllib3/connectionpool.py:HTTPConnectionPool._get_conn:1 "
    f"urllib3/connectionpool.py:HTTPConnectionPool.urlopen:2 app.py:call:3 {THREAD}"
)
_SQL = (
    f"{T_CONDITION} sqlalchemy/util/queue.py:Queue.get:1 sqlalchemy/pool/impl.py:QueuePool._do_get:2 "
    "app.py:q:3"
)


@leak("aiohttp-session-per-request", 60, "suspect")
def sixty_sessions(w: World) -> None:
    w.table("object_counts", {"type": "aiohttp.client.ClientSession", "count": 60})


@healthy
def a_few_sessions(w: World) -> None:
    w.table(
        "object_counts",
        {"type": "aiohttp.client.ClientSession", "count": 4},
        {"type": "dict", "count": 90_000},
    )


@leak("http-client-per-call", 90, "suspect")
def ninety_tls_contexts(w: World) -> None:
    w.table("object_counts", {"type": "ssl.SSLContext", "count": 90})


_ACQUIRE = "asyncpg/pool.py:Pool._acquire.<locals>._acquire_impl:996 asyncpg/pool.py:Pool._acquire:1014"


@leak("async-pool-exhausted", 12, "suspect")
def tasks_that_wait_for_a_connection_that_nobody_uses(w: World) -> None:
    queue = w.thing("asyncio.queues.LifoQueue", exclusive=False, size=0, getters=12)
    w.tasks(12, "asyncio.Queue.get", f"{QUEUE_GET} {_ACQUIRE} app.py:load:3", queue)


@healthy
def tasks_that_wait_for_a_connection_while_others_use_theirs(w: World) -> None:
    queue = w.thing("asyncio.queues.LifoQueue", exclusive=False, size=0, getters=12)
    w.tasks(12, "asyncio.Queue.get", f"{QUEUE_GET} {_ACQUIRE} app.py:load:3", queue)
    w.tasks(4, "asyncio.Future", "asyncpg/connection.py:Connection.execute:354 app.py:load:4")


@healthy
def a_few_tasks_that_wait_for_a_connection(w: World) -> None:
    queue = w.thing("asyncio.queues.LifoQueue", exclusive=False, size=0, getters=4)
    w.tasks(4, "asyncio.Queue.get", f"{QUEUE_GET} {_ACQUIRE} app.py:load:3", queue)


@leak("httpcore-pool-slot-orphaned", 8, "suspect")
def requests_before_a_pool_where_nothing_goes_on(w: World) -> None:
    w.tasks(8, "asyncio.Event.wait", f"{EVENT} {_POOL}", w.thing("asyncio.locks.Event", exclusive=False))


@healthy
def requests_before_a_busy_pool(w: World) -> None:
    w.tasks(80, "asyncio.Event.wait", f"{EVENT} {_POOL}", w.thing("asyncio.locks.Event", exclusive=False))
    w.tasks(
        3, "asyncio.StreamReader.read", "httpcore/_async/http11.py:AsyncHTTP11Connection._receive_event:9"
    )


@leak("urllib3-pool-exhausted", 8, "suspect")
def threads_before_a_pool_that_nobody_uses(w: World) -> None:
    w.threads(8, "queue.Queue.get", _GET_CONN, w.thing("queue.LifoQueue", exclusive=False, size=0))


@healthy
def threads_before_a_pool_in_use(w: World) -> None:
    w.threads(8, "queue.Queue.get", _GET_CONN, w.thing("queue.LifoQueue", exclusive=False, size=0))
    w.threads(1, "socket.recv", f"urllib3/connectionpool.py:HTTPConnectionPool._make_request:9 {THREAD}")


@healthy
def threads_before_a_pool_that_just_got_a_connection_back(w: World) -> None:
    w.threads(8, "queue.Queue.get", _GET_CONN, w.thing("queue.LifoQueue", exclusive=False, size=1))


@leak("sqlalchemy-pool-exhausted", 8, "suspect")
def threads_before_a_database_pool_that_nobody_uses(w: World) -> None:
    w.threads(
        8, "threading.Condition.wait", f"{_SQL} {THREAD}", w.thing("threading.Condition", exclusive=False)
    )


@healthy
def threads_before_a_database_pool_at_work(w: World) -> None:
    w.threads(
        8, "threading.Condition.wait", f"{_SQL} {THREAD}", w.thing("threading.Condition", exclusive=False)
    )
    w.threads(1, "socket.recv", f"sqlalchemy/engine/default.py:DefaultDialect.do_execute:9 {THREAD}")


# -- the tests --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "template", "verdict", "count", "build"), LEAKS, ids=[leak[0] for leak in LEAKS]
)
def test_a_leak_is_found(name: str, template: str, verdict: str, count: int, build: Build) -> None:
    found = findings(build)
    assert (template, verdict, count) in [(f.template, f.verdict, f.count) for f in found]


@pytest.mark.parametrize(("name", "build"), HEALTHY, ids=[h[0] for h in HEALTHY])
def test_its_healthy_twin_is_not(name: str, build: Build) -> None:
    found = findings(build)
    likely = [f.template for f in found if f.verdict != "suspect"]
    assert likely == []
    if name != "parents_with_one_child_that_moves":
        assert [f.template for f in found] == []


def test_what_was_not_found_in_a_core_cut_off_is_no_evidence() -> None:
    """Nobody keeps the tasks: so it seems, but part of the memory is missing."""
    w = World()
    tasks_that_nobody_keeps(w)
    w.builder.snapshot.target.details["missing"] = 4096
    assert [f.template for f in find_leaks([w.build()]).findings] == ["asyncio-wait-never-satisfied"]


def test_every_leak_template_has_a_leak_here() -> None:
    """Those of the heap (D, E), of processes, files and signals (F, G, H), of Go (GO), and those that count
    the clients of libraries have test modules of their own."""
    counted = ("B05", "B07", "B1", "D", "E", "F", "G", "H")
    ours = {t.id for t in builtin() if not t.idle and not t.catalogue.startswith(counted)}
    missing = ours - {template for _, template, *_ in LEAKS}
    assert missing <= {"thread-wait-never-satisfied"}
