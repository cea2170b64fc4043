"""The baseline file: what it ignores is counted and has a reason; mistakes are told with their place."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import pytest
from made_snapshots import FETCH, GET, LEAF, finding, report, starved

import diagtool
from diagtool.leaks.baseline import Baseline, BaselineError, apply, find, fits, read
from diagtool.leaks.baseline_toml import read_text
from diagtool.leaks.baseline_write import with_entries
from diagtool.leaks.model import Finding, Report
from diagtool.snapshot.model import Frame

TODAY = date(2026, 11, 21)
FILE = Path("/srv/.diagtool.toml")


def entry(keys: str, *, reason: str = "known since May") -> Baseline:
    return read_text(f'[[ignore]]\nreason = "{reason}"\n{keys}\n', FILE)


def of(*findings: Finding) -> Report:
    return Report.of(report().target, findings, [], stacks=10_052, warnings=["a page was missing"])


@pytest.mark.parametrize(
    "keys",
    [
        'id = "3f2a9c"',
        'template = "asyncio-queue-get-starved"',
        'template = "asyncio-*"',
        'frame = "fetch_all"',
        'frame = "main.<locals>.fetch_all"',
        'frame = "worker.leaf"',
        'frame = "worker.py:leaf"',
        'frame = "app/worker.py:*"',
        'frame = "/srv/app/worker.py:leaf"',
        'frame = "asyncio.*"',
        'frame = ["leaf", "Queue.get"]',
        'name = "fetch-*"',
        'max_count = 10_000\nid = "3f2a9c"',
        'expires = 2026-11-21\nid = "3f2a9c"',
        'id = "3f2a9c"\ntemplate = "asyncio-*"\nframe = "leaf"\nname = "fetch-?"',
    ],
)
def test_what_an_entry_is_about_is_ignored_and_counted(keys: str) -> None:
    judged = apply(of(finding()), entry(keys), TODAY)
    assert judged.findings == () and judged.at_least("suspect") == []
    (known,) = judged.ignored
    assert (known.finding, known.reason) == (finding(), "known since May")
    assert known.entry == ".diagtool.toml: ignore[1] (line 1)"
    assert (judged.summary.findings, judged.summary.ignored) == (0, 1)
    assert judged.summary.by_verdict == {"proven": 0, "likely": 0, "suspect": 0}
    assert judged.summary.stacks == 10_052
    assert judged.warnings == ("a page was missing",)
    assert judged.baseline is not None
    assert (judged.baseline.entries, judged.baseline.unused) == (1, ())


@pytest.mark.parametrize(
    "keys",
    [
        'id = "3f2a9d"',
        'template = "asyncio"',
        'frame = "fetch"',
        'frame = "orker.py:leaf"',
        'frame = "worker.py:fetch"',
        'frame = ["leaf", "absent"]',
        'name = "fetch-0"',  # not all of them are called so
        'id = "3f2a9c"\nframe = "absent"',
    ],
)
def test_what_it_is_not_about_counts_and_the_entry_is_told(keys: str) -> None:
    judged = apply(of(finding()), entry(keys), TODAY)
    assert judged.findings == (finding(),) and judged.ignored == ()
    assert judged.warnings[1:] == (
        ".diagtool.toml: ignore[1] (line 1) is unused: nothing fits. Remove what is needed nowhere else.",
    )
    assert judged.baseline is not None and judged.baseline.unused == ("ignore[1] (line 1)",)


def test_a_finding_without_names_has_none_that_fits() -> None:
    assert apply(of(finding(examples=())), entry('name = "*"'), TODAY).ignored == ()


def test_an_expired_entry_ignores_nothing() -> None:
    known = entry('id = "3f2a9c"\nexpires = 2026-11-20')
    judged = apply(of(finding()), known, TODAY)
    assert len(judged.findings) == 1 and judged.ignored == ()
    assert judged.warnings[1:] == (
        ".diagtool.toml: ignore[1] (line 1) expired on 2026-11-20, so 3f2a9c counts again. "
        "Fix it, or give it a new date.",
    )
    assert judged.baseline is not None
    assert (judged.baseline.expired, judged.baseline.unused) == (("ignore[1] (line 1)",), ())
    gone = apply(of(), known, TODAY)
    assert gone.warnings[1:] == (
        ".diagtool.toml: ignore[1] (line 1) expired on 2026-11-20 and fits nothing. Remove it.",
    )


def test_more_than_max_count_counts() -> None:
    judged = apply(of(finding()), entry('id = "3f2a9c"\nmax_count = 9_999'), TODAY)
    assert len(judged.findings) == 1 and judged.ignored == ()
    assert judged.warnings[1:] == (
        ".diagtool.toml: ignore[1] (line 1) allows 9,999, and 3f2a9c has 10,000: it counts.",
    )


def test_many_unused_entries_are_one_warning() -> None:
    text = "".join(f'[[ignore]]\nid = "{i}"\nreason = "r"\n' for i in range(8))
    judged = apply(of(finding()), read_text(text, FILE), TODAY)
    assert len(judged.warnings) == 2
    assert "ignore[5] (line 13) and 3 more are unused: nothing fits." in judged.warnings[1]
    assert judged.baseline is not None and len(judged.baseline.unused) == 8


def test_only_what_is_known_is_ignored() -> None:
    other = finding(id="other", template="lock-orphaned", verdict="proven")
    judged = apply(of(finding(), other), entry('template = "asyncio-*"'), TODAY)
    assert judged.findings == (other,) and len(judged.ignored) == 1
    assert judged.summary.by_verdict == {"proven": 1, "likely": 0, "suspect": 0}


def test_frames_are_matched_as_every_interpreter_names_them() -> None:
    old = Frame("fetch_all", "/srv/app/worker.py", 44, None)
    for frame in (FETCH, old):
        assert fits("fetch_all", frame) and fits("worker.py:fetch_all", frame)
    native = Frame("ns::pool::wait(int)", "/b/pool.cc", 3, language="c++", library="/usr/lib/libpool.so.1")
    assert fits("ns::pool::*", native) and fits("pool.cc:ns::pool::wait*", native)
    assert fits("libpool.so.1:*", Frame("f", "", None, library="/usr/lib/libpool.so.1"))
    assert not fits("app.py:f", Frame("f", "/srv/myapp.py", 1))
    assert fits("*", Frame("\udc80\n", "\0", None)) and fits("f*g", Frame("f\ng", "", None))


def test_a_stack_fits_by_where_it_was_created_too() -> None:
    created = finding(frames=(GET,), created_by=(LEAF,))
    assert apply(of(created), entry('frame = "worker.leaf"'), TODAY).ignored


def test_patterns_with_many_stars_are_no_trouble() -> None:
    deep = tuple(Frame(f"f{i}" + "a" * 900, f"/srv/app/{'x/' * 20}m{i}.py", i, "m") for i in range(50))
    many = of(*(finding(id=str(i), frames=deep) for i in range(1000)))
    text = "".join(f'[[ignore]]\nframe = "*a*a*a*{i}.py:*a*a*a*b"\nreason = "r"\n' for i in range(5))
    assert len(apply(many, read_text(text, FILE), TODAY).findings) == 1000


GOOD = """version = 1
fail-on = "never"
min-count = 5
templates = "t"
paths = ["/app=."]
runbooks = "https://wiki.example/runbooks/"
own = "site-packages/shop/*"
libraries = ["*/vendor/*", "/srv/gen/*"]

[[ignore]]
id = "3f2a9c"
frame = "leaf"
reason = "r"
"""


def test_settings_are_read_and_folders_lie_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / ".diagtool.toml").write_text(GOOD)
    settings = read(tmp_path / ".diagtool.toml").settings
    assert settings.never and settings.fail_on is None and settings.min_count == 5
    assert settings.templates == tmp_path / "t" and settings.paths == ("/app=.",)
    assert settings.own == ("*/site-packages/shop/*",)
    assert settings.libraries == ("*/vendor/*", "/srv/gen/*")
    judged = apply(of(finding(id="x")), read(tmp_path / ".diagtool.toml"), TODAY)
    assert judged.findings[0].runbook == "https://wiki.example/runbooks/asyncio-queue-get-starved.md"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("version = 1>version = 2", "version (line 1): this is version 2 of the format"),
        ("version = 1>version = 2\nnovel = 1", "version (line 1): this is version 2 of the format"),
        ("version = 1>version = 0", "version (line 1): must be at least 1, is 0"),
        ("version = 1>version = '1'", "version (line 1): must be a whole number, is a string"),
        ("fail-on>fail_on", "fail_on (line 2): there is no such key. Did you mean fail-on?"),
        ('"never">"sometimes"', "fail-on (line 2): 'sometimes' is not one of proven, likely, suspect, never"),
        ("min-count = 5>min-count = true", "min-count (line 3): must be a whole number, is true or false"),
        ('"t">"absent"', "templates (line 4): there is no folder "),
        ('["/app=."]>["/app"]', "paths (line 5): '/app' is not FROM=TO"),
        ("https>file", "runbooks (line 6): must be an address: https://…"),
        ("frame =>farme =", "ignore[1].farme (line 12): there is no such key. Did you mean frame?"),
        ('"leaf">3', "ignore[1].frame (line 12): must be a string or a list of strings"),
        ('"leaf">""', "ignore[1].frame (line 12): has a pattern that is empty or longer than 1,000"),
        ('reason = "r">', "ignore[1].reason (line 10): is missing: say why"),
        ('reason = "r">reason = " "', "ignore[1].reason (line 13): is empty"),
        ('id = "3f2a9c"\nframe = "leaf">', "ignore[1] (line 10): says of what: give at least one of id,"),
        ('"leaf">"leaf"\nmax_count = 0', "ignore[1].max_count (line 13): must be at least 1, is 0"),
        (
            '"leaf">"leaf"\nexpires = "2027-01-31"',
            "ignore[1].expires (line 13): must be a date without quotes, like 2027-01-31, is a string",
        ),
        ('"leaf">"leaf"\nexpires = 2027-01-31T10:00:00', "ignore[1].expires (line 13): must be a date"),
        ('"leaf">"leaf"\nexpires = 2027-02-31', "file: is not TOML: "),
        ("[[ignore]]>[ignore]", "ignore: must be tables: write [[ignore]]"),
        ("version = 1>version =", "file: is not TOML: "),
    ],
)
def test_what_is_wrong_is_told_with_file_key_and_line(tmp_path: Path, change: str, says: str) -> None:
    (tmp_path / "t").mkdir()
    file = tmp_path / ".diagtool.toml"
    before, _, after = change.partition(">")
    assert GOOD.count(before) == 1
    file.write_text(GOOD.replace(before, after))
    with pytest.raises(BaselineError) as error:
        read(file)
    assert str(error.value).startswith(f"{file}: {says}")
    assert error.value.hint


def test_no_text_and_a_table_that_is_none_are_told(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_bytes(b"\xff")
    with pytest.raises(BaselineError, match="is no UTF-8"):
        read(tmp_path / "b.toml")
    (tmp_path / "pyproject.toml").write_text("tool.diagtool = 3\n")
    with pytest.raises(BaselineError, match=r"tool\.diagtool: must be a table, is a number"):
        read(tmp_path / "pyproject.toml")


PYPROJECT = """# ours
[project]
name = "shop"

[tool.diagtool]  # see docs/baseline.md
fail-on = "proven"

[[tool.diagtool.ignore]]
template = "old"
reason = "r"

[tool.ruff]
line-length = 100
"""


def test_pyproject_has_it_in_a_table_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text(PYPROJECT)
    known = read(file)
    assert known.settings.fail_on == "proven" and known.table == ("tool", "diagtool")
    assert known.entries[0].where == "ignore[1] (line 8)"
    file.write_text(PYPROJECT.replace("reason", "raeson"))
    with pytest.raises(BaselineError, match=r"tool\.diagtool\.ignore\[1\]\.raeson \(line 10\)"):
        read(file)


def test_the_nearest_file_upwards_counts(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    assert find(deep) is None
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'diagtool'\n")
    assert find(deep) is None
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    assert find(deep) == (tmp_path / "pyproject.toml").resolve()
    (tmp_path / ".diagtool.toml").write_text("")
    assert find(deep) == (tmp_path / ".diagtool.toml").resolve()
    (tmp_path / "a" / ".diagtool.toml").write_text("")
    assert find(deep) == (tmp_path / "a" / ".diagtool.toml").resolve()
    (deep / "pyproject.toml").write_text("[tool.diagtool\n")
    assert find(deep) == (deep / "pyproject.toml").resolve()  # reading it says what is wrong


def test_nothing_is_taken_from_outside_of_the_repository_or_from_where_all_may_write(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / ".git").mkdir(parents=True)
    (tmp_path / ".diagtool.toml").write_text("")
    assert find(repository) is None
    open_to_all = tmp_path / "tmp"
    (open_to_all / "mine").mkdir(parents=True)
    (open_to_all / ".diagtool.toml").write_text("")
    os.chmod(open_to_all, 0o1777)
    assert find(open_to_all / "mine") is None
    assert find(open_to_all) is not None  # asked for by being there


def added(text: str, name: str = ".diagtool.toml", table: tuple[str, ...] = ()) -> tuple[str, Baseline]:
    second = finding(id="none", template=None)
    new = with_entries(
        text, [(finding(), "10,000 tasks"), (second, 'odd "quotes" # here')], 'said "so"', table
    )
    return new, read_text(new, Path("/srv") / name)


def test_a_new_file_says_what_it_is() -> None:
    text, known = added("")
    assert text.startswith("# What diagtool knows about")
    assert "version = 1\n" in text and "\n# 10,000 tasks\n" in text
    assert [e.id for e in known.entries] == ["3f2a9c", "none"]
    assert [e.template for e in known.entries] == ["asyncio-queue-get-starved", None]
    judged = apply(of(finding()), known, TODAY)
    assert judged.ignored[0].reason == 'said "so"'


def test_everything_that_was_there_stays() -> None:
    before = "# mine\nversion = 1 # one\n\n[[ignore]] # first\nid = 'x'   # odd   spacing\nreason = 'r'\n"
    text, known = added(before)
    assert text.startswith(before)
    assert [e.id for e in known.entries] == ["x", "3f2a9c", "none"]
    again, known = added(text)
    assert again.startswith(text) and len(known.entries) == 5
    inline, known = added('ignore = [\n  {id = "x", reason = "r"}, # mine\n]\n')
    assert "# mine" in inline and [e.id for e in known.entries] == ["x", "3f2a9c", "none"]
    text, known = added('fail-on = "likely" # ours\n')
    assert text.startswith('fail-on = "likely" # ours\n') and len(known.entries) == 2


@pytest.mark.parametrize(
    "before",
    [
        "",
        "version = 1",
        "version = 1\n\n\n",
        '[[ignore]]\nid="x"\nreason="r"\n',
        '[[ignore]]\nid="x"\nreason="r"',
        '[[ignore]]\nid="x"\nreason="r"\n\n# the end\n',
    ],
)
def test_entries_stand_apart(before: str) -> None:
    text, _ = added(before)
    assert text.startswith(before.rstrip("\n"))
    lines = text.split("\n")
    heads = [i for i, line in enumerate(lines) if line == "[[ignore]]" and lines[i + 1].startswith("# ")]
    assert len(heads) == 2 and all(lines[i - 1] == "" for i in heads)
    assert text.endswith('reason = "said \\"so\\""\n')


def test_pyproject_keeps_everything_too() -> None:
    table = ("tool", "diagtool")
    text, known = added(PYPROJECT, "pyproject.toml", table)
    for line in PYPROJECT.splitlines():
        assert line in text.splitlines()
    assert [e.id for e in known.entries] == [None, "3f2a9c", "none"]
    bare, known = added("[project]\nname = 'x'\n", "pyproject.toml", table)
    assert bare.startswith("[project]\nname = 'x'\n") and len(known.entries) == 2
    other, known = added("[tool.diagtool]\n[tool.ruff]\na = 1\n", "pyproject.toml", table)
    assert "\n\n[tool.ruff]\na = 1\n" in other and len(known.entries) == 2


def test_the_api_has_it_too(tmp_path: Path) -> None:
    snap = starved()
    snap.waits = ["", "nobody.knows"]
    (known,) = diagtool.find_leaks(snap).findings
    file = tmp_path / "b.toml"
    file.write_text('[[ignore]]\nframe = "worker.leaf"\nreason = "r"\n')
    judged = diagtool.find_leaks(snap, baseline=file)
    assert judged.findings == () and [i.finding for i in judged.ignored] == [known]
    assert diagtool.find_leaks(snap).findings == (known,)
