"""What a core leaves out comes from the files of the process, if they are the right ones."""

from __future__ import annotations

import gc
import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from cores import HEAP, LIB, LIBRARY, mentions, opened, small, with_library
from diagtool.capture.errors import BadCore
from diagtool.capture.model import Capture
from elfwriter import (
    AT_ENTRY,
    AT_SYSINFO_EHDR,
    NT_AUXV,
    NT_FILE,
    PAGE,
    Core,
    Library,
    R,
    W,
    X,
    auxv,
    file_note,
)


def check_served(capture: Capture, library: Library = LIBRARY) -> None:
    image = library.build()
    assert capture.memory.read(LIB + PAGE, 2 * PAGE) == image[PAGE : 3 * PAGE]
    assert capture.memory.read(LIB + 3 * PAGE, 13) == b"modified data", "the core comes first"
    module = capture.modules[0]
    assert module.symbol("run") == LIB + PAGE + 0x100
    assert module.symbol_at(LIB + PAGE + 0x110) == ("run", 0x10)
    assert module.section(".rodata") == (LIB + 2 * PAGE, PAGE)


def check_not_served(capture: Capture) -> None:
    assert capture.memory.try_read(LIB + PAGE, 1) is None
    _, ok = capture.memory.load(np.array([LIB + 2 * PAGE], dtype=np.uint64))
    assert not ok.any()
    assert capture.modules[0].section(".rodata") is None
    assert capture.memory.read(LIB + 3 * PAGE, 8) == b"modified"


def test_pages_that_the_core_leaves_out_come_from_the_file(tmp_path: Path) -> None:
    lib = tmp_path / "lib.so"
    lib.write_bytes(LIBRARY.build())
    capture = opened(tmp_path, with_library(str(lib)).build())
    check_served(capture)
    assert capture.process.exe == str(lib), "the entry point is in it"
    assert capture.modules[0].build_id == "11" * 20
    assert capture.warnings == []
    permissions = [m.permissions for m in capture.mappings if m.path == str(lib)]
    assert permissions == ["r--p", "r-xp", "r--p", "rw-p"]


def test_where_only_nt_file_knows_a_mapping_the_elf_file_has_its_permissions(tmp_path: Path) -> None:
    """As gcore writes it: no PT_LOAD at all for what is left out."""
    lib = tmp_path / "lib.so"
    lib.write_bytes(LIBRARY.build())
    core = with_library(str(lib))
    core.loads = [x for x in core.loads if x.data]
    capture = opened(tmp_path, core.build())
    check_served(capture)
    assert [m.permissions for m in capture.mappings if m.path == str(lib)] == ["r--p", "r-xp", "r--p", "rw-p"]


def test_a_file_with_another_build_id_is_never_used(tmp_path: Path) -> None:
    lib = tmp_path / "lib.so"
    lib.write_bytes(Library(build_id=b"\x22" * 20, dynamic=LIBRARY.dynamic).build())
    capture = opened(tmp_path, with_library(str(lib)).build())
    check_not_served(capture)
    assert capture.modules[0].build_id == "11" * 20
    assert mentions(capture, "11" * 20, "22" * 20, str(lib)) and len(capture.warnings) == 1


@pytest.mark.parametrize("same", [True, False])
def test_without_build_ids_the_header_page_decides(tmp_path: Path, same: bool) -> None:
    lib = tmp_path / "lib.so"
    mapped = Library(build_id=None, dynamic=LIBRARY.dynamic)
    lib.write_bytes((mapped if same else Library(build_id=None)).build())
    capture = opened(tmp_path, with_library(str(lib), mapped).build())
    if same:
        check_served(capture, mapped)
    else:
        check_not_served(capture)
    assert mentions(capture, "begins with other bytes") != same


def test_a_file_that_nothing_can_be_compared_with_is_used_with_a_warning(tmp_path: Path) -> None:
    lib = tmp_path / "lib.so"
    lib.write_bytes(LIBRARY.build())
    os.utime(lib, (1, 1))
    capture = opened(tmp_path, with_library(str(lib), held=0).build())
    check_served(capture)
    assert mentions(capture, str(lib), "unchecked")
    newer = tmp_path / "newer.so"
    newer.write_bytes(LIBRARY.build())
    os.utime(newer, (4_000_000_000, 4_000_000_000))
    capture = opened(tmp_path, with_library(str(newer), held=0).build())
    assert capture.memory.try_read(LIB + PAGE, 1) is None, "changed after the core was taken"


def test_missing_files_are_one_warning_with_the_way_out(tmp_path: Path) -> None:
    core = with_library("/absent/app")
    starts = [LIB + (i + 1) * 0x100000 for i in range(5)]
    more = [(start, start + PAGE, 0, b"/absent/%d.so" % i) for i, start in enumerate(starts)]
    core.notes = small().notes
    core.note(NT_FILE, file_note(*LIBRARY.mapped(LIB, b"/absent/app"), *more))
    capture = opened(tmp_path, core.build())
    assert capture.warnings == [], "nobody asked for them yet"
    capture.memory.load(np.array([LIB + PAGE, *starts], dtype=np.uint64))
    found = [w for w in capture.warnings if "not found" in w]
    assert len(found) == 1
    assert "6 mapped file(s)" in found[0] and "and 3 more" in found[0] and "--sysroot" in found[0]


def test_a_file_that_is_found_but_can_not_be_shown_to_be_the_same_counts_as_missing(tmp_path: Path) -> None:
    lib = tmp_path / "lib.so"
    lib.write_bytes(LIBRARY.build())
    os.utime(lib, (4_000_000_000, 4_000_000_000))
    capture = opened(tmp_path, with_library(str(lib), held=0).build())
    assert capture.memory.try_read(LIB + PAGE, 1) is None
    assert mentions(capture, "1 mapped file(s) not found", str(lib))


def test_a_wrong_file_is_told_before_the_missing_ones(tmp_path: Path) -> None:
    lib = tmp_path / "lib.so"
    lib.write_bytes(Library(build_id=b"\x22" * 20).build())
    files = LIBRARY.mapped(HEAP, os.fsencode(lib))
    core = small().note(NT_FILE, file_note((LIB, LIB + PAGE, 0, b"/absent"), *files))
    core.loads[0].data = LIBRARY.build()[:PAGE]
    capture = opened(tmp_path, core.build())
    assert capture.memory.try_read(LIB, 1) is None and capture.memory.try_read(HEAP + PAGE, 1) is None
    assert ["build-id" in w for w in capture.warnings] == [True, False], capture.warnings


def test_exe_names_the_executable(tmp_path: Path) -> None:
    here = tmp_path / "elsewhere"
    here.write_bytes(LIBRARY.build())
    check_served(opened(tmp_path, with_library("/absent/app").build(), exe=str(here)))
    here.write_bytes(Library(build_id=b"\x22" * 20).build())
    capture = opened(tmp_path, with_library("/absent/app").build(), exe=str(here))
    check_not_served(capture)
    assert mentions(capture, "11" * 20, "22" * 20, str(here))


def test_exe_is_placed_by_its_entry_point_where_nt_file_is_missing(tmp_path: Path) -> None:
    app = Library(dynamic=LIBRARY.dynamic, entry=PAGE + 0x10)
    here = tmp_path / "app"
    here.write_bytes(app.build())
    core = with_library("/absent/app", app)
    core.notes = small().notes
    core.note(NT_AUXV, auxv((AT_ENTRY, LIB + PAGE + 0x10)))
    check_served(opened(tmp_path, core.build(), exe=str(here)), app)


def test_sysroot_is_where_the_files_of_the_process_are(tmp_path: Path) -> None:
    """Absolute links in it lead into it, and dots never out of it."""
    root = tmp_path / "root"
    (root / "usr/lib").mkdir(parents=True)
    (root / "usr/lib/lib.so.1.2").write_bytes(LIBRARY.build())
    (root / "usr/lib/lib.so").symlink_to("/usr/lib/lib.so.1.2")
    (root / "lib").symlink_to("/../../../usr/lib")
    (root / "loop").symlink_to("loop")
    for path in ("/usr/lib/lib.so.1.2", "/usr/lib/lib.so", "/lib/lib.so", "/../../lib/../lib/lib.so"):
        check_served(opened(tmp_path, with_library(path).build(), sysroot=str(root)))
    (tmp_path / "outside").write_bytes(LIBRARY.build())
    for path in ("/../outside", "/loop", "/loop/x"):
        check_not_served(opened(tmp_path, with_library(path).build(), sysroot=str(root)))


def test_with_a_sysroot_a_file_of_this_machine_must_be_shown_to_be_the_same(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    lib = tmp_path / "lib.so"
    lib.write_bytes(LIBRARY.build())
    os.utime(lib, (1, 1))
    check_served(opened(tmp_path, with_library(str(lib)).build(), sysroot=str(tmp_path / "root")))
    capture = opened(tmp_path, with_library(str(lib), held=0).build(), sysroot=str(tmp_path / "root"))
    assert capture.memory.try_read(LIB + PAGE, 1) is None


def test_a_deleted_file_is_found_again_only_if_it_is_the_same(tmp_path: Path) -> None:
    lib = tmp_path / "lib.so"
    lib.write_bytes(LIBRARY.build())
    os.utime(lib, (1, 1))
    capture = opened(tmp_path, with_library(f"{lib} (deleted)").build())
    check_served(capture)
    assert capture.process.exe == str(lib)
    capture = opened(tmp_path, with_library(f"{lib} (deleted)", held=0).build())
    assert capture.memory.try_read(LIB + PAGE, 1) is None


def test_what_was_written_to_is_never_taken_from_a_file(tmp_path: Path) -> None:
    """A core without anonymous memory lost the written pages; one that is cut off may have."""
    lib = tmp_path / "lib.so"
    lib.write_bytes(LIBRARY.build())
    capture = opened(tmp_path, with_library(str(lib), anonymous=False).build())
    assert capture.memory.read(LIB + PAGE, 16) == LIBRARY.text[:16], "text can't have been"
    assert capture.memory.try_read(LIB + 3 * PAGE, 1) is None
    data = with_library(str(lib)).build()
    capture = opened(tmp_path, data[:-PAGE])
    assert mentions(capture, "is cut off")
    assert capture.memory.read(LIB + PAGE, 16) == LIBRARY.text[:16]
    assert capture.memory.try_read(LIB + 3 * PAGE, 1) is None


def test_written_data_files_are_never_taken_from_disk_and_others_are(tmp_path: Path) -> None:
    """A file that is no ELF file: the tail of its last page is zeros, what lies beyond is not there."""
    table = tmp_path / "table.bin"
    table.write_bytes(b"constants" * 600)  # 5400 bytes
    os.utime(table, (1, 1))
    for flags, served in ((R, True), (R | W, False)):
        core = small().note(NT_FILE, file_note((LIB, LIB + 3 * PAGE, 0, os.fsencode(table))))
        core.load(LIB, b"", flags, memsz=3 * PAGE)
        memory = opened(tmp_path, core.build()).memory
        if served:
            assert memory.read(LIB, 2 * PAGE) == (b"constants" * 600).ljust(2 * PAGE, b"\0")
            assert memory.try_read(LIB + 2 * PAGE, 1) is None
        else:
            assert memory.try_read(LIB, 1) is None


def test_special_files_are_never_opened(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (str(fifo), "/dev/zero", "/proc/self/mem", "/absent\0x", "relative", "/" + "x" * 9000):
        capture = opened(tmp_path, with_library(path).build())
        assert capture.memory.try_read(LIB + PAGE, 1) is None


def test_the_vdso_is_a_module(tmp_path: Path) -> None:
    image = LIBRARY.build()
    core = small().note(NT_AUXV, auxv((AT_SYSINFO_EHDR, LIB)))
    core.load(LIB, image + bytes(-len(image) % PAGE), R | X)
    capture = opened(tmp_path, core.build())
    assert [m.path for m in capture.modules] == ["[vdso]"]
    assert capture.modules[0].symbol("run") == LIB + PAGE + 0x100


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    gc.collect()  # captures of other tests
    before = len(os.listdir("/proc/self/fd"))
    for data in (
        small().build(),
        gzip.compress(small().build()),
        b"text",
        gzip.compress(b"text"),
        Core().build(),
    ):
        try:
            with opened(tmp_path, data) as capture:
                assert capture.memory.segments
        except BadCore:
            pass
    lib = tmp_path / "lib.so"
    lib.write_bytes(LIBRARY.build())
    with opened(tmp_path, with_library(str(lib)).build()) as capture:
        check_served(capture)
        del capture.modules[:]
    del capture
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
