"""Questions in SQL: they are answered, may only read, come to an end, and fail in one sentence."""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import sys
from pathlib import Path

import jsonschema
import pytest
from made_snapshots import starved

from diagtool.cli import main
from diagtool.report.json import schema
from diagtool.report.sqltable import csv as as_csv
from diagtool.report.sqltable import document, table
from diagtool.snapshot.model import Snapshot
from diagtool.snapshot.query import Answer, BadQuery, TooLong, opened
from diagtool.snapshot.store import StoreError, connect, load, save

Say = pytest.CaptureFixture[str]
ENDLESS = "WITH RECURSIVE a(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM a) SELECT max(x) FROM a"


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    snap = starved()
    snap.tables["fds"] = [
        {"fd": 3, "kind": "socket", "deleted": False, "ends": [4]},
        {"fd": 4, "kind": "pipe", "name": "x"},
    ]
    save(snap, tmp_path / "service.diag")
    return "service.diag"


def ask(file: str, query: str, rows: int = 100, seconds: float = 60.0) -> Answer:
    with opened(file) as database:
        return database.ask(query, rows=rows, seconds=seconds)


def says(capsys: Say) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 2 and not any("Traceback" in line for line in lines)
    return lines


class TestAnswers:
    def test_views_and_functions(self, service: str) -> None:
        found = ask(service, "SELECT kind, count FROM cluster_text WHERE wait = 'asyncio.Queue.get'")
        assert (found.columns, found.rows, found.more) == (["kind", "count"], [("task", 300)], False)
        (row,) = ask(service, "SELECT frame(trace), frames(trace) FROM stack WHERE name = 'fetch-0'").rows
        assert row[0] == "Queue.get (queues.py:158)"
        assert (
            row[1]
            == "Queue.get (queues.py:158) < leaf (worker.py:41) < main.<locals>.fetch_all (worker.py:44)"
        )
        found = ask(service, "SELECT hex64(address), hex64(-1), hex64(NULL), hex64('x') FROM thing")
        assert found.rows == [("0x7f3a00001000", "0xffffffffffffffff", None, "x")]
        assert ask(service, "SELECT frames(0), frames(NULL), frames(10000), frame(-1)").rows == [(None,) * 4]

    def test_tables_of_records_have_columns(self, service: str) -> None:
        found = ask(service, "SELECT * FROM fds ORDER BY fd DESC")
        assert found.columns == ["fd", "kind", "deleted", "ends", "name"]
        assert found.rows == [(4, "pipe", None, None, "x"), (3, "socket", 0, "[4]", None)]
        assert ask(service, "SELECT running FROM loops").rows == [(1,)]

    def test_no_more_rows_than_asked_for(self, service: str) -> None:
        found = ask(service, "SELECT id FROM stack", rows=3)
        assert (found.rows, found.more) == ([(0,), (1,), (2,)], True)
        assert not ask(service, "SELECT id FROM stack LIMIT 3", rows=3).more

    def test_what_can_be_asked_about_is_told_with_what_it_means(self, service: str) -> None:
        with opened(service) as database:
            tables = {info.name: info for info in database.tables()}
        columns = {c.name: c.text for c in tables["stack"].columns}
        assert columns["thread"] == "tid; 0: unknown"
        assert tables["warning"].text == "what could not be read, and why"
        assert tables["cluster_text"].kind == "view"
        assert tables["cluster_text"].text == "Alike stacks counted, most first."
        assert (tables["fds"].kind, tables["fds"].columns[0].name) == ("records", "fd")
        assert "record" not in tables

    def test_every_column_of_every_table_is_meant_by_its_own_comment(self, service: str) -> None:
        with opened(service) as database:
            tables = [t for t in database.tables() if t.kind == "table"]
        with sqlite3.connect(":memory:") as db:
            db.executescript(Path(load.__globals__["__file__"]).with_name("schema.sql").read_text())
            for info in tables:
                assert [c.name for c in info.columns] == [
                    row[1] for row in db.execute(f"PRAGMA table_info({info.name})")
                ]


class TestReadOnly:
    @pytest.mark.parametrize(
        "query",
        [
            "DELETE FROM stack",
            "UPDATE meta SET value = 0",
            "DROP TABLE stack",
            "CREATE TABLE x (a)",
            "CREATE TEMP TABLE x (a)",
            "CREATE TEMP VIEW x AS SELECT 1",
            "ATTACH 'other.db' AS other",
            "VACUUM INTO 'other.db'",
            "VACUUM",
            "REINDEX",
            "BEGIN",
            "PRAGMA user_version = 9",
            "PRAGMA trusted_schema = ON",
            "PRAGMA query_only = OFF",
            "PRAGMA hard_heap_limit = 0",
            "SELECT load_extension('x.so')",
            "WITH x AS (SELECT 1) INSERT INTO warning SELECT 1, 'x' FROM x",
        ],
    )
    def test_nothing_else_is_done(self, query: str, service: str) -> None:
        before = Path(service).read_bytes()
        with pytest.raises(BadQuery, match="may only read"):
            ask(service, query)
        assert os.listdir() == [service]
        assert Path(service).read_bytes() == before

    def test_one_question_at_a_time(self, service: str) -> None:
        with pytest.raises(BadQuery, match="more than one statement"):
            ask(service, "SELECT 1; DELETE FROM stack")
        assert ask(service, "SELECT 1 ; ").rows == [(1,)]

    def test_a_question_without_an_end_is_ended(self, service: str) -> None:
        with pytest.raises(TooLong, match=r"longer than 0\.2 s"):
            ask(service, ENDLESS, seconds=0.2)

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="sqlite3 there has no limits")
    def test_a_value_without_bounds_is_refused(self, service: str) -> None:
        with pytest.raises(TooLong, match="too much memory"):
            ask(service, "SELECT length(replace(printf('%1000000d', 1), ' ', printf('%1000d', 1)))")


class TestHostileFiles:
    def test_what_somebody_put_in_does_no_harm(self, service: str) -> None:
        with sqlite3.connect(service) as db:
            db.execute(f"CREATE VIEW endless AS {ENDLESS}")
            db.execute("CREATE VIEW broken AS SELECT absent FROM nowhere")
            db.execute('CREATE TABLE "a""b;c" ("x""y")')
            rows = [
                ("x'); DROP TABLE stack; --", 0, "{}"),
                ("stack", 0, '{"id": "shadowed"}'),
                ("bad", 0, "no json"),
                ("deep", 0, '{"a": {"$.\\"b": 1}, "q\\"uote": 2, "A": 3}'),
                ("packed", 0, '{"n": 1}'),
                ("sqlite_x", 0, '{"n": 1}'),
                ("FDS", 0, '{"n": 1}'),
                ("wide", 0, json.dumps({f"k{i}": i for i in range(5000)})),
                ("select", 0, '{"from": 1}'),
                (None, 0, "{}"),
            ]
            db.executemany("INSERT INTO record VALUES (?, ?, ?)", rows)
        with opened(service) as database:
            names = [info.name for info in database.tables()]
            assert {"endless", "broken", 'a"b;c', "deep"} <= set(names)
            assert names.count("stack") == 1
            assert len({name.lower() for name in names}) == len(names)
            assert database.ask("SELECT * FROM deep", rows=9, seconds=60).rows == [('{"$.\\"b":1}',)]
            assert database.ask('SELECT "from" FROM "select"', rows=9, seconds=60).rows == [(1,)]
            assert database.ask("SELECT count(*) FROM stack", rows=9, seconds=60).rows == [(303,)]
            with pytest.raises(TooLong):
                database.ask("SELECT * FROM endless", rows=9, seconds=0.2)
            with pytest.raises(BadQuery, match="no such table"):
                database.ask("SELECT * FROM broken", rows=9, seconds=60)

    def test_no_function_is_led_into_a_table_without_an_end(self, service: str) -> None:
        with sqlite3.connect(service) as db:
            for view in ("stack_text", "trace_text", "trace_frame", "cluster_text"):
                db.execute(f"DROP VIEW {view}")
            db.execute("DROP TABLE trace")
            endless = "WITH RECURSIVE a(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM a)"
            db.execute(f"CREATE VIEW trace AS {endless} SELECT 5 AS id, max(x) AS parent, 0 AS frame FROM a")
        with pytest.raises(TooLong, match="longer than"):
            ask(service, "SELECT frames(5)", seconds=0.2)
        with pytest.raises(StoreError, match="is damaged"):
            load(service)

    @pytest.mark.parametrize("damage", [b"", b"no database", b"SQLite format 3\0" + b"\0" * 200])
    def test_what_is_no_snapshot(self, damage: bytes, tmp_path: Path) -> None:
        file = tmp_path / "x.diag"
        file.write_bytes(damage)
        with pytest.raises(StoreError):
            connect(file)

    def test_a_damaged_page_is_said(self, service: str) -> None:
        data = bytearray(Path(service).read_bytes())
        data[8192:] = b"\xff" * (len(data) - 8192)
        Path(service).write_bytes(data)
        with pytest.raises(StoreError, match="is damaged"):
            ask(service, "SELECT * FROM stack_text")


class TestForms:
    ANSWER = Answer(["n", "text", "n"], [(1, "a\n\x1b[31m", None), (None, "=1+1", b"\xff")], True)

    def test_a_table(self) -> None:
        lines = ["".join(text for text, _ in line) for line in table(self.ANSWER, None)]
        assert lines == ["n  text         n", "1  a\\n\\x1b[31m", "   =1+1         ff"]
        narrow = ["".join(t for t, _ in line) for line in table(Answer(["a"], [("x" * 500,)], False), 80)]
        assert max(map(len, narrow)) == 80 and narrow[1].endswith("…")

    def test_json(self) -> None:
        made = document(self.ANSWER)
        jsonschema.validate(made, schema("sql"))
        assert made["columns"] == ["n", "text", "n:2"]
        assert made["rows"][1] == {"n": None, "text": "=1+1", "n:2": "ff"}

    def test_csv(self) -> None:
        text = b"".join(as_csv(self.ANSWER)).decode()
        assert list(csv.reader(io.StringIO(text, newline=""), strict=True)) == [
            ["n", "text", "n"],
            ["1", "a\\n\\x1b[31m", ""],
            ["", "'=1+1", "ff"],
        ]


class TestCommand:
    def test_a_query_from_the_standard_input(
        self, service: str, capsys: Say, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"select count(*) as n from stack\n")))
        assert main(["sql", service, "-", "--format", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["rows"] == [{"n": 303}]

    def test_more_rows_are_said(self, service: str, capsys: Say) -> None:
        assert main(["sql", service, "select id from stack", "--limit", "2", "--format", "csv"]) == 0
        said = capsys.readouterr()
        assert said.out == "id\n0\n1\n" or said.out == "id\r\n0\r\n1\r\n"
        assert said.err == "diagtool: there are more rows than 2: --limit N shows N of them.\n"

    def test_the_schema(self, service: str, capsys: Say) -> None:
        assert main(["sql", service, "--schema"]) == 0
        out = capsys.readouterr().out
        assert "stack_text  view" in out and "fds" in out

    @pytest.mark.parametrize(
        ("arguments", "status", "said"),
        [
            (["select absent"], 2, "the query can't be answered: no such column: absent"),
            (["selec"], 2, 'the query can\'t be answered: near "selec": syntax error'),
            (["delete from stack"], 2, "a query may only read"),
            ([""], 2, "there is no query"),
            ([], 2, "there is no query: give a SELECT"),
            ([ENDLESS, "--timeout", "0.2"], 3, "the query took longer than 0.2 s"),
            (["select 1", "-o", "service.diag"], 2, "service.diag is the file to be read"),
            (["select 1", "-o", "absent/x"], 3, "absent/x cannot be written"),
        ],
        ids=["column", "syntax", "write", "empty", "none", "endless", "same", "absent"],
    )
    def test_errors_are_a_sentence_and_a_hint(
        self, arguments: list[str], status: int, said: str, service: str, capsys: Say
    ) -> None:
        assert main(["sql", service, *arguments]) == status
        lines = says(capsys)
        assert lines[0].startswith(f"diagtool: {said}")
        assert len(lines) == 2

    def test_a_snapshot_is_taken_of_what_is_none_and_not_kept(
        self, service: str, capsys: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def snapshot(target: str, **_: object) -> Snapshot:
            return starved(3)

        monkeypatch.setattr("diagtool.cli.target.snapshot", snapshot)
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)
        assert main(["sql", str(os.getpid()), "select count(*) from stack", "--format", "csv"]) == 0
        assert capsys.readouterr().out.split() == ["count(*)", "6"]
        assert os.listdir(tmp_path) == [service]
