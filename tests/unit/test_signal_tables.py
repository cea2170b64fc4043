"""Signals in bytes: notes of cores, siginfo, alternate stacks, what an address of a fault is; templates."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from diagtool.api import find_leaks
from diagtool.capture.memory import AddressSpace
from diagtool.capture.model import Capture, CapturedThread, Mapping, ProcessInfo
from diagtool.capture.signals import (
    AlternateStack,
    Disposition,
    Masks,
    SignalInfo,
    Signals,
    bits,
    name_of,
    pack,
    parse_siginfo,
    unpack,
)
from diagtool.inventory.altstacks import alternate_stacks
from diagtool.inventory.crash import crash
from diagtool.report import signals as report
from diagtool.report import terminal
from diagtool.snapshot.model import Snapshot, Target

STACK = Mapping(0x7F00_0000_0000, 0x7F00_0010_0000, "rw-p", 0, 0, "")
GUARD = Mapping(0x7EFF_FFFF_F000, 0x7F00_0000_0000, "---p", 0, 0, "")
CODE = Mapping(0x40_0000, 0x41_0000, "r-xp", 0, 1, "/bin/app")
MAPPINGS = [CODE, GUARD, STACK]


def core(signal: int, info: SignalInfo | None, **registers: int) -> Capture:
    return Capture(
        kind="core",
        process=ProcessInfo(pid=7, signal=signal),
        threads=[CapturedThread(7, registers={"rip": 0x40_0100, "rsp": STACK.start + 0x8_0000, **registers})],
        mappings=MAPPINGS,
        modules=[],
        memory=AddressSpace(),
        signals=Signals(info=info),
    )


def siginfo(number: int, code: int, *words: int) -> bytes:
    return struct.pack("<4i", number, 0, code, 0) + struct.pack(f"<{len(words)}Q", *words)


def test_names_are_those_of_glibc() -> None:
    assert [name_of(n) for n in (15, 32, 34, 37, 64, 99)] == [
        *("SIGTERM", "SIGCANCEL", "SIGRTMIN", "SIGRTMIN+3", "SIGRTMIN+30", "signal 99"),
    ]
    assert list(bits(0b101)) == [1, 3]
    assert list(bits(None)) == []
    assert list(bits(-1)) == list(range(1, 65))


def test_what_came_with_a_signal() -> None:
    assert parse_siginfo(siginfo(11, 1, 0x10)) == SignalInfo(11, 1, address=0x10)
    assert parse_siginfo(siginfo(11, 0x80, 0)) == SignalInfo(11, 0x80)
    assert parse_siginfo(siginfo(3, 0, 1000 << 32 | 42)) == SignalInfo(3, 0, pid=42, uid=1000)
    assert parse_siginfo(siginfo(31, 1, 0, 59)) == SignalInfo(31, 1, syscall=59)
    assert parse_siginfo(siginfo(0, 0)) is None
    assert parse_siginfo(siginfo(99, 0)) is None
    assert parse_siginfo(b"short") is None


def test_our_note_gives_back_what_was_put_in() -> None:
    known = Signals(
        Masks(caught=1 << 14, ignored=1 << 12, pending=0),
        {15: Disposition(0x40_0000, 0x1400_0000, 0x41_0000, 1 << 14), 17: Disposition(0, 2, 0, 0)},
        {7: AlternateStack(0x5000, 0, 8192)},
    )
    back = Signals()
    unpack(pack(known), back)
    assert (back.actions, back.stacks) == (known.actions, known.stacks)
    assert (back.masks.caught, back.masks.ignored, back.masks.pending) == (1 << 14, 1 << 12, 0)
    nothing = Signals()
    unpack(pack(Signals()), nothing)
    assert nothing.actions is None
    assert nothing.masks.caught is None


def test_a_damaged_note_harms_nobody() -> None:
    whole = pack(Signals(Masks(1, 2, 3), {15: Disposition(1, 2, 3, 4)}, {7: AlternateStack(1, 0, 2)}))
    choose = random.Random(5)
    for _ in range(500):
        raw = bytearray(whole[: choose.randrange(len(whole) + 1)])
        for _ in range(choose.randrange(4)):
            if raw:
                raw[choose.randrange(len(raw))] = choose.randrange(256)
        out = Signals()
        unpack(bytes(raw), out)
        assert all(0 < number < 65 for number in out.actions or {})


@pytest.mark.parametrize(
    ("address", "pointer", "said"),
    [
        (0, 0, "NULL"),
        (24, 0, "24 bytes behind NULL"),
        (0x10_0000_0000, 0, "no memory: freed, unmapped or a wild pointer"),
        (CODE.start + 8, 0, "app (r-xp): written to, though it may only be read"),
        (STACK.start - 8, STACK.start + 64, "just below the stack: it has overflowed"),
        (GUARD.start + 8, STACK.start + 0x8_0000, "no access at all, as guards and reserved memory are"),
        (STACK.start + 16, 0, "anonymous memory (rw-p) at offset 0x10"),
    ],
)
def test_what_lies_at_the_address_of_a_fault(address: int, pointer: int, said: str) -> None:
    capture = core(11, SignalInfo(11, 1, address=address))
    if pointer:
        capture.threads[0].registers["rsp"] = pointer
    row = crash(capture)
    assert row is not None
    assert said in row["hit"]
    assert row["text"].startswith("SIGSEGV at 0x400100, where no library is, at address")


def test_who_sent_the_signal_and_what_is_no_crash() -> None:
    told = crash(core(3, SignalInfo(3, 0, pid=42, uid=1000)))
    assert told is not None
    assert "sent by process 42 (uid 1000)" in told["text"]
    itself = crash(core(6, SignalInfo(6, -6, pid=7, uid=0)))
    assert itself is not None
    assert "it aborted itself" in itself["text"]
    assert crash(core(5, None)) is None  # gcore stops with SIGTRAP
    assert crash(core(19, None)) is None
    live = core(11, None)
    live.kind, live.process.signal = "live", None  # one that nothing ends
    assert crash(live) is None


def test_alternate_stacks_are_judged() -> None:
    def state(stack: AlternateStack, other: int = 0) -> str:
        capture = core(0, None)
        capture.threads.append(CapturedThread(8, registers={"rsp": other}))
        capture.signals.stacks = {7: stack}
        found = alternate_stacks(capture, {"stack": STACK.start, "stack_size": 1}, [])
        assert found[0]["main"] is True
        return str(found[0]["state"])

    assert state(AlternateStack(0, 2, 0)) == "none"
    assert state(AlternateStack(STACK.start, 0, 0x4000)) == "fits"
    assert state(AlternateStack(STACK.start, 0, 512)) == "small"
    assert state(AlternateStack(STACK.end - 0x1000, 0, 0x4000)) == "gone"
    assert state(AlternateStack(GUARD.start, 0, 0x1000)) == "gone"
    assert state(AlternateStack(STACK.start, 0, 0x4000), STACK.start + 0x800) == "shared"


# -- templates ----------------------------------------------------------------------------------------------

PLAIN: dict[str, Any] = {
    "signal": "SIGTERM",
    "number": 15,
    "disposition": "handler",
    "owner": "library",
    "text": "on_term in libx.so",
    "python": "app.stop",
    "python_kind": "function",
    "python_default": False,
    "place": "app.py:4",
    "agrees": False,
    "replaced": "handler",
    "kept": 0,
    "stolen": True,
    "stolen_default": False,
    "exits_lost": False,
    "lost_by_others": False,
    "waiters": None,
    "connections": None,
    "listening": None,
    "deadly": None,
    "blocked_all": False,
    "awaited": False,
    "pending": False,
}
DEADLY = {"signal": "SIGPIPE", "number": 13, "stolen": False, "deadly": "others"}
ALT = {"tid": 7, "main": True, "faulthandler": False, "text": "none", "others": []}
SAVED = {"library": "/x/liby.so", "text": "liby.so+0x10", "signals": "SIGTERM"}


def found(table: str, **row: Any) -> list[tuple[str | None, str]]:
    snap = Snapshot(Target("live", pid=7))
    snap.tables[table] = [row]
    return [(f.template, f.verdict) for f in find_leaks(snap).findings]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [("signal-handler-replaced", "likely")]),
        ({"kept": 2}, [("signal-handler-replaced", "suspect")]),
        ({"replaced": "ignored", "disposition": "ignored"}, [("signal-handler-replaced", "likely")]),
        ({"replaced": "default", "disposition": "default"}, [("signal-handler-replaced", "likely")]),
        ({"stolen": False, "stolen_default": True}, [("signal-handler-replaced", "suspect")]),
        ({"stolen": False, "owner": "faulthandler"}, []),
        ({"agrees": None, "stolen": False}, []),
        ({"owner": "nothing", "agrees": None, "stolen": False}, [("signal-handler-gone", "likely")]),
        (DEADLY | {"listening": 2, "connections": 0}, [("sigpipe-deadly", "likely")]),
        (DEADLY | {"listening": 0, "connections": 1}, [("sigpipe-deadly", "likely")]),
        (DEADLY | {"listening": 0, "connections": 0}, []),
        (DEADLY, [("sigpipe-deadly", "suspect")]),
        (DEADLY | {"deadly": "itself", "listening": 1}, [("sigpipe-deadly", "suspect")]),
        (DEADLY | {"deadly": "itself", "listening": 0}, []),
    ],
)
def test_what_is_said_of_a_signal(changes: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert found("signals", **{**PLAIN, **changes}) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"exits_lost": True, "lost_by_others": True, "waiters": 1}, [("sigchld-ignored", "likely")]),
        ({"exits_lost": True, "waiters": 1}, [("sigchld-ignored", "suspect")]),
        ({"exits_lost": True, "lost_by_others": True, "waiters": 0}, []),
        ({"blocked_all": True}, [("signal-blocked", "suspect")]),
        ({"blocked_all": True, "awaited": True}, []),
        ({"blocked_all": True, "python_kind": "default"}, []),
        ({"blocked_all": True, "python_kind": "default", "pending": True}, [("signal-blocked", "suspect")]),
    ],
)
def test_what_is_said_of_one_that_python_has(
    changes: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    good = {**PLAIN, "agrees": True, "stolen": False, "owner": "python", "replaced": None}
    assert found("signals", **good) == []
    assert found("signals", **{**good, **changes}) == expected


def test_what_is_said_of_stacks_and_of_who_keeps_handlers() -> None:
    name = "signal-stack-unusable"
    assert found("alternate_stacks", **ALT, state="gone") == [(name, "likely")]
    assert found("alternate_stacks", **ALT, state="shared") == [(name, "likely")]
    assert found("alternate_stacks", **ALT, state="small") == [(name, "suspect")]
    assert found("alternate_stacks", **ALT, state="none") == []
    assert found("alternate_stacks", **{**ALT, "faulthandler": True}, state="none") == [(name, "suspect")]
    assert found("alternate_stacks", **{**ALT, "faulthandler": True, "main": False}, state="none") == []
    assert found("saved_handlers", **SAVED, certain=False) == [("signal-handler-kept", "suspect")]
    assert found("saved_handlers", **SAVED, certain=True) == []


def test_a_hostile_table_is_shown_as_far_as_it_makes_sense() -> None:
    snap = Snapshot(Target("snapshot", pid=7))
    snap.tables["signals"] = [
        {"signal": "SIG\x1b[2J", "number": 5, "text": 7, "python": ["x"], "flags": "no", "handler": "0x"},
        {"signal": 5, "number": 6},
        {"signal": "SIGX", "number": "9"},
        {"signal": "SIGY", "number": 1 << 80},
        ["no", "row"],
    ]
    snap.tables["alternate_stacks"] = [5, {"tid": "\x1b[1m", "state": ["gone"], "text": None}]
    snap.tables["saved_handlers"] = ["x", {"text": "\x1b[1m"}]
    snap.tables["signal_state"] = [{"doubt": 5, "wakeup_fd": "x", "dump_later": 1e300, "threads": None}]
    snap.target.details["crash"] = {"text": "a\x1b[31mb"}
    assert [row["number"] for row in report.rows(snap)] == [5]
    text = "\n".join(
        "".join(part for part, _ in line)
        for line in report.lines(snap, report.rows(snap), terminal.View(verbose=True))
    )
    assert "\x1b" not in text
    assert report.document(snap, report.rows(snap))["state"]["doubt"] == []


def test_real_time_signals_that_are_all_the_same_are_one_line() -> None:
    numbers = [2, 3, *range(35, 40), 41]
    table = [(f"SIGRTMIN+{n - 34}" if n > 34 else f"SIG{n}", "f in go", "") for n in numbers]
    table[4] = (table[4][0], "g in go", "")
    rows, lines = report._joined([{"number": n} for n in numbers], table, [[] for _ in numbers])
    assert [row["number"] for row in rows] == [2, 3, 35, 37, 38, 41]
    assert [name for name, *_ in lines] == [
        "SIG2", "SIG3", "SIGRTMIN+1 to +2", "SIGRTMIN+3", "SIGRTMIN+4 to +5", "SIGRTMIN+7",
    ]  # fmt: skip
