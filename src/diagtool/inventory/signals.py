"""What happens on each signal: by the kernel, by Python, and whether the two agree.

Table ``signals``, a row a signal that somebody handles, ignores, blocks or waits for: see :func:`_row`.
Table ``signal_state``, a row: what is known of all of them, see :func:`add`.
Table ``alternate_stacks`` (``altstacks.py``), and ``saved_handlers``: who keeps the address of Python's.

Which signals are caught, ignored and blocked the kernel says of a process at any time; which function handles
one it tells only the process, or its copy-on-write image (``capture/dispositions.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from diagtool.capture.demangle import demangle
from diagtool.capture.model import Capture
from diagtool.capture.modules import Module
from diagtool.capture.signalmasks import read_masks
from diagtool.capture.signals import LAST, Disposition, Masks, bits, name_of
from diagtool.inventory.altstacks import alternate_stacks
from diagtool.inventory.handlercode import leads_to
from diagtool.inventory.savedhandlers import Saved, saved_handlers
from diagtool.inventory.signalwaits import awaited, connections, runs_command, waiters
from diagtool.snapshot.model import Snapshot

__all__ = ["add"]

Row = dict[str, Any]

SIGINT, SIGQUIT, SIGKILL, SIGSEGV, SIGPIPE, SIGCHLD = 2, 3, 9, 11, 13, 17
_FATAL = {4, 6, 7, 8, 11}  # those that faulthandler.enable() takes
_OF_LIBC = {32, 33}
_MAX_TIDS = 64  # that a row names
#: All that can be blocked by a program (sigfillset of glibc): threads of libraries that shall take no signal.
_ALL = (1 << 64) - 1 & ~sum(1 << number - 1 for number in (SIGKILL, 19, 32, 33))
#: include/uapi/asm-generic/signal-defs.h, without what every handler has (SA_RESTORER).
_FLAGS = {
    0x1: "SA_NOCLDSTOP",
    0x2: "SA_NOCLDWAIT",
    0x4: "SA_SIGINFO",
    0x08000000: "SA_ONSTACK",
    0x10000000: "SA_RESTART",
    0x40000000: "SA_NODEFER",
    0x80000000: "SA_RESETHAND",
}


@dataclass(slots=True)
class _Known:
    """All that rows are made of."""

    capture: Capture
    masks: Masks
    steady: set[int]  # signals that two looks at the process showed the same of
    python: dict[int, Row]
    state: Row
    actions: dict[int, Disposition] | None
    awaited: int  # signals that a thread or a signalfd waits for
    waiters: int
    connections: int | None
    listening: int | None
    commands: bool  # a thread is in system(3)
    saved: list[Saved] = field(default_factory=list)


def add(capture: Capture, snapshot: Snapshot) -> None:
    """Add the tables. ``signal_state`` has ``handlers`` (are their addresses known), ``why_not``, ``doubt``
    (signals with a function in Python of which it is not known whether it is still called), ``wakeup_fd`` and
    what that is, of faulthandler ``enabled`` and ``dump_later``, and ``block_all``: tids of threads that
    block every signal, which are not named in the rows of ``signals``."""
    known = _known(capture, snapshot)
    rows = [row for number in _numbers(known) if (row := _row(known, number)) is not None]
    state = known.state
    fd = state.get("wakeup_fd")
    doubt = [
        row["signal"]
        for row in rows
        if row["python_kind"] == "function"
        and row["agrees"] is None
        and not row["python_default"]
        and not row["python"].startswith("asyncio.")  # asyncio.run() has one for SIGINT
    ]
    snapshot.tables["signals"] = rows
    snapshot.tables["signal_state"] = [
        {
            "handlers": known.actions is not None,
            "why_not": capture.signals.why_not or None,
            "masks": known.masks.caught is not None,
            "doubt": doubt,
            "python": state.get("found"),
            "wakeup_fd": fd,
            "wakeup": capture.fds.get(fd) if isinstance(fd, int) and fd >= 0 else None,
            "faulthandler": state.get("faulthandler"),
            "dump_later": state.get("dump_later"),
            "threads": len(capture.threads),
            "block_all": [t for t, mask in known.masks.blocked.items() if mask & _ALL == _ALL][:_MAX_TIDS],
        }
    ]
    snapshot.tables["alternate_stacks"] = alternate_stacks(capture, state, rows)
    snapshot.tables["saved_handlers"] = _saved_rows(known, rows)


def _known(capture: Capture, snapshot: Snapshot) -> _Known:
    first = capture.signals.masks
    masks, steady = first, set(range(1, LAST + 1))
    if capture.kind == "live":
        # A thread that blocked nothing need not be looked at again: only what both show is said.
        some = [tid for tid, mask in first.blocked.items() if mask | first.thread_pending.get(tid, 0)]
        again = read_masks(capture.process.pid, some)
        if again.caught is not None and first.caught is not None:
            steady = {n for n in steady if _by_kernel(first, n) == _by_kernel(again, n)}
            masks = Masks(first.caught, first.ignored, first.pending)
            masks.blocked = {t: b & again.blocked.get(t, b) for t, b in first.blocked.items()}
            masks.thread_pending = {
                t: p & again.thread_pending.get(t, p) for t, p in first.thread_pending.items()
            }
            masks.pending = (first.pending or 0) & (again.pending or 0)
    state = next(iter(snapshot.tables.get("python_signal_state", ())), {})
    known = _Known(
        capture,
        masks,
        steady,
        {row["number"]: row for row in snapshot.tables.get("python_signals", ())},
        state,
        capture.signals.actions,
        awaited(capture),
        waiters(capture, snapshot),
        *connections(capture),
        runs_command(capture, masks),
    )
    address = _python_handler(known)
    state = known.state
    if address is not None and state.get("handler") is None:
        known.state = {**state, "handler": address}
    if known.state.get("handler") and any(_is_own(row) for row in known.python.values()):
        known.saved = saved_handlers(capture, known.state["handler"], state.get("module") or "")
    return known


def _numbers(known: _Known) -> Iterable[int]:
    """Signals that there is anything to say of."""
    masks = known.masks
    seen = {SIGPIPE, SIGCHLD, *bits(masks.caught), *bits(masks.ignored), *bits(masks.pending)}
    for mask in {*masks.blocked.values(), *masks.thread_pending.values()}:
        seen |= set(bits(mask))
    seen |= {n for n, row in known.python.items() if row["kind"] != "default" or row["faulthandler"]}
    seen |= {n for n, action in (known.actions or {}).items() if action.handler > 1 or action.flags & 2}
    return sorted(seen)


# -- one signal -----------------------------------------------------------------------------------------


def _row(known: _Known, number: int) -> Row | None:
    """The row of one signal, None where there is nothing to say.

    ``disposition`` ("handler", "ignored", "default", null: not known) with ``handler`` (address),
    ``library``, ``symbol``, ``offset``, ``flags``, ``owner`` ("python", "faulthandler", "libc", "library",
    "callback": code made at run time, "nothing": not mapped any more); ``python`` in words, with
    ``python_kind``, ``python_file``, ``python_line``, ``by_loop`` (an event loop calls it); ``agrees``: what
    the kernel does is what Python believes (null: not known), else ``replaced`` by "handler", "default" or
    "ignored"; ``kept``: places where others keep the address of Python's handler; ``blocked_in`` and
    ``pending_in`` (tids), ``pending`` (for the process), ``blocked_all``, ``blocked_main``; ``awaited`` by
    sigwait or a signalfd.

    For templates: ``stolen`` (a function that somebody asked for is not called), ``stolen_default`` (the same
    of what SIGINT has in a program that is Python's), ``exits_lost`` (ended children are not kept for who
    waits for them), ``lost_by_others`` than Python, ``waiters``; ``connections`` and ``listening`` sockets,
    ``deadly`` (SIGPIPE: by "others" than Python, or by the program "itself").
    """
    masks, py = known.masks, known.python.get(number)
    action = (known.actions or {}).get(number)
    disposition: str | None = _by_kernel(masks, number)
    if action is not None and action.handler > 1:
        disposition = "handler"
    row: Row = {"signal": name_of(number), "number": number, "disposition": disposition}
    row |= _handler(known, number, action if disposition == "handler" else None)
    row |= _of_python(py)
    row |= _blocked(known, number)
    row |= _judged(known, row, py)
    row["waiters"] = known.waiters if number == SIGCHLD else None
    row["connections"] = known.connections if number == SIGPIPE else None
    row["listening"] = known.listening if number == SIGPIPE else None
    row["text"] = _text(row)
    row |= _for_templates(known, row)
    nothing = disposition in ("default", None) and not row["blocked_in"] and not row["pending"]
    nothing &= not row["blocked_all"]
    plain = row["python_kind"] in (None, "default") and not row["faulthandler"] and not row["flags"]
    if nothing and plain and row["deadly"] is None:
        return None
    return row


def _for_templates(known: _Known, row: Row) -> Row:
    replaced = row["agrees"] is False and row["python_kind"] == "function" and row["owner"] != "faulthandler"
    exe = known.capture.process.exe or ""
    program = exe == known.state.get("module") or exe.rpartition("/")[2].startswith("python")
    deadly = None
    if row["number"] == SIGPIPE and row["disposition"] == "default":
        if row["python_kind"] == "ignored" and row["agrees"] is False:
            deadly = "others"
        elif row["python_kind"] == "default" and program:
            deadly = "itself"
    unwanted = "SA_NOCLDWAIT" in row["flags"]  # which Python never sets
    lost = unwanted or row["disposition"] == "ignored"
    return {
        "stolen": replaced and not row["python_default"],
        "stolen_default": replaced and row["python_default"] and program and row["library"] != exe,
        "exits_lost": row["number"] == SIGCHLD and lost,
        "lost_by_others": row["number"] == SIGCHLD and (unwanted or (lost and row["agrees"] is False)),
        "deadly": deadly,
        "place": f"{row['python_file']}:{row['python_line']}" if row["python_file"] else None,
    }


def _by_kernel(masks: Masks, number: int) -> str | None:
    if masks.caught is None or masks.ignored is None:
        return None
    bit = 1 << number - 1
    return "handler" if masks.caught & bit else "ignored" if masks.ignored & bit else "default"


def _handler(known: _Known, number: int, action: Disposition | None) -> Row:
    row: Row = {"handler": None, "library": None, "symbol": None, "offset": None, "flags": [], "owner": None}
    either = (known.actions or {}).get(number)
    if either is not None:
        row["flags"] = [name for bit, name in _FLAGS.items() if either.flags & bit]
    if action is None:
        return row
    row["handler"] = action.handler
    module = _module_of(known.capture, action.handler)
    if module is not None:
        row["library"] = module.path
        found = module.symbol_at(action.handler)
        symbol, row["offset"] = found if found is not None else (None, action.handler - module.bias)
        row["symbol"] = None if symbol is None else demangle(symbol)
    row["owner"] = _owner(known, number, action.handler, module, row["symbol"])
    return row


def _module_of(capture: Capture, address: int) -> Module | None:
    return next((m for m in capture.modules if m.contains(address)), None)


def _owner(known: _Known, number: int, handler: int, module: Module | None, symbol: str | None) -> str:
    if module is not None:
        if module.path == known.state.get("module"):
            py = known.python.get(number)
            taken = py is not None and py["faulthandler"] == "user"
            if handler == known.state.get("handler"):
                return "python"
            if taken or number in _FATAL or (symbol or "").startswith("faulthandler"):
                return "faulthandler"
            return "python" if known.state.get("handler") is None else "library"
        return "libc" if number in _OF_LIBC else "library"
    for mapping in known.capture.mappings:
        if mapping.start <= handler < mapping.end:
            return "callback" if "x" in mapping.permissions else "nothing"
    return "nothing"


# Of a stripped interpreter: the handler that its own file has for a signal with a function in Python.
def _python_handler(known: _Known) -> int | None:
    for number, row in known.python.items():
        action = (known.actions or {}).get(number)
        if row["kind"] == "function" and row["faulthandler"] is None and action and action.handler > 1:
            module = _module_of(known.capture, action.handler)
            if module is not None and module.path == known.state.get("module"):
                return action.handler
    return None


def _of_python(py: Row | None) -> Row:
    row: Row = {"python": None, "python_kind": None, "python_file": None, "python_line": None}
    row |= {"python_default": False, "by_loop": False, "faulthandler": None, "chain": None, "tripped": False}
    if py is None:
        return row
    words = {"default": "SIG_DFL", "ignored": "SIG_IGN", "foreign": "not Python's"}
    text = words.get(py["kind"]) or py["name"] or "a function"
    row["python"], row["python_kind"] = py["loop"] or text, py["kind"]
    row["by_loop"] = py["loop"] is not None
    row["python_file"], row["python_line"] = py["file"], py["line"]
    row["python_default"], row["tripped"] = py["builtin"], py["tripped"]
    row["faulthandler"], row["chain"] = py["faulthandler"], py["chain"]
    return row


def _blocked(known: _Known, number: int) -> Row:
    masks, bit = known.masks, 1 << number - 1
    main = known.capture.process.pid
    tids = sorted(tid for tid, mask in masks.blocked.items() if mask & bit)
    some = [tid for tid in tids if masks.blocked[tid] & _ALL != _ALL]
    pending = sorted(tid for tid, mask in masks.thread_pending.items() if mask & bit)
    return {
        "blocked": len(some),
        "blocked_in": some[:_MAX_TIDS],
        "blocked_all": bool(tids) and len(tids) == len(masks.blocked),
        "blocked_main": main in tids,
        "pending_in": pending[:_MAX_TIDS],
        "pending": bool((masks.pending or 0) & bit) or bool(pending),
        "awaited": bool(known.awaited & bit),
    }


def _is_own(py: Row) -> bool:
    """A function that somebody asked for: not the default one of SIGINT."""
    return py["kind"] == "function" and not py["builtin"]


def _judged(known: _Known, row: Row, py: Row | None) -> Row:
    """Whether Python's table and the kernel agree."""
    out: Row = {"agrees": None, "replaced": None, "kept": None, "kept_in": []}
    disposition, number = row["disposition"], row["number"]
    if py is None or disposition is None or number not in known.steady:
        return out
    kind = py["kind"]
    if kind == "function":
        if disposition == "handler":
            if row["owner"] is None:
                return out
            out["agrees"] = row["owner"] == "python"
        else:
            # system(3) ignores both while a command runs.
            out["agrees"] = None if known.commands and number in (SIGINT, SIGQUIT) else False
    elif kind == "default" and disposition == "handler":
        return out  # libraries may take what Python has no function for
    elif kind in ("default", "ignored"):
        out["agrees"] = disposition == kind
    if out["agrees"] is False:
        out["replaced"] = disposition
        kept = _kept(known, row)
        out["kept"], out["kept_in"] = len(kept), [s.text for s in kept[:4]]
    return out


# Places from which the new handler may call on Python's.
def _kept(known: _Known, row: Row) -> list[Saved]:
    module = _module_of(known.capture, row["handler"]) if row["handler"] else None
    if module is None or row["owner"] != "library":
        return []
    here = [s for s in known.saved if s.path == module.path]
    found = leads_to(known.capture, module, row["handler"], [s.address for s in here]) if here else []
    return [s for s in here if s.address in found]


def _text(row: Row) -> str:
    """What the kernel does, in words: "on_term in libfoo.so"."""
    if row["disposition"] in ("default", "ignored"):
        return {"default": "the default", "ignored": "ignored"}[row["disposition"]]
    if row["disposition"] is None:
        return "not known"
    if row["handler"] is None:
        return "a handler"
    name = (row["library"] or "").rpartition("/")[2]
    if row["owner"] == "callback":
        return f"code made at run time, at {row['handler']:#x} (a callback of ctypes or cffi, or a JIT's)"
    if row["owner"] == "nothing":
        return f"{row['handler']:#x}, where no code is any more"
    if row["symbol"]:
        inside = f"+{row['offset']:#x}" if row["offset"] else ""
        return f"{row['symbol']}{inside} in {name}"
    return f"{name}+{row['offset']:#x}"


def _saved_rows(known: _Known, rows: list[Row]) -> list[Row]:
    """Who keeps the address of Python's handler, where no kernel can be asked what it calls now.

    ``certain``: handlers are known, and these rows say no more than ``signals`` does.
    """
    own = [row["signal"] for row in rows if row["python_kind"] == "function" and not row["python_default"]]
    doubt = [row["signal"] for row in rows if row["signal"] in own and row["agrees"] is None]
    return [
        {
            "library": s.path,
            "address": s.address,
            "text": s.text,
            "signals": ", ".join(doubt),
            "certain": known.actions is not None,
            "count": len(doubt),
        }
        for s in known.saved
        if doubt
    ]
