"""How ELF files are linked, which version they are, and which are copies of one library."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diagtool.capture import linking
from diagtool.capture.elf import ElfFile, NotElf
from diagtool.capture.linking import Linking, linking_of
from diagtool.capture.memory import AddressSpace, Segment
from diagtool.capture.model import Mapping
from diagtool.capture.modules import Module
from diagtool.inventory.ffi import mapped_once
from diagtool.inventory.libversions import base_name, version_of
from elfwriter import PAGE, PT_DYNAMIC, PT_LOAD, PT_NOTE, Library, R, W, X, segment

BIAS = 0x7F00_0000_0000
STACK, RELRO = 0x6474E551, 0x6474E552


def note(name: bytes, kind: int, text: bytes) -> bytes:
    padded = name + b"\0" * (-len(name) % 4)
    return struct.pack("<III", len(name), len(text), kind) + padded + text + b"\0" * (-len(text) % 4)


def library(relocated: int = 0, stack: int = R | W) -> bytes:
    """A page that is an ELF file: needs two others, defines two versions, has the note of a package."""
    strings = b"\0libone.so.1\0libtwo.so\0libme.so.2\0ME_1.0\0ME_1.12\0libme.so.2\0"
    place = {name: strings.index(name) for name in (b"libone.so.1", b"libtwo.so", b"libme.so.2")}
    at_strings, at_versions, at_dynamic, at_note = 0x400, 0x500, 0x600, 0x700
    versions = b""
    for i, name in enumerate((b"libme.so.2", b"ME_1.0", b"ME_1.12")):
        onward = 28 if i < 2 else 0
        versions += struct.pack("<HHHHIII", 1, int(i == 0), i + 1, 1, 0, 20, onward)
        versions += struct.pack("<II", strings.index(name), 0)
    package = note(b"FDO\0", 0xCAFE1A7E, b'{"type":"deb","name":"me","version":"1.12-3"}\0')
    tags = [
        (1, place[b"libone.so.1"]),
        (1, place[b"libtwo.so"]),
        (14, place[b"libme.so.2"]),
        (5, relocated + at_strings),
        (10, len(strings)),
        (30, 8 | 4),
        (0x6FFFFFFC, at_versions),
        (0x6FFFFFFD, 3),
        (0, 0),
    ]
    dynamic = b"".join(struct.pack("<QQ", *tag) for tag in tags)
    headers = [
        segment(PT_LOAD, R | X, 0, 0, PAGE, PAGE, PAGE),
        segment(PT_DYNAMIC, R, at_dynamic, at_dynamic, len(dynamic), len(dynamic), 8),
        segment(PT_NOTE, R, at_note, at_note, len(package), len(package), 4),
        segment(STACK, stack, 0, 0, 0, 0, 16),
        segment(RELRO, R, at_dynamic, at_dynamic, len(dynamic), len(dynamic), 1),
    ]
    page = bytearray(Library().build()[:PAGE])
    page[64:] = bytes(PAGE - 64)
    page[64 : 64 + 56 * len(headers)] = b"".join(headers)
    struct.pack_into("<H", page, 56, len(headers))
    struct.pack_into("<QQ", page, 32, 64, 0)
    parts = {at_strings: strings, at_versions: versions, at_dynamic: dynamic, at_note: package}
    for at, data in parts.items():
        page[at : at + len(data)] = data
    return bytes(page)


def in_file(data: bytes, path: str = "/usr/lib/libme.so.2") -> Linking | None:
    return linking_of(Module(path, BIAS, BIAS + PAGE, BIAS, open_file=lambda: ElfFile(data)), AddressSpace())


def in_memory(data: bytes) -> Linking | None:
    memory = AddressSpace()
    memory.add_segments(
        [Segment(BIAS, BIAS + len(data), memory.add_buffer(np.frombuffer(data, np.uint8)), 0, writable=False)]
    )
    return linking_of(Module("/usr/lib/libme.so.2", BIAS, BIAS + PAGE, BIAS), memory)


WHOLE = Linking(
    soname="libme.so.2",
    needed=("libone.so.1", "libtwo.so"),
    versions=("ME_1.0", "ME_1.12"),
    relro="full",
    executable_stack=False,
    relocates_text=True,
    package=("me", "1.12-3"),
)


def test_all_is_told_from_the_file_and_from_memory() -> None:
    assert in_file(library()) == WHOLE
    # The dynamic linker has added the bias to the pointers, or not (musl).
    assert in_memory(library(relocated=BIAS)) == WHOLE
    assert in_memory(library()) == WHOLE


def test_an_executable_stack_is_asked_for() -> None:
    found = in_file(library(stack=R | W | X))
    assert found is not None and found.executable_stack is True


def test_what_says_nothing_is_not_known() -> None:
    assert in_file(Library().build()) == Linking(relro="none")
    assert linking_of(Module("/gone.so", BIAS, BIAS + PAGE, BIAS), AddressSpace()) is None


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 0x7FF), st.integers(0, 255)), min_size=1, max_size=40))
def test_no_bytes_make_it_raise_or_loop(changes: list[tuple[int, int]]) -> None:
    data = bytearray(library())
    for at, value in changes:
        data[at] = value
    in_memory(bytes(data))
    try:
        in_file(bytes(data))
    except NotElf:
        assert data[:20] != library()[:20]


def test_versions_that_lead_to_themselves_end(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(library())
    struct.pack_into("<I", data, 0x500 + 28 + 16, 0x1_0000_0000 - 28 & 0xFFFFFFFF)
    struct.pack_into("<Q", data, 0x600 + 7 * 16 + 8, 1 << 60)
    monkeypatch.setattr(linking, "_MAX_VERSIONS", 50)
    found = in_file(bytes(data))
    assert found is not None and len(found.versions) <= 50


@pytest.mark.parametrize(
    ("path", "soname", "versions", "package", "expected"),
    [
        ("/usr/lib/libstdc++.so.6.0.30", "libstdc++.so.6", ("GLIBCXX_3.4",), None, ("6.0.30", "file name")),
        ("/lib/libc-2.31.so", "libc.so.6", ("GLIBC_2.31",), None, ("2.31", "file name")),
        ("/x/libopenblas64_p-r0-0cf96a72.3.23.dev.so", None, (), None, ("3.23.dev", "file name")),
        ("/x/libgomp-a34b3233.so.1.0.0", "libgomp.so.1", (), None, ("1.0.0", "file name")),
        ("/x/libssl-81259c47.so.1.1.1k", None, (), None, ("1.1.1k", "file name")),
        ("/lib/libpython3.12.so.1.0", None, (), None, ("3.12", "file name")),
        ("/lib/libssl.so.3", "libssl.so.3", ("OPENSSL_3.0.0", "OPENSSL_3.2.0"), None, ("3.2.0", "symbols")),
        ("/lib/libm.so.6", "libm.so.6", ("GLIBC_2.4", "GLIBC_2.35", "GLIBC_2.29"), None, ("2.35", "symbols")),
        ("/lib/libfoo.so.7", None, ("FOO_7",), None, ("7", "soname")),
        ("/lib/libfoo.so", "libfoo.so.4", (), None, ("4", "soname")),
        ("/lib/libfoo.so.1.2", None, (), ("foo", "1.2.3-4"), ("1.2.3-4", "package")),
        ("/x/_speedups.cpython-312-x86_64-linux-gnu.so", None, (), None, (None, None)),
        ("/lib/libfoo.so (deleted)", None, (), None, (None, None)),
    ],
)
def test_the_version_is_the_best_that_is_known(
    path: str,
    soname: str | None,
    versions: tuple[str, ...],
    package: tuple[str, str] | None,
    expected: tuple[str | None, str | None],
) -> None:
    linked = Linking(soname=soname, versions=versions, package=package)
    assert version_of(Module(path, BIAS, BIAS + PAGE, BIAS), linked, AddressSpace()) == expected


def test_what_a_library_says_of_itself_counts(tmp_path: Path) -> None:
    data = Library(constants=b"xxOpenBLAS 0.3.27 NO_LAPACKE DYNAMIC\0".ljust(PAGE, b"\0")).build()
    module = Module(
        "/lib/libopenblas.so.0", BIAS, BIAS + PAGE, BIAS, open_file=lambda: ElfFile(data), build_id="ab"
    )
    assert version_of(module, None, AddressSpace()) == ("0.3.27", "text")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("/a/libgomp-a34b3233.so.1.0.0", "/usr/lib/libgomp.so.1.0.0", True),
        ("/a/libopenblas64_p-r0-0cf96a72.3.23.so", "/b/libscipy_openblas64_-32a4b2a6.so", True),
        ("/a/libssl-81259c47.so.1.1.1k", "/usr/lib/libssl.so.3", True),
        ("/lib/libc-2.31.so", "/lib/libc.so.6", True),
        ("/a/libc10.so", "/lib/libc.so.6", False),
        ("/a/libtorch.so", "/a/libtorch_cpu.so", False),
        ("/a/libavcodec-c4204469.so.62", "/a/libavformat-4762a711.so.62", False),
        ("/a/libz.so.1", "/a/libm.so.6", False),
        ("/a/libpool_1.so", "/a/libpool_2.so", False),
        ("/a/libpython3.so", "/a/libpython3.12.so.1.0", False),
    ],
)
def test_copies_of_one_library_have_one_name(one: str, other: str, same: bool) -> None:
    assert (base_name(one) == base_name(other)) is same


def test_a_part_of_a_file_that_is_mapped_once_more_is_no_library() -> None:
    def module(path: str, start: int) -> Module:
        return Module(path, start, start + PAGE, 0)

    whole, again = module("/usr/bin/node", PAGE), module("/usr/bin/node", 9 * PAGE)
    part = module("/x.so", 5 * PAGE)
    offsets = {PAGE: 0, 9 * PAGE: 3 * PAGE, 5 * PAGE: 2 * PAGE}
    mappings = [Mapping(s, s + PAGE, "r-xp", offset, 1, "") for s, offset in offsets.items()]
    assert mapped_once([whole, part, again], mappings) == [whole, part]
