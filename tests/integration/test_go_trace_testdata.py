"""Traces that Go's own tests read: those of its old wire, and those that it has as text, new wire."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import numpy as np
import pytest

from diagtool.capture.errors import NotSupported, TargetError
from diagtool.ingest import read_evidence
from diagtool.ingest.gotrace.read import read_data
from diagtool.leaks import find_leaks
from go_programs import ALL, goroot, started

#: Events of the new wire, the type of each its place (internal/trace/tracev2/events.go).
EVENTS = """
None EventBatch Stacks Stack Strings String CPUSamples CPUSample Frequency ProcsChange ProcStart ProcStop
ProcSteal ProcStatus GoCreate GoCreateSyscall GoStart GoDestroy GoDestroySyscall GoStop GoBlock GoUnblock
GoSyscallBegin GoSyscallEnd GoSyscallEndBlocked GoStatus STWBegin STWEnd GCActive GCBegin GCEnd GCSweepActive
GCSweepBegin GCSweepEnd GCMarkAssistActive GCMarkAssistBegin GCMarkAssistEnd HeapAlloc HeapGoal GoLabel
UserTaskBegin UserTaskEnd UserRegionBegin UserRegionEnd UserLog GoSwitch GoSwitchDestroy GoCreateBlocked
GoStatusStack ExperimentalBatch Sync ClockSnapshot EndOfGeneration
""".split()


def leb(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def assembled(text: str) -> bytes:
    """The bytes of a trace that is written as text, an event a line."""
    out = bytearray()
    for line in text.splitlines():
        if head := re.fullmatch(r"Trace Go1\.(\d+)", line):
            out += (b"go 1.%d trace" % int(head[1])).ljust(16, b"\0")
        elif data := re.fullmatch(r'\tdata="(.*)"', line):
            said = data[1].encode().decode("unicode_escape").encode("latin-1")
            out += leb(len(said)) + said
        elif line.strip():
            name, *arguments = line.split()
            if not line.startswith("\t"):
                out.append(EVENTS.index(name))
            else:
                arguments.insert(0, name)
            out += b"".join(leb(int(a.partition("=")[2])) for a in arguments)
    return bytes(out)


def _texts() -> list[Path]:
    root = goroot("1.27")
    return sorted((root / "src/internal/trace/testdata/tests").glob("*.test")) if root else []


def test_traces_of_gos_own_tests_are_read() -> None:
    if not _texts():
        pytest.skip("no Go 1.27 here (make test fetches it)")
    for path in _texts():
        expected, _, text = path.read_text().partition("-- trace --\n")
        data = np.frombuffer(assembled(text), np.uint8)
        try:
            warnings = read_data(data, path.name, 1e9)[-1].warnings
        except TargetError:
            assert "FAILURE" in expected, path.name
            continue
        if "SUCCESS" in expected:
            assert not [w for w in warnings if "does not tell where" not in w], path.name


@pytest.mark.parametrize("minor", ["1.19", "1.21"])
def test_traces_of_the_old_wire_are_read_without_a_warning(minor: str) -> None:
    root = goroot(minor)
    folder = root / "src/internal/trace/testdata" if root else Path("/nonexistent")
    if not folder.is_dir():
        pytest.skip(f"no Go {minor} here")
    read = 0
    for path in sorted(folder.iterdir()):
        if "_1_5_" in path.name:
            with pytest.raises(NotSupported, match=r"Go 1\.5"):
                read_evidence(path)
            continue
        snapshot = read_evidence(path)[-1]
        assert snapshot.warnings == [] and len(snapshot.stacks) > 3, path.name
        read += 1
    assert read >= 15


@pytest.mark.skipif(os.environ.get("DIAGTOOL_TEST_GO") != "all", reason="make test-go")
@pytest.mark.parametrize("minor", ALL)
@pytest.mark.parametrize("mode", ["leak", "healthy"])
def test_a_service_at_work_is_judged_by_its_trace(minor: str, mode: str, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with started("traced", minor, mode, "1", flags=("-trimpath",)) as program:
        program.say(f"trace {path}")
        time.sleep(3)  # it is about what happens meanwhile
        program.say("endtrace")
    found = [f.template for f in find_leaks(read_evidence(path)).findings]
    assert found == (["go-send-nobody-receives"] if mode == "leak" else [])
