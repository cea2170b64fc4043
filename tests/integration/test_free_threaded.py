"""Free-threaded builds: all objects, from the pages of all threads, and who holds a GIL that is not there.

They run where tools/fetch_interpreters.py --free-threaded could build an interpreter.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import diagtool
from diagtool.snapshot.model import Snapshot
from fixture_programs import Interpreter, Running, interpreters, launch

FREE_THREADED = interpreters("free-threaded")
NONE = pytest.param(None, marks=pytest.mark.skip(reason="no free-threaded interpreter on this machine"))
on_each = pytest.mark.parametrize("interpreter", FREE_THREADED or [NONE], ids=str)

#: Memory of threads that ended, of threads that wait, and what others freed of it; blocks of all sizes.
PROGRAM = """
import collections, gc, json, os, sys, threading

class Node:
    def __init__(self, i):
        self.i = i

class Slot:
    __slots__ = ("a", "b")

class Other(dict):
    pass

kept, filled, end = {}, threading.Semaphore(0), threading.Event()

def fill(name, n, wait):
    kept[name] = [
        [Node(i), Slot(), (i, str(i)), {"a": [i]}, Other(b=i), i * 1.5, bytes(i % 4000)] for i in range(n)
    ]
    filled.release()
    if wait:
        end.wait()

threads = [threading.Thread(target=fill, args=("thread %d" % i, 4000, i < 3), daemon=True) for i in range(6)]
for t in threads:
    t.start()
for t in threads:
    filled.acquire()
for t in threads[3:]:
    t.join()
fill("main", 4000, False)
for i in (0, 1, 3, 4):
    del kept["thread %d" % i][::2]  # freed by another thread than the one that made them
del kept["thread 5"], kept["main"][100:]
large = [bytearray(1 << 20), bytes(20 << 20), [None] * (1 << 20), "x" * (100 << 10)]
gc.collect()
counted = collections.Counter(type(o).__name__ for o in gc.get_objects())
tracked = {name: counted[name] for name in ("Node", "Other", "function", "module", "type", "Thread")}
blocks = sys.getallocatedblocks()
print("SAID", json.dumps({"tracked": tracked, "blocks": blocks}))
print("READY", os.getpid(), flush=True)
end.wait()
"""


def check(program: Running, snapshot: Snapshot) -> None:
    said = json.loads(next(line for line in program.lines() if line.startswith("SAID")).partition(" ")[2])
    found: dict[str, int] = {}
    for row in snapshot.tables["heap_types"]:
        name = row["type"].rpartition(".")[2]
        found[name] = found.get(name, 0) + row["count"]
    tracked, newer = said["tracked"], " 3.13" not in snapshot.target.runtime
    for name in ("Node", "Other", "Thread"):
        assert found[name] == tracked[name], name
    for name in ("function", "module", "type"):  # 3.13 makes them immortal when a thread starts
        assert found[name] >= tracked[name] >= 0.99 * found[name] * newer, name
    assert found["Slot"] == found["Node"]
    (sums,) = snapshot.tables["heap"]
    assert abs(sums["blocks"] - said["blocks"]) <= 0.005 * said["blocks"]
    assert not snapshot.warnings
    assert all(t.holds_gil is None and t.waits_for_gil is None for t in snapshot.threads if t.python)


@on_each
def test_the_objects_of_all_threads_are_counted(interpreter: Interpreter, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    with launch(path, interpreter=interpreter) as program:
        check(program, diagtool.snapshot(program.pid, heap=True))
        check(program, diagtool.snapshot(program.gcore(tmp_path), heap=True))


#: Cycles that a thread left which has ended, references that C code took, and what is healthy beside them.
GRAPH = """
import gc, os, sys, threading, weakref
try:
    import ctypes
except ImportError:
    print("SKIP this build has no ctypes", flush=True)
gc.disable()

class Kept:
    def __init__(self, i):
        self.text = "kept %d" % i

class Cycle:
    def __init__(self):
        self.me, self.data = self, bytes(1000)

class Lost:
    pass

kept, weak = {}, []

def fill():
    for i in range(3000):
        kept[i] = Kept(i)
        weak.append(weakref.ref(kept[i]))
    for i in range(2000):
        Cycle()
    if "leak" in sys.argv:
        for i in range(700):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(Lost()))

thread = threading.Thread(target=fill)
thread.start()
thread.join()
if "leak" not in sys.argv:
    gc.enable()
    gc.collect()
print("READY", os.getpid(), flush=True)
threading.Event().wait()
"""


@on_each
@pytest.mark.parametrize("mode", ["leak", "healthy"])
def test_who_keeps_what_and_what_nobody_does(interpreter: Interpreter, mode: str, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(GRAPH)
    with launch(path, interpreter=interpreter, arguments=[mode]) as program:
        tables = diagtool.snapshot(program.pid, heap=True, graph=True).tables
    assert tables["heap_graph"][0]["exact"] is True
    garbage = {row["type"]: row["in_cycles"] for row in tables["heap_garbage"]}
    lost = {row["type"]: row["unreferenced"] for row in tables["heap_lost"]}
    if mode == "leak":
        assert 1900 <= garbage["__main__.Cycle"] <= 2000  # a few lie on the stack still
        assert 600 <= lost.pop("__main__.Lost") <= 700  # what was left in memory in use may hide some
    else:
        assert not garbage
    assert not any(lost.values())
    rows = {row["name"]: row for row in tables["heap_retained"] if row["what"] == "type"}
    assert rows["__main__.Kept"]["objects"] == 6000  # each with its text
    assert rows["__main__.Kept"]["bytes"] >= 3000 * (64 + 48)


def test_one_that_could_not_be_had_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """The core of another interpreter, made to say that it was a free-threaded 3.15."""
    newer = [i for i in interpreters("release") if i.minor >= 13 and not i.root]
    if not newer:
        pytest.skip("no interpreter here says at the start of its data what it is")
    path = tmp_path / "program.py"
    path.write_text("import os, time; print('READY', os.getpid(), flush=True); time.sleep(1000)")
    with launch(path, interpreter=newer[0]) as program:
        core = program.gcore(tmp_path)
    data = bytearray(core.read_bytes())
    start = data.index(b"xdebugpy")
    while data[start + 10 : start + 12] != bytes([newer[0].minor, 3]):  # the same letters elsewhere
        start = data.index(b"xdebugpy", start + 1)
    data[start + 8 : start + 24] = struct.pack("<QQ", 0x030F00F0, 1)
    core.write_bytes(data)
    for command in ("heap", "stacks"):
        done = subprocess.run(
            [sys.executable, "-m", "diagtool", command, str(core)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 3
        assert "free-threaded CPython 3.15 is not read" in done.stderr
        assert len(done.stderr.splitlines()) == 2  # what, and what to do


@on_each
def test_a_gil_that_was_asked_for_has_a_holder(interpreter: Interpreter, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(
        "import os, threading\n"
        "def spin():\n    while True: pass\n"
        "for i in range(2): threading.Thread(target=spin).start()\n"
        "print('READY', os.getpid(), flush=True)\n"
        "threading.Event().wait()\n"
    )
    with launch(path, interpreter=interpreter, env={"PYTHON_GIL": "1"}) as program:
        held = [t.holds_gil for t in diagtool.snapshot(program.pid).threads if t.python]
        assert None not in held
        while not any(held):  # now and then nobody holds it
            held = [t.holds_gil for t in diagtool.snapshot(program.pid).threads]
