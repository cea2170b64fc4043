"""What a recorder of allocations found, on its way into a snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diagtool.capture.model import Capture
    from diagtool.ingest.memray import Recording
    from diagtool.runtimes.native.model import LostBlocks
    from diagtool.snapshot.model import Snapshot


@dataclass(slots=True)
class Recorded:
    """A recording that is still being read, or a warning that says why there is none. Close it."""

    recording: Recording | None = None
    warning: str | None = None
    lost: LostBlocks | None = None

    def look(self, capture: Capture) -> None:
        """Remember the unreachable blocks. The capture is not kept while the recording is read."""
        from diagtool.runtimes.native.model import LOST, LostBlocks

        found = capture.found.get(LOST)
        self.lost = found if isinstance(found, LostBlocks) else None

    def add_to(self, snapshot: Snapshot) -> None:
        """Add it to a snapshot: its tables, to allocation sites that are there already, and where
        unreachable blocks were allocated."""
        from diagtool.cli.progress import progress
        from diagtool.ingest.memray import NoRecord
        from diagtool.runtimes.native.allocated import add_allocated

        if self.recording is not None:
            try:
                with progress("reading what memray recorded"):
                    self.recording.wait()
            except (NoRecord, OSError) as error:
                self.warning = _why(error)
            else:
                snapshot.warnings += self.recording.notes
                for name, rows in self.recording.tables.items():
                    snapshot.tables[name] = [*snapshot.tables.get(name, ()), *rows]
                blocks = self.recording.blocks
                if blocks is not None and self.lost is not None:
                    arrays = blocks.address, blocks.size, blocks.site
                    add_allocated(self.lost, snapshot.tables, *arrays, blocks.sites)
        if self.warning is not None:
            snapshot.warnings.append(self.warning)

    def close(self) -> None:
        """End the reading."""
        if self.recording is not None:
            self.recording.close()


def recorded(pid: int, seconds: float, *, each: bool, native: bool) -> Recorded:
    """Have memray record what a process allocates for some seconds. Never fails: says why it could not.

    ``each`` and ``native``: see :func:`diagtool.ingest.memray.record`.
    """
    from diagtool.ingest.memray import NoRecord, record

    try:
        return Recorded(record(pid, seconds, each=each, native=native))
    except (NoRecord, OSError) as error:
        return Recorded(warning=_why(error))


def _why(error: Exception) -> str:
    return f"no allocations were recorded: {error}"
