"""Three snapshots of a program that leaks name what grows and who holds it; of one that does not, nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

import diagtool
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
CASES = [(i, f, f.modes) for i in interpreters() if i.minor == ALL_ON for f in GROWING]
CASES += [(i, FIXTURES["d02"], ("leak", "leak3", "healthy2")) for i in interpreters() if i.minor in SOME_ON]


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


@pytest.mark.parametrize(
    ("interpreter", "fixture", "modes"), CASES, ids=lambda v: "" if isinstance(v, tuple) else str(v)
)
def test_a_series_tells_what_grows(
    interpreter: Interpreter, fixture: Fixture, modes: tuple[str, ...]
) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(lambda mode: complaint(fixture, mode, interpreter), modes)
        assert list(filter(None, found)) == []
