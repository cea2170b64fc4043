"""All that is known of a finding is said, and it is found by the name that a report gives it."""

from __future__ import annotations

import io

import jsonschema
import pytest
from made_stacks import EVENT, QUEUE_GET, World

from diagtool.leaks import find_leaks
from diagtool.leaks.explain import Explanation, NoSuchFinding, explain
from diagtool.leaks.template import builtin
from diagtool.report import explain as words
from diagtool.report import json
from diagtool.report.terminal import View
from diagtool.report.text import write
from diagtool.snapshot.model import Snapshot


def starved() -> Snapshot:
    """30 tasks on one queue that only they know, each awaited by another task; by two ways."""
    w = World()
    queue = w.thing(exclusive=True, getters=30, detail="empty")
    one = w.tasks(20, "asyncio.Queue.get", f"{QUEUE_GET} app.py:leaf:3 app.py:a:4 app.py:main:1", queue)
    other = w.tasks(10, "asyncio.Queue.get", f"{QUEUE_GET} app.py:leaf:3 app.py:b:9 app.py:main:1", queue)
    parents = w.tasks(30, "", "app.py:parent:7")
    w.awaits = list(zip(parents, [*one, *other], strict=True))
    return w.build()


def explained(snapshot: Snapshot, wanted: str = "asyncio-queue-get-starved") -> Explanation:
    return explain(find_leaks([snapshot]), wanted, [snapshot], builtin())


def printed(told: Explanation) -> str:
    out = io.StringIO()
    write(words.lines(told, View(100)), out, color=False)
    return out.getvalue()


def test_it_has_conditions_stacks_things_and_who_awaits() -> None:
    told = explained(starved())
    assert told.template is not None
    assert all(step.holds for step in told.conditions[0].steps)
    assert [way.count for way in told.ways] == [20, 10]
    assert (len(told.stacks), told.stack_count) == (20, 30)
    assert [(t.type, t.references) for t in told.things] == [("asyncio.queues.Queue", 3)]
    assert [s.frames[0].function for s in told.chains[0]] == ["Queue.get", "parent"]
    text = printed(told)
    for said in (
        "stuck == true",
        "20 of 30 stacks",
        "only its waiters reach it",
        "Who awaits them",
        "20 tasks",
    ):
        assert said in text, said


def test_its_document_fits_the_schema() -> None:
    snapshot = starved()
    document = json.explain(find_leaks([snapshot]), explained(snapshot))
    jsonschema.validate(document, json.schema("explain"), cls=jsonschema.Draft202012Validator)
    assert document["finding"]["count"] == document["stack_count"] == 30


def test_it_is_found_by_the_beginning_of_its_id() -> None:
    snapshot = starved()
    (finding,) = find_leaks([snapshot]).findings
    assert explained(snapshot, finding.id[:6]).finding == finding


@pytest.mark.parametrize("wanted", ["", "zzz", "asyncio"])
def test_what_is_not_there_is_told_with_what_is(wanted: str) -> None:
    with pytest.raises(NoSuchFinding, match=r"no finding is called .*asyncio-queue-get-starved"):
        explained(starved(), wanted)


def test_a_finding_without_a_template_is_explained_too() -> None:
    w = World()
    w.tasks(150, "strange.wait", "strange.py:wait:3")
    snapshot = w.build()
    (finding,) = find_leaks([snapshot]).findings
    told = explained(snapshot, finding.id)
    assert (told.template, told.conditions, told.stack_count) == (None, (), 150)
    assert "150 tasks" in printed(told)


def test_a_circle_of_awaits_ends() -> None:
    w = World()
    event = w.thing("asyncio.Event", exclusive=True)
    rows = w.tasks(6, "asyncio.Event.wait", f"{EVENT} app.py:leaf:3", event)
    w.awaits = [(rows[(i + 1) % 6], rows[i]) for i in range(6)]
    snapshot = w.build()
    (finding,) = find_leaks([snapshot]).findings
    chains = explained(snapshot, finding.id).chains
    assert chains
    assert all(len(chain) <= 7 for chain in chains)


def test_names_are_escaped() -> None:
    w = World()
    names = [f"\x1b[31m{i}" for i in range(20)]
    w.tasks(20, "asyncio.Queue.get", f"{QUEUE_GET} app.py:leaf:3", w.thing(exclusive=True), names=names)
    assert "\x1b" not in printed(explained(w.build()))
