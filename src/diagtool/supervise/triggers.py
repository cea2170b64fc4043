"""When a snapshot is taken: the triggers of ``--snapshot-on``, and when thresholds fire.

exit              looks while it runs (0.5 s, 1 s, 2 s, 4 s …), and one before it goes away
signal            it is asked to end: TERM, INT, HUP, QUIT
signal=USR2       diagtool gets this signal
crash             a signal ends it that leaves a core
hang              --timeout is over
rss>2GiB tasks>1000 threads>200 fds>80% fds>500     of any of its processes
every=30s
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["DEFAULT", "BadTrigger", "Figures", "Thresholds", "Trigger", "parse"]

Kind = Literal["exit", "signal", "crash", "hang", "rss", "tasks", "threads", "fds", "every"]

#: What is used when nobody says.
DEFAULT = "exit,signal,crash,hang"

_WORDS: tuple[Kind, ...] = ("exit", "signal", "crash", "hang")
_OVER = re.compile(r"(rss|tasks|threads|fds)\s*>=?\s*(\d{1,15}(?:\.\d{1,3})?)\s*([a-zA-Z%]*)")
_EVERY = re.compile(r"every=(\d{1,6}(?:\.\d{1,3})?)(s|m|min|h|)")
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_SIZES = {"": 1, "B": 1, "K": 1 << 10, "KB": 10**3, "KIB": 1 << 10, "M": 1 << 20, "MB": 10**6, "MIB": 1 << 20}
_SIZES |= {"G": 1 << 30, "GB": 10**9, "GIB": 1 << 30, "T": 1 << 40, "TB": 10**12, "TIB": 1 << 40}
_LEAST_EVERY = 0.2  # seconds

#: A threshold fires again when the figure is so many times what it was, and so often at most.
AGAIN, MOST = 1.5, 5


class BadTrigger(ValueError):
    """What was written is no trigger. ``str()`` says what would be."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """``value``: bytes, a count, a share from 0 to 1 (``fds>80%``), seconds, or the number of a signal."""

    kind: Kind
    value: float = 0.0
    share: bool = False
    text: str = ""


@dataclass(frozen=True, slots=True)
class Figures:
    """What can be said of a process without stopping it. ``limit``: how many descriptors it may have."""

    rss: int = 0
    threads: int = 0
    fds: int = 0
    limit: int = 0
    tasks: int | None = None


def parse(text: str) -> list[Trigger]:
    """The triggers of ``exit,rss>2GiB``. Raises BadTrigger."""
    return [_one(part.strip()) for part in text.split(",") if part.strip()]


def _one(text: str) -> Trigger:
    for word in _WORDS:
        if text == word:
            return Trigger(word, text=text)
    if text.startswith("signal="):
        return Trigger("signal", _signal(text[7:]), text=text)
    if found := _EVERY.fullmatch(text):
        seconds = float(found[1]) * _SECONDS[found[2]]
        if seconds < _LEAST_EVERY:
            raise BadTrigger(f"{text}: at most every {_LEAST_EVERY:g} s")
        return Trigger("every", seconds, text=text)
    if found := _OVER.fullmatch(text):
        return _threshold(text, found[1], float(found[2]), found[3])
    raise BadTrigger(
        f"{text!r} is no trigger: exit, signal, signal=USR2, crash, hang, rss>2GiB, tasks>1000, threads>200, "
        "fds>80%, every=30s"
    )


def _threshold(text: str, name: str, number: float, unit: str) -> Trigger:
    if name == "rss":
        if unit.upper() not in _SIZES:
            raise BadTrigger(f"{text}: sizes are written as 512MiB, 2GiB or 3GB")
        number *= _SIZES[unit.upper()]
    elif name == "fds" and unit == "%":
        if not 0 < number <= 100:
            raise BadTrigger(f"{text}: a share of the limit from 1% to 100%")
        return Trigger("fds", number / 100, share=True, text=text)
    elif unit:
        raise BadTrigger(f"{text}: a plain number is needed")
    kinds: dict[str, Kind] = {"rss": "rss", "tasks": "tasks", "threads": "threads", "fds": "fds"}
    return Trigger(kinds[name], number, text=text)


def _signal(name: str) -> int:
    known = {s.name.removeprefix("SIG"): s.value for s in signal.Signals}
    number = known.get(name.upper().removeprefix("SIG"))
    if number is None or number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD):
        raise BadTrigger(f"signal={name}: no signal that can be waited for, such as USR2")
    return number


@dataclass(slots=True)
class Thresholds:
    """Which triggers fire for a process: each once, and again when it has become half as much again."""

    triggers: list[Trigger]
    _next: dict[tuple[int, str], float] = field(default_factory=dict)
    _fired: dict[tuple[int, str], int] = field(default_factory=dict)

    def fired(self, pid: int, figures: Figures) -> list[Trigger]:
        """Those that a process has passed now."""
        out = []
        for trigger in self.triggers:
            now = _figure(trigger, figures)
            key = (pid, trigger.text)
            if now is None or now <= self._next.get(key, trigger.value) or self._fired.get(key, 0) >= MOST:
                continue
            self._next[key] = now * AGAIN
            self._fired[key] = self._fired.get(key, 0) + 1
            out.append(trigger)
        return out


def _figure(trigger: Trigger, figures: Figures) -> float | None:
    if trigger.kind == "fds" and trigger.share:
        return figures.fds / figures.limit if figures.limit else None
    values = {"rss": figures.rss, "threads": figures.threads, "fds": figures.fds, "tasks": figures.tasks}
    return values.get(trigger.kind)
