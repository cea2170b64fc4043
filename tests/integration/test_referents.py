"""What the decoder takes for references of exceptions, tracebacks and frames is one, and counted once.

The program says of its own objects what the collector of its interpreter sees (gc.get_referents), and which
of these must be found.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diagtool.capture.live import capture_live
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.frames.codes import Codes
from diagtool.runtimes.cpython.objects.reader import Objects
from diagtool.runtimes.cpython.objects.referents import Referents
from diagtool.runtimes.cpython.objects.vectors import Vectors
from diagtool.runtimes.cpython.runtime import find_runtime
from diagtool.snapshot.model import SnapshotBuilder, Target
from fixture_programs import Interpreter, all_interpreters, launch

PROGRAM = """
import collections, functools, gc, json, os, signal, sys, threading, types

class Token: pass

class Wrong(Exception):
    __slots__ = ("reason",)

class Worse(OSError):
    pass

def fails(token, kind):
    unused = Token()
    raise kind(token)

def calls(token, kind):
    mine = Token()
    fails(token, kind)

def generator(token, kind):
    mine = Token()
    yield calls(token, kind)

def handles(token, kind):
    mine = Token()
    try:
        next(generator(token, kind))
    except Exception:
        try:
            yield 1
        finally:
            yield 2

async def waits(token):
    mine = Token()
    await types.coroutine(handles)(token, Wrong)

def caught(function, *args):
    try:
        function(*args)
    except BaseException as error:
        return error

def chained():
    try:
        try:
            calls(Token(), KeyError)
        except KeyError as error:
            raise ValueError() from error
    except ValueError:
        raise TypeError()

kept, must = [], []

def keep(*objects):
    kept.extend(objects)

def all_of(error):
    "An exception, its tracebacks and the frames of these."
    keep(error)
    must.append((error, error.__traceback__))
    trace = error.__traceback__
    while trace is not None:
        keep(trace, trace.tb_frame)
        must.append((trace, trace.tb_frame))
        if trace.tb_next is not None:
            must.append((trace, trace.tb_next))
        if trace.tb_frame.f_code in ENDED:
            for value in trace.tb_frame.f_locals.values():
                if isinstance(value, Token):
                    must.append((trace.tb_frame, value))
        trace = trace.tb_next

ENDED = [f.__code__ for f in (fails, calls, generator)]

for kind in (ValueError, StopIteration, OSError, Wrong, Worse, KeyboardInterrupt):
    all_of(caught(calls, Token(), kind))
all_of(caught(next, generator(Token(), ValueError)))
error = caught(chained)
while error is not None:
    all_of(error)
    must += [(error, e) for e in (error.__context__, error.__cause__) if e is not None]
    error = error.__cause__ or error.__context__
error = caught(calls, Token(), Wrong)
error.reason = Token()
error.more = Token()
all_of(error)
must += [(error, error.reason), (error, error.__dict__)]

suspended = handles(Token(), Wrong)
next(suspended)
coroutine = waits(Token())
coroutine.send(None)
inner = coroutine.cr_await
for one in (suspended, inner):
    keep(one)
    handled = [o for o in gc.get_referents(one) if isinstance(o, Exception)]
    must.append((one, handled[0]))
    all_of(handled[0])
keep(coroutine)

class frame(list): "No frame of CPython's."
class traceback(tuple): "No traceback."
keep(frame([Token()]), traceback([Token()]))
frame.__slots__ = ()

containers = [types.MappingProxyType({}), types.SimpleNamespace(x=Token()), iter([Token()]),
              collections.defaultdict(list, {1: Token()}), collections.OrderedDict({1: Token()}),
              functools.partial(print, Token()), collections.deque([Token()])]
for one in containers:
    keep(one)
    inside = [o for o in gc.get_referents(one) if isinstance(o, (dict, list, Token))]
    assert inside
    must += [(one, o) for o in inside]

trace = error = one = None
del handled

def referents(o):
    found = gc.get_referents(o)
    if sys.version_info < (3, 11) and isinstance(o, (types.GeneratorType, types.CoroutineType)):
        # the decoder counts the references of its frame, an object of its own there, as the generator's
        found += gc.get_referents(o.cr_frame if isinstance(o, types.CoroutineType) else o.gi_frame)
    return [id(r) for r in found]

seen = {id(o): (type(o).__name__, referents(o)) for o in kept}
told = {"objects": seen, "must": [(id(a), id(b)) for a, b in must]}
print("READY", os.getpid(), flush=True)
print("TOLD", json.dumps(told), flush=True)
signal.pause()
"""


@pytest.fixture(params=all_interpreters(), ids=str)
def told(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[dict[str, Any], dict[int, Any]]]:
    """What the program tells, and the edges that the decoder finds: object -> how often it refers to what."""
    interpreter: Interpreter = request.param
    (tmp_path / "program.py").write_text(PROGRAM)
    with launch(tmp_path / "program.py", interpreter=interpreter) as program:
        truth = json.loads(program.wait_line("TOLD ")[5:])
        with capture_live(program.pid) as capture:
            runtime = find_runtime(capture)
            objects = Objects(capture.memory, runtime.layout, runtime.version, runtime.free_threaded)
            builder = SnapshotBuilder(Target("live", program.pid))
            ctx = Context(capture, runtime, objects, Vectors(objects), Codes(objects), builder)
            addresses = np.array([int(a) for a in truth["objects"]], np.uint64)
            source, target = Referents(ctx).of(addresses)
    edges: dict[int, Counter[int]] = {a: Counter() for a in addresses.tolist()}
    for at, to in zip(addresses[source].tolist(), target.tolist(), strict=True):
        edges[at][to] += 1
    yield truth, edges


def test_references_of_exceptions_tracebacks_and_frames(told: tuple[dict[str, Any], dict[int, Any]]) -> None:
    truth, edges = told
    for address, (kind, referents) in truth["objects"].items():
        invented = edges[int(address)] - Counter(referents)
        assert not invented, f"{kind} has no such references"
    missing = [(a, b) for a, b in truth["must"] if b not in edges[a]]
    kinds = {truth["objects"][str(a)][0] for a, _ in missing}
    assert not missing, f"references of {kinds} were not found"
