"""Leaks of real Go programs, from two dumps of theirs; and nothing of programs that are well."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from diagtool.ingest import read_evidence
from diagtool.leaks import find_leaks
from diagtool.leaks.model import Report
from go_programs import GoProgram, started, toolchains

#: Modes of fixtures/go/leaks -> (template, innermost own function). Several modes may be one pattern.
LEAKS = {
    "range": ("go-receive-nobody-sends", "main.consume"),
    "receive": ("go-receive-nobody-sends", "main.awaitAnswer"),
    "ticker": ("go-receive-nobody-sends", "main.everyHour"),
    "threads": ("go-receive-nobody-sends", "main.ownThread"),
    "send": ("go-send-nobody-receives", "main.lookUp.func1"),
    "double": ("go-send-nobody-receives", "main.computeTwice"),
    "ncast": ("go-send-nobody-receives", "main.askReplica"),
    "timeout": ("go-send-nobody-receives", "main.handleRequest"),
    "semaphore": ("go-send-nobody-receives", "main.acquireSlot"),
    "pipe": ("go-pipe-left", "main.writeBody"),
    "context": ("go-select-nobody-answers", "main.watch"),
    "contract": ("go-select-nobody-answers", "main.(*worker).run"),
    "after": ("go-select-nobody-answers", "main.refreshUntil"),
    "nilchan": ("go-nil-channel", "main.awaitNever"),
    "selectnone": ("go-select-no-cases", "main.blockForever"),
    "waitgroup": ("go-waitgroup-never-done", "main.awaitGroup"),
    "mutex": ("go-mutex-never-unlocked", "main.(*account).deposit"),
    "abba": ("go-mutex-never-unlocked", "main.(*pair).oneThenTwo"),
    "rlock": ("go-rwmutex-read-blocked", "main.(*table).read"),
    "cond": ("go-cond-not-signalled", "main.(*mailbox).take"),
    "once": ("go-mutex-never-unlocked", "main.(*config).load"),
    "syscall": ("go-threads-in-system-calls", "main.readForever"),
}

SERVICE = {
    "lookup": ("go-send-nobody-receives", "main.findPrice"),
    "body": ("go-http-body-not-closed", "net/http.(*persistConn).readLoop"),
    "transport": ("go-http-transport-per-request", "net/http.(*persistConn).readLoop"),
    "sql": ("go-sql-open-per-use", "database/sql.(*DB).connectionOpener"),
}

HEALTHY = (
    "range-healthy receive-healthy send-healthy double-healthy ncast-healthy timeout-healthy "
    "semaphore-healthy pipe-healthy context-healthy contract-healthy waitgroup-healthy mutex-healthy "
    "abba-healthy rlock-healthy cond-healthy once-healthy"
)
#: What a program has one of: a process each.
IDLE = "workers subscribers tickers signals pipeline accept main-waits".split()


def two_dumps(program: GoProgram, folder: Path, between: Callable[[], object]) -> Report:
    """What two dumps tell, with something done between them."""
    dumps = []
    for number in range(2):
        path = folder / f"{number}.txt"
        program.debug2(path)
        (snapshot,) = read_evidence(path)
        snapshot.target.captured_at = time.time() - 60.0 + 30.0 * number
        dumps.append(snapshot)
        if not number:
            between()
    return find_leaks(dumps)


def told(report: Report) -> set[tuple[str | None, str]]:
    """(template, each function on the way) of what is likely."""
    return {
        (f.template, frame.function) for f in report.findings if f.verdict == "likely" for frame in f.frames
    }


@pytest.mark.parametrize("minor", toolchains())
def test_each_kind_of_leak_is_likely_from_two_dumps(minor: str, tmp_path: Path) -> None:
    """All of them in one process: that there are others hides none."""
    with started("leaks", minor, ",".join(LEAKS), "25") as program:
        report = two_dumps(program, tmp_path, lambda: program.grow(25))
    assert set(LEAKS.values()) - told(report) == set()


@pytest.mark.parametrize("minor", toolchains())
def test_their_healthy_twins_lead_to_no_finding(minor: str, tmp_path: Path) -> None:
    with started("leaks", minor, ",".join(HEALTHY.split()), "25") as program:
        report = two_dumps(program, tmp_path, lambda: program.grow(25))
    assert [(f.template, f.verdict, f.frames) for f in report.findings] == []


@pytest.mark.parametrize("mode", IDLE)
def test_what_waits_for_work_is_no_leak(mode: str, tmp_path: Path) -> None:
    with started("leaks", toolchains()[-1], mode, "25") as program:
        report = two_dumps(program, tmp_path, lambda: program.grow(25))
    assert [(f.template, f.verdict) for f in report.findings] == []


@pytest.mark.parametrize("mode", SERVICE)
def test_a_service_that_leaks_with_each_request(mode: str, tmp_path: Path) -> None:
    with started("service", toolchains()[-1], mode, "25") as program:
        report = two_dumps(program, tmp_path, lambda: program.grow(25))
    assert SERVICE[mode] in told(report)
    assert {f.template for f in report.findings} == {SERVICE[mode][0]}


def test_a_service_under_load_leads_to_no_finding(tmp_path: Path) -> None:
    with started("service", toolchains()[-1], "healthy", "25") as program:
        report = two_dumps(program, tmp_path, lambda: program.grow(200))
    assert [(f.template, f.verdict) for f in report.findings] == []
