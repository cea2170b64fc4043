"""One cause is one finding: stacks that began and wait at the same places are told together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from made_stacks import EVENT, QUEUE_GET, World, frames

from diagtool.leaks import find_leaks
from diagtool.leaks.near import NearClusters
from diagtool.leaks.own import is_own
from diagtool.snapshot.model import Frame, Snapshot


def way(number: int) -> str:
    """A stack of its own from app.py:main to app.py:leaf."""
    between = " ".join(f"retry.py:again:{n}" for n in range(number))
    return f"{QUEUE_GET} app.py:leaf:7 {between} app.py:main:1"


def starved(ways: range, each: int = 2, creator: str = "") -> World:
    w = World()
    add(w, ways, each, creator)
    return w


def add(w: World, ways: range, each: int, creator: str = "") -> None:
    made = w.builder.trace(frames(creator)[::-1]) if creator else 0
    for number in ways:
        things = [w.thing(exclusive=True, getters=1) for _ in range(each)]
        w.tasks(each, "asyncio.Queue.get", way(number), things, created_by=made)


def test_stacks_that_came_by_different_ways_are_one_finding() -> None:
    snapshot = starved(range(30)).build()
    (finding,) = find_leaks([snapshot]).findings
    assert finding.count == 60
    assert any("by 30 different ways" in reason for reason in finding.evidence)


def test_stacks_that_others_created_are_findings_of_their_own() -> None:
    w = starved(range(3), 5, "app.py:poll:10")
    add(w, range(3), 5, "app.py:push:20")
    findings = find_leaks([w.build()]).findings
    assert sorted(f.count for f in findings) == [15, 15]
    assert findings[0].id != findings[1].id


def test_stacks_that_wait_at_another_line_of_the_program_are_findings_of_their_own() -> None:
    w = starved(range(5), 5)
    things = [w.thing(exclusive=True, getters=1) for _ in range(20)]
    w.tasks(20, "asyncio.Queue.get", f"{QUEUE_GET} app.py:other:70 app.py:main:1", things)
    assert sorted(f.count for f in find_leaks([w.build()]).findings) == [20, 25]


def test_the_same_leak_has_the_same_id_whichever_way_most_came() -> None:
    one, other = starved(range(5), 5).build(), starved(range(20, 26), 9).build()
    assert find_leaks([one]).findings[0].id == find_leaks([other]).findings[0].id


def test_a_crowd_that_no_template_knows_is_one_suspect() -> None:
    w = World()
    for number in range(40):
        w.tasks(4, "strange.wait", f"strange.py:wait:1 {' '.join(way(number).split()[1:])}")
    (finding,) = find_leaks([w.build()]).findings
    assert (finding.verdict, finding.count) == ("suspect", 160)


def test_others_at_the_same_place_later_are_no_growth() -> None:
    """In each snapshot thirty tasks wait at one place, each time others, that came by other ways."""
    series = []
    for at in range(3):
        w = World(at=float(at))
        w._address += at << 20
        for number in range(10 * at, 10 * at + 10):
            w.tasks(3, "asyncio.Event.wait", f"{EVENT} {' '.join(way(number).split()[1:])}")
        series.append(w.build())
    assert find_leaks(series).findings == ()


@given(st.lists(st.lists(st.integers(0, 5), max_size=6), min_size=1, max_size=12))
def test_the_places_of_stacks_are_those_of_their_frames(stacks: list[list[int]]) -> None:
    known = [Frame(f"f{n}", ("/srv/app/" if n % 2 else "/usr/lib/python3.12/") + "x.py", n) for n in range(6)]
    w = World()
    for numbers in stacks:
        trace = w.builder.trace([known[n] for n in reversed(numbers)])
        w.builder.add(["t"], kind=1, trace=trace)
    snapshot: Snapshot = w.build()
    near = NearClusters(snapshot)
    names = [*snapshot.traces.frames, None]
    for row, numbers in enumerate(stacks):
        path = [known[n] for n in numbers]
        own = next((f for f in path if is_own(f)), None)
        expected = [path[0] if path else None, own, path[-1] if path else None]
        assert [names[int(column[row])] for column in near.places] == expected
    places = list(zip(*(column.tolist() for column in near.places), strict=True))
    groups = near.of.tolist()
    assert len(set(places)) == len(set(groups)) == len(set(zip(places, groups, strict=True)))
