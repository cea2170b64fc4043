"""Sockets of a network namespace: addresses, state, bytes in their queues, the other end of unix sockets.

    Socket("tcp", local="127.0.0.1:8080", remote="127.0.0.1:50110", state="CLOSE_WAIT", receive=1, send=0)

The kernel is asked by netlink (sock_diag(7), linux/inet_diag.h, linux/unix_diag.h), in the namespace of the
process: one answer in binary form, where the tables of /proc/PID/net are text that is written anew for each
page. They are read where netlink is refused. Facts: state numbers from include/net/tcp_states.h, offsets of
struct tcp_info from include/uapi/linux/tcp.h.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from diagtool.capture.procfs import try_read, try_readlink

__all__ = ["Socket", "parse_inet", "parse_unix", "protocol_of", "read_sockets"]

_STATES = (
    "? ESTABLISHED SYN_SENT SYN_RECV FIN_WAIT1 FIN_WAIT2 TIME_WAIT CLOSE CLOSE_WAIT LAST_ACK LISTEN CLOSING "
    "NEW_SYN_RECV"
).split()
_LISTEN = 10
_ALL_STATES = 0xFFFFFFFF

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_INET_DIAG_INFO = 2
_UNIX_NAME, _UNIX_PEER, _UNIX_QUEUES = 0, 2, 4  # UNIX_DIAG_NAME, _PEER, _RQLEN
_UNIX_SHOW = 1 | 4 | 16  # UDIAG_SHOW_NAME, _PEER, _RQLEN
_CLONE_NEWNET = 0x40000000
_LAST_SENT, _LAST_RECEIVED = 44, 52  # in struct tcp_info: milliseconds since data went, since it came

_MOST = 1 << 20  # sockets of one namespace that are looked at
_PATIENCE = 5.0  # seconds for one answer of the kernel
_TYPES = {1: "stream", 2: "datagram", 5: "seqpacket"}


@dataclass(frozen=True, slots=True)
class Socket:
    """One socket. ``protocol``: tcp, udp, unix. ``receive`` and ``send``: bytes in its queues (of a listening
    one: connections that wait to be accepted, and how many may). ``idle``: seconds since data last came or
    went. ``peer``: inode of the other end of a unix socket. None: not known."""

    protocol: str
    local: str = ""
    remote: str = ""
    state: str = ""
    receive: int | None = None
    send: int | None = None
    idle: float | None = None
    peer: int | None = None

    @property
    def text(self) -> str:
        """``127.0.0.1:8080 -> 127.0.0.1:50110 CLOSE_WAIT``, ``udp [::1]:53``, ``unix /run/x.sock LISTEN``."""
        if self.protocol == "unix":
            return f"unix {self.local}".rstrip() + (" LISTEN" if self.state == "LISTEN" else "")
        name = f"{self.local} -> {self.remote}" if self.remote else self.local
        return f"{name} {self.state}" if self.protocol == "tcp" else f"{self.protocol} {name}"


def read_sockets(pid: int, inodes: Collection[int]) -> dict[int, Socket]:
    """Inode -> socket, of those that the network namespace of the process lists.

    Not listed are sockets that are neither bound nor connected: :func:`protocol_of` says what they are.
    """
    wanted = set(inodes)
    if not wanted:
        return {}
    found: dict[int, Socket] = {}
    try:
        _in_namespace(pid, lambda: found.update(_by_netlink(wanted)))
    except (OSError, struct.error):
        found.update(_by_text(pid, wanted))
    return found


def protocol_of(pid: int, fd: int) -> str:
    """ "tcp", "unix", "netlink", "packet" … of a socket; "" where the kernel does not say."""
    try:
        name = os.getxattr(f"/proc/{pid}/fd/{fd}", "system.sockprotoname")
    except OSError:
        return ""
    text = name.rstrip(b"\0").decode("ascii", "replace").lower()
    return {"tcpv6": "tcp", "udpv6": "udp", "unix-stream": "unix"}.get(text, text)


# --- netlink -----------------------------------------------------------------------------------------------


def _in_namespace(pid: int, work: Callable[[], None]) -> None:
    """Do it in the network namespace of a process. One that is not ours a thread of its own enters."""
    theirs = try_readlink(f"/proc/{pid}/ns/net")
    if theirs is None or theirs == try_readlink("/proc/thread-self/ns/net"):
        work()
        return
    errors: list[OSError | struct.error] = []

    def enter() -> None:
        try:
            fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(fd, _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(fd)
            work()
        except (OSError, struct.error) as error:
            errors.append(error)

    thread = threading.Thread(target=enter, name="diagtool netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def _by_netlink(wanted: set[int]) -> dict[int, Socket]:
    found: dict[int, Socket] = {}
    for family, protocol in (
        (socket.AF_INET, socket.IPPROTO_TCP),
        (socket.AF_UNIX, 0),
        (socket.AF_INET6, socket.IPPROTO_TCP),
        (socket.AF_INET, socket.IPPROTO_UDP),
        (socket.AF_INET6, socket.IPPROTO_UDP),
    ):
        if len(found) >= len(wanted):
            break
        if family == socket.AF_UNIX:
            request = struct.pack("=BBHIIIII", family, 0, 0, _ALL_STATES, 0, _UNIX_SHOW, 0, 0)
            found.update(_unix_sockets(_answers(request), wanted))
        else:
            extension = 1 << (_INET_DIAG_INFO - 1) if protocol == socket.IPPROTO_TCP else 0
            request = struct.pack("=BBBBI48x", family, protocol, extension, 0, _ALL_STATES)
            found.update(_inet_sockets(_answers(request), wanted, protocol == socket.IPPROTO_TCP))
    return found


def _answers(request: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(buffer, begin, end) of each message of a dump, behind its header. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as asked:
        asked.settimeout(_PATIENCE)
        head = struct.pack("=IHHII", 16 + len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0)
        asked.send(head + request)
        left = _MOST
        while left > 0:
            data = asked.recv(1 << 18)
            at = 0
            while at + 16 <= len(data):
                length, kind = struct.unpack_from("=IH", data, at)
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    code = struct.unpack_from("=i", data, at + 16)[0]
                    raise OSError(-code, "sock_diag")
                if length < 16 or at + length > len(data):
                    raise OSError(0, "sock_diag: a message of no sense")
                yield data, at + 16, at + length
                left -= 1
                at += length + 3 & ~3


def _attributes(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(kind, begin, end) of the netlink attributes (linux/netlink.h, struct nlattr)."""
    while at + 4 <= end:
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4 or at + length > end:
            return
        yield kind & 0x3FFF, at + 4, at + length
        at += length + 3 & ~3


def _inet_sockets(
    answers: Iterator[tuple[bytes, int, int]], wanted: set[int], tcp: bool
) -> Iterator[tuple[int, Socket]]:
    for data, at, end in answers:
        if end - at < 72:
            continue
        inode = struct.unpack_from("=I", data, at + 68)[0]
        if inode not in wanted:
            continue
        family, state = data[at], data[at + 1]
        idle = None
        for kind, begin, stop in _attributes(data, at + 72, end) if tcp and state != _LISTEN else ():
            if kind == _INET_DIAG_INFO and stop - begin >= _LAST_RECEIVED + 4:
                sent = struct.unpack_from("=I", data, begin + _LAST_SENT)[0]
                received = struct.unpack_from("=I", data, begin + _LAST_RECEIVED)[0]
                idle = min(sent, received) / 1000
        own_port, other_port = struct.unpack_from(">HH", data, at + 4)
        receive, send = struct.unpack_from("=II", data, at + 56)
        yield (
            inode,
            Socket(
                "tcp" if tcp else "udp",
                _ended(_host(family, data[at + 8 : at + 24]), own_port),
                _ended(_host(family, data[at + 24 : at + 40]), other_port) if other_port else "",
                _state(state) if tcp else "",
                receive,
                send,
                idle,
            ),
        )


def _unix_sockets(
    answers: Iterator[tuple[bytes, int, int]], wanted: set[int]
) -> Iterator[tuple[int, Socket]]:
    for data, at, end in answers:
        if end - at < 16:
            continue
        inode = struct.unpack_from("=I", data, at + 4)[0]
        if inode not in wanted:
            continue
        name, peer, receive, send = "", None, None, None
        for kind, begin, stop in _attributes(data, at + 16, end):
            if kind == _UNIX_NAME:
                name = _unix_name(data[begin:stop])
            elif kind == _UNIX_PEER and stop - begin >= 4:
                peer = struct.unpack_from("=I", data, begin)[0] or None
            elif kind == _UNIX_QUEUES and stop - begin >= 8:
                receive, send = struct.unpack_from("=II", data, begin)
        state = _state(data[at + 2]) if data[at + 1] != socket.SOCK_DGRAM else _TYPES[2]
        yield inode, Socket("unix", name, "", state, receive, send, None, peer)


def _state(number: int) -> str:
    return _STATES[number] if number < len(_STATES) else str(number)


def _host(family: int, packed: bytes) -> str:
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, packed[:4])
    return f"[{socket.inet_ntop(socket.AF_INET6, packed)}]"


def _ended(host: str, port: int) -> str:
    return f"{host}:{port}"


def _unix_name(raw: bytes) -> str:
    """A path ends at a NUL; an abstract name begins with one, written as @ as in /proc/net/unix."""
    if raw[:1] == b"\0":
        return "@" + os.fsdecode(raw[1:].rstrip(b"\0").replace(b"\0", b"@"))
    return os.fsdecode(raw.partition(b"\0")[0])


# --- text --------------------------------------------------------------------------------------------------


def _by_text(pid: int, wanted: set[int]) -> dict[int, Socket]:
    out: dict[int, Socket] = {}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        if len(out) < len(wanted):
            text = try_read(f"/proc/{pid}/net/{table}") or b""
            out.update(parse_inet(text, wanted, table.startswith("tcp")))
    if len(out) < len(wanted):
        out.update(parse_unix(try_read(f"/proc/{pid}/net/unix") or b"", wanted))
    return out


def parse_inet(text: bytes, wanted: Collection[int], tcp: bool) -> dict[int, Socket]:
    """Of /proc/net/tcp, tcp6, udp or udp6 the sockets with those inodes.

    sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
     0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2107 1 …
    """
    out = {}
    inodes = {b"%d" % inode for inode in wanted}
    for line in text.split(b"\n")[1:]:
        words = line.split(None, 10)
        if len(words) < 10 or words[9] not in inodes:
            continue
        try:
            local, remote = _address(words[1]), _address(words[2])
            state = int(words[3], 16)
            send, _, receive = words[4].partition(b":")
            queues = int(receive, 16), int(send, 16)
        except (ValueError, OSError, struct.error):
            continue
        if remote[-2:] == ":0":
            remote = ""
        if tcp and state == _LISTEN:
            queues = queues[0], None  # type: ignore[assignment]  # of how many may wait only netlink tells
        out[int(words[9])] = Socket(
            "tcp" if tcp else "udp", local, remote, _state(state) if tcp else "", *queues
        )
    return out


# "0100007F:1F90": 32-bit words in the byte order of the machine, then the port.
def _address(text: bytes) -> str:
    host, _, port = text.partition(b":")
    words = [int(host[i : i + 8], 16) for i in range(0, len(host), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return _ended(_host(family, packed), int(port, 16))


def parse_unix(text: bytes, wanted: Collection[int]) -> dict[int, Socket]:
    """Of /proc/net/unix the sockets with those inodes.

    Num       RefCount Protocol Flags    Type St Inode Path
    0000000000000000: 00000002 00000000 00010000 0001 01 2111 /run/x.sock
    """
    out = {}
    inodes = {b"%d" % inode for inode in wanted}
    for line in text.split(b"\n")[1:]:
        words = line.split(None, 7)
        if len(words) >= 7 and words[6] in inodes:
            path = os.fsdecode(words[7]) if len(words) > 7 else ""
            state = {b"01": "CLOSE", b"02": "SYN_SENT", b"03": "ESTABLISHED"}.get(words[5], "")
            if words[4] == b"0002":
                state = _TYPES[2]
            elif words[3] == b"00010000":  # __SO_ACCEPTCON
                state = "LISTEN"
            out[int(words[6])] = Socket("unix", path, "", state)
    return out
