"""Templates over clients and connections of libraries: each finds its leak, and not its healthy twin."""

from __future__ import annotations

from typing import Any

import pytest
from made_stacks import T_CONDITION, THREAD, World

from diagtool.leaks import find_leaks
from diagtool.leaks.template import LIBRARY, builtin
from diagtool.leaks.template_table import tomllib
from diagtool.snapshot.model import Snapshot

Row = dict[str, Any]

#: Template: types that it counts.
COUNTED = {
    "boto3-client-per-call": ["boto3.session.Session", "botocore.client.ClientMeta"],
    "websockets-kept": ["aiohttp.web_ws.WebSocketResponse", "starlette.websockets.WebSocket"],
    "redis-pubsub-not-closed": ["redis.client.PubSub", "redis.asyncio.client.PubSub"],
    "grpc-channel-per-call": ["grpc._channel.Channel", "grpc.aio._channel.Channel"],
    "celery-errors-kept": ["billiard.einfo.ExceptionInfo", "amqp.transport.TCPTransport"],
    "kafka-client-per-call": [
        "kafka.producer.kafka.KafkaProducer",
        "kafka.consumer.group.KafkaConsumer",
        "aiokafka.producer.producer.AIOKafkaProducer",
        "aiokafka.consumer.consumer.AIOKafkaConsumer",
        "cimpl.Producer",
    ],
}
#: These have threads of their own: how many others there are says nothing.
WITH_THREADS = {"kafka-client-per-call"}
EACH = [(template, name) for template, names in COUNTED.items() for name in names]


def series(table: str, *rows: Row, threads: int = 2) -> list[Snapshot]:
    """A snapshot for each row, a minute apart, of one process."""
    out = []
    for i, row in enumerate(rows):
        world = World()
        wait = f"{T_CONDITION} app.py:serve:3 {THREAD}"
        world.threads(threads, "threading.Condition.wait", wait)
        world.table(table, row)
        out.append(world.build())
        out[-1].target.captured_at = 1.7e9 + 60 * i
    return out


def told(table: str, *rows: Row, threads: int = 2) -> list[tuple[str | None, str, int]]:
    found = find_leaks(series(table, *rows, threads=threads)).findings
    return [(f.template, f.verdict, f.count) for f in found]


def objects(name: str, *counts: int, threads: int = 2) -> list[tuple[str | None, str, int]]:
    return told("object_counts", *({"type": name, "count": c} for c in counts), threads=threads)


@pytest.mark.parametrize(("template", "name"), EACH)
def test_many_are_a_suspect_and_growth_makes_it_likely(template: str, name: str) -> None:
    assert objects(name, 250) == [(template, "suspect", 250)]
    assert objects(name, 220, 250, 300) == [(template, "likely", 300)]
    assert objects(name, 300, 250, 220) == []


@pytest.mark.parametrize(("template", "name"), EACH)
def test_a_few_are_as_they_should_be(template: str, name: str) -> None:
    assert objects(name, 8) == objects(name, 10, 20, 45) == []


@pytest.mark.parametrize(("template", "name"), [e for e in EACH if e[0] not in WITH_THREADS])
def test_one_for_each_thread_is_as_it_should_be(template: str, name: str) -> None:
    assert objects(name, 300, threads=300) == objects(name, 200, 250, 300, threads=300) == []


def lost(in_use: int, lost: int) -> Row:
    return {"pool": "redis.asyncio.connection", "pools": 1, "in_use": in_use, "lost": lost}


def test_connections_that_only_the_pool_knows_are_likely_lost() -> None:
    assert told("pooled_connections", lost(40, 37)) == [("pool-connections-lost", "likely", 37)]
    assert told("pooled_connections", lost(4, 2), lost(4, 2)) == [("pool-connections-lost", "suspect", 2)]


def test_connections_that_somebody_has_are_in_use() -> None:
    assert told("pooled_connections", lost(4000, 0)) == []
    assert told("pooled_connections", lost(40, 2)) == []  # a moment's, for all that one look can tell
    assert told("pooled_connections", lost(40, 2), lost(40, 0)) == []


JOIN = (
    "threading.py:Thread._wait_for_tstate_lock:1 threading.py:Thread.join:2 "
    "multiprocessing/queues.py:Queue._finalize_join:3 multiprocessing/queues.py:Queue.join_thread:4 "
    "concurrent/futures/process.py:_ExecutorManagerThread.join_executor_internals:5 "
)
BROKEN = f"{JOIN} concurrent/futures/process.py:_ExecutorManagerThread.terminate_broken:6 {THREAD}"
FEEDER = (
    "multiprocessing/connection.py:Connection._send:1 multiprocessing/connection.py:Connection.send_bytes:2 "
    f"multiprocessing/queues.py:Queue._feed:3 {THREAD}"
)


def pool(manager: str, feeder: str) -> list[tuple[str | None, str]]:
    world = World()
    world.threads(1, "threading.Thread.join", manager)
    world.threads(1, feeder, FEEDER)
    return [(f.template, f.verdict) for f in find_leaks([world.build()]).findings]


def test_a_broken_pool_that_still_writes_is_stuck() -> None:
    assert pool(BROKEN, "multiprocessing.Connection.send") == [("process-pool-broken", "likely")]


def test_a_pool_that_is_shut_down_or_a_feeder_that_is_idle_is_not() -> None:
    assert pool(f"{JOIN} {THREAD}", "multiprocessing.Connection.send") == []
    assert pool(BROKEN, "threading.Condition.wait") == []


def test_every_template_of_the_file_is_tested_here() -> None:
    raw = tomllib().loads((LIBRARY / "clients.toml").read_text("utf-8"))
    ours = {t["id"] for t in raw["template"]}
    assert ours == {*COUNTED, "pool-connections-lost"}
    assert ours <= {t.id for t in builtin()}
