"""What a snapshot keeps so that growth can be told: the heaps as the process counts them, who holds most."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diagtool
from diagtool.snapshot.model import Snapshot
from fixture_programs import Interpreter, Running, interpreters, launch

#: Interpreters with and without what changed in between: dict keys, inline values, the collector.
SOME = [i for i in interpreters() if i.minor in (9, 12, 14)]

PROGRAM = """
import collections, gc, json, mmap, os, signal, sys

class Image:
    def __init__(self, i):
        self.pixels = bytes(2000)
        self.tags = [str(i), {"a": i}]

class Table(dict):
    pass

class Service:
    registry = set()
    def __init__(self):
        self._images = {}
        self.recent = collections.deque()
        self.last = collections.deque(maxlen=1000)
        self.ordered = collections.OrderedDict()

service = Service()
log = []
table = Table()

def make(first, n):
    for i in range(first, first + n):
        service._images["k%d" % i] = Image(i)
        service.recent.append(("r", i * 1000))
        service.last.append("l%d" % i)
        service.ordered["o%d" % i] = i * 1.5
        Service.registry.add("s%d" % i)
        log.append("entry %d" % i)
        table[i + 1000] = {"row": i}

def say():
    gc.collect()
    print("SAID", json.dumps([len(gc.get_objects()), sys.getallocatedblocks(), gc.isenabled()]), flush=True)

def again(*_):
    make(len(log), 3000)
    for i in range(5):
        open("counter_%d.db" % (len(maps) + 1), "wb").write(bytes(4096))
        with open("counter_%d.db" % (len(maps) + 1), "r+b") as f:
            maps.append(mmap.mmap(f.fileno(), 4096))
    say()
    print("GREW", os.getpid(), flush=True)

maps = []
make(0, 6000)
signal.signal(signal.SIGUSR2, again)
say()
print("READY", os.getpid(), flush=True)
while True:
    signal.pause()
"""

#: name: (type, items before and after, the way to it)
HELD = {
    "_images": (
        "dict",
        6000,
        9000,
        "module __main__ → service (__main__.Service) → _images (dict, {} items)",
    ),
    "recent": ("collections.deque", 6000, 9000, "module __main__ → service (__main__.Service) → recent (…"),
    "last": ("collections.deque", 1000, 1000, ""),
    "ordered": ("collections.OrderedDict", 6000, 9000, ""),
    "registry": ("set", 6000, 9000, "module __main__ → Service (type) → registry (set, {} items)"),
    "log": ("list", 6000, 9000, "module __main__ → log (list, {} items)"),
    "table": ("__main__.Table", 6000, 9000, "module __main__ → table (__main__.Table)"),
}


def started(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def containers(snapshot: Snapshot) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in snapshot.tables["heap_containers"] if row["own_module"]}


def check(program: Running, take: Callable[[], Snapshot]) -> tuple[Snapshot, Snapshot]:
    before = take()
    program.grow()
    after = take()
    old, new = containers(before), containers(after)
    for name, (kind, first, last, way) in HELD.items():
        a, b = old[name], new[name]
        assert (a["type"], a["items"], b["items"]) == (kind, first, last), name
        assert a["address"] == b["address"]
        assert b["held_by"].startswith(way.format(f"{last:,}").rstrip("(…")), b["held_by"]
        if name == "last":
            assert b["limit"] == 1000
        elif name == "registry":
            assert not b["oldest"]
        else:  # the first ones are still there
            assert a["limit"] is None
            assert len(a["oldest"]) == 8
            assert a["oldest"] == b["oldest"]
    # 2,033 bytes of pixels and what belongs to them: at least three quarters of all of it.
    assert 0.75 < new["_images"]["bytes"] / (9000 * 2600) < 1.5
    assert new["_images"]["item_types"][0] in ("__main__.Image", "str")
    said = [json.loads(line.partition(" ")[2]) for line in program.lines() if line.startswith("SAID")]
    for snapshot, (tracked, blocks, enabled) in zip((before, after), said, strict=True):
        (heaps,) = snapshot.tables["heaps"]
        # gc.get_objects() is silent about what is frozen: 375 tuples that cannot die in 3.12.
        assert tracked * 0.995 - 60 <= heaps["collected"] <= tracked * 1.005 + 600
        assert heaps["collects"] is enabled
        if heaps["blocks"] is not None:  # 9,000 pixels are too large for it
            assert blocks - 10_000 - tracked // 10 < heaps["blocks"] <= blocks * 1.005
    return before, after


@pytest.mark.parametrize("interpreter", SOME, ids=str)
def test_a_snapshot_knows_the_largest_containers_and_who_keeps_them(
    interpreter: Interpreter, tmp_path: Path
) -> None:
    with launch(started(tmp_path), interpreter=interpreter) as program:
        before, after = check(program, lambda: diagtool.snapshot(program.pid, heap=True))
        for snapshot in (before, after):
            (heaps,) = snapshot.tables["heaps"]
            assert heaps["rss"] > heaps["rss_anon"] > heaps["object_bytes"] / 2
        maps = {row["pattern"].rpartition("/")[2]: row for row in after.tables["mapped_files"]}
        assert (maps["counter_#.db"]["count"], maps["counter_#.db"]["files"]) == (5, 5)
        assert not any("counter" in row["pattern"] for row in before.tables["mapped_files"])


@pytest.mark.parametrize("interpreter", SOME[1:2], ids=str)
def test_a_core_tells_the_same(interpreter: Interpreter, tmp_path: Path) -> None:
    with launch(started(tmp_path), interpreter=interpreter) as program:

        def take() -> Snapshot:
            return diagtool.snapshot(program.gcore(tmp_path), sysroot=interpreter.root, heap=True)

        _, after = check(program, take)
        assert after.tables["heaps"][0]["rss"] is None


def test_resident_memory_and_mapped_files_need_no_look_at_the_heap(tmp_path: Path) -> None:
    with launch(started(tmp_path)) as program:
        tables = diagtool.snapshot(program.pid).tables
        assert tables["heaps"][0]["rss"] > 1 << 20
        assert "collected" not in tables["heaps"][0]
        assert "heap_containers" not in tables
