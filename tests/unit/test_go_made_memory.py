"""Goroutines in memory that was made up: what tables say, other machines, and nonsense."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import go_memory
from diagtool.capture.errors import NoRuntime, NotSupported
from diagtool.capture.model import CapturedThread
from diagtool.golang.goroutines import own_part
from diagtool.runtimes.decode import decode
from diagtool.runtimes.golang import layouts
from diagtool.runtimes.golang.find import find_go
from diagtool.runtimes.golang.pclntab import Functions, pc_value
from diagtool.snapshot.model import Snapshot
from go_memory import Code, Go, Parked, encoded

GOPARK, RECEIVE, WORK, SERVE, GOEXIT, PREEMPT, WRITES_SP, LEAF, SIGTRAMP, SIGRETURN = range(10)


def code(layout: layouts.Layout) -> list[Code]:
    ids = {k.rpartition("_")[2]: v for k, v in layout.constants.items() if "uncID_" in k}
    return [
        Code("runtime.gopark", 0x40),
        Code("runtime.chanrecv1", 0x20),
        Code("main.work", 0x30, inlined=("main.inner",)),
        Code("main.(*server).serve[go.shape.int]", 0x50),
        Code("runtime.goexit", 0, flag=1, id=ids["goexit"]),
        Code("runtime.asyncPreempt", 0x60, id=ids["asyncPreempt"]),
        Code("runtime.mcall", 0x10, flag=2),
        Code("main.leaf", 0),
        Code("runtime.sigtramp", 0x30, flag=1),
        Code("runtime.sigreturn__sigaction", 0),
    ]


PARKED = ((GOPARK, 0x20), (RECEIVE, 0x10), (WORK, 0x90), (SERVE, 0x20), (GOEXIT, 4))


def process(goroutines: list[Parked], machine: str = "x86_64", minor: int = 27) -> Go:
    return Go(code(layouts.load(minor, machine)), goroutines, minor, machine)


def names(snapshot: Snapshot, goid: int) -> list[str]:
    stack = next(s for s in snapshot if s.kind == "goroutine" and s.address == goid)
    return [f"{f.function}:{f.line}" for f in stack.merged or stack.frames]


@given(
    st.lists(st.tuples(st.integers(-1, 1 << 20), st.integers(1, 1 << 12)), min_size=1, max_size=40), st.data()
)
def test_every_place_of_a_table_has_the_value_that_was_written(
    rows: list[tuple[int, int]], data: st.DataObject
) -> None:
    quantum = data.draw(st.sampled_from([1, 4]))
    ends, at, before = [], 0, -1
    for value, size in rows:
        if value == before and ends:  # the linker joins them, as a change of 0 ends a table
            continue
        at += size * quantum
        ends.append((value, at))
        before = value
    table = encoded(ends, quantum)
    place = data.draw(st.integers(0, at - 1))
    assert pc_value(table, place, quantum) == (next(v for v, end in ends if place < end), True)
    assert pc_value(table, at, quantum) == (None, True)
    assert pc_value(table[:-1], at, quantum) == (None, False)


@given(st.binary(max_size=200), st.integers(0, 1 << 30))
def test_a_table_of_nonsense_ends(data: bytes, place: int) -> None:
    value, _ = pc_value(data, place)
    assert value is None or isinstance(value, int)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("minor", layouts.known())
def test_parked_goroutines_are_unwound_on_both_machines(machine: str, minor: int) -> None:
    reason = layouts.load(minor, machine).wait_reasons.index("chan receive")
    go = process([], machine, minor)
    made = go.entry(SERVE) + 0x30
    parked = [Parked(n, PARKED, reason=reason, gopc=made) for n in range(1, 9)]
    snapshot = decode(process(parked, machine, minor).capture())
    assert snapshot.target.runtime == f"go1.{minor}.1"
    assert names(snapshot, 7) == [
        "runtime.gopark:10",
        "runtime.chanrecv1:10",
        "main.inner:11",
        "main.work:10",
        "main.(*server).serve[...]:10",
        "runtime.goexit:10",
    ]
    stack = next(s for s in snapshot if s.address == 7 and s.kind == "goroutine")
    assert [f.function for f in stack.frames] == ["main.inner", "main.work", "main.(*server).serve[...]"]
    assert stack.wait == "chan receive" and stack.state == "waiting"
    assert stack.frames[0].file == "/srv/app/main.go"
    assert [f.function for f in stack.created_by] == ["main.(*server).serve[...]"]
    assert stack.parent == (1 if minor >= 21 else None)
    assert not [w for w in snapshot.warnings if "missing" in w]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_system_call_is_left_where_it_was_entered(machine: str) -> None:
    calls = ((RECEIVE, 0x10), (WORK, 0x40), (GOEXIT, 4))
    snapshot = decode(process([Parked(1, calls, status=3, syscall=True)], machine).capture())
    assert names(snapshot, 1) == ["runtime.chanrecv1:10", "main.work:10", "runtime.goexit:10"]
    assert next(s for s in snapshot if s.address == 1).wait == "syscall"


def test_on_arm64_a_leaf_returns_to_its_link_register() -> None:
    calls = ((LEAF, 0x10), (WORK, 0x40), (GOEXIT, 4))
    snapshot = decode(process([Parked(1, calls)], "aarch64").capture())
    assert names(snapshot, 1) == ["main.leaf:10", "main.work:10", "runtime.goexit:10"]


def test_what_was_preempted_was_not_calling() -> None:
    # 0x80 is the first address of the second half: a return address there would belong to the first.
    calls = ((GOPARK, 0x20), (PREEMPT, 0x10), (LEAF, 0x80), (GOEXIT, 4))
    snapshot = decode(process([Parked(1, calls)]).capture())
    assert names(snapshot, 1)[2] == "main.leaf:11"
    called = decode(process([Parked(1, ((GOPARK, 0x20), (LEAF, 0x80), (GOEXIT, 4)))]).capture())
    assert names(called, 1)[1] == "main.leaf:10"


def test_who_runs_has_the_registers_of_its_thread() -> None:
    go = process([Parked(1, PARKED), Parked(2, PARKED, status=2)])
    g = int.from_bytes(go.memory[go_memory.HEAP][8:16], "little")
    machine = go_memory.DATA + 0x2800
    go.word(machine + go.o("runtime.m", "procid"), 77)
    go.word(g + go.o("runtime.g", "m"), machine)
    top = int.from_bytes(go.memory[go_memory.HEAP][g + 8 - go_memory.HEAP :][:8], "little")
    go.word(top - 0x100, go.entry(SERVE) + 0x20)
    go.word(top - 0x100 + 8 + 0x50, go.entry(GOEXIT) + 4)
    registers = {"rip": go.entry(LEAF) + 0x90, "rsp": top - 0x100}
    go.threads = [CapturedThread(77, registers=registers)]
    snapshot = decode(go.capture(), frames=False)
    found = next(s for s in snapshot if s.address == 2 and s.kind == "goroutine")
    assert [f"{f.function}:{f.line}" for f in found.frames[:2]] == [
        "main.leaf:11",
        "main.(*server).serve[...]:10",
    ]
    assert found.thread == 77 and found.state == "running" and found.wait is None


def test_who_handles_a_signal_is_where_it_was_before() -> None:
    go = process([Parked(1, PARKED), Parked(2, PARKED, status=2)])
    g = int.from_bytes(go.memory[go_memory.HEAP][8:16], "little")
    machine, signals = go_memory.DATA + 0x2800, go_memory.DATA + 0x1000
    go.word(machine + go.o("runtime.m", "procid"), 77)
    go.word(g + go.o("runtime.g", "m"), machine)
    top = int.from_bytes(go.memory[go_memory.HEAP][g + 8 - go_memory.HEAP :][:8], "little")
    go.word(top - 0x100, go.entry(SERVE) + 0x20)
    go.word(top - 0x100 + 8 + 0x50, go.entry(GOEXIT) + 4)
    # struct rt_sigframe: where the handler returns to, then ucontext with gregs from 40 on; 15 is sp, 16 ip.
    frame = signals + 0x80
    go.word(frame, go.entry(SIGRETURN))
    go.word(frame + 8 + 40 + 8 * 15, top - 0x100)
    go.word(frame + 8 + 40 + 8 * 16, go.entry(LEAF) + 0x90)
    go.threads = [CapturedThread(77, registers={"rip": go.entry(SIGTRAMP) + 8, "rsp": signals})]
    snapshot = decode(go.capture(), frames=False)
    expected = ["main.leaf", "main.(*server).serve[...]", "runtime.goexit"]
    found = next(s for s in snapshot if s.address == 2 and s.kind == "goroutine")
    assert [f.function for f in found.merged] == expected
    thread = next(s for s in snapshot if s.kind == "thread")
    assert [f.function for f in thread.frames] == ["runtime.sigtramp", *expected]


def test_dead_goroutines_are_no_stacks() -> None:
    snapshot = decode(process([Parked(1, PARKED), Parked(2, PARKED, status=6)]).capture())
    assert [s.address for s in snapshot] == [1]
    assert snapshot.tables["go_runtime"][0]["dead"] == 1


def test_a_function_that_writes_to_its_stack_pointer_ends_a_stack() -> None:
    snapshot = decode(process([Parked(1, ((GOPARK, 0x20), (WRITES_SP, 0x10), *PARKED[1:]))]).capture())
    assert names(snapshot, 1) == ["runtime.gopark:10", "runtime.mcall:10"]
    assert any("outermost frames of 1 of 1" in w for w in snapshot.warnings)


def test_a_stack_that_leads_round_in_circles_ends() -> None:
    go = process([Parked(n, PARKED) for n in (1, 2)])
    heap = go.memory[go_memory.HEAP]
    back = (go.entry(GOPARK) + 0x20).to_bytes(8, "little")
    stacks = len(heap) - 2 * go_memory.STACK
    heap[stacks:] = back * ((len(heap) - stacks) // 8)
    snapshot = decode(go.capture())
    assert len(snapshot.stacks) == 2
    assert all(len(names(snapshot, n)) < go_memory.STACK // 8 for n in (1, 2))


def test_deep_stacks_are_cut_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from diagtool.runtimes.golang import decode as decoding
    from diagtool.runtimes.golang.unwind import unwind

    monkeypatch.setattr(decoding, "unwind", lambda *a: unwind(*a, most=3))
    snapshot = decode(process([Parked(1, PARKED)]).capture())
    assert len(names(snapshot, 1)) == 4  # three, with what is inlined
    assert any("outermost frames" in w for w in snapshot.warnings)


def test_of_very_many_long_stacks_some_frames_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from diagtool.runtimes.golang import decode as decoding

    monkeypatch.setattr(decoding, "_MOST_KIND_FRAMES", 4)
    monkeypatch.setattr(decoding, "_FEWER_FRAMES", 2)
    go = process([Parked(1, PARKED), Parked(2, PARKED[1:])])
    snapshot = decode(go.capture())
    assert sorted(len(names(snapshot, goid)) for goid in (1, 2)) == [2, 5]  # one of them whole
    assert any("only 2 frames are kept" in w for w in snapshot.warnings)


def test_a_list_of_absurd_length_is_damaged() -> None:
    go = process([Parked(1, PARKED)])
    runtime = find_go(go.capture())
    go.word(runtime.allgs + 8, 1 << 40)
    go.word(runtime.allgs + 16, 1 << 40)
    with pytest.raises(NotSupported, match="the list of goroutines was not found"):
        find_go(go.capture())


def test_modules_that_follow_each_other_in_circles_are_read_once() -> None:
    go = process([Parked(1, PARKED)])
    go.word(go.moduledata + go.o("runtime.moduledata", "next"), go.moduledata)
    assert len(find_go(go.capture()).modules) == 1


def test_old_and_unknown_versions_are_named() -> None:
    go = process([Parked(1, PARKED)])
    go.put(go_memory.DATA + 33, b"go1.99.1")
    with pytest.raises(NotSupported, match=r"built with go1\.99\.1; tables are there for 1\.19 to 1\.27"):
        find_go(go.capture())
    go.put(go_memory.DATA + 33, b"go1.20.1")
    with pytest.raises(NotSupported, match=r"built with go1\.20\.1; .*but not 1\.20"):
        find_go(go.capture())
    go = process([Parked(1, PARKED)])
    go.put(go_memory.TABLES, (0xFFFFFFFA).to_bytes(4, "little"))
    with pytest.raises(NotSupported, match=r"built with Go 1\.17 or older"):
        find_go(go.capture())


def test_a_build_with_other_structures_is_refused() -> None:
    go = process([Parked(n, PARKED) for n in range(1, 9)])
    for number in range(8):
        g = int.from_bytes(go.memory[go_memory.HEAP][8 * number : 8 * number + 8], "little")
        go.put(g + go.o("runtime.g", "atomicstatus"), b"\x77\x00\x00\x00")
    with pytest.raises(NotSupported, match=r"go1\.27\.1 keeps of goroutines is not where go1\.27"):
        find_go(go.capture())


def test_without_function_tables_it_is_said_what_is_missing() -> None:
    go = process([Parked(1, PARKED)])
    del go.memory[go_memory.TABLES]
    go.memory[go_memory.TABLES] = bytearray(8)
    with pytest.raises(NotSupported, match=r"go1\.27\.1\): its function tables are not in the capture"):
        find_go(go.capture())


@pytest.mark.parametrize("seed", range(40))
def test_nonsense_in_memory_is_no_traceback(seed: int) -> None:
    source = random.Random(seed)
    go = process(
        [Parked(n, PARKED, gopc=0x401310) for n in range(1, 30)], source.choice(["x86_64", "aarch64"])
    )
    for base, data in go.memory.items():
        if base == go_memory.BASE:
            continue
        for _ in range(source.choice([1, 10, 300])):
            at = source.randrange(0, len(data) - 8) & -8
            word = source.choice(
                [0, 1, (1 << 64) - 1, 1 << 63, source.getrandbits(64), go_memory.HEAP + at, at]
            )
            data[at : at + 8] = word.to_bytes(8, "little")
    try:
        snapshot = decode(go.capture())
    except (NotSupported, NoRuntime):
        return
    assert len(snapshot.stacks) <= 30
    for stack in snapshot:
        assert own_part(stack.frames) is not None


def test_a_function_is_found_by_its_name_and_its_addresses() -> None:
    go = process([Parked(1, PARKED)])
    functions = Functions(find_go(go.capture()))
    assert functions.entry("main.work") == go.entry(WORK)
    assert functions.entry("main.wor") == 0
    inside = np.array([go.entry(WORK), go.entry(WORK) + 5, go.entry(0) - 1, go.entry(10)], np.uint64)
    assert functions.contains(inside).tolist() == [True, True, False, False]
