"""What grew between snapshots is found: heap, type, container, place, file; what did not is left out."""

from __future__ import annotations

import io
import json as plain_json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from made_snapshots import container
from made_stacks import QUEUE_GET, World

from diagtool.cli import main
from diagtool.report import diff as view_of
from diagtool.report import diffjson, json
from diagtool.report.terminal import View
from diagtool.report.text import write
from diagtool.snapshot import store
from diagtool.snapshot.diff import Diff, diff
from diagtool.snapshot.model import Snapshot


def snapshot(
    at: float,
    *,
    pid: int = 100,
    images: int = 0,
    tasks: int = 0,
    containers: list[dict[str, Any]] | None = None,
    tables: bool = True,
    maps: int = 0,
) -> Snapshot:
    world = World(pid, at=at)
    if tasks:
        world.tasks(tasks, "asyncio.Queue.get", f"{QUEUE_GET} app.py:fetch:3")
    made = world.build()
    made.tables["heaps"] = [{"rss": 50_000_000 + 2600 * images, "mappings": 40}]
    made.tables["mapped_files"] = [
        {"pattern": "/m/a_#.db", "count": maps, "files": maps, "bytes": 4096 * maps}
    ]
    if tables:
        made.tables["heaps"][0].update(collected=20_000 + images, blocks=90_000 + 6 * images)
        made.tables["heap_types"] = [
            {"type": "app.Image", "count": images, "bytes": images * 100, "own": images * 100, "owned": 0},
            {"type": "str", "count": 30_000, "bytes": 2_000_000, "own": 2_000_000, "owned": 0},
        ]
        made.tables["heap_containers"] = containers if containers is not None else [container(images)]
    return made


def leaking(**changes: Any) -> list[Snapshot]:
    return [snapshot(60.0 * i, images=10_000 * (i + 1), **changes) for i in range(3)]


def test_heaps_types_and_holders_that_grow() -> None:
    found = diff(leaking(), work=(20_000,))
    heaps = {h.key: h.change for h in found.heaps}
    assert heaps["collected"].values == (30_000, 40_000, 50_000)
    assert heaps["collected"].course == heaps["blocks"].course == heaps["rss"].course == "grows"
    assert "native" not in heaps
    assert heaps["collected"].per_hour == pytest.approx(600_000)
    assert heaps["collected"].per_unit == pytest.approx(1)
    (images,) = found.types  # str did not change
    assert (images.type, images.count.course, images.count.delta, images.bytes.delta) == (
        "app.Image", "grows", 20_000, 2_000_000)  # fmt: skip
    (holder,) = found.holders
    assert (holder.items.delta, holder.items.course, holder.kept) == (20_000, "grows", True)
    assert holder.row["held_by"].startswith("module app → _images")


def test_the_native_heap_is_that_of_the_allocator_if_one_was_read() -> None:
    series = leaking()
    for i, one in enumerate(series):
        one.tables["native_heap"] = [{"allocator": "glibc malloc", "used": (i + 1) << 22}]
    assert {h.key: h.change.course for h in diff(series).heaps}["native"] == "grows"
    series[1].tables["native_heap"] = [{"allocator": None, "used": 0}]
    assert {h.key: h.change.values for h in diff(series).heaps}["native"] == (1 << 22, None, 3 << 22)


def test_a_container_whose_items_are_others_each_time_is_said_to_be_so() -> None:
    rows = [[container(n, oldest=[n, n + 1])] for n in (100, 200, 300)]
    (holder,) = diff([snapshot(i, containers=r) for i, r in enumerate(rows)]).holders
    assert holder.kept is False


def test_a_container_at_the_same_address_of_another_type_is_another_one() -> None:
    rows = [[container(100)], [container(900, type="list")]]
    assert diff([snapshot(i, containers=r) for i, r in enumerate(rows)]).holders == ()


def test_other_processes_are_compared_by_name() -> None:
    rows = [[container(100)], [container(900, address=0x9000)]]
    series = [snapshot(i, pid=i + 1, containers=r) for i, r in enumerate(rows)]
    assert diff(series).holders == ()
    (holder,) = diff(series, same=False).holders
    assert (holder.items.values, holder.kept) == ((100, 900), None)


def test_stacks_at_one_place_and_mapped_files() -> None:
    series = [snapshot(60.0 * i, tasks=10 * (i + 1), maps=100 * (i + 1)) for i in range(3)]
    found = diff(series)
    (group,) = found.stacks
    assert (group.kind, group.wait, group.count.values) == ("task", "asyncio.Queue.get", (10, 20, 30))
    assert [f.function for f in group.frames] == ["Queue.get", "fetch"]
    (files,) = found.maps
    assert (files.pattern, files.count.values) == ("/m/a_#.db", (100, 200, 300))


def test_sites_of_allocation_where_somebody_recorded_them() -> None:
    series = leaking()
    for i, one in enumerate(series):
        one.tables["allocation_sites"] = [
            {"file": "/srv/app/cache.py", "line": 41, "function": "put", "count": i, "bytes": 1 << 20 + i},
            {"file": "/srv/app/start.py", "line": 3, "function": None, "count": 7, "bytes": 1 << 20},
        ]
    found = diff(series)
    (site,) = found.sites
    assert (site.file, site.line, site.bytes.values) == ("/srv/app/cache.py", 41, (1 << 20, 1 << 21, 1 << 22))
    assert "cache.py:41 in put" in shown(found)
    series[0].tables["allocation_sites"] = [{"file": [], "line": "x"}, {"file": "a", "line": 1, "bytes": "b"}]
    assert isinstance(diff(series), Diff)


def test_nothing_is_made_up_where_the_heap_was_not_looked_at() -> None:
    series = [snapshot(0, images=10), snapshot(1, images=9000, tables=False)]
    found = diff(series)
    assert found.types == found.holders == ()
    assert any("not looked at in all" in w for w in found.warnings)
    assert any("take the snapshots with --heap" in w for w in diff([series[1], series[1]]).warnings)


def test_units_of_work_by_interval() -> None:
    found = diff(leaking(), work=(5_000, 15_000))
    assert found.units == (0.0, 5_000, 20_000)
    series = leaking()
    series[1].target.captured_at = None
    assert diff(series, work=(100,)).units == (0.0, 50.0, 100.0)


def test_tables_that_make_no_sense_are_left_out() -> None:
    series = leaking()
    series[0].tables["heap_types"] = [{"type": 7}, "x", {"type": "a", "count": "b", "bytes": -1}]  # type: ignore[list-item]
    series[1].tables["heap_containers"] = [{"type": "dict"}, {"address": []}, {"address": 1, "type": []}]  # type: ignore[dict-item]
    series[2].tables["heaps"] = [{"rss": True, "blocks": 1e300}]
    assert isinstance(diff(series), Diff)


def shown(found: Diff, width: int = 100) -> str:
    out = io.StringIO()
    write(view_of.report(found, 12, View(width)), out, color=False)
    return out.getvalue()


def test_the_report_names_heap_type_holder_and_slope() -> None:
    text = shown(diff(leaking(), work=(20_000,)))
    assert "30,000 → 40,000 → 50,000, grows steadily, 600,000 per hour, 1.00 per unit" in text
    assert "module app → _images (dict, 30,000 items)" in text
    assert "its oldest items stayed" in " ".join(text.split())
    assert "3 snapshots in 2 min, 20,000 units of work" in text
    assert all(len(line) <= 80 for line in shown(diff(leaking()), 80).splitlines())


def test_a_report_of_no_growth_says_so() -> None:
    assert "Nothing that was counted in these snapshots grew." in shown(diff([snapshot(0), snapshot(1)]))


def test_the_document_is_what_its_schema_says() -> None:
    schema = json.schema("diff")
    jsonschema.Draft202012Validator.check_schema(schema)
    series = leaking(tasks=5)
    series[2].tables["allocation_sites"] = [{"file": "a.py", "line": 1, "count": 900, "bytes": 90_000}]
    series[0].tables["allocation_sites"] = []
    for found in (diff(series, work=(3,)), diff([snapshot(0), snapshot(1, tables=False)])):
        document = plain_json.loads(json.dumps(diffjson.document(found)))
        jsonschema.validate(document, schema, jsonschema.Draft202012Validator)
    assert diffjson.document(diff(leaking()))["holders"][0]["address"] == "0x7000"


def saved(folder: Path, series: list[Snapshot]) -> list[str]:
    paths = [str(folder / f"{i}.diag") for i in range(len(series))]
    for one, path in zip(series, paths, strict=True):
        store.save(one, path)
    return paths


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = saved(tmp_path, leaking())
    assert main(["diff", *paths, "--work", "20000"]) == 0
    assert "1.00 per unit" in capsys.readouterr().out
    assert main(["diff", *reversed(paths), "--format", "json"]) == 0
    document = plain_json.loads(capsys.readouterr().out)
    assert document["heaps"][0]["values"] == [30_000, 40_000, 50_000]  # in order of time


def test_the_command_refuses_what_it_cannot_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = saved(tmp_path, leaking())
    assert main(["diff", paths[0]]) == 2
    assert main(["diff", *paths, "--work", "1,2,3"]) == 2
    assert main(["diff", *paths, "--work", "many"]) == 2
    assert main(["diff", paths[0], str(tmp_path / "none.diag")]) == 3
    capsys.readouterr()


def test_the_command_compares_processes_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    series = [snapshot(0, pid=1, images=1000), snapshot(1, pid=2, images=9000)]
    assert main(["diff", *saved(tmp_path, series)]) == 0
    out = capsys.readouterr().out
    assert "compared by name, not by address" in " ".join(out.split())
    assert "+8,000" in out
