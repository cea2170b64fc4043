"""diagtool: say what leaked or hangs in a live or core-dumped process.

    import diagtool

    snap = diagtool.snapshot(4242)              # a pid, a core or a .diag file
    report = diagtool.find_leaks(snap)
    for finding in report.findings:
        print(finding.verdict, finding.count, finding.title)

``capture(target)`` gives the bytes of one instant, ``snapshot(target)`` what was decoded from them, ``save``
and ``load`` keep it in a .diag file, ``find_leaks(snapshots)`` gives the findings; ``to_dict``, ``export``
and ``sql`` hand on what is known; ``guard()`` watches a block of the program that asks for it. docs/api.md
has examples, and all names. Everything is imported on first use.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import diagtool.capture
import diagtool.snapshot  # noqa: F401 - made callable below
from diagtool._version import __version__

if TYPE_CHECKING:
    from diagtool.api import capture, find_leaks, load, load_series, snapshot
    from diagtool.capture.errors import NoSuchTarget, NotPermitted, NotSupported, TargetError
    from diagtool.ingest.service import Asking
    from diagtool.leaks.model import Cluster, Finding, Report
    from diagtool.leaks.series import SeriesError
    from diagtool.leaks.template import TemplateError
    from diagtool.probes.guard import guard
    from diagtool.report.export import ExportError
    from diagtool.results import export, save, sql, to_dict
    from diagtool.snapshot.model import Frame, Snapshot, Stack, Target, Thing
    from diagtool.snapshot.query import BadQuery
    from diagtool.snapshot.store import StoreError

#: Where each name is; docs/api.md has all of them. What is not here may change with any version.
_PUBLIC = {
    **dict.fromkeys(("find_leaks", "load", "load_series"), "diagtool.api"),
    **dict.fromkeys(("export", "save", "sql", "to_dict"), "diagtool.results"),
    "Asking": "diagtool.ingest.service",
    "guard": "diagtool.probes.guard",
    **dict.fromkeys(("Frame", "Snapshot", "Stack", "Target", "Thing"), "diagtool.snapshot.model"),
    **dict.fromkeys(("Cluster", "Finding", "Report"), "diagtool.leaks.model"),
    **dict.fromkeys(
        ("NoSuchTarget", "NotPermitted", "NotSupported", "TargetError"), "diagtool.capture.errors"
    ),
    "StoreError": "diagtool.snapshot.store",
    "TemplateError": "diagtool.leaks.template",
    "SeriesError": "diagtool.leaks.series",
    "ExportError": "diagtool.report.export",
    "BadQuery": "diagtool.snapshot.query",
}

__all__ = [
    "Asking",
    "BadQuery",
    "Cluster",
    "ExportError",
    "Finding",
    "Frame",
    "NoSuchTarget",
    "NotPermitted",
    "NotSupported",
    "Report",
    "SeriesError",
    "Snapshot",
    "Stack",
    "StoreError",
    "Target",
    "TargetError",
    "TemplateError",
    "Thing",
    "__version__",
    "capture",
    "export",
    "find_leaks",
    "guard",
    "load",
    "load_series",
    "save",
    "snapshot",
    "sql",
    "to_dict",
]


class _CallablePackage(ModuleType):
    """``capture`` and ``snapshot`` are packages and also functions of the public API: call them."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        function = getattr(import_module("diagtool.api"), self.__name__.rpartition(".")[2])
        return function(*args, **kwargs)


for _name in ("capture", "snapshot"):
    sys.modules[f"{__name__}.{_name}"].__class__ = _CallablePackage


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
