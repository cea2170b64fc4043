"""Which pages read after the stop may have changed since: a capture with none of them is of one instant."""

from __future__ import annotations

import ctypes
import mmap
import os

import numpy as np
import pytest

from diagtool.capture.late import LateReader
from diagtool.capture.memory import AddressSpace
from diagtool.capture.model import Capture, CapturedThread, Mapping, ProcessInfo
from diagtool.capture.vmread import MemoryReader

PAGE = 4096
PAGES = 4


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
    area = mmap.mmap(-1, PAGES * PAGE)
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
