"""``diagtool core``: a core file of a process that hardly has to stop for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from diagtool.cli.options import color_option, output_option, target_argument

if TYPE_CHECKING:
    from diagtool.capture.clonemode import CloneMode

_EVERYTHING = 1 << 40  # bytes: what of it fits in memory is copied in the stop where there is no image


@click.command("core", short_help="Write a core of a process that hardly has to stop.")
@target_argument("target", metavar="PID")
@output_option("Write to FILE; default: core.PID in this folder.")
@click.option("--compress", type=click.Choice(["zstd"]), help="Write it compressed: FILE.zst by default.")
@click.option(
    "--clone",
    type=click.Choice(["auto", "always"]),
    default="auto",
    show_default=True,
    help="always: only from a copy-on-write image, else not at all.",
)
@color_option
def command(target: str, output: Path | None, compress: str | None, clone: str) -> int:
    """Write a core of a process that hardly has to stop for it.

    The process is stopped for as long as it takes to make a copy-on-write image of it, about 20 ms a GiB of
    memory, measured and printed. The core is written from the image while the process runs on. gdb, drgn,
    pystack and diagtool open it like one of the kernel.

    Where no image can be made (a seccomp filter, no more processes allowed, little memory), what fits is
    copied in one longer stop, and a warning says so.

    FILE holds all memory of the process, secrets too: it is readable by you only. It is sparse: `ls -s`
    says what it takes. It appears when it is complete.

    \b
    Examples:
        diagtool core 4242
        diagtool core 4242 -o /var/tmp/core.zst --compress zstd
        gdb python3 core.4242

    \b
    Exit status:
        0   written
        2   wrong usage
        3   the process could not be read, or FILE not be written
    """
    from diagtool.cli.corefile import replaced, write
    from diagtool.cli.progress import progress

    if not (target.isascii() and target.isdigit() and 0 < len(target) < 10):
        raise click.UsageError(f"{target} is no process id.")
    path = output or Path(f"core.{target}" + (".zst" if compress else ""))
    from diagtool.capture.corewriter import write_core
    from diagtool.capture.live import capture_live

    # Of small processes, too: what a copy in the stop leaves out as dead belongs into a core.
    mode: CloneMode = "always" if clone == "always" else "auto"
    with (
        replaced(path) as file,
        progress(f"writing {path}"),
        capture_live(int(target), clone=mode, image_from=0, max_copy=_EVERYTHING, vectors=True) as capture,
    ):
        held = write(capture, file, compress, write_core)
        pause, warnings = capture.pause_ms or 0.0, list(capture.warnings)
        threads = len(capture.threads)
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    taken = path.stat().st_blocks * 512
    click.echo(
        f"{path}: {threads} threads, {held >> 20:,} MiB of memory, {taken >> 20:,} MiB on disk · "
        f"stopped for {pause:.1f} ms"
    )
    return 0
