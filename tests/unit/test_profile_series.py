"""Profiles one after the other: who is who nobody knows, only how many there are."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from made_profiles import goroutines, recorded, waiting

from diagtool.cli import main
from diagtool.ingest import read_evidence
from diagtool.leaks import find_leaks
from diagtool.leaks.model import Finding
from diagtool.report import json as documents
from diagtool.snapshot.model import Snapshot


def taken(tmp_path: Path, counts: list[int], seconds: int, *, kind: str = "goroutine") -> list[Snapshot]:
    out = []
    for at, count in enumerate(counts):
        path = tmp_path / f"{at}.pb"
        path.write_bytes(goroutines(waiting(count), kind=kind, time=1_700_000_000 + at * seconds))
        out += read_evidence(path)
    return out


def found(tmp_path: Path, counts: list[int], seconds: int, *, kind: str = "goroutine") -> list[Finding]:
    return list(find_leaks(taken(tmp_path, counts, seconds, kind=kind)).findings)


def test_two_profiles_of_which_the_second_has_more_are_a_suspicion(tmp_path: Path) -> None:
    (finding,) = found(tmp_path, [40, 80], 3600)
    assert (finding.verdict, finding.count, finding.template) == ("suspect", 80, "go-receive-nobody-sends")
    assert finding.trend is not None and finding.trend.persisted is None and finding.age_seconds is None
    assert finding.evidence == (
        "their number grew: 40, 80",
        "a profile does not tell whether those from before are still among them",
    )


def test_more_in_each_of_three_profiles_over_some_time_is_likely(tmp_path: Path) -> None:
    (finding,) = found(tmp_path, [40, 60, 80], 60)
    assert (finding.verdict, finding.count) == ("likely", 80)
    assert not any("from before" in e and "profile" not in e for e in finding.evidence)


@pytest.mark.parametrize(
    "counts, seconds", [([40, 60, 80], 10), ([40, 40, 80], 60), ([40, 40, 40], 60), ([40, 30, 40], 60)]
)
def test_what_grows_for_a_moment_or_not_at_all_is_not_likely(
    tmp_path: Path, counts: list[int], seconds: int
) -> None:
    assert all(f.verdict == "suspect" for f in found(tmp_path, counts, seconds))


def test_as_many_as_ever_are_nothing(tmp_path: Path) -> None:
    assert not found(tmp_path, [40, 40, 40, 40], 600)
    assert not found(tmp_path, [40, 2, 40], 600)


def test_of_those_that_come_and_go_only_as_many_count_as_there_always_were(tmp_path: Path) -> None:
    (finding,) = found(tmp_path, [400, 150, 300], 600)
    assert (finding.verdict, finding.count) == ("suspect", 150)


def test_what_the_runtime_proved_is_proven_in_a_series_too(tmp_path: Path) -> None:
    (finding,) = found(tmp_path, [3, 9], 1, kind="goroutineleak")
    assert (finding.verdict, finding.count) == ("proven", 9)


def test_a_report_of_profiles_fits_its_schema_and_says_nothing_of_the_same(tmp_path: Path) -> None:
    document = json.loads(documents.dumps(documents.leaks(find_leaks(taken(tmp_path, [40, 80], 60)))))
    jsonschema.validate(document, documents.schema("leaks"))
    assert document["findings"][0]["trend"]["persisted"] is None


@pytest.mark.parametrize("minor", ["1.19", "1.27"])
def test_two_profiles_are_compared(minor: str, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = (str(recorded(minor, f"goroutine{later}.pb.gz")) for later in ("", "-later"))
    assert main(["leaks", new, old]) == 0  # by their own times
    out = capsys.readouterr().out
    assert "SUSPECT 80 goroutines" in out and "trend    40 → 80, over" in out
    assert main(["diff", old, new]) == 0
    out = capsys.readouterr().out
    assert "+40  goroutine waiting in chan receive  main.go:35 in main.(*broker).listen" in out
    assert "--heap" not in out
