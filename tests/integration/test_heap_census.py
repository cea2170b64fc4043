"""The census is what the process itself says of its objects, live and from its core, in every version."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import diagtool
from diagtool.snapshot.model import Snapshot
from fixture_programs import Interpreter, Running, all_interpreters, interpreters, launch, some

#: Objects of one type may differ by these: what the program made to count them.
WITHIN = 0.005
FEW = {"count": 30, "bytes": 5000}
#: What free lists keep looks alive in a block of malloc.
MORE = {"count": 500, "bytes": 30_000}

PROGRAM = """
import array, collections, gc, json, os, signal, sys

class Node:
    def __init__(self, i):
        self.i = i

def numbers():
    yield 1

class Slot:
    __slots__ = ("a", "b")

class Mapping(dict):
    pass

N = 20_000
kept = None

def make():
    made = [
        [Node(i) for i in range(N)], [Slot() for i in range(N)], ["name %d" % i for i in range(N)],
        [i * 1.5 for i in range(N)], [1 << i % 3000 for i in range(N)], [(i, str(i)) for i in range(N)],
        [{"a%d" % (i % 7): i} for i in range(N // 5)], [Mapping(a=1) for i in range(N // 5)],
        [bytes(1000 + i % 999) for i in range(N // 20)], ["x" * (600 + i % 999) for i in range(N // 20)],
        ["\\u0416" * (i % 400) for i in range(N // 20)], ["\\U0001f600" * (i % 99) for i in range(N // 20)],
        [bytearray(3000) for i in range(N // 50)], [set(range(i % 20)) for i in range(N // 20)],
        [frozenset(range(i % 20)) for i in range(N // 20)],
        [tuple(range(i % 99 + 70)) for i in range(N // 50)],
        [collections.deque(range(i % 200)) for i in range(N // 50)],
        [array.array("d", range(9)) for i in range(500)],
        [[None] * (i % 50) for i in range(N // 20)], [type("T%d" % i, (), {}) for i in range(2)],
        [(lambda i: (lambda: i))(i) for i in range(500)], [numbers() for i in range(500)],
    ]
    del made[0][::3], made[3][::2], made[2][5:9000]
    return made

def count():
    seen, todo, kinds, sizes = set(), [kept], {}, {}
    while todo:
        o = todo.pop()
        if id(o) in seen or abs(id(o) - id(type)) < 4 << 20:  # nearer: in the interpreter's own data
            continue
        seen.add(id(o))
        name = type(o).__name__
        kinds[name] = kinds.get(name, 0) + 1
        sizes[name] = sizes.get(name, 0) + sys.getsizeof(o)
        if isinstance(o, (list, tuple, dict, set, frozenset, collections.deque, Node, Slot)):
            todo.extend(x for x in gc.get_referents(o) if not isinstance(x, type) or x.__name__[0] == "T")
        if isinstance(o, dict):
            todo.extend(o)  # the collector is not shown keys that are all strings
        if name == "function":
            todo.append(o.__closure__)
    return {"count": kinds, "bytes": sizes}

def again(*_):
    global kept
    kept = make()
    gc.collect()
    print("SAID", json.dumps(count()), flush=True)
    kept.append(sys.getallocatedblocks())
    print("GREW", kept[-1], flush=True)

kept = []
gc.collect()  # so that no garbage is counted before that is gone afterwards
print("SAID", json.dumps(count()), flush=True)
signal.signal(signal.SIGUSR2, again)
print("READY", os.getpid(), flush=True)
while True:
    signal.pause()
"""

#: What sys.getsizeof counts as we do. (It leaves out attribute values from 3.11 on.)
SAME_BYTES = (
    "str",
    "float",
    "int",
    "tuple",
    "Slot",
    "bytes",
    "bytearray",
    "set",
    "frozenset",
    "list",
    "deque",
    "array",
    "dict",
    "generator",
    "function",
    "cell",
)


def by_type(snapshot: Snapshot) -> dict[str, dict[str, int]]:
    out: dict[str, dict[str, int]] = {"count": {}, "bytes": {}}
    for row in snapshot.tables["heap_types"]:
        name = row["type"].rpartition(".")[2]
        for what, sums in out.items():
            sums[name] = sums.get(name, 0) + row[what]
    return out


def compare(program: Running, take: Callable[[], Snapshot], few: dict[str, int] = FEW) -> None:
    """What is there after the program has made its objects, less what was there before, is what it made."""
    before = by_type(take())
    program.grow()
    snapshot = take()
    after = by_type(snapshot)
    lines = [line for line in program.lines() if line.startswith(("SAID", "GREW"))]
    made: dict[str, dict[str, int]] = json.loads(lines[-2].partition(" ")[2])
    blocks = int(lines[-1].split()[1])
    for what in ("count", "bytes"):
        found = {name: n - before[what].get(name, 0) for name, n in after[what].items()}
        wrong = {
            name: (n, found.get(name, 0))
            for name, n in made[what].items()
            if abs(found.get(name, 0) - n) > max(few[what], WITHIN * n)
            and (what == "count" or name in SAME_BYTES)
        }
        assert not wrong, f"{what} by type: what the program made, and what was found"
    assert abs(after["count"]["Node"] - made["count"]["Node"]) <= (few is not FEW)
    used = snapshot.tables["heap"][0]["blocks"]
    assert used <= blocks * (1 + WITHIN)
    large = sum(n for name, n in made["count"].items() if name in ("bytes", "str", "tuple", "bytearray"))
    assert used == 0 or used > blocks - large


@pytest.mark.parametrize("interpreter", all_interpreters(), ids=str)
def test_the_census_is_what_the_process_says(interpreter: Interpreter, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    with launch(path, interpreter=interpreter) as program:
        compare(program, lambda: diagtool.snapshot(program.pid, heap=True))


@pytest.mark.parametrize("interpreter", some(interpreters(), 10, 13, 15), ids=str)
def test_the_census_of_a_core_is_the_same(interpreter: Interpreter, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    with launch(path, interpreter=interpreter) as program:

        def take() -> Snapshot:
            core = program.gcore(tmp_path)
            return diagtool.snapshot(core, sysroot=interpreter.root, heap=True)

        compare(program, take)


@pytest.mark.parametrize("allocator", ["malloc", "debug", "malloc_debug"])
@pytest.mark.parametrize("interpreter", some(interpreters(), 9, 13), ids=str)
def test_another_allocator_gives_the_same(interpreter: Interpreter, allocator: str, tmp_path: Path) -> None:
    if interpreter.flavour == "free-threaded" and "malloc" in allocator:
        pytest.skip("free-threaded builds use mimalloc alone")
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    with launch(path, interpreter=interpreter, env={"PYTHONMALLOC": allocator}) as program:
        compare(
            program, lambda: diagtool.snapshot(program.pid, heap=True), FEW if allocator == "debug" else MORE
        )
