"""Facts matched against leak templates: clusters, verdicts, findings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diagtool.leaks.model import Report
    from diagtool.leaks.source.files import Sources
    from diagtool.leaks.template import Template
    from diagtool.snapshot.model import Snapshot

__all__ = ("find_leaks",)


def find_leaks(
    snapshots: Sequence[Snapshot],
    *,
    templates: Iterable[Template] | None = None,
    min_count: int | None = None,
    sources: Sources | None = None,
    labels: Sequence[tuple[str, str]] = (),
) -> Report:
    """What leaked or hangs, worst first.

    Of several snapshots of one process only what persisted or grew is reported, with ages. ``templates``:
    in the place of our own (see :func:`diagtool.leaks.template.library`). ``min_count``: the least number of
    stacks of a finding, in the place of each template's own. ``sources``: where the source of the program's
    code can be read; findings are held against it. ``labels``: pairs of (name, value); only
    stacks that have them are told of (``diagtool.leaks.labelled``). Raises SeriesError
    (``diagtool.leaks.series``) when the snapshots are not of one process, TemplateError when our own
    templates are damaged.
    """
    from diagtool.leaks.verdict import judge

    return judge(snapshots, templates=templates, min_count=min_count, sources=sources, labels=labels)
