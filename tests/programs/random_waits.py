"""Random small programs of tasks and things, with a known answer: who can still be woken?

usage: random_waits.py SEED COUNT. Makes COUNT worlds in one process. In each a few tasks and threads wait
on a few things (queues, events, locks, semaphores, conditions, futures, other tasks), hold others in their
frames, wrapped in anything from a list to a closure, and some things are held by something that lives: a
global, a timer, a thread, a weak reference, a reference that only C has … Prints "READY pid" when all wait,
then "ANSWER json": name of each task -> whether nothing that can still run reaches what it waits on.

The answer is worked out from the plan of the world alone: greatest set of waiting tasks of which none waits
on anything that a task outside of the set, or something that lives, holds.
"""

import asyncio
import collections
import concurrent.futures
import contextvars
import ctypes
import functools
import json
import os
import queue
import random
import socket
import sys
import threading
import time
import types
import weakref

EXTERNAL = {}  # what lives in a global
KEPT = []  # the tasks themselves, strongly: who keeps a task does not wake it
WEAK = []
THREADS = []
SIGNALS = []
BLOCKED = os.pipe()


class Slotted:
    __slots__ = ("__weakref__", "inside")

    def __init__(self, inside):
        self.inside = inside


class Plain:
    def __init__(self, inside):
        self.inside = inside

    def method(self):
        return self.inside


def closure(thing):
    def inner():
        return thing

    return inner


def with_default(thing):
    return lambda inside=thing: inside


def suspended(thing):
    def generator():
        inside = [thing]
        yield
        return inside

    made = generator()
    next(made)
    return made


def not_started(thing):
    async def coroutine(inside):
        return inside

    made = coroutine(thing)
    KEPT_SILENT.append(weakref.ref(made))
    return made


KEPT_SILENT = []

WRAPS = {
    "bare": lambda t: t,
    "list": lambda t: [None, t],
    "tuple": lambda t: (1, t),
    "dict": lambda t: {"k": t},
    "dict key": lambda t: {t: 1},
    "set": lambda t: {t},
    "frozenset": lambda t: frozenset([t, 1]),
    "deque": lambda t: collections.deque([t]),
    "instance": Plain,
    "slots": Slotted,
    "closure": closure,
    "default": with_default,
    "partial": lambda t: functools.partial(print, t),
    "bound": lambda t: Plain(t).method,
    "namespace": lambda t: types.SimpleNamespace(x=t),
    "generator": suspended,
    "cell": lambda t: closure(t).__closure__[0],
    "mapping proxy": lambda t: types.MappingProxyType({"k": t}),
    "ordered": lambda t: collections.OrderedDict(k=t),
    "defaultdict": lambda t: collections.defaultdict(list, k=t),
    "partial method": lambda t: functools.partial(Plain(t).method),
    "exception": lambda t: ValueError(t),
    "context": lambda t: in_context(t),
    "iterator": lambda t: iter([t]),
}

VARIABLE = contextvars.ContextVar("variable")


def in_context(thing):
    context = contextvars.Context()
    context.run(VARIABLE.set, thing)
    return context


# What lives: each gets the thing, and keeps it reachable for something that can still run.


def by_global(loop, name, wrapped, thing):
    EXTERNAL[name] = wrapped


def by_timer(loop, name, wrapped, thing):
    loop.call_later(3600, print, wrapped)


def by_sleeping_task(loop, name, wrapped, thing):
    async def sleeps(inside):
        await asyncio.sleep(3600)
        return inside

    KEPT.append(loop.create_task(sleeps(wrapped), name="driver of " + name))


def by_reader(loop, name, wrapped, thing):
    a, b = socket.socketpair()
    KEPT.append(b)
    loop.add_reader(a, print, wrapped, a)


def by_thread(loop, name, wrapped, thing):
    def run(inside):
        os.read(BLOCKED[0], 1)
        return inside

    thread = threading.Thread(target=run, args=(wrapped,), daemon=True, name="driver of " + name)
    thread.start()


def by_sleeping_thread(loop, name, wrapped, thing):
    thread = threading.Thread(target=lambda inside: time.sleep(3600), args=(wrapped,), daemon=True)
    thread.start()


def by_weak_reference(loop, name, wrapped, thing):
    WEAK.append(weakref.ref(thing))


def by_finalizer(loop, name, wrapped, thing):
    # the object that it watches is alive; once it dies, the callback has the thing
    watched = Slotted(None)
    EXTERNAL[name] = watched
    weakref.finalize(watched, print, thing).atexit = False


def by_c_alone(loop, name, wrapped, thing):
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def by_callback_of_a_live_future(loop, name, wrapped, thing):
    future = loop.create_future()
    future.add_done_callback(functools.partial(print, wrapped))
    EXTERNAL[name] = future


def by_class(loop, name, wrapped, thing):
    EXTERNAL[name] = type("Holder", (), {"thing": wrapped})


def by_module(loop, name, wrapped, thing):
    module = types.ModuleType("module_" + str(len(sys.modules)))
    module.thing = wrapped
    sys.modules[module.__name__] = module


def by_executor_job(loop, name, wrapped, thing):
    if len(THREADS) < 3:  # the pool has few threads: more would wait in its queue, where they live as well
        THREADS.append(name)
    loop.run_in_executor(None, lambda inside: os.read(BLOCKED[0], 1), wrapped)


def by_threading_local(loop, name, wrapped, thing):
    local = threading.local()
    EXTERNAL[name] = local
    local.inside = wrapped


LIVES = [
    by_global,
    by_timer,
    by_sleeping_task,
    by_reader,
    by_thread,
    by_sleeping_thread,
    by_weak_reference,
    by_finalizer,
    by_c_alone,
    by_callback_of_a_live_future,
    by_class,
    by_module,
    by_executor_job,
    by_threading_local,
]

# What is waited on: (make, wait). Locks and semaphores are taken when they are made, so that all must wait.


def taken_lock(loop):
    lock = asyncio.Lock()
    lock._locked = True
    return lock


async def on_condition(condition):
    async with condition:
        await condition.wait()


def full_queue(loop):
    queue = asyncio.Queue(1)
    queue.put_nowait(1)
    return queue


def unfinished_queue(loop):
    queue = asyncio.Queue()
    queue.put_nowait(1)
    return queue


async def on_future(future):
    await future


async def on_shielded(future):
    await asyncio.shield(future)


THINGS = {
    "queue": (lambda loop: asyncio.Queue(), lambda t: t.get()),
    "full": (full_queue, lambda t: t.put(2)),
    "join": (unfinished_queue, lambda t: t.join()),
    "event": (lambda loop: asyncio.Event(), lambda t: t.wait()),
    "lock": (taken_lock, lambda t: t.acquire()),
    "semaphore": (lambda loop: asyncio.Semaphore(0), lambda t: t.acquire()),
    "condition": (lambda loop: asyncio.Condition(), on_condition),
    "future": (lambda loop: loop.create_future(), on_future),
    "shielded": (lambda loop: loop.create_future(), on_shielded),
}


# The same for threads; they block in wait(thing).


def acquired_lock():
    lock = threading.Lock()
    lock.acquire()
    return lock


def wait_in_condition(condition):
    with condition:
        condition.wait()


def full_thread_queue():
    made = queue.Queue(1)
    made.put(1)
    return made


THREAD_THINGS = {
    "thread queue": (queue.Queue, lambda t: t.get()),
    "full thread queue": (full_thread_queue, lambda t: t.put(2)),
    "simple queue": (queue.SimpleQueue, lambda t: t.get()),
    "thread event": (threading.Event, lambda t: t.wait()),
    "thread lock": (acquired_lock, lambda t: t.acquire()),
    "thread condition": (threading.Condition, wait_in_condition),
    "thread semaphore": (lambda: threading.Semaphore(0), lambda t: t.acquire()),
    "concurrent future": (concurrent.futures.Future, lambda t: t.result()),
}


def in_thread(wait, thing, held):
    wait(thing)
    return held


async def leaf(wait):
    await wait


async def nested(wait, depth, held):
    if depth:
        await nested(wait, depth - 1, held)
    else:
        await leaf(wait)
    return held


async def joins(how, tasks):
    if how == "gather":
        await asyncio.gather(*tasks)
    elif how == "wait":
        await asyncio.wait(tasks)
    elif how == "one by one":
        for task in tasks:
            await task
    elif how == "shield":
        await asyncio.shield(tasks[0])


class World:
    """The plan of one world: who waits on what, who holds what, what lives; and its answer."""

    def __init__(self, choose, number):
        self.prefix = f"w{number}"
        known = [*THINGS, *THINGS, *THREAD_THINGS]
        self.kinds = [choose.choice(known) for _ in range(choose.randint(1, 3))]
        self.waits = [choose.randrange(len(self.kinds)) for _ in range(choose.randint(1, 5))]
        self.depth = [choose.choice([0, 0, 1, 2]) for _ in self.waits]
        self.holds = [
            [
                (thing, choose.choice(list(WRAPS)))
                for thing in range(len(self.kinds))
                if choose.random() < 0.15 and thing != self.waits[task]
            ]
            for task in range(len(self.waits))
        ]
        self.lives = [
            (choose.choice(LIVES), choose.choice(list(WRAPS))) if choose.random() < 0.3 else None
            for _ in self.kinds
        ]
        # Tasks that wait for others: (how, which ones), and one level of such above them.
        self.joins = []
        for _ in range(choose.choice([0, 0, 1, 2])):
            how = choose.choice(["gather", "wait", "one by one", "shield"])
            others = [t for t, w in enumerate(self.waits) if self.kinds[w] in THINGS]
            others += [len(self.waits) + j for j in range(len(self.joins))]
            if not others:
                break
            picked = choose.sample(others, min(len(others), choose.randint(1, 3)))
            self.joins.append((how, picked[:1] if how == "shield" else picked))

    def name(self, task):
        return f"{self.prefix}-{task}"

    def answer(self):
        """name -> whether it is stuck."""
        n = len(self.waits)
        stuck = [True] * (n + len(self.joins))
        while True:
            reached = [live is not None for live in self.lives]
            for task in range(n):
                if not stuck[task]:
                    reached[self.waits[task]] = True
                    for thing, _ in self.holds[task]:
                        reached[thing] = True
            now = [stuck[t] and not reached[self.waits[t]] for t in range(n)]
            for j, (how, others) in enumerate(self.joins):
                # "one by one" waits for the first; all the others need all that they wait for to be stuck,
                # as one that fails or is cancelled may wake them.
                asked = others[:1] if how == "one by one" else others
                now.append(stuck[n + j] and all(stuck[o] for o in asked))
            if now == stuck:
                return {self.name(t): flag for t, flag in enumerate(stuck)}
            stuck = now

    def build(self, loop):
        things = [THINGS[k][0](loop) if k in THINGS else THREAD_THINGS[k][0]() for k in self.kinds]
        tasks = []
        for t, thing in enumerate(self.waits):
            held = [WRAPS[wrap](things[other]) for other, wrap in self.holds[t]]
            if self.kinds[thing] in THREAD_THINGS:
                wait = THREAD_THINGS[self.kinds[thing]][1]
                arguments = (wait, things[thing], held)
                threading.Thread(target=in_thread, args=arguments, daemon=True, name=self.name(t)).start()
                tasks.append(None)
                continue
            wait = THINGS[self.kinds[thing]][1](things[thing])
            tasks.append(loop.create_task(nested(wait, self.depth[t], held), name=self.name(t)))
        for j, (how, others) in enumerate(self.joins):
            made = joins(how, [tasks[o] for o in others])
            tasks.append(loop.create_task(made, name=self.name(len(self.waits) + j)))
        for t, live in enumerate(self.lives):
            if live is not None:
                make, wrap = live
                make(loop, f"{self.prefix}.{t}", WRAPS[wrap](things[t]), things[t])
        return tasks


async def main(seed, count):
    loop = asyncio.get_running_loop()
    choose = random.Random(seed)
    answers, described = {}, {}
    names = []
    for number in range(count):
        world = World(choose, number)
        KEPT.extend(task for task in world.build(loop) if task is not None)
        answers.update(world.answer())
        described[world.prefix] = {
            "kinds": world.kinds,
            "waits": world.waits,
            "holds": world.holds,
            "lives": [live and (live[0].__name__, live[1]) for live in world.lives],
            "joins": world.joins,
        }
        names.extend(world.answer())
    del world
    wanted = set(names)
    while True:
        await asyncio.sleep(0.01)
        mine = [t for t in KEPT if isinstance(t, asyncio.Task) and t.get_name() in wanted]
        if any(t.done() for t in mine):
            print("FAILED", [t.get_name() for t in mine if t.done()], flush=True)
            os._exit(3)
        if all(t._fut_waiter is not None for t in mine):
            break
    del mine
    print("READY", os.getpid(), flush=True)
    print("ANSWER", json.dumps({"stuck": answers, "worlds": described}), flush=True)
    await asyncio.sleep(3600)


asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
