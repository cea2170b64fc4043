"""Native and Python frames as one stack."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from diagtool.runtimes.merge import PythonRun, merge
from diagtool.runtimes.native.stacks import NativeFrame
from diagtool.snapshot.model import Frame


def native(name: str, sp: int, *, inline: bool = False, guessed: bool = False) -> NativeFrame:
    return NativeFrame(0x1000 + sp, sp, name, library="libpython3.so", inline=inline, guessed=guessed)


def run(*names: str, anchor: int = 0) -> PythonRun:
    return PythonRun([Frame(n, "app.py", 1) for n in names], anchor)


def names(frames: list[Frame]) -> list[str]:
    return [f.function for f in frames]


STACK = [
    native("wait", 100),
    native("eval", 200),
    native("call", 300),
    native("inlined", 400, inline=True),
    native("eval", 400),
    native("main", 500),
]


def test_each_call_of_the_interpreter_is_replaced_by_what_it_runs() -> None:
    merged = merge(STACK, [run("leaf", "inner", anchor=210), run("outer", anchor=450)])
    assert names(merged) == ["wait", "leaf", "inner", "call", "outer", "main"]


def test_without_anchors_names_tell_if_their_number_is_right() -> None:
    stack = [
        native("wait", 100),
        native("_PyEval_EvalFrameDefault", 200),
        native("_PyEval_EvalFrameDefault.cold", 300),
        native("main", 400),
    ]
    assert names(merge(stack, [run("a"), run("b")])) == ["wait", "a", "b", "main"]
    unmerged = merge(stack, [run("a"), run("b"), run("c")])
    assert names(unmerged)[-3:] == ["a", "b", "c"]
    assert "not known" in names(unmerged)[-4]


def test_a_call_whose_native_frame_is_missing_keeps_its_frames() -> None:
    merged = merge(STACK[:3], [run("leaf", anchor=210), run("outer", anchor=450)])
    assert names(merged) == ["wait", "leaf", "outer", "call"]


def test_what_was_guessed_is_marked() -> None:
    merged = merge([native("wait", 100), native("far", 900, guessed=True)], [])
    assert names(merged) == ["wait", "[frames that can't be unwound]", "far"]


def test_a_function_without_a_name_is_its_place_in_the_library() -> None:
    (frame,) = merge([NativeFrame(0x7F00_1234, 100, "", 0x1234, library="/srv/x.so")], [])
    assert (frame.function, frame.library) == ("+0x1234", "/srv/x.so")


def test_code_that_was_made_at_run_time_is_no_place_in_a_library() -> None:
    (frame,) = merge([NativeFrame(0x7F00_1234, 100, "", 0, library=None)], [])
    assert (frame.function, frame.library) == ("[code that is in no file]", "?")


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.booleans(), st.booleans()), max_size=12),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1200)), max_size=6),
)
def test_no_python_frame_is_ever_lost_or_moved(
    stack: list[tuple[int, bool, bool]], runs: list[tuple[int, int]]
) -> None:
    frames = [
        native(f"c{i}", sp, inline=inline, guessed=g) for i, (sp, inline, g) in enumerate(sorted(stack))
    ]
    python = [
        run(*(f"p{i}.{j}" for j in range(n)), anchor=anchor)
        for i, (n, anchor) in enumerate(sorted(runs, key=lambda r: r[1]))
    ]
    merged = [f.function for f in merge(frames, python) if f.language == "python"]
    assert merged == [f.function for r in python for f in r.frames]
