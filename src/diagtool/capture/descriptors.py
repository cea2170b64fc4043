"""Open files of a process: what each descriptor is, sockets with their addresses.

    {0: "/dev/null", 5: "anon_inode:[eventpoll] watches 6 7", 6: "socket:[2107] 127.0.0.1:8080 LISTEN",
     7: "socket:[2110] 127.0.0.1:8080 -> 127.0.0.1:50110 ESTABLISHED", 8: "socket:[2111] unix /run/x.sock"}

Facts: proc(5), /proc/PID/net/tcp; state numbers from include/net/tcp_states.h.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterable

from diagtool.capture.procfs import try_read, try_readlink

MAX_DESCRIPTORS = 100_000  # descriptors that are looked at

_WATCHED = 64  # descriptors of one epoll that are named
_SOCKET = re.compile(r"socket:\[(\d+)\]$")
_TCP_STATES = (
    "? ESTABLISHED SYN_SENT SYN_RECV FIN_WAIT1 FIN_WAIT2 TIME_WAIT CLOSE CLOSE_WAIT LAST_ACK LISTEN CLOSING "
    "NEW_SYN_RECV"
).split()


def read_descriptors(pid: int) -> tuple[dict[int, str], list[str]]:
    """Descriptor -> what it is, and warnings. Empty when the process is gone or may not be read."""
    try:
        numbers = sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 (many)
    except (OSError, ValueError) as error:
        return {}, [f"open files could not be read: {getattr(error, 'strerror', None) or error}"]
    warnings = []
    if len(numbers) > MAX_DESCRIPTORS:
        warnings.append(f"only the first {MAX_DESCRIPTORS:,} of {len(numbers):,} open files were read")
    out: dict[int, str] = {}
    inodes: dict[bytes, list[int]] = {}
    for number in numbers[:MAX_DESCRIPTORS]:
        link = try_readlink(f"/proc/{pid}/fd/{number}")
        if link is None:
            continue  # closed meanwhile
        out[number] = link
        match = _SOCKET.match(link)
        if match:
            inodes.setdefault(match.group(1).encode(), []).append(number)
        elif link in ("anon_inode:[eventpoll]", "anon_inode:[pidfd]"):
            out[number] = link + _details(try_read(f"/proc/{pid}/fdinfo/{number}") or b"")
    if inodes:
        for inode, text in socket_names(pid, inodes.keys()).items():
            for number in inodes[inode]:
                out[number] += f" {text}"
    return out, warnings


# What fdinfo adds: "tfd:  7 events: 19 …" for each watched descriptor of an epoll, "Pid: 42" of a pidfd.
def _details(fdinfo: bytes) -> str:
    watched = []
    for line in fdinfo.split(b"\n"):
        words = line.split()
        if len(words) < 2:
            continue
        if words[0] == b"tfd:":
            watched.append(words[1].decode("ascii", "replace"))
        elif words[0] == b"Pid:":
            return f" {words[1].decode('ascii', 'replace')}"
    if not watched:
        return ""
    more = f" … {len(watched) - _WATCHED} more" if len(watched) > _WATCHED else ""
    return " watches " + " ".join(watched[:_WATCHED]) + more


def socket_names(pid: int, inodes: Iterable[bytes]) -> dict[bytes, str]:
    """Addresses and states of sockets by inode, as the network namespace of the process lists them."""
    wanted = set(inodes)
    out: dict[bytes, str] = {}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        if len(out) < len(wanted):
            text = try_read(f"/proc/{pid}/net/{table}") or b""
            out.update(parse_inet(text, wanted, table.startswith("tcp")))
    if len(out) < len(wanted):
        out.update(parse_unix(try_read(f"/proc/{pid}/net/unix") or b"", wanted))
    return out


def parse_inet(text: bytes, wanted: set[bytes], tcp: bool) -> dict[bytes, str]:
    """Of /proc/net/tcp, tcp6, udp or udp6 the sockets with those inodes.

    sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
     0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2107 1 …
    """
    out = {}
    for line in text.split(b"\n")[1:]:
        words = line.split(None, 10)
        if len(words) < 10 or words[9] not in wanted:
            continue
        try:
            local, remote = _address(words[1]), _address(words[2])
            state = int(words[3], 16)
        except (ValueError, OSError, struct.error):
            continue
        name = f"{local} -> {remote}" if remote[-2:] != ":0" else local
        if tcp:
            name += f" {_TCP_STATES[state] if state < len(_TCP_STATES) else state}"
        else:
            name = f"udp {name}"
        out[words[9]] = name
    return out


# "0100007F:1F90": 32-bit words in the byte order of the machine, then the port.
def _address(text: bytes) -> str:
    host, _, port = text.partition(b":")
    words = [int(host[i : i + 8], 16) for i in range(0, len(host), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    if len(packed) == 4:
        return f"{socket.inet_ntop(socket.AF_INET, packed)}:{int(port, 16)}"
    return f"[{socket.inet_ntop(socket.AF_INET6, packed)}]:{int(port, 16)}"


def parse_unix(text: bytes, wanted: set[bytes]) -> dict[bytes, str]:
    """Of /proc/net/unix the sockets with those inodes.

    Num       RefCount Protocol Flags    Type St Inode Path
    0000000000000000: 00000002 00000000 00010000 0001 01 2111 /run/x.sock
    """
    out = {}
    for line in text.split(b"\n")[1:]:
        words = line.split(None, 7)
        if len(words) >= 7 and words[6] in wanted:
            path = os.fsdecode(words[7]) if len(words) > 7 else ""
            listening = " LISTEN" if words[3] == b"00010000" else ""  # __SO_ACCEPTCON
            out[words[6]] = f"unix {path}".rstrip() + listening
    return out
