"""How much of a snapshot a page shows: a million stacks must fit into a file that can be mailed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

__all__ = ["MOST_BYTES", "Limits"]

#: Of a whole page.
MOST_BYTES = 10 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """How many there are of each at most; what is left out is counted on the page."""

    findings: int = 300
    clusters: int = 2_000
    stacks: int = 2_000
    rows: int = 1_500  # of any other table
    frames: int = 20_000  # different ones, in all stacks together
    flame: int = 3_000  # frames in the picture of all stacks
    waits: int = 60  # boxes in the picture of who waits for whom
    tiles: int = 240  # of a treemap
    lines: int = 12  # of a picture of growth

    def less(self) -> Limits:
        """A quarter of everything, but never nothing."""
        return Limits(**{f.name: max(getattr(self, f.name) // 4, 1) for f in dataclasses.fields(self)})
