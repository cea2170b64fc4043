"""Programs with a known answer, thousands of them: nobody is said to be stuck who can still be woken.

The worlds are made by tests/programs/random_waits.py, which works the answer out from its own plan.
DIAGTOOL_TEST_WORLDS sets how many there are for each interpreter.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from diagtool.capture.live import capture_live
from diagtool.runtimes.cpython.decode import decode
from diagtool.snapshot.model import Snapshot
from fixture_programs import Interpreter, interpreters, launch

PROGRAM = Path(__file__).parent.parent / "programs" / "random_waits.py"
WORLDS = int(os.environ.get("DIAGTOOL_TEST_WORLDS", "200"))
AT_ONCE = 200  # worlds of one process

pytestmark = pytest.mark.timeout(120 + WORLDS)


def settled(pid: int, names: set[str]) -> Snapshot:
    """A snapshot in which all of these stacks wait: a thread may be on its way still."""
    while True:
        with capture_live(pid) as capture:
            snapshot = decode(capture)
        if all(s.wait for s in snapshot if s.kind == "thread" and s.name in names):
            return snapshot


@pytest.mark.parametrize("interpreter", interpreters(), ids=str)
def test_who_can_be_woken_is_never_stuck_and_most_who_cannot_are(interpreter: Interpreter) -> None:
    found = missed = 0
    for seed in range(0, WORLDS, AT_ONCE):
        count = str(min(AT_ONCE, WORLDS - seed))
        with launch(PROGRAM, interpreter=interpreter, arguments=[str(seed), count]) as program:
            answer = json.loads(program.wait_line("ANSWER ").partition(" ")[2])
            stacks = settled(program.pid, set(answer["stuck"])).stacks
        said = dict(zip(stacks.name, (stacks.stuck == 1).tolist(), strict=True))
        for name, stuck in answer["stuck"].items():
            plan = answer["worlds"][name.partition("-")[0]]
            assert stuck or not said[name], f"{name} of seed {seed} can be woken: {plan}"
            found += stuck and said[name]
            missed += stuck and not said[name]
    assert found > WORLDS
    assert missed <= 0.05 * (found + missed), f"{missed} of {found + missed} were not found"
