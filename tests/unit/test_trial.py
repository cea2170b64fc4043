"""`templates try`: each condition with what was found, and why nothing came of a template all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_stacks import QUEUE_GET, World

from diagtool.cli import main
from diagtool.leaks.template_toml import read_text
from diagtool.leaks.trial import Candidate, candidates
from diagtool.snapshot import store
from diagtool.snapshot.model import Snapshot

HEAD = 'id = "{}"\ntitle = "t"\ncause = "c"\nfix = "f"\n'
GOOD = """
[[template]]
id = "pump-starved"
title = "Pumps wait for items"
cause = "The service forgot its pumps."
fix = "Close the service."
priority = 30
match = { wait = "asyncio.Queue.get", frames = "worker.py:fetch", thing = "state.size == 0" }
verdict = [{ level = "likely", min_count = 5, thing = "exclusive == true" }]
"""


def starved(tasks: int = 20) -> Snapshot:
    world = World()
    world.tasks(
        tasks, "asyncio.Queue.get", f"{QUEUE_GET} worker.py:fetch:41", world.thing(exclusive=True, size=0)
    )
    return world.build()


def tried(text: str, *snapshots: Snapshot) -> tuple[Candidate, ...]:
    (template,), wrong = read_text(text, "mine.toml")
    assert wrong == []
    return candidates(template, snapshots or [starved()], [template])


def answers(candidate: Candidate) -> dict[str, tuple[str, bool]]:
    """wanted -> (found, holds)"""
    return {step.wanted: (step.found, step.holds) for step in candidate.steps}


def test_what_matches_has_yes_everywhere() -> None:
    first = tried(GOOD)[0]
    assert first.verdict == "likely" and first.count == 20
    assert all(step.holds for step in first.steps)
    told = answers(first)
    assert told["asyncio.Queue.get"] == ("asyncio.Queue.get", True)
    assert told["worker.py:fetch"] == ("all of them", True)
    assert told["state.size == 0"] == ("0", True)
    assert told["at least 5"] == ("20", True)


@pytest.mark.parametrize(
    ("old", "new", "wanted", "found"),
    [
        ('"asyncio.Queue.get"', '"asyncio.Lock.acquire"', "asyncio.Lock.acquire", "asyncio.Queue.get"),
        ("worker.py:fetch", "shop.py:lock", "shop.py:lock", "no shop.py:lock: "),
        ("state.size == 0", "state.size > 3", "state.size > 3", "0"),
        ("state.size == 0", "state.locked == true", "state.locked == true", "not known"),
        ("min_count = 5", "min_count = 50", "at least 50", "20"),
        ("exclusive == true", "exclusive == false", "exclusive == false", "true"),
        (
            "min_count = 5",
            'min_count = 5, series = "grew == true"',
            "grew == true",
            "there is one snapshot only",
        ),
        ("min_count = 5", 'min_count = 5, group = "things > 1"', "things > 1", "1"),
        (
            "min_count = 5",
            'min_count = 5, with = { kinds = ["thread"], wait = "socket.recv" }',
            "thread in socket.recv",
            "0 such stacks",
        ),
        (
            "min_count = 5",
            'min_count = 5, without = { kinds = ["task"], wait = "asyncio.Queue.get" }',
            "task in asyncio.Queue.get",
            "0 such stacks",
        ),
    ],
)
def test_what_does_not_hold_is_told_with_what_was_found(old: str, new: str, wanted: str, found: str) -> None:
    assert old in GOOD
    first = tried(GOOD.replace(old, new))[0]
    told, holds = answers(first)[wanted]
    assert told.startswith(found)
    if "without" not in new:
        assert not holds and not first.verdict
        assert next(step.wanted for step in first.steps if not step.holds) == wanted


def test_the_nearest_comes_first() -> None:
    world = World()
    world.tasks(500, "asyncio.sleep", "worker.py:nap:9", world.thing())
    world.tasks(
        3, "asyncio.Queue.get", f"{QUEUE_GET} worker.py:fetch:41", world.thing(exclusive=True, size=0)
    )
    first, second = tried(GOOD, world.build())
    assert "worker.py:41 in fetch" in first.what and first.count == 3
    assert "worker.py:9 in nap" in second.what
    assert [s.wanted for s in first.steps if not s.holds] == ["at least 5"]


def test_a_table_tells_its_rows_and_one_that_is_missing_how_to_get_it() -> None:
    text = (
        "[[template]]\n"
        + HEAD.format("many-sockets")
        + 'kind = "table"\nmatch = { table = "fds", where = \'kind == "socket"\', group_by = "kind" }\n'
        + 'verdict = [{ level = "suspect", min_count = 3 }]\n'
    )
    snapshot = starved()
    assert "--heap" in tried(text, snapshot)[0].steps[0].found
    snapshot.tables["fds"] = [{"kind": "socket"}] * 2 + [{"kind": "pipe"}] * 9
    (sockets,) = tried(text, snapshot)
    assert answers(sockets)["at least 3"] == ("2", False)
    snapshot.tables["fds"] = [{"kind": "pipe"}] * 9
    assert answers(tried(text, snapshot)[0])['kind == "socket"'] == ("'pipe'", False)


class TestCommand:
    @pytest.fixture
    def run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
        store.save(starved(), tmp_path / "s.diag")

        def run(text: str, *more: str) -> tuple[int, str]:
            (tmp_path / "mine.toml").write_text(text)
            status = main(["templates", "try", str(tmp_path / "mine.toml"), str(tmp_path / "s.diag"), *more])
            output = capsys.readouterr()
            return status, " ".join((output.out + output.err).split())

        return run

    def test_status_and_last_line_say_whether_it_matches(self, run) -> None:  # type: ignore[no-untyped-def]
        status, said = run(GOOD)
        assert status == 0 and "matches: likely, 20 tasks" in said
        status, said = run(GOOD.replace("min_count = 5", "min_count = 50"))
        assert status == 1 and said.endswith("does not match: verdict[0] likely: at least 50")

    def test_a_template_that_gets_the_stacks_first_is_named(self, run) -> None:  # type: ignore[no-untyped-def]
        other = GOOD.replace("pump-starved", "other").replace("priority = 30", "priority = 40")
        status, said = run(GOOD + other)
        assert status == 0 and "its conditions hold, but other got the stacks" in said
        assert run(GOOD + other, "--template", "pump-starved")[0] == 1

    def test_a_file_with_mistakes_and_a_template_that_is_not_in_it_are_wrong_usage(self, run) -> None:  # type: ignore[no-untyped-def]
        status, said = run(GOOD.replace("state.size", "stat.size"))
        assert status == 2 and "mine.toml:8: pump-starved.match.thing: " in said
        status, said = run(GOOD, "--template", "nonsense")
        assert status == 2 and "there is no template nonsense" in said


def test_an_idle_template_says_which_stacks_are_no_leak() -> None:
    text = "[[template]]\n" + HEAD.format("normal").replace('cause = "c"\nfix = "f"\n', "")
    text += 'idle = true\nmatch = { wait = "asyncio.Queue.get" }\n'
    first = tried(text)[0]
    assert (first.verdict, first.count) == ("idle", 20)
    assert tried(text.replace("Queue.get", "Lock.acquire"))[0].verdict == ""


def test_of_two_snapshots_growth_is_told() -> None:
    grown = GOOD.replace("min_count = 5", 'min_count = 5, series = "grew == true"')
    before, after = (World(at=100.0 + i) for i in range(2))
    for world, tasks in ((before, 10), (after, 30)):
        thing = world.thing(exclusive=True, size=0)
        world.tasks(tasks, "asyncio.Queue.get", f"{QUEUE_GET} worker.py:fetch:41", thing, address=0x9000)
    snapshots = before.build(), after.build()
    assert tried(grown, *snapshots)[0].verdict == "likely"
    assert answers(tried(grown, *snapshots)[0])["grew == true"] == ("true", True)
    assert answers(tried(grown, snapshots[1])[0])["grew == true"] == ("there is one snapshot only", False)
