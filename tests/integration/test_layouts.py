"""The layout tables tell the truth about every interpreter on this machine.

Inside each one, a program (inside/) makes objects whose contents it knows, reads its own memory at the places
that the table names, and hands back what it found beside what must be there.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from interpreters import Interpreter, interpreters, run

from diagtool.runtimes.cpython import layouts

INSIDE = Path(__file__).with_name("inside")

#: Part of the program -> how many different keys it compares at least, in every version.
TOPICS = {"objects": 85, "things": 12, "runtime": 25, "flows": 30, "debug_offsets": 0}


@functools.cache
def program() -> str:
    texts = [(INSIDE / "reading.py").read_text()]
    for name in TOPICS:
        texts += [f"TOPIC.append({name!r})", (INSIDE / f"{name}.py").read_text()]
    return "\n".join([*texts, "print(json.dumps(CHECKS, default=lambda raw: raw.decode('latin-1')))"])


@functools.cache
def checks(interpreter: Interpreter) -> list[tuple[str, str, Any, Any]]:
    table = dict(layouts.load(interpreter.full, interpreter.flavour))
    return [tuple(c) for c in json.loads(run(interpreter, program(), json.dumps(table)))]


every_interpreter = pytest.mark.parametrize("interpreter", interpreters(), ids=str)


@every_interpreter
@pytest.mark.parametrize("topic", TOPICS)
def test_fields_lie_where_the_table_says(interpreter: Interpreter, topic: str) -> None:
    made = [c for c in checks(interpreter) if c[0] == topic]
    assert [(key, found, expected) for _, key, found, expected in made if found != expected] == []
    assert len({key for _, key, _, _ in made}) >= TOPICS[topic]


@every_interpreter
def test_the_table_agrees_with_the_interpreters_own_debug_offsets(interpreter: Interpreter) -> None:
    made = [c for c in checks(interpreter) if "DebugOffsets" in c[1]]
    assert [(key, found, expected) for _, key, found, expected in made if found != expected] == []
    minor = int(interpreter.version.split(".")[1])
    assert len({key for _, key, _, _ in made}) >= {13: 60, 14: 80, 15: 90}.get(minor, 0)


@every_interpreter
def test_what_asyncio_and_its_friends_need_works_in_every_interpreter(interpreter: Interpreter) -> None:
    program = """
import asyncio, concurrent.futures, multiprocessing, os, subprocess, sys, tempfile, _asyncio
def double(n): return 2 * n
async def main():
    loop = asyncio.get_running_loop()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        thread = await loop.run_in_executor(pool, double, 21)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(7)", stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=there.send, args=("sent",))
    child.start()
    sent = here.recv()
    child.join()
    with tempfile.TemporaryFile() as file, open(os.devnull) as null:
        file.write(os.urandom(4))
        return thread, out, sent, null.read()
print(asyncio.run(main()))
"""
    assert run(interpreter, program) == "(42, b'7\\n', 'sent', '')\n"
