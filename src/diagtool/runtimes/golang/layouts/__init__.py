"""Layout tables: where Go's runtime keeps its fields, for each minor version and machine.

``tools/layouts/go.py`` makes the tables from what the toolchains' linkers wrote: names as in debug
information (``runtime.g.goid``, fields of fields with dots), ``runtime.g:size`` for sizes in bytes, constants
of the runtime, and the texts of wait reasons by number. What a version does not have is missing.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Layout", "known", "load"]

_HERE = Path(__file__).parent
_VERSION = re.compile(r"go1\.(\d+)")


@dataclass(frozen=True, slots=True)
class Layout:
    """Offsets and constants of one minor version of Go on one machine.

    ``version``: of the toolchain that the table is from. ``fields``: bytes; ``wait_reasons``: texts.
    """

    version: str
    machine: str
    fields: dict[str, int]
    constants: dict[str, int]
    wait_reasons: tuple[str, ...]


@functools.cache
def known() -> tuple[int, ...]:
    """The minor versions (19 is Go 1.19) that there are tables for, oldest first."""
    found = (re.fullmatch(r"go-1\.(\d+)\.json", entry.name) for entry in _HERE.iterdir())
    return tuple(sorted(int(m[1]) for m in found if m))


def minor_of(version: str) -> int | None:
    """22 for "go1.22.10"; None where this is no version ("devel go1.23-abc" is that of 1.23)."""
    found = _VERSION.search(version)
    return int(found[1]) if found else None


@functools.cache
def load(minor: int, machine: str) -> Layout:
    """The table of Go 1.``minor``; ``machine``: x86_64 or aarch64. Raises KeyError for what is not known."""
    if minor not in known() or machine not in ("x86_64", "aarch64"):
        raise KeyError(f"no layout of Go 1.{minor} on {machine}")
    table = json.loads((_HERE / f"go-1.{minor}.json").read_text())
    first = table["x86_64"]
    fields, constants = first["fields"], first["constants"]
    if machine == "aarch64":
        own = table["aarch64"]
        fields = _laid_over(fields, own["fields"], own["absent"]["fields"])
        constants = _laid_over(constants, own["constants"], own["absent"]["constants"])
    return Layout(table["version"], machine, fields, constants, tuple(first["wait_reasons"]))


def _laid_over(table: dict[str, int], changed: dict[str, int], absent: list[str]) -> dict[str, int]:
    out = {**table, **changed}
    for name in absent:
        out.pop(name, None)
    return out
