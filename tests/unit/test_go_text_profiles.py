"""What a text profile (debug=1) hides is told from addresses: real ones of every version."""

from __future__ import annotations

from pathlib import Path

import pytest

from diagtool.ingest import read_evidence

DATA = Path(__file__).parents[1] / "data" / "go"
VERSIONS = sorted(p.name for p in DATA.iterdir() if (p / "debug1.txt").exists())


@pytest.mark.parametrize("minor", VERSIONS)
@pytest.mark.parametrize(
    ("function", "wait"),
    [
        ("main.lookUp.func1", "chan send"),
        ("main.awaitAnswer", "chan receive"),
        ("main.consume", "chan receive"),
    ],
)
def test_one_operation_on_a_channel_alone_is_told_by_how_far_it_is(
    minor: str, function: str, wait: str, tmp_path: Path
) -> None:
    """A service that leaks in one way has nothing to compare it with."""
    head, *entries = (DATA / minor / "debug1.txt").read_text().split("\n\n")
    first, _, rest = head.partition("\n")
    (mine,) = [e for e in (rest, *entries) if f"\t{function}+" in e and "main.main" not in e]
    alone = tmp_path / "profile.txt"
    alone.write_text(f"{first}\n{mine}\n\n")
    (snapshot,) = read_evidence(alone)
    assert {stack.wait for stack in map(snapshot.stack, range(len(snapshot.stacks)))} == {wait}
