"""`diagtool.guard` and the middlewares: what outlives its block or request is told, and nothing else."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import diagtool
from diagtool.probes import asgi, wsgi
from diagtool.probes.guard import LeakError, LeakWarning, guard
from diagtool.probes.outlived import Leak

HERE = Path(__file__).name


@contextmanager
def thread_that_waits() -> Iterator[Callable[[], threading.Thread]]:
    """Starts threads that end when the test does."""
    end = threading.Event()
    started = []

    def start() -> threading.Thread:
        started.append(threading.Thread(target=end.wait, daemon=True))
        started[-1].start()
        return started[-1]

    yield start
    end.set()
    for thread in started:
        thread.join()


# -- blocks -----------------------------------------------------------------------------------------------


def test_a_block_that_leaves_nothing_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with diagtool.guard() as block, ThreadPoolExecutor(2) as pool:
            assert pool.submit(int).result() == 0
            thread = threading.Thread(target=int)
            thread.start()
    assert block.leaks == []


def test_a_thread_that_outlives_a_block_is_told_with_its_line() -> None:
    with thread_that_waits() as start, pytest.warns(LeakWarning, match="1 thread outlived the block") as told:
        with guard(grace=0.01):
            start()
        assert told[0].filename == __file__
        assert HERE in str(told[0].message)


def test_a_thread_that_is_about_to_end_is_no_leak() -> None:
    go = threading.Event()
    with guard(on_leak="raise", grace=60):
        threading.Thread(target=go.wait, daemon=True).start()
        threading.Thread(target=lambda: (go.wait(), None), daemon=True).start()
        go.set()


def test_files_and_sockets_that_outlive_a_block_are_told(tmp_path: Path) -> None:
    with pytest.raises(LeakError) as told, guard(on_leak="raise", grace=0):
        descriptor = os.open(tmp_path / "kept", os.O_CREAT | os.O_RDWR)
        kept = socket.socket()
        closed = socket.socket()
        closed.close()
        (tmp_path / "other").write_text("x")
    os.close(descriptor)
    kept.close()
    names = [leak.left.name for leak in told.value.leaks]
    assert len(names) == 2
    assert any("kept" in name for name in names)
    assert any(name.startswith("socket") for name in names)


def test_what_the_block_raises_goes_before_what_it_leaks() -> None:
    with thread_that_waits() as start, pytest.raises(KeyError), guard(on_leak="raise", grace=0):
        start()
        raise KeyError


def test_what_is_meant_is_ignored_by_name_or_place() -> None:
    for pattern in ("*wait*", f"*{HERE}:*start*"):
        with thread_that_waits() as start, guard(on_leak="raise", grace=0, ignore=["thread*", pattern]):
            start()


def test_only_the_kinds_asked_for_are_told() -> None:
    with thread_that_waits() as start, guard(kinds=["tasks"], on_leak="raise", grace=0):
        start()
    with pytest.raises(ValueError, match="kinds are"):
        guard(kinds=["goroutines"])
    with pytest.raises(ValueError, match="on_leak is"):
        guard(on_leak="shout")  # type: ignore[arg-type]


def test_a_function_is_guarded_at_each_call() -> None:
    told: list[Leak] = []
    with thread_that_waits() as start:

        @guard(on_leak=told.append, grace=0)
        def leaks(number: int) -> int:
            """It does."""
            start()
            return number

        assert [leaks(n) for n in range(3)] == [0, 1, 2]
        assert leaks.__doc__ == "It does."
    assert [leak.kind for leak in told] == ["threads"] * 3


def test_tasks_and_async_generators_of_a_coroutine_are_told() -> None:
    async def never() -> None:
        await asyncio.get_running_loop().create_future()

    async def numbers() -> Any:
        yield 1
        yield 2

    async def main() -> list[Leak]:
        kept: list[object] = []
        told: list[Leak] = []

        @guard(on_leak=told.append, grace=0.01)
        async def leaks() -> None:
            kept.append(asyncio.create_task(never()))
            kept.append(asyncio.create_task(asyncio.sleep(0)))
            generator = numbers()
            kept.append(generator)
            assert await anext(generator) == 1

        await leaks()
        return told

    told = asyncio.run(main())
    assert sorted(leak.kind for leak in told) == ["asyncgens", "tasks"]
    assert any("never" in leak.left.name and leak.left.waiting for leak in told)


def test_a_plain_with_in_a_coroutine_tells_its_tasks_when_the_loop_had_time() -> None:
    async def main() -> list[str]:
        told = asyncio.Event()
        names: list[str] = []

        def tell(leak: Leak) -> None:
            names.append(leak.left.name)
            told.set()

        with guard(on_leak=tell, grace=0.01):
            kept = asyncio.create_task(asyncio.Event().wait(), name="left")
            ends = asyncio.create_task(asyncio.sleep(0), name="ends")
        assert names == []
        await told.wait()
        await ends
        kept.cancel()
        return names

    (name,) = asyncio.run(main())
    assert "left" in name


def test_a_coroutine_that_waits_for_its_tasks_is_healthy() -> None:
    async def main() -> None:
        async with guard(on_leak="raise", grace=60):
            task = asyncio.create_task(asyncio.sleep(0))
            other = asyncio.create_task(asyncio.Event().wait())
            await task
            other.cancel()  # it ends in the next turn of the loop

    asyncio.run(main())


def test_the_task_factory_of_the_program_stays_in_use() -> None:
    made: list[object] = []

    def factory(loop: Any, coro: Any, **kwargs: Any) -> Any:
        made.append(coro)
        return asyncio.Task(coro, loop=loop, **kwargs)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        async with guard(on_leak="raise"):
            await asyncio.create_task(asyncio.sleep(0), name="named")

    asyncio.run(main())
    assert [coro.__qualname__ for coro in made].count("sleep") == 1  # type: ignore[attr-defined]


def test_thread_start_is_given_back_also_when_others_replace_it() -> None:
    original = threading.Thread.start
    first, second = guard(grace=0), guard(grace=0)
    with first:
        replaced = threading.Thread.start
        assert replaced is not original

        def theirs(self: threading.Thread) -> None:
            replaced(self)

        threading.Thread.start = theirs  # type: ignore[method-assign]
    try:
        assert threading.Thread.start is theirs
        with second:
            thread = threading.Thread(target=int)
            thread.start()
            thread.join()
        assert threading.Thread.start is theirs
    finally:
        threading.Thread.start = original  # type: ignore[method-assign]


# -- requests ---------------------------------------------------------------------------------------------


async def get(app: Any, path: str = "/", **more: Any) -> None:
    await app({"type": "http", "method": "GET", "path": path, **more}, None, None)


def served(app: Callable[..., Awaitable[None]], requests: int = 6, **options: Any) -> tuple[list[Leak], Any]:
    """What is told of an application that serves so many requests at once."""
    told: list[Leak] = []

    async def main() -> Any:
        middleware = asgi.LeakMiddleware(app, grace=0, on_leak=told.append, **options)
        await asyncio.gather(*(get(middleware, f"/{n}") for n in range(requests)))
        for _ in range(5):
            await asyncio.sleep(0)
        middleware.look()
        middleware.close()
        assert middleware.requests == requests
        return middleware

    return told, asyncio.run(main())


def test_tasks_that_outlive_their_requests_are_told_once_a_place() -> None:
    kept = []

    async def never() -> None:
        await asyncio.Event().wait()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        kept.append(asyncio.create_task(never()))
        await asyncio.sleep(0)

    told, middleware = served(app)
    assert [(leak.kind, leak.count) for leak in told] == [("tasks", 6)]
    assert "never" in told[0].left.name
    assert told[0].where.startswith("GET /")
    assert [leak.count for leak in middleware.leaks] == [6]
    assert middleware.leaks[0].alive == 0  # its loop has ended them


def test_requests_that_overlap_are_kept_apart() -> None:
    """A request that is slow to end its task is not blamed on one that ends meanwhile."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        task = asyncio.create_task(asyncio.sleep(0))
        await asyncio.sleep(0)
        if scope["path"] in ("/1", "/3"):
            for _ in range(20):
                await asyncio.sleep(0)
        await task

    assert served(app)[0] == []


def test_what_is_started_once_for_all_is_no_leak() -> None:
    pool = ThreadPoolExecutor(8)
    shared: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        loop = asyncio.get_running_loop()
        if not shared:
            shared.append(asyncio.create_task(asyncio.Event().wait()))
        await loop.run_in_executor(pool, int)
        await asyncio.to_thread(int)

    with pool:
        assert served(app, requests=8)[0] == []


def test_an_executor_for_each_request_is_a_leak() -> None:
    pools = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        pools.append(ThreadPoolExecutor(1))
        await asyncio.get_running_loop().run_in_executor(pools[-1], int)

    told, _ = served(app)
    for pool in pools:
        pool.shutdown()
    assert [leak.kind for leak in told] == ["threads"]


def test_sockets_of_a_pool_are_no_leak_and_more_than_it_needs_are() -> None:
    kept: list[socket.socket] = []

    async def pooled(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)
        if len(kept) < 8:
            kept.append(socket.socket())

    async def leaking(scope: Any, receive: Any, send: Any) -> None:
        kept.append(socket.socket())

    try:
        assert served(pooled, 8, least={"fds": 4})[0] == []
        told: list[Leak] = []

        async def main() -> None:
            middleware = asgi.LeakMiddleware(leaking, grace=0, on_leak=told.append, least={"fds": 10})
            for _ in range(20):
                await get(middleware)
            middleware.close()

        asyncio.run(main())
        assert [leak.kind for leak in told] == ["fds"]
    finally:
        for one in kept:
            one.close()


def test_no_request_is_kept_alive() -> None:
    class Request:
        pass

    kept, requests = [], []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        kept.append(asyncio.create_task(asyncio.Event().wait()))

    async def main() -> int:
        middleware = asgi.LeakMiddleware(app, grace=1000)
        for _ in range(3):
            request = Request()
            requests.append(weakref.ref(request))
            await get(middleware, request=request)
            del request
        gc.collect()
        middleware.close()
        return sum(ref() is not None for ref in requests)

    assert asyncio.run(main()) == 0


def test_what_is_no_request_and_what_comes_after_close_is_passed_on() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def main() -> None:
        original = threading.Thread.start
        middleware = asgi.LeakMiddleware(app)
        await middleware({"type": "lifespan"}, None, None)
        await get(middleware)
        middleware.close()
        assert asyncio.get_running_loop().get_task_factory() is None
        await get(middleware)
        assert middleware.requests == 1
        assert threading.Thread.start is original

    asyncio.run(main())
    assert seen == ["lifespan", "http", "http"]


def test_threads_that_outlive_wsgi_requests_are_told() -> None:
    told: list[Leak] = []
    closed = []

    class Body(list):  # type: ignore[type-arg]
        def close(self) -> None:
            closed.append(1)

    with thread_that_waits() as start:

        def app(environ: Any, start_response: Any) -> Any:
            if environ["PATH_INFO"] == "/leak":
                start()
            thread = threading.Thread(target=int)
            thread.start()
            thread.join()
            return Body([b"x"]) if environ["PATH_INFO"] == "/leak" else [b"y"]

        middleware = wsgi.LeakMiddleware(app, grace=0, on_leak=told.append)
        for path in ["/leak", "/"] * 4:
            body = middleware({"REQUEST_METHOD": "GET", "PATH_INFO": path}, None)
            assert b"".join(body) in (b"x", b"y")
            if hasattr(body, "close"):
                body.close()
        middleware.close()
        assert [(leak.kind, leak.alive, leak.where) for leak in told] == [("threads", 4, "GET /leak")]
    assert len(closed) == 4


def test_it_imports_neither_numpy_nor_asyncio() -> None:
    code = (
        "import sys, diagtool.probes.wsgi, diagtool.probes.asgi; print({'numpy', 'asyncio'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
