"""What the benchmarks look at. usage: target.py TASKS THREADS [GIB]

TASKS asyncio tasks wait on a queue that nobody fills, THREADS threads are parked, GIB GiB of memory are
touched. One thread is busy and measures the largest gap between two readings of the clock, which is how long
it was kept from running. A line on standard input asks for the gap since the last line: "GAP_MS 1.23".
Prints "READY pid" when all is in place.
"""

import asyncio
import os
import sys
import threading
import time

gap = 0.0


def busy():
    """Read the clock as fast as possible and keep the largest step."""
    global gap
    last = time.perf_counter()
    while True:
        now = time.perf_counter()
        if now - last > gap:
            gap = now - last
        last = now


def answer():
    """Say and reset the gap for every line that comes in."""
    global gap
    for _ in sys.stdin:
        seen, gap = gap, 0.0
        print("GAP_MS %.3f" % (seen * 1e3), flush=True)


async def fetch(queue):
    """One frame of the chain."""
    return await leaf(queue)


async def leaf(queue):
    """The frame that waits."""
    return await queue.get()


async def main(tasks, threads, gib):
    """Set everything up and stay."""
    queue = asyncio.Queue()
    keep = [asyncio.create_task(fetch(queue), name=f"fetch-{i}") for i in range(tasks)]
    for i in range(threads):
        threading.Thread(target=threading.Event().wait, daemon=True, name=f"parked-{i}").start()
    blobs = [bytearray(b"\x5a") * (1 << 20) for _ in range(int(gib * 1024))]
    if not os.environ.get("NO_BUSY_THREAD"):
        threading.Thread(target=busy, daemon=True, name="busy").start()
    threading.Thread(target=answer, daemon=True, name="answer").start()
    while queue._getters is not None and len(queue._getters) < tasks:
        await asyncio.sleep(0.01)
    print("READY", os.getpid(), flush=True)
    await asyncio.sleep(3600)
    return keep, blobs


asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0))
