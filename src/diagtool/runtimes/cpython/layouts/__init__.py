"""Layout tables: where CPython's structures keep their fields, for each version and flavour.

The tables are data files that ``tools/layouts/generate.py`` makes from the interpreters' own headers:

- ``"PyThreadState.interp"``: byte offset of a field from the start of its structure (of an object: from
  ``ob_refcnt`` on), nested fields with dots;
- ``"sizeof.PyThreadState"``, and ``"sizeof.PyFrameObject.f_lasti"`` for fields that are not eight bytes;
- ``"shift.…"`` and ``"width.…"`` of bit-fields, in bits from the byte at the field's offset;
- ``"const.FRAME_SUSPENDED"``: enum values and macros.

What a version does not have is missing from its table.

The tables are for x86-64 Linux and CPython as released. Known builds that differ: Debian's 3.13 has
``PyInterpreterState.gc.generations`` four bytes earlier (follow ``gc.generation0`` to the first head instead;
the three lie ``sizeof.gc_generation`` apart), and a 3.15 with the JIT has ``_PyThreadStateImpl``, and what
embeds it, eight bytes longer. From 3.13 on the process says the important offsets itself, in
``_Py_DebugOffsets``, whose own layout is in the tables too.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

__all__ = ["flavours", "known", "load"]

_HERE = Path(__file__).parent  # importlib.resources takes ten times as long to load as what it finds
_VERSION = re.compile(r"(3\.\d+)(?:\.(\d+)(?:(a|b|rc)(\d+))?)?")
_LEVELS = {"a": 0, "b": 1, "rc": 2, None: 3}


def load(version: str, flavour: str = "release") -> Mapping[str, int]:
    """The layout table of ``version`` ("3.12", or better "3.12.1", as patch releases may differ).

    ``flavour`` is one of "release", "debug", "free-threaded", "free-threaded-debug". Raises KeyError for a
    version or a flavour that no table is known for.
    """
    match = _VERSION.match(version)
    if not match or match[1] not in known():
        raise KeyError(f"no layout table for CPython {version}")
    release = (int(match[2]), _LEVELS[match[3]], int(match[4] or 0)) if match[2] else None
    return _table(match[1], release, flavour)


@functools.cache
def known() -> list[str]:
    """The minor versions that there are tables for, oldest first."""
    names = (entry.name for entry in _HERE.iterdir())
    found = (re.fullmatch(r"cpython-(3\.\d+)\.json", name) for name in names)
    return sorted((m[1] for m in found if m), key=lambda v: int(v.split(".")[1]))


def flavours(version: str) -> list[str]:
    """The flavours that the table of a minor version has. Raises KeyError for an unknown version."""
    if version not in known():
        raise KeyError(f"no layout table for CPython {version}")
    return list(_document(version)["flavours"])


@functools.cache
def opcodes(minor: str) -> dict[str, Any]:
    """Numbers of the opcodes that load names, and inline cache entries (tools/layouts/opcodes.py says more).

    Raises KeyError for an unknown version.
    """
    text = (_HERE / "opcodes.json").read_text(encoding="ascii")
    found: dict[str, Any] = json.loads(text)[minor]
    return found


@functools.cache
def _document(minor: str) -> dict[str, Any]:
    text = (_HERE / f"cpython-{minor}.json").read_text(encoding="ascii")
    document: dict[str, Any] = json.loads(text)
    return document


@functools.cache
def _table(minor: str, release: tuple[int, int, int] | None, flavour: str) -> Mapping[str, int]:
    document = _document(minor)
    if flavour not in document["flavours"]:
        raise KeyError(f"no layout table for CPython {minor}, flavour {flavour}")
    table: dict[str, int] = dict(document["flavours"][flavour])
    older = document["older"] if release else []
    nearest = [entry for entry in older if release and release <= _release(entry["until"])]
    if nearest:  # entries say what differs from the newest release, newest first: the nearest one holds
        for key, value in nearest[-1]["flavours"].get(flavour, {}).items():
            if value is None:
                table.pop(key, None)
            else:
                table[key] = value
    return MappingProxyType(table)


def _release(full: str) -> tuple[int, int, int]:
    match = _VERSION.fullmatch(full)
    if not match or not match[2]:
        raise KeyError(f"{full} is not a release")
    return int(match[2]), _LEVELS[match[3]], int(match[4] or 0)
