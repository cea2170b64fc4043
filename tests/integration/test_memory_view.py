"""`diagtool memory`: every page has one owner, the sum is the kernel's, and glibc's figures are its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diagtool import api
from diagtool.capture import ptrace
from fixture_programs import FIXTURES, launch
from integration.interpreters import Interpreter, interpreters
from native import built, started

pytestmark = [
    pytest.mark.skipif(not ptrace.supported(), reason="live processes on Linux on x86-64 only"),
    pytest.mark.timeout(300),
]

MIB = 1 << 20

#: One kind of memory each, 8 MiB of it touched, and what malloc has; then what mallinfo2() says of that.
PROGRAM = """
import ctypes, mmap, os, sys, tempfile, threading

MIB = 1 << 20
libc = ctypes.CDLL(None)

class Info(ctypes.Structure):
    _fields_ = [(n, ctypes.c_size_t) for n in (
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost").split()]

libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def filled(fd, size=8 * MIB):
    os.truncate(fd, size)
    area = mmap.mmap(fd, size)
    area.write(b"x" * size)
    return area

def without_a_name(folder):
    file = tempfile.NamedTemporaryFile(dir=folder)
    area = filled(file.fileno())
    file.close()
    return area

named = tempfile.NamedTemporaryFile(dir=sys.argv[1])
anonymous = mmap.mmap(-1, 8 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
anonymous.write(b"y" * 8 * MIB)
shared = mmap.mmap(-1, 8 * MIB)
shared.write(b"z" * 8 * MIB)
kept = [without_a_name(sys.argv[1]), filled(named.fileno()), anonymous, shared]
if hasattr(os, "memfd_create"):
    kept.append(filled(os.memfd_create("pool")))
if os.path.ismount("/dev/shm"):
    segment = tempfile.NamedTemporaryFile(dir="/dev/shm")
    kept.append(filled(segment.fileno()))
kept.append(bytearray(b"b") * (24 * MIB))  # more than what malloc has seen freed, which would go to its heap
kept.append([str(i) * 3 for i in range(60_000)])
blocks = [libc.malloc(100 + i % 900) for i in range(30_000)]
for address in blocks:
    ctypes.memset(address, 1, 100)
for i, address in enumerate(blocks):
    if i % 3:
        libc.free(address)
for _ in range(3):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
mallinfo = getattr(libc, "mallinfo2", None)
print("READY", flush=True)
for line in sys.stdin:
    if mallinfo is None:
        print("{}", flush=True)
        continue
    mallinfo.restype = Info
    info = mallinfo()
    print({n: getattr(info, n) for n, _ in Info._fields_}.__repr__().replace("'", '"'), flush=True)
"""


def view(target: str | Path | int, *arguments: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        diagtool("memory", str(target), "--format", "json", *arguments, status=(0,))
    )
    return document


def diagtool(*arguments: str, status: tuple[int, ...]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "diagtool", *arguments], capture_output=True, text=True, timeout=200
    )
    assert done.returncode in status, done.stderr
    return done.stdout


def owners(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    assert len({r["owner"] for r in document["owners"]}) == len(document["owners"])
    return {r["owner"]: r for r in document["owners"]}


def adds_up(document: dict[str, Any]) -> None:
    for column in ("rss", "pss", "swap", "huge", "size"):
        if document[column] is not None:
            assert sum(r[column] for r in document["owners"]) == document[column]
    if document["kernel_rss"] is not None:
        assert document["rss"] == pytest.approx(document["kernel_rss"], rel=0.01)


EACH = ["files", "deleted files", "shared anonymous memory", "unknown anonymous memory"]


CHOSEN = [
    i
    for i in interpreters()
    if (i.version in ("3.9", "3.12", "3.14") and i.flavour == "release")
    or (i.version == "3.14" and i.flavour == "free-threaded")
]


@pytest.mark.parametrize("interpreter", CHOSEN, ids=str)
def test_every_page_has_one_owner_and_malloc_agrees(interpreter: Interpreter, tmp_path: Path) -> None:
    folder = "/tmp" if getattr(interpreter, "root", None) else str(tmp_path)
    with started(*interpreter.argv, "-I", "-c", PROGRAM, folder) as program:
        program.say()  # what reading a line takes is taken before
        program.line()
        found = view(program.pid)
        program.say()
        told = json.loads(program.line())
        core = tmp_path / "core"
        diagtool("core", str(program.pid), "-o", str(core), status=(0,))
        if not getattr(interpreter, "root", None):
            diagtool("snapshot", str(program.pid), "-o", str(tmp_path / "s.diag"), status=(0,))
            again = view(tmp_path / "s.diag")
            adds_up(again)
            assert again["owners"][0].keys() == found["owners"][0].keys()
    adds_up(found)
    by_owner = owners(found)
    for name in EACH:
        assert 8 * MIB <= by_owner[name]["rss"] < 9 * MIB, name
    for name in ("memfd", "shared memory"):
        assert name not in by_owner or 8 * MIB <= by_owner[name]["rss"] < 9 * MIB
    # A free-threaded build takes all from its mimalloc.
    free_threaded = interpreter.flavour == "free-threaded"
    assert by_owner["Python objects" if free_threaded else "glibc mapped blocks"]["rss"] >= 24 * MIB
    assert by_owner["Python objects"]["used"] > 2 * MIB
    if int(interpreter.version.split(".")[1]) >= 11:  # a chunk of 16 KiB for each thread
        assert by_owner["Python frames"]["size"] >= 4 * (16 << 10)
    assert len(found["stacks"]) == 4 and all(r["rss"] > 0 for r in found["stacks"])
    assert by_owner["thread stacks"]["rss"] > 0
    malloc, python = found["malloc"], found["python"]
    assert malloc["how"] == "exact" and malloc["cores"] and malloc["arena_limit"]
    if told:
        told = {name: told[name] for name in malloc["mallinfo2"]}
        assert malloc["mallinfo2"] == pytest.approx(told, rel=0.01, abs=16384)
    assert python["used"] + python["free"] == python["bytes"]
    libraries = {Path(r["path"]).name: r for r in found["libraries"]}
    libc = next(r for name, r in libraries.items() if name.startswith("libc"))
    assert libc["text"] > 0 and libc["relro"] > 0 and libc["data"] > 0

    dead = view(core)
    adds_up(dead)
    by_owner = owners(dead)
    assert (dead["source"], dead["pss"], dead["swap"]) == ("core", None, None)
    assert 8 * MIB <= by_owner["unknown anonymous memory"]["rss"] < 9 * MIB
    for figure in ("uordblks", "fordblks", "arena", "hblkhd"):
        assert dead["malloc"]["mallinfo2"][figure] == pytest.approx(
            malloc["mallinfo2"][figure], rel=0.01, abs=16384
        )
    assert dead["python"]["arenas"] == python["arenas"]
    assert dead["python"]["used"] == pytest.approx(python["used"], rel=0.01)


def test_a_process_without_python_has_owners_and_arenas() -> None:
    with started(built("blocks"), "healthy", "20000", "5") as program:
        found = view(program.pid)
        text = diagtool("memory", str(program.pid), status=(0,))
    adds_up(found)
    by_owner = owners(found)
    assert found["python"] is None
    assert len(found["arenas"]) == found["malloc"]["arenas"] == 6
    assert sum(a["used"] for a in found["arenas"]) == found["malloc"]["used"]
    assert by_owner["glibc heap"]["used"] == found["malloc"]["used"]
    assert by_owner["thread stacks"]["size"] >= 5 * 8 * MIB
    assert re.search(r"glibc's malloc: 6 arenas of at most [\d,]+ ", text)
    assert all(len(line) <= 100 for line in text.splitlines())


def leaks(*targets: str) -> dict[str, dict[str, Any]]:
    findings = json.loads(diagtool("leaks", *targets, "--no-heap", "--format", "json", status=(0, 1)))
    return {f["template"]: f for f in findings["findings"]}


def interpreter() -> Any:
    from fixture_programs import interpreters as all_of_them

    return next((i for i in all_of_them() if i.minor == 12), all_of_them()[-1])


@pytest.mark.parametrize(
    ("mode", "template"), [("leak", "malloc-fragmented"), ("leak2", "malloc-many-arenas")]
)
def test_a_fragmented_heap_is_found_live_and_in_a_core(mode: str, template: str, tmp_path: Path) -> None:
    if mode == "leak2" and (os.cpu_count() or 1) < 2:
        pytest.skip("one processor: malloc makes eight arenas at most")
    with launch(FIXTURES["e08"], mode, interpreter()) as program:
        alive = leaks(str(program.pid))
        looks = [alive]
        if mode == "leak":
            core = tmp_path / "core"
            diagtool("core", str(program.pid), "-o", str(core), status=(0,))
            looks.append(leaks(str(core)))
    for found in looks:
        assert set(found) == {template}
        finding = found[template]
        assert finding["verdict"] == "likely" and finding["fix"] and finding["cause"]
        assert finding["bytes"] > 80 * MIB
        assert "in no block in use" in finding["evidence"][0]


def test_holes_in_the_heap_of_a_program_in_c_are_found_and_measured() -> None:
    with started(built("holes")) as program:
        found = leaks(str(program.pid))
        malloc = view(program.pid)["malloc"]
        program.say()
        arena, used, free = map(int, program.line().split())
    assert set(found) == {"malloc-fragmented"}
    assert found["malloc-fragmented"]["verdict"] == "likely"
    assert malloc["how"] == "exact"  # though sixteen thousand holes are in one list, and were not copied
    assert (malloc["system"], malloc["used"], malloc["free"]) == pytest.approx((arena, used, free), rel=0.01)


@pytest.mark.parametrize("mode", ["healthy2", "healthy3", "healthy4"])
def test_a_heap_in_use_given_back_or_trimmed_is_healthy(mode: str) -> None:
    with launch(FIXTURES["e08"], mode, interpreter()) as program:
        assert leaks(str(program.pid)) == {}


GROWS = {
    "leak": "mapped-memory-grows",
    "leak2": "thread-stacks-grow",
    "leak3": "shared-memory-grows",
    "leak4": "shared-memory-grows",
    "healthy": None,
    "healthy2": None,
    "healthy3": None,
    "healthy4": None,
}


@pytest.mark.parametrize(("mode", "template"), GROWS.items(), ids=str)
def test_an_owner_of_memory_that_grows_is_found_and_one_that_does_not_is_not(
    mode: str, template: str | None
) -> None:
    with launch(FIXTURES["e13"], mode, interpreter()) as program:
        taken = [api.snapshot(program.pid, inventory=("memory",))]
        for _ in range(2):
            program.grow()
            taken.append(api.snapshot(program.pid, inventory=("memory",)))
    for minute, snapshot in enumerate(taken):  # growth is judged by its rate, and this machine has no clock
        snapshot.target.captured_at = 1e9 + 60 * minute
    found = [(f.template, f.verdict) for f in api.find_leaks(taken).findings]
    assert found == ([(template, "likely")] if template else [])
