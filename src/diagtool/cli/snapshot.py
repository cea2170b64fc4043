"""``diagtool snapshot``: stop a process for milliseconds and keep everything in a file."""

from __future__ import annotations

import os
import re
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from diagtool.cli.duration import Duration
from diagtool.cli.options import (
    clone_option,
    color_option,
    core_options,
    native_options,
    output_option,
    target_argument,
)
from diagtool.cli.service import service_options

if TYPE_CHECKING:
    from diagtool.capture.clonemode import CloneMode
    from diagtool.cli.corefile import SlimCore
    from diagtool.cli.recording import Recorded
    from diagtool.ingest.service import Asking
    from diagtool.report.text import Line
    from diagtool.runtimes.native.stacks import Unwinder
    from diagtool.snapshot.model import Snapshot


@click.command("snapshot", short_help="Stop a process for milliseconds, keep everything in a file.")
@target_argument("target", metavar="PID", required=False)
@output_option("Write to FILE; default: diagtool-PID-TIME.diag in this folder.")
@click.option("--heap", is_flag=True, help="Count all objects by type, too, for `diagtool heap FILE.diag`.")
@click.option(
    "--core",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a slim core, too: registers, stacks, the interpreter's state, no heap. FILE.zst: compressed.",
)
@click.option(
    "--allocations",
    type=Duration(),
    metavar="TIME",
    help="First attach memray for TIME (30s, 2m), and keep where what was not freed was allocated.",
)
@native_options()
@clone_option("auto with --heap, else never")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON (diagtool.snapshot/1).")
@core_options
@service_options
@color_option
def command(
    target: str,
    output: Path | None,
    heap: bool,
    core: Path | None,
    allocations: float | None,
    native: bool | None,
    unwinder: Unwinder,
    debug_directories: tuple[str, ...],
    clone: CloneMode | None,
    as_json: bool,
    exe: str | None,
    sysroot: str | None,
    asking: Asking,
) -> int:
    """Stop a process for milliseconds and keep everything in a file.

    Threads, asyncio tasks, what each waits on and who awaits whom go into one FILE.diag, which any
    `diagtool` command reads later and elsewhere: the process is not needed any more. PID may also be a
    core file.

    The process is stopped while its registers and the memory that matters are copied: milliseconds,
    measured and printed. It never runs any code of diagtool, and it runs on whatever happens here, a
    kill -9 of diagtool included. With --heap a large process makes a frozen copy of itself, by one system
    call that is injected; --clone never forbids that.

    With --core a slim core is written besides, of the same instant and the same stop: what gdb, pystack and
    diagtool need to show threads and tasks, some MiB. The heap is not in it, unless the process is small.
    It holds memory of the process, secrets too. `diagtool core` writes a complete one.

    With --allocations memray is attached to the process for that long, before the snapshot is taken, and
    where memory was allocated that is not freed in the end is kept for `diagtool heap FILE.diag --sites`.
    With --heap, too, it is joined with the blocks of C that nothing points to any more: `diagtool heap
    FILE.diag --native` and `diagtool leaks FILE.diag` say where these were allocated; with --native by which
    C code.
    This is the one option that makes the process run foreign code: gdb injects memray, which must be
    installed for diagtool (pip install 'diagtool[memray]') and for the process. It makes the process slower
    for that time. Where it can't be attached, a warning says why, and the snapshot is taken without.

    With --url a Go service is asked, in the place of a process, that serves net/http/pprof there: for its
    goroutines, heap, contended locks and command line, never for profiles of processor time or traces. Its
    goroutines stop while their full dump is written. Where there are more of them than the limit (see
    --dump-limit), their profile is read instead, which stops nothing, and has no numbers, creators and
    times. Passwords are best given with --header @FILE.

    You must be its owner or root; `diagtool doctor PID` says what is missing.

    FILE.diag is readable by you only. It holds names, paths and simple values of the process, no memory
    contents.

    \b
    Examples:
        diagtool snapshot 4242
        diagtool snapshot 4242 -o before.diag --json
        diagtool snapshot 4242 --heap
        diagtool snapshot 4242 --core slim.core
        diagtool snapshot 4242 --allocations 30s
        diagtool snapshot 4242 --allocations 30s --heap --native
        diagtool snapshot core.4242 -o crash.diag
        diagtool snapshot --url http://127.0.0.1:6060/debug/pprof

    \b
    Exit status:
        0   written
        2   wrong usage
        3   the target could not be read, or FILE not be written
    """
    from diagtool.api import kind_of
    from diagtool.cli.output import print_text
    from diagtool.cli.target import resolve
    from diagtool.report import json as documents
    from diagtool.snapshot import store

    if kind_of(target) == "store":
        raise click.UsageError(f"{target} is a snapshot already.")
    # Before the stop: no process is stopped for a file that then can't be written.
    store.check_writable(output or Path(f".diagtool-{os.getpid()}.diag"))
    slim = None if core is None else _slim_core(target, core, output)
    with ExitStack() as stack:
        recorded = None if allocations is None else _record(target, allocations, heap, native is True)
        if recorded is not None:
            stack.callback(recorded.close)
        snap = resolve(
            target,
            exe=exe,
            sysroot=sysroot,
            output=output,
            heap=heap,
            frames=native is not False,
            unwinder=unwinder,
            debug_directories=debug_directories,
            clone=clone,
            keep=None if slim is None else slim.write,
            look=None if recorded is None else recorded.look,
            asking=asking,
        ).snapshot
        if recorded is not None:
            recorded.add_to(snap)
    path = output or _free_name(snap)
    store.save(snap, path)
    if slim is not None and slim.error is not None:
        core = None
    if as_json:
        written = None if core is None else str(core)
        print_text(documents.dumps(documents.snapshot(snap, str(path), written)), None)
    else:
        _tell(snap, path, core)
    if slim is not None and slim.error is not None:
        raise slim.error
    return 0


def _record(target: str, seconds: float, heap: bool, native: bool) -> Recorded:
    from diagtool.api import kind_of
    from diagtool.cli.progress import progress
    from diagtool.cli.recording import recorded

    if kind_of(target) != "live":
        raise click.UsageError(f"{target} is no process: --allocations watches a running one.")
    with progress(f"memray records for {seconds:g} s"):
        return recorded(int(target), seconds, each=heap, native=native)


def _slim_core(target: str, path: Path, output: Path | None) -> SlimCore:
    from diagtool.api import kind_of
    from diagtool.cli.corefile import SlimCore

    if kind_of(target) != "live":
        raise click.UsageError(f"{target} is no process: --core writes the core of a running one.")
    if output is not None and output.absolute() == path.absolute():
        raise click.UsageError(f"{path} can't be both the snapshot and the core.")
    return SlimCore(path)


def _free_name(snap: Snapshot) -> Path:
    # A second snapshot within the second must not replace the first.
    at = snap.target.captured_at or 0.0
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at if 0 < at < 2**32 else time.time()))
    name = snap.target.pid or re.sub(r"[^\w.-]+", "_", snap.target.host or "") or "unknown"
    stem = f"diagtool-{name}-{stamp}"
    names = (Path(f"{stem}{suffix}.diag") for suffix in ("", *(f"-{i}" for i in range(2, 1000))))
    return next((name for name in names if not os.path.lexists(name)), Path(f"{stem}-{os.getpid()}.diag"))


def _tell(snap: Snapshot, path: Path, core: Path | None) -> None:
    from diagtool.cli.output import print_lines, width
    from diagtool.report import json as documents
    from diagtool.report.terminal import View, about, warnings
    from diagtool.report.text import clean, count, size

    threads = len(snap.threads) or snap.count("thread")
    counted = {"thread": threads, "task": documents.live_tasks(snap), "goroutine": snap.count("goroutine")}
    said = [count(n, name) for name, n in counted.items() if n or (name != "goroutine" and threads)]
    what = f"{count(len(snap.stacks), 'stack')}" + (f": {', '.join(said)}" if said else "")
    file = clean(str(path))
    lines = [
        *warnings(snap.warnings, View(width(None))),
        [(file, "own"), (f"  {size(path.stat().st_size)}", "")],
        *([] if core is None else [_core_line(core)]),
        [(what, "count"), (about(snap.target, snap.pause_ms), "")],
        [("read it with: ", "label"), (f"diagtool leaks {file}", "")],
    ]
    print_lines(lines, None)


def _core_line(path: Path) -> Line:
    from diagtool.report.text import clean, size

    return [(clean(str(path)), "own"), (f"  {size(path.stat().st_blocks * 512)}, a slim core", "")]
