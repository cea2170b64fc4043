"""What the kernel says of open files and sockets is understood, and what makes no sense does no harm."""

from __future__ import annotations

import os
import select
import socket
import struct
import tempfile
from collections.abc import Iterator

import pytest

from diagtool.capture.descriptors import Descriptor, read_descriptors
from diagtool.capture.fdinfo import (
    Look,
    Watched,
    _remote_mounts,
    kind_of,
    open_file_limit,
    parse_fdinfo,
)
from diagtool.capture.sockets import _answers, _inet_sockets, _unix_name, _unix_sockets, read_sockets

EPOLL = (
    b"pos:\t0\nflags:\t02000002\nmnt_id:\t16\nino:\t1061\n"
    b"tfd:        7 events:       19 data:                7  pos:0 ino:2f sdev:f\n"
    b"tfd:       12 events: 8000001d data: 7f010000000c  pos:0 ino:59df25 sdev:1000010\n"
    b"tfd:      nan events:       19 data:                7  pos:0 ino:2f sdev:f\n"
    b"tfd:       13 events:       19 data:                7\n"
)


def test_the_members_of_an_epoll() -> None:
    found = parse_fdinfo(EPOLL)
    assert found.flags == 0o2000002 and found.mount == 16 and found.inode == 1061
    assert found.watches == 4
    assert found.watched == [
        Watched(7, 0x19, 0x2F, 0xF),
        Watched(12, 0x8000001D, 0x59DF25, 0x1000010),
        Watched(13, 0x19, None, None),  # older kernels tell no more
    ]


@pytest.mark.parametrize(
    "text", [b"", b"\0" * 100, b"tfd:\nino:\nflags: x\npos: 99999999999999999999999999\n:::"]
)
def test_nonsense_is_nothing(text: bytes) -> None:
    found = parse_fdinfo(text)
    assert (found.position, found.flags, found.inode, found.watched) == (None, None, None, [])


def test_what_links_say() -> None:
    assert kind_of("socket:[2107]") == ("socket", "socket:[2107]")
    assert kind_of("anon_inode:[eventpoll]") == ("epoll", "")
    assert kind_of("anon_inode:inotify") == ("inotify", "")
    assert kind_of("anon_inode:kvm-vcpu:0") == ("anonymous", "kvm-vcpu:0")
    assert kind_of("/memfd:frames (deleted)") == ("memfd", "frames")
    assert kind_of("pidfd:[2346661]") == ("pidfd", "pidfd:[2346661]")
    assert kind_of("net:[4026531833]") == ("namespace", "net:[4026531833]")
    assert kind_of("/dev/nvidia0") == ("device", "/dev/nvidia0")
    assert kind_of("/dev/shm/pool") == ("", "/dev/shm/pool")
    assert kind_of("/srv/app.log (deleted)") == ("", "/srv/app.log (deleted)")


def test_the_limit() -> None:
    text = b"Limit  Soft Limit  Hard Limit  Units\nMax open files         1024              524288  files\n"
    assert open_file_limit(text) == (1024, 524288)
    assert open_file_limit(b"Max open files   unlimited  unlimited  files\n") == (None, None)
    assert open_file_limit(b"Max open files") == open_file_limit(b"") == (None, None)


def test_file_systems_over_a_network_are_asked_nothing() -> None:
    text = (
        b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext4 /dev/root rw\n"
        b"37 35 0:44 / /home rw - nfs4 server:/home rw\n"
        b"38 35 0:45 / /s3 rw shared:3 - fuse.s3fs s3fs rw\n"
        b"nonsense\nx y - nfs\n"
    )
    assert _remote_mounts(text) == {37, 38}


def test_what_stat_says_is_what_the_kernel_says_of_ours() -> None:
    look = Look(os.getpid())
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 10_000)
        file.flush()
        facts, expected = look.stat(file.fileno()), os.fstat(file.fileno())
        assert facts is not None
        assert (facts.mode, facts.inode, facts.links) == (expected.st_mode, expected.st_ino, 0)
        assert (facts.size, facts.allocated) == (expected.st_size, expected.st_blocks * 512)
        assert facts.device == os.major(expected.st_dev) << 20 | os.minor(expected.st_dev)
        info = look.fdinfo(file.fileno())
        assert info is not None and info.inode in (None, expected.st_ino)  # told since 5.14
    assert look.stat(1 << 20) is None and look.fdinfo(1 << 20) is None


def test_members_of_an_epoll_are_known_by_their_file() -> None:
    r, w = os.pipe()
    with select.epoll() as poll:
        for i in range(300):  # more than one page of text
            poll.register(os.dup(r) if i else r, select.EPOLLIN)
        info = Look(os.getpid()).fdinfo(poll.fileno())
    assert info is not None and info.watches == len(info.watched) == 300
    inode, device = os.fstat(r).st_ino, os.fstat(r).st_dev
    assert {(m.inode, m.device) for m in info.watched} == {
        (inode, os.major(device) << 20 | os.minor(device)),
    }
    for member in info.watched:
        os.close(member.fd)
    os.close(w)


# --- sockets -----------------------------------------------------------------------------------------------


def inet(family: int, state: int, inode: int, receive: int, send: int, extra: bytes = b"") -> bytes:
    """An inet_diag_msg: 10.0.0.1:8080 and 10.0.0.2:50110."""
    own, other = (socket.inet_aton(f"10.0.0.{n}") + bytes(12) for n in (1, 2))
    head = struct.pack("=BBBB", family, state, 0, 0) + struct.pack(">HH", 8080, 50110)
    return head + own + other + bytes(12) + struct.pack("=IIIII", 0, receive, send, 0, inode) + extra


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) & 3)


def answers(*messages: bytes) -> Iterator[tuple[bytes, int, int]]:
    for message in messages:
        yield message, 0, len(message)


def test_a_connection_by_netlink() -> None:
    info = bytearray(104)
    struct.pack_into("=I", info, 44, 90_000)
    struct.pack_into("=I", info, 52, 75_500)
    message = inet(socket.AF_INET, 8, 4711, 1, 20, attribute(99, b"?") + attribute(2, bytes(info)))
    ((inode, found),) = _inet_sockets(answers(message, b"short", inet(2, 1, 5, 0, 0)), {4711}, tcp=True)
    assert inode == 4711
    assert found.text == "10.0.0.1:8080 -> 10.0.0.2:50110 CLOSE_WAIT"
    assert (found.receive, found.send, found.idle) == (1, 20, 75.5)


def test_damaged_attributes_are_left_out() -> None:
    message = inet(socket.AF_INET, 1, 4711, 0, 0, struct.pack("=HH", 2, 2) + b"\xff" * 40)
    ((_, found),) = _inet_sockets(answers(message), {4711}, tcp=True)
    assert found.idle is None and found.state == "ESTABLISHED"


def test_unix_sockets_by_netlink() -> None:
    head = struct.pack("=BBBBI8x", socket.AF_UNIX, socket.SOCK_STREAM, 1, 0, 4711)
    more = attribute(2, struct.pack("=I", 4712)) + attribute(4, struct.pack("=II", 3, 768))
    ((_, found),) = _unix_sockets(answers(head + more), {4711})
    assert (found.protocol, found.state, found.peer, found.receive) == ("unix", "ESTABLISHED", 4712, 3)
    assert _unix_name(b"/run/x.sock\0") == "/run/x.sock"
    assert _unix_name(b"\0hidden") == "@hidden"


def test_what_the_kernel_tells_of_our_own_sockets() -> None:
    with (
        socket.create_server(("127.0.0.1", 0), backlog=7) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        accepted = server.accept()[0]
        accepted.sendall(b"hello")
        accepted.close()
        client.setblocking(True)
        assert client.recv(5, socket.MSG_PEEK | socket.MSG_WAITALL) == b"hello"
        while client.recv(6, socket.MSG_PEEK | socket.MSG_WAITALL) != b"hello":
            pass  # until the end has come, too: then no more than this can be had
        inodes = {os.fstat(s.fileno()).st_ino: s for s in (server, client)}
        found = read_sockets(os.getpid(), inodes)
        host, port = server.getsockname()
        listening = found[os.fstat(server.fileno()).st_ino]
        assert (listening.state, listening.local, listening.receive) == ("LISTEN", f"{host}:{port}", 0)
        left = found[os.fstat(client.fileno()).st_ino]
        assert (left.state, left.remote, left.receive) == ("CLOSE_WAIT", f"{host}:{port}", 6)


def test_without_netlink_the_tables_in_proc_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(request: bytes) -> Iterator[tuple[bytes, int, int]]:
        raise PermissionError(1, "no")
        yield request, 0, 0

    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as local,
    ):
        local.bind(f"\0diagtool-test-{os.getpid()}")
        local.listen()
        inodes = [os.fstat(s.fileno()).st_ino for s in (server, local)]
        by_netlink = read_sockets(os.getpid(), inodes)
        monkeypatch.setattr("diagtool.capture.sockets._answers", refused)
        by_text = read_sockets(os.getpid(), inodes)
        assert {i: s.text for i, s in by_text.items()} == {i: s.text for i, s in by_netlink.items()}
        assert len(by_text) == 2


def test_an_error_of_the_kernel_is_an_error() -> None:
    with pytest.raises(OSError):
        list(_answers(struct.pack("=BBBBI48x", 255, 255, 0, 0, 0)))


def test_what_was_open_before_is_settled() -> None:
    with tempfile.TemporaryFile() as old, tempfile.TemporaryFile() as new:
        link = os.readlink(f"/proc/self/fd/{old.fileno()}")
        before = {old.fileno(): link, new.fileno(): "pipe:[1]"}
        found = {d.number: d for d in read_descriptors(os.getpid(), before)[0]}
        assert found[old.fileno()] == Descriptor(old.fileno(), link, settled=True)
        assert not found[new.fileno()].settled
