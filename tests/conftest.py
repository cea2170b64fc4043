"""What every test run says: which interpreters its tests ran on."""

from __future__ import annotations

import collections
import re
import signal

import pytest
from hypothesis import settings

# The machines are slow and shared: no test of ours depends on how long something takes.
settings.register_profile("diagtool", deadline=None)
settings.load_profile("diagtool")

# A shell that runs us in the background has us ignore these, and every program that the tests start with us.
for _number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)

_VERSION = re.compile(r"\b(3\.\d+)\.\d+(?:\w*)((?:-[a-z-]+)?)")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count passed tests by the interpreter in their ids: "test_x[3.12.1-debug]"."""
    counts: collections.Counter[str] = collections.Counter()
    for report in terminalreporter.stats.get("passed", []):
        if not report.nodeid.startswith("tests/integration"):
            continue
        for match in set(_VERSION.findall(report.nodeid.partition("[")[2])):
            counts["".join(match)] += 1
    if counts:
        ordered = sorted(counts.items(), key=lambda item: [int(n) for n in re.findall(r"\d+", item[0])])
        shown = ", ".join(f"{version} ({count})" for version, count in ordered)
        terminalreporter.write_line(f"CPython versions that ran (tests passed): {shown}")
