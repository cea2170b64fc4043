"""The store: what is saved comes back, nothing half-written is left, and no file can crash the reader."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import stat
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_snapshots import starved

from diagtool.snapshot import store
from diagtool.snapshot.model import (
    KINDS,
    STACK_COLUMNS,
    STATES,
    Frame,
    Snapshot,
    SnapshotBuilder,
    Target,
    Thing,
    ThreadInfo,
)
from diagtool.snapshot.packed import LEAST_ROWS
from diagtool.snapshot.store import StoreError, check_writable, load, save


def same(a: Snapshot, b: Snapshot) -> None:
    for column in STACK_COLUMNS:
        left, right = getattr(a.stacks, column), getattr(b.stacks, column)
        assert left.dtype == right.dtype, column
        np.testing.assert_array_equal(left, right, err_msg=column)
    assert a.stacks.name == b.stacks.name
    np.testing.assert_array_equal(a.traces.parent, b.traces.parent)
    np.testing.assert_array_equal(a.traces.frame, b.traces.frame)
    np.testing.assert_array_equal(a.awaits, b.awaits)
    assert a.awaits.dtype == b.awaits.dtype
    for field in (
        "target",
        "waits",
        "things",
        "holders",
        "threads",
        "labels",
        "tables",
        "pause_ms",
        "warnings",
    ):
        assert getattr(a, field) == getattr(b, field), field
    assert a.traces.frames == b.traces.frames


def walk(snap: Snapshot) -> None:
    """Everything a report would touch."""
    for stack in snap:
        assert stack.kind in KINDS
    for thread in snap.threads:
        snap.stack(thread.stack)
    for edge in snap.awaits.tolist():
        snap.stack(edge[0])
        snap.stack(edge[1])


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ADDRESS = st.integers(0, 2**64 - 1)
SECONDS = st.none() | st.floats(0, 1e9)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def snapshots(draw: Any) -> Snapshot:
    build = SnapshotBuilder(
        Target(
            draw(st.sampled_from(["live", "core"])),
            pid=draw(st.none() | st.integers(1, 2**22)),
            runtime=draw(TEXT),
            cmdline=draw(st.lists(TEXT, max_size=3)),
            start_time=draw(SECONDS),
            details=draw(st.dictionaries(TEXT, PLAIN, max_size=3)),
        )
    )
    frames = st.builds(
        Frame, TEXT, TEXT, st.none() | st.integers(0, 10**6), st.none() | TEXT, TEXT, st.none() | TEXT
    )
    traces = [build.trace(draw(st.lists(frames, max_size=4))) for _ in range(3)]
    for _ in range(draw(st.integers(0, 3))):
        thing = Thing(
            draw(ADDRESS),
            draw(TEXT),
            draw(TEXT),
            draw(st.dictionaries(TEXT, PLAIN, max_size=3)),
            draw(st.none() | st.integers(0, 2**63 - 1)),
            draw(st.none() | st.integers(0, 1000)),
            draw(st.none() | st.booleans()),
            draw(st.lists(TEXT, max_size=2)),
        )
        build.add(
            [draw(TEXT)],
            kind=draw(st.integers(0, len(KINDS) - 1)),
            state=draw(st.integers(0, len(STATES) - 1)),
            address=np.uint64(draw(ADDRESS)),
            trace=draw(st.sampled_from(traces)),
            wait=build.wait(draw(TEXT)),
            thing=build.thing(thing),
            thread=draw(st.integers(0, 2**22)),
            loop=np.uint64(draw(ADDRESS)),
            created_by=draw(st.sampled_from(traces)),
            age_seconds=draw(st.floats(0, 1e9) | st.just(float("nan"))),
        )
    snap = build.finish()
    count = len(snap.stacks)
    snap.holders = draw(st.lists(TEXT, min_size=1, max_size=2))
    snap.stacks.holder[:] = draw(st.integers(-1, len(snap.holders) - 1))
    if count:
        row = st.integers(0, count - 1)
        snap.awaits = np.array(draw(st.lists(st.tuples(row, row), max_size=4)), np.int32).reshape(-1, 2)
        snap.labels = draw(st.lists(st.tuples(row, TEXT, TEXT), max_size=3))
        snap.threads = draw(
            st.lists(
                st.builds(
                    ThreadInfo,
                    tid=st.integers(1, 2**22),
                    stack=row,
                    name=TEXT,
                    comm=st.none() | TEXT,
                    ident=st.none() | ADDRESS,
                    python=st.booleans(),
                    interpreter=st.integers(0, 100),
                    daemon=st.none() | st.booleans(),
                    syscall=st.none() | st.integers(0, 500),
                    cpu_seconds=SECONDS,
                    running_loop=st.none() | ADDRESS,
                    registers=st.dictionaries(TEXT, ADDRESS, max_size=2),
                ),
                max_size=3,
            )
        )
    snap.tables = draw(
        st.dictionaries(TEXT, st.lists(st.dictionaries(TEXT, PLAIN, max_size=2), max_size=3), max_size=2)
    )
    snap.pause_ms = draw(SECONDS)
    snap.warnings = draw(st.lists(TEXT, max_size=2))
    return snap


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(snapshots())
def test_what_is_saved_comes_back(tmp_path_factory: pytest.TempPathFactory, snap: Snapshot) -> None:
    path = tmp_path_factory.getbasetemp() / "round.diag"
    save(snap, path)
    same(snap, load(path))


def test_a_service_comes_back_and_is_whole(tmp_path: Path) -> None:
    snap = starved()
    save(snap, tmp_path / "a.diag")
    back = load(tmp_path / "a.diag")
    same(snap, back)
    walk(back)
    assert back.threads[0].registers == {"rip": 2**63 + 5}


def test_an_empty_snapshot_comes_back(tmp_path: Path) -> None:
    save(Snapshot(Target("core")), tmp_path / "a.diag")
    same(Snapshot(Target("core")), load(tmp_path / "a.diag"))


def test_text_that_is_no_unicode_is_kept_readable(tmp_path: Path) -> None:
    """File names that are not UTF-8 have lone surrogates, and memory has NULs."""
    snap = starved(1, names="a\0b")
    snap.waits[1] = "bad\udc80name"
    snap.things[0].state = {"name": "\ud800", "left": float("inf"), "raw": b"\xff", "mark": ["\0", "\0"]}
    snap.target.exe = "/tmp/\udcff"
    save(snap, tmp_path / "a.diag")
    back = load(tmp_path / "a.diag")
    assert back.stacks.name[2] == "a\0b"
    assert back.waits[1] == r"bad\udc80name"
    assert back.things[0].state == {"name": "\ud800", "left": None, "raw": "b'\\xff'", "mark": ["\0", "\0"]}
    assert back.target.exe == r"/tmp/\udcff"


def test_counts_read_from_garbage_are_kept_as_far_as_they_go(tmp_path: Path) -> None:
    snap = starved(1)
    snap.things[0].references = 2**64 - 1
    save(snap, tmp_path / "a.diag")
    assert load(tmp_path / "a.diag").things[0].references == 2**63 - 1


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        save(starved(1), tmp_path / "a.diag")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.diag").stat().st_mode) == 0o600


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.diag"
    save(starved(1), path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(store, "write_rows", full)
    with pytest.raises(StoreError, match="disk is full") as error:
        save(starved(5), path)
    assert error.value.hint
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.diag"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "write_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(starved(1), tmp_path / "a.diag")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite reports a full disk by itself; a page limit makes it do so here."""
    connect = sqlite3.connect

    class Small(sqlite3.Connection):
        def executescript(self, script: str) -> Any:
            return super().executescript(script + "PRAGMA max_page_count = 20;")

    monkeypatch.setattr(store.sqlite3, "connect", lambda *a, **k: connect(*a, factory=Small, **k))
    with pytest.raises(StoreError, match="cannot be written: database or disk is full"):
        save(starved(20_000), tmp_path / "a.diag")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("place", ["folder", "missing/a.diag", "pipe", "file/a.diag"])
def test_places_that_cannot_take_a_file(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    for ask in (check_writable, lambda path: save(starved(1), path)):
        with pytest.raises(StoreError) as error:
            ask(tmp_path / place)
        assert "cannot be written" in str(error.value) and error.value.hint
    assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """In /tmp somebody else may have put a link there."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "a.diag").symlink_to(victim)
    save(starved(1), tmp_path / "a.diag")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "a.diag").is_symlink()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "a.diag"
    save(starved(), path)
    return path


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(saved, tmp_path / "copy.diag"))


def refused(path: Path) -> str:
    with pytest.raises(StoreError) as error:
        load(path)
    assert error.value.hint.endswith(".")
    assert str(path) in str(error.value)
    return str(error.value)


def test_a_file_of_a_newer_diagtool(copy: Path) -> None:
    with sqlite3.connect(copy) as db:
        db.execute("PRAGMA user_version = 99")
    assert "newer diagtool (its schema is 99" in refused(copy)


def test_a_database_of_another_program(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "places.sqlite") as db:
        db.execute("CREATE TABLE moz_places (url)")
    assert "another program" in refused(tmp_path / "places.sqlite")


def test_what_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello\n" * 1000)
    assert "is not a .diag file" in refused(tmp_path / "text")
    (tmp_path / "empty").write_text("")
    assert "empty or cut off" in refused(tmp_path / "empty")
    assert "No such file" in refused(tmp_path / "absent")
    assert "cannot be read" in refused(tmp_path)


@pytest.mark.parametrize("kept", [5, 16, 50, 99, 100, 8191, 8192, 20_000, -1])
def test_a_truncated_file(copy: Path, kept: int) -> None:
    data = copy.read_bytes()
    copy.write_bytes(data[:kept])
    assert "cut off" in refused(copy)


def test_a_missing_table(copy: Path) -> None:
    with sqlite3.connect(copy) as db:
        db.execute("DROP TABLE thing")
    assert "its table thing is missing" in refused(copy)


def test_a_view_dressed_up_as_a_table_is_not_run(copy: Path) -> None:
    """Reading this one would never end."""
    with sqlite3.connect(copy) as db:
        db.execute("DROP TABLE warning")
        db.execute(
            "CREATE VIEW warning AS WITH RECURSIVE n(id) AS (SELECT 0 UNION ALL SELECT id + 1 FROM n) "
            "SELECT id, 'x' AS text FROM n"
        )
    assert "its table warning is missing" in refused(copy)


def test_further_tables_of_the_user_do_no_harm(copy: Path) -> None:
    with sqlite3.connect(copy) as db:
        db.execute("CREATE TABLE my_notes (text)")
        db.execute("CREATE VIEW my_view AS SELECT * FROM stack")
    walk(load(copy))


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE stack SET kind = 99 WHERE id = 5",
        "UPDATE stack SET state = -1 WHERE id = 5",
        "UPDATE stack SET trace = 1000000 WHERE id = 5",
        "UPDATE stack SET trace = -1 WHERE id = 5",
        "UPDATE stack SET wait = 77 WHERE id = 5",
        "UPDATE stack SET thing = -2 WHERE id = 5",
        "UPDATE stack SET holder = 5 WHERE id = 5",
        "UPDATE stack SET holder = -2 WHERE id = 5",
        "UPDATE stack SET stuck = 2 WHERE id = 5",
        "UPDATE holder SET path = NULL",
        "UPDATE stack SET address = 'here' WHERE id = 5",
        "UPDATE stack SET address = 1.5 WHERE id = 5",
        "UPDATE stack SET address = NULL WHERE id = 5",
        "UPDATE stack SET name = NULL WHERE id = 5",
        "UPDATE stack SET name = x'ff00' WHERE id = 5",
        "UPDATE stack SET name = CAST(x'ff' AS TEXT) WHERE id = 5",
        "UPDATE stack SET wait_seconds = 'long' WHERE id = 5",
        "DELETE FROM stack WHERE id = 7",
        "DELETE FROM stack",
        "UPDATE trace SET parent = id WHERE id = 2",
        "UPDATE trace SET parent = 3 WHERE id = 1",
        "UPDATE trace SET parent = 1 WHERE id = 0",
        "UPDATE trace SET frame = -1 WHERE id = 2",
        "UPDATE trace SET frame = 99 WHERE id = 2",
        "DELETE FROM trace",
        "UPDATE frame SET function = 5 WHERE id = 1; UPDATE frame SET function = x'00' WHERE id = 1",
        "UPDATE frame SET line = 'x' WHERE id = 1",
        "UPDATE thing SET state = 'not json'",
        "UPDATE thing SET state = '[]'",
        "UPDATE thing SET state = '{},{}'",
        "UPDATE thing SET state = ''",
        "UPDATE thing SET held_by = '{}'",
        "UPDATE thing SET exclusive = 'maybe'",
        "UPDATE thing SET state = '{\"a\":' || printf('%.*c', 200000, '[') || '}'",
        "UPDATE thing SET state = '{\"a\":1' || printf('%.*c', 9000, '0') || '}'",
        "UPDATE thread SET stack = 100000",
        "UPDATE thread SET python = NULL",
        'UPDATE thread SET registers = \'{"rip": "x"}\'',
        "INSERT INTO await_edge VALUES (0, 99999)",
        "INSERT INTO await_edge VALUES (-1, 0)",
        "INSERT INTO await_edge VALUES (NULL, 0)",
        "INSERT INTO label VALUES (99999, 'a', 'b')",
        "INSERT INTO label VALUES (0, 'a', NULL)",
        "INSERT INTO record VALUES ('unheard', 0, '{}')",
        "INSERT INTO record VALUES ('loops', 0, '5')",
        "UPDATE wait SET name = NULL WHERE id = 1",
        "DELETE FROM wait",
        "DELETE FROM meta WHERE key = 'runtime'",
        "UPDATE meta SET value = 'x' WHERE key = 'pid'",
        "UPDATE meta SET value = 'x' WHERE key = 'cmdline'",
        "UPDATE meta SET value = '[1]' WHERE key = 'cmdline'",
        "UPDATE meta SET value = '[[]]' WHERE key = 'tables'",
        "INSERT INTO warning VALUES (9, 'hole')",
    ],
)
def test_hostile_rows_are_refused(copy: Path, damage: str) -> None:
    with sqlite3.connect(copy) as db:
        db.executescript(damage)
    assert "is damaged: " in refused(copy)


def test_flipped_bytes_never_crash(saved: Path, tmp_path: Path) -> None:
    """Either refused, or what is read can be walked."""
    data = saved.read_bytes()
    chance = random.Random(1)
    path = tmp_path / "flipped.diag"
    outcomes = set()
    for _ in range(150):
        bad = bytearray(data)
        for _ in range(chance.choice([1, 3, 40])):
            bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        path.write_bytes(bad)
        try:
            walk(load(path))
            outcomes.add("read")
        except StoreError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_the_views_answer_what_the_documentation_promises(saved: Path) -> None:
    with sqlite3.connect(f"{saved.as_uri()}?mode=ro", uri=True) as db:
        row = db.execute(
            "SELECT kind, state, address, wait, waits_on, waits_on_address, frames "
            "FROM stack_text WHERE name = 'fetch-1'"
        ).fetchone()
        most = db.execute("SELECT count, kind, wait FROM cluster_text LIMIT 1").fetchone()
        depth = db.execute("SELECT max(depth) FROM trace_frame").fetchone()
        loop = db.execute(
            "SELECT json_extract(value, '$.running') FROM record WHERE tbl = 'loops'"
        ).fetchone()
    assert row[:6] == (
        "task",
        "waiting",
        "0x7f0000000100",
        "asyncio.Queue.get",
        "asyncio.queues.Queue",
        "0x7f3a00001000",
    )
    assert row[6].startswith("Queue.get (/usr/lib/python3.12/asyncio/queues.py:158) < leaf (")
    assert most == (300, "task", "asyncio.Queue.get")
    assert depth == (2,)
    assert loop == (1,)


def test_a_hundred_thousand_stacks_come_back(tmp_path: Path) -> None:
    snap = starved(100_000)
    save(snap, tmp_path / "big.diag")
    same(snap, load(tmp_path / "big.diag"))


# -- columns of large tables once more ----------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path) -> tuple[Path, Snapshot]:
    snap = starved(LEAST_ROWS + 10)
    path = tmp_path / "large.diag"
    save(snap, path)
    return path, snap


def test_what_is_packed_is_what_the_rows_say(large: tuple[Path, Snapshot]) -> None:
    path, snap = large
    with sqlite3.connect(path) as db:
        assert {t for (t,) in db.execute("SELECT DISTINCT tbl FROM packed")} == {"stack"}
    unpacked = load(path)
    same(unpacked, snap)
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE packed")
    same(load(path), unpacked)


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM packed WHERE name = 'kind'",
        "UPDATE packed SET data = x'00' WHERE name = 'wait'",
        "UPDATE packed SET data = 'text' WHERE name = 'wait'",
        "UPDATE packed SET data = substr(data, 1, length(data) / 2)",
        "UPDATE packed SET dtype = 'O'",
        "UPDATE packed SET dtype = '<i8' WHERE name = 'stuck'",
        "UPDATE packed SET name = 'strange' WHERE name = 'kind'",
        "INSERT INTO packed SELECT * FROM packed WHERE name = 'kind'",
        "DROP TABLE packed; CREATE TABLE packed (a, b, c, d)",
    ],
)
def test_what_is_packed_and_does_not_fit_is_read_from_the_rows(
    large: tuple[Path, Snapshot], damage: str
) -> None:
    path, snap = large
    with sqlite3.connect(path) as db:
        db.executescript(damage)
    same(load(path), snap)


def test_a_bomb_is_not_unpacked(large: tuple[Path, Snapshot]) -> None:
    path, snap = large
    with sqlite3.connect(path) as db:
        db.execute("UPDATE packed SET data = ? WHERE name = 'wait'", (zlib.compress(bytes(64 << 20)),))
    same(load(path), snap)


def test_what_is_packed_is_checked_as_rows_are(large: tuple[Path, Snapshot]) -> None:
    path, snap = large
    wild = zlib.compress(np.full(len(snap.stacks), 77, np.uint8).tobytes())
    with sqlite3.connect(path) as db:
        db.execute("UPDATE packed SET data = ? WHERE name = 'state'", (wild,))
    assert "stack.state points to nothing" in refused(path)
