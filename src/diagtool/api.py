"""The public functions of diagtool. ``import diagtool`` gives them; this module is imported on first use."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from diagtool.capture.errors import NoSuchTarget, NotPermitted, NotSupported, TargetError

# All else is imported where it is needed: a view of a process that takes half a second is to be no longer.
if TYPE_CHECKING:
    from typing_extensions import Unpack

    from diagtool.capture.clonemode import CloneMode
    from diagtool.capture.model import Capture
    from diagtool.ingest.service import Asking
    from diagtool.leaks.model import Report
    from diagtool.leaks.source.files import Sources
    from diagtool.runtimes.decode import Decoding
    from diagtool.runtimes.native.stacks import Unwinder
    from diagtool.snapshot.model import Snapshot

#: What names a target: a pid as a number or in digits, or the path of a core or .diag file.
TargetName = int | str | os.PathLike[str]

#: No Linux has larger ones (PID_MAX_LIMIT, include/linux/threads.h).
_MAX_PID = 1 << 22
_LITTLE = 16 << 20  # bytes copied in the stop where nobody looks at stacks or objects


def kind_of(target: TargetName) -> Literal["live", "core", "store", "evidence", "service"]:
    """What ``target`` names. Files are told by their content, digits are a pid unless a file is so called.

    What starts with http:// or https:// is a service.

    Raises NoSuchTarget, NotPermitted or NotSupported.
    """
    if isinstance(target, int):
        return "live"
    text = os.fspath(target)
    if text.lower().startswith(("http://", "https://")):
        return "service"
    path = Path(text)
    try:
        if not text:  # of which Path makes "."
            raise NoSuchTarget("the target has no name", "Name a process id, a core file or a .diag file.")
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "not a plain file"
            raise NotSupported(f"{text} is {what}", "Name a process id, a core file or a .diag file.")
        from diagtool.snapshot import store

        with path.open("rb") as file:
            head = file.read(256)
        if store.is_store(head):
            return "store"
        if head.startswith(b"\x7fELF"):
            return "core"
        from diagtool.ingest import reader_of

        return "core" if reader_of(text) is None else "evidence"
    except PermissionError:
        raise NotPermitted(
            f"{text} may not be read by this user", "Try it as its owner, or with sudo."
        ) from None
    except (OSError, ValueError) as error:
        if isinstance(target, str) and text.isascii() and text.isdigit():
            return "live"
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            message = f"there is no file {text}"
        else:
            message = f"{text} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise NoSuchTarget(message, "Name a process id, a core file or a .diag file.") from None


def capture(
    target: TargetName,
    *,
    exe: str | os.PathLike[str] | None = None,
    sysroot: str | os.PathLike[str] | None = None,
    clone: CloneMode = "never",
    image_from: int | None = None,
) -> Capture:
    """Capture a process (pid) or open a core (path). Close it, or use it in a ``with`` statement.

    The process is stopped for milliseconds (``Capture.pause_ms``). ``exe`` and ``sysroot`` say where the
    files of a core from another machine are. ``clone`` allows a copy-on-write image of a process, of a large
    one ("auto") or of any ("always"): a system call is injected for it. ``image_from``: bytes of memory from
    which on a process is a large one (32 MiB). Raises TargetError (``diagtool.capture.errors``).
    """
    kind = kind_of(target)
    if kind == "live":
        from diagtool.capture.clonemode import AUTO_BYTES
        from diagtool.capture.live import capture_live

        return capture_live(
            _pid(target), clone=clone, image_from=AUTO_BYTES if image_from is None else image_from
        )
    if kind == "core":
        from diagtool.capture.core import open_core

        return open_core(
            os.fspath(target),  # type: ignore[arg-type]  # an int is live
            exe=None if exe is None else os.fspath(exe),
            sysroot=None if sysroot is None else os.fspath(sysroot),
        )
    if kind == "service":
        raise NotSupported(f"{target} gives no memory", "Ask it with snapshot().")
    raise NotSupported(f"{target} is a snapshot already", "Read it with load().")


def snapshot(
    target: TargetName,
    *,
    exe: str | os.PathLike[str] | None = None,
    sysroot: str | os.PathLike[str] | None = None,
    heap: bool = False,
    why: str | None = None,
    graph: bool | None = None,
    values: str | None = None,
    native: bool | None = None,
    frames: bool = True,
    unwinder: Unwinder = "auto",
    debug_directories: Sequence[str] = (),
    inventory: Collection[str] | None = None,
    stacks: bool = True,
    tasks: bool = True,
    clone: CloneMode | None = None,
    keep: Callable[[Capture], None] | None = None,
    look: Callable[[Capture], None] | None = None,
    asking: Asking | None = None,
) -> Snapshot:
    """The decoded state of a process (pid), a core, a .diag file or what other tools wrote (path).

    Or what a Go service tells that serves net/http/pprof (its address, ``asking`` says how it is asked).

    Of a file with several dumps the last one; :func:`load_series` gives all.
    ``heap`` counts all objects of a process or core by type, too (``Snapshot.tables["heap_types"]``);
    ``why``, the name of a type or the address of an object in hex, finds out who keeps it (``"heap_ways"``).
    ``values``, the name of a type, shows examples of it, shortened and without secrets (``"heap_values"``).
    ``graph`` finds out what each type, module and large container keeps (``"heap_retained"``).
    ``native`` reads the heap of the C library (``"native_heap"`` and others); without it as ``heap`` says.
    ``frames``: with native frames, found by ``unwinder`` ("auto", "drgn" or "gdb"); separate debug files are
    looked for in ``debug_directories``, too. ``inventory`` names the parts of ``diagtool.inventory`` that are
    taken; without it all are.
    ``stacks``: False leaves out threads, tasks and objects, and nearly all of the copying in the stop: for
    parts of the inventory that need none of it. ``tasks``: False leaves out what is no thread, who keeps what
    is waited on and who can still wake whom; then nothing can be judged. ``clone``: see :func:`capture`;
    without it "auto" where the heap is looked at, else "never". ``keep`` is given the capture when it is
    decoded, before it is closed; its memory knows what was read for that.
    ``look`` is given it, too, for what was found on the way (``Capture.found``).
    Raises TargetError (``diagtool.capture.errors``), or StoreError for a .diag file.
    """
    kind = kind_of(target)
    if kind == "store":
        return load(os.fspath(target))  # type: ignore[arg-type]  # an int is live
    if kind in ("evidence", "service"):
        return load_series(os.fspath(target), asking)[-1]  # type: ignore[arg-type]
    if not stacks:
        return _outline(target, exe, sysroot, inventory)
    native = heap if native is None else native
    mode = clone or ("auto" if heap or native or why is not None else "never")
    # Who asks for signals asks for their handlers, which only an image tells, of a small process too.
    image_from = 0 if inventory is not None and "signals" in inventory else None
    with capture(target, exe=exe, sysroot=sysroot, clone=mode, image_from=image_from) as captured:
        if keep is not None:
            captured.memory.watch()
        snap = snapshot_of(
            captured,
            heap=heap,
            why=why,
            graph=graph,
            values=values,
            native=native,
            frames=frames,
            unwinder=unwinder,
            debug_directories=debug_directories,
            inventory=inventory,
            tasks=tasks,
        )
        if look is not None:
            look(captured)
        if keep is not None:
            keep(captured)
        return snap


def snapshot_of(
    captured: Capture, *, inventory: Collection[str] | None = None, **asked: Unpack[Decoding]
) -> Snapshot:
    """The decoded state of what was captured already; the capture stays open. See :func:`snapshot`."""
    from diagtool.inventory import add_inventory
    from diagtool.inventory.crash import add_crash
    from diagtool.runtimes.decode import decode

    try:
        snap = decode(captured, **asked)
        if inventory is None or inventory:
            from diagtool.runtimes.nativethreads import add_native_threads

            add_native_threads(captured, snap)
        if inventory is None or "memory" in inventory:
            from diagtool.runtimes.owners import add_owners

            add_owners(captured, snap)
        add_crash(captured, snap)
        add_inventory(captured, snap, inventory)
    except TargetError as error:
        # What was missing when it was opened, a core cut off, say, is most likely why.
        if captured.warnings:
            error.hint = f"{captured.warnings[0].rstrip('.')}. {error.hint}"
        raise
    return snap


# Without stacks: what the inventory has to say, of a capture that copies little.
def _outline(
    target: TargetName,
    exe: str | os.PathLike[str] | None,
    sysroot: str | os.PathLike[str] | None,
    inventory: Collection[str] | None,
) -> Snapshot:
    from diagtool.capture.live import capture_live
    from diagtool.inventory import add_inventory
    from diagtool.runtimes.owners import add_owners, outline

    live = kind_of(target) == "live"
    with (
        capture_live(_pid(target), max_copy=_LITTLE) if live else capture(target, exe=exe, sysroot=sysroot)
    ) as captured:
        snap = outline(captured)
        add_owners(captured, snap)
        add_inventory(captured, snap, inventory)
        return snap


def load(path: str | os.PathLike[str]) -> Snapshot:
    """The snapshot in a .diag file. Raises StoreError."""
    from diagtool.snapshot import store

    return store.load(path)


def load_series(path: str | os.PathLike[str], asking: Asking | None = None) -> list[Snapshot]:
    """All snapshots in a file, oldest first: a log may hold several goroutine dumps; a .diag file has one.

    ``path`` may be the address of a service, too, which is asked as ``asking`` says.
    Raises TargetError (``diagtool.capture.errors``), or StoreError for a .diag file.
    """
    kind = kind_of(path)
    if kind == "store":
        return [load(path)]
    if kind == "service":
        from diagtool.ingest.service import read_service

        return read_service(os.fspath(path), asking)
    from diagtool.ingest import read_evidence

    return read_evidence(path)


def find_leaks(
    snapshots: Snapshot | Sequence[Snapshot],
    *,
    templates: str | os.PathLike[str] | None = None,
    min_count: int | None = None,
    baseline: str | os.PathLike[str] | None = None,
    sources: Sequence[str | os.PathLike[str]] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Report:
    """What leaked or hangs, by verdict.

    Of several snapshots of one process, oldest first, only what persisted or grew is reported. ``templates``
    is a folder with leak templates to use besides our own. ``min_count`` is the least number of stacks of a
    finding, in the place of each template's own. ``baseline`` is a file with what is known
    (docs/baseline.md): it moves to ``Report.ignored``; none is looked for. ``sources`` are folders in which
    the program's source is looked for before the place where it was; an empty list: it is not looked at.
    ``labels``: only stacks that have all of these are told of (profiler labels, context variables).
    Raises TemplateError
    (``diagtool.leaks.template``), and BaselineError (``diagtool.leaks.baseline``).
    """
    from diagtool.leaks import find_leaks as find
    from diagtool.leaks.template import library
    from diagtool.snapshot.model import Snapshot

    series = [snapshots] if isinstance(snapshots, Snapshot) else list(snapshots)
    chosen = library(None if templates is None else Path(templates))
    source = _sources(series, sources)
    wanted = tuple((labels or {}).items())
    if baseline is None:
        return find(series, templates=chosen, min_count=min_count, sources=source, labels=wanted)
    from diagtool.leaks.baseline import apply, read

    known = read(Path(baseline))  # before the work, which a mistake in it must not cost
    report = find(series, templates=chosen, min_count=min_count, sources=source, labels=wanted)
    return apply(report, known)


def _sources(series: Sequence[Snapshot], folders: Sequence[str | os.PathLike[str]] | None) -> Sources | None:
    if not series or (folders is not None and not folders):
        return None
    from diagtool.leaks.source.files import Sources

    last = series[-1]
    return Sources(last.target, folders=folders or (), codes=last.tables.get("code_objects", ()))


def _pid(target: TargetName) -> int:
    digits = str(target)
    pid = int(digits) if len(digits) < 20 else _MAX_PID
    if not 0 < pid < _MAX_PID:
        raise NoSuchTarget(f"there is no process {target}", "`ps` lists the processes.")
    return pid
