"""Two clients that lost a permit of a global semaphore. The source of one says how; the other is right."""

import asyncio
import os

N = 20


class Careless:
    limit = None

    async def fetch(self):
        await self.limit.acquire()
        await self.get()
        self.limit.release()

    async def get(self):
        raise OSError("the peer hung up")


class Careful:
    limit = None

    async def fetch(self):
        await self.limit.acquire()
        try:
            await asyncio.sleep(0)
        finally:
            self.limit.release()


async def take(semaphore):
    await semaphore.acquire()


async def main():
    Careless.limit = asyncio.Semaphore(1)
    Careful.limit = asyncio.Semaphore(1)
    await asyncio.gather(Careless().fetch(), take(Careful.limit), return_exceptions=True)
    tasks = [asyncio.ensure_future(kind().fetch()) for kind in (Careless, Careful) for _ in range(N)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    print("READY", os.getpid(), flush=True)
    await asyncio.wait(tasks)


asyncio.run(main())
