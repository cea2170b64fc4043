"""The report of ``diagtool handles``: every open file of a process, alike ones on one line.

     fd  kind    what                                         owner
      3  socket  tcp LISTEN 127.0.0.1:8080, 0 of 100 wait     socket.socket
      4  epoll   watches 812                                  select.epoll
    7 …  socket  1,200 × tcp CLOSE_WAIT to 10.0.0.1:5432      socket.socket
     12  pipe    to fd 13                                     subprocess.Popen.stdin

    1,212 open files of at most 4,096 (30 %), 35 without an owner in Python · cpython 3.12.1, pid 4242

What makes no sense in a stored table is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from diagtool.report.terminal import View, closing, warnings
from diagtool.report.text import Line, cells, clean, count, cut, duration, pad, size, wrap
from diagtool.snapshot.model import Snapshot

if TYPE_CHECKING:
    from typing import TypeGuard

__all__ = ["ALIKE", "chosen", "document", "is_told", "kinds", "lines", "rows"]

Row = dict[str, Any]

#: So many alike descriptors are one line, unless every one is asked for.
ALIKE = 4

_TEXTS = (
    "kind",
    "name",
    "detail",
    "group",
    "access",
    "protocol",
    "local",
    "remote",
    "state",
    "place",
    "owner",
)
_NUMBERS = (
    "fd",
    "position",
    "size",
    "allocated",
    "inode",
    "receive",
    "send",
    "value",
    "watches",
    "dead",
    "pid",
)
_FLAGS = ("settled", "append", "deleted", "accepted", "alive", "owned", "number")
_LISTS: dict[str, type] = {"ends": int, "dead_fds": int, "peers": str, "also": str}
_QUIET = 60  # seconds that a connection is silent before that is told
_OWNER = 26  # columns
_NATIVE = "native"  # the runtime of what has none: nothing in it could own a descriptor


def is_told(snapshot: Snapshot) -> bool:
    """Whether open files were read when it was taken."""
    return "fds" in snapshot.tables


def rows(snapshot: Snapshot) -> list[Row]:
    """The descriptors, by number, with what is of the right type."""
    found = []
    for raw in snapshot.tables.get("fds", ()):
        row = {k: raw[k] for k in _TEXTS if isinstance(raw.get(k), str)}
        row.update({k: raw[k] for k in _NUMBERS if _whole(raw.get(k))})
        row.update({k: raw[k] for k in _FLAGS if isinstance(raw.get(k), bool)})
        for key, kind in _LISTS.items():
            value = raw.get(key)
            if isinstance(value, list) and all(isinstance(v, kind) for v in value):
                row[key] = value
        idle = raw.get("idle")
        if isinstance(idle, (int, float)) and not isinstance(idle, bool) and 0 <= idle < 1e10:
            row["idle"] = idle
        if "owner" in row:
            address, text = raw.get("owner_address"), raw.get("owner_text")
            row["owner_address"] = hex(int(address) & (1 << 64) - 1) if _whole(address) else None
            row["owner_text"] = text if isinstance(text, str) else row["owner"]
        if "fd" in row and "kind" in row:
            found.append({"name": "", "group": row["kind"], **row})
    return sorted(found, key=lambda r: r["fd"])


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 64


def kinds(found: Sequence[Row]) -> list[str]:
    """The kinds that there are."""
    return sorted({row["kind"] for row in found})


def chosen(found: Sequence[Row], kind: str | None, unowned: bool) -> list[Row]:
    """Those of a kind; those that nobody in Python owns."""
    return [
        row
        for row in found
        if (kind is None or kind in (row["kind"], row.get("protocol")))
        and (not unowned or row.get("owned") is False)
    ]


def limits(snapshot: Snapshot) -> Row:
    """``open``, ``soft``, ``hard``, ``share``, ``known``."""
    raw = next(iter(snapshot.tables.get("fd_limits", ())), {})
    row: Row = {k: raw.get(k) if _whole(raw.get(k)) else None for k in ("open", "highest", "soft", "hard")}
    share = raw.get("share")
    row["share"] = share if isinstance(share, float) else None
    row["known"] = raw.get("known") is True
    return row


def document(snapshot: Snapshot, found: Sequence[Row]) -> Row:
    """What only this JSON document has: ``handles``, ``limits``, and whether owners were looked for."""
    return {
        "handles": [{**row, "owner_text": row.get("owner_text"), "owner": row.get("owner")} for row in found],
        "limits": limits(snapshot),
        "owners_known": "fd_owners" in snapshot.tables,
    }


# --- lines -------------------------------------------------------------------------------------------------


def lines(snapshot: Snapshot, found: Sequence[Row], view: View) -> Iterator[Line]:
    """The table, what could not be read, the sums."""
    groups = _alike(found, 1 if view.idle else ALIKE)
    cells_of = [(_numbers(g), g[0]["kind"], _what(g, view.verbose), _owner(g[0])) for g in groups]
    told = "fd_owners" in snapshot.tables or any(owner for *_, owner in cells_of)
    table = [("fd", "kind", "what", "owner" if told else ""), *cells_of]
    first, second = (max(cells(line[i]) for line in table) for i in range(2))
    owners = min(max(cells(line[3]) for line in table), _OWNER)
    room = max(view.width - first - second - (owners + 2 if told else 0) - 4, 24)
    for at, (number, kind, what, owner) in enumerate(table if groups else ()):
        text = f"{number:>{first}}  {pad(kind, second)}  {pad(cut(what, room), room)}  {cut(owner, owners)}"
        yield [(text.rstrip(), "" if at else "label")]
        if at and view.verbose:
            whole = what if cells(what) > room else ""
            yield from _more(groups[at - 1], whole, " " * (first + 2), view)
    if not groups:
        yield [("No such open file.", "")]
    yield []
    yield from warnings([*_unknown(snapshot), *snapshot.warnings], view)
    yield from closing(_totals(snapshot, found), snapshot.target, snapshot.pause_ms, view)


def _alike(found: Sequence[Row], most: int) -> list[list[Row]]:
    """Groups of descriptors, by their first; those of few are taken apart."""
    together: dict[tuple[Any, ...], list[Row]] = {}
    for row in found:
        key = (row["kind"], row["group"], row.get("state"), row.get("owner"), row.get("owned"))
        together.setdefault(key, []).append(row)
    groups = []
    for group in together.values():
        groups += [group] if len(group) > most > 1 else [[row] for row in group]
    return sorted(groups, key=lambda g: g[0]["fd"])


def _numbers(group: Sequence[Row]) -> str:
    return f"{group[0]['fd']} …" if len(group) > 1 else str(group[0]["fd"])


def _what(group: Sequence[Row], verbose: bool) -> str:
    row = group[0]
    if len(group) == 1:
        return clean(_one(row), 1000)
    text = row["group"].removeprefix(row["kind"] + " ")
    state = row.get("state")
    if state and state not in text and state != "LISTEN":
        protocol, _, rest = text.partition(" ")
        text = f"{protocol} {state} {rest}".rstrip()
    text = f"{len(group):,} × {text}"
    unread = sum(r.get("receive", 0) for r in group) if row["kind"] == "socket" else 0
    if unread:
        text += f", {unread:,} bytes unread"
    if any("allocated" in r for r in group):
        text += f", {size(sum(r.get('allocated', 0) for r in group))}"
    return clean(text, 1000)


def _one(row: Row) -> str:
    kind = row["kind"]
    parts = []
    if kind == "socket":
        words = (row.get("protocol"), row.get("state"), row["name"])
        parts.append(" ".join(w for w in words if w))
        parts += _queues(row)
    elif kind == "pipe":
        ends = [f"fd {n}" for n in row.get("ends", [])[:3]] + row.get("peers", [])[:1]
        arrow = {"r": "from", "w": "to"}.get(row.get("access", ""), "with")
        parts.append(f"{arrow} {', '.join(ends)}" if ends else row["name"])
    else:
        parts.append(row["name"] or row.get("detail", ""))
        if row["name"] and row.get("detail"):
            parts.append(row["detail"])
        if row.get("deleted"):
            parts[0] += " (deleted)"
        if row.get("size"):
            parts.append(size(row["size"]))
    if kind == "socket" and row.get("ends"):
        parts.append(f"with fd {row['ends'][0]}")
    return ", ".join(p for p in parts if p)


def _queues(row: Row) -> Iterator[str]:
    receive, send = row.get("receive", 0), row.get("send", 0)
    if row.get("state") == "LISTEN":
        if send:
            yield f"{receive:,} of {send:,} wait"
        return
    if receive:
        yield f"{count(receive, 'byte')} unread"
    if send and row.get("protocol") != "unix":  # there it is memory, not data
        yield f"{count(send, 'byte')} unsent"
    if row.get("idle", 0) >= _QUIET:
        yield f"silent for {duration(row['idle'])}"


def _owner(row: Row) -> str:
    if "owner" not in row:
        return "nobody" if row.get("owned") is False else ""
    head, _, role = row["owner_text"].partition(" of ")
    name = (role or head).partition(",")[0]  # what it is a part of says more
    return clean(name if len(name) <= _OWNER else name.rpartition(".")[2])


def _more(group: Sequence[Row], whole: str, indent: str, view: View) -> Iterator[Line]:
    row = group[0]
    said = [("in full", whole)] if whole else []
    if "owner" in row:
        said.append(("owned by", f"{row['owner_text']}  {row['owner_address'] or ''}"))
    said += [("and by", text) for text in row.get("also", [])[:3]]
    if row.get("peers"):
        said.append(("other end", ", ".join(row["peers"])))
    if row.get("dead_fds"):
        said.append(("dead", "fd " + ", ".join(map(str, row["dead_fds"]))))
    for label, text in said:
        for i, part in enumerate(wrap(clean(text, 1000), view.width - len(indent) - 11)):
            yield [(indent + pad("" if i else label, 11), "label"), (part, "")]


def _unknown(snapshot: Snapshot) -> Iterator[str]:
    if not limits(snapshot)["known"]:
        yield "a core has no table of open files: only those are shown that an object on the heap owns"
    elif "fd_owners" not in snapshot.tables and snapshot.target.runtime != _NATIVE:
        yield "who owns them was not looked for: that takes the heap"


def _totals(snapshot: Snapshot, found: Sequence[Row]) -> str:
    known = limits(snapshot)
    if not known["known"]:
        return f"{count(len(found), 'descriptor')} with an owner"
    text = count(len(found), "open file")
    if len(found) != known["open"]:
        text += f" of {known['open'] or 0:,}"
    if known["soft"]:
        text += f", at most {known['soft']:,}"
        if known["share"] is not None:
            text += f" ({100 * known['share']:.0f} % in use)"
    unowned = sum(row.get("owned") is False for row in found)
    if "fd_owners" in snapshot.tables:
        text += f", {unowned:,} without an owner in Python"
    return text
