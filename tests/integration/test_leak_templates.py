"""The promise of the templates: what leaks is found and what is healthy is not, in every version of CPython.

Every program of tests/fixture_programs.py runs in all its modes; each is looked at live, once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from diagtool.capture.live import capture_live
from diagtool.leaks import find_leaks
from diagtool.leaks.model import Finding
from diagtool.leaks.template import builtin
from diagtool.runtimes.decode import decode
from diagtool.snapshot.model import Snapshot
from fixture_programs import (
    FIXTURES,
    Fixture,
    FixtureSkipped,
    Interpreter,
    Running,
    interpreters,
    is_left_out,
    launch,
)

pytestmark = pytest.mark.timeout(300)

#: Programs that run at once; each is started, looked at and ended by a thread of its own.
AT_ONCE = 3
#: Leaks that show only when something has been late for a while: looked at again until then.
LATE = {("a13", "leak3"), ("a13", "leak4")}
LATE_WITHIN = 20.0  # seconds

#: Of the stacks of a leak, those that are as they should be: the last of the listeners is in use.
STILL_GOOD = {("c02", "leak"): 1}

#: Leaks of which it can be proven that nobody can wake them: by fixture, in these modes.
PROVEN = {
    "a01": {"leak", "leak2"},
    "a02": {"leak", "leak2"},
    "a03": {"leak", "leak2"},
    "a04": {"leak", "leak2"},
    "a05": {"leak", "event", "condition", "barrier", "taskgroup", "future"},
    "c01": {"leak", "leak2", "leak3"},
    "c09": {"leak2", "leak3"},
}

CATALOGUE = {t.id: t.catalogue for t in builtin()}
JUDGED = [f for f in FIXTURES.values() if (f.template or f.kind == "idle") and not f.heap and not f.native]


#: With native frames, as `diagtool leaks` looks at them, on one version, or on all if asked: they take time.
WITH_FRAMES = "all" if os.environ.get("DIAGTOOL_TEST_FRAMES") == "all" else "3.12"


def snapshot(program: Running, interpreter: Interpreter) -> Snapshot:
    with capture_live(program.pid) as capture:
        return decode(capture, frames=WITH_FRAMES in ("all", interpreter.version))


def told(findings: tuple[Finding, ...]) -> str:
    return ", ".join(f"{f.verdict} {f.template} {f.count} {f.kind}s" for f in findings) or "nothing"


def is_it(fixture: Fixture, mode: str, finding: Finding) -> bool:
    """Whether a finding is the one that the fixture must lead to, with the right number of stacks."""
    if CATALOGUE.get(finding.template or "") not in (fixture.template or "").split(","):
        return False
    if fixture.kind in ("task", "thread", "asyncgen") and finding.kind != fixture.kind:
        return False
    if mode in PROVEN.get(fixture.name, ()) and finding.verdict != "proven":
        return False
    if fixture.kind == "heap" or fixture.stacks is None:
        return True
    return finding.count == fixture.stacks(fixture.count) - STILL_GOOD.get((fixture.name, mode), 0)


def complaint(fixture: Fixture, mode: str, interpreter: Interpreter) -> str | None:
    """What is wrong with the report about one program; None when nothing is, or it can't run here."""
    try:
        with launch(fixture, mode, interpreter) as program:
            findings = find_leaks([snapshot(program, interpreter)]).findings
            if mode in fixture.leak_modes:
                deadline = time.monotonic() + LATE_WITHIN * ((fixture.name, mode) in LATE)
                while not any(is_it(fixture, mode, f) for f in findings) and time.monotonic() < deadline:
                    findings = find_leaks([snapshot(program, interpreter)]).findings
                if not any(is_it(fixture, mode, f) for f in findings):
                    return f"{mode}: no finding of {fixture.template}, but {told(findings)}"
            elif mode in fixture.ambiguous_modes:
                sure = tuple(f for f in findings if f.verdict != "suspect")
                return f"{mode}: {told(sure)}" if sure else None
            elif findings:
                return f"{mode}: {told(findings)}"
    except FixtureSkipped:
        pass
    return None


def complaints(fixture: Fixture, interpreter: Interpreter) -> Iterator[str]:
    modes = [*fixture.leak_modes, *fixture.healthy_modes, *fixture.ambiguous_modes]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from filter(None, pool.map(lambda mode: complaint(fixture, mode, interpreter), modes))


EVERYWHERE = WITH_FRAMES == "all"
#: Idle programs on the oldest version, one in between and the newest; each leak on that in between and on
#: another, in turn. If asked, all on all.
MIDDLE, IDLE_ON = "3.12", ("3.9", "3.12", "3.15")
OTHERS = [i for i in interpreters() if i.version != MIDDLE]


def runs_on(fixture: Fixture, interpreter: Interpreter) -> bool:
    if EVERYWHERE or interpreter.version == MIDDLE:
        return True
    if fixture.kind == "idle":  # how a program idles does not hang on the version
        return interpreter.version in IDLE_ON
    return interpreter == OTHERS[JUDGED.index(fixture) % len(OTHERS)]


EACH = [(i, f) for i in interpreters() for f in JUDGED if runs_on(f, i)]


@pytest.mark.parametrize(("interpreter", "fixture"), EACH, ids=str)
def test_leaks_are_found_and_healthy_programs_are_not(interpreter: Interpreter, fixture: Fixture) -> None:
    if is_left_out(fixture):
        pytest.skip("with real libraries: make test-libraries")
    if interpreter.minor < fixture.min_minor:
        pytest.skip(f"{fixture.name} needs 3.{fixture.min_minor}")
    assert list(complaints(fixture, interpreter)) == []


#: One interpreter for what does not hang on the version.
ONE = [i for i in interpreters() if i.minor == 12] or interpreters()[-1:]
#: Of these, N more are made beside the first N (others replace what was there).
GROWING = [FIXTURES[name] for name in ("a01", "a02", "a03", "a04", "a05", "c01", "c03", "c09")]


def series(
    fixture: Fixture, mode: str, interpreter: Interpreter, *, grow: bool
) -> tuple[Finding, ...] | None:
    """Findings over two snapshots, between which the program may make N more of the same; None: can't run."""
    try:
        with launch(fixture, mode, interpreter) as program:
            before = snapshot(program, interpreter)
            if grow:
                program.grow()
            return find_leaks([before, snapshot(program, interpreter)]).findings
    except FixtureSkipped:
        return None


def growth(fixture: Fixture, interpreter: Interpreter) -> tuple[int, ...]:
    """The counts of the fixture's finding."""
    found = series(fixture, fixture.leak_modes[0], interpreter, grow=True) or ()
    for finding in found:
        if CATALOGUE.get(finding.template or "") in (fixture.template or "").split(","):
            assert finding.trend is not None
            return finding.trend.counts
    raise AssertionError(f"no finding of {fixture.template}, but {told(found)}")


@pytest.mark.parametrize("fixture", GROWING, ids=str)
@pytest.mark.parametrize("interpreter", ONE, ids=str)
def test_a_series_says_how_a_leak_grew(interpreter: Interpreter, fixture: Fixture) -> None:
    before, after = growth(fixture, interpreter)
    assert after > before > 0


@pytest.mark.parametrize("fixture", JUDGED, ids=str)
@pytest.mark.parametrize("interpreter", ONE, ids=str)
def test_a_series_of_a_healthy_program_has_no_leak(interpreter: Interpreter, fixture: Fixture) -> None:
    if is_left_out(fixture):
        pytest.skip("with real libraries: make test-libraries")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        modes = fixture.healthy_modes
        found = list(pool.map(lambda mode: series(fixture, mode, interpreter, grow=False), modes))
    assert {m: told(f) for m, f in zip(modes, found, strict=True) if f} == {}
