"""Which pages read after the stop may have changed since: a capture with none of them is of one instant."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from diagtool.capture.late import LateReader
from diagtool.capture.memory import AddressSpace
from diagtool.capture.model import Capture, CapturedThread, Mapping, ProcessInfo
from diagtool.capture.vmread import MemoryReader

PAGE = 4096
PAGES = 4
NORESERVE = 0x4000


@pytest.mark.parametrize(
    ("path", "written", "left_out", "rsp_page", "late"),
    [
        ("", 2, False, None, 1),
        ("", None, False, None, 0),  # nobody has written to it: it was zero in the stop
        ("", None, True, None, PAGES),  # it was left out, whatever it held
        ("[stack]", 1, False, 3, 0),  # below the stack pointer
        ("[stack]", 3, False, 2, 1),
    ],
)
def test_only_pages_that_may_have_changed_are_late(
    path: str, written: int | None, left_out: bool, rsp_page: int | None, late: int
) -> None:
    area = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    if written is not None:
        area[written * PAGE + 8] = 1
    mapping = Mapping(start, start + PAGES * PAGE, "rw-p", 0, 0, path)
    thread = CapturedThread(1, {"rsp": start + rsp_page * PAGE + 512} if rsp_page is not None else {})
    capture = Capture("live", ProcessInfo(os.getpid()), [thread], [mapping], [], AddressSpace())
    capture.left_out = [(start, start + PAGES * PAGE)] if left_out else []
    reader = LateReader(capture, MemoryReader(os.getpid()))
    pages = np.arange(start, start + PAGES * PAGE, PAGE, dtype=np.uint64)
    got, _ = reader(pages)
    assert len(got) == PAGES
    assert capture.late_pages == late


@pytest.mark.parametrize(("written", "late"), [(None, 0), (1, 1)])
def test_a_page_of_a_file_that_nobody_wrote_to_is_not_late(
    written: int | None, late: int, tmp_path: Path
) -> None:
    """Data of a program that it never touched: it is as the file has it, whenever it is read."""
    file = tmp_path / "program"
    file.write_bytes(b"d" * PAGES * PAGE)
    with file.open("rb") as descriptor:
        area = mmap.mmap(
            descriptor.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    if written is not None:
        area[written * PAGE + 8] = 1
    mapping = Mapping(start, start + PAGES * PAGE, "rw-p", 0, 1, str(file))
    capture = Capture("live", ProcessInfo(os.getpid()), [], [mapping], [], AddressSpace())
    got, data = LateReader(capture, MemoryReader(os.getpid()))(
        np.arange(start, start + PAGES * PAGE, PAGE, dtype=np.uint64)
    )
    assert len(got) == PAGES and data.all()
    assert capture.late_pages == late


def test_memory_that_nobody_wrote_to_is_not_made_real_by_reading_it() -> None:
    """As the terabytes that AddressSanitizer reserves: each page would get page tables of its own."""
    size = 1 << 36
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    area[5 << 21] = 7
    capture = Capture(
        "live",
        ProcessInfo(os.getpid()),
        [],
        [Mapping(start, start + size, "rw-p", 0, 0, "")],
        [],
        AddressSpace(),
    )
    reader = LateReader(capture, MemoryReader(os.getpid()))
    pages = np.arange(start & -PAGE, start + size, 1 << 21, dtype=np.uint64)
    before = page_tables()
    got, data = reader(pages)
    assert page_tables() - before < len(pages) * PAGE // 2
    holds = dict(zip(got.tolist(), data.any(axis=1).tolist(), strict=True))
    assert [page for page, some in holds.items() if some] == [int(pages[5])]
    assert int(pages[0]) in holds and len(holds) < len(pages)  # zeros, and at last nothing
    few, _ = reader(pages[-1:])
    assert len(few) == 0


def page_tables() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmPTE")))
