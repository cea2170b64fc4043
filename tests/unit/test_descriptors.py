"""Sockets of a process are named by what the kernel's tables say of them."""

from __future__ import annotations

import sys

import pytest

from diagtool.capture.descriptors import _details
from diagtool.capture.sockets import Socket, parse_inet, parse_unix

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the tables below are little-endian")

HEADER = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
TCP = HEADER + (
    b"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 2107 1 0 100\n"
    b"   1: 0100007F:1F90 0100007F:C3BE 01 00000000:00000000 00:00000000 00000000  0  0 2110 1 0 20\n"
    b"   2: 0100007F:C3BE 0100007F:1F90 08 00000000:00000000 00:00000000 00000000  0  0 2111 1 0 20\n"
    b"   3: 0100007F:C3BE 0100007F:1F90 FF 00000000:00000000 00:00000000 00000000  0  0 2112 1 0 20\n"
    b"   4: nonsense nonsense 08 00000000:00000000 00:00000000 00000000  0  0 2113 1 0 20\n"
    b"   5: 0100\n"
)
ALL = {2107, 2110, 2111, 2112, 2113}


def texts(sockets: dict[int, Socket]) -> dict[int, str]:
    return {inode: socket.text for inode, socket in sockets.items()}


def test_tcp() -> None:
    assert texts(parse_inet(TCP, ALL, tcp=True)) == {
        2107: "127.0.0.1:8080 LISTEN",
        2110: "127.0.0.1:8080 -> 127.0.0.1:50110 ESTABLISHED",
        2111: "127.0.0.1:50110 -> 127.0.0.1:8080 CLOSE_WAIT",
        2112: "127.0.0.1:50110 -> 127.0.0.1:8080 255",
    }


def test_only_those_that_are_wanted() -> None:
    assert list(parse_inet(TCP, {2110, 5}, tcp=True)) == [2110]


def test_a_peer_on_a_port_that_ends_in_zero_is_a_peer() -> None:
    text = HEADER + b"0: 0100007F:C3BE 0100007F:1F40 01 0:0 0:0 0 0 0 7 1\n"
    assert texts(parse_inet(text, {7}, tcp=True)) == {7: "127.0.0.1:50110 -> 127.0.0.1:8000 ESTABLISHED"}


def test_udp_over_ipv6() -> None:
    local, any_address = b"00000000000000000000000001000000", b"0" * 32
    text = HEADER + b"0: " + local + b":0035 " + any_address + b":0000 07 0:0 0:0 0 0 0 9 2 0\n"
    assert texts(parse_inet(text, {9}, tcp=False)) == {9: "udp [::1]:53"}


def test_unix() -> None:
    text = (
        b"Num       RefCount Protocol Flags    Type St Inode Path\n"
        b"0000000000000000: 00000002 00000000 00010000 0001 01 11 /run/with space.sock\n"
        b"0000000000000000: 00000003 00000000 00000000 0001 03 12\n"
        b"0000000000000000: 00000003 00000000 00000000 0001 03 13 @abstract\n"
        b"garbage\n"
    )
    assert texts(parse_unix(text, {11, 12, 13})) == {
        11: "unix /run/with space.sock LISTEN",
        12: "unix",
        13: "unix @abstract",
    }


def test_what_an_epoll_watches() -> None:
    line = b"tfd:     %4d events:       19 data: 7fff  pos:0 ino:1 sdev:9\n"
    assert _details(b"pos:\t0\nflags:\t02\n" + line % 12 + line % 9) == " watches 9 12"
    assert _details(b"pos:\t0\n") == ""
    many = _details(b"".join(line % i for i in range(100)))
    assert many.endswith(" 11 … 88 more")


def test_whose_a_pidfd_is() -> None:
    assert _details(b"pos:\t0\nPid:\t4242\nNSpid:\t4242\n") == " 4242"
