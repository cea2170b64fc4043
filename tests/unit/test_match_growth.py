"""Growth of the heap is a leak where it is steady and has a holder; a pair of snapshots is never sure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from made_snapshots import container
from made_stacks import QUEUE_GET, World

from diagtool.leaks import find_leaks
from diagtool.leaks.facts import Facts
from diagtool.leaks.growth import TABLE, derive
from diagtool.leaks.model import Finding
from diagtool.leaks.template import TablePattern, builtin
from diagtool.snapshot.model import Snapshot

STEADY = (10_000, 20_000, 30_000)


def snapshot(at: float, rows: Sequence[dict[str, Any]] = (), tasks: int = 0, **heaps: Any) -> Snapshot:
    world = World(at=at)
    if tasks:
        world.tasks(tasks, "asyncio.Queue.get", f"{QUEUE_GET} app.py:fetch:3")
    made = world.build()
    base = {
        "collected": 20_000,
        "blocks": 90_000,
        "object_bytes": 10_000_000,
        "collects": True,
        "rss": 1 << 26,
    }
    types = heaps.pop("types", {})
    maps = heaps.pop("maps", {})
    native = heaps.pop("native", None)
    made.tables.update(heaps.pop("tables", {}))
    made.tables["heaps"] = [{**base, **heaps}]
    made.tables["heap_containers"] = list(rows)
    made.tables["heap_types"] = [{"type": t, "count": n, "bytes": 100 * n} for t, n in types.items()]
    made.tables["mapped_files"] = [
        {"pattern": p, "count": n, "files": n, "bytes": 4096 * n} for p, n in maps.items()
    ]
    if native is not None:
        made.tables["native_heap"] = [{"allocator": "glibc malloc", "used": native, "mmapped_blocks": 3}]
        made.tables["native_arenas"] = [{"used_blocks": native // 1000}]
    return made


def judged(series: Sequence[Snapshot]) -> list[tuple[str, str | None, int]]:
    return [(f.verdict, f.template, f.count) for f in find_leaks(series).findings]


def held(counts: Sequence[int], **changes: Any) -> list[Snapshot]:
    """Snapshots, a minute apart, of one container with so many items."""
    return [
        snapshot(60.0 * i, [container(n, **changes)], object_bytes=10_000_000 + 2600 * n)
        for i, n in enumerate(counts)
    ]


def finding(series: Sequence[Snapshot]) -> Finding:
    (found,) = find_leaks(series).findings
    return found


def test_a_container_that_grows_steadily_is_likely_and_names_holder_pace_and_fix() -> None:
    found = finding(held(STEADY))
    assert (found.template, found.verdict, found.count) == ("container-grows", "likely", 30_000)
    assert found.held_by == ("module app → _images (dict, 30,000 items)",)
    assert found.evidence[0] == (
        "it got about 600.0 k items and 1.6 G bytes more an hour, and its oldest items stayed; "
        "a sample of its items: app.Image, str"
    )
    assert found.bytes == 30_000 * 2600
    assert found.trend is not None
    assert found.trend.counts == STEADY
    assert found.examples == ("module app → _images",)
    assert "bound" in found.fix


def test_it_has_the_same_id_whatever_its_numbers_are() -> None:
    assert finding(held(STEADY)).id == finding(held((1000, 5000, 9000, 14_000), address=0x9990)).id


@pytest.mark.parametrize(
    ("counts", "changes"),
    [
        ((10_000, 10_000, 10_000), {}),  # full, or loaded at the start
        ((10_000, 90_000, 91_000), {}),  # a warm-up
        ((10_000, 20_000, 5_000), {}),  # a saw-tooth
        ((20_000, 5_000, 20_000, 30_000), {}),
        ((10_000, 10_050, 10_100), {}),  # little
        (STEADY, {"limit": 50_000}),  # a deque or cache with a bound
        (STEADY, {"of": "cachetools.LRUCache"}),
        (STEADY, {"of": "ipykernel.zmqshell.ZMQInteractiveShell"}),  # the history of a shell
        (STEADY, {"name": "_ih", "held_by": "module __main__ → _ih (list, 1,629 items)"}),
        (STEADY, {"root": "native"}),  # interned strings, the interpreter's own
        (STEADY, {"item_types": ["_asyncio.Task"]}),  # tasks have templates of their own
        (STEADY, {"item_types": ["weakref.ReferenceType"]}),
    ],
)
def test_what_is_no_leak_is_not_reported(counts: tuple[int, ...], changes: dict[str, Any]) -> None:
    assert judged(held(counts, **changes)) == []


def test_a_container_whose_oldest_items_leave_is_a_queue() -> None:
    series = [snapshot(60.0 * i, [container(n, oldest=[n, n + 1])]) for i, n in enumerate(STEADY)]
    assert judged(series) == []


def test_a_pair_is_a_suspect_at_most() -> None:
    assert judged(held((10_000, 20_000))) == [("suspect", "container-grows", 20_000)]


def test_a_local_that_gathers_results_is_a_suspect_at_most() -> None:
    assert judged(held(STEADY, root="local", own_module=False)) == [("suspect", "container-grows", 30_000)]


def test_of_a_library_only_what_is_large_is_likely() -> None:
    assert judged(held(STEADY, own_module=False)) == [("likely", "container-grows", 30_000)]
    small = held((2000, 4000, 6000), own_module=False, bytes=600_000)
    assert [v for v, *_ in judged(small)] == ["suspect"]


def test_an_lru_cache_without_bound_is_told_by_what_it_keeps() -> None:
    """One whose keys are lost has a template of its own (D01)."""
    changes = {
        "of": "functools._lru_cache_wrapper",
        "name": None,
        "held_by": "module app → load (functools._lru_cache_wrapper) → dict, 30,000 items",
    }
    series = held(STEADY, **changes)
    assert judged(series) == [("likely", "container-grows", 30_000)]
    series[-1].tables["caches"] = [{"function": "app.load", "lost": 29_000, "maxsize": None}]
    assert all(t != "container-grows" for _, t, _ in judged(series))
    assert judged(held(STEADY, **changes, limit=50_000)) == []


def test_a_set_has_no_order_and_is_told_all_the_same() -> None:
    assert judged(held(STEADY, type="set", oldest=[])) == [("likely", "container-grows", 30_000)]


def test_one_snapshot_tells_of_what_has_most_of_the_heap_and_is_no_plain_data() -> None:
    rows = [container(50_000)]
    assert judged([snapshot(0, rows, object_bytes=150_000_000)]) == [("suspect", "container-grows", 50_000)]
    assert judged([snapshot(0, rows, object_bytes=400_000_000)]) == []  # a part among many
    words = [container(500_000, item_types=["int", "str"], bytes=60_000_000)]
    assert judged([snapshot(0, words, object_bytes=70_000_000)]) == []  # a table of words
    bounded = [container(50_000, limit=50_000)]
    assert judged([snapshot(0, bounded, object_bytes=150_000_000)]) == []


METRIC = {"of": "prometheus_client.metrics.Counter", "name": "_metrics"}


def test_labels_of_a_metric() -> None:
    assert judged(held(STEADY, **METRIC)) == [("likely", "prometheus-label-cardinality", 30_000)]
    assert judged(held((50, 50, 50), **METRIC)) == []
    assert judged(held((30_000,), **METRIC)) == [("suspect", "prometheus-label-cardinality", 30_000)]
    assert judged(held((300,), **METRIC)) == []


@pytest.mark.parametrize(
    ("pattern", "template"),
    [
        ("/run/m/counter_#.db", "prometheus-multiprocess-files"),
        ("/run/m/gauge_livesum_#.db", "prometheus-multiprocess-files"),
        ("/srv/tiles/*.bin", "maps-kept-open"),
        ("/dev/zero", "maps-kept-open"),
    ],
)
def test_mapped_files(pattern: str, template: str) -> None:
    def series(*counts: int) -> list[Snapshot]:
        return [snapshot(60.0 * i, maps={pattern: n}) for i, n in enumerate(counts)]

    assert judged(series(100, 200, 300)) == [("likely", template, 300)]
    assert judged(series(100, 200)) == [("suspect", template, 200)]
    assert judged(series(100, 100, 100)) == []
    assert judged(series(100, 200, 50)) == []
    assert judged(series(20_000)) == [("suspect", template, 20_000)]
    assert judged(series(5)) == []
    assert judged(series(0, 100, 200)) == [("likely", template, 200)]  # none when it was warm


def growing(**columns: Sequence[Any]) -> list[Snapshot]:
    length = len(next(iter(columns.values())))
    return [
        snapshot(60.0 * i, **{name: values[i] for name, values in columns.items()}) for i in range(length)
    ]


NODES = [{"app.Node": n, "str": 5000} for n in STEADY]


def test_objects_that_no_container_has() -> None:
    series = growing(collected=STEADY, blocks=(90_000, 120_000, 150_000), types=NODES)
    assert judged(series) == [("likely", "objects-grow", 30_000)]
    assert judged(series[:2]) == [("suspect", "objects-grow", 20_000)]
    found = finding(series)
    assert found.examples == ("app.Node",)
    assert "app.Node (+20,000)" in found.evidence[0]


def test_what_grows_for_less_than_a_minute_may_be_a_program_that_warms_up() -> None:
    series = [snapshot(5.0 * i, collected=n, types=NODES[i]) for i, n in enumerate(STEADY)]
    assert judged(series) == [("suspect", "objects-grow", 30_000)]
    assert "a minute" in finding(series).evidence[0]


def test_objects_that_a_container_accounts_for_are_told_once() -> None:
    series = held(STEADY)
    for one, n in zip(series, STEADY, strict=True):
        one.tables["heaps"][0].update(collected=20_000 + n, blocks=90_000 + 6 * n)
        one.tables["heap_types"] = [{"type": "app.Image", "count": n, "bytes": 100 * n}]
    assert [t for _, t, _ in judged(series)] == ["container-grows"]


def test_objects_of_tasks_that_are_more_now_are_no_leak_for_sure() -> None:
    series = [
        snapshot(60.0 * i, collected=n, types=NODES[i], tasks=10 * (i + 1)) for i, n in enumerate(STEADY)
    ]
    assert ("suspect", "objects-grow", 30_000) in judged(series)
    assert not any(t == "objects-grow" and v == "likely" for v, t, _ in judged(series))


def test_objects_while_the_collector_is_off() -> None:
    off = growing(collected=STEADY, collects=(False,) * 3, types=NODES)
    assert judged(off) == [("likely", "objects-grow-collector-off", 30_000)]
    assert judged(growing(collected=(20_000,) * 3, collects=(False,) * 3)) == []


def test_garbage_and_lost_references_are_told_by_their_own_templates() -> None:
    tables = [{"garbage": [{"count": n - 500, "off": False, "threshold": 700, "old": 0}]} for n in STEADY]
    assert judged(growing(collected=STEADY, types=NODES, tables=tables)) == []


BLOCKS = (90_000, 190_000, 290_000)


def test_blocks_without_objects() -> None:
    strings = [{"str": n} for n in STEADY]
    assert judged(growing(blocks=BLOCKS, types=strings)) == [("likely", "blocks-grow", 290_000)]
    assert judged(growing(blocks=BLOCKS[:2], types=strings)) == [("suspect", "blocks-grow", 190_000)]
    assert judged(growing(blocks=(90_000, 190_000, 95_000), types=strings)) == []


def test_what_the_free_lists_of_the_interpreter_may_hold_is_not_lost() -> None:
    strings = [{"str": n} for n in STEADY]
    assert judged(growing(blocks=(90_000, 105_000, 120_000), types=strings)) == []


def test_blocks_that_containers_hold_are_not_lost() -> None:
    """A history of measurements, as monitors keep: numbers in many bounded deques."""
    numbers = [{"float": n, "collections.deque": 80 + n // 20} for n in (10_000, 60_000, 110_000)]
    assert judged(growing(blocks=(90_000, 140_000, 190_000), types=numbers)) == []
    few = [{"float": n, "collections.deque": 80 + n // 400} for n in (10_000, 60_000, 110_000)]
    told = judged(growing(blocks=(90_000, 140_000, 190_000), types=few))
    assert told == [("likely", "blocks-grow", 190_000)]


MANY = (50_000_000, 100_000_000, 150_000_000)


def test_the_native_heap_alone() -> None:
    assert judged(growing(native=MANY)) == [("likely", "native-heap-grows", 150_003)]
    assert finding(growing(native=MANY)).bytes == 150_000_000
    assert judged(growing(native=(150_000_000,) * 3)) == []
    # Buffers of Python objects are in the native heap, too.
    assert judged(growing(native=MANY, object_bytes=[10_000_000 + n for n in MANY])) == []
    # Blocks that nobody can reach have a template of their own.
    lost = [{"native_lost": [{"bytes": n - 40_000_000, "count": 9, "kind": "x"}]} for n in MANY]
    assert all(t != "native-heap-grows" for _, t, _ in judged(growing(native=MANY, tables=lost)))


def test_resident_memory_alone_is_never_a_leak() -> None:
    assert judged(growing(rss=(1 << 26, 1 << 27, 1 << 28))) == []


def test_snapshots_without_the_heap_have_no_growth_of_it() -> None:
    series = held(STEADY)
    for one in series:
        one.tables = {"heaps": [{"rss": 1 << 26}]}
    assert judged(series) == []


def test_a_series_whose_last_snapshot_has_no_heap_says_so() -> None:
    series = held(STEADY)
    for name in ("heap_types", "heap_containers"):
        del series[2].tables[name]
    report = find_leaks(series)
    assert report.findings == ()
    assert any("not looked at in all of the snapshots" in w for w in report.warnings)
    assert find_leaks(held(STEADY)).warnings == ()


def test_tables_that_make_no_sense_do_no_harm() -> None:
    series = held(STEADY)
    nonsense: list[Any] = [
        {"items": "x"},
        7,
        {"type": "dict", "items": -1, "bytes": None, "item_types": "abc"},
    ]
    series[2].tables["heap_containers"] = nonsense
    series[1].tables["mapped_files"] = [{"pattern": 3, "count": "many"}]
    series[0].tables["heaps"] = []
    assert judged(series) == []
    assert judged(series[2:]) == []


def test_every_template_of_growth_is_tested_here() -> None:
    ours = {t.id for t in builtin() if isinstance(t.match, TablePattern) and t.match.table == TABLE}
    text = Path(__file__).read_text("utf-8") + Path(__file__).with_name("test_profile_series.py").read_text(
        "utf-8"
    )
    assert {t for t in ours if f'"{t}"' not in text} == set()


def test_no_snapshot_no_rows() -> None:
    derive([])
    facts = Facts(snapshot(0))
    derive([facts])
    assert facts.table(TABLE) == []
