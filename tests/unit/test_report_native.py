"""``diagtool stacks --native``: alike threads are one block, and frames that say nothing are folded."""

from __future__ import annotations

import pytest

from diagtool.report.native import Shown, lines, rows
from diagtool.report.terminal import View, closing
from diagtool.snapshot.model import KIND, STATE, Frame, Snapshot, SnapshotBuilder, Target, ThreadInfo

LIBC, OWN = "/lib/x86_64-linux-gnu/libc.so.6", "/srv/app/engine.so"
FRAMES = [
    Frame("pthread_mutex_lock", "", None, None, "c", LIBC),
    Frame("std::mutex::lock()", "/usr/include/c++/12/mutex", 9, None, "c++", OWN),
    Frame("app::Engine::turn(int)", "/src/engine.cpp", 41, None, "c++", OWN),
    Frame("pybind11::cpp_function::dispatcher(_object*)", "/src/x.h", 1, None, "c++", OWN),
    Frame("work", "/srv/app/app.py", 7, "app"),
    Frame("_PyEval_Vector", "", None, None, "c", "/usr/lib/libpython3.12.so.1.0"),
]


@pytest.fixture
def snapshot() -> Snapshot:
    builder = SnapshotBuilder(Target("live", pid=7, runtime="cpython 3.12.1"))
    merged = builder.trace(FRAMES[::-1])
    row = builder.add(
        ["a", "b", "idle"],
        kind=KIND["thread"],
        state=STATE["waiting"],
        address=[11, 12, 13],
        merged=[merged, merged, builder.trace(FRAMES[:1])],
        trace=[builder.trace([FRAMES[4]])] * 2 + [0],
        wait=[builder.wait("pthread_mutex_lock")] * 2 + [builder.wait("sleep")],
    )
    for i in range(3):
        builder.snapshot.threads.append(ThreadInfo(11 + i, row + i, "ab-"[i], python=i < 2))
    return builder.finish()


def text(snapshot: Snapshot, shown: Shown, *, verbose: bool = False) -> str:
    view = View(100, verbose=verbose)
    return "\n".join("".join(part for part, _ in line) for line in lines(snapshot, shown, view))


def test_alike_threads_are_one_block_with_their_own_functions(snapshot: Snapshot) -> None:
    said = text(snapshot, Shown())
    assert said.startswith("2 threads  waiting in pthread_mutex_lock")
    assert "a 11, b 12" in said
    assert "engine.cpp:41  in app::Engine::turn" in said and "(int)" not in said
    assert "app.py:7" in said
    assert "… 4 library frames folded (-v)" in said
    assert "pybind11" not in said and "std::mutex" not in said
    assert "3 threads" in said.splitlines()[-1]


def test_everything_is_shown_if_asked(snapshot: Snapshot) -> None:
    said = text(snapshot, Shown(internals=True), verbose=True)
    assert "app::Engine::turn(int)" in said and "/src/engine.cpp:41" in said
    assert all(f.function.partition("(")[0] in said for f in FRAMES)


@pytest.mark.parametrize(
    ("shown", "functions"),
    [
        (Shown(hide=["app::*"]), ["work"]),
        (Shown(hide=["engine.so"]), ["work"]),
        (Shown(only=["engine*"]), ["std::mutex::lock()", "app::Engine::turn(int)", FRAMES[3].function]),
        (Shown(only=["*mutex_lock", "work"]), ["pthread_mutex_lock", "work"]),
        (Shown(hide=["app"]), ["app::Engine::turn(int)"]),  # a module of Python
        (Shown(), ["app::Engine::turn(int)", "work"]),
    ],
)
def test_frames_are_chosen_by_function_or_library(
    snapshot: Snapshot, shown: Shown, functions: list[str]
) -> None:
    first = rows(snapshot, shown)[0]
    assert [f.function for f in first["frames"]] == functions
    assert (first["tid"], first["name"], first["python"]) == (11, "a", True)


def test_marks_between_frames_that_are_folded_are_one() -> None:
    mark = Frame("[frames that can't be unwound]", "", None, language="native")
    frames = [FRAMES[0], mark, FRAMES[5], mark, FRAMES[2], mark]
    assert Shown().kept(frames) == [mark, FRAMES[2], mark]
    assert Shown().folded(frames) == 2
    assert Shown(internals=True).kept(frames) == frames


def test_what_does_not_fit_in_the_last_line_goes_into_another() -> None:
    target = Target("live", pid=7, runtime="cpython 3.12.1")
    short, long = (
        "3 threads",
        "3,658 open files, at most 20,000 (18 % in use), 1,552 without an owner in Python",
    )
    said = ["".join(text for text, _ in line) for line in closing(short, target, 1.0, View(80))]
    assert said == ["3 threads · cpython 3.12.1, pid 7 · stopped for 1.0 ms"]
    said = ["".join(text for text, _ in line) for line in closing(long, target, 1.0, View(80))]
    assert said == [long, "cpython 3.12.1, pid 7 · stopped for 1.0 ms"]
