"""What is told of caches, registries, strings, exceptions and arrays is what the process itself says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import diagtool
from diagtool.cli import main
from diagtool.leaks.template import builtin
from diagtool.report.json import schema
from diagtool.snapshot.model import Snapshot
from fixture_programs import (
    FIXTURES,
    Fixture,
    FixtureSkipped,
    Interpreter,
    Running,
    interpreters,
    launch,
    libraries,
)

pytestmark = pytest.mark.timeout(300)

ONE = [i for i in interpreters() if i.minor == 12] or interpreters()[-1:]
EDGES = [i for i in interpreters() if i.minor in (9, 14)]
#: What these tests are about, and nothing else: the graph and the native heap have tests of their own.
DETAILS: dict[str, Any] = {"heap": True, "graph": False, "native": False}
JUDGED = [FIXTURES[name] for name in ("d01", "d03", "d04", "d05", "d09", "d11")]
CATALOGUE = {t.id: t.catalogue for t in builtin()}

PROGRAM = """
import atexit, functools, gc, json, logging, os, signal, sys, threading, warnings, weakref

class Store:
    def __init__(self, number):
        self.number = number

    @functools.lru_cache(maxsize=None)
    def load(self, n):
        return [self.number, n]

    @staticmethod
    @functools.lru_cache(maxsize=32)
    def parse(text):
        return text.upper()

    def close(self):
        pass

@functools.lru_cache(maxsize=500)
def power(n, *, of=2):
    return of ** n

def made(n):
    @functools.lru_cache()
    def inner(x):
        return x + n
    inner(1)
    return inner

kept = [Store(i) for i in range(40)]
for store in kept:
    store.load(1), store.load(1), store.load(2)
for i in range(70):
    Store(i).load(3)
for i in range(600):
    power(i, of=3), power(i % 10)
for i in range(50):
    Store.parse("text %d" % (i % 40))
inners = [made(i) for i in range(25)]

for store in kept:
    atexit.register(store.close)
atexit.unregister(kept[0].close)
for store in kept[:30]:
    os.register_at_fork(before=store.close)
signal.signal(signal.SIGUSR1, lambda *args: None)
gc.callbacks.append(lambda phase, info: None)
sys.addaudithook(lambda *args: None)
log = logging.getLogger("shop.orders")
for _ in range(6):
    log.addHandler(logging.StreamHandler(sys.stderr))
loud = logging.StreamHandler(sys.stderr)
loud.setLevel(logging.ERROR)
log.addHandler(loud)
for i in range(120):
    logging.getLogger("request-%d" % i)
for store in kept[:20]:
    weakref.finalize(store, store.close)
for store in kept[20:]:
    weakref.finalize(store, print, 1)
watched = [weakref.ref(log, lambda ref: None) for _ in range(80)]
warnings.simplefilter("default")
warnings.showwarning = lambda *args: None
for i in range(90):
    warnings.warn("text %d" % i)
words = [sys.intern("a word of its own: %d" % i) for i in range(3000)]

infos = {"Store.load": Store.load, "Store.parse": Store.parse, "power": power}
print("SAID", json.dumps({
    "caches": {name: list(f.cache_info()) for name, f in infos.items()},
    "atexit": atexit._ncallbacks() - (sys.version_info < (3, 14)),  # which counts the one that is gone
    "loggers": 1 + sum(isinstance(v, logging.Logger) for v in logging.root.manager.loggerDict.values()),
    "finalizers": len(weakref.finalize._registry),
    "warned": len(__warningregistry__),
    "modules": len(sys.modules),
}), flush=True)
print("READY", os.getpid(), flush=True)
while True:
    signal.pause()
"""


def said(program: Running) -> Any:
    return json.loads(next(line for line in program.lines() if line.startswith("SAID ")).partition(" ")[2])


def by_registry(snapshot: Snapshot) -> dict[tuple[str, str], dict[str, Any]]:
    return {(r["registry"], r["name"]): r for r in snapshot.tables["registries"]}


def check_caches(snapshot: Snapshot, truth: dict[str, list[Any]]) -> None:
    rows = {r["function"]: r for r in snapshot.tables["caches"]}
    for name, (hits, misses, maxsize, size) in truth.items():
        row = rows[f"__main__.{name}"]
        assert [row[k] for k in ("hits", "misses", "maxsize", "size")] == [hits, misses, maxsize, size]
    load = rows["__main__.Store.load"]
    assert load["held_in"] == "class __main__.Store"
    assert (load["method"], load["instances_of"], load["instances"], load["lost"]) == (
        True,
        "__main__.Store",
        110,
        70,
    )
    assert rows["__main__.Store.parse"]["held_in"] == "class __main__.Store"
    assert not rows["__main__.Store.parse"]["method"]
    assert rows["__main__.power"]["held_in"] == "module __main__"
    inner = rows["__main__.made.<locals>.inner"]
    assert (inner["caches"], inner["size"], inner["held_in"]) == (25, 25, None)
    assert all(row["lost"] == 0 for name, row in rows.items() if name != "__main__.Store.load")


def check_registries(snapshot: Snapshot, truth: dict[str, Any]) -> None:
    rows = by_registry(snapshot)
    at_exit = rows["atexit", ""]
    assert at_exit["items"] == truth["atexit"]  # what was unregistered is not there any more
    assert (at_exit["same"], at_exit["example"]) == (39, "__main__.Store.close")
    assert (at_exit["instances"], at_exit["bound_to"]) == (39, "__main__.Store")
    assert rows["os.register_at_fork before", ""]["same"] == 30
    assert rows["gc.callbacks", ""]["items"] == rows["sys.addaudithook", ""]["items"] == 1
    handlers = rows["logging handlers", "shop.orders"]
    assert (handlers["items"], handlers["duplicates"]) == (7, 5)
    loggers = rows["logging.getLogger", ""]
    assert (loggers["items"], loggers["same"], loggers["example"]) == (truth["loggers"], 120, "request-#")
    finalizers = rows["weakref.finalize", "__main__.Store"]
    assert (finalizers["items"], finalizers["self_kept"]) == (truth["finalizers"], 20)
    watched = rows["weakref callbacks of one object", "logging.Logger"]
    assert watched["items"] == 80
    assert rows["__warningregistry__", "__main__"]["items"] == truth["warned"]
    assert rows["sys.modules", ""]["items"] == truth["modules"]


@pytest.mark.parametrize("interpreter", interpreters(), ids=str)
def test_caches_and_registries_are_what_the_process_says(interpreter: Interpreter, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    with launch(path, interpreter=interpreter) as program:
        snapshot = diagtool.snapshot(program.pid, **DETAILS)
        truth = said(program)
        check_caches(snapshot, truth["caches"])
        check_registries(snapshot, truth)
        strings = snapshot.tables["interned"][0]
        assert strings["count"] >= 3000
        assert strings["mortal"] + strings["immortal"] == strings["count"]
        if interpreter in EDGES:  # memory of a core is no other
            core = diagtool.snapshot(program.gcore(tmp_path), sysroot=interpreter.root, **DETAILS)
            check_caches(core, truth["caches"])
            check_registries(core, truth)


def told(snapshot: Snapshot) -> list[tuple[str, str | None]]:
    return [(f.verdict, f.template) for f in diagtool.find_leaks(snapshot).findings]


def complaint(fixture: Fixture, mode: str, interpreter: Interpreter) -> str | None:
    """What is wrong with the report about one program; None when nothing is, or it can't run here."""
    try:
        with launch(fixture, mode, interpreter) as program:
            found = told(diagtool.snapshot(program.pid, **DETAILS))
    except FixtureSkipped:
        return None
    if mode in fixture.leak_modes:
        right = [t for _, t in found if CATALOGUE.get(t or "") == fixture.template]
        return None if right and len(right) == len(found) else f"{mode}: {found}"
    return f"{mode}: {found}" if found else None


def complaints(fixture: Fixture, interpreter: Interpreter) -> Iterator[str]:
    modes = [*fixture.leak_modes, *fixture.healthy_modes]
    with ThreadPoolExecutor(2) as pool:
        yield from filter(None, pool.map(lambda mode: complaint(fixture, mode, interpreter), modes))


@pytest.mark.parametrize("fixture", JUDGED, ids=str)
@pytest.mark.parametrize("interpreter", ONE, ids=str)
def test_leaks_are_found_and_healthy_programs_are_not(interpreter: Interpreter, fixture: Fixture) -> None:
    assert list(complaints(fixture, interpreter)) == []


@pytest.mark.parametrize(("name", "mode"), [("d01", "leak2"), ("d03", "leak2"), ("d04", "leak3")])
@pytest.mark.parametrize("interpreter", EDGES, ids=str)
def test_a_leak_is_found_in_a_core(interpreter: Interpreter, name: str, mode: str, tmp_path: Path) -> None:
    with launch(FIXTURES[name], mode, interpreter) as program:
        core = program.gcore(tmp_path)
    found = told(diagtool.snapshot(core, sysroot=interpreter.root, **DETAILS))
    assert [CATALOGUE.get(t or "") for _, t in found] == [FIXTURES[name].template]


@pytest.mark.parametrize(("name", "rounds"), [("d03", 3), ("d05", 3)])
@pytest.mark.parametrize("interpreter", ONE, ids=str)
def test_growth_makes_a_leak_likely(interpreter: Interpreter, name: str, rounds: int) -> None:
    with launch(FIXTURES[name], "leak", interpreter) as program:
        series = [diagtool.snapshot(program.pid, **DETAILS)]
        for _ in range(rounds - 1):
            program.grow()
            series.append(diagtool.snapshot(program.pid, **DETAILS))
    found = [(f.verdict, CATALOGUE.get(f.template or "")) for f in diagtool.find_leaks(series).findings]
    assert ("likely", name.upper()) in found


ARRAYS = """
import os, signal
import numpy
kept = [numpy.zeros(1000) for _ in range(100)]
views = [a[:500] for a in kept] + [a.reshape(10, 100).T for a in kept]
columns = [numpy.zeros((1000, 100), numpy.float32, order="F")[:, 3] for _ in range(20)]
buffer = bytearray(3_000_000)
shared = [numpy.frombuffer(buffer, numpy.uint8) for _ in range(10)]
wide = numpy.broadcast_to(numpy.zeros(1), (1000, 1000))
print("READY", os.getpid(), flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize("interpreter", ONE, ids=str)
def test_arrays_own_their_data_and_views_own_none(interpreter: Interpreter, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(ARRAYS)
    folder = str(libraries(interpreter, ("numpy",)))
    with launch(path, interpreter=interpreter, env={"PYTHONPATH": folder}) as program:
        snapshot = diagtool.snapshot(program.pid, **DETAILS)
    owned = {row["type"]: row["owned"] for row in snapshot.tables["heap_types"]}
    data = 100 * 8000 + 20 * 400_000
    assert data <= owned["numpy.ndarray"] <= data + 100_000  # shapes, strides, and what numpy has itself
    assert 3_000_000 <= owned["bytearray"] <= 3_010_000


SECRETS = """
import os, signal

class User:
    def __init__(self, number):
        self.name = "user \\x1b[31m %d" % number
        self.password = "secret-attribute-%d" % number

class Slots:
    __slots__ = ("name", "token")

    def __init__(self, number):
        self.name, self.token = "slot %d" % number, "secret-slot-%d" % number

class Text(str):
    pass

pid = os.getpid()
users = [User(i) for i in range(3)]
slots = [Slots(i) for i in range(3)]
shown = [Text("shown-%d" % i) for i in range(2)]
mapping = {"api_key": Text("secret-value-%d" % pid), "host": Text("shown-host-%d" % pid)}
AUTH_TOKEN = Text("secret-global-%d" % pid)
header = [Text("Bearer secret-text-%d" % pid)]

class Holder:
    pass

holder = Holder()
holder.session_secret = Text("secret-of-holder-%d" % pid)

def generate(password):
    yield 1

def failing(passphrase):
    raise ValueError(1)

try:
    failing(Text("secret-frame-%d" % pid))
except ValueError as error:
    stored = error

def work(private_key):
    generator = generate(Text("secret-generator-%d" % pid))
    next(generator)
    print("READY", pid, flush=True)
    while True:
        signal.pause()

work(Text("secret-local-%d" % pid))
"""


@pytest.mark.parametrize("interpreter", [*EDGES, *ONE], ids=str)
def test_values_are_shown_and_secrets_are_not(
    interpreter: Interpreter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "program.py"
    path.write_text(SECRETS)
    with launch(path, interpreter=interpreter) as program:
        texts = diagtool.snapshot(program.pid, values="__main__.Text", **DETAILS).tables["heap_values"]
        assert main(["heap", str(program.pid), "--type", "__main__.*", "--values"]) == 0
        output = capsys.readouterr().out
        assert main(["heap", str(program.pid), "--type", "User", "--values", "--format", "json"]) == 0
        document = json.loads(capsys.readouterr().out)
    values = sorted(row.get("value", "") for row in texts)
    assert sum("shown-" in value for value in values) == 3
    assert sum("hidden" in row for row in texts) == 6
    assert not any("secret" in value for value in values)
    assert "secret-" not in output
    assert "\x1b" not in output
    assert "slot 2" in output
    assert "password=(hidden)" in output
    jsonschema.validate(document, schema("heap"))
    assert [row["type"] for row in document["values"]] == ["__main__.User"] * 3


@pytest.mark.parametrize("interpreter", ONE, ids=str)
def test_every_view_has_its_page_of_text(
    interpreter: Interpreter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    file = tmp_path / "program.diag"
    with launch(path, interpreter=interpreter) as program:
        assert main(["snapshot", str(program.pid), "--heap", "-o", str(file)]) == 0
    capsys.readouterr()
    expected = {
        "caches": "__main__.Store.load",
        "registries": "__main__.Store.close",
        "strings": "interned",
        "exceptions": "No stored exception",
        "views": "No view of an array",
        "debug": "Nothing was written down",
    }
    for view, text in expected.items():
        assert main(["heap", str(file), "--show", view]) == 0
        assert text in capsys.readouterr().out
    assert main(["heap", str(file), "--show", "caches", "--type", "power"]) == 0
    assert "1 cached function" in capsys.readouterr().out
    assert main(["heap", str(file), "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, schema("heap"))
    assert document["caches"][0]["address"].startswith("0x")
    assert main(["heap", str(file), "--values", "--type", "Store"]) == 3
