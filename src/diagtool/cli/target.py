"""From what the user names to a Snapshot: a pid, a core file or a .diag file, recognised by its content."""

from __future__ import annotations

from dataclasses import dataclass

from diagtool.api import kind_of, snapshot
from diagtool.cli.progress import progress
from diagtool.report.sources import Sources
from diagtool.snapshot.model import Snapshot

_DOING = {"live": "reading process", "core": "reading core", "store": "reading"}


@dataclass(frozen=True, slots=True)
class Resolved:
    """A snapshot and where the files of its process are."""

    snapshot: Snapshot
    sources: Sources


def resolve(text: str, *, exe: str | None = None, sysroot: str | None = None) -> Resolved:
    """The snapshot of what ``text`` names. Raises TargetError or StoreError."""
    kind = kind_of(text)
    with progress(f"{_DOING[kind]} {text}"):
        snap = snapshot(text, exe=exe, sysroot=sysroot)
    root = sysroot
    if root is None and kind == "live":
        root = f"/proc/{int(text)}/root"  # a target in another mount namespace has its sources there
    return Resolved(snap, Sources(snap.target, root))
