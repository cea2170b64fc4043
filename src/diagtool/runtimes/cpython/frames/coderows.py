"""What the running code says of itself, for who compares it with a source file: first line, lines, names.

    {"file": "/srv/app/worker.py", "function": "Worker.run", "name": "run", "first_line": 40,
     "lines": [40, 41, 43], "names": ["get", "item", "queue", "self"]}

A row of the table ``code_objects`` for each function of a program that is in a frame. The standard library's
own are left out: nobody edits these.
"""

from __future__ import annotations

from typing import Any

from diagtool.capture.memory import MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.frames.codes import Code
from diagtool.runtimes.cpython.frames.linetable import all_lines

__all__ = ("add_code_rows",)

_MAX_ROWS = 2_000
_MAX_LINES = 5_000  # of one function; of a longer one no lines are told
_MAX_NAMES = 1_000
_MAX_TEXT = 200


def add_code_rows(ctx: Context) -> None:
    """Fill the table ``code_objects`` of the snapshot that is being built."""
    rows: list[dict[str, Any]] = []
    left_out = 0
    for address, function in ctx.codes.used.items():
        code = ctx.codes.get(address)
        if code is None or not _is_told(code.filename):
            continue
        if len(rows) >= _MAX_ROWS:
            left_out += 1
            continue
        rows.append(
            {
                "file": code.filename,
                "function": function,
                "name": code.name,
                "first_line": code.first_line,
                "lines": _lines(ctx, code),
                "names": _names(ctx, code),
            }
        )
    ctx.builder.snapshot.tables["code_objects"] = rows
    if left_out:
        ctx.warn(f"the lines of {left_out:,} functions are not told: no more than {_MAX_ROWS:,} are")


def _is_told(file: str) -> bool:
    if not file.endswith(".py") or file.startswith("<"):
        return False
    return "/lib/python3" not in file or "/site-packages/" in file or "/dist-packages/" in file


def _lines(ctx: Context, code: Code) -> list[int] | None:
    """The lines that have instructions, ascending; None where they are too many."""
    ranges = code.lines
    if ranges is None:
        ranges = all_lines(ctx.objects.version, code.table, code.first_line)
    lines = sorted({line for _, _, line in ranges if line})
    return lines if len(lines) <= _MAX_LINES else None


def _names(ctx: Context, code: Code) -> list[str] | None:
    """Names of globals, attributes and locals that the code uses, sorted; None where they can't be read."""
    o = ctx.objects
    try:
        at = o.memory.u64(code.address + o.layout["PyCodeObject.co_names"])
        texts = [o.text(item) for item in o.tuple_items(at, _MAX_NAMES)]
    except MemoryFault:
        return None
    names = [*texts, *ctx.codes.local_names(code)]
    if len(names) > _MAX_NAMES or not all(isinstance(n, str) and len(n) <= _MAX_TEXT for n in names):
        return None
    return sorted({n for n in names if n})
