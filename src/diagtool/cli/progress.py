"""Says on a terminal that work goes on, once it takes longer than a second."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_PATIENCE = 1.0
_EVERY = 0.5
_ERASE = "\r\x1b[K"


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Show ``what`` and the seconds gone on stderr while the block runs, if a person is watching."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_show, args=(what, done), daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _show(what: str, done: threading.Event) -> None:
    from diagtool.report.text import clean

    what = clean(what)  # a core is named after its process, which may be hostile
    started = time.monotonic()
    wait, shown = _PATIENCE, False
    while not done.wait(wait):
        wait, shown = _EVERY, True
        sys.stderr.write(f"{_ERASE}{what} … {time.monotonic() - started:.0f} s")
        sys.stderr.flush()
    if shown:
        sys.stderr.write(_ERASE)
        sys.stderr.flush()
