"""The report of ``diagtool signals``: what the kernel does on each signal, and what Python believes.

    signal   the kernel calls                           Python has
    SIGINT   signal_handler in libpython3.12.so.1.0     signal.default_int_handler
    SIGTERM  on_term in libfoo.so                       app.stop (app.py:41)
             replaced behind Python's back
    SIGUSR1  faulthandler_user in libpython3.12.so.1.0  SIG_DFL
             blocked in 2 of 5 threads, the main thread among them
    SIGPIPE  ignored                                    SIG_IGN

What makes no sense in a stored table is left out.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

from diagtool.report.terminal import View, closing, ended_by, warnings
from diagtool.report.text import Line, cells, clean, count, cut, duration, pad, wrap
from diagtool.snapshot.model import Snapshot

__all__ = ["document", "doubted", "is_told", "lines", "rows"]

Row = dict[str, Any]

_TEXTS = (
    "disposition",
    "library",
    "symbol",
    "owner",
    "text",
    "python",
    "python_kind",
    "python_file",
    "replaced",
    "faulthandler",
)
_NUMBERS = ("number", "handler", "offset", "python_line", "blocked")
_FLAGS = ("agrees", "blocked_all", "blocked_main", "pending", "awaited", "chain", "tripped", "by_loop")
_LISTS: dict[str, type] = {"flags": str, "kept_in": str, "blocked_in": int, "pending_in": int}
_STATE: dict[str, type] = {
    "handlers": bool,
    "masks": bool,
    "why_not": str,
    "python": str,
    "wakeup_fd": int,
    "wakeup": str,
    "faulthandler": bool,
    "threads": int,
}
_KERNEL = 44  # columns
_FIRST_REAL_TIME = 34  # SIGRTMIN of glibc
_OF_LIBC = (32, 33)
_ADDRESSES = ("handler", "address", "start", "instruction")


def is_told(snapshot: Snapshot) -> bool:
    """Whether signals were looked at when it was taken."""
    return "signals" in snapshot.tables


def rows(snapshot: Snapshot) -> list[Row]:
    """The signals, by number, with what is of the right type; None where it is not known."""
    found = []
    for raw in _dicts(snapshot, "signals"):
        if not isinstance(raw.get("signal"), str) or not _whole(raw.get("number")):
            continue
        row: Row = {"signal": raw["signal"]}
        row |= {k: raw[k] if isinstance(raw.get(k), str) else None for k in _TEXTS}
        row |= {k: raw[k] if _whole(raw.get(k)) else None for k in _NUMBERS}
        row |= {k: raw[k] if isinstance(raw.get(k), bool) else None for k in _FLAGS}
        for key, kind in _LISTS.items():
            value = raw.get(key)
            row[key] = [v for v in value if isinstance(v, kind)] if isinstance(value, list) else []
        found.append(row)
    return sorted(found, key=lambda r: r["number"])


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 64


def _state(snapshot: Snapshot) -> Row:
    raw = _first(snapshot, "signal_state")
    out: Row = {k: raw[k] if isinstance(raw.get(k), kind) else None for k, kind in _STATE.items()}
    later = raw.get("dump_later")
    out["dump_later"] = later if isinstance(later, (int, float)) and 0 <= later < 1e10 else None
    doubt = raw.get("doubt")
    out["doubt"] = [d for d in doubt if isinstance(d, str)] if isinstance(doubt, list) else []
    deaf = raw.get("block_all")
    out["block_all"] = [d for d in deaf if _whole(d)] if isinstance(deaf, list) else []
    return out


def _first(snapshot: Snapshot, table: str) -> Row:
    return next(iter(_dicts(snapshot, table)), {})


def _dicts(snapshot: Snapshot, table: str) -> list[Row]:
    return [row for row in snapshot.tables.get(table, ()) if isinstance(row, dict)]


def doubted(snapshot: Snapshot) -> list[str]:
    """Signals that the program has functions for, of which it is not known whether the kernel calls them."""
    doubt: list[str] = _state(snapshot)["doubt"]
    return doubt


def document(snapshot: Snapshot, found: Sequence[Row]) -> Row:
    """What only this JSON document has. Addresses are hex strings."""
    return {
        "signals": [_plain(row) for row in found],
        "state": _state(snapshot),
        "alternate_stacks": [_plain(r) for r in _dicts(snapshot, "alternate_stacks")],
        "saved_handlers": [_plain(r) for r in _dicts(snapshot, "saved_handlers")],
        "crash": _plain(_first(snapshot, "crash")) or None,
    }


def _plain(row: Row) -> Row:
    out = {}
    for key, value in row.items():
        if key in _ADDRESSES and value is not None:
            value = hex(value & (1 << 64) - 1) if _whole(value) else None
        elif isinstance(value, float) and not -1e300 < value < 1e300:
            value = None
        out[str(key)] = value
    return out


# Real-time signals that follow each other and are all the same: Go has a handler for every one.
def _joined(
    shown: Sequence[Row], table: Sequence[tuple[str, str, str]], notes: Sequence[list[str]]
) -> tuple[list[Row], list[tuple[str, str, str]]]:
    rows: list[Row] = []
    out: list[tuple[str, str, str]] = []
    first: list[str] = []
    for at, (row, (name, does, believes)) in enumerate(zip(shown, table, strict=True)):
        alike = at > 0 and row["number"] == shown[at - 1]["number"] + 1 and row["number"] > _FIRST_REAL_TIME
        if alike and table[at - 1][1:] == (does, believes) and notes[at - 1] == notes[at]:
            out[-1] = (f"{first[-1]} to {name.removeprefix('SIGRTMIN')}", does, believes)
            continue
        rows.append(row)
        out.append((name, does, believes))
        first.append(name)
    return rows, out


# --- lines -------------------------------------------------------------------------------------------------


def lines(snapshot: Snapshot, found: Sequence[Row], view: View) -> Iterator[Line]:
    """The table, what else bears on signals, what is not known."""
    state = _state(snapshot)
    python = "python_signals" in snapshot.tables
    yield from ended_by(snapshot.target, view)
    shown = [row for row in found if view.verbose or row["number"] not in _OF_LIBC]
    rows_of = shown
    table = [(clean(r["signal"], 40), _kernel(r, view), _python(r, view) if python else "") for r in shown]
    if not view.verbose:
        rows_of, table = _joined(shown, table, [list(_notes(r, state, view)) for r in shown])
    head = ("signal", "the kernel calls", "Python has" if python else "")
    names = max(cells(line[0]) for line in [head, *table])
    kernel = max(cells(line[1]) for line in [head, *table])
    kernel = kernel if view.verbose else min(kernel, _KERNEL if python else view.width - names - 4)
    if table:
        yield [(f"{pad(head[0], names)}  {pad(head[1], kernel)}  {head[2]}".rstrip(), "label")]
    for row, (name, does, believes) in zip(rows_of, table, strict=True):
        style = "warning" if row["agrees"] is False else ""
        yield [(f"{pad(name, names)}  {pad(cut(does, kernel), kernel)}  ", style), (believes, "own")]
        for note in _notes(row, state, view):
            for part in wrap(clean(note, 500), view.width - names - 4):
                yield [(" " * (names + 2) + part, "warning" if row["agrees"] is False else "label")]
    if table:
        yield []
    yield from _around(snapshot, state, view)
    yield from warnings(snapshot.warnings, view)
    wrong = sum(row["agrees"] is False for row in shown)
    total = count(len(shown), "signal") + (f", {wrong:,} not as Python believes" if wrong else "")
    yield from closing(total, snapshot.target, snapshot.pause_ms, view)


def _kernel(row: Row, view: View) -> str:
    text = clean(row["text"] or "not known", 200)
    if view.verbose and row["library"]:
        text = text.replace(posixpath.basename(row["library"]), clean(row["library"], 200))
    return text


def _python(row: Row, view: View) -> str:
    if row["python"] is None:
        return "-"
    text = clean(row["python"], 120)
    if row["python_file"]:
        file = row["python_file"] if view.verbose else posixpath.basename(row["python_file"])
        text += f" ({clean(file, 200)}:{row['python_line']})"
    return text


def _notes(row: Row, state: Row, view: View) -> Iterator[str]:
    if row["agrees"] is False and row["python_kind"] == "function":
        by = " by faulthandler" if row["owner"] == "faulthandler" else " behind Python's back"
        kept = f"; {', '.join(row['kept_in'])} keeps Python's, and may call it on" if row["kept_in"] else ""
        yield f"replaced{by}{kept}"
    elif row["agrees"] is False:
        yield "not what Python believes"
    elif row["python_kind"] == "default" and row["owner"] in ("library", "callback"):
        yield "taken by a library; Python has no function for it"
    if row["by_loop"]:
        yield "called by an event loop"
    if row["faulthandler"] == "user":
        yield "faulthandler writes tracebacks" + (
            ", then calls the handler before it" if row["chain"] else ""
        )
    if row["blocked"] or row["blocked_all"] or row["blocked_main"]:
        threads = state["threads"] or 0
        where = "all threads" if row["blocked_all"] else f"{row['blocked']:,} of {threads:,} threads"
        main = ", the main thread among them" if row["blocked_main"] and not row["blocked_all"] else ""
        if not row["blocked"] and not row["blocked_all"]:
            where, main = "the main thread", ""  # which blocks all
        tids = f": {', '.join(map(str, row['blocked_in'][:16]))}" if view.verbose else ""
        yield f"blocked in {where}{main}{tids}" + ("; somebody waits for it" if row["awaited"] else "")
    if row["pending"]:
        yield "pending: it was sent, and nobody took it yet"
    if row["tripped"]:
        yield "it came, and Python's function has not run yet"
    if view.verbose and row["flags"]:
        yield ", ".join(row["flags"])


def _around(snapshot: Snapshot, state: Row, view: View) -> Iterator[Line]:
    """faulthandler, the wakeup descriptor, alternate stacks, what can't be known."""
    texts = []
    if state["faulthandler"] is not None:
        on = "on for fatal signals" if state["faulthandler"] else "off"
        later = f", dumps all threads in {duration(state['dump_later'])}" if state["dump_later"] else ""
        texts.append(("faulthandler", on + later))
    if state["wakeup_fd"] is not None:
        fd, what = state["wakeup_fd"], state["wakeup"]
        texts.append(("wakeup fd", "none" if fd < 0 else f"{fd}" + (f" ({what})" if what else "")))
    if state["block_all"]:
        tids = state["block_all"]
        many = ", ".join(map(str, tids if view.verbose else tids[:8])) + (" …" if len(tids) > 8 else "")
        texts.append(("block all", f"{count(len(tids), 'thread')}: {many}"))
    for row in _dicts(snapshot, "alternate_stacks"):
        whose = " (faulthandler's)" if row.get("owner") == "faulthandler" else ""
        bad = {"gone": ", where no memory is", "shared": ", used by others, too", "small": ", too small"}
        more = bad.get(str(row.get("state")), "")
        texts.append(("signal stack", f"of thread {row.get('tid')}: {row.get('text')}{whose}{more}"))
    others = (state["threads"] or 0) - len(_dicts(snapshot, "alternate_stacks"))
    if state["handlers"] and others > 0 and view.verbose:
        texts.append(("", f"of {count(others, 'thread')} not known: only a thread itself can ask for it"))
    for row in _dicts(snapshot, "saved_handlers"):
        if not row.get("certain"):
            texts.append(("kept", f"{row.get('text')} holds the address of Python's handler"))
    if not state["handlers"] and state["why_not"]:
        texts.append(("not known", f"which functions the kernel calls: {state['why_not']}"))
    if not state["masks"]:
        texts.append(("not known", "what is ignored or caught: a core does not tell"))
    for label, text in texts:
        yield from _labelled(label, text, view)
    if texts:
        yield []


def _labelled(label: str, text: str, view: View) -> Iterator[Line]:
    for i, part in enumerate(wrap(clean(text, 1000), view.width - 14)):
        yield [(pad("" if i else label, 14), "label"), (part, "")]
