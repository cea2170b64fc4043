"""From what the user names to a Snapshot: a pid, a core file or a .diag file, recognised by its content."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import click

from diagtool.api import kind_of, load_series, snapshot
from diagtool.cli import arrays  # noqa: F401 - before anything else that needs numpy
from diagtool.cli.progress import progress
from diagtool.report.sources import Sources

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from typing_extensions import Unpack

    from diagtool.capture.clonemode import CloneMode
    from diagtool.capture.model import Capture
    from diagtool.ingest.service import Asking
    from diagtool.runtimes.native.stacks import Unwinder
    from diagtool.snapshot.model import Snapshot

_DOING = {
    "live": "reading process",
    "core": "reading core",
    "store": "reading",
    "evidence": "reading",
    "service": "asking",
}


@dataclass(frozen=True, slots=True)
class Resolved:
    """A snapshot and where the files of its process are."""

    snapshot: Snapshot
    sources: Sources
    earlier: tuple[Snapshot, ...] = ()  # oldest first, of a file that holds several dumps

    @property
    def series(self) -> list[Snapshot]:
        """All snapshots, oldest first."""
        return [*self.earlier, self.snapshot]


def in_series(resolved: Sequence[Resolved]) -> list[Snapshot]:
    """The snapshots of several targets, oldest first."""
    return [snap for one in resolved for snap in one.series]


class How(TypedDict, total=False):
    """How a target is looked at: keyword arguments of :func:`diagtool.api.snapshot`, explained there."""

    exe: str | None
    sysroot: str | None
    heap: bool
    why: str | None
    graph: bool | None
    values: str | None
    native: bool | None
    frames: bool
    unwinder: Unwinder
    debug_directories: Sequence[str]
    inventory: Collection[str] | None
    stacks: bool
    tasks: bool
    clone: CloneMode | None
    keep: Callable[[Capture], None] | None
    look: Callable[[Capture], None] | None
    asking: Asking | None


def resolve(
    text: str, *, output: Path | None = None, sources: Sequence[str] = (), **how: Unpack[How]
) -> Resolved:
    """The snapshot of what ``text`` names, looked at as ``how`` says; of evidence the last and earlier ones.

    ``sources``: folders in which the source of the target's frames is looked for first. ``output`` is where
    the result will be written: never in the place of a core, of which there is one only.
    Raises TargetError or StoreError.
    """
    kind = kind_of(text)
    if kind != "live" and output is not None and _is_same(text, output):
        raise click.UsageError(f"{output} is the file to be read. Name another one with -o.")
    with progress(f"{_DOING[kind]} {without_password(text)}"):
        if kind in ("evidence", "service"):
            *earlier, snap = load_series(text, how.get("asking"))
        else:
            earlier, snap = [], snapshot(text, **how)
    root = how.get("sysroot")
    if root is None and kind == "live":
        root = f"/proc/{int(text)}/root"  # a target in another mount namespace has its sources there
    codes = snap.tables.get("code_objects", ())
    return Resolved(snap, Sources(snap.target, root, folders=sources, codes=codes), tuple(earlier))


def without_password(text: str) -> str:
    """``text``, the password of an address left out."""
    start, found, rest = text.partition("://")
    return f"{start}://{rest.rpartition('@')[2]}" if found and "@" in rest.partition("/")[0] else text


def look_at_objects(look: Callable[..., Resolved], objects: bool) -> Resolved:
    """What ``look(heap=…)`` gives with ``objects``; of a process without Python, which has none, without."""
    from diagtool.capture.errors import NoRuntime

    try:
        return look(heap=objects)
    except NoRuntime:
        if not objects:
            raise
        return look(heap=False)


#: Bytes on disk of a core up to which its heap is looked at without being asked for: about two seconds.
SMALL_CORE = 128 << 20


def looks_at_heap(text: str, wanted: bool | None) -> bool:
    """Whether the heap of what ``text`` names is to be looked at: as ``wanted``; by default of small cores.

    Of a process only when somebody asks, because it may take an injected system call. Raises TargetError.
    """
    if wanted is not None:
        return wanted
    if kind_of(text) != "core":
        return False
    with Path(text).open("rb") as file:
        plain = file.read(4) == b"\x7fELF"
        on_disk = os.fstat(file.fileno()).st_blocks * 512
    return on_disk <= (SMALL_CORE if plain else SMALL_CORE // 8)


def _is_same(text: str, output: Path) -> bool:
    try:
        return os.path.samefile(text, output)  # noqa: PTH121
    except OSError:  # not there yet
        return False
