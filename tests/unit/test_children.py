"""What is said of child processes is what two looks at them agree on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from diagtool.capture import children, procfs
from diagtool.capture.children import Child, Children, Look, agreed, look

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc of Linux")

RUNS, ENDED, LATER = Child(False, 5), Child(True, 5), Child(True, 9)
SLEEPER = [sys.executable, "-S", "-c", "import signal; signal.pause()"]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (RUNS, RUNS, "running"),
        (None, RUNS, "running"),  # it began in between
        (ENDED, ENDED, "zombie"),
        (RUNS, ENDED, None),  # it ended in between: perhaps after the capture
        (None, ENDED, None),
        (ENDED, LATER, None),  # another child of the same number
        (ENDED, None, None),  # reaped in between, as it should be
        (None, None, "gone"),
    ],
)
def test_only_what_both_looks_show_is_said(before: Child | None, after: Child | None, expected: str) -> None:
    looks = [Look({7: c} if c else {}) for c in (before, after)]
    assert agreed(looks[0], looks[1], 7) == expected


def test_nothing_is_gone_where_children_are_hidden_and_nothing_known_where_none_could_be_read() -> None:
    assert agreed(Look(complete=False), Look(), 7) is None
    assert agreed(Look(), Look(complete=False), 7) is None
    assert agreed(None, Look({7: ENDED}), 7) is None
    assert agreed(Look({7: ENDED}), None, 7) is None


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(SLEEPER) as process:
        yield process
        process.kill()


def ended(process: subprocess.Popen[bytes]) -> None:
    """Kill a child and wait until it is a zombie, without reaping it."""
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def test_a_child_is_followed_from_its_life_to_its_end(child: subprocess.Popen[bytes]) -> None:
    assert Children(os.getpid()).state(child.pid) == "running"
    known = Children(os.getpid())
    ended(child)
    assert known.state(child.pid) is None
    assert Children(os.getpid()).state(child.pid) == "zombie"
    child.wait()
    assert Children(os.getpid()).state(child.pid) == "gone"


def test_a_stopped_child_is_no_zombie(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    assert Children(os.getpid()).state(child.pid) == "running"


def test_a_kernel_that_lists_no_children_is_asked_for_every_process(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "_listed", lambda pid: None)
    assert Children(os.getpid()).state(child.pid) == "running"
    ended(child)
    assert Children(os.getpid()).state(child.pid) == "zombie"
    found = look(os.getpid())
    assert found is not None and not found.complete  # some may be hidden: none is said to be gone


def test_more_children_than_are_looked_at_leave_doubt(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "MAX_CHILDREN", 0)
    assert Children(os.getpid()).state(child.pid) is None


def test_a_process_that_is_gone_tells_nothing(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    assert look(child.pid) is None
    assert Children(child.pid).state(1) is None


#: /proc as a machine with containers shows it: 100 is process 7 of its own namespace, with children 8 and 9.
NESTED = {
    "/proc/100/status": b"Name:\tpython\nNSpid:\t100\t7\n",
    "/proc/100/task/100/children": b"101 102 103 ",
    "/proc/101/stat": b"101 (a ) b) S 100 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 500 0",
    "/proc/101/status": b"NSpid:\t101\t8\n",
    "/proc/102/stat": b"102 (x) Z 100 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 600 0",
    "/proc/102/status": b"NSpid:\t102\t9\t1\n",
    "/proc/103/stat": b"103 (y) Z 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 700 0",  # no child any more
    "/proc/103/status": b"NSpid:\t103\t10\n",
}


@pytest.fixture
def nested(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    files = dict(NESTED)
    monkeypatch.setattr(procfs, "try_read", files.get)
    monkeypatch.setattr(procfs, "task_ids", lambda pid: [100])
    return files


def test_children_have_the_numbers_that_the_process_knows_them_by(nested: dict[str, bytes]) -> None:
    assert look(100) == Look({8: Child(False, 500), 9: Child(True, 600)})


def test_a_main_thread_that_ended_before_the_others_is_no_zombie(nested: dict[str, bytes]) -> None:
    nested["/proc/102/stat"] = nested["/proc/102/stat"].replace(b" 20 0 1 0 ", b" 20 0 3 0 ")
    assert look(100) == Look({8: Child(False, 500), 9: Child(False, 600)})


@pytest.mark.parametrize("garbage", [b"", b"nonsense", b"102 (x) Z", b"\xff" * 100])
def test_garbage_leaves_doubt(nested: dict[str, bytes], garbage: bytes) -> None:
    nested["/proc/102/stat"] = garbage
    assert look(100) == Look({8: Child(False, 500)}, complete=False)
    nested["/proc/101/status"] = garbage
    assert look(100) == Look({}, complete=False)
    nested["/proc/100/task/100/children"] = b"-1 x 101"
    assert look(100) == Look({}, complete=False)
