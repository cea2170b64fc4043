"""Libraries, what Python holds of C, and threads of C: of real processes and their cores."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import diagtool
from diagtool.cli import main
from diagtool.report import json as documents
from diagtool.snapshot.model import Snapshot
from fixture_programs import FIXTURES, Interpreter, Running, interpreters, launch, libraries
from native import PROGRAMS, built, started

pytestmark = pytest.mark.timeout(300)

ALL = interpreters()
HERE = [i for i in ALL if i.root is None]
ONE = HERE[-1:]
#: The oldest, one of the middle, and the newest two.
SOME = [i for i in ALL if i.minor in (9, 12, 14, 15)]

Row = dict[str, Any]


def vendor(path: Path, answer: int, *options: str) -> Path:
    """A library with a build-id, which ``answer`` tells from others."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here")
    path.parent.mkdir(parents=True, exist_ok=True)
    source = str(PROGRAMS / "vendor.c")
    command = ["gcc", "-shared", "-fPIC", f"-DANSWER={answer}", "-Wl,--build-id", *options]
    subprocess.run([*command, source, "-o", str(path)], check=True)
    return path


@contextmanager
def python(interpreter: Interpreter, folder: Path, code: str, **options: Any) -> Iterator[Running]:
    """A Python that has run ``code`` and stays."""
    path = folder / "program" / "program.py"
    path.parent.mkdir(exist_ok=True)
    ending = "\nprint('READY', os.getpid(), flush=True)\nwhile True:\n    signal.pause()\n"
    path.write_text("import ctypes, os, signal, sys\n" + code + ending)
    with launch(path, interpreter=interpreter, **options) as program:
        yield program


def look(target: int | Path) -> Snapshot:
    return diagtool.snapshot(target, frames=False, inventory=("ffi",))


def objects(target: int | Path) -> Snapshot:
    return diagtool.snapshot(target, heap=True, graph=False, native=False, frames=False, inventory=("ffi",))


def table(snapshot: Snapshot, name: str, key: str) -> dict[Any, Row]:
    return {row[key]: row for row in snapshot.tables[name]}


# --- libraries ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpreter", SOME, ids=str)
def test_each_library_is_there_for_a_reason(interpreter: Interpreter, tmp_path: Path) -> None:
    with python(interpreter, tmp_path, "import _ctypes, zlib") as program:
        found = [look(target) for target in (program.pid, program.gcore(tmp_path))]
    live, core = (table(s, "libraries", "name") for s in found)
    roles = {row["role"] for row in live.values()}
    assert {"executable", "dependency", "loader", "vdso"} <= roles <= {*roles, "interpreter", "extension"}
    (ctypes,) = (r for n, r in live.items() if n.startswith("_ctypes."))
    assert (ctypes["role"], ctypes["modules"]) == ("extension", ["_ctypes"])
    (libffi,) = (r for n, r in live.items() if n.startswith("libffi."))
    assert (libffi["role"], libffi["needed_by"]) == ("dependency", [ctypes["name"]])
    assert libffi["version"] and libffi["version"].count(".") == 2
    libc = live["libc.so.6"]
    assert libc["version_from"] == "text" and libc["version"].startswith("2.")
    assert all(r["on_disk"] == "same" for n, r in live.items() if n != "[vdso]")
    assert not any(r["copies"] or r["writable_code"] or r["executable_stack"] for r in live.values())
    # A core tells the same, but for the files.
    assert {r["on_disk"] for r in core.values()} == {None}
    without = ("on_disk", "bytes", "address")
    for name, row in live.items():
        if name != "[vdso]":
            told = core[name]
            assert {k: v for k, v in told.items() if k not in without} == {
                k: v for k, v in row.items() if k not in without
            }


@pytest.mark.parametrize("interpreter", ONE, ids=str)
def test_a_library_that_changed_on_disk_is_told_by_its_build_id(
    interpreter: Interpreter, tmp_path: Path
) -> None:
    names = ("kept", "replaced", "deleted", "copied", "upgraded")
    files = {n: vendor(tmp_path / "lib" / f"lib{n}.so", i) for i, n in enumerate(names)}
    other = vendor(tmp_path / "other" / "libother.so", 77)
    code = "held = [ctypes.CDLL(path) for path in sys.argv[1:]]"
    arguments = [str(f) for f in files.values()]
    with python(interpreter, tmp_path, code, arguments=arguments) as program:
        before = table(look(program.pid), "libraries", "name")
        shutil.copy(other, tmp_path / "new")
        (tmp_path / "new").replace(files["replaced"])
        files["deleted"].unlink()
        shutil.copy(files["copied"], tmp_path / "same")
        (tmp_path / "same").replace(files["copied"])
        files["upgraded"].unlink()  # as install(1) does it
        shutil.copy(other, files["upgraded"])
        snapshot = look(program.pid)
    after = {n: table(snapshot, "libraries", "name")[f"lib{n}.so"] for n in names}
    assert all(before[f"lib{n}.so"]["on_disk"] == "same" for n in names)
    assert {n: r["on_disk"] for n, r in after.items()} == {
        "kept": "same",
        "replaced": "replaced",
        "deleted": "deleted",
        "copied": "same",
        "upgraded": "replaced",
    }
    for name, row in after.items():
        assert row["build_id"] == before[f"lib{name}.so"]["build_id"]  # of what runs, not of what is there
    assert after["replaced"]["disk_build_id"] == after["upgraded"]["disk_build_id"]
    assert after["replaced"]["disk_build_id"] not in {r["build_id"] for r in after.values()}


@pytest.mark.parametrize("interpreter", ONE, ids=str)
def test_copies_writable_code_and_executable_stacks_are_told(
    interpreter: Interpreter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = vendor(tmp_path / "a" / "libvendor.so.1.2.3", 1, "-Wl,-soname,libvendor.so.1")
    two = vendor(tmp_path / "b" / "libvendor.so.1.4.0", 2, "-Wl,-soname,libvendor.so.1")
    hashed = vendor(tmp_path / "c" / "libvendor-0a1b2c3d.so.2", 3)
    soft = vendor(tmp_path / "d" / "libsoft.so", 4)
    alike = [vendor(tmp_path / p / "_speedups.so", n) for n, p in ((5, "p"), (6, "q"))]
    code = """
held = [ctypes.CDLL(path) for path in sys.argv[1:]]
for line in open("/proc/self/maps"):
    if "libsoft" in line and "r-xp" in line:
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(low), ctypes.c_size_t(high - low), 7) == 0
"""
    arguments = [str(f) for f in (one, two, hashed, soft, *alike)]
    with python(interpreter, tmp_path, code, arguments=arguments) as program:
        core = program.gcore(tmp_path)
        for target in (program.pid, core):
            found = table(look(target), "libraries", "path")
            assert (found[str(one)]["version"], found[str(two)]["version"]) == ("1.2.3", "1.4.0")
            assert found[str(one)]["copies"] == sorted([str(two), str(hashed)])
            assert found[str(one)]["role"] == "loaded"
            assert found[str(alike[0])]["copies"] == [str(alike[1])]  # no extension modules, these
            soft_pages = {path for path, row in found.items() if row["writable_code"]}
            # gdb leaves out code that nobody wrote to, and so what its pages allow.
            assert soft_pages == ({str(soft)} if target == program.pid else set())
        assert main(["ffi", str(program.pid), "--no-objects"]) == 0
        text = capsys.readouterr().out
        assert "can be written to and executed" in text and "another copy is mapped" in text
    asks = built("starts", "-Wl,-z,execstack")
    with started(asks, "1") as running:
        (exe,) = (r for r in look(running.pid).tables["libraries"] if r["role"] == "executable")
    # Of the kernel and of glibc, which asks what the executable wants.
    assert (exe["executable_stack"], exe["threads"], exe["executable_stacks"]) == (True, 3, 3)


# --- what Python holds -------------------------------------------------------------------------------------

OBJECTS = """
import array
libm, again, me = ctypes.CDLL("libm.so.6"), ctypes.CDLL("libm.so.6"), ctypes.CDLL(None)
functions = [libm.pow, again.pow, libm.sin]
Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
def called(x):
    return x
callbacks = [Callback(called) for _ in range(30)]
texts = [ctypes.create_string_buffer(10000) for _ in range(50)]
class Point(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int), ("y", ctypes.c_int)]
class Big(ctypes.Structure):
    _fields_ = [("x", ctypes.c_char * 4096)]
points, bigs = [Point() for _ in range(100)], [Big() for _ in range(7)]
row = (Point * 20)()
parts = [row[i] for i in range(20)]
bytearrays = [bytearray(1000) for _ in range(12)]
views = [memoryview(b)[10:110] for b in bytearrays] + [memoryview(b"x" * 5000)]
numbers = array.array("d", [0.0] * 500)
of_numbers = memoryview(numbers)
elsewhere = (ctypes.c_char * 1000).from_buffer(bytearrays[1])
new = ctypes.pythonapi.PyCapsule_New
new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
name = b"test.capsule"
capsules = [new(1234, name, None) for _ in range(9)]
"""


@pytest.mark.parametrize("interpreter", SOME, ids=str)
def test_what_python_holds_of_c_is_counted_live_and_in_a_core(
    interpreter: Interpreter, tmp_path: Path
) -> None:
    with python(interpreter, tmp_path, OBJECTS) as program:
        for target in (program.pid, program.gcore(tmp_path)):
            snapshot = objects(target)
            opened = {
                (r["name"], Path(str(r["library"])).name): r["count"]
                for r in snapshot.tables["ffi_libraries"]
            }
            assert opened["libm.so.6", "libm.so.6"] == 2
            functions = {(r["symbol"], r["count"]) for r in snapshot.tables["ffi_functions"]}
            assert {("pow", 2), ("sin", 1), ("PyCapsule_New", 1), (None, 30)} <= functions
            (callback,) = (r for r in snapshot.tables["callbacks"] if r["function"] == "__main__.called")
            assert (callback["count"], callback["library"]) == (30, "ctypes")
            assert callback["file"].endswith("program.py") and callback["line"] == 7
            buffers = table(snapshot, "ffi_buffers", "type")
            texts = next(r for t, r in buffers.items() if t.endswith("c_char_Array_10000"))
            assert (texts["count"], texts["bytes"], texts["owned_bytes"]) == (50, 500_000, 500_000)
            assert (buffers["__main__.Big"]["owned_bytes"], buffers["__main__.Big"]["largest"]) == (
                28672,
                4096,
            )
            point = buffers["__main__.Point"]
            assert (point["count"], point["bytes"], point["owned"], point["views"]) == (120, 960, 0, 20)
            lent = next(r for t, r in buffers.items() if t.endswith("c_char_Array_1000"))
            assert (lent["foreign"], lent["owned"]) == (1, 0)
            # from_buffer() holds one through a memoryview, too.
            assert (buffers["bytearray"]["count"], buffers["bytearray"]["exports"]) == (12, 13)
            assert (buffers["array.array"]["count"], buffers["array.array"]["bytes"]) == (1, 4000)
            viewed = table(snapshot, "ffi_memoryviews", "type")
            assert (viewed["bytearray"]["count"], viewed["bytearray"]["exporters"]) == (13, 12)
            assert viewed["bytearray"]["bytes"] == 12 * 100 + 1000
            assert (viewed["bytes"]["largest"], viewed["array.array"]["bytes"]) == (5000, 4000)
            assert table(snapshot, "ffi_capsules", "name")["test.capsule"]["count"] == 9
            (libm,) = (r for r in snapshot.tables["libraries"] if r["name"] == "libm.so.6")
            assert libm["loaded_by"] == "ctypes"


CFFI = """
import cffi
ffi = cffi.FFI()
ffi.cdef("double cos(double); void *malloc(size_t); void free(void *);")
libm, libc = ffi.dlopen("libm.so.6"), ffi.dlopen(None)
def drop(pointer):
    libc.free(pointer)
pending = [ffi.gc(libc.malloc(10), drop) for _ in range(11)]
handles = [ffi.new_handle(drop) for _ in range(5)]
"""


def test_what_cffi_holds_is_counted(tmp_path: Path) -> None:
    interpreter = next((i for i in ALL if i.minor == 12), ALL[-1])
    where = libraries(interpreter, FIXTURES["e05"].requirements)
    if interpreter.root is not None:
        pytest.skip("libraries are for an interpreter of this machine")
    with python(interpreter, tmp_path, CFFI, env={"PYTHONPATH": str(where)}) as program:
        snapshot = objects(program.pid)
    opened = {(r["by"], r["name"]) for r in snapshot.tables["ffi_libraries"] if r["library"]}
    assert {("cffi", "libm.so.6"), ("cffi", "<None>")} <= opened
    (pending,) = snapshot.tables["cffi_destructors"]
    assert (pending["function"], pending["count"], pending["line"]) == ("__main__.drop", 11, 7)
    assert [r["count"] for r in snapshot.tables["cffi_handles"]] == [5]


# --- the view ----------------------------------------------------------------------------------------------


def test_the_view_shows_a_process_a_core_and_a_snapshot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = tmp_path / "p.diag"
    with python(ONE[0], tmp_path, OBJECTS) as program:
        core = program.gcore(tmp_path)
        assert main(["snapshot", str(program.pid), "--heap", "-o", str(stored)]) == 0
        capsys.readouterr()
        for target in (program.pid, core, stored):
            assert main(["ffi", str(target), "--format", "json"]) == 0
            document = json.loads(capsys.readouterr().out)
            jsonschema.validate(document, documents.schema("ffi"))
            assert document["heap"] and document["libraries"] and document["functions"]
            assert len(document["threads"]) == 1
            assert main(["ffi", str(target), "--all"]) == 0
            text = capsys.readouterr().out
            assert "30  ctypes  __main__.called (program.py:7)" in text and "9  test.capsule" in text
            assert ("a core does not tell" in text) == (target == core)
        assert main(["ffi", str(program.pid), "--no-objects"]) == 0
        text = capsys.readouterr().out
        assert "its heap was not looked at" in text and "__main__.called" not in text


def test_a_process_without_python_has_libraries_and_threads(capsys: pytest.CaptureFixture[str]) -> None:
    with started(built("starts"), "3") as program:
        assert main(["ffi", str(program.pid), "--format", "json"]) == 0
        document = json.loads(capsys.readouterr().out)
        jsonschema.validate(document, documents.schema("ffi"))
        assert not document["heap"] and document["functions"] == []
        assert sorted(t["symbol"] for t in document["threads"]) == ["main", *["reader"] * 3, *["writer"] * 3]
        assert "libc.so.6" in {r["name"] for r in document["libraries"]}
        assert main(["ffi", str(program.pid)]) == 0
        assert os.path.basename(built("starts")) + ": reader" in capsys.readouterr().out
