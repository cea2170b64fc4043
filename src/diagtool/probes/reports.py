"""How a leak is told while the program runs: a warning, an error, a line in the log, or a call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

from diagtool.probes.outlived import Leak

__all__ = ["LeakError", "LeakWarning", "OnLeak", "reporter"]

OnLeak = Literal["warn", "raise", "log"] | Callable[[Leak], object]


class LeakWarning(RuntimeWarning):
    """Something outlived its request or block."""


class LeakError(RuntimeError):
    """Something outlived its block. ``leaks`` has all of it."""

    def __init__(self, leaks: list[Leak]) -> None:
        self.leaks = leaks
        super().__init__("\n".join(str(leak) for leak in leaks))


def reporter(on_leak: OnLeak, *, raising: bool) -> Callable[[Leak], None]:
    """What is done with a leak. Raises ValueError for what is none of these; "raise" only if ``raising``."""
    if callable(on_leak):
        call = on_leak
        return lambda leak: (call(leak), None)[1]
    if on_leak == "warn":
        return lambda leak: _warn(leak)
    if on_leak == "log":
        return _log
    if on_leak == "raise" and raising:
        return lambda leak: None  # guard.py raises, of all together
    allowed = "'warn', 'raise', 'log'" if raising else "'warn', 'log'"
    raise ValueError(f"on_leak is {allowed} or a function, not {on_leak!r}")


def _warn(leak: Leak) -> None:
    # In the name of the line that started it, so that filters of modules and lines work on it.
    site = leak.left.site
    message = LeakWarning(str(leak))
    if site is None or not site.line:
        warnings.warn(message, stacklevel=2)
    else:
        warnings.warn_explicit(message, LeakWarning, site.file, site.line)


def _log(leak: Leak) -> None:
    import logging

    logging.getLogger("diagtool").warning("%s", leak)
