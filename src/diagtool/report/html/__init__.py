"""``diagtool leaks --format html``: one page that holds everything, for passing on.

:func:`page` gives the text of the file. The page asks no network for anything, runs only the scripts that
are in it (content security policy with their hashes), and shows what came from the target as text, never as
markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diagtool.leaks.model import Report
    from diagtool.report.sources import Sources
    from diagtool.snapshot.model import Snapshot

__all__ = ["page"]


def page(
    report: Report,
    snapshots: Sequence[Snapshot],
    sources: Sources | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The whole file, at most ``limits.MOST_BYTES``. ``snapshots``: what was judged, oldest first.

    ``sources`` gives the lines beside the frames of findings. ``notes`` stand with the warnings.
    """
    from diagtool.report.html.assemble import assembled, head
    from diagtool.report.html.data import document

    return assembled(lambda room: document(report, snapshots, sources, room, notes), head(report))
