"""Who handles a signal is told as it is: by the kernel, by Python; and what takes it from Python is found."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import native
from diagtool.api import find_leaks, snapshot
from diagtool.capture import ptrace
from diagtool.cli import main
from diagtool.leaks.model import Finding
from diagtool.leaks.template import builtin
from diagtool.report.json import schema
from diagtool.snapshot import store
from diagtool.snapshot.model import Snapshot
from fixture_programs import FIXTURES, Interpreter, Running, all_interpreters, interpreters, launch

pytestmark = [
    pytest.mark.skipif(not ptrace.supported(), reason="live processes on Linux on x86-64 only"),
    pytest.mark.timeout(300),
]

ONE = [i for i in interpreters() if i.minor == 12] or interpreters()[-1:]
#: The oldest, the newest, and one whose file is stripped and has the table in a static variable.
EDGES = [i for i in interpreters() if i.minor in (9, 15)]
EDGES += [i for i in all_interpreters() if (i.version, i.flavour) == ("3.11", "release") and i.root][:1]
CATALOGUE = {t.id: t.catalogue for t in builtin()}
ABOUT: dict[str, Any] = {"frames": False, "inventory": ("signals",)}

#: What is a suspect only: the program may mean it.
MILD = {("h02", "leak3"), ("h03", "leak2"), ("h04", "leak3"), ("h05", "leak"), ("h05", "leak2")}
#: What is seen without asking an image, too.
WITHOUT = [("h01", "leak3"), ("h01", "leak4"), ("h02", "leak"), ("h04", "leak"), ("h05", "leak2")]
LEAKS = [(name, mode) for name in ("h01", "h02", "h03", "h04", "h05") for mode in FIXTURES[name].leak_modes]
HEALTHY = [
    (name, mode) for name in ("h01", "h02", "h03", "h04", "h05") for mode in FIXTURES[name].healthy_modes
]


def of_signals(snap: Snapshot) -> list[Finding]:
    """Findings of the templates of signals."""
    found = find_leaks(snap).findings
    return [f for f in found if CATALOGUE.get(f.template or "", "").startswith("H")]


def row(snap: Snapshot, name: str) -> dict[str, Any]:
    """What is said of one signal."""
    return next(r for r in snap.tables["signals"] if r["signal"] == name)


def is_found(name: str, mode: str, snap: Snapshot) -> None:
    found = of_signals(snap)
    told = [(f.template, f.verdict, f.evidence) for f in found]
    assert [CATALOGUE[f.template or ""] for f in found] == [FIXTURES[name].template], told
    assert found[0].verdict == ("suspect" if (name, mode) in MILD else "likely"), told
    assert found[0].count == 1


@pytest.mark.parametrize("interpreter", ONE, ids=str)
@pytest.mark.parametrize(("name", "mode"), LEAKS)
def test_what_is_wrong_with_a_signal_is_found(name: str, mode: str, interpreter: Interpreter) -> None:
    with launch(FIXTURES[name], mode, interpreter) as program:
        is_found(name, mode, snapshot(program.pid, clone="always", **ABOUT))


@pytest.mark.parametrize("interpreter", ONE, ids=str)
@pytest.mark.parametrize(("name", "mode"), HEALTHY)
def test_signals_that_are_as_they_should_be_are_no_findings(
    name: str, mode: str, interpreter: Interpreter
) -> None:
    with launch(FIXTURES[name], mode, interpreter) as program:
        assert of_signals(snapshot(program.pid, clone="always", **ABOUT)) == []
        assert of_signals(snapshot(program.pid, clone="never", **ABOUT)) == []


@pytest.mark.parametrize("interpreter", EDGES, ids=str)
@pytest.mark.parametrize("mode", ["leak", "leak2", "leak3", "healthy"])
def test_the_same_with_other_versions_of_python(mode: str, interpreter: Interpreter) -> None:
    with launch(FIXTURES["h01"], mode, interpreter) as program:
        snap = snapshot(program.pid, clone="always", **ABOUT)
    if mode == "healthy":
        assert of_signals(snap) == []
    else:
        is_found("h01", mode, snap)


@pytest.mark.parametrize("interpreter", ONE, ids=str)
@pytest.mark.parametrize(("name", "mode"), WITHOUT)
def test_without_an_image_what_was_taken_away_altogether_is_found(
    name: str, mode: str, interpreter: Interpreter
) -> None:
    with launch(FIXTURES[name], mode, interpreter) as program:
        snap = snapshot(program.pid, clone="never", **ABOUT)
    is_found(name, mode, snap)
    state = snap.tables["signal_state"][0]
    assert state["handlers"] is False
    assert "image" in state["why_not"]


def taken(snap: Snapshot) -> None:
    """What the program of h01's first leak shows."""
    found = row(snap, "SIGTERM")
    assert found["disposition"] == "handler"
    assert found["owner"] == "library"
    assert re.match(r"libc[.-]", os.path.basename(found["library"]))
    assert (found["symbol"], found["offset"]) == ("abs", 0)
    assert found["python"] == "__main__.on_signal"
    assert found["place"].endswith("h01_handler_replaced.py:" + str(found["python_line"]))
    assert found["agrees"] is False
    own = row(snap, "SIGUSR2")
    assert own["owner"] == "python"
    assert own["agrees"] is True
    assert "SA_ONSTACK" in own["flags"]


@pytest.fixture(scope="module")
def thief() -> Iterator[Running]:
    with launch(FIXTURES["h01"], "leak", ONE[0]) as program:
        yield program


def test_a_core_that_we_wrote_and_a_snapshot_tell_the_same_as_the_process(
    thief: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken(snapshot(thief.pid, clone="always", **ABOUT))
    core, file = str(tmp_path / "core"), tmp_path / "kept.diag"
    assert main(["core", str(thief.pid), "-o", core]) == 0
    snap = snapshot(core, **ABOUT)
    taken(snap)
    is_found("h01", "leak", snap)
    store.save(snap, file)
    taken(store.load(file))
    assert main(["leaks", core, "--no-heap"]) == 1
    capsys.readouterr()
    for target in (str(thief.pid), core, str(file)):
        assert main(["signals", target, "--format", "json"]) == 0
        document = json.loads(capsys.readouterr().out)
        jsonschema.validate(document, schema("signals"))
        found = next(r for r in document["signals"] if r["signal"] == "SIGTERM")
        assert found["symbol"] == "abs"
        assert found["handler"].startswith("0x")
        assert main(["signals", target]) == 0
        text = capsys.readouterr().out
        assert re.search(r"SIGTERM +abs in libc\S+ +__main__.on_signal \(h01_handler_replaced.py:", text)
        assert "replaced behind Python's back" in text


def test_leaks_says_that_it_did_not_ask_and_finds_it_when_it_may(
    thief: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["leaks", str(thief.pid), "--no-native"]) == 0
    assert "not known: who handles SIGUSR2, SIGTERM; --clone always asks" in capsys.readouterr().out
    assert main(["leaks", str(thief.pid), "--no-native", "--clone", "always"]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(r"but the kernel calls abs in libc\S+, which does not call it on", text)
    assert "not known" not in text


def test_a_core_of_gcore_knows_python_and_says_what_it_does_not_know(
    thief: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    core = str(thief.gcore(tmp_path))
    snap = snapshot(core, **ABOUT)
    assert row(snap, "SIGTERM")["python"] == "__main__.on_signal"
    assert row(snap, "SIGTERM")["disposition"] is None
    assert of_signals(snap) == []
    assert main(["signals", core]) == 0
    text = capsys.readouterr().out
    assert "a core does not tell" in text
    assert "SIGTERM  not known" in text


def test_the_process_is_not_changed_by_being_asked(thief: Running) -> None:
    def status() -> list[str]:
        text = Path(f"/proc/{thief.pid}/status").read_text()
        wanted = ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")
        return [line for line in text.splitlines() if line.startswith(wanted)]

    before = status()
    for _ in range(3):
        snapshot(thief.pid, clone="always", **ABOUT)
    assert status() == before
    assert Path(f"/proc/{thief.pid}/task/{thief.pid}/children").read_text() == ""


# -- who keeps Python's handler -----------------------------------------------------------------------------

TAKEN = """
import ctypes, signal
library = ctypes.CDLL({library!r})
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: None)
library.take(signal.SIGTERM)
library.take_and_call(signal.SIGUSR1)
library.take_by_table(signal.SIGUSR2)
print("READY", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize("options", [("-O2",), ("-O0",), ("-O2", "-s")], ids="".join)
def test_a_library_that_may_call_python_on_is_told_from_one_that_can_not(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    library = native.built("takes_signals", "-shared", "-fPIC", *options)
    with native.started(sys.executable, "-c", TAKEN.format(library=library)) as program:
        snap = snapshot(program.pid, clone="always", **ABOUT)
        unasked = snapshot(program.pid, clone="never", **ABOUT)
    rows = {r["signal"]: r for r in snap.tables["signals"]}
    assert all(rows[name]["stolen"] for name in ("SIGTERM", "SIGUSR1", "SIGUSR2"))
    assert rows["SIGUSR1"]["kept"] >= 1
    assert rows["SIGUSR2"]["kept"] >= 1
    verdicts = {f.examples[0]: f.verdict for f in of_signals(snap)}
    if "-s" in options:  # without symbols nobody knows where one function ends: the milder one is said
        assert verdicts == {"SIGTERM": "suspect", "SIGUSR1": "suspect", "SIGUSR2": "suspect"}
    else:
        assert rows["SIGTERM"]["kept"] == 0
        assert rows["SIGTERM"]["symbol"] == "forgets"
        assert verdicts == {"SIGTERM": "likely", "SIGUSR1": "suspect", "SIGUSR2": "suspect"}
    kept = of_signals(unasked)
    assert [(f.template, f.verdict, f.examples) for f in kept] == [
        ("signal-handler-kept", "suspect", (library,)),
    ]
    assert "SIGUSR1, SIGUSR2, SIGTERM" in kept[0].evidence[0]


def test_a_program_in_c_has_signals_too(capsys: pytest.CaptureFixture[str]) -> None:
    with native.started(native.built("images")) as program:
        assert main(["signals", str(program.pid), "--clone", "always"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"SIGCHLD +on_child in images", text)
    assert "Python has" not in text


# -- crashes ------------------------------------------------------------------------------------------------

CRASHES = {
    "null": (signal.SIGSEGV, r"SIGSEGV in store\+\S+ of crashes, at address 0x10: 16 bytes behind NULL"),
    "freed": (signal.SIGSEGV, r"SIGSEGV in store\+.* no memory: freed, unmapped or a wild pointer"),
    "constant": (signal.SIGSEGV, r"SIGSEGV in store\+.* crashes \(r--p\): written to, though it may only be"),
    "deep": (signal.SIGSEGV, r"SIGSEGV in deeper\+.* it has overflowed"),
    "thread": (signal.SIGSEGV, r"SIGSEGV in deeper\+.* it has overflowed"),
    "handled": (signal.SIGSEGV, r"SIGSEGV in store\+.*, at address 0x10: 16 bytes behind NULL"),
    "abort": (signal.SIGABRT, r"SIGABRT in .*: it aborted itself"),
    "divide": (signal.SIGFPE, r"SIGFPE in divided\+.*"),
}


def core_of(how: str, folder: Path, send: int = 0) -> str:
    """The core of the program "crashes" that ends so, or by a signal that we send."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith(("|", "/")):
        pytest.skip(f"core_pattern is {pattern!r}: the kernel writes no core into the program's folder")

    def before() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, resource.RLIM_INFINITY))
        os.chdir(folder)

    with native.started(native.built("crashes"), how, before=before) as program:
        if send:
            os.kill(program.pid, send)
        assert program.process.wait() < 0
    return str(next(folder.glob("core*")))


@pytest.mark.parametrize("how", CRASHES)
def test_what_ended_a_process_is_in_the_head_of_its_report(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number, pattern = CRASHES[how]
    assert main(["signals", core_of(how, tmp_path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert re.match("ENDED BY " + pattern, text), text
    assert f"killed by signal {int(number)}" in text


def test_who_sent_the_signal_that_ended_a_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    core = core_of("wait", tmp_path, send=signal.SIGQUIT)
    assert main(["signals", core, "--format", "json"]) == 0
    crash = json.loads(capsys.readouterr().out)["crash"]
    assert (crash["signal"], crash["sender_pid"], crash["sender_uid"]) == (
        "SIGQUIT",
        os.getpid(),
        os.getuid(),
    )
