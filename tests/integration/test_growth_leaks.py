"""Three snapshots of a program that leaks name what grows and who holds it; of one that does not, nothing."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import diagtool
from diagtool.cli import main
from diagtool.leaks import find_leaks
from diagtool.leaks.model import Finding
from diagtool.snapshot.model import Snapshot
from fixture_programs import FIXTURES, Fixture, FixtureSkipped, Interpreter, interpreters, launch

pytestmark = pytest.mark.timeout(300)

AT_ONCE = 3

#: What must be found: (fixture, mode): (template, end of the first holder, or of the first example).
FOUND = {
    ("d02", "leak"): ("container-grows", "_images (collections.OrderedDict, 15,000 items)"),
    ("d02", "leak2"): ("container-grows", "module __main__ → Event (type) → history (list, 15,000 items)"),
    ("d02", "leak3"): ("container-grows", "module __main__ → seen (set, 15,000 items)"),
    ("d02", "leak4"): ("container-grows", "module __main__ → log (collections.deque, 15,000 items)"),
    ("d02", "leak5"): ("objects-grow", "__main__.Node"),
    ("d02", "leak6"): ("container-grows", "profile (functools._lru_cache_wrapper) → dict, 15,000 items"),
    ("d06", "leak"): ("prometheus-label-cardinality", "_metrics (dict, 9,000 items)"),
    ("d07", "leak"): ("prometheus-multiprocess-files", "counter_#.db"),
    ("d10", "leak"): ("maps-kept-open", "tile_#.bin"),
    ("d10", "leak2"): ("maps-kept-open", "/dev/zero"),
    ("heaps_grow", "leak"): ("native-references-lost", ""),  # which tells more than blocks-grow does
    ("heaps_grow", "leak2"): ("garbage-not-collected", ""),
    ("heaps_grow", "leak3"): ("native-heap-grows", "native heap"),
}
GROWING = [FIXTURES[name] for name in ("d02", "d06", "d07", "d10", "heaps_grow")]

#: All programs on one version; on the oldest and a new one those that hang on how containers are laid out.
ALL_ON, SOME_ON = 12, (9, 14)
#: Of the program with most modes some, unless all are asked for (make test-all).
FEWER = ("leak", "leak2", "leak4", "leak6", "healthy", "healthy3", "healthy5", "healthy7")
EVERY = os.environ.get("DIAGTOOL_TEST_FRAMES") == "all"
CASES = [
    (i, f, FEWER if f.name == "d02" and not EVERY else f.modes)
    for i in interpreters()
    if i.minor == ALL_ON
    for f in GROWING
]
CASES += [(i, FIXTURES["d02"], ("leak3", "healthy2")) for i in interpreters() if i.minor in SOME_ON]
CASES += [(i, FIXTURES["d02"], ("leak2", "leak6", "healthy6")) for i in interpreters("free-threaded")[-1:]]


def series(fixture: Fixture, mode: str, interpreter: Interpreter) -> list[Snapshot]:
    with launch(fixture, mode, interpreter) as program:
        taken = [diagtool.snapshot(program.pid, heap=True)]
        for _ in range(2):
            program.grow()
            taken.append(diagtool.snapshot(program.pid, heap=True))
    for minute, snapshot in enumerate(taken):  # growth is judged by its rate, and this machine has no clock
        snapshot.target.captured_at = 1e9 + 60 * minute
    return taken


def told(findings: tuple[Finding, ...]) -> str:
    return ", ".join(f"{f.verdict} {f.template} {f.held_by or f.examples}" for f in findings) or "nothing"


def complaint(fixture: Fixture, mode: str, interpreter: Interpreter) -> str | None:
    """What is wrong with the reports about one program; None when nothing is, or it can't run here."""
    try:
        taken = series(fixture, mode, interpreter)
    except FixtureSkipped:
        return None
    three, two = find_leaks(taken).findings, find_leaks(taken[:2]).findings
    if mode.startswith("healthy"):
        sure = tuple(f for f in two if f.verdict != "suspect")
        return f"{mode}: {told((*three, *sure))}" if three or sure else None
    template, end = FOUND[fixture.name, mode]
    for finding in three:
        where = (finding.held_by or finding.examples or ("",))[0]
        if (finding.template, finding.verdict) == (template, "likely") and where.endswith(end):
            if template in ("garbage-not-collected", "native-references-lost"):
                return None  # sure of one snapshot
            sure = tuple(f for f in two if f.verdict != "suspect")
            return f"{mode}: of a pair, {told(sure)}" if sure else None
    return f"{mode}: no finding of {template}, but {told(three)}"


@pytest.mark.parametrize(("interpreter", "fixture", "modes"), CASES, ids=[f"{f}-{i}" for i, f, _ in CASES])
def test_a_series_tells_what_grows(
    interpreter: Interpreter, fixture: Fixture, modes: tuple[str, ...]
) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(lambda mode: complaint(fixture, mode, interpreter), modes)
        assert list(filter(None, found)) == []


def test_cores_and_then_the_process_are_a_series(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`diagtool diff` takes them as it takes snapshots: at the same addresses, of the same process."""
    with launch(FIXTURES["d02"], "leak", n=2000) as program:
        cores = []
        for number in range(2):
            cores.append(str(program.gcore(tmp_path).rename(tmp_path / f"core.{number}")))
            program.grow()
        assert main(["diff", *cores, str(program.pid), "--heap", "--format", "json", "--work", "4000"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["same_process"]
    assert [s["kind"] for s in document["snapshots"]] == ["core", "core", "live"]
    (images,) = [h for h in document["holders"] if h["name"] == "_images"]
    assert images["items"]["values"] == [2000, 4000, 6000]
    assert images["items"]["per_unit"] > 0
    assert images["oldest_kept"]
    (kept,) = [t for t in document["types"] if t["type"] == "__main__.Image"]
    assert kept["count"]["values"] == [2000, 4000, 6000]
    heaps = {h["heap"]: h for h in document["heaps"]}
    assert heaps["rss"]["values"][:2] == [None, None]  # a core does not tell
    assert heaps["native"]["delta"] > 2000 * 2000
