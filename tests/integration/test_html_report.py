"""The HTML report in a browser: it opens by itself, can be searched, and is for everybody.

Reports are of real processes where these are quick to have. Screenshots are kept (tests/browser.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import diagtool
from browser import AXE, Browser, started
from diagtool.ingest import read_evidence
from diagtool.report.html import page
from diagtool.report.sources import Sources
from diagtool.snapshot.model import Snapshot
from fixture_programs import FIXTURES, interpreters, launch

WORST = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as one:
        yield one


@pytest.fixture(scope="module")
def starved() -> Snapshot:
    """A real process with the leak of A01."""
    with launch(FIXTURES["a01"], "leak", interpreters()[-1]) as program:
        return diagtool.snapshot(program.pid, heap=True, clone="never")


@pytest.fixture(scope="module")
def deadlocked() -> Snapshot:
    with launch(FIXTURES["c08"], "leak", interpreters()[0]) as program:
        return diagtool.snapshot(program.pid)


def _written(folder: Path, name: str, *snapshots: Snapshot) -> Path:
    path = folder / f"{name}.html"
    sources = Sources(snapshots[-1].target)
    path.write_text(page(diagtool.find_leaks(snapshots), snapshots, sources), "utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_alone_with_the_findings_first(
    browser: Browser, starved: Snapshot, tmp_path: Path, scheme: str
) -> None:
    path = _written(tmp_path, "starved", starved)

    browser.open(path, scheme=scheme)
    browser.shot(f"leak-{scheme}")

    assert browser.complaints() == []
    assert browser.requests() == [path.as_uri()]
    assert "finding" in browser.text("h1")
    assert browser.run("return document.querySelector('main > section').id") == "findings"
    card = browser.find("article.finding")
    assert "asyncio-queue-get-starved" in card.text
    assert "TaskGroup" in card.find_element("css selector", ".fix").text
    assert browser.run("return document.querySelectorAll('.stage svg').length") >= 4
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    levels = [int(level) for level in background.strip("rgb()").split(",")]
    assert (sum(levels) > 384) == (scheme == "light")


def test_tables_are_searched_sorted_and_used_by_keyboard(
    browser: Browser, starved: Snapshot, tmp_path: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(_written(tmp_path, "keys", starved))

    browser.press(Keys.TAB)
    assert browser.focused().text == "Skip to the findings"
    assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") != "none"
    summary = browser.find("#table-libraries > summary")
    browser.run("arguments[0].focus()", summary)
    browser.press(Keys.ENTER)
    browser.wait("document.querySelector('#table-libraries').children.length > 1")
    rows = "#table-libraries tbody tr"
    every = len(browser.find_all(rows))
    assert every > 3
    browser.press(Keys.TAB, "libc.so")
    assert browser.run("return document.activeElement.type") == "search"
    found = browser.find_all(rows)
    assert 0 < len(found) < every
    assert all("libc.so" in row.text for row in found)
    assert f"{len(found)} row" in browser.text("#table-libraries .said")
    browser.press(*[Keys.BACKSPACE] * len("libc.so"))
    assert len(browser.find_all(rows)) == every
    browser.press(Keys.TAB, Keys.TAB, Keys.ENTER)  # over the table, which scrolls, to its first heading
    head = browser.find("#table-libraries thead th")
    assert head.get_attribute("aria-sort") == "ascending"
    names = [row.text.split()[0].lower() for row in browser.find_all(rows)]
    browser.press(Keys.ENTER)
    assert head.get_attribute("aria-sort") == "descending"
    assert [row.text.split()[0].lower() for row in browser.find_all(rows)] != names


def test_pictures_can_be_looked_into_and_each_has_a_table(
    browser: Browser, deadlocked: Snapshot, tmp_path: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(_written(tmp_path, "deadlock", deadlocked), scheme="dark")
    browser.shot("deadlock-dark", "#waits")

    for figure in browser.find_all("figure.picture"):
        assert figure.find_elements("css selector", "details summary")
    browser.unfold("figure details")
    told = browser.text("#waits tbody")
    assert "is held by" in told and "waits on" in told
    drawn = browser.run("return document.querySelector('#waits svg').textContent")
    assert "_thread" in drawn and "is held by" in drawn
    bars = "document.querySelectorAll('#flame svg .mark-rect.role-mark path')"
    before = browser.run(f"return {bars}.length")
    browser.run(f"[...{bars}].pop().dispatchEvent(new MouseEvent('click', {{bubbles: true}}))")
    browser.wait(f"{bars}.length < {before}")
    browser.run("document.querySelector('#flame button').click()")
    browser.wait(f"{bars}.length === {before}")
    browser.run("document.querySelector('#flame input').focus()")
    browser.press("bootstrap_inner", Keys.ENTER)
    browser.wait(f"{bars}.length < {before}")
    assert "_bootstrap_inner" in browser.text("#flame .said")
    assert browser.complaints() == []


def test_hostile_names_are_text(browser: Browser, starved: Snapshot, tmp_path: Path) -> None:
    import copy

    snap = copy.deepcopy(starved)
    names = [WORST, "</script><img src=x onerror=alert(1)>", "<!--<script>", "javascript:alert(1)"]
    snap.stacks.name = [names[i % len(names)] for i in range(len(snap.stacks))]
    snap.target.cmdline = ["python", WORST]
    browser.open(_written(tmp_path, "hostile", snap))

    browser.unfold()
    assert browser.complaints() == []
    assert len(browser.requests()) == 1
    assert WORST in browser.text("#facts")
    assert WORST in browser.run("return document.querySelector('#table-stacks').textContent")
    assert browser.run("return document.scripts.length") == 3
    assert browser.run("return document.images.length") == 0


def test_on_a_telephone_and_on_paper(browser: Browser, starved: Snapshot, tmp_path: Path) -> None:
    browser.open(_written(tmp_path, "small", starved), width=390)
    browser.shot("leak-390")
    assert browser.run("return document.documentElement.scrollWidth") <= 390

    printed = browser.driver.print_page()
    assert len(printed) > 10_000
    assert browser.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, starved: Snapshot, tmp_path: Path, scheme: str) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is not there (make browser)")
    browser.open(_written(tmp_path, "axe", starved), scheme=scheme)
    browser.unfold()
    browser.run(AXE.read_text("utf-8"))
    found = browser.driver.execute_async_script(
        "const done = arguments[0]; axe.run().then((r) => done(r.violations.map("
        "(v) => [v.id, v.help, v.nodes.slice(0, 3).map((n) => n.html.slice(0, 200) + n.failureSummary)])))"
    )
    assert found == []


def test_a_trace_of_go_has_a_picture_over_time(browser: Browser, tmp_path: Path) -> None:
    trace = Path(__file__).parents[1] / "data" / "go" / "1.27" / "trace-leak.gz"
    browser.open(_written(tmp_path, "trace", *read_evidence(trace)))
    lines = "document.querySelectorAll('#timeline .mark-line path')"
    assert browser.run(f"return {lines}.length") >= 3
    summary = browser.find("#timeline details summary")
    summary.send_keys(" ")
    browser.wait("document.querySelectorAll('#timeline details[open] tbody tr').length > 12")
    assert "main.backend" in browser.text("#timeline details[open] thead")
    assert "1.3" in browser.text("#timeline")
    if AXE.exists():
        browser.run(AXE.read_text("utf-8"))
        found = browser.driver.execute_async_script(
            "const done = arguments[0]; "
            "axe.run('#timeline').then((r) => done(r.violations.map((v) => v.help)))"
        )
        assert found == []
    assert browser.complaints() == []
