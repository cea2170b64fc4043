"""The report for a person: readable in 80 columns and without colour, whatever the names are."""

from __future__ import annotations

import dataclasses
import io
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_snapshots import FETCH, GET, LEAF, RUN, TREND, finding, report, starved

from diagtool.leaks.model import Report, WaitingOn
from diagtool.leaks.own import is_own
from diagtool.report import stacks, terminal
from diagtool.report.sources import Sources
from diagtool.report.terminal import MAX_FINDINGS, View
from diagtool.report.text import cells, clean, count, cut, duration, size, wrap, write
from diagtool.report.tree import await_tree
from diagtool.snapshot.model import Frame, Target

EVIL = "\x1b[31mred\x1b]0;title\x07\r\n\u202egnp.exe\u2066\u200b\u2028\x9b2J\udc80\t"
BAD = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff]")


def shown(leaks: Report, view: View | None = None) -> str:
    out = io.StringIO()
    write(terminal.leaks(leaks, view or View()), out, color=False)
    return out.getvalue()


def test_the_report_is_the_one_that_the_design_shows() -> None:
    changes: dict[str, object] = {"wait_seconds": None, "created_by": None, "examples": (), "evidence": ()}
    text = shown(dataclasses.replace(report(**changes), warnings=()))
    assert text == (
        "LIKELY  10,000 tasks  waiting in asyncio.Queue.get     asyncio-queue-get-starved\n"
        "        worker.py:41  in leaf\n"
        "        worker.py:44  in fetch_all  … 1 library frame folded (-v)\n"
        "        waits on asyncio.Queue 0x7f3a00001000 (empty, 10,000 getters)\n"
        "        held by  __main__.background_tasks (set, 10,000 items)\n"
        "        fix      give every consumer a way to stop: a sentinel, Queue.shutdown()\n"
        "                 (3.13), or cancel()\n"
        "        runbook  docs/runbooks/asyncio-queue-get-starved.md\n"
        "\n"
        "1 finding (1 likely), 2 clusters, 10,052 stacks · cpython 3.12.1, pid 4242 · stopped for 3.1 ms\n"
    )


def test_warnings_that_differ_in_numbers_only_are_folded() -> None:
    alike = [f"the frame at {1 << 40 | i:#x} can't be read: {i:,} bytes are missing" for i in range(5000)]
    texts = (
        "the core is cut off",
        *alike[:2000],
        "a page was missing",
        *alike[2000:],
        "1 of 2",
        "3 of 4",
        "5 of 6",
    )
    for view in (View(), View(verbose=True)):
        text = shown(dataclasses.replace(report(), warnings=texts), view)
        assert text.count("the frame at") == 2
        assert "(and 4,998 more like this one)" in " ".join(text.split())
        assert text.count("warning: ") == (7 if view.verbose else 5)
        assert ("more (-v)" in text) == (not view.verbose)
    few = shown(dataclasses.replace(report(), warnings=tuple(alike[:3])), View())
    assert few.count("the frame at") == 3
    assert "like this one" not in few


def test_since_when_by_whom_and_why_are_said() -> None:
    text = shown(report(trend=TREND, age_seconds=90000.0))
    assert "since    waiting for up to 3 min 20 s, the oldest is 1 d 1 h old\n" in text
    assert "created  worker.py:44 in fetch_all\n" in text
    assert "named    fetch-0, fetch-1 …\n" in text
    assert "why      no task, timer or fd can fill it\n" in text
    assert "trend    100 → 200 → 300, 100 of them in all snapshots\n" in text
    assert "warning: a page was missing\n" in text


def test_idle_clusters_are_shown_only_when_asked_for() -> None:
    assert "executor-worker" not in shown(report())
    assert "IDLE    4 threads  waiting in queue.SimpleQueue.get  executor-worker\n" in shown(
        report(), View(idle=True)
    )


def test_verbose_shows_every_frame_with_its_path() -> None:
    text = shown(report(), View(verbose=True))
    assert "/usr/lib/python3.12/asyncio/queues.py:158  in Queue.get" in text
    assert "folded" not in text
    assert "cause    The producer has ended.\n" in text


def test_ten_thousand_findings_are_capped_and_the_rest_counted() -> None:
    text = shown(report(10_000))
    assert text.count("LIKELY") == MAX_FINDINGS
    assert "… 9,950 findings more; --format json has all of them\n" in text
    assert text.splitlines()[-1].startswith("10,000 findings (10,000 likely), ")


def test_a_recursion_of_twenty_thousand_frames_fits_on_the_screen() -> None:
    deep = tuple(Frame(f"f{i}", "/srv/a.py", i) for i in range(20_000))
    text = shown(report(frames=deep))
    assert len(text.splitlines()) < 40
    assert "in f0" in text and "in f19999" in text and "… 19,988 frames left out\n" in text


def test_a_stack_without_own_code_shows_its_innermost_library_frames() -> None:
    text = shown(report(frames=(GET, RUN)))
    assert "queues.py:158      in Queue.get" in text


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("color", [False, True])
def test_no_name_can_reach_the_terminal(verbose: bool, color: bool) -> None:
    """Control characters, escape sequences, bidi overrides and line breaks are shown as escapes."""
    frame = Frame(EVIL, f"/srv/{EVIL}.py", 3, EVIL)
    snap = starved(3, names=EVIL)
    snap.waits[1] = EVIL
    evil = finding(
        template=EVIL,
        title=EVIL,
        state="waiting",
        wait=EVIL,
        waiting_on=WaitingOn(EVIL, 5, EVIL),
        created_by=(frame,),
        frames=(frame, GET),
        held_by=(EVIL,),
        evidence=(EVIL,),
        cause=EVIL,
        fix=EVIL,
        runbook=EVIL,
        examples=(EVIL,),
    )
    clusters = [dataclasses.replace(c, wait=EVIL, template=EVIL, frames=(frame,)) for c in report().clusters]
    target = dataclasses.replace(report().target, runtime=EVIL)
    leaks = Report.of(target, [evil], clusters, stacks=1, warnings=[EVIL])
    out = io.StringIO()
    view = View(verbose=verbose, idle=True)
    write(terminal.leaks(leaks, view), out, color=color)
    write(stacks.table(leaks, view), out, color=color)
    write(stacks.tree(snap, leaks, await_tree(snap), view), out, color=color)
    text = out.getvalue()
    if color:
        assert "\x1b[" in text
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)  # rich's own; whoever put another one in is found below
    assert not BAD.search(text)
    assert "\\x1b[31mred" in text


def test_colour_is_only_in_colour() -> None:
    out = io.StringIO()
    write(terminal.leaks(report(), View()), out, color=True)
    assert re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()) == shown(report())


@given(st.text())
def test_clean_text_is_printable_and_stays_clean(text: str) -> None:
    once = clean(text)
    assert once.isprintable()
    assert clean(once) == once
    if text.isprintable() and len(text) <= 300:
        assert once == text


def test_long_names_are_cut() -> None:
    assert len(clean("x" * 10**6)) == 300
    assert len(clean("\x00" * 10**6)) <= 4 * 300


def test_lines_do_not_wrap_by_surprise() -> None:
    for line in shown(report(3)).splitlines()[:-1]:
        assert cells(line) <= 80


def test_words_for_numbers() -> None:
    assert [duration(s) for s in (0.0854, 12, 59.7, 200, 3600, 18_720, 356_400, float("nan"), -1)] == [
        "85 ms",
        "12 s",
        "1 min",
        "3 min 20 s",
        "1 h",
        "5 h 12 min",
        "4 d 3 h",
        "an unknown time",
        "an unknown time",
    ]
    assert [size(n) for n in (1, 999, 1000, 4_200_000, 28_000_000, 10**12, 5 * 10**15)] == [
        "1 byte",
        "999 bytes",
        "1.0 kB",
        "4.2 MB",
        "28 MB",
        "1.0 TB",
        "5,000 TB",
    ]
    assert count(10_000, "task") == "10,000 tasks" and count(1, "asyncgen") == "1 async generator"


def test_wide_characters_take_two_columns() -> None:
    assert cells("表") == 2 and cells("é") == 1 and cells("e\u0301") == 1
    assert cut("表表表", 5) == "表表…"
    assert cut("abcdef", 4) == "abc…" and cut("abc", 3) == "abc"
    assert wrap("", 40) == [""]


def test_own_code_is_told_from_libraries_by_its_path() -> None:
    own = [
        "/srv/app/worker.py",
        "<stdin>",
        "<string>",
        "worker.py",
        "/home/me/lib/tools.py",
        "/opt/Lib/mine.py",
    ]
    library = [
        "/usr/lib/python3.12/asyncio/queues.py",
        "/usr/local/lib/python3.13t/threading.py",
        "/srv/venv/lib/python3.9/site-packages/aiohttp/web.py",
        "/usr/lib/python3/dist-packages/apt/cache.py",
        "<frozen runpy>",
        "/opt/python312.zip/asyncio/queues.py",
        "/build/Python-3.13.0/Lib/asyncio/queues.py",
        "",
    ]
    assert [f for f in own if not is_own(Frame("f", f, 1))] == []
    assert [f for f in library if is_own(Frame("f", f, 1))] == []
    assert not is_own(Frame("poll", "a.c", 1, language="c"))


class TestSources:
    """Source lines are shown when they can be had without risk."""

    def make(self, folder: Path, name: str = "app.py") -> str:
        (folder / name).write_text("import asyncio\n    item = await q.get()\n")
        return str(folder / name)

    def test_the_line_is_shown(self, tmp_path: Path) -> None:
        frame = Frame("leaf", self.make(tmp_path), 2)
        assert Sources().line(frame) == "item = await q.get()"
        assert "app.py:2  in leaf  item = await q.get()" in shown(
            report(frames=(frame,)), View(sources=Sources())
        )

    def test_a_long_line_is_cut_to_the_width(self, tmp_path: Path) -> None:
        (tmp_path / "a.py").write_text("x = " + "1 + " * 500)
        text = shown(report(frames=(Frame("f", str(tmp_path / "a.py"), 1),)), View(sources=Sources()))
        assert max(map(cells, text.splitlines()[:-1])) == 80

    def test_it_is_looked_for_below_the_sysroot(self, tmp_path: Path) -> None:
        (tmp_path / "srv").mkdir()
        self.make(tmp_path / "srv")
        assert Sources(root=str(tmp_path)).line(Frame("leaf", "/srv/app.py", 2)) == "item = await q.get()"
        assert Sources().line(Frame("leaf", "/srv/app.py", 2)) == ""

    def test_no_path_leads_out_of_the_sysroot(self, tmp_path: Path) -> None:
        outside = self.make(tmp_path, "outside.py")
        (tmp_path / "root").mkdir()
        frame = Frame("f", f"/../{Path(outside).name}", 2)
        assert Sources(root=str(tmp_path / "root")).line(frame) == ""

    def test_links_lead_where_they_lead_for_the_target(self, tmp_path: Path) -> None:
        """/srv/current -> /srv/42, as deployments have it, in a container and on its host."""
        root = tmp_path / "root"
        release = root / tmp_path.relative_to("/") / "42"
        release.mkdir(parents=True)
        self.make(release)
        (root / "current").symlink_to(tmp_path / "42")
        frame = Frame("leaf", "/current/app.py", 2)
        assert Sources(root=str(root)).line(frame) == "item = await q.get()"
        (tmp_path / "42").mkdir()
        (tmp_path / "42/app.py").write_text("\nof the host\n")
        assert Sources(root=str(root)).line(frame) == "item = await q.get()"
        (release / "app.py").unlink()
        assert Sources(root=str(root)).line(frame) == ""

    def test_a_target_with_another_root_has_its_sources_there(self, tmp_path: Path) -> None:
        frame = Frame("leaf", self.make(tmp_path), 2)
        inside = Target("live", host=os.uname().nodename, details={"root": "/srv/image"})
        assert Sources(inside).line(frame) == ""
        assert Sources(inside, root="/").line(frame) != ""

    def test_a_file_changed_since_the_start_is_not_shown(self, tmp_path: Path) -> None:
        frame = Frame("leaf", self.make(tmp_path), 2)
        os.utime(frame.file, (2000, 2000))
        assert Sources(Target("live", start_time=1000.0)).line(frame) == ""
        assert Sources(Target("live", start_time=3000.0)).line(frame) != ""

    def test_a_target_of_another_host_has_its_sources_elsewhere(self, tmp_path: Path) -> None:
        frame = Frame("leaf", self.make(tmp_path), 2)
        other = Target("live", host="surely-another-host")
        assert Sources(other).line(frame) == ""
        assert Sources(other, root="/").line(frame) != ""
        assert Sources(Target("live", host=os.uname().nodename)).line(frame) != ""

    def test_only_plain_python_files_are_opened(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.py")
        (tmp_path / "secret").write_text("password\n")
        (tmp_path / "link.py").symlink_to(tmp_path / "secret")
        (tmp_path / "folder.py").mkdir()
        (tmp_path / "big.py").write_bytes(b"x\n" * (3 << 20))
        files = [
            str(tmp_path / n)
            for n in ("pipe.py", "secret", "link.py", "folder.py", "big.py", "absent.py", "nul\0.py")
        ]
        assert [Sources().line(Frame("f", file, 1)) for file in files] == [""] * 7
        assert Sources().line(Frame("f", "app.py", 1)) == ""
        assert Sources().line(Frame("f", self.make(tmp_path), 99)) == ""
        assert Sources().line(Frame("f", self.make(tmp_path), None)) == ""


def test_the_table_of_clusters_is_sorted_and_aligned() -> None:
    out = io.StringIO()
    write(stacks.table(report(), View(idle=True)), out, color=False)
    assert out.getvalue().splitlines()[:3] == [
        " count  kind    state    wait                   where",
        "10,000  task    waiting  asyncio.Queue.get      worker.py:41 in leaf",
        "     4  thread  waiting  queue.SimpleQueue.get  threading.py:1010 in Thread.run  "
        "(idle: executor-worker)",
    ]
    out = io.StringIO()
    write(stacks.table(report(), View()), out, color=False)
    assert "… 4 stacks in 1 cluster idle as they should be (--all)\n" in out.getvalue()


def test_frames_keep_their_order_and_fold_the_library() -> None:
    lines = ["".join(text for text, _ in line) for line in terminal.frames([GET, LEAF, RUN, FETCH], View())]
    assert lines == [
        "        worker.py:41  in leaf     ",
        "        worker.py:44  in fetch_all  … 2 library frames folded (-v)",
    ]
