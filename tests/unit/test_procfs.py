"""The files of /proc are read as they are written, whatever the process wrote into them."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from diagtool.capture import procfs
from diagtool.capture.model import Mapping

MAPS = b"""\
55d0c8a00000-55d0c8a01000 r--p 00000000 fe:00 1234                       /usr/bin/python3.12
55d0c8b00000-55d0c8b02000 rw-p 000ff000 fe:00 1234                       /usr/bin/python3.12
55d0c9000000-55d0c9100000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000001000 rw-p 00000000 00:00 0
7f1000000000-7f1000001000 r--s 00001000 fe:00 77                         /tmp/with space (deleted)
7f2000000000-7f2000001000 r--p 00000000 fe:00 78                         /tmp/two\\012lines
7f3000000000-7f3000001000 rw-p 00000000 00:00 0                          [anon: glibc: malloc arena]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""


def test_mappings() -> None:
    found = procfs.parse_maps(MAPS)
    assert found[0] == Mapping(0x55D0C8A00000, 0x55D0C8A01000, "r--p", 0, 1234, "/usr/bin/python3.12")
    assert found[1].offset == 0xFF000
    assert [m.path for m in found[2:]] == [
        "[heap]",
        "",
        "/tmp/with space (deleted)",
        "/tmp/two\nlines",
        "[anon: glibc: malloc arena]",
        "[vsyscall]",
    ]
    assert found[-1].end == 0xFFFFFFFFFF601000


def test_mappings_that_make_no_sense_are_left_out() -> None:
    text = b"2000-1000 rw-p 0 0:0 0\nnonsense\n1000-2000 rw 0 0:0 0\n-2000 rw-p 0 0:0 0\n"
    text += b"1000-2000 rw-p 0 0:0 x\n\n"
    assert procfs.parse_maps(text + b"1000-2000 rw-p 0 0:0 0") == [Mapping(0x1000, 0x2000, "rw-p", 0, 0, "")]


def test_names_that_are_not_unicode_survive() -> None:
    (found,) = procfs.parse_maps(b"1000-2000 r--p 00000000 fe:00 5    /tmp/\xff\xc3\xa9")
    assert os.fsencode(found.path) == b"/tmp/\xff\xc3\xa9"


def test_mappings_are_parsed_once() -> None:
    known: dict[bytes, Mapping] = {}
    first = procfs.parse_maps(MAPS, known)
    second = procfs.parse_maps(MAPS + b"7f5000000000-7f5000001000 rw-p 00000000 00:00 0\n", known)
    assert [id(m) for m in second[:-1]] == [id(m) for m in first]
    assert len(known) == 9


def test_stat_of_a_name_with_brackets_and_spaces() -> None:
    text = b"42 (a) R (b) S 1 42 42 0 -1 4194560 9 0 0 0 100 20 0 0 20 0 7 0 123456 0 0 0"
    found = procfs.parse_stat(text)
    assert found is not None
    assert (found.comm, found.state, found.flags) == ("a) R (b", "S", 4194560)
    assert (found.utime, found.stime, found.threads, found.start_ticks) == (100, 20, 7, 123456)


@pytest.mark.parametrize("text", [b"", b"42 (a", b"42 )a( S 1", b"42 (a) S 1 2", b"1 (a) S " + b"x " * 30])
def test_stat_that_makes_no_sense(text: bytes) -> None:
    assert procfs.parse_stat(text) is None


def test_status() -> None:
    found = procfs.parse_status(b"Name:\tx: y\nNSpid:\t4242\t17\t1\nUid:\t1\t2\t3\t4\ngarbage\n")
    assert found["Name"] == "x: y"
    assert procfs.innermost_pid(found) == 1
    assert procfs.innermost_pid({}) is None
    assert procfs.innermost_pid({"NSpid": "no"}) is None


def test_memory_by_the_kernel_s_names() -> None:
    status = {"VmRSS": "1024 kB", "RssAnon": "x kB", "VmSwap": "12", "VmHWM": "2048 kB", "Name": "a"}
    assert procfs.memory_of(status) == {"VmRSS": 1 << 20, "VmHWM": 2 << 20}


def test_system_calls() -> None:
    line = b"202 0x7f00 0x189 0x0 0x0 0x0 0xffffffff 0x7ffe 0x7f01\n"
    assert procfs.parse_syscall(line) == (202, (0x7F00, 0x189, 0, 0, 0, 0xFFFFFFFF))
    for other in (b"running\n", b"-1 0x7ffe 0x7f01\n", b"", b"x 0x1 0x1 0x1 0x1 0x1 0x1 0x1 0x1\n"):
        assert procfs.parse_syscall(other) is None


def test_auxiliary_vectors_tell_64_bit_from_32_bit() -> None:
    wide = struct.pack("<12Q", 33, 0x7FFE, 3, 0x40, 4, 56, 5, 13, 0, 0, 9, 9)
    narrow = struct.pack("<10I", 32, 0xF7F0, 3, 0x34, 4, 32, 5, 9, 0, 0)
    assert procfs.parse_auxv(wide) == {33: 0x7FFE, 3: 0x40, 4: 56, 5: 13}
    assert not procfs.looks_32_bit(wide)
    assert procfs.looks_32_bit(narrow)
    assert not procfs.looks_32_bit(b"")


def test_only_the_environment_of_interest_and_no_secrets() -> None:
    entries = {
        "PYTHONPATH": "/app",
        "MALLOC_ARENA_MAX": "2",
        "LD_PRELOAD": "libjemalloc.so",
        "OMP_NUM_THREADS": "4",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "VIRTUAL_ENV": "/venv",
        "HOME": "/root",
        "DATABASE_URL": "postgres://u:p@h/db",
        "AWS_SECRET_ACCESS_KEY": "geheim",
        "PYTHON_AUTH_TOKEN": "geheim",
        "TORCH_HUB_PASSWORD": "geheim",
        "CUDA_API_KEY": "geheim",
        "NCCL_COOKIE": "geheim",
        "PYTHONKEYRING_X": "kept",
    }
    data = b"\0".join(f"{name}={value}".encode() for name, value in entries.items()) + b"\0nonsense\0"
    assert procfs.environ_of_interest(data) == {
        "PYTHONPATH": "/app",
        "MALLOC_ARENA_MAX": "2",
        "LD_PRELOAD": "libjemalloc.so",
        "OMP_NUM_THREADS": "4",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "VIRTUAL_ENV": "/venv",
        "PYTHONKEYRING_X": "kept",
    }


def test_passwords_in_addresses_are_cut_out_and_long_values_cut_off() -> None:
    data = b"PYTHONINDEX=https://me:geheim@host/simple\0PYTHONLONG=" + b"x" * 100_000
    found = procfs.environ_of_interest(data)
    assert found["PYTHONINDEX"] == "https://…@host/simple"
    assert len(found["PYTHONLONG"]) == 4096


def test_files_are_read_whole_and_anew(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 200_000)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert procfs.read_descriptor(fd) == b"x" * 200_000
        path.write_bytes(b"y" * 10)
        assert procfs.read_descriptor(fd) == b"y" * 10
        assert len(procfs.read_descriptor(fd, limit=4)) >= 4
    finally:
        os.close(fd)
    assert procfs.try_read(str(tmp_path / "absent")) is None
    assert procfs.try_readlink(str(path)) is None


def test_only_plain_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert procfs.open_regular(str(tmp_path / "fifo")) is None
    assert procfs.open_regular(str(tmp_path)) is None
    assert procfs.open_regular("/dev/null") is None
    assert procfs.open_regular("a\0b") is None
    (tmp_path / "file").touch()
    fd = procfs.open_regular(str(tmp_path / "file"))
    assert fd is not None
    os.close(fd)
