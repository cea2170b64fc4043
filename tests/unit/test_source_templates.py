"""Our templates that the source may raise: with the leaking source a suspect is likely, with its twin not."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_stacks import EVENT, LOCK, SEMAPHORE, SLEEP, THREAD, World

from diagtool.leaks import find_leaks
from diagtool.leaks.model import Finding
from diagtool.leaks.source.files import Sources
from diagtool.leaks.template import builtin

Build = Callable[[World], Any]


def waiting(name: str, frames: str, kind: str, **state: Any) -> Build:
    def build(w: World) -> None:
        w.tasks(20, name, f"{frames} app.py:Client.fetch:4", w.thing(kind, **state))

    return build


def pings(w: World) -> None:
    rows = w.tasks(6, "asyncio.sleep", f"{SLEEP} app.py:Client.pings:8", address=0x1000)
    w.table("tasks", *({"address": 0x1000 + 0x100 * i, "owner": 77} for i in range(len(rows))))


def cancelled(w: World) -> None:
    event = w.thing("asyncio.Event", exclusive=False)
    w.tasks(12, "asyncio.Event.wait", f"{EVENT} app.py:poll:4", event, state="cancelling")


def timers(w: World) -> None:
    row = {"callback": "app.handle.<locals>.<lambda>", "time_left": 3600.0, "context_private": True}
    w.table("timers", *({**row, "context_vars": 2, "cancelled": False} for _ in range(80)))
    w.tasks(1, "asyncio.sleep", f"{SLEEP} app.py:main:1")


def counted(kind: str) -> Build:
    return lambda w: w.table("object_counts", {"type": kind, "count": 80, "bytes": 1})


def pool(w: World) -> None:
    frames = "queue.py:LifoQueue.get:9 urllib3/connectionpool.py:HTTPConnectionPool._get_conn:9"
    frames += f" urllib3/connectionpool.py:HTTPConnectionPool.urlopen:9 app.py:size:1 {THREAD}"
    w.threads(8, "queue.Queue.get", frames, w.thing("queue.LifoQueue", exclusive=False, size=0))


def database(w: World) -> None:
    frames = "threading.py:Condition.wait:355 sqlalchemy/util/queue.py:Queue.get:9"
    frames += f" sqlalchemy/pool/impl.py:QueuePool._do_get:9 app.py:count:1 {THREAD}"
    w.threads(8, "threading.Condition.wait", frames, w.thing("threading.Condition", exclusive=False))


LOCKED = """
class Client:

    async def fetch(self, url):
        await self.limit.acquire()
        body = await self.get(url)
        self.limit.release()
        return body
"""
UNLOCKED = """
class Client:

    async def fetch(self, url):
        await self.limit.acquire()
        try:
            return await self.get(url)
        finally:
            self.limit.release()
"""
CASES: list[tuple[str, Build, str, str]] = [
    (
        "asyncio-semaphore-never-released",
        waiting("asyncio.Semaphore.acquire", SEMAPHORE, "asyncio.Semaphore", value=0, other_frames=0),
        LOCKED,
        UNLOCKED,
    ),
    (
        "asyncio-lock-orphaned",
        waiting("asyncio.Lock.acquire", LOCK, "asyncio.Lock", locked=True, other_frames=0),
        LOCKED,
        UNLOCKED,
    ),
    (
        "asyncio-duplicated-loops",
        pings,
        """
        import asyncio
        class Client:
            async def connect(self):
                self.ping = asyncio.create_task(self.pings())

            async def pings(self):
                while True:
                    await asyncio.sleep(20)
        """,
        """
        import asyncio
        class Client:
            async def connect(self):
                self.ping.cancel()
                self.ping = asyncio.create_task(self.pings())
            async def pings(self):
                while True:
                    await asyncio.sleep(20)
        """,
    ),
    (
        "asyncio-cancel-ignored",
        cancelled,
        """
        async def poll(peer):
            while True:
                try:
                    await peer.next()
                except BaseException:
                    log("again")
        """,
        """
        async def poll(peer):
            while True:
                try:
                    await peer.next()
                except Exception:
                    log("again")
        """,
    ),
    (
        "asyncio-timers-keep-context",
        timers,
        """
        def handle(request, loop):
            loop.call_later(3600, lambda: log(request))
        """,
        """
        def handle(request, loop):
            path = request.path
            loop.call_later(3600, lambda: log(path))
        """,
    ),
    (
        "aiohttp-session-per-request",
        counted("aiohttp.client.ClientSession"),
        """
        import aiohttp
        async def fetch(url):
            return await (await aiohttp.ClientSession().get(url)).text()
        """,
        """
        import aiohttp
        def session_of(tenant):
            SESSIONS[tenant] = aiohttp.ClientSession()
        async def fetch(url):
            return await (await aiohttp.ClientSession().get(url)).text()
        """,
    ),
    (
        "http-client-per-call",
        counted("httpx.Client"),
        """
        import httpx
        def fetch(url):
            client = httpx.Client()
            return client.get(url).text
        """,
        """
        import httpx
        def fetch(url):
            with httpx.Client() as client:
                return client.get(url).text
        """,
    ),
    (
        "urllib3-pool-exhausted",
        pool,
        """
        def size(session, url):
            return session.get(url, stream=True).headers["content-length"]
        """,
        """
        def size(session, url):
            with session.get(url, stream=True) as response:
                return response.headers["content-length"]
        """,
    ),
    (
        "sqlalchemy-pool-exhausted",
        database,
        """
        def count(engine):
            return engine.connect().execute(QUERY).scalar()
        """,
        """
        def count(engine):
            with engine.connect() as connection:
                return connection.execute(QUERY).scalar()
        """,
    ),
]


def judged(build: Build, folder: Path, source: str) -> Finding:
    world = World()
    build(world)
    snapshot = world.build()
    (folder / "app.py").write_text(textwrap.dedent(source).lstrip())
    (finding,) = find_leaks([snapshot], sources=Sources(snapshot.target, folders=[folder])).findings
    return finding


@pytest.mark.parametrize(("template", "build", "leak", "twin"), CASES, ids=[c[0] for c in CASES])
def test_the_source_makes_it_likely_and_its_twin_does_not(
    template: str, build: Build, leak: str, twin: str, tmp_path: Path
) -> None:
    found = judged(build, tmp_path, leak)
    assert (found.template, found.verdict) == (template, "likely"), found.source
    assert found.source
    assert any("raised from suspect by its source" in reason for reason in found.evidence)
    healthy = judged(build, tmp_path, twin)
    assert (healthy.template, healthy.verdict) == (template, "suspect"), healthy.source


def test_every_template_that_is_raised_is_tried_here() -> None:
    # Those of Go are in test_source_templates_go.py.
    raised = {t.id for t in builtin() if t.kind != "goroutine" and any(rule.raises for rule in t.source)}
    assert raised == {template for template, *_ in CASES}
