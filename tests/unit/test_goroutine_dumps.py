"""Goroutine dumps as text: the grammar of all versions, and the same goroutine from every kind of text."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pytest
from made_dumps import BODY, DATA, MADE, MINORS, goroutine, of_file, one, read, rows

import diagtool
from diagtool.ingest.goroutines.body import ELIDED
from diagtool.ingest.goroutines.header import parse_header
from diagtool.leaks.series import Course
from diagtool.snapshot.model import Frame, Snapshot

ODD = [m for m in MINORS if (DATA / m / "odd-debug2.txt").exists()]


def found(snap: Snapshot) -> dict[str, tuple[str | None, int]]:
    report = diagtool.find_leaks(snap, min_count=1, sources=[])
    return {f.id: (f.template, f.count) for f in report.findings if f.template != "go-sleep-loops-pile-up"}


# --- one goroutine ----------------------------------------------------------------------------------------


def test_a_goroutine_has_a_number_a_maker_a_wait_and_frames() -> None:
    stack = one(goroutine(7, "chan receive, 5 minutes"))
    assert (stack.kind, stack.address, stack.parent, stack.state, stack.wait, stack.wait_seconds) == (
        *("goroutine", 7, 1, "waiting"),
        *("chan receive", 300.0),
    )
    assert stack.frames == [Frame("main.work", "/srv/app/work.go", 31, "main", "go")]
    assert stack.created_by == [Frame("main.serve", "/srv/app/main.go", 12, "main", "go")]


@pytest.mark.parametrize(
    ("bracket", "behind", "reason", "minutes", "leaked", "locked", "labels"),
    [
        ("running", "", "running", 0, False, False, ()),
        ("chan receive (nil chan), 12 minutes", "", "chan receive (nil chan)", 12, False, False, ()),
        ("syscall, locked to thread", "", "syscall", 0, False, True, ()),
        ("select, 3 minutes, locked to thread", "", "select", 3, False, True, ()),
        ("chan send (leaked)", "", "chan send (leaked)", 0, True, False, ()),
        ("chan send (leaked) (scan), 2 minutes", "", "chan send (leaked) (scan)", 2, True, False, ()),
        ("select (durable), synctest bubble 4", "", "select (durable)", 0, False, False, ()),
        ("chan receive (synctest), synctest group 4", "", "chan receive (synctest)", 0, False, False, ()),
        ('sleep labels:{"a": "b\\n", "c": "]"}', "", "sleep", 0, False, False, (("a", "b\n"), ("c", "]"))),
        (
            "sleep",
            ' {a.b: c/d, "x y": "}]: {"}',
            "sleep",
            0,
            False,
            False,
            (("a.b", "c/d"), ("x y", "}]: {")),
        ),
        ("???", "", "???", 0, False, False, ()),
        ("something new, more of it", "", "something new, more of it", 0, False, False, ()),
    ],
)
def test_headers_of_all_versions(
    bracket: str,
    behind: str,
    reason: str,
    minutes: int,
    leaked: bool,
    locked: bool,
    labels: tuple[tuple[str, str], ...],
) -> None:
    told = parse_header(bracket.encode(), behind.encode())
    assert (told.reason, told.minutes, told.leaked, told.locked, told.labels) == (
        *(reason, minutes, leaked, locked),
        labels,
    )
    assert len(read(f"goroutine 9 [{bracket}]{behind}:\n{BODY}")[0].stacks) == 1


@pytest.mark.parametrize(
    ("line", "function", "language"),
    [
        ("main.work()", "main.work", "go"),
        ("main.(*T).run(...)", "main.(*T).run", "go"),
        ("main.f(0x1?, {0x2, {0x3, _, ...}}, 0x0)", "main.f", "go"),
        ("main.f(0x1, 0x2, 0x3, 0x4, 0x5, 0x6, 0x7, 0x8, 0x9, 0xa, ...)", "main.f", "go"),
        ("main.(*pairs[...]).wait[...](0xc0)", "main.(*pairs[...]).wait[...]", "go"),
        ("gopkg.in/yaml%2ev3.(*parser).peek(0xc0)", "gopkg.in/yaml.v3.(*parser).peek", "go"),
        ("main.func·001()", "main.func·001", "go"),
        ("main.(*T).run-fm()", "main.(*T).run-fm", "go"),
        ("type..eq.struct { F uintptr }(0x1)", "type..eq.struct { F uintptr }", "go"),
        ("panic({0x1234, 0x5678})", "panic", "go"),
        ("wait_in_c", "wait_in_c", "native"),
    ],
)
def test_functions_as_they_are_printed(line: str, function: str, language: str) -> None:
    stack = one(f"goroutine 1 [running]:\nmain.inner()\n\t/a.go:1 +0x1\n{line}\n\tC:/x y/z.go:40 +0x9\n")
    assert [(f.function, f.file, f.line, f.language) for f in stack.frames[1:]] == [
        (function, "C:/x y/z.go", 40, language)
    ]


def test_frames_that_were_left_out_are_marked_alike() -> None:
    new = one(goroutine(1, body=BODY + "...17 frames elided...\n" + BODY))
    old = one(goroutine(1, body=BODY + "...additional frames elided...\n"))
    assert new.frames[1] == old.frames[1] == ELIDED
    assert len(new.frames) == 3 and new.created_by and old.created_by


def test_ancestors_tell_who_made_it_and_are_no_frames_of_it() -> None:
    ancestors = f"[originating from goroutine 3]:\n{BODY}...additional frames elided...\n{MADE}"
    stack = one(goroutine(5, made="created by main.a\n\t/a.go:1 +0x1\n" + ancestors))
    assert (stack.parent, len(stack.frames), stack.created_by[0].function) == (3, 1, "main.a")


def test_frames_of_c_with_and_without_names() -> None:
    body = (
        "non-Go function at pc=0x7f01\nsleeping\n\t/src/wait.c:12 pc=0x7f02\nnon-Go function\n\tpc=0x7f03\n"
    )
    stack = one(goroutine(5, "syscall", body=body + BODY))
    assert [(f.function, f.line) for f in stack.frames] == [
        *(("non-Go function", None), ("sleeping", 12), ("non-Go function", None)),
        ("main.work", 31),
    ]


def test_a_goroutine_on_another_thread_is_completed_by_what_that_thread_prints() -> None:
    away = "goroutine 8 [running]:\n\tgoroutine running on other thread; stack unavailable\n" + MADE
    crash = "SIGQUIT: quit\n\n" + goroutine(7) + away + "\n"
    (before,) = read(crash)
    assert before.warnings and not before.stack(1).frames
    (snap,) = read(crash + "-----\n\nSIGQUIT: quit\n\n" + goroutine(8, "running") + goroutine(7))
    assert [s.address for s in snap] == [7, 8] and snap.stack(1).frames and not snap.warnings


def test_an_unknown_line_is_counted_and_ends_nothing() -> None:
    body = BODY + "what is this\n" + BODY.replace("work", "outer")
    (snap,) = read(goroutine(1, body=body) + goroutine(2))
    assert [f.function for f in snap.stack(0).frames] == ["main.work", "main.outer"]
    assert len(snap.stacks) == 2 and snap.stack(0).created_by
    assert any("1 line among" in w and "what is this" in w for w in snap.warnings)


def test_the_runtimes_own_mark_is_a_proof_and_so_is_that_all_are_asleep() -> None:
    (marked,) = read(goroutine(1, "chan receive (leaked)") + goroutine(2))
    assert marked.stacks.stuck.tolist() == [1, 0] and marked.target.details["exact"]
    text = "fatal error: all goroutines are asleep - deadlock!\n\n"
    (asleep,) = read(
        text + goroutine(1) + goroutine(2, "select (no cases)") + goroutine(3, "GC worker (idle)")
    )
    assert asleep.stacks.stuck.tolist() == [1, 1, 0]
    (plain,) = read(goroutine(1))
    assert "exact" not in plain.target.details


def test_why_it_was_written_is_kept() -> None:
    text = (
        "panic: runtime error: invalid memory address\n[signal SIGSEGV: segmentation violation code=0x1]\n\n"
    )
    (snap,) = read(text + goroutine(1, "running") + goroutine(2))
    assert snap.target.signal == 11 and "invalid memory" in snap.target.details["cause"]


def test_the_version_is_told_by_paths_of_the_runtime() -> None:
    path = "/root/go/pkg/mod/golang.org/toolchain@v0.0.1-go1.22.10.linux-amd64/src/runtime/proc.go"
    (snap,) = read(goroutine(1, body=f"runtime.gopark(0x1)\n\t{path}:1 +0x1\n" + BODY))
    assert snap.target.runtime == "go1.22.10"


# --- what programs of all versions wrote --------------------------------------------------------------------


@pytest.mark.parametrize("minor", MINORS)
def test_a_leak_is_the_same_finding_in_every_kind_of_dump(minor: str) -> None:
    (dump,) = of_file(DATA / minor / "debug2.txt")
    (quit_,) = of_file(DATA / minor / "sigquit.txt")
    (counts,) = of_file(DATA / minor / "debug1.txt")
    assert len(dump.stacks) == 79 and len(counts.stacks) == 79
    first = found(dump)
    assert len(first) >= 15 and found(quit_) == first
    # How many wait and where is told by counts, too; who of them is stuck for good is not.
    assert first.keys() <= found(counts).keys() | {k for k, (t, _) in first.items() if "nil" in str(t)}


@pytest.mark.parametrize("minor", ODD)
def test_odd_stacks_are_read_the_same_from_all_texts(minor: str, tmp_path: Path) -> None:
    texts = {name: of_file(DATA / minor / f"odd-{name}.txt") for name in ("debug2", "ancestors", "debug1")}
    for name in ("sigquit", "crash"):
        path = tmp_path / name
        path.write_bytes(gzip.decompress((DATA / minor / f"odd-{name}.txt.gz").read_bytes()))
        texts[name] = of_file(path)

    def places(snaps: list[Snapshot]) -> Counter[str]:
        (snap,) = snaps
        own = (next((f for f in s.frames if f.module == "main"), None) for s in snap)
        return Counter(f"{f.function}:{f.line}" for f in own if f is not None and f.function != "main.main")

    expected = places(texts["debug2"])
    assert sum(expected.values()) == 20 and expected["main.deeper:40"] == 2
    for name, snaps in texts.items():
        assert places(snaps) == expected, name
        assert not any("mean nothing" in w for w in snaps[0].warnings)
    if minor in ("1.26", "1.27"):
        labels = {(k, v) for _, k, v in texts["debug2"][0].labels}
        assert labels == {("service", "search"), ("trace_id", 'a "quoted"] {b: c}'), ("shard", "7/a.b_c")}
    assert {(k, v) for _, k, v in texts["debug1"][0].labels} >= {("service", "search")}


@pytest.mark.parametrize("minor", ["1.19", "1.27"])
def test_goroutines_in_c(minor: str) -> None:
    (snap,) = of_file(DATA / minor / "cgo-sigquit.txt")
    waits = Counter((s.wait, s.frames[0].function.rpartition("_")[2]) for s in snap)
    assert waits["cgo call", "waitInC"] == 2 and snap.target.signal == 3


@pytest.mark.parametrize("minor", ["1.21", "1.27"])
def test_reports_of_the_race_detector(minor: str) -> None:
    (snap,) = of_file(DATA / minor / "race.txt")
    races = snap.tables["data_races"]
    assert [r["race"] for r in races] == [1, 1, 2, 2]
    assert {r["does"] for r in races} <= {"read", "write", "previous read", "previous write"}
    assert races[0]["function"] == "main.write" and races[0]["created_by"][0][2] == "main.main"
    assert races[3]["goroutine"] == 1


def test_dumps_with_the_runtimes_marks_are_proven() -> None:
    (snap,) = of_file(DATA / "1.27" / "debug2-leaked.txt")
    verdicts = Counter(f.verdict for f in diagtool.find_leaks(snap, sources=[]).findings)
    assert verdicts["proven"] >= 10


# --- several dumps ---------------------------------------------------------------------------------------


def test_several_dumps_in_a_file_are_a_series() -> None:
    first = goroutine(1, "running") + "".join(goroutine(i) for i in range(2, 12))
    second = goroutine(1, "running") + "".join(goroutine(i) for i in range(7, 30))
    series = read(first + "some other line\n" + second)
    assert [len(s.stacks) for s in series] == [11, 24]
    trend = diagtool.find_leaks(series, min_count=1, sources=[]).findings[0].trend
    assert trend is not None and trend.counts == (10, 23) and trend.persisted == 5


def test_who_waits_anew_did_not_stay() -> None:
    first = goroutine(1, "running") + "".join(goroutine(i, "chan receive, 9 minutes") for i in range(2, 12))
    second = goroutine(1, "running") + "".join(
        goroutine(i, "chan receive, 9 minutes" if i % 2 else "chan receive, 2 minutes") for i in range(2, 12)
    )
    assert Course(read(first + second)).since.tolist() == [0, *[1, 0] * 5]


def test_a_dump_of_a_process_that_ended_is_not_compared_with_that_of_the_next() -> None:
    crash = "panic: boom\n\n" + goroutine(1, "running") + goroutine(2)
    series = read(crash + crash)
    assert len(series) == 1 and any("process that ended" in w for w in series[0].warnings)


def test_stacks_of_single_panics_are_no_dumps() -> None:
    panics = "".join(
        f"http: panic serving 10.0.0.{i}:80: boom\n" + goroutine(i, "running") for i in range(5, 9)
    )
    (alone,) = read(panics + panics)
    assert len(alone.stacks) == 8
    dumps = [goroutine(1, "running") + goroutine(2) + goroutine(3)] * 2
    assert [len(s.stacks) for s in read(dumps[0] + panics + "\nup\n" + dumps[1])] == [3, 3]


def test_a_text_with_counts_is_told_by_its_addresses() -> None:
    text = "goroutine profile: total 9\n" + "".join(
        f"{n} @ 0x100 {inner} 0x900 0x50\n#\t0x8ff\tmain.f{n}+0x1\t/srv/f.go:{n}\n\n"
        for n, inner in ((1, "0x214 0x210"), (2, "0x1414 0x1410"), (3, "0x1414 0x1430"), (3, "0x2000"))
    )
    (snap,) = read(text)
    assert [s.wait for s in snap] == [*["chan send"] * 1, *["chan receive"] * 5, *["select"] * 3]
    (unsure,) = read(text.split("\n\n")[0] + "\n")
    assert {(s.state, s.wait) for s in unsure} == {("waiting", None)}


def test_rows_are_the_same_in_one_piece_and_in_many() -> None:
    text = (DATA / "1.27" / "debug2.txt").read_text()
    (whole,) = read(text)
    for size in (1, 100, 5000):
        (parts,) = read(text, size)
        assert rows(parts) == rows(whole)
