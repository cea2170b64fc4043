"""Who keeps an object: the way that the program's text shows, live and from a core, in every version."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import diagtool
from diagtool.snapshot.model import Snapshot
from fixture_programs import Interpreter, Running, all_interpreters, interpreters, launch, some

PROGRAM = """
import asyncio, collections, ctypes, os, signal, sys, threading, weakref

class InDict:
    pass
class InDeque(InDict):
    pass
class InLists(InDict):
    pass
class OfClass(InDict):
    pass
class InSlot(InDict):
    pass
class Local(InDict):
    pass
class InClosure(InDict):
    pass
class Lost(InDict):
    pass
class Bound:
    def method(self):
        pass
class InTask(InDict):
    pass
class Slot:
    __slots__ = ("first", "second")
class Cache:
    registry = {}
    def __init__(self):
        self._images = {}
        self._queue = collections.deque()

cache = Cache()
cache._images.update(("k%d" % i, InDict()) for i in range(20000))
cache._queue.extend(InDeque() for i in range(1000))
lists = [[InLists()] for i in range(1000)]
Cache.registry["secret-password"] = OfClass()
slot = Slot()
slot.second = (InSlot(),)
weak = weakref.ref(cache)

def closure():
    kept = InClosure()
    return lambda: kept

function = closure()
method = Bound().method

def lose():
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(Lost()))

lose()

def work(started, never):
    mine = Local()
    started.set()
    never.wait()

async def holds():
    mine = [InTask()]
    await asyncio.get_running_loop().create_future()

async def main():
    task = asyncio.create_task(holds(), name="holder")
    started = threading.Event()
    threading.Thread(target=work, args=(started, threading.Event()), name="worker", daemon=True).start()
    started.wait()
    await asyncio.sleep(0.01)
    print("READY", os.getpid(), flush=True)
    await asyncio.get_running_loop().create_future()

asyncio.run(main())
"""

#: What is asked for, the way that most of the objects must have, and how many share it.
WAYS = {
    "InDict": (
        r"module __main__ → cache \(__main__.Cache\) → _images \(dict, 20,000 items\) → __main__.InDict",
        200,
    ),
    "InDeque": (
        r"module __main__ → cache \(__main__.Cache\) → _queue \(collections.deque, 1,000 items\) → .*InDeque",
        200,
    ),
    "__main__.InLists": (r"module __main__ → lists \(list, 1,000 items\) → list, 1 item → .*InLists", 200),
    "OfClass": (r"module __main__ → Cache \(type\) → registry \(dict, 1 item\) → __main__.OfClass", 1),
    "InSlot": (r"module __main__ → slot \(__main__.Slot\) → second \(tuple, 1 item\) → __main__.InSlot", 1),
    "Local": (r"local of work in thread worker → mine \(__main__.Local\)", 1),
    "InClosure": (r"module __main__ → function \(function\) → .*__main__.InClosure", 1),
    "Bound": (r"module __main__ → method \(method\) → __self__ \(__main__.Bound\)", 1),
    "InTask": (r"task holder → coroutine → (frame → )?list, 1 item → __main__.InTask", 1),
}


def check(name: str, snapshot: Snapshot) -> None:
    expected, number = WAYS[name]
    way = snapshot.tables["heap_ways"][0]
    assert re.fullmatch(expected, way["text"]), way["text"]
    assert way["count"] >= number * 0.98
    assert "password" not in way["text"]


def started(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def way_of(program: Running, name: str) -> str:
    ways = diagtool.snapshot(program.pid, why=name).tables["heap_ways"]
    return str(ways[0]["root"])


@pytest.mark.parametrize("interpreter", some(all_interpreters(), 9, 12, 14), ids=str)
def test_the_way_is_the_one_in_the_text(interpreter: Interpreter, tmp_path: Path) -> None:
    with launch(started(tmp_path), interpreter=interpreter) as program:
        for name in WAYS:
            check(name, diagtool.snapshot(program.pid, why=name))
        assert way_of(program, "Lost") in ("native", "none")


@pytest.mark.parametrize("interpreter", some(interpreters(), 10, 13, 15), ids=str)
def test_a_core_tells_the_same(interpreter: Interpreter, tmp_path: Path) -> None:
    with launch(started(tmp_path), interpreter=interpreter) as program:
        core = program.gcore(tmp_path)
        for name in ("InDict", "InDeque", "Local", "InTask"):
            check(name, diagtool.snapshot(core, sysroot=interpreter.root, why=name))


def test_an_address_is_asked_for(tmp_path: Path) -> None:
    with launch(started(tmp_path)) as program:
        example = diagtool.snapshot(program.pid, why="InSlot").tables["heap_ways"][0]["example"]
        snapshot = diagtool.snapshot(program.pid, why=example)
        assert snapshot.tables["heap_why"] == [{"wanted": example, "total": 1, "looked_at": 1}]
        check("InSlot", snapshot)


@pytest.mark.parametrize("wanted", ["0x10", "0xzz", "Absent", "0xffffffffffffffffffff", ""])
def test_what_is_not_there_is_said(wanted: str, tmp_path: Path) -> None:
    with launch(started(tmp_path)) as program:
        snapshot = diagtool.snapshot(program.pid, why=wanted)
        assert snapshot.tables["heap_ways"] == []
        assert any("names no object" in text for text in snapshot.warnings)
