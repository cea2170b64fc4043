"""Templates about threads that hang in native code, on synthetic snapshots, each with its healthy twin."""

from __future__ import annotations

import pytest
from made_stacks import World

from diagtool.leaks import find_leaks
from diagtool.leaks.crossings import callback_of, team_of
from diagtool.leaks.model import Finding
from diagtool.snapshot.model import Frame, Thing

THREAD = "threading.py:Thread.run:1"


def judged(world: World, exact: bool = True) -> list[Finding]:
    snapshot = world.build()
    snapshot.target.details["exact"] = exact
    return list(find_leaks([snapshot]).findings)


def gil_and_mutex(w: World, *, gil_owner: int = 0x5000, **mutex: object) -> None:
    gil = w.thing("GIL", locked=True, owner=gil_owner, owner_alive=True)
    lock = w.thing("pthread_mutex_t", **{"locked": True, "owner": 0x5100, "owner_alive": True, **mutex})
    w.threads(1, "pthread_mutex_lock", f"app.py:flush:9 {THREAD}", lock, address=0x5000)
    w.threads(1, "gil", f"app.py:log:3 {THREAD}", gil, address=0x5100)


def test_a_circle_of_the_gil_and_a_mutex_is_proven() -> None:
    w = World()
    gil_and_mutex(w)
    (finding,) = judged(w)
    assert (finding.template, finding.verdict, finding.count) == ("native-deadlock", "proven", 2)
    assert "waits for the GIL, which thread 20480" in finding.evidence[0]
    assert "waits for pthread_mutex_t" in finding.evidence[0]


def test_a_circle_in_memory_of_several_instants_is_likely_only() -> None:
    w = World()
    gil_and_mutex(w)
    (finding,) = judged(w, exact=False)
    assert finding.verdict == "likely"


def test_an_owner_that_was_inferred_proves_nothing() -> None:
    w = World()
    gil_and_mutex(w, inferred=True)
    (finding,) = judged(w)
    assert finding.verdict == "likely"


def test_a_mutex_whose_owner_runs_is_no_deadlock() -> None:
    w = World()
    gil_and_mutex(w, owner=0x5200)
    w.threads(1, "", f"app.py:work:9 {THREAD}", None, address=0x5200, state="running")
    assert judged(w) == []


def test_a_circle_that_a_time_limit_ends_is_no_deadlock() -> None:
    w = World()
    lock = w.thing("pthread_mutex_t", owner=0x5100, owner_alive=True)
    other = w.thing("pthread_mutex_t", owner=0x5000, owner_alive=True)
    first = w.threads(1, "pthread_mutex_lock", f"app.py:a:9 {THREAD}", lock, address=0x5000)
    second = w.threads(1, "pthread_mutex_lock", f"app.py:b:9 {THREAD}", other, address=0x5100)
    rows = [{"stack": row, "left": 1.0} for row in (*first, *second)]
    w.builder.snapshot.tables["timeouts"] = rows
    assert judged(w) == []


def test_a_mutex_of_a_thread_that_is_not_in_this_process_is_likely() -> None:
    w = World()
    w.threads(1, "pthread_mutex_lock", f"app.py:a:9 {THREAD}", w.thing("pthread_mutex_t", owner_alive=False))
    (finding,) = judged(w)
    assert (finding.template, finding.verdict) == ("mutex-owner-gone", "likely")


def test_a_mutex_without_a_known_owner_is_nothing() -> None:
    w = World()
    w.threads(30, "pthread_mutex_lock", f"app.py:a:9 {THREAD}", w.thing("pthread_mutex_t", locked=True))
    assert judged(w) == []


def holder(w: World, wait: str, detail: str = "", others: int = 1, left: float | None = None) -> None:
    gil = w.thing("GIL", locked=True, owner=0x5000, owner_alive=True)
    thing = Thing(0, "fd", detail) if detail else None
    rows = w.threads(1, wait, f"app.py:a:9 {THREAD}", thing, address=0x5000, holds_gil=True)
    if others:
        w.threads(others, "gil", f"app.py:b:9 {THREAD}", gil, address=0x6000)
    w.builder.snapshot.tables["timeouts"] = [{"stack": rows[0], "left": left}] if left is not None else []


def test_whoever_blocks_with_the_gil_while_others_want_it_is_told() -> None:
    for wait, detail, template in (
        ("socket.recv", "fd 3 socket:[1] 10.0.0.1:1 -> 10.0.0.2:5 ESTABLISHED", "gil-held-while-blocked"),
        ("poll", "", "gil-held-while-blocked"),
        ("pthread_cond_wait", "", "gil-held-while-blocked"),
        ("read", "fd 3 pipe:[123]", "gil-held-while-reading"),
    ):
        w = World()
        holder(w, wait, detail)
        (finding,) = judged(w)
        assert (finding.template, finding.verdict) == (template, "likely")


def test_whoever_blocks_shortly_or_alone_or_on_a_file_is_not() -> None:
    for wait, detail, others, left in (
        ("poll", "", 0, None),
        ("time.sleep", "", 1, 0.01),
        ("read", "fd 3 /var/log/app.log", 1, None),
        ("", "", 3, None),
    ):
        w = World()
        holder(w, wait, detail, others, left)
        assert judged(w) == []


def native(*libraries: str) -> list[Frame]:
    return [Frame("called", "", None, None, "native", library) for library in libraries]


PYTHON = Frame("on_message", "app.py", 3)


@pytest.mark.parametrize(
    ("frames", "library"),
    [
        ([PYTHON, *native("/lib/libffi.so.8", "/opt/libbus.so", "/lib/libc.so.6")], "/opt/libbus.so"),
        ([*native("/lib/libc.so.6"), PYTHON, *native("_ctypes.so", "libffi.so.8", "libbus.so")], "libbus.so"),
        ([PYTHON, *native("libffi.so.8", "libbus.so", "libffi.so.8", "_ctypes.so"), PYTHON], "libbus.so"),
        ([PYTHON, *native("libffi.so.8", "libc.so.6")], None),  # a thread that begins in Python
        ([*native("libffi.so.8", "libbus.so"), PYTHON], None),  # Python called it
        ([PYTHON, *native("libbus.so", "libc.so.6")], None),
        ([PYTHON], None),
        ([], None),
    ],
)
def test_whose_callback_a_python_function_is(frames: list[Frame], library: str | None) -> None:
    assert callback_of(frames) == library


def in_callback(w: World, **thing: object) -> None:
    lock = w.thing("threading.Lock", **thing)
    frames = [PYTHON, *native("libffi.so.8", "/opt/libbus.so", "libc.so.6")]
    merged = w.builder.trace(frames[::-1])
    w.threads(1, "threading.Lock.acquire", "app.py:on_message:3", lock, address=0x5000, merged=merged)


def test_a_callback_that_waits_for_a_lock_of_nobody_holds_the_librarys_thread() -> None:
    w = World()
    in_callback(w, owner_alive=False)
    (finding,) = judged(w)
    assert (finding.template, finding.verdict) == ("callback-blocked", "likely")
    assert "/opt/libbus.so called Python" in finding.evidence[0]


def test_a_callback_that_waits_for_a_lock_of_somebody_is_nothing() -> None:
    w = World()
    in_callback(w, owner_alive=True)
    assert judged(w) == []


def in_team(w: World, *others: list[Frame]) -> None:
    """A thread that waits in libgomp, which Python called; besides it ``others``."""
    mine = [*native("/lib/libc.so.6", "/lib/libgomp.so.1", "/opt/libblas.so", "libffi.so.8"), PYTHON]
    for number, frames in enumerate([mine, *others]):
        merged = w.builder.trace(frames[::-1])
        text = "app.py:work:3" if number == 0 else ""
        w.threads(1, "futex", text, address=0x5000 + number * 0x100, merged=merged)


def test_a_thread_whose_openmp_team_is_not_there_waits_for_ever() -> None:
    w = World()
    in_team(w)
    (finding,) = judged(w)
    assert (finding.template, finding.verdict) == ("openmp-team-gone", "likely")


@pytest.mark.parametrize(
    "other",
    [
        native("/opt/libblas.so", "/lib/libgomp.so.1", "/lib/libc.so.6"),  # at work
        native("/lib/libgomp.so.1", "/lib/libc.so.6"),  # rests
        [],  # nobody knows
    ],
)
def test_a_thread_whose_openmp_team_may_be_there_is_nothing(other: list[Frame]) -> None:
    w = World()
    in_team(w, other)
    assert judged(w) == []


def test_threads_of_the_team_itself_wait_for_nobody() -> None:
    assert team_of(native("/lib/libgomp.so.1", "/lib/libc.so.6")) is None
    assert team_of([PYTHON]) is None
    assert team_of(native("/opt/libblas.so", "/lib/libgomp.so.1", "/lib/libc.so.6")) is None
