"""Who in Python owns a file descriptor: files, sockets, epolls, maps, directories, numbers in attributes.

Table ``fd_owners``, a row a descriptor and owner, the object that would close it first: ``fd``, ``kind``
(what it can be a descriptor of: socket, file, epoll, directory, any), ``type`` and ``address`` of the object,
``text`` (the same in words, with what it is a part of: "socket.socket of
asyncio.selector_events._SelectorSocketTransport, registered with a loop"), ``name`` (of a file, as it was
opened), ``protocol``, ``local`` and ``remote`` (of sockets, as transports have noted them).

Table ``fd_numbers``, one row: ``least`` and ``known``: which descriptors from ``least`` on are the value of
any int object. Nothing in Python can close another one.

Where the number is: in fileio (Modules/_io/fileio.c), PySocketSockObject and pyEpoll_Object it comes first;
in mmap_object behind data, size, pos, offset and exports; ScandirIterator ends with a DIR * and an int, and
glibc's DIR begins with it. Checked on 3.9 to 3.15.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.tasks.iothings import socket_addresses
from diagtool.runtimes.cpython.tasks.uvloops import UV_PLAIN, transport_fds
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

__all__ = ["add_fd_owners"]

Row = dict[str, Any]
I64 = NDArray[np.int64]

#: Types by their ``tp_name`` whose objects (or those of subclasses) have a descriptor at a known place.
_FILE, _SOCKET, _EPOLL = "_io.FileIO", "_socket.socket", "select.epoll"
_MAP, _SCAN = "mmap.mmap", "posix.ScandirIterator"
_KINDS = {_FILE: "file", _SOCKET: "socket", _EPOLL: "epoll", _MAP: "file", _SCAN: "directory"}
_MAP_FD = 40  # behind the head
#: Transports of asyncio, whose attributes are too many for their keys to be shared in some versions.
_TRANSPORTS = (
    "_SelectorSocketTransport",
    "_SelectorDatagramTransport",
    "_UnixReadPipeTransport",
    "_UnixWritePipeTransport",
)
#: Attributes that hold the number of a descriptor, by their names.
_NUMBER = re.compile(r"_*(?:\w*_)?(?:fd|fileno)_?|_handle|sentinel")
#: Of these, which mean that only in what multiprocessing is made of.
_ONLY_OF, _PROCESSES = ("_handle", "sentinel"), ("multiprocessing.", "multiprocess.", "billiard.")
#: Attributes of selectors and loops.
_OF_SELECTORS = ("_fd_to_key", "_selector")
_STREAMS = ("stdin", "stdout", "stderr")
_FAMILIES = {1: "unix", 16: "netlink", 17: "packet", 40: "vsock"}
_INET = (2, 10)

#: What a selector keeps for itself (selectors.py).
_MAPPINGS = ("_SelectorMapping",)

_MOST_OBJECTS = 200_000  # of one type
_MOST_ROWS = 200_000
_MOST_INTS = 4_000_000
_MOST_FD = 1 << 24
_MOST_NAMES = 64
_LONGEST = 500
_HEAPTYPE = 1 << 9
_UV_NAMES = tuple(name.rpartition(".")[2] for name in UV_PLAIN)
_0 = np.uint64(0)


@dataclass(frozen=True, slots=True)
class _Type:
    """A type of Python code: its number in the census, and those of its attributes that matter here."""

    number: int
    address: int
    names: set[str]


@dataclass(slots=True)
class _Found:
    """Descriptors and objects by number of the census' types, and what is known of objects besides."""

    types: list[_Type]
    rows: list[Row] = field(default_factory=list)
    roles: dict[int, str] = field(default_factory=dict)  # address of an owner: what it is a part of
    registered: dict[int, str] = field(default_factory=dict)  # descriptor: with what


def add_fd_owners(ctx: Context, census: HeapCensus, _: Sequence[Interpreter]) -> None:
    """Add the tables ``fd_owners`` and ``fd_numbers``."""
    bases = _bases(ctx, census)
    found = _Found(_heap_types(ctx, census))
    for part in (_owners, _registrations, _holders, _streams):
        try:
            part(ctx, census, bases, found)
        except MemoryFault as fault:
            ctx.warn(f"some owners of open files could not be read: {fault}")
    rows = found.rows[:_MOST_ROWS]
    for row in rows:
        text = row["type"]
        if row["address"] in found.roles:
            text += f" of {found.roles[row['address']]}"
        if row["fd"] in found.registered:
            text += f", registered with {found.registered[row['fd']]}"
        row["text"] = text[:_LONGEST]
    tables = ctx.builder.snapshot.tables
    tables["fd_owners"] = [{k: v for k, v in row.items() if v is not None} for row in rows]
    tables["fd_numbers"] = _numbers(ctx, census)


def _bases(ctx: Context, census: HeapCensus) -> dict[str, list[int]]:
    """Numbers of the types with a descriptor at a known place, by the base that has it."""
    out: dict[str, list[int]] = defaultdict(list)
    for i, address in enumerate(census.types.address.tolist()):
        for base in ctx.objects.mro(address):
            name = ctx.objects.type_name(base)
            if name in _KINDS:
                out[name].append(i)
                break
    return out


def _own(ctx: Context, found: _Found, objects: U64, fds: I64, kind: str, more: dict[int, Row]) -> None:
    open_ = np.flatnonzero((fds >= 0) & (fds < _MOST_FD))
    for i in open_.tolist():
        address = int(objects[i])
        name = ctx.objects.qualified_kind(address)
        row = {"fd": int(fds[i]), "kind": kind, "type": _plain(name), "address": address}
        found.rows.append({**row, **more.get(i, {})})


def _plain(name: str) -> str:
    """As programs know it: what begins with an underscore is where C code has put it."""
    return {
        "_io.FileIO": "io.FileIO",
        "_socket.socket": "socket.socket",
        "posix.ScandirIterator": "os.scandir",
    }.get(name, name)


def _owners(ctx: Context, census: HeapCensus, bases: dict[str, list[int]], found: _Found) -> None:
    """Objects that have a descriptor at a known place."""
    head = ctx.runtime.layout["sizeof.PyObject"]
    for base, kind in _KINDS.items():
        for i in bases.get(base, ()):
            objects = census.of(i)[:_MOST_OBJECTS]
            if base == _SCAN:
                directories = ctx.vectors.words(objects, int(census.types.basic[i]) - 16)
                fds = _int32(ctx, directories, 0)
            else:
                fds = _int32(ctx, objects, head + (_MAP_FD if base == _MAP else 0))
            more: dict[int, Row] = {}
            if base == _FILE:
                names = ctx.vectors.texts(ctx.vectors.only(ctx.vectors.attribute(objects, "name"), "str"))
                more = {n: {"name": name[:_LONGEST]} for n, name in enumerate(names) if name}
            elif base == _SOCKET:
                families, types = (_int32(ctx, objects, head + at).tolist() for at in (4, 8))
                more = {
                    n: {"protocol": _protocol(*p)} for n, p in enumerate(zip(families, types, strict=True))
                }
            _own(ctx, found, objects, fds, kind, more)


def _int32(ctx: Context, addresses: U64, offset: int) -> I64:
    """A field of each structure; -1 where there is none."""
    values, good = ctx.vectors.memory.load(addresses + np.uint64(offset), "<i4")
    return np.where(good & (addresses != 0), values, -1).astype(np.int64)


def _protocol(family: int, kind: int) -> str | None:
    if family in _INET:
        return {1: "tcp", 2: "udp"}.get(kind & 0xF)
    return _FAMILIES.get(family)


# --- Python code that knows a number -----------------------------------------------------------------------


def _heap_types(ctx: Context, census: HeapCensus) -> list[_Type]:
    """The types of Python code that have objects with an attribute that may tell of descriptors."""
    known: dict[int, str] = {}  # names are interned: one string for the attributes of all types

    def spelled(name: int) -> str:
        if name not in known:
            text = ctx.objects.text(name) or ""
            wanted = text in _OF_SELECTORS or _NUMBER.fullmatch(text) is not None
            known[name] = text if wanted else ""
        return known[name]

    found = []
    for i, address in enumerate(census.types.address.tolist()):
        if not int(census.types.flags[i]) & _HEAPTYPE or not len(census.of(i)):
            continue
        try:
            names = {spelled(n) for n in _attributes(ctx, address, int(census.of(i)[0])) if n} - {""}
        except MemoryFault:
            continue
        if names or ctx.objects.type_name(address).rpartition(".")[2] in (*_TRANSPORTS, *_UV_NAMES):
            found.append(_Type(i, address, names))
    return found


def _attributes(ctx: Context, kind: int, example: int) -> list[int]:
    """Addresses of the names of attributes of a type's objects."""
    o = ctx.objects
    keys = o.cached_keys(kind)
    names: list[int] = []
    if keys:
        with suppress(MemoryFault):
            names = o.key_names(keys)[:_MOST_NAMES].tolist()
    if not names:
        own = o.instance_dict(example, kind)
        names = o.dict_items(own)[0][:_MOST_NAMES].tolist() if own else []
    return names


def _holders(ctx: Context, census: HeapCensus, bases: dict[str, list[int]], found: _Found) -> None:
    """Objects of which an attribute is the number of a descriptor, or a socket: transports, connections …"""
    v = ctx.vectors
    known = {i for kinds in bases.values() for i in kinds}
    for kind in found.types:
        if kind.number in known:
            continue
        full = ctx.objects.type_name(kind.address)
        name = full.rpartition(".")[2]
        objects = census.of(kind.number)[:_MOST_OBJECTS]
        if name in _TRANSPORTS:
            _transports(ctx, objects, found)
            continue
        if full in UV_PLAIN:
            _own(ctx, found, objects, transport_fds(ctx, objects), "any", {})
            continue
        for attribute in sorted(kind.names - set(_OF_SELECTORS)):
            if attribute in _ONLY_OF and not ctx.objects.qualified_type(kind.address).startswith(_PROCESSES):
                continue
            _own(ctx, found, objects, v.integers(v.attribute(objects, attribute)), "any", {})


def _transports(ctx: Context, transports: U64, found: _Found) -> None:
    v = ctx.vectors
    for attribute in ("_sock", "_pipe"):
        for owner, transport in zip(
            v.attribute(transports, attribute).tolist(), transports.tolist(), strict=True
        ):
            if owner:
                found.roles[owner] = ctx.objects.qualified_kind(transport)
    fds = v.integers(v.attribute(transports, "_sock_fd"))
    fds = np.where(fds < 0, v.integers(v.attribute(transports, "_fileno")), fds)
    sockets = v.attribute(transports, "_sock")
    pipes = v.attribute(transports, "_pipe")
    closed = v.are(sockets, "NoneType") | v.are(pipes, "NoneType")  # after connection_lost
    extra = v.attribute(transports, "_extra")
    own, other = (socket_addresses(ctx, v.dict_values(extra, k)) for k in ("sockname", "peername"))
    more = {
        n: {"local": a or None, "remote": b or None} for n, (a, b) in enumerate(zip(own, other, strict=True))
    }
    _own(ctx, found, transports, np.where(closed, -1, fds), "any", more)


def _registrations(ctx: Context, census: HeapCensus, bases: dict[str, list[int]], found: _Found) -> None:
    """Descriptors in the tables of selectors (``_fd_to_key``), and whose selectors these are."""
    o, v = ctx.objects, ctx.vectors
    loops: dict[int, str] = {}
    selectors: list[int] = []
    for kind in found.types:
        if "_fd_to_key" in kind.names:
            selectors += census.of(kind.number)[:_MOST_OBJECTS].tolist()
        if "_selector" in kind.names and o.type_name(kind.address) not in _MAPPINGS:
            objects = census.of(kind.number)[:_MOST_OBJECTS]
            for selector, owner in zip(
                v.attribute(objects, "_selector").tolist(), objects.tolist(), strict=True
            ):
                loops.setdefault(selector, f"{o.qualified_type(kind.address)} {owner:#x}")
    for selector in selectors:
        table = o.attribute(selector, "_fd_to_key")
        if not table or not o.is_a(table, "dict"):
            continue
        try:
            keys, _ = o.dict_items(table)
        except MemoryFault:
            continue
        name = loops.get(selector) or f"{o.qualified_kind(selector)} {selector:#x}"
        for fd in v.integers(keys).tolist():
            if 0 <= fd < _MOST_FD:
                found.registered.setdefault(fd, name)
        owner = {"kind": "any", "type": o.qualified_kind(selector), "address": selector}
        found.rows += [{"fd": fd, **owner} for fd in v.integers(keys).tolist() if 0 <= fd < _MOST_FD]


def _streams(ctx: Context, census: HeapCensus, bases: dict[str, list[int]], found: _Found) -> None:
    """Pipes to child processes: which file is what stream of a Popen."""
    o, v = ctx.objects, ctx.vectors
    head = ctx.runtime.layout["sizeof.PyObject"]
    for i, address in enumerate(census.types.address.tolist()):
        if o.type_name(address).rpartition(".")[2] != "Popen" or not len(census.of(i)):
            continue
        if o.qualified_type(address) != "subprocess.Popen":
            continue
        objects = census.of(i)[:_MOST_OBJECTS]
        for stream in _STREAMS:
            files = v.attribute(objects, stream)
            # textio: after the head two ints and a size comes the buffer; buffered: the raw file comes first.
            text = v.are(files, "_io.TextIOWrapper")
            files = np.where(text, v.words(files, head + 16), files)
            buffered = v.are(files, "_io.BufferedReader", "_io.BufferedWriter")
            files = np.where(buffered, v.words(files, head), files)
            for file in files[v.are(files, _FILE)].tolist():
                found.roles.setdefault(file, f"subprocess.Popen.{stream}")


def _numbers(ctx: Context, census: HeapCensus) -> list[Row]:
    """Which of the descriptors that are open are the value of an int; small ones always are one."""
    least = 257 if ctx.runtime.version < (3, 15) else 1025
    fds = np.array(sorted(fd for fd in ctx.capture.fds if fd >= least), np.int64)
    kinds = [i for i, a in enumerate(census.types.address.tolist()) if ctx.objects.type_name(a) == "int"]
    if not len(fds) or sum(len(census.of(i)) for i in kinds) > _MOST_INTS:
        return []
    values = [ctx.vectors.integers(census.of(i)) for i in kinds]
    known = np.isin(fds, np.concatenate([np.zeros(0, np.int64), *values]))
    return [{"least": least, "known": fds[known].tolist()}]
