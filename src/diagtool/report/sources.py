"""Source lines of the target's code, for showing beside a frame."""

from __future__ import annotations

from diagtool.leaks.source import files
from diagtool.report.text import clean
from diagtool.snapshot.model import Frame


class Sources(files.Sources):
    """What :class:`diagtool.leaks.source.files.Sources` finds, clean for a terminal."""

    def line(self, frame: Frame) -> str:
        """The text of the frame's line, stripped and clean, or ""."""
        return clean(super().line(frame), 200)
