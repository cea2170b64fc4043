"""Temporary files and folders that were made with ``tempfile`` and are still there."""

from __future__ import annotations

import os
from collections.abc import Collection, Hashable

from diagtool.probes.left import Left
from diagtool.probes.origins import Notes
from diagtool.probes.sites import by_import, spelled


class TemporaryFiles:
    """See :class:`diagtool.probes.left.Probe`. Keys are paths. ``elsewhere``: folders that others clear."""

    def __init__(self, notes: Notes, elsewhere: tuple[str, ...] = ()) -> None:
        self._notes = notes
        self.elsewhere = elsewhere
        self._known: set[str] = set()

    def changed(self) -> bool:
        """Some were made."""
        return len(self._notes.temporary) != len(self._known)

    def adopt(self, pending: Collection[Hashable] = (), same: bool = False) -> None:
        """See Probe."""
        notes = self._notes.temporary
        for path in [p for p in notes if not os.path.lexists(p)]:
            del notes[path]
        self._known = set(notes)

    def new(self) -> list[Hashable]:
        """See Probe."""
        return [p for p in self._notes.temporary if p not in self._known and os.path.lexists(p)]

    def describe(self, key: Hashable) -> Left | None:
        """See Probe."""
        path = str(key)
        if not os.path.lexists(path):
            return None
        what = "folder" if os.path.isdir(path) else "file"
        origin = self._notes.temporary.get(path)
        left = Left("temp-files", key, f"temporary {what} {path}", "", spelled(origin))
        name = os.path.basename(path)
        if path.startswith(self.elsewhere) and self.elsewhere:
            left.ignored = "in a folder that pytest clears"
        elif name.startswith("pymp-"):
            left.ignored = "of multiprocessing, deleted at exit"
        elif by_import(origin):
            left.ignored = "made by an import"
        return left

    def close(self) -> None:
        """Nothing is held."""
