"""What diagtool's own templates say about what was left: in a process of its own, that looks at this one.

    python -m diagtool.probes.engine PID '{"threads": [tid, ...], "tasks": [address, ...]}'

prints a JSON object: {"tid or address": {"template", "title", "cause", "fix", "runbook"}}. It is only asked
about what is a leak already, a few times a session, and what it cannot say in time is left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from diagtool.probes.left import Left

#: How often a session asks, seconds each time, and things asked about at once.
RUNS, SECONDS, _MOST = 5, 10.0, 20
_PR_SET_PTRACER = 0x59616D61  # include/uapi/linux/prctl.h


class Engine:
    """Asks; what is like something that was judged before is not asked about again."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        # Tests replace these names; what they are now is kept.
        from subprocess import PIPE, Popen, TimeoutExpired

        self._popen, self._pipe, self._expired = Popen, PIPE, TimeoutExpired
        self._said: dict[tuple[object, ...], dict[str, str]] = {}
        self._runs = 0

    def explain(self, leaks: Iterable[Left]) -> None:
        """Add template, title, cause, fix and runbook to those that the templates know."""
        asked = [left for left in leaks if left.native_id or left.address]
        unknown = {left.likeness: left for left in asked if left.likeness not in self._said}
        likeness = {id(left): left.likeness for left in asked}
        if unknown and self._runs < RUNS:
            self._runs += 1
            answers = self._ask(list(unknown.values())[:_MOST])
            for alike, left in unknown.items():
                self._said[alike] = answers.get(str(left.native_id or left.address), {})
        for left in asked:
            for name, value in self._said.get(likeness[id(left)], {}).items():
                setattr(left, name, value)

    def _ask(self, leaks: list[Left]) -> dict[str, dict[str, str]]:
        import os

        asked = {
            "threads": [left.native_id for left in leaks if left.native_id],
            "tasks": [left.address for left in leaks if left.address],
        }
        command = [sys.executable, "-m", __name__, str(os.getpid()), json.dumps(asked)]
        try:
            process = self._popen(command, stdin=self._pipe, stdout=self._pipe, stderr=self._pipe)
        except OSError:
            return {}
        try:
            _let_trace(process.pid)
            output, _ = process.communicate(b"go\n", timeout=self._seconds)
            answer = json.loads(output)
        except (self._expired, OSError, ValueError):
            process.kill()
            process.communicate()
            return {}
        return answer if isinstance(answer, dict) else {}


# Yama (kernel.yama.ptrace_scope=1) lets parents look at children; the other way it must be allowed.
def _let_trace(pid: int) -> None:
    import ctypes

    try:
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, pid, 0, 0, 0)
    except (OSError, AttributeError):
        pass


def judge(pid: int, asked: dict[str, list[int]]) -> dict[str, dict[str, str]]:
    """What the templates say about these threads and tasks of a live process, each for itself."""
    import numpy as np

    from diagtool import api

    snapshot = api.snapshot(pid, frames=False, inventory=())
    stacks = snapshot.stacks
    wanted = {int(n) for numbers in asked.values() for n in numbers}
    out = {}
    for row, address in enumerate(stacks.address.tolist()):
        if address not in wanted:
            continue
        alone: dict[str, Any] = {}
        for name in stacks.__dataclass_fields__:
            column = getattr(stacks, name)
            alone[name] = column[row : row + 1] if isinstance(column, np.ndarray) else [column[row]]
        report = api.find_leaks(replace(snapshot, stacks=replace(stacks, **alone)), min_count=1)
        for finding in report.findings:
            # Of the stack itself, not of tables that came with it, and nothing that is only suspected.
            of_stack = finding.kind in ("thread", "task") and finding.frames and finding.count == 1
            if finding.template and of_stack and finding.verdict != "suspect":
                out[str(address)] = {
                    "template": finding.template,
                    "title": finding.title,
                    "cause": finding.cause,
                    "fix": finding.fix,
                    "runbook": finding.runbook or "",
                }
                break
    return out


def main() -> None:
    """Wait until the parent has allowed it, look, print."""
    from diagtool.capture.errors import TargetError

    sys.stdin.readline()
    try:
        answer = judge(int(sys.argv[1]), json.loads(sys.argv[2]))
    except TargetError:
        answer = {}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
