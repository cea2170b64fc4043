"""Snapshots as other programs read them: one module a format, each giving bytes piece by piece.

``speedscope``, ``pprof`` and ``collapsed`` show :class:`~diagtool.report.export.samples.Samples`: stacks that
are alike, and what they weigh. ``chrome`` is about time, ``csvtables`` about everything.
"""

from __future__ import annotations

__all__ = ("ExportError",)


class ExportError(Exception):
    """A snapshot has nothing of what was asked for. ``str()`` says what, ``hint`` what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint
