"""The analysis keeps off the processors that the target is running on, and the caller gets them back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

import native
from diagtool.capture import processors

ALLOWED = sorted(os.sched_getaffinity(0))

pytestmark = pytest.mark.skipif(len(ALLOWED) < 2, reason="there is one processor only")


@pytest.fixture(autouse=True)
def given_back() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    with processors.kept():
        yield
    assert os.sched_getaffinity(0) == before


@pytest.fixture
def busy() -> Iterator[int]:
    """A process that computes on the last processor and nowhere else."""
    program = f"import os; os.sched_setaffinity(0, [{ALLOWED[-1]}]); print(flush=True)\nwhile 1: pass"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    native.wait_until(lambda: native.status(process.pid, process.pid)["State"][0] == "R", "it computes")
    yield process.pid
    process.kill()
    process.wait()


def test_the_processor_of_a_busy_target_is_left_to_it(busy: int) -> None:
    processors.keep_off(busy)
    assert os.sched_getaffinity(0) == set(ALLOWED[:-1])
    processors.use_all()
    assert os.sched_getaffinity(0) == set(ALLOWED)
    processors.keep_off_again(busy)
    assert os.sched_getaffinity(0) == set(ALLOWED[:-1])


def test_where_no_processor_would_be_left_nothing_changes(busy: int) -> None:
    os.sched_setaffinity(0, ALLOWED[-1:])
    try:
        processors.keep_off(busy)
        assert os.sched_getaffinity(0) == set(ALLOWED[-1:])
    finally:
        os.sched_setaffinity(0, ALLOWED)


def test_who_did_not_ask_before_the_stop_is_not_moved_after_it(busy: int) -> None:
    processors.keep_off_again(busy)
    assert os.sched_getaffinity(0) == set(ALLOWED)


@pytest.mark.parametrize("pid", [None, 0, 1 << 22])
def test_nothing_happens_for_ourselves_and_for_who_is_gone(pid: int | None) -> None:
    processors.keep_off(os.getpid() if pid is None else pid)
    assert os.sched_getaffinity(0) == set(ALLOWED)
