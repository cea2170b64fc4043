"""What a recorder of allocations found, on its way into a snapshot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diagtool.snapshot.model import Snapshot


@dataclass(slots=True)
class Recorded:
    """Tables, or a warning that says why there are none."""

    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    warning: str | None = None

    def add_to(self, snapshot: Snapshot) -> None:
        """Add it to a snapshot; where there are allocation sites already, to these."""
        if self.warning is not None:
            snapshot.warnings.append(self.warning)
        for name, rows in self.tables.items():
            snapshot.tables[name] = [*snapshot.tables.get(name, ()), *rows]


def recorded(pid: int, seconds: float) -> Recorded:
    """Have memray record what a process allocates for some seconds. Never fails: says why it could not."""
    from diagtool.ingest.memray import NoRecord, record

    try:
        return Recorded(record(pid, seconds))
    except (NoRecord, OSError) as error:
        return Recorded(warning=f"no allocations were recorded: {error}")
