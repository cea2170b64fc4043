"""What a person is told while work goes on."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from diagtool.cli import progress as module


class Terminal(io.StringIO):
    """Says when something was written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def isatty(self) -> bool:
        return True

    def flush(self) -> None:
        self.written.set()


def test_names_are_shown_clean_and_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A core is named after its process: core.%e"""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(module, "_PATIENCE", 0)
    with module.progress("reading core core.\x1b[2Jx"):
        assert terminal.written.wait(60)
    text = terminal.getvalue()
    assert r"reading core core.\x1b[2Jx … 0 s" in text
    assert "\x1b[2J" not in text
    assert text.endswith("\r\x1b[K")


def test_nobody_is_told_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with module.progress("reading core"):
        pass
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]
