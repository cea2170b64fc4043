"""Lines of real code objects: what we decode is what each interpreter says itself, for every instruction."""

from __future__ import annotations

import itertools
import json
import subprocess

import pytest
from interpreters import Interpreter, interpreters

from diagtool.runtimes.cpython.frames.linetable import all_lines, find_line, line_at

# Runs in the interpreter under test: many code objects of the standard library and of odd sources, with their
# raw line table and what the interpreter itself makes of it.
_DUMP = r"""
import dis, glob, json, os, sys, types
NEW = sys.version_info >= (3, 10)
ODD = [
    "def far():\n    a = 1\n" + "\n" * 300 + "    b = 2\n" + "\n" * 40000 + "    return a, b\n",
    "x = [\n" + "\n".join("    f(%d)," % i for i in range(500)) + "\n]\n",
    "x = f(\n" + "\n" * 200 + "  a,\n b)(\n c)\n",
    "def long():\n    return [" + ", ".join("a%d.b(c)" % i for i in range(600)) + "]\n",
    '''
def back(s):
    with open(
        s) as f, \
        s:
        for i in f:
            try:
                del i
            except (A,
                    B) as e:
                continue
            finally:
                s()
    while True:
        if s:
            break
        assert s, (
            1)
    return (yield
        s)
async def co(s):
    async with s as t:
        async for i in t:
            await i(
                t)
    return [x async for x in s
        if await x]
class C:
    "doc"
    @property
    @staticmethod
    def f(
        self, a=lambda:
            0):
        pass
''',
]
def codes(code):
    stack = [code]
    while stack:
        c = stack.pop()
        yield c
        stack.extend(k for k in c.co_consts if isinstance(k, types.CodeType))
sources = list(ODD)
root = os.path.dirname(os.__file__)
for pattern in ("*.py", "asyncio/*.py", "concurrent/futures/*.py", "multiprocessing/*.py"):
    for path in sorted(glob.glob(os.path.join(root, pattern)))[:20]:
        with open(path, encoding="utf-8") as f:
            sources.append(f.read())
out = []
for source in sources:
    for c in codes(compile(source, "x", "exec")):
        if NEW:
            table, truth = c.co_linetable, list(c.co_lines())
        else:
            table, starts = c.co_lnotab, list(dis.findlinestarts(c))
            ends = [s for s, _ in starts[1:]] + [len(c.co_code)]
            truth = [(s, e, line) for (s, line), e in zip(starts, ends)]
        out.append((c.co_name, table.hex(), c.co_firstlineno, truth))
json.dump([list(sys.version_info[:2]), out], sys.stdout)
"""


@pytest.mark.parametrize("interpreter", interpreters(), ids=str)
@pytest.mark.parametrize("columns", [True, False], ids=["columns", "no_debug_ranges"])
def test_every_instruction_has_the_line_the_interpreter_gives_it(
    interpreter: Interpreter, columns: bool
) -> None:
    # without columns (3.11+) all entries of the location table have another form; before, it means nothing
    option = [] if columns else ["-X", "no_debug_ranges"]
    done = subprocess.run(
        [*interpreter.argv, "-I", *option, "-c", _DUMP], capture_output=True, check=True, timeout=100
    )
    (major, minor), dumped = json.loads(done.stdout)
    version = (major, minor)
    assert len(dumped) > 1500
    kinds = {"none": 0, "back": 0}
    for name, table_hex, first_line, truth in dumped:
        table = bytes.fromhex(table_hex)
        lines = all_lines(version, table, first_line)
        expected = {o: line for start, end, line in truth for o in range(start, end, 2)}
        got = {o: find_line(lines, first_line, o) for o in expected}
        assert got == expected, name
        for offset in list(expected)[:: max(1, len(expected) // 3)]:
            assert line_at(version, table, first_line, offset) == expected[offset], name
        last = [line for _, _, line in truth if line is not None]
        kinds["none"] += any(line is None for _, _, line in truth)
        kinds["back"] += any(b < a for a, b in itertools.pairwise(last))
        if version >= (3, 10) and truth:  # the table says where the code ends: nothing beyond it has a line
            assert find_line(lines, first_line, truth[-1][1]) is None
    assert kinds["back"] > 100  # lines that go backwards were really part of it
    if version >= (3, 11):
        assert kinds["none"] > 20
