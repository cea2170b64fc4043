"""A live service of Go that serves net/http/pprof on loopback; its healthy twin is silent.

With DIAGTOOL_TEST_GO=all alone: a build of net/http takes a minute. Else recorded answers do
(tests/unit/test_service.py), and one look at a live service (test_go_evidence.py).
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from diagtool.ingest.service import Asking, read_service
from diagtool.leaks import find_leaks
from diagtool.snapshot.model import Snapshot
from go_programs import started, toolchains

pytestmark = pytest.mark.skipif(
    os.environ.get("DIAGTOOL_TEST_GO") != "all", reason="takes minutes (make test-go)"
)

PROVES = ("1.26", "1.27")
LEAKED = {
    "main.(*broker).listen": 40,
    "main.fetch.func1": 25,
    "main.(*queue[...]).pop": 15,
    "main.upload": 10,
}


def experiment(minor: str) -> str:
    return "goroutineleakprofile" if minor == "1.26" else ""


def ask(address: str, **how: object) -> Snapshot:
    (snapshot,) = read_service(f"http://{address}/debug/pprof", Asking(seconds=100, **how))  # type: ignore[arg-type]
    return snapshot


@pytest.mark.parametrize("limit", [0, 10_000], ids=["profile", "dump"])
@pytest.mark.parametrize("minor", toolchains(all=True))
def test_a_service_tells_its_leaks(minor: str, limit: int) -> None:
    with started("profiles", minor, "leak", experiment=experiment(minor)) as program:
        snap = ask(program.words[0], dump_limit=limit, prove=True)
    with started("profiles", minor, "leak", experiment=experiment(minor)) as program:
        first = ask(program.words[0], dump_limit=limit)
        program.say("grow")
        again = ask(program.words[0], dump_limit=limit)
    found = Counter(s.frames[0].function for s in snap if s.frames)
    assert {name: found[name] for name in LEAKED} == LEAKED
    assert Counter(key for _, key, _ in snap.labels) == {"service": 25, "trace_id": 25}
    assert snap.tables["allocation_sites"][0]["function"] == "main.remember"
    assert {row["kind"] for row in snap.tables["contention"]} == {"block", "mutex"}
    report = find_leaks([snap])
    proven = Counter({f.frames[0].function: f.count for f in report.findings if f.verdict == "proven"})
    assert proven == (Counter(LEAKED | {"main.descend": 5}) if minor in PROVES else Counter())
    findings = find_leaks([first, again]).findings
    grown = {f.frames[0].function: f.verdict for f in findings if f.kind == "goroutine"}
    assert [f.examples for f in findings if f.kind == "block"] == [("main.remember",)]
    assert set(LEAKED) <= set(grown)
    if not limit:  # who stayed, profiles don't tell
        assert {grown[name] for name in LEAKED} == {"suspect"}
    else:
        assert grown["main.(*broker).listen"] == grown["main.fetch.func1"] == "likely"


@pytest.mark.parametrize("minor", toolchains(all=True))
def test_its_healthy_twin_is_silent(minor: str) -> None:
    with started("profiles", minor, "healthy", experiment=experiment(minor)) as program:
        before = ask(program.words[0], prove=True)
        program.say("grow")
        after = ask(program.words[0], prove=True)
    assert not find_leaks([before]).findings
    assert not find_leaks([before, after]).findings
