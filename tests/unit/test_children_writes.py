"""What a child waits for is told where it is the process itself that could end that."""

from __future__ import annotations

import fcntl
import os
import subprocess
import termios
import time
from typing import Any

import pytest

from diagtool.capture.children import Children
from diagtool.capture.model import ProcessInfo
from diagtool.runtimes.children import add_what_children_wait_for
from diagtool.snapshot.model import Snapshot, Target, Thing


class Kept:
    """A capture as far as :func:`add_what_children_wait_for` looks at it."""

    def __init__(self, fds: dict[int, str]) -> None:
        self.fds = fds
        self.process = ProcessInfo(os.getpid(), machine=os.uname().machine)
        self.process.children = Children(os.getpid())


@pytest.mark.parametrize("end", ["reader", "writer"])
def test_a_child_that_writes_to_a_pipe_that_is_read_here_is_told(end: str) -> None:
    reader, writer = os.pipe()
    with subprocess.Popen(["head", "-c", "1000000", "/dev/zero"], stdout=writer) as child:
        try:
            deadline = time.monotonic() + 30
            while fcntl.ioctl(reader, termios.FIONREAD, b"....") != (1 << 16).to_bytes(4, "little"):
                assert time.monotonic() < deadline
            fd = reader if end == "reader" else writer
            snapshot = Snapshot(Target("live"))
            snapshot.things = [Thing(1, "subprocess.Popen", f"pid {child.pid}", {"pid": child.pid})]
            kept: Any = Kept({fd: os.readlink(f"/proc/self/fd/{fd}")})
            add_what_children_wait_for(kept, snapshot)
            (thing,) = snapshot.things
            assert ("writes" in thing.state) is (end == "reader")
            assert (f"fd {reader} here" in thing.detail) is (end == "reader")
        finally:
            child.kill()
            os.close(reader)
            os.close(writer)
