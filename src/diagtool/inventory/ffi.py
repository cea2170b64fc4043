"""Every library that a process has mapped: which it is, why it is there, and whether its file still is.

    version  why           library
    2.36     dependency    /usr/lib/x86_64-linux-gnu/libc.so.6
    3.23     dependency    /app/numpy.libs/libopenblas64_p-r0-0cf96a72.3.23.so   2 of this are mapped
             extension     /app/numpy/core/_multiarray_umath.cpython-312-x86_64-linux-gnu.so
    1.1      loaded later  /opt/vendor/libclient.so.1.1                          replaced on disk

What Python has to say (which libraries are extension modules, what ctypes and cffi loaded) is joined from the
tables ``python_libraries`` and ``ffi_libraries``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from diagtool.capture.linking import Linking, linking_of
from diagtool.capture.model import Capture, Mapping
from diagtool.capture.modules import Module
from diagtool.capture.ondisk import DELETED, on_disk
from diagtool.inventory.libversions import base_name, version_of
from diagtool.snapshot.model import Snapshot

__all__ = ["add"]

Row = dict[str, Any]

_MOST = 5_000  # libraries
_MOST_NAMES = 5  # of those that need a library
_VDSO = "[vdso]"
_LOADERS = ("ld-linux", "ld-2.", "ld-musl", "ld.so")


def add(capture: Capture, snapshot: Snapshot) -> None:
    """Add the table ``libraries``, a row a mapped file with code, by address.

    ``path``, ``name`` (without folder), ``soname``, ``build_id``, ``version`` and ``version_from`` (see
    ``libversions.version_of``), ``address``, ``bytes`` (mapped).

    ``role``: "executable", "loader", "vdso", "interpreter" (of Python), "extension" (of ``modules``, names in
    sys.modules), "dependency" (of the executable, an extension or a library that was loaded later;
    ``needed_by`` has names of those that ask for it), "preloaded", or "loaded" (by dlopen: ``loaded_by`` is
    "ctypes" or "cffi" where an object of theirs holds it).

    ``copies``: other paths of the same library. ``on_disk``: "same", "replaced", "deleted"; null where it is
    not known, as in a core; ``disk_build_id`` of the file that took its place. ``writable_code``: bytes that
    are writable and executable; ``executable_stack``, ``relocates_text``, ``relro`` ("full", "partial",
    "none"). ``threads``: how many began in it. ``executable_stacks``, of the executable alone: threads whose
    stack can be executed now.
    """
    every = mapped_once(capture.modules, capture.mappings)
    modules = every[:_MOST]
    links = {m.start: linking_of(m, capture.memory) for m in modules}
    mapped: dict[str, list[Mapping]] = defaultdict(list)
    for mapping in capture.mappings:
        mapped[mapping.path].append(mapping)
    rows = [_row(capture, m, links[m.start], mapped[m.path]) for m in modules]
    _roles(rows, modules, links, capture, snapshot)
    _copies(rows)
    started: dict[str, int] = defaultdict(int)
    for thread in snapshot.tables.get("native_threads", ()):
        if isinstance(thread.get("library"), str):
            started[thread["library"]] += 1
    for row in rows:
        row["threads"] = started[row["path"]]
        row["executable_stacks"] = _executable_stacks(capture) if row["role"] == "executable" else 0
    snapshot.tables["libraries"] = rows
    if len(every) > len(modules):
        snapshot.warnings.append(f"{len(every):,} libraries are mapped: {_MOST:,} are told")


def mapped_once(modules: Sequence[Module], mappings: Sequence[Mapping]) -> list[Module]:
    """``modules`` without parts of a file that is there as a whole, mapped once more: V8 has its own code so,
    near to the code that it makes."""
    offsets = {m.start: m.offset for m in mappings}
    whole = {m.path for m in modules if not offsets.get(m.start, 0)}
    return [m for m in modules if not offsets.get(m.start, 0) or m.path not in whole]


def _row(capture: Capture, module: Module, linking: Linking | None, mapped: Sequence[Mapping]) -> Row:
    own = [m for m in mapped if module.contains(m.start)]
    path = module.path.removesuffix(DELETED)
    # The vDSO's symbols have versions of their own, which say nothing of the kernel's.
    version, version_from = version_of(module, linking, capture.memory) if path != _VDSO else (None, None)
    row: Row = {
        "path": path,
        "name": path.rpartition("/")[2],
        "soname": linking.soname if linking is not None else None,
        "build_id": module.build_id,
        "version": version,
        "version_from": version_from,
        "address": module.start,
        "bytes": sum(m.end - m.start for m in own),
        "role": "loaded",
        "modules": [],
        "needed_by": [],
        "loaded_by": None,
        "copies": [],
        "on_disk": None,
        "disk_build_id": None,
        "writable_code": sum(m.end - m.start for m in own if "w" in m.permissions and "x" in m.permissions),
        "executable_stack": linking.executable_stack if linking is not None else None,
        "relocates_text": linking.relocates_text if linking is not None else None,
        "relro": linking.relro if linking is not None else None,
    }
    if capture.kind == "live" and own and path != _VDSO:
        state = on_disk(capture.process.pid, _first(own), module.build_id)
        row["on_disk"], row["disk_build_id"] = state.state, state.build_id
    return row


def _executable_stacks(capture: Capture) -> int:
    ranges = sorted((m.start, m.end) for m in capture.mappings if m.permissions[1:3] == "wx")
    pointers = [t.registers.get("rsp", 0) for t in capture.threads]
    places = [bisect_right(ranges, (p, 1 << 64)) - 1 for p in pointers]
    return sum(i >= 0 and p < ranges[i][1] for i, p in zip(places, pointers, strict=True))


def _first(mappings: Sequence[Mapping]) -> Mapping:
    return min(mappings, key=lambda m: m.offset)


# --- why it is there ---------------------------------------------------------------------------------------


def _roles(
    rows: list[Row],
    modules: Sequence[Module],
    links: dict[int, Linking | None],
    capture: Capture,
    snapshot: Snapshot,
) -> None:
    by_path = defaultdict(list)
    for row in rows:
        by_path[row["path"]].append(row)
    for path, what, by in _known(capture, snapshot):
        for row in by_path.get(path, ()):
            if what == "extension":
                row["modules"] = [*row["modules"], by][:_MOST_NAMES]
            if what == "loaded":
                row["loaded_by"] = by
            if row["role"] == "loaded" or what == "executable":
                row["role"] = what
    for row in rows:
        if row["path"] == _VDSO:
            row["role"] = "vdso"
        elif row["role"] == "loaded" and row["name"].startswith(_LOADERS):
            row["role"] = "loader"
    needs = _needs(rows, modules, links)
    for row, needed in zip(rows, needs, strict=True):
        for other in needed:
            if other["role"] == "loaded" and other["loaded_by"] is None:
                other["role"] = "dependency"
            if len(other["needed_by"]) < _MOST_NAMES and row["name"] not in other["needed_by"]:
                other["needed_by"].append(row["name"])
    by_address = {m.start: m for m in modules}
    preloaded = capture.process.environ.get("LD_PRELOAD", "").replace(":", " ").split()
    for row in rows:
        if row["role"] == "loaded" and any(row["name"] == p.rpartition("/")[2] for p in preloaded):
            row["role"] = "preloaded"
        elif row["role"] == "loaded" and _is_extension(row, by_address[row["address"]]):
            row["role"] = "extension"


def _known(capture: Capture, snapshot: Snapshot) -> Iterable[tuple[str, str, str]]:
    """(path, role, by whom) as process and Python say it."""
    if capture.process.exe:
        yield capture.process.exe.removesuffix(DELETED), "executable", ""
    for row in snapshot.tables.get("python_libraries", ()):
        path = row.get("library")
        if isinstance(path, str):
            module = row.get("module")
            yield path, "interpreter" if module is None else "extension", str(module)
    for row in snapshot.tables.get("ffi_libraries", ()):
        if isinstance(row.get("library"), str):
            yield row["library"], "loaded", str(row.get("by"))


# An extension module that is in no sys.modules (any more) still has the function that makes the module.
def _is_extension(row: Row, module: Module) -> bool:
    stem = row["name"].partition(".")[0]
    return module.symbol(f"PyInit_{stem}") is not None


def _needs(rows: list[Row], modules: Sequence[Module], links: dict[int, Linking | None]) -> list[list[Row]]:
    """The libraries that each one asks for, as rows: of several of a name those in its own folder first."""
    by_name: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        for name in {row["name"], row["soname"] or row["name"]}:
            by_name[name].append(row)
    out = []
    for row, module in zip(rows, modules, strict=True):
        linking = links[module.start]
        found = []
        for name in linking.needed if linking is not None else ():
            candidates = by_name.get(name.rpartition("/")[2], ())
            if candidates:
                found.append(max(candidates, key=lambda c: _shared(c["path"], row["path"])))
        out.append(found)
    return out


def _shared(one: str, other: str) -> int:
    """How many folders two paths have in common."""
    count = 0
    for a, b in zip(one.split("/"), other.split("/"), strict=False):
        if a != b:
            break
        count += 1
    return count


def _copies(rows: list[Row]) -> None:
    """Paths of the same library: the same soname or base name. Extensions may be called alike by chance."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["role"] not in ("extension", "executable", "vdso", "loader"):
            names = {base_name(row["path"])} | ({row["soname"]} if row["soname"] else set())
            for name in names:
                groups[name].append(row)
    for group in groups.values():
        for row in group:
            others = {o["path"] for o in group if o is not row} - set(row["copies"])
            row["copies"] = sorted({*row["copies"], *others})[:_MOST_NAMES]
