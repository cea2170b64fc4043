"""Templates over the tables of details of the heap: each finds its leak, and stays silent for its twins."""

from __future__ import annotations

from typing import Any

import pytest
from made_stacks import World

from diagtool.leaks import find_leaks
from diagtool.leaks.model import Finding
from diagtool.leaks.template import builtin
from diagtool.snapshot.model import Snapshot

Row = dict[str, Any]

CACHE: Row = {
    "function": "app.Store.load",
    "caches": 1,
    "size": 5000,
    "maxsize": None,
    "hits": 3,
    "misses": 5000,
    "method": True,
    "instances_of": "app.Store",
    "instances": 5000,
    "lost": 0,
    "bytes": 9_000_000,
}
HOOK: Row = {
    "registry": "atexit",
    "name": "",
    "items": 130,
    "same": 120,
    "example": "app.Client.close",
    "instances": 120,
    "bound_to": "app.Client",
    "key": "atexit app.Client.close",
}
FINALIZER: Row = {
    **HOOK,
    "registry": "weakref.finalize",
    "name": "app.Client",
    "self_kept": 0,
    "key": "weakref.finalize",
}
HANDLERS: Row = {
    "registry": "logging handlers",
    "name": "app",
    "items": 40,
    "same": 40,
    "example": "logging.StreamHandler",
    "instances": 0,
    "duplicates": 0,
    "key": "logging handlers app",
}
LOGGERS: Row = {**HANDLERS, "registry": "logging.getLogger", "name": "", "example": "request-#"}
WEAK: Row = {**HOOK, "registry": "weakref callbacks of one object", "name": "app.Bus", "key": "weak"}
WARNED: Row = {**HANDLERS, "registry": "__warningregistry__", "name": "app", "example": None}
ERRORS: Row = {"type": "ValueError", "count": 500, "frames": 1500, "bytes": 30_000_000, "held_by": []}
VIEWS: Row = {
    "type": "numpy.ndarray",
    "views": 60,
    "bases": 60,
    "view_bytes": 4800,
    "base_bytes": 480_000_000,
    "bytes": 479_995_200,
}
STRINGS: Row = {"count": 90_000, "bytes": 6_000_000, "immortal": 90_000, "all_immortal": True}
DEBUG: Row = {"tracebacks": 4000, "origins": 0, "frames": 40_000, "bytes": 4_000_000, "debug_loops": 1}

#: (table, row, template, verdict, count) of one snapshot.
LEAKS: list[tuple[str, Row, str, str, int]] = [
    ("caches", {**CACHE, "lost": 4900}, "lru-cache-keeps-objects", "likely", 4900),
    ("caches", {**CACHE, "lost": 300}, "lru-cache-keeps-objects", "suspect", 300),
    ("registries", HOOK, "exit-hooks-pile-up", "suspect", 120),
    (
        "registries",
        {**HOOK, "registry": "os.register_at_fork child"},
        "exit-hooks-pile-up",
        "suspect",
        120,
    ),
    ("registries", {**FINALIZER, "self_kept": 60}, "finalizer-keeps-its-object", "likely", 60),
    ("registries", {**FINALIZER, "self_kept": 12}, "finalizer-keeps-its-object", "suspect", 12),
    ("registries", {**HANDLERS, "duplicates": 39}, "logging-handlers-duplicated", "likely", 39),
    ("registries", {**LOGGERS, "same": 9000}, "loggers-pile-up", "suspect", 9000),
    ("registries", {**WEAK, "same": 9000}, "weakref-callbacks-pile-up", "suspect", 9000),
    ("registries", {**WARNED, "items": 9000}, "warnings-registry-grows", "suspect", 9000),
    ("exceptions", ERRORS, "exceptions-keep-frames", "suspect", 500),
    ("array_views", VIEWS, "array-views-keep-bases", "suspect", 60),
    ("asyncio_debug", DEBUG, "asyncio-debug-left-on", "suspect", 4000),
]
#: (table, row before, row after, template, verdict, growth): two snapshots and more of one process.
GROWING: list[tuple[str, Row, Row, str, str, int]] = [
    (
        "caches",
        {**CACHE, "lost": 100},
        {**CACHE, "lost": 200},
        "lru-cache-keeps-objects",
        "likely",
        2,
    ),
    (
        "caches",
        {**CACHE, "instances": 900},
        {**CACHE, "instances": 1800},
        "lru-cache-on-method",
        "suspect",
        2,
    ),
    ("registries", {**HOOK, "same": 50}, {**HOOK, "same": 70}, "exit-hooks-pile-up", "likely", 3),
    ("registries", {**LOGGERS, "same": 900}, {**LOGGERS, "same": 1500}, "loggers-pile-up", "likely", 3),
    ("registries", {**WEAK, "same": 500}, {**WEAK, "same": 900}, "weakref-callbacks-pile-up", "likely", 3),
    (
        "registries",
        {**WARNED, "items": 500},
        {**WARNED, "items": 1900},
        "warnings-registry-grows",
        "likely",
        3,
    ),
    ("exceptions", {**ERRORS, "count": 200}, ERRORS, "exceptions-keep-frames", "likely", 3),
    ("array_views", {**VIEWS, "views": 30}, VIEWS, "array-views-keep-bases", "likely", 3),
    ("interned", {**STRINGS, "immortal": 60_000}, STRINGS, "interned-strings-immortal", "suspect", 2),
    ("interned", {**STRINGS, "immortal": 60_000}, STRINGS, "interned-strings-immortal", "likely", 3),
]
HEALTHY: dict[str, tuple[str, Row]] = {
    "a method cached with the usual bound": ("caches", {**CACHE, "maxsize": 128, "size": 128, "lost": 128}),
    "a method cached for instances that are in use": ("caches", CACHE),
    "a large cache of values": ("caches", {**CACHE, "method": False, "size": 10**6, "instances": 0}),
    "a few objects that a cache alone keeps": ("caches", {**CACHE, "lost": 20}),
    "hooks of a few libraries": ("registries", {**HOOK, "items": 40, "same": 9}),
    "a signal's handlers": ("registries", {**HOOK, "registry": "signal.signal", "same": 60}),
    "finalizers that don't know their objects": ("registries", {**FINALIZER, "items": 10**6, "same": 10**6}),
    "a finalizer at the end of a few singletons": ("registries", {**FINALIZER, "self_kept": 3}),
    "a logger with many handlers": ("registries", HANDLERS),
    "two handlers of one kind": ("registries", {**HANDLERS, "duplicates": 1}),
    "loggers of modules": ("registries", {**LOGGERS, "items": 3000, "same": 12}),
    "an abstract class that many ask": ("registries", {**WEAK, "name": "abc.ABCMeta", "same": 20_000}),
    "warnings of one module": ("registries", {**WARNED, "items": 30}),
    "modules": ("registries", {**WARNED, "registry": "sys.modules", "items": 9000}),
    "a few errors": ("exceptions", {**ERRORS, "count": 12}),
    "errors without what they came through": ("exceptions", {**ERRORS, "bytes": 90_000}),
    "small arrays": ("array_views", {**VIEWS, "bytes": 400_000}),
    "strings of a version that frees them": ("interned", {**STRINGS, "all_immortal": False}),
    "a program that is being debugged": ("asyncio_debug", {**DEBUG, "tracebacks": 40}),
}


def snapshots(table: str, *rows: Row) -> list[Snapshot]:
    """One snapshot for each row, a minute apart, of one process."""
    out = []
    for i, row in enumerate(rows):
        world = World()
        world.table(table, row)
        snapshot = world.build()
        snapshot.target.captured_at = 1.7e9 + 60 * i
        out.append(snapshot)
    return out


def told(findings: tuple[Finding, ...]) -> list[tuple[str | None, str, int]]:
    return [(f.template, f.verdict, f.count) for f in findings]


@pytest.mark.parametrize(
    ("table", "row", "template", "verdict", "count"), LEAKS, ids=[f"{x[2]}-{x[3]}-{x[4]}" for x in LEAKS]
)
def test_a_leak_is_found(table: str, row: Row, template: str, verdict: str, count: int) -> None:
    assert told(find_leaks(snapshots(table, row)).findings) == [(template, verdict, count)]


@pytest.mark.parametrize(
    ("table", "before", "after", "template", "verdict", "number"),
    GROWING,
    ids=[f"{x[3]}-{x[4]}" for x in GROWING],
)
def test_growth_makes_it_surer(
    table: str, before: Row, after: Row, template: str, verdict: str, number: int
) -> None:
    rows = [before, after, after][:number]
    found = find_leaks(snapshots(table, *rows)).findings
    assert [(f.template, f.verdict) for f in found] == [(template, verdict)]


def test_two_points_are_no_growth_yet() -> None:
    before, after = {**ERRORS, "count": 200}, ERRORS
    assert [f.verdict for f in find_leaks(snapshots("exceptions", before, after)).findings] == ["suspect"]


@pytest.mark.parametrize(("table", "row"), HEALTHY.values(), ids=HEALTHY)
def test_its_healthy_twin_is_not(table: str, row: Row) -> None:
    assert told(find_leaks(snapshots(table, row)).findings) == []
    assert told(find_leaks(snapshots(table, row, row, row)).findings) == []


def test_every_template_over_these_tables_has_a_leak_here() -> None:
    tables = {t for t, *_ in LEAKS} | {t for t, *_ in GROWING}
    templates = {t.id for t in builtin() if t.kind == "table" and getattr(t.match, "table", "") in tables}
    assert templates == {leak[2] for leak in LEAKS} | {leak[3] for leak in GROWING}
