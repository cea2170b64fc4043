"""What `diagtool ffi` shows, and what it makes of tables that somebody has tampered with."""

from __future__ import annotations

import io
from typing import Any

import jsonschema
import pytest

from diagtool.report import ffi, ffirows, json
from diagtool.report.terminal import View
from diagtool.report.text import write
from diagtool.snapshot.model import Snapshot, Target

LIBRARY: dict[str, Any] = {
    "path": "/usr/lib/libfoo.so.1",
    "name": "libfoo.so.1",
    "soname": "libfoo.so.1",
    "build_id": "abcd",
    "version": "1.2",
    "version_from": "symbols",
    "address": 0x7F00,
    "bytes": 4096,
    "role": "loaded",
    "modules": [],
    "needed_by": [],
    "loaded_by": None,
    "copies": [],
    "on_disk": "same",
    "disk_build_id": None,
    "writable_code": 0,
    "executable_stack": False,
    "executable_stacks": 0,
    "relocates_text": False,
    "relro": "full",
    "threads": 0,
}
THREAD = {
    "tid": 8,
    "name": "w",
    "python": False,
    "library": "/usr/lib/libgomp.so.1",
    "symbol": None,
    "offset": 64,
    "via": None,
    "running": True,
    "cpu": 1,
}
POOL = {
    "pool": "OpenMP",
    "library": "/usr/lib/libgomp.so.1",
    "threads": 3,
    "running": 2,
    "limit": "OMP_NUM_THREADS",
    "setting": "64",
}
CALLBACK = {
    "library": "ctypes",
    "function": "app.on_event",
    "count": 1500,
    "instances": 7,
    "of": "app.Watcher",
    "address": 16,
    "file": "/srv/app.py",
    "line": 41,
}


def snapshot(**tables: Any) -> Snapshot:
    return Snapshot(Target("live", pid=7, runtime="cpython 3.12.1"), tables=tables)


def shown(snap: Snapshot, *, verbose: bool = False, width: int = 100) -> str:
    out = io.StringIO()
    write(ffi.lines(snap, View(width, verbose, False, None)), out, color=False)
    return out.getvalue()


def test_what_is_to_be_looked_at_comes_first_and_says_why() -> None:
    rows = [
        LIBRARY,
        {**LIBRARY, "name": "liba.so", "role": "extension", "modules": ["a", "b"]},
        {**LIBRARY, "name": "libold.so", "role": "dependency", "on_disk": "replaced", "disk_build_id": "ef"},
        {**LIBRARY, "name": "libgone.so", "role": "dependency", "on_disk": "deleted"},
        {**LIBRARY, "name": "libtwice.so", "copies": ["/opt/libtwice.so"], "loaded_by": "cffi"},
        {**LIBRARY, "name": "libsoft.so", "writable_code": 8192, "executable_stack": True},
    ]
    lines = shown(snapshot(libraries=rows, ffi_functions=[])).splitlines()
    text = "\n".join(lines)
    assert [line.split()[-1] for line in lines if "lib" in line and line.startswith("≥")][:4] == [
        "libsoft.so",
        "libtwice.so",
        "libgone.so",
        "libold.so",
    ]
    for words in (
        "replaced on disk",
        "deleted on disk",
        "another copy is mapped: /opt/libtwice.so",
        "8.2 kB of it can be written to and executed",
        "asks for stacks that can be executed",
        "by cffi",
        "6 mapped files with code, 4 to look at",
    ):
        assert words in text


def test_threads_are_counted_by_where_they_began() -> None:
    threads = [THREAD, THREAD, {**THREAD, "running": False}, {**THREAD, "python": True}]
    threads.append({**THREAD, "library": None, "running": None})
    over = {"cpus": 2, "known_by": "the quota of its control group"}
    text = shown(
        snapshot(libraries=[LIBRARY], native_threads=threads, thread_pools=[POOL], oversubscription=[over])
    )
    assert (
        "      3        2  libgomp.so.1: function not known – OpenMP, limited by OMP_NUM_THREADS (now 64)"
        in text
    )
    assert "      1        ?  not known" in text
    assert "2 processors for these (the quota of its control group)" in text
    assert "4 threads that no interpreter knows" in text and "runs Python" in text


def test_callbacks_name_the_function_and_its_place() -> None:
    text = shown(snapshot(libraries=[], callbacks=[CALLBACK], ffi_functions=[]))
    assert "1,500  ctypes  app.on_event (app.py:41), bound to 7 app.Watcher" in text


@pytest.mark.parametrize("width", [80, 100, 200])
def test_names_of_any_kind_stay_on_their_lines(width: int) -> None:
    evil = "\x1b[2J\n\u202e" + "x" * 500
    rows = {
        "libraries": [{**LIBRARY, "name": evil, "path": evil, "version": evil, "copies": [evil]}],
        "callbacks": [{**CALLBACK, "function": evil, "file": evil, "of": evil}],
        "ffi_capsules": [{"name": evil, "count": 1, "library": evil, "destructors": 0, "address": 1}],
        "native_threads": [{**THREAD, "library": evil, "symbol": evil}],
    }
    for verbose in (False, True):
        text = shown(snapshot(**rows), verbose=verbose, width=width)
        assert "\x1b" not in text and "\u202e" not in text


@pytest.mark.parametrize("value", [None, -1, 1 << 70, "x", [], {}, 1.5, True])
def test_rows_that_make_no_sense_are_left_out(value: Any) -> None:
    snap = snapshot(
        libraries=[LIBRARY, {**LIBRARY, "address": value}, {**LIBRARY, "copies": value}, value],
        native_threads=[{**THREAD, "tid": value if value is not True else -1}],
        ffi_buffers=[{"kind": "ctypes", "type": "x", "count": value, "bytes": 1, "largest": 1, "address": 1}],
        oversubscription=[{"cpus": value}],
        callbacks=value if isinstance(value, list) else [value],
    )
    shown(snap, verbose=True)
    document = json.ffi(snap)
    jsonschema.validate(document, json.schema("ffi"))
    assert len(document["libraries"]) == 1 + (value == [])
    assert document["threads"] == []


def test_a_snapshot_without_libraries_says_nothing_of_them() -> None:
    assert not ffirows.is_told(snapshot())
    assert ffirows.is_told(snapshot(libraries=[]))


def test_threads_that_python_did_not_start_and_runs_in_are_told() -> None:
    threads = [
        {**THREAD, "python": True, "library": "/usr/lib/libpython3.12.so.1.0"},
        {**THREAD, "python": True, "library": "/app/cygrpc.so", "symbol": "poll_loop"},
    ]
    interpreter = {"module": None, "library": "/usr/lib/libpython3.12.so.1.0", "file": None, "address": None}
    text = shown(snapshot(libraries=[LIBRARY], native_threads=threads, python_libraries=[interpreter]))
    assert "cygrpc.so: poll_loop, and runs Python" in text and "libpython" not in text
