"""What is said about one thing that outlived its owner: plain text, no reference to the thing itself."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from diagtool.probes.sites import Site, program_site, shown

#: What is looked for, in the order in which it is reported. ``heap`` only with @pytest.mark.leaks.
KINDS = (
    "threads",
    "native-threads",
    "tasks",
    "asyncgens",
    "fds",
    "gpu",
    "processes",
    "temp-files",
    "heap",
)

#: How many of a kind are called: (one, several).
NOUNS = {
    "threads": ("thread", "threads"),
    "native-threads": ("native thread", "native threads"),
    "tasks": ("task", "tasks"),
    "asyncgens": ("async generator", "async generators"),
    "fds": ("file descriptor", "file descriptors"),
    "gpu": ("GPU handle", "GPU handles"),
    "processes": ("child process", "child processes"),
    "temp-files": ("temporary file", "temporary files"),
    "heap": ("growing heap", "growing heaps"),
}


@dataclass(slots=True)
class Left:
    """One thing that is still there.

    ``key`` tells it from others of its kind while it lives. ``created`` and ``waiting`` are innermost first,
    empty where unknown. ``native_id`` is the tid of a thread, ``address`` that of a task: what the engine
    is asked about. ``owned``: an object of Python has this descriptor. ``ignored`` says why it is no leak, ""
    if it is one. ``label``: what the program calls it.
    """

    kind: str
    key: Hashable
    name: str
    detail: str = ""
    created: tuple[Site, ...] = ()
    waiting: tuple[Site, ...] = ()
    native_id: int = 0
    address: int = 0
    owned: bool = True
    ignored: str = ""
    label: str = ""
    template: str = ""
    title: str = ""
    cause: str = ""
    fix: str = ""
    runbook: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def site(self) -> Site | None:
        """The line to show: where the program made it, else where it waits."""
        return program_site(self.created) or program_site(self.waiting)

    @property
    def likeness(self) -> tuple[object, ...]:
        """Equal for things that came about in the same way."""
        where = self.created or self.waiting or (self.name,)
        return (self.kind, self.detail if self.kind != "fds" else "", where, self.template)

    def names(self) -> list[str]:
        """All that a pattern may match: the name, and "file:function" of every frame."""
        frames = (*self.created, *self.waiting)
        return [self.name, *(f"{shown(s.file)}:{s.function}" for s in frames)]

    def as_json(self) -> dict[str, Any]:
        """For reports and for the way from an xdist worker: only what JSON has."""
        out: dict[str, Any] = {"kind": self.kind, "name": self.name, "detail": self.detail}
        for field_ in ("created", "waiting"):
            out[field_] = [
                {"file": s.file, "line": s.line, "function": s.function} for s in getattr(self, field_)
            ]
        for field_ in ("template", "title", "cause", "fix", "runbook"):
            if getattr(self, field_):
                out[field_] = getattr(self, field_)
        return {**out, **self.extra}


class Probe(Protocol):
    """Looks after one or two kinds. Keeps numbers and weak references, never the things."""

    def changed(self) -> bool:
        """Whether a closer look is worth it: a few microseconds."""

    def adopt(self, pending: Collection[Hashable] = (), same: bool = False) -> None:
        """What is alive now is known, and no leak of what comes next; ``pending`` is still to be judged.

        ``same``: ``new()`` was just asked, and there was nothing.
        """

    def new(self) -> Iterable[Hashable]:
        """The keys of what is alive and not known."""

    def describe(self, key: Hashable) -> Left | None:
        """What it is; None when it is gone."""

    def close(self) -> None:
        """Give back what is held."""
