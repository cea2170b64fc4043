"""Streams, sockets, servers and processes as things that are waited on: descriptor, addresses, which side.

Addresses come from what transports note when they are made (``_extra``), and in a live process from the
descriptors themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.tasks.uvloops import UV_PLAIN, field_of_kind, transport_fds

__all__ = ("read_processes", "read_servers", "read_sockets", "read_streams", "socket_addresses")

State = dict[str, Any]

_ENDS = re.compile(r"(\S+:\d+)(?: -> (\S+:\d+))?")
_LISTENING = re.compile(r"(\S+):(\d+) LISTEN")
_MAX_SOCKETS = 16  # of one server

_UV_SERVERS = ("uvloop.loop.Server", "Server")

_0 = np.uint64(0)


def read_streams(ctx: Context, things: U64) -> tuple[list[State], list[str]]:
    """``fd``, ``local``, ``peer``, ``server`` (whether the other side called) and ``buffered`` bytes."""
    transports = _unwrapped(ctx, ctx.vectors.attribute(things, "_transport"))
    fds, server = _of_transports(ctx, transports)
    extra = ctx.vectors.attribute(transports, "_extra")
    local, peer = (socket_addresses(ctx, ctx.vectors.dict_values(extra, k)) for k in ("sockname", "peername"))
    buffered = ctx.vectors.sizes(ctx.vectors.attribute(things, "_buffer")).tolist()
    states, details = [], []
    ports = _ports(ctx)
    rows = zip(transports.tolist(), fds.tolist(), local, peer, server.tolist(), buffered, strict=True)
    for transport, fd, own, other, accepted, size in rows:
        state, words = _ends(ctx, fd, ports, own, other)
        if accepted >= 0:
            state["server"] = bool(accepted)
        if size >= 0:
            state["buffered"] = size
        states.append(state)
        details.append(words if transport else "no transport")
    return states, details


def read_sockets(ctx: Context, things: U64) -> tuple[list[State], list[str]]:
    """``fd`` of Python's sockets, and what a live process's descriptors say."""
    states, details = [], []
    ports = _ports(ctx)
    for fd in _socket_fds(ctx, things).tolist():
        state, words = _ends(ctx, fd, ports)
        states.append(state)
        details.append(words)
    return states, details


def read_servers(ctx: Context, things: U64) -> tuple[list[State], list[str]]:
    """``listening``: the addresses (or descriptors) of asyncio servers; ``connections`` of them."""
    v = ctx.vectors
    active = v.integers(v.attribute(things, "_active_count")).tolist()
    clients = v.sizes(v.attribute(things, "_clients")).tolist()  # 3.12.1+
    sockets = v.attribute(things, "_sockets").tolist()
    states, details = [], []
    ports = _ports(ctx)
    for connections, known, group in zip(active, clients, sockets, strict=True):
        items = np.array(ctx.objects.sequence_items(group, _MAX_SOCKETS), np.uint64)
        ends = [_ends(ctx, fd, ports) for fd in _socket_fds(ctx, items).tolist()]
        listening = [str(state.get("local") or f"fd {state.get('fd')}") for state, _ in ends]
        state: State = {"listening": listening}
        connections = max(connections, known)
        if connections >= 0:
            state["connections"] = connections
        states.append(state)
        details.append(f"listens on {', '.join(listening)}" if listening else "")
    return states, details


def read_processes(ctx: Context, things: U64) -> tuple[list[State], list[str]]:
    """``pid`` of children, ``returncode`` where asyncio knows it already; ``child``, what the kernel knows:
    "running", "zombie" or "gone", None where that is not sure."""
    v = ctx.vectors
    transports = v.attribute(things, "_transport")
    pids = v.integers(v.attribute(things, "pid"))
    pids = np.where(pids > 0, pids, v.integers(v.attribute(transports, "_pid"))).tolist()
    codes = v.integers(v.attribute(transports, "_returncode"), 1 << 40).tolist()
    children = ctx.capture.process.children
    states, details = [], []
    for pid, code in zip(pids, codes, strict=True):
        known = None if code == 1 << 40 else code
        child = children.state(pid) if children is not None and pid > 0 else None
        states.append({"pid": pid if pid > 0 else None, "returncode": known, "child": child})
        words = f"pid {pid}" if pid > 0 else ""
        if known is not None:
            words = f"{words} ended with {known}"
        elif child in ("zombie", "gone"):
            words = f"{words}, a zombie" if child == "zombie" else f"{words}, which is gone"
        details.append(words)
    return states, details


# -- transports -------------------------------------------------------------------------------------------


def _groups(ctx: Context, objects: U64) -> Iterator[tuple[str, NDArray[np.intp]]]:
    kinds = ctx.vectors.kinds(objects)
    for kind in np.unique(kinds):
        yield str(kind), np.flatnonzero(kinds == kind)


def _unwrapped(ctx: Context, transports: U64) -> U64:
    """The transports below TLS, 0 for None."""
    out: U64 = transports.copy()
    for kind, rows in _groups(ctx, transports):
        if kind == "NoneType":
            out[rows] = 0
        elif kind == "_SSLProtocolTransport":
            protocols = ctx.vectors.attribute(transports[rows], "_ssl_protocol")
            out[rows] = ctx.vectors.attribute(protocols, "_transport")
        elif kind == "uvloop.loop._SSLProtocolTransport":
            protocols = field_of_kind(ctx, transports[rows], "uvloop.loop.SSLProtocol")
            out[rows] = field_of_kind(ctx, protocols, *UV_PLAIN)
    return out


def _of_transports(ctx: Context, transports: U64) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(descriptor of each, -1 for none; 1 for a server's side, 0 for a client's, -1 unknown)."""
    v = ctx.vectors
    fds = np.full(len(transports), -1, np.int64)
    server = np.full(len(transports), -1, np.int64)
    for kind, rows in _groups(ctx, transports):
        group = transports[rows]
        if kind in UV_PLAIN:
            fds[rows] = transport_fds(ctx, group)
            server[rows] = field_of_kind(ctx, group, *_UV_SERVERS) != 0
        elif kind:
            fds[rows] = v.integers(v.attribute(group, "_sock_fd"))
            owner = v.attribute(group, "_server")
            server[rows] = np.where(owner == 0, -1, ~v.are(owner, "NoneType"))
    return fds, server


def _socket_fds(ctx: Context, sockets: U64) -> NDArray[np.int64]:
    field = "PySocketSockObject.sock_fd"
    if field not in ctx.runtime.layout:
        return np.full(len(sockets), -1, np.int64)
    fds: NDArray[np.int64] = ctx.vectors.small(sockets, field, "<i4")
    return fds


def _ends(ctx: Context, fd: int, ports: frozenset[str], local: str = "", peer: str = "") -> tuple[State, str]:
    """(state, words) of a socket, completed from what the descriptor is in a live process."""
    described = ctx.capture.fds.get(fd, "") if fd >= 0 else ""
    ends = _ENDS.search(described)
    if ends:
        local, peer = local or ends[1], peer or ends[2] or ""
    state: State = {"fd": fd} if fd >= 0 else {}
    if local:
        state["local"] = local
    if peer:
        state["peer"] = peer
    if ends and ends[2]:
        state["server"] = ends[1].rpartition(":")[2] in ports
    words = described or " → ".join(e for e in (local, peer) if e)
    return state, f"fd {fd} {words}".rstrip() if fd >= 0 else words


def _ports(ctx: Context) -> frozenset[str]:
    # the ports that the process listens on
    return frozenset(m[2] for d in ctx.capture.fds.values() if (m := _LISTENING.search(d)))


def socket_addresses(ctx: Context, values: U64) -> list[str]:
    """Socket addresses as "host:port" or a path; "" for what is neither."""
    v = ctx.vectors
    kinds = v.kinds(values)
    pairs = np.where(kinds == "tuple", values, _0)
    pairs = np.where(v.sizes(pairs) >= 2, pairs, _0)
    first = ctx.runtime.layout["PyTupleObject.ob_item"]
    hosts = v.texts(np.where(kinds == "str", values, v.words(pairs, first)))
    ports = v.integers(v.words(pairs, first + 8)).tolist()
    out = []
    for host, port in zip(hosts, ports, strict=True):
        shown = f"[{host}]" if ":" in host and port >= 0 else host
        out.append(f"{shown}:{port}" if shown and port >= 0 else shown)
    return out
