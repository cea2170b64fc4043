"""Every source check finds its leak in a source, and stays silent for the healthy twin."""

from __future__ import annotations

import textwrap

import pytest

from diagtool.leaks.source.check import Ask
from diagtool.leaks.source.checks import CHECKS
from diagtool.leaks.source.module import Module


def found(check: str, code: str, *, subject: str = "", at: str = "") -> list[str]:
    """``line: says`` of each hit. ``at``: the stack is in the line that has this comment."""
    text = textwrap.dedent(code).strip() + "\n"
    module = Module("app.py", text.encode())
    assert module.tree is not None, module.problem
    if not CHECKS[check].words.search(module.text):
        return []
    lines = [n for n, line in enumerate(module.lines, 1) if at and at in line]
    functions = module.functions
    if lines:
        functions = [f for f in functions if f.first_line <= lines[0] <= f.end_line][-1:]
    ask = Ask(lines[0] if lines else None, subject)
    return [f"{hit.line}: {hit.says}" for f in functions for hit in CHECKS[check].find(f, ask) if hit.says]


#: (check, leaking source, healthy sources). ``# here``: where the stack is.
TWINS = [
    (
        "task-dropped",
        """
        import asyncio
        async def connect(self):
            asyncio.create_task(self.pump())
        """,
        [
            """
            import asyncio
            async def connect(self):
                self.task = asyncio.create_task(self.pump())
            """,
            """
            import asyncio
            async def connect(self):
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.pump())
            """,
            """
            import asyncio
            async def connect(self):
                self.tasks.add(asyncio.create_task(self.pump()))
            """,
            """
            async def connect(self):
                await asyncio.create_task(self.pump())
            """,
        ],
    ),
    (
        "task-dropped",
        """
        from asyncio import get_running_loop
        def on_data(self, data):
            [get_running_loop().create_task(handle(d)) for d in data]
        """,
        [
            """
            from asyncio import get_running_loop
            def on_data(self, data):
                return [get_running_loop().create_task(handle(d)) for d in data]
            """
        ],
    ),
    (
        "task-overwritten",
        """
        import asyncio
        class Client:
            async def connect(self):
                self.open()
                self.ping = asyncio.create_task(self.pings())
        """,
        [
            """
            import asyncio
            class Client:
                async def connect(self):
                    if self.ping is not None:
                        self.ping.cancel()
                    self.ping = asyncio.create_task(self.pings())
            """,
            """
            import asyncio
            class Client:
                def __init__(self):
                    self.ping = asyncio.create_task(self.pings())
            """,
            """
            import asyncio
            class Client:
                async def connect(self):
                    if not self.running:
                        self.ping = asyncio.create_task(self.pings())
            """,
            """
            import asyncio
            class Client:
                async def connect(self):
                    self.ping = asyncio.create_task(self.pings())
                    self.tasks.append(self.ping)
            """,
        ],
    ),
    (
        "cancel-swallowed",
        """
        async def poll(self):
            while True:
                try:
                    await self.step()  # here
                except:
                    log("failed")
        """,
        [
            """
            async def poll(self):
                while True:
                    try:
                        await self.step()  # here
                    except Exception:
                        log("failed")
            """,
            """
            async def poll(self):
                while True:
                    try:
                        await self.step()  # here
                    except BaseException:
                        log("failed")
                        raise
            """,
            """
            async def stop(self):
                for task in self.tasks:
                    task.cancel()
                    try:
                        await task  # here
                    except asyncio.CancelledError:
                        pass
            """,
            """
            async def poll(self):
                try:
                    await self.step()  # here
                except asyncio.CancelledError:
                    pass
            """,
            """
            async def poll(self):
                while True:
                    try:
                        parse()
                    except:
                        log("failed")
                    await self.step()  # here
            """,
            """
            async def poll(self):
                while True:
                    try:
                        await self.step()  # here
                    except asyncio.CancelledError:
                        if self.closing:
                            break
            """,
        ],
    ),
    (
        "task-done-skipped",
        """
        async def worker(queue):
            while True:
                item = await queue.get()
                await handle(item)
                queue.task_done()
        """,
        [
            """
            async def worker(queue):
                while True:
                    item = await queue.get()
                    try:
                        await handle(item)
                    finally:
                        queue.task_done()
            """,
            """
            async def worker(queue):
                while True:
                    item = await queue.get()
                    queue.task_done()
                    await handle(item)
            """,
        ],
    ),
    (
        "generator-left-early",
        """
        async def first(db):
            async for row in rows(db):
                return row
        """,
        [
            """
            async def first(db):
                async with aclosing(rows(db)) as found:
                    async for row in found:
                        return row
            """,
            """
            async def all_of(db):
                async for row in rows(db):
                    for part in row:
                        break
            """,
        ],
    ),
    (
        "acquire-without-release",
        """
        async def fetch(self, url):
            await self.limit.acquire()  # here
            body = await self.get(url)
            self.limit.release()
            return body
        """,
        [
            """
            async def fetch(self, url):
                await self.limit.acquire()  # here
                try:
                    return await self.get(url)
                finally:
                    self.limit.release()
            """,
            """
            async def fetch(self, url):
                async with self.limit:
                    return await self.get(url)  # here
            """,
            """
            async def fetch(self, url):
                await self.limit.acquire()  # here
                loop.call_later(1, self.limit.release)
            """,
            """
            class Client:
                async def begin(self):
                    await self.limit.acquire()  # here
                async def end(self):
                    self.limit.release()
            """,
            """
            async def fetch(self, url):
                await self.limit.acquire()  # here
                try:
                    body = await self.get(url)
                except BaseException:
                    self.limit.release()
                    raise
                self.limit.release()
            """,
            """
            async def __aenter__(self):
                await self.limit.acquire()  # here
            """,
            """
            def fetch(self, url):
                self.lock.acquire()  # here
                try:
                    body = self.get(url)
                except Exception:
                    self.lock.release()
                    raise
                self.lock.release()
            """,
            """
            async def fetch(self, stack, url):
                await self.limit.acquire()  # here
                stack.push(self.limit)
                return await self.get(url)
            """,
            """
            def bump(self):
                self.lock.acquire()  # here
                self.n += 1
                self.lock.release()
            """,
        ],
    ),
    (
        "loop-without-exit",
        """
        def run(self):
            while True:
                self.wake.wait()  # here
                flush()
        """,
        [
            """
            def run(self):
                while not self.stop.is_set():
                    self.wake.wait()  # here
            """,
            """
            def run(self):
                while True:
                    self.wake.wait()  # here
                    if self.stopped:
                        break
            """,
            """
            async def run(self):
                while True:
                    await self.wake.wait()  # here
            """,
            """
            def run(self):
                while True:
                    for item in self.wait():  # here
                        if item is None:
                            return
            """,
        ],
    ),
    (
        "loop-ends-by-itself",
        """
        def run(ref, wake):
            while True:
                wake.wait(5)  # here
                client = ref()
                if client is None:
                    return
                client.flush()
        """,
        [
            """
            def run(ref, wake):
                while True:
                    wake.wait(5)  # here
                    client = ref()
                    client.flush()
            """,
            """
            def run(client, wake):
                while True:
                    wake.wait(5)  # here
                    item = client.next()
                    if item is None:
                        return
            """,
        ],
    ),
    (
        "get-without-exit",
        """
        def work(jobs):
            while True:
                job = jobs.get()  # here
                job()
        """,
        [
            """
            def work(jobs):
                while True:
                    job = jobs.get()  # here
                    if job is None:
                        break
                    job()
            """,
            """
            def work(jobs):
                while True:
                    job = jobs.get(timeout=5)  # here
                    job()
            """,
        ],
    ),
    (
        "select-without-timeout",
        """
        import select
        def serve(self):
            ready, _, _ = select.select(self.sockets, [], [])  # here
        """,
        [
            """
            import select
            def serve(self):
                ready, _, _ = select.select(self.sockets, [], [], 1.0)  # here
            """,
            """
            def serve(self):
                rows = self.table.select()  # here
            """,
            """
            def serve(self):
                ready = self.selector.select(timeout=0.5)  # here
            """,
        ],
    ),
    (
        "thread-not-joined",
        """
        import threading
        def handle(request):
            threading.Thread(target=send, args=(request,)).start()
        """,
        [
            """
            import threading
            def handle(request):
                thread = threading.Thread(target=send, args=(request,))
                thread.start()
                thread.join()
            """,
            """
            import threading
            def handle(self, request):
                thread = threading.Thread(target=send, args=(request,))
                thread.start()
                self.threads.append(thread)
            """,
            """
            def handle(self, request):
                self.Thread(request).start()
            """,
        ],
    ),
    (
        "timer-not-kept",
        """
        import threading
        def touch(self):
            timer = threading.Timer(60, self.expire)
            timer.daemon = True
            timer.start()
        """,
        [
            """
            import threading
            def touch(self):
                self.timer = threading.Timer(60, self.expire)
                self.timer.start()
            """
        ],
    ),
    (
        "executor-not-shut-down",
        """
        from concurrent.futures import ThreadPoolExecutor
        def resize(images):
            pool = ThreadPoolExecutor(4)
            for image in images:
                pool.submit(shrink, image)
        """,
        [
            """
            from concurrent.futures import ThreadPoolExecutor
            def resize(images):
                with ThreadPoolExecutor(4) as pool:
                    return list(pool.map(shrink, images))
            """,
            """
            from concurrent.futures import ThreadPoolExecutor
            POOL = ThreadPoolExecutor(4)
            def resize(images):
                return list(POOL.map(shrink, images))
            """,
            """
            from concurrent.futures import ThreadPoolExecutor
            def resize(images):
                pool = ThreadPoolExecutor(4)
                try:
                    return [pool.submit(shrink, image) for image in images]
                finally:
                    pool.shutdown()
            """,
            """
            from concurrent.futures import ThreadPoolExecutor
            def pool_of(self):
                self.pool = ThreadPoolExecutor(4)
                return self.pool
            """,
        ],
    ),
    (
        "session-per-call",
        """
        import aiohttp
        async def fetch(url):
            session = aiohttp.ClientSession()
            response = await session.get(url)
            return await response.text()
        """,
        [
            """
            import aiohttp
            async def fetch(url):
                async with aiohttp.ClientSession() as session:
                    return await (await session.get(url)).text()
            """,
            """
            import aiohttp
            async def fetch(url):
                session = aiohttp.ClientSession()
                try:
                    return await (await session.get(url)).text()
                finally:
                    await session.close()
            """,
            """
            import aiohttp
            async def start(app):
                app["session"] = aiohttp.ClientSession()
            """,
            """
            import aiohttp
            def client():
                session = aiohttp.ClientSession()
                return Api(session)
            """,
            """
            import requests
            SESSION = requests.Session()
            def fetch(url):
                return SESSION.get(url)
            """,
        ],
    ),
    (
        "response-not-closed",
        """
        def size(session, url):
            response = session.get(url, stream=True)
            return int(response.headers["content-length"])
        """,
        [
            """
            def size(session, url):
                with session.get(url, stream=True) as response:
                    return int(response.headers["content-length"])
            """,
            """
            def size(session, url):
                response = session.get(url, stream=True)
                return sum(map(len, response.iter_content(1 << 16)))
            """,
            """
            def size(session, url):
                response = session.get(url)
                return int(response.headers["content-length"])
            """,
        ],
    ),
    (
        "connection-not-closed",
        """
        def count(engine):
            connection = engine.connect()
            return connection.execute(QUERY).scalar()
        """,
        [
            """
            def count(engine):
                with engine.connect() as connection:
                    return connection.execute(QUERY).scalar()
            """,
            """
            def count(engine):
                connection = engine.connect()
                try:
                    return connection.execute(QUERY).scalar()
                finally:
                    connection.close()
            """,
            """
            def dial(sock, address):
                state = sock.connect(address)
            """,
        ],
    ),
    (
        "cache-on-method",
        """
        import functools
        class Client:
            @functools.lru_cache(maxsize=None)
            def schema(self, name):
                return load(name)
        """,
        [
            """
            import functools
            class Client:
                @functools.lru_cache(maxsize=128)
                def schema(self, name):
                    return load(name)
            """,
            """
            import functools
            class Client:
                @staticmethod
                @functools.cache
                def schema(name):
                    return load(name)
            """,
            """
            import functools
            class Client:
                @functools.cached_property
                def schema(self):
                    return load(self.name)
            """,
            """
            import functools
            @functools.cache
            def schema(name):
                return load(name)
            """,
        ],
    ),
    (
        "closure-keeps-request",
        """
        def handle(request, loop):
            loop.call_later(300, lambda: log(request.path))
        """,
        [
            """
            def handle(request, loop):
                path = request.path
                loop.call_later(300, lambda: log(path))
            """,
            """
            def handle(request, loop):
                loop.call_later(300, lambda request: log(request))
            """,
        ],
    ),
]


@pytest.mark.parametrize(
    ("check", "leak", "healthy"), TWINS, ids=[f"{t[0]}-{i}" for i, t in enumerate(TWINS)]
)
def test_the_leak_is_found_and_its_twins_are_not(check: str, leak: str, healthy: list[str]) -> None:
    at = "# here" if "# here" in leak else ""
    assert len(found(check, leak, at=at)) == 1
    for twin in healthy:
        assert found(check, twin, at="# here" if "# here" in twin else "") == [], twin


def test_every_check_has_its_twins() -> None:
    assert {check for check, _, _ in TWINS} == {n for n, c in CHECKS.items() if c.language == "python"}


def test_only_what_the_stack_is_in_counts() -> None:
    """Two loops in a function, one of which has no exit: the stack is in the other."""
    code = """
    def run(self):
        while True:
            if self.ready.wait(1):  # here
                break
        while True:
            self.work()
    """
    assert found("loop-without-exit", code, at="# here") == []
    assert len(found("loop-without-exit", code)) == 1


def test_a_finding_about_a_type_wants_what_makes_that_type() -> None:
    code = """
    import httpx
    def fetch(url):
        return httpx.Client().get(url).text
    """
    assert len(found("session-per-call", code, subject="httpx.Client")) == 1
    assert len(found("session-per-call", code, subject="ssl.SSLContext")) == 1
    assert found("session-per-call", code, subject="aiohttp.client.ClientSession") == []


def test_words_are_searched_in_a_time_that_grows_with_the_text_only() -> None:
    """A source made to be slow: whitespace and words a hundred thousand characters long."""
    words = (" ", "while", "while ", "except ", "ref", "@a.", "get (", ".get  ", "Thread ", "select\n")
    for text in (word * 2**15 for word in words):
        for check in CHECKS.values():
            check.words.search(text)
