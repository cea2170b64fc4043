"""Goroutine dumps within logs of every kind, damaged and hostile ones; and the quick way to read them."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_dumps import BODY, DATA, MADE, goroutine, parsed, read, rows

from diagtool.ingest.goroutines import looks
from diagtool.ingest.goroutines import text as texts
from diagtool.ingest.goroutines.columns import Columns

PLAIN = (DATA / "1.27" / "debug2.txt").read_text()
LINES = PLAIN.splitlines()


def each(prefix: Callable[[int], str]) -> str:
    return "".join(f"{prefix(i)}{line}\n" for i, line in enumerate(LINES))


WRAPPED = {
    "time stamps": each(lambda i: f"2026-05-01T12:00:{i % 60:02}.{i:09}Z stderr F "),
    "a container's name": each(lambda _: "web-1  | "),
    "a pod's name": each(lambda _: "[pod/search-7c9f/app] "),
    "the journal": each(lambda i: f"May 01 12:{i % 60:02}:01 host search[4242]: "),
    "a quote": each(lambda _: "> ").replace("> \n", ">\n"),
    "an indent": textwrap.indent(PLAIN, "    "),
    "an indent of tabs": textwrap.indent(PLAIN, "\t\t"),
    "tabs made blanks": PLAIN.expandtabs(8),
    "carriage returns": PLAIN.replace("\n", "\r\n"),
    "bars behind": "".join(f"{line} | |\n" for line in LINES),
    "colours": each(lambda _: "\x1b[31m").replace("\n", "\x1b[0m\n"),
    "no empty lines": PLAIN.replace("\n\n", "\n"),
    "more empty lines": PLAIN.replace("\n\n", "\n\n\n\n"),
    "Docker's files": "".join(
        json.dumps({"log": f"{line}\n", "stream": "stderr"}, separators=(",", ":")) + "\n" for line in LINES
    ),
    "one string of a log": json.dumps({"level": "error", "stack": PLAIN, "n": 7}) + "\n",
    "one string in another": json.dumps({"message": json.dumps({"stack": PLAIN})}) + "\n",
    "other lines around": "started\n" * 50 + PLAIN + "\nexit status 2\nmore goroutine talk\n" * 9,
    "a header behind a time stamp": "2026/05/01 12:00:00 " + PLAIN,
    "a mark of the encoding": "\ufeff" + PLAIN,
}


@pytest.mark.parametrize("how", WRAPPED)
@pytest.mark.parametrize("size", [0, 3000])
def test_what_logs_put_around_a_dump_is_taken_off(how: str, size: int) -> None:
    text = WRAPPED[how]
    assert looks(text.encode())
    (snap,) = read(text, size)
    (plain,) = read(PLAIN)
    assert rows(snap) == rows(plain)


def test_what_powershell_writes_is_read() -> None:
    data = PLAIN.encode("utf-16")
    assert looks(data[:4096])
    (snap,) = read(b"".join(texts.chunks(io.BytesIO(data))))
    assert len(snap.stacks) == 79


@pytest.mark.parametrize("cut", [1, 17, 500, 1233, 5000, len(PLAIN) - 1])
def test_a_dump_cut_off_within_a_line_is_read_as_far_as_it_goes(cut: str) -> None:
    parser = parsed(PLAIN[: int(cut)])
    whole = PLAIN[: int(cut)].count("]:\n")
    assert whole - 1 <= len(parser.columns.goid) <= whole + 1


def test_a_dump_that_ends_within_a_goroutine_says_so_and_a_whole_one_does_not() -> None:
    whole = "goroutine 1 [chan receive]:\nmain.f(0x1)\n\t/a/b.go:12 +0x1\ncreated by main.g\n\t/a/b.go:3 +0x1"
    said = {size: parsed(whole[:size]).cut for size in range(len(whole) + 1)}
    ends = {whole.index(" +0x1"), whole.index("\ncreated")}
    assert not any(said[size] for size in ends) and not said[len(whole)]
    assert (
        said[14]
        and said[whole.index("f(")]
        and said[whole.index("b.go")]
        and said[whole.index("\n\t/a/b.go:3")]
    )
    for behind in ("\nexit status 2\n", "\n\n2026-11-22 INFO bye\n", "\n"):
        assert not parsed(whole + behind).cut
    (snap,) = read(whole[:-12])
    assert any("cut off" in warning for warning in snap.warnings)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "goroutine ",
        "goroutine 1 [",
        "goroutine 99999999999999999999999 [running]:\nmain.main()\n\t/a.go:1\n",
        "goroutine 18446744073709551615 [running]:\nmain.main()\n\t/a.go:1\n",
        "goroutine profile: total 5\n9999999999999999 @ 0x1\n#\t0x1\tmain.f+0x1\t/a.go:1\n",
        "goroutine 1 [running, 99999999999999999999 minutes]:\nmain.main()\n\t/a.go:99999999999999\n",
        "WARNING: DATA RACE\n" * 50,
        "-----\n" * 50 + "SIGQUIT: quit\n" * 50,
        "created by x in goroutine 1\n",
        "[originating from goroutine 1]:\n" * 40,
        "goroutine 1 [running]:\n" + "]:\\n" * 2000 + '"' * 999,
        '{"log":"goroutine 1 [running]:\\n\n',
        "goroutine 1 [running]:\n" + "\x00\x01\xff" * 999,
        "goroutine 1 [a]:\ncreated by main.f in goroutine 99999999999999999999999\n\t/a.go:1 +0x1\n",
    ],
)
def test_nonsense_is_no_error(text: str) -> None:
    for snap in read(text) + read(text * 3, 10) + read(PLAIN + text + PLAIN):
        assert len(snap.stacks) <= 10_000_000
        list(snap) if len(snap.stacks) < 1000 else None


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300), st.integers(0, len(PLAIN)))
def test_garbage_within_a_dump_does_no_harm(garbage: bytes, at: int) -> None:
    data = PLAIN.encode()
    snaps = read(data[:at] + garbage + data[at:], 4000)
    assert sum(len(s.stacks) for s in snaps) >= 75


def test_a_line_without_an_end_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MAX_LINE", 4096)
    monkeypatch.setattr(texts, "CHUNK", 1000)
    data = b"x" * 200_000 + b"\n" + PLAIN.encode()
    pieces = list(texts.chunks(io.BytesIO(data)))
    assert max(map(len, pieces)) < 20_000
    parser = parsed(b"")
    for piece in pieces:
        parser.feed(piece)
    parser.close()
    assert len(parser.columns.goid) == 79


def test_too_many_different_stacks_are_counted_without_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diagtool.ingest.goroutines.columns.MAX_KINDS", 50)
    text = "".join(goroutine(i, body=f"main.f{i}()\n\t/a.go:{i} +0x1\n") for i in range(1, 200))
    (snap,) = read(text)
    assert len(snap.stacks) == 199 and len(snap.traces.frames) < 60
    assert any("too many different stacks" in w for w in snap.warnings)


def test_goroutine_1_again_and_again_is_no_series_of_thousands() -> None:
    snaps = read("".join(goroutine(1) for _ in range(6000)))
    assert len(snaps) == 1 and len(snaps[0].stacks) == 6000


def test_prefixes_that_never_end_are_not_all_remembered() -> None:
    text = "".join(f"request-{chr(97 + i % 26)}{i}x: " + goroutine(i) for i in range(1, 60))
    assert sum(len(s.stacks) for s in read(text)) == 59


def test_memory_grows_by_some_bytes_for_a_goroutine() -> None:
    columns: Columns = parsed("".join(goroutine(i, "select, 3 minutes") for i in range(1, 5000))).columns
    assert len(columns.kinds) == 1 and len(columns.goid) == 4999
    bytes_each = sum(c.itemsize for c in (columns.goid, columns.parent, columns.kind, columns.minutes))
    assert bytes_each <= 24


# --- the quick way and the careful one --------------------------------------------------------------------

NUMBERS = st.integers(0, 2**48).map(lambda n: f"0x{n:x}")
ARGUMENTS = st.lists(st.one_of(NUMBERS, NUMBERS.map(lambda n: n + "?"), st.just("...")), max_size=3).map(
    ", ".join
)
NAMES = st.sampled_from(["main.work", "main.(*T[...]).run", "net/http.(*conn).serve", "main.main.func1.2"])
FRAME = st.tuples(NAMES, ARGUMENTS, st.integers(1, 99), NUMBERS).map(
    lambda f: f"{f[0]}({f[1]})\n\t/srv/app/f.go:{f[2]} +{f[3]}\n"
)
ODD = st.sampled_from(
    ["", "", "", "what\n", "...9 frames elided...\n", "\n", "goroutine 5 of many\n", "-----\n"]
)
BRACKET = st.sampled_from(
    [
        "running",
        "chan receive",
        "select, 4 minutes",
        "sleep, locked to thread",
        "chan send (leaked)",
        "IO wait] {a: b",
    ]
)


@st.composite
def dumps(draw: st.DrawFn) -> str:
    bodies = draw(st.lists(st.lists(st.one_of(FRAME, ODD), max_size=4).map("".join), min_size=1, max_size=4))
    out = []
    for goid in range(1, draw(st.integers(2, 12))):
        body = draw(st.sampled_from(bodies)).replace("0xc", f"0x{goid:x}")
        made = draw(
            st.sampled_from(["", f"created by main.main in goroutine {goid}\n\t/srv/m.go:7 +0x1\n", MADE])
        )
        bracket = draw(BRACKET)
        end = "}:" if "{" in bracket else "]:"
        out.append(
            f"goroutine {goid} [{bracket}{end}\n{body}{made}" + draw(st.sampled_from(["\n", "", "\n\n"]))
        )
    return "".join(out)


@settings(max_examples=80, deadline=None)
@given(dumps(), st.integers(1, 600))
def test_the_quick_way_gives_what_the_careful_one_does(text: str, size: int) -> None:
    quick, careful = parsed(text * 2, size), parsed(text * 2, quick=False)
    for column in ("goid", "parent", "minutes"):
        assert getattr(quick.columns, column) == getattr(careful.columns, column)
    kinds = [[c.columns.kinds[k] for k in c.columns.kind] for c in (quick, careful)]
    assert kinds[0] == kinds[1]
    assert quick.columns.labelled == careful.columns.labelled
    assert quick.columns.locked == careful.columns.locked
    assert BODY
