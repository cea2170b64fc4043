"""Exports: each is what its reader expects, adds up, and takes no name for its own."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import shutil
import stat
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from made_snapshots import report, starved

from diagtool.cli import main
from diagtool.leaks import find_leaks
from diagtool.report.export import ExportError
from diagtool.report.export.chrome import chrome
from diagtool.report.export.collapsed import collapsed
from diagtool.report.export.csvtables import ALWAYS, guarded, tables
from diagtool.report.export.pprof import pprof
from diagtool.report.export.samples import samples
from diagtool.report.export.sequences import MOST_FRAMES
from diagtool.report.export.speedscope import speedscope
from diagtool.snapshot.model import KIND, STATE, Frame, Snapshot, SnapshotBuilder, Target, ThreadInfo
from diagtool.snapshot.store import save

Say = pytest.CaptureFixture[str]
SCHEMA = Path(__file__).parents[1] / "data/speedscope/file-format-schema.json"
VALIDATOR = jsonschema.Draft7Validator(json.loads(SCHEMA.read_text("utf-8")))

#: Names as a hostile process may have them.
HOSTILE = [
    "a;b 12\nroot;evil 1000000",
    "=cmd|'/C calc'!A0",
    '"quoted", and @SUM(1)',
    "</script><script>alert(1)</script>",
    "\x1b[31m\x00\u202e\u2028\ud800\udfff\ufffe\r",
    "+1",
    "",
]


def whole(parts: Iterable[bytes]) -> bytes:
    return b"".join(parts)


def hostile() -> Snapshot:
    """A task for each name, which its frames, its thread and what it waits on have, too."""
    build = SnapshotBuilder(Target("live", 7, "cpython 3.12.1", cmdline=HOSTILE, captured_at=1.7e9))
    for number, name in enumerate(HOSTILE):
        outer = Frame(f"outer{name}", f"/srv/{name}.py", 3, name)
        inner = Frame(name, name, None, name, "c", name)
        trace = build.trace([outer, inner])
        build.add(
            [name],
            kind=KIND["task"],
            state=STATE["waiting"],
            address=number + 1,
            trace=trace,
            wait=build.wait(name),
            thread=number + 1,
        )
    snap = build.finish()
    snap.threads = [ThreadInfo(i + 1, i, name) for i, name in enumerate(HOSTILE)]
    snap.warnings = list(HOSTILE)
    snap.tables = {"../../evil": [{"=key": "=value", "n": -1}], "ok": [{"text": t} for t in HOSTILE]}
    return snap


def deep(frames: int) -> Snapshot:
    build = SnapshotBuilder(Target("core"))
    trace = build.trace([Frame("main", "/a.py", 1), *[Frame("again", "/a.py", 2)] * frames])
    build.add(["", ""], kind=KIND["thread"], state=STATE["running"], trace=trace)
    return build.finish()


def allocating() -> Snapshot:
    snap = starved(1)
    snap.tables["allocation_sites"] = [
        {
            "source": "tracemalloc",
            "file": "/srv/app/cache.py",
            "line": 41,
            "function": None,
            "count": 10,
            "bytes": 5000,
            "types": [],
            "frames": [["/srv/app/cache.py", 41], ["/srv/app/app.py", 9]],
        },
        {
            "source": "memray",
            "file": "/srv/app/app.py",
            "line": 5,
            "function": "load",
            "count": 1,
            "bytes": 70,
            "types": [],
            "frames": [["/srv/app/app.py", 5, "load"]],
            "allocator": "mmap",
        },
    ]
    return snap


# --- profiles ----------------------------------------------------------------------------------------------


def stacks_of_speedscope(document: dict[str, Any]) -> Counter[tuple[str, ...]]:
    """Names of frames from the outside in, and their weight; the file's own claims are checked."""
    VALIDATOR.validate(document)
    found: Counter[tuple[str, ...]] = Counter()
    frames = document["shared"]["frames"]
    for profile in document["profiles"]:
        assert len(profile["samples"]) == len(profile["weights"])
        assert sum(profile["weights"]) == profile["endValue"] - profile["startValue"]
        for sample, weight in zip(profile["samples"], profile["weights"], strict=True):
            found[tuple(frames[i]["name"] for i in sample)] += weight
    return found


class TestSpeedscope:
    def test_it_is_what_its_schema_says_and_every_stack_is_in_it(self) -> None:
        snap = starved(300)
        document = json.loads(whole(speedscope("service", [("", samples(snap))])))
        assert stacks_of_speedscope(document) == {
            ("waiting tasks", "main.<locals>.fetch_all", "leaf", "Queue.get"): 300,
            ("running threads", "Thread.run"): 1,
            ("waiting threads", "Thread.run"): 1,
            ("done tasks", "(no frames)"): 1,
        }
        assert [p["name"] for p in document["profiles"]] == ["tasks", "threads"]
        leaf = {"name": "leaf", "file": "/srv/app/worker.py", "line": 41}
        assert leaf in document["shared"]["frames"]

    def test_several_snapshots_are_profiles_with_their_own_frames(self) -> None:
        parts = [("+0.0 s", samples(starved(3))), ("+9.0 s", samples(starved(5)))]
        document = json.loads(whole(speedscope("service", parts)))
        stacks = stacks_of_speedscope(document)
        assert stacks["waiting tasks", "main.<locals>.fetch_all", "leaf", "Queue.get"] == 8
        assert [p["name"] for p in document["profiles"]][::2] == ["tasks, +0.0 s", "tasks, +9.0 s"]

    def test_processor_time_and_bytes_have_their_units(self) -> None:
        document = json.loads(whole(speedscope("x", [("", samples(starved(3), "cpu"))])))
        (profile,) = document["profiles"]
        assert (profile["unit"], profile["weights"]) == ("microseconds", [250_000])
        document = json.loads(whole(speedscope("x", [("", samples(allocating(), "bytes"))])))
        assert {p["unit"] for p in document["profiles"]} == {"bytes"}
        assert stacks_of_speedscope(document) == {
            ("recorded by tracemalloc", "app.py:9", "cache.py:41"): 5000,
            ("recorded by memray", "load"): 70,
        }

    def test_hostile_names_are_names(self) -> None:
        text = whole(speedscope("\ud800", [("\n", samples(hostile()))]))
        assert text.isascii()
        document = json.loads(text)
        assert sum(stacks_of_speedscope(document).values()) == len(HOSTILE)
        assert all(f["name"].isprintable() for f in document["shared"]["frames"])


class TestCollapsed:
    def test_a_line_for_stacks_that_are_alike(self) -> None:
        lines = whole(collapsed(samples(starved(300)))).decode().splitlines()
        frames = [
            "main.<locals>.fetch_all (worker.py:44)",
            "leaf (worker.py:41)",
            "Queue.get (queues.py:158)",
        ]
        assert f"waiting tasks;{';'.join(frames)} 300" in lines
        assert len(lines) == 4

    def test_no_name_adds_a_frame_or_a_line(self) -> None:
        text = whole(collapsed(samples(hostile()))).decode()
        lines = text.removesuffix("\n").split("\n")
        assert len(lines) == len(HOSTILE)
        for line in lines:
            frames, _, number = line.rpartition(" ")
            assert (frames.count(";"), number) == (2, "1")
            assert line.isprintable()

    def test_a_recursion_keeps_its_inner_frames_and_says_so(self) -> None:
        for frames, cut in ((MOST_FRAMES - 1, False), (MOST_FRAMES, True), (50_000, True)):
            (line,) = whole(collapsed(samples(deep(frames)))).decode().splitlines()
            parts = line.split(";")
            assert len(parts) == 1 + MOST_FRAMES + cut
            assert parts[1] == ("(outer frames left out)" if cut else "main (a.py:1)")
            assert line.endswith("again (a.py:2) 2")


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message: numbers and bytes, by the specification of its wire format."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        else:
            assert key & 7 == 2, "no other type is in profile.proto"
            size = varint()
            assert at + size <= len(data)
            yield key >> 3, data[at : at + size]
            at += size


def packed(data: bytes) -> list[int]:
    out, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            out.append(value)
            value = shift = 0
    return out


def read_pprof(data: bytes) -> dict[str, Any]:
    """Sample types, and of each sample its frames (name, file, line), values and labels."""
    parts: dict[int, list[Any]] = {}
    for number, value in fields(gzip.decompress(data)):
        parts.setdefault(number, []).append(value)
    text = [t.decode() for t in parts[6]]
    assert text[0] == ""
    functions = {f[1]: (text[f.get(2, 0)], text[f.get(4, 0)]) for f in map(dict, map(fields, parts[5]))}
    mappings = {m[1]: text[m.get(5, 0)] for m in map(dict, map(fields, parts[3]))}
    places = {}
    for place in map(dict, map(fields, parts[4])):
        line = dict(fields(place[4]))
        assert place[2] in mappings
        places[place[1]] = (*functions[line[1]], line.get(2, 0))
    found = []
    for sample in map(list, map(fields, parts[2])):
        labels = [dict(fields(value)) for number, value in sample if number == 3]
        (locations,) = (packed(value) for number, value in sample if number == 1)
        (values,) = (packed(value) for number, value in sample if number == 2)
        found.append(
            ([places[i] for i in locations], values, {text[label[1]]: text[label[2]] for label in labels})
        )
    types = [(text[t[1]], text[t[2]]) for t in map(dict, map(fields, parts[1]))]
    return {"types": types, "samples": found, "default": text[parts[14][0]], "nanos": parts.get(9)}


class TestPprof:
    def test_samples_have_frames_values_and_labels(self) -> None:
        snap = starved(300)
        read = read_pprof(whole(pprof(snap, samples(snap, report=find_leaks([snap])))))
        assert read["types"] == [("stacks", "count"), ("cpu", "nanoseconds")]
        assert (read["default"], read["nanos"]) == ("stacks", [round((1.7e9 + 60) * 1e9)])
        frames, _, labels = next(s for s in read["samples"] if s[1][0] == 300)
        assert frames[0] == ("Queue.get", "/usr/lib/python3.12/asyncio/queues.py", 158)
        assert [f[0] for f in frames[1:]] == ["leaf", "main.<locals>.fetch_all"]
        assert labels == {
            "kind": "task",
            "state": "waiting",
            "wait": "asyncio.Queue.get",
            "waits_on": "asyncio.queues.Queue",
            "thread": "MainThread",
            "template": "asyncio-queue-worker-pool",
        }
        assert sorted(s[1] for s in read["samples"]) == [[1, 0], [1, 0], [1, 250_000_000], [300, 0]]

    def test_bytes_are_called_as_in_heap_profiles(self) -> None:
        snap = allocating()
        read = read_pprof(whole(pprof(snap, samples(snap, "bytes"))))
        assert read["types"] == [("inuse_space", "bytes"), ("inuse_objects", "count")]
        assert [s[1] for s in read["samples"]] == [[5000, 10], [70, 1]]
        assert read["samples"][1][2] == {"source": "memray", "allocator": "mmap"}

    def test_hostile_names_are_names(self) -> None:
        snap = hostile()
        read = read_pprof(whole(pprof(snap, samples(snap))))
        assert len(read["samples"]) == len(HOSTILE)
        assert all(name.isprintable() for s in read["samples"] for name, _, _ in s[0])

    @pytest.mark.skipif(shutil.which("go") is None, reason="there is no go here: its pprof can't be asked")
    def test_the_real_pprof_reads_it(self, tmp_path: Path) -> None:
        file = tmp_path / "stacks.pb.gz"
        snap = starved(300)
        file.write_bytes(whole(pprof(snap, samples(snap, report=find_leaks([snap])))))
        environment = {**os.environ, "HOME": str(tmp_path), "PPROF_TMPDIR": str(tmp_path)}
        command = ["go", "tool", "pprof", "-top", "-tagfocus", "template=worker-pool", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
        if "no such tool" in done.stderr:
            pytest.skip("this go has no pprof")
        assert done.returncode == 0, done.stderr
        assert re.search(r"^ +300 .*Queue\.get$", done.stdout, re.M), done.stdout


def test_a_stack_counts_once_in_every_profile_and_what_was_not_recorded_is_said() -> None:
    for snap in (starved(0), starved(70_000), hostile()):
        found = samples(snap)
        assert int(found.weight.values.sum()) == len(snap.stacks)
    with pytest.raises(ExportError, match="where memory was allocated"):
        samples(starved(), "bytes")
    with pytest.raises(ExportError, match="processor time"):
        samples(hostile(), "cpu")


def test_many_different_stacks_come_out_whole_across_chunks() -> None:
    """The text is made about a million frames at a time: here of three chunks."""
    build = SnapshotBuilder(Target("core"))
    frames = [build.frame(Frame(f"f{i}", f"/{i}.py", i)) for i in range(200)]
    level = np.zeros(1, np.int32)
    for _ in range(40):
        level = build.nodes(level, np.array([frames[0]], np.int32))
    for _ in range(2):
        level = build.nodes(np.repeat(level, 200), np.tile(np.array(frames, np.int32), len(level)))
    build.add([""] * len(level), kind=KIND["task"], state=STATE["waiting"], trace=level)
    lines = whole(collapsed(samples(build.finish()))).decode().splitlines()
    start = "waiting tasks" + ";f0 (0.py:0)" * 40
    assert sorted(lines) == sorted(
        f"{start};f{i} ({i}.py:{i});f{j} ({j}.py:{j}) 1" for i in range(200) for j in range(200)
    )


def test_native_frames_are_those_of_the_merged_stack() -> None:
    snap = deep(1)
    build = SnapshotBuilder(snap.target)
    merged = build.trace([Frame("main", "/a.py", 1), Frame("take", "", None, None, "c", "/usr/lib/libx.so")])
    build.add(["t"], kind=KIND["thread"], trace=build.trace([Frame("main", "/a.py", 1)]), merged=merged)
    snap = build.finish()
    assert b"take" not in whole(collapsed(samples(snap)))
    assert b";main (a.py:1);take (libx.so) 1\n" in whole(collapsed(samples(snap, native=True)))


# --- traces ------------------------------------------------------------------------------------------------


def at(snap: Snapshot, seconds: float) -> Snapshot:
    snap.target.captured_at = 1.7e9 + seconds
    return snap


class TestChrome:
    def test_waits_that_are_seen_again_are_slices_and_all_else_is_a_mark(self) -> None:
        series = [at(starved(3), 0), at(starved(3), 10), at(starved(2), 20)]
        for snap in series:
            snap.stacks.wait_seconds[:] = np.nan
        series[0].stacks.wait_seconds[2] = 5.0
        document = json.loads(whole(chrome(series)))
        events = document["traceEvents"]
        assert document["otherData"]["snapshots"] == [5.0, 15.0, 25.0]
        slices = {(e["name"], e["ts"], e["dur"]): e["args"]["snapshots"] for e in events if e["ph"] == "X"}
        assert slices == {
            ("asyncio.Queue.get", 0, 25_000_000): 3,  # since five seconds before
            ("asyncio.Queue.get", 5_000_000, 20_000_000): 3,
            ("asyncio.Queue.get", 5_000_000, 10_000_000): 2,  # gone in the last one
            ("done", 5_000_000, 20_000_000): 3,
            ("Thread.run (threading.py:1010)", 5_000_000, 20_000_000): 3,
        }
        assert [e["name"] for e in events if e["ph"] == "i"] == [
            "Thread.run (threading.py:1010)"
        ] * 3  # it runs
        counts = [e["args"] for e in events if e["ph"] == "C" and e["name"] == "tasks"]
        assert counts == [{"waiting": 3, "done": 1}, {"waiting": 3, "done": 1}, {"waiting": 2, "done": 1}]
        frames = next(e for e in events if e["ph"] == "X" and e["cat"] == "waiting")["args"]["frames"]
        assert frames

    def test_a_thread_that_worked_in_between_was_awake(self) -> None:
        series = [at(starved(0), 0), at(starved(0), 10)]
        series[1].threads[1].cpu_seconds = 0.5
        events = json.loads(whole(chrome(series)))["traceEvents"]
        pool = {e["tid"] for e in events if e["ph"] == "M" and e["args"]["name"] == "pool-0"}
        assert [e["ph"] for e in events if e["ph"] in "Xi" and e["tid"] in pool] == ["i", "i"]

    def test_a_wait_that_began_since_is_another_one(self) -> None:
        series = [at(starved(1), 0), at(starved(1), 100)]
        series[0].stacks.wait_seconds[2], series[1].stacks.wait_seconds[2] = 1.0, 2.0
        events = json.loads(whole(chrome(series)))["traceEvents"]
        found = [(e["ts"], e["dur"]) for e in events if e["ph"] == "X" and e["name"] == "asyncio.Queue.get"]
        assert found == [(0, 1_000_000), (99_000_000, 2_000_000)]

    def test_of_many_the_first_are_drawn_and_the_others_counted(self) -> None:
        document = json.loads(whole(chrome([starved(300)], 10)))
        assert document["otherData"]["tracks_left_out"] == 293
        names = [e["name"] for e in document["traceEvents"]]
        assert names.count("thread_name") == 10
        assert {"waiting": 300, "done": 1} in [e.get("args") for e in document["traceEvents"]]

    def test_hostile_names_are_names_and_no_time_is_no_trace(self) -> None:
        text = whole(chrome([hostile()]))
        assert text.isascii()
        assert json.loads(text)["traceEvents"]
        with pytest.raises(ExportError, match="not known when"):
            whole(chrome([deep(1)]))


# --- tables ------------------------------------------------------------------------------------------------


def rows(table: bytes) -> list[dict[str, str]]:
    text = table.decode()
    assert not text or text.endswith("\r\n")
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


class TestTables:
    def test_every_table_is_there(self) -> None:
        snap = starved(300)
        found = {name: rows(whole(make())) for name, make in tables(snap, report()).items()}
        assert len(found["stacks"]) == 303
        task = found["stacks"][2]
        assert (task["kind"], task["name"], task["address"]) == ("task", "fetch-0", "0x7f0000000000")
        assert (task["wait"], task["at"]) == ("asyncio.Queue.get", "Queue.get (queues.py:158)")
        assert (task["waits_on_address"], task["wait_seconds"], task["age_seconds"]) == (
            "0x7f3a00001000",
            "12.5",
            "",
        )
        traces = {row["trace"]: row for row in found["traces"]}
        assert traces[task["trace"]]["frames"].startswith(
            "Queue.get (queues.py:158) < leaf (worker.py:41) < main."
        )
        assert traces[task["trace"]]["depth"] == "3"
        assert found["findings"][0]["template"] == "asyncio-queue-get-starved"
        assert found["findings"][0]["waiting_on"] == "asyncio.Queue 0x7f3a00001000"
        assert [row["count"] for row in found["clusters"]] == ["10000", "4"]
        assert found["loops"] == [{"address": "0x7f1000000000", "running": "true"}]
        assert dict(tuple(row.values()) for row in found["target"])["pid"] == "4242"
        assert [row["name"] for row in found["threads"]] == ["MainThread", "pool-0"]
        assert found["executors"] == []
        assert tuple(found)[: len(ALWAYS)] == ALWAYS

    @pytest.mark.parametrize(
        ("text", "cell"),
        [
            ("=1+1", "'=1+1"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1", "\\t=1"),
            ("a=b", "a=b"),
            ("", ""),
            ("x" * 40_000, "x" * 31_999 + "…"),
        ],
    )
    def test_no_cell_is_a_formula(self, text: str, cell: str) -> None:
        assert guarded(text) == cell

    def test_hostile_names_stay_in_their_cells(self) -> None:
        snap = hostile()
        for name, make in tables(snap, find_leaks([snap], min_count=1)).items():
            assert re.fullmatch("[a-z0-9_]+", name)
            data = whole(make())
            table = list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))
            assert {len(row) for row in table} == {len(table[0])}
            for row in table:
                for cell in row:
                    assert cell.isprintable()
                    assert not cell.startswith(("=", "+", "@"))
        numbers = rows(whole(tables(snap)["table_0"]()))
        assert numbers == [{"'=key" if "'=key" in numbers[0] else "=key": "'=value", "n": "-1"}]


# --- the command -------------------------------------------------------------------------------------------


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    save(starved(), tmp_path / "service.diag")
    return "service.diag"


def says(capsys: Say) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 2 and not any("Traceback" in line for line in lines)
    return lines[0] if lines else ""


class TestCommand:
    @pytest.mark.parametrize("to", ["speedscope", "pprof", "collapsed", "chrome"])
    def test_a_file_or_the_standard_output_gets_the_same(
        self, to: str, service: str, capfdbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        assert main(["export", service, "--to", to, "-o", "out"]) == 0
        assert main(["export", service, "--to", to]) == 0
        out = capfdbinary.readouterr().out
        assert out and out == Path("out").read_bytes()
        assert stat.S_IMODE(os.stat("out").st_mode) == 0o666 & ~umask()

    def test_a_folder_of_tables_or_one(self, service: str, capsys: Say) -> None:
        assert main(["export", service, "--to", "csv", "-o", "tables"]) == 0
        assert "tables" in capsys.readouterr().out
        files = {p.name for p in Path("tables").iterdir()}
        assert {"stacks.csv", "traces.csv", "threads.csv", "findings.csv", "loops.csv"} <= files
        assert "executors.csv" not in files  # it has no rows, and so no columns
        assert stat.S_IMODE(os.stat("tables").st_mode) == 0o777 & ~umask()
        assert main(["export", service, "--to", "csv", "--table", "threads"]) == 0
        assert capsys.readouterr().out.startswith("tid,")
        assert main(["export", service, "--to", "csv", "--table", "nonsense"]) == 2
        assert says(capsys).startswith("diagtool: there is no table nonsense; there are: target, stacks")
        assert main(["export", service, "--to", "csv", "-o", "tables"]) == 2
        assert says(capsys) == "diagtool: tables is there already: name a new folder with -o DIR."

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--to", "csv"],
            ["--to", "csv", "--by", "cpu", "-o", "t"],
            ["service.diag", "--to", "pprof"],
            ["--to", "speedscope", "--table", "fds"],
            ["--to", "collapsed", "--limit", "3"],
            ["--to", "nonsense"],
            [],
        ],
    )
    def test_wrong_usage(self, arguments: list[str], service: str, capsys: Say) -> None:
        assert main(["export", service, *arguments]) == 2
        assert says(capsys).startswith("diagtool: ")
        assert os.listdir() == [service]

    def test_what_was_not_recorded_is_said(self, service: str, capsys: Say) -> None:
        assert main(["export", service, "--to", "pprof", "--by", "bytes", "-o", "out"]) == 3
        assert says(capsys) == "diagtool: nobody recorded where memory was allocated"
        assert os.listdir() == [service]

    def test_no_binary_on_a_terminal(
        self, service: str, capsys: Say, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        assert main(["export", service, "--to", "pprof"]) == 2
        assert "-o FILE" in says(capsys)

    @pytest.mark.parametrize(("to", "name"), [("speedscope", "speedscope"), ("csv", "csvtables._traces")])
    def test_a_full_disk_leaves_nothing(
        self, to: str, name: str, service: str, capsys: Say, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: object) -> Iterator[bytes]:
            yield b"half of it"
            raise OSError(28, "No space left on device")

        module = "csvtables._traces" if to == "csv" else "speedscope.speedscope"
        monkeypatch.setattr(f"diagtool.report.export.{module}", fails)
        assert main(["export", service, "--to", to, "-o", "out"]) == 3
        assert says(capsys) == "diagtool: out cannot be written: No space left on device"
        assert os.listdir() == [service]
        assert main(["export", service, "--to", "collapsed", "-o", "/dev/full"]) == 3
        assert says(capsys) == "diagtool: /dev/full cannot be written: No space left on device"

    def test_tables_are_completed(self, service: str, capsys: Say, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("_DIAGTOOL_COMPLETE", "bash_complete")
        for target, start, completed in (
            (service, "lo", ["plain,loops"]),
            ("absent", "st", ["plain,stacks"]),
        ):
            words = f"diagtool export {target} --to csv --table {start}"
            monkeypatch.setenv("COMP_WORDS", words)
            monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
            with pytest.raises(SystemExit):
                main([])
            assert capsys.readouterr().out.split() == completed

    @pytest.mark.parametrize("to", ["pprof", "csv"])
    def test_no_folder_to_write_to(self, to: str, service: str, capsys: Say) -> None:
        assert main(["export", service, "--to", to, "-o", "absent/out"]) == 3
        assert says(capsys) == "diagtool: absent/out cannot be written: No such file or directory"


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
