"""diagtool: say what leaked or hangs in a live or core-dumped process.

    import diagtool

    snap = diagtool.snapshot(4242)              # a pid, a core or a .diag file
    report = diagtool.find_leaks(snap)
    for finding in report.findings:
        print(finding.verdict, finding.count, finding.title)

``capture(target)`` gives the bytes of one instant, ``snapshot(target)`` what was decoded from them,
``load(path)`` a snapshot from a .diag file, ``find_leaks(snapshots)`` the findings; ``guard()`` watches a
block of the program that asks for it. Everything is imported on first use.
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
    from diagtool.api import capture, find_leaks, load, snapshot
    from diagtool.probes.guard import guard

__all__ = ["__version__", "capture", "find_leaks", "guard", "load", "snapshot"]


class _CallablePackage(ModuleType):
    """``capture`` and ``snapshot`` are packages and also functions of the public API: call them."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        function = getattr(import_module("diagtool.api"), self.__name__.rpartition(".")[2])
        return function(*args, **kwargs)


for _name in ("capture", "snapshot"):
    sys.modules[f"{__name__}.{_name}"].__class__ = _CallablePackage


def __getattr__(name: str) -> Any:
    if name in ("find_leaks", "load"):
        return getattr(import_module("diagtool.api"), name)
    if name == "guard":
        return import_module("diagtool.probes.guard").guard
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
