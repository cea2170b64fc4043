"""The loader of layout tables: whole tables, patch releases, and what it refuses."""

from __future__ import annotations

import pytest

from diagtool.runtimes.cpython import layouts

#: What every decoder starts from, in every version and flavour.
EVERYWHERE = [
    "_PyRuntimeState.interpreters.head",
    "PyInterpreterState.next",
    "PyThreadState.interp",
    "PyThreadState.thread_id",
    "PyObject.ob_type",
    "PyTypeObject.tp_name",
    "PyCodeObject.co_filename",
    "PyCodeObject.co_firstlineno",
    "PyASCIIObject.length",
    "const.unicode_state_kind_shift",
    "PyDictObject.ma_keys",
    "TaskObj.task_coro",
    "FutureObj.fut_callbacks",
    "sizeof.PyGC_Head",
    "const.POOL_SIZE",
]


def test_every_version_has_a_table_with_what_decoders_start_from() -> None:
    assert layouts.known() == [f"3.{n}" for n in range(9, 16)]
    for version in layouts.known():
        for flavour in layouts.flavours(version):
            table = layouts.load(version, flavour)
            assert [key for key in EVERYWHERE if key not in table] == []


def test_free_threaded_tables_start_with_3_13_and_have_larger_objects() -> None:
    assert [v for v in layouts.known() if "free-threaded" in layouts.flavours(v)] == ["3.13", "3.14", "3.15"]
    assert layouts.load("3.14", "free-threaded")["PyObject.ob_type"] == 24
    assert layouts.load("3.14", "release")["PyObject.ob_type"] == 8


@pytest.mark.parametrize(
    ("version", "key", "offset"),
    [
        ("3.10.0", "TaskObj.task_coro", 152),  # bpo-45924 added a field in 3.10.6
        ("3.10.5", "TaskObj.task_coro", 152),
        ("3.10.6", "TaskObj.task_coro", 160),
        ("3.10", "TaskObj.task_coro", 160),
        ("3.13.0", "sizeof.lockobject", 40),  # gh-117721 made it a PyMutex in 3.13.1
        ("3.13.1", "sizeof.lockobject", 24),
        ("3.13.0rc3", "sizeof.lockobject", 40),
        ("3.14.4", "PyInterpreterState.sysdict", 7648),  # gh-148726 made the collector's state longer
        ("3.14.5", "PyInterpreterState.sysdict", 7672),
    ],
)
def test_a_patch_release_gets_its_own_offsets(version: str, key: str, offset: int) -> None:
    assert layouts.load(version)[key] == offset


def test_what_an_old_patch_release_lacks_is_missing_from_its_table() -> None:
    assert "lockobject.lock" not in layouts.load("3.13.0")
    assert "lockobject.lock" in layouts.load("3.13.18")
    assert "FutureObj.fut_exception_tb" not in layouts.load("3.10.4")


@pytest.mark.parametrize("version", ["3.8", "3.16.0a1", "2.7.18", "", "nonsense", "3"])
def test_an_unknown_version_is_a_key_error(version: str) -> None:
    with pytest.raises(KeyError, match="no layout table"):
        layouts.load(version)


def test_an_unknown_flavour_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="free-threaded"):
        layouts.load("3.12", "free-threaded")
    with pytest.raises(KeyError):
        layouts.load("3.13", "musl")


def test_tables_cannot_be_changed_by_their_readers() -> None:
    with pytest.raises(TypeError):
        layouts.load("3.12")["PyObject.ob_type"] = 0  # type: ignore[index]
