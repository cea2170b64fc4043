"""The report of ``diagtool ffi``: libraries, what Python holds of C and C of Python, threads of C.

    version  why                 library
    2.36     dependency          libc.so.6
    3.0.19   dependency          libcrypto.so.3
                                 replaced on disk: what runs is not what the file holds now
             extension           _ssl.cpython-312-x86_64-linux-gnu.so (module _ssl)

    callbacks  by      call
        1,500  ctypes  app.on_event (app.py:41)

    threads  running  started by
         15       15  libgomp.so.1.0.0: OpenMP, limited by OMP_NUM_THREADS

What makes no sense in a stored table is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from diagtool.report.ffirows import Row, against, rows
from diagtool.report.terminal import View, closing, warnings
from diagtool.report.text import Line, cells, clean, count, cut, pad, size, wrap
from diagtool.snapshot.model import Snapshot

__all__ = ["LIMIT", "lines"]

#: Rows of each part that are shown unless all are asked for.
LIMIT = 15
_ROLES = ("loaded", "preloaded", "extension", "dependency", "interpreter", "executable", "loader", "vdso")
_MOST_PLACES = 3

_Columns = Sequence[tuple[str, Callable[[Row], str]]]


def lines(snapshot: Snapshot, view: View) -> Iterator[Line]:
    """All parts that there is something to say of, and what is not known."""
    libraries = sorted(rows(snapshot, "libraries"), key=_rank)
    yield from _libraries(libraries, view)
    for table, columns in _PARTS.items():
        yield from _part(rows(snapshot, table), columns, view)
    threads = rows(snapshot, "native_threads")
    own = {r.get("library") for r in snapshot.tables.get("python_libraries", ()) if r.get("module") is None}
    own |= {row["path"] for row in libraries if row["role"] == "executable"}
    shown = [t for t in threads if not t["python"] or t["library"] not in (None, *own)]
    where = "not started by Python, in" if "python_libraries" in snapshot.tables else "began in"
    yield from _threads(shown, rows(snapshot, "thread_pools"), where, _processors(snapshot), view)
    if "ffi_functions" not in snapshot.tables and "python_libraries" in snapshot.tables:
        said = "what Python holds of C is not known: its heap was not looked at"
        yield [(said, "warning")]
        yield []
    if snapshot.target.kind == "core":
        yield [("a core does not tell whether the files on disk are still those that ran", "label")]
        yield []
    yield from warnings(snapshot.warnings, view)
    odd = sum(any(_odd(row, view)) for row in libraries)
    said = count(len(libraries), "mapped file") + " with code" + (f", {odd:,} to look at" if odd else "")
    native = sum(not t["python"] for t in threads)
    said += f", {count(native, 'thread')}"
    said += " that no interpreter knows" if snapshot.target.runtime != "native" else ""
    yield from closing(said, snapshot.target, snapshot.pause_ms, view)


# What is odd first, then what somebody loaded, the rest by name.
def _rank(row: Row) -> tuple[bool, int, str]:
    role = _ROLES.index(row["role"]) if row["role"] in _ROLES else len(_ROLES)
    odd = row["on_disk"] in ("replaced", "deleted") or row["copies"] or row["writable_code"]
    return not (odd or row["executable_stack"] or row["executable_stacks"]), role, row["name"]


def _libraries(found: list[Row], view: View) -> Iterator[Line]:
    shown = found if view.idle else found[:LIMIT]
    head = ("version", "why", "library")
    table = [(_version(r), _why(r), clean(r["path"] if view.verbose else r["name"], 300)) for r in shown]
    widths = [max(cells(line[i]) for line in [head, *table]) for i in range(2)]
    if shown:
        yield [(f"{pad(head[0], widths[0])}  {pad(head[1], widths[1])}  {head[2]}", "label")]
    indent = sum(widths) + 4
    for row, (version, why, name) in zip(shown, table, strict=True):
        modules = f"  (module {', '.join(row['modules'])})" if row["modules"] else ""
        text = name + (clean(modules, 200) if view.verbose or row["modules"][1:] else "")
        room = max(view.width - indent, 30)
        yield [(f"{pad(version, widths[0])}  {pad(why, widths[1])}  ", ""), (cut(text, room), "own")]
        for note, style in [(n, "warning") for n in _odd(row, view)] + [
            (n, "label") for n in _more(row, view)
        ]:
            for part in wrap(clean(note, 1000), view.width - indent - 2):
                yield [(" " * (indent + 2) + part, style)]
    if len(found) > len(shown):
        roles = Counter(r["role"] for r in found[len(shown) :])
        said = ", ".join(f"{n:,} {role}" for role, n in roles.most_common())
        yield [(f"… {len(found) - len(shown):,} more: {clean(said, 200)} (--all)", "label")]
    if found:
        yield []


def _version(row: Row) -> str:
    if row["version"] is None:
        return ""
    least = "≥ " if row["version_from"] == "symbols" else ""
    return cut(least + clean(row["version"], 40), 14)


def _why(row: Row) -> str:
    if row["loaded_by"]:
        return clean(f"by {row['loaded_by']}", 24)
    return "loaded later" if row["role"] == "loaded" else clean(row["role"], 24)


def _odd(row: Row, view: View) -> Iterator[str]:
    """What is to be looked at."""
    if row["on_disk"] == "replaced":
        now = f" (build-id {row['disk_build_id']})" if row["disk_build_id"] and view.verbose else ""
        yield f"replaced on disk: what runs is not what the file holds now{now}"
    elif row["on_disk"] == "deleted":
        yield "deleted on disk: there is no file of this name any more"
    if row["copies"]:
        others = row["copies"] if view.verbose else row["copies"][:2]
        more = len(row["copies"]) - len(others)
        yield "another copy is mapped: " + ", ".join(others) + (f" and {more} more" if more else "")
    if row["writable_code"]:
        yield f"{size(row['writable_code'])} of it can be written to and executed"
    if row["executable_stack"]:
        yield "asks for stacks that can be executed"
    if row["executable_stacks"]:
        yield f"the stacks of {count(row['executable_stacks'], 'thread')} can be executed"


def _more(row: Row, view: View) -> Iterator[str]:
    if view.verbose and row["relocates_text"]:
        yield "its code is relocated when it is loaded (text relocations)"
    if view.verbose and row["needed_by"]:
        yield "needed by " + ", ".join(row["needed_by"])
    if view.verbose and row["build_id"]:
        yield f"build-id {row['build_id']}"


def _part(found: list[Row], columns: _Columns, view: View, after: str | None = None) -> Iterator[Line]:
    shown = found if view.idle else found[:LIMIT]
    table = [[cell(row) for _, cell in columns] for row in shown]
    heads = [head for head, _ in columns]
    if not table:
        return
    widths = [max(cells(line[i]) for line in [heads, *table]) for i in range(len(columns) - 1)]
    for number, line in enumerate([heads, *table]):
        text = ""
        for width, cell, head in zip(widths, line, heads, strict=False):
            left = head in _TEXTS
            text += (pad(cell, width) if left else " " * (width - cells(cell)) + cell) + "  "
        room = max(view.width - cells(text), 20)
        yield [(text + cut(line[-1], room), "" if number else "label")]
    if len(found) > len(shown):
        yield [(f"… {len(found) - len(shown):,} more (--all)", "label")]
    if after is not None:
        yield [(after, "label")]
    yield []


#: Columns of text, which begin at the left.
_TEXTS = ("by", "kind")


def _number(key: str) -> Callable[[Row], str]:
    return lambda row: f"{row[key]:,}"


def _size(key: str) -> Callable[[Row], str]:
    return lambda row: size(row[key])


def _text(key: str) -> Callable[[Row], str]:
    return lambda row: clean(row[key] or "?", 200)


def _file(path: str | None) -> str:
    return clean((path or "?").rpartition("/")[2], 120)


def _called(row: Row) -> str:
    text = clean(row["function"], 200)
    if row["file"]:
        text += f" ({_file(row['file'])}" + (f":{row['line']})" if row["line"] is not None else ")")
    if row.get("instances"):
        text += f", bound to {row['instances']:,} {clean(row['of'] or 'objects', 80)}"
    return text


def _function(row: Row) -> str:
    if row["library"] is None:
        return "code made while it ran (callbacks)"
    symbol, library = clean(row["symbol"] or "?", 120), _file(row["library"])
    return symbol if symbol.startswith(library) else f"{symbol} in {library}"


def _buffer(row: Row) -> str:
    parts = []
    if row["owned_bytes"]:
        parts.append(f"{size(row['owned_bytes'])} of its own")
    parts += [f"{row[k]:,} {word}" for k, word in (("views", "parts"), ("foreign", "elsewhere")) if row[k]]
    if row["exports"]:
        parts.append(f"held {count(row['exports'], 'time')}")
    return clean(row["type"], 120) + (f"  ({', '.join(parts)})" if parts else "")


def _loaded(row: Row) -> str:
    where = "not mapped any more, or not known" if row["library"] is None else clean(row["library"], 200)
    name = "(the program)" if row["name"] == "<None>" else clean(row["name"], 120)  # dlopen(NULL) of cffi
    return f"{name} → {where}"


def _viewed(row: Row) -> str:
    if row["type"] is None:
        return "released, or of C alone"
    return f"{clean(row['type'], 120)}  ({count(row['exporters'], 'object')})"


def _capsule(row: Row) -> str:
    where = f" of {_file(row['library'])}" if row["library"] else ""
    return clean(row["name"] or "(no name)", 120) + where


_PARTS: dict[str, _Columns] = {
    "ffi_libraries": [("objects", _number("count")), ("by", _text("by")), ("load", _loaded)],
    "callbacks": [("callbacks", _number("count")), ("by", _text("library")), ("call", _called)],
    "ffi_functions": [("objects", _number("count")), ("function that ctypes calls", _function)],
    "ffi_buffers": [
        ("buffers", _number("count")),
        ("bytes", _size("bytes")),
        ("largest", _size("largest")),
        ("kind", _text("kind")),
        ("type", _buffer),
    ],
    "ffi_memoryviews": [
        ("memoryviews", _number("count")),
        ("show", _size("bytes")),
        ("largest", _size("largest")),
        ("of", _viewed),
    ],
    "array_views": [
        ("array views", _number("views")),
        ("show", _size("view_bytes")),
        ("arrays take", _size("base_bytes")),
        ("type", _text("type")),
    ],
    "ffi_capsules": [("capsules", _number("count")), ("name", _capsule)],
    "cffi_handles": [("cffi handles", _number("count")), ("stand for", _text("stands_for"))],
    "cffi_destructors": [("cffi destructors", _number("count")), ("will call", _called)],
}


def _processors(snapshot: Snapshot) -> str | None:
    """How many there are for the threads of pools, and how that is known."""
    row = against(snapshot)
    if row is None or not row["cpus"]:
        return None
    return f"{count(row['cpus'], 'processor')} for these ({clean(row['known_by'] or 'not known how', 60)})"


def _threads(
    threads: list[Row], pools: list[Row], where: str, processors: str | None, view: View
) -> Iterator[Line]:
    """Threads that Python did not start, by the library that they began in and the function there."""
    known = {p["library"]: p for p in pools}
    groups: dict[tuple[str | None, str | None, str | None, bool], list[Row]] = {}
    for thread in threads:
        key = (thread["library"], thread["symbol"], thread["via"], thread["python"])
        groups.setdefault(key, []).append(thread)
    found: list[Row] = []
    for (library, symbol, via, python), own in groups.items():
        pool = known.get(library or "")
        running = [t for t in own if t["running"]]
        text = f"{_file(library)}: {clean(symbol, 120) if symbol else 'function not known'}"
        if library is None:
            text = "not known"
        text += f" ({clean(via, 20)})" if via else ""
        text += ", and runs Python" if python else ""
        if pool is not None and pool["limit"] and not python:
            text += f" – {clean(pool['pool'], 40)}, limited by {clean(pool['limit'], 80)}"
            text += f" (now {clean(pool['setting'], 20)})" if pool["setting"] else ""
        if view.verbose:
            text += f"  tid {', '.join(str(t['tid']) for t in own[:_MOST_PLACES])}"
            text += " …" if len(own) > _MOST_PLACES else ""
        unknown = all(t["running"] is None for t in own)
        found.append({"count": len(own), "running": "?" if unknown else f"{len(running):,}", "text": text})
    found.sort(key=lambda r: (-r["count"], r["text"]))
    columns: _Columns = [
        ("threads", _number("count")),
        ("running", lambda row: row["running"]),
        (where, lambda row: row["text"]),
    ]
    yield from _part(found, columns, view, processors)
