"""How many objects there are of types that leak in services: clients, TLS contexts, transports, threads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.objects.census import Census, TypeNames
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

__all__ = ("ObjectCounts",)

#: Types counted, by module and name in it. Subclasses are not counted with them.
_COUNTED = {
    "aiohttp.client": ("ClientSession",),
    "aiohttp.connector": ("TCPConnector",),
    "httpx": ("Client", "AsyncClient"),
    "ssl": ("SSLContext",),
    "requests.sessions": ("Session",),
    "urllib3.poolmanager": ("PoolManager",),
    "concurrent.futures.thread": ("ThreadPoolExecutor",),
    "concurrent.futures.process": ("ProcessPoolExecutor",),
    "logging.handlers": ("QueueListener",),
    "threading": ("Timer",),
    "redis.client": ("Redis", "PubSub"),
    "redis.asyncio.client": ("Redis", "PubSub"),
    "sqlalchemy.engine.base": ("Engine",),
    "boto3.session": ("Session",),
    "botocore.client": ("ClientMeta",),  # one a client, whose class is made when it is
    "grpc._channel": ("Channel",),
    "grpc.aio._channel": ("Channel",),
    "grpc.aio._call": ("UnaryUnaryCall", "UnaryStreamCall", "StreamUnaryCall", "StreamStreamCall"),
    "kafka.producer.kafka": ("KafkaProducer",),
    "kafka.consumer.group": ("KafkaConsumer",),
    "aiokafka.producer.producer": ("AIOKafkaProducer",),
    "aiokafka.consumer.consumer": ("AIOKafkaConsumer",),
    "confluent_kafka": ("Producer", "Consumer"),
    "aiohttp.web_ws": ("WebSocketResponse",),
    "starlette.websockets": ("WebSocket",),
    "billiard.einfo": ("ExceptionInfo",),
    "amqp.transport": ("TCPTransport", "SSLTransport"),
    "asyncio.base_events": ("Server",),
}

#: Transports and protocols of asyncio: (module, name) -> attribute that is None once it is closed.
_TRANSPORTS = {
    ("asyncio.selector_events", "_SelectorSocketTransport"): "_sock",
    ("asyncio.selector_events", "_SelectorDatagramTransport"): "_sock",
    ("asyncio.unix_events", "_UnixReadPipeTransport"): "_pipe",
    ("asyncio.unix_events", "_UnixWritePipeTransport"): "_pipe",
    ("asyncio.sslproto", "SSLProtocol"): "_transport",
}

_THREAD = ("threading", "Thread")


class ObjectCounts:
    """Counts from a census. ``types`` are those that the census must look for."""

    def __init__(self, ctx: Context, names: TypeNames) -> None:
        self.ctx = ctx
        self._counted = [t for module, which in _COUNTED.items() for t in names.types(module, *which)]
        self._transports = {key: names.types(*key) for key in _TRANSPORTS}
        self._threads = names.types(*_THREAD)

    @property
    def types(self) -> list[int]:
        """Addresses of all types that are counted."""
        of_transports = (t for types in self._transports.values() for t in types)
        return [*self._counted, *of_transports, *self._threads]

    def counts(self, census: Census) -> list[dict[str, Any]]:
        """{"type": "ssl.SSLContext", "count": 40}, the most numerous first; none of which there is none."""
        found = {self.ctx.objects.qualified_type(t): len(census.of([t])) for t in self._counted}
        ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
        return [{"type": name, "count": count} for name, count in ranked if count]

    def transports(self, census: Census, interpreters: list[Interpreter]) -> list[dict[str, Any]]:
        """How many transports are closed, how many open, and whether the collector is on.

            {"type": "asyncio.selector_events._SelectorSocketTransport", "closed": True, "count": 150,
             "gc_enabled": False}

        ``gc_enabled`` is None where interpreters differ: whose the transports are is not told apart.
        """
        rows: list[dict[str, Any]] = []
        collects = {i.collects for i in interpreters}
        enabled = collects.pop() if len(collects) == 1 else None
        for key, types in self._transports.items():
            found = census.of(types)
            ends = self.ctx.vectors.attribute(found, _TRANSPORTS[key])
            closed = int((self.ctx.vectors.are(ends, "NoneType")).sum())
            counts = ((True, closed), (False, len(found) - closed))
            row = {"type": ".".join(key), "gc_enabled": enabled}
            rows += [{**row, "closed": c, "count": n} for c, n in counts if n]
        return rows

    def threads(self, census: Census, interpreters: list[Interpreter]) -> list[dict[str, Any]]:
        """{"finished": 120, "alive": 4}: Thread objects by whether their thread has ended; those not started
        yet count as neither."""
        found = census.of(self._threads)
        idents = self.ctx.vectors.integers(self.ctx.vectors.attribute(found, "_ident"))
        known = [t.ident for i in interpreters for t in i.threads if t.ident < 1 << 62]
        alive = np.isin(idents, known) & _current(self.ctx, found, interpreters)
        finished = (idents > 0) & ~alive
        if not len(found):
            return []
        return [{"finished": int(finished.sum()), "alive": int(alive.sum())}]


def _current(ctx: Context, threads: U64, interpreters: list[Interpreter]) -> NDArray[np.bool_]:
    """Idents are given again: a Thread is alive only if it is the one that threading has for its ident."""
    own = np.array([t.thread_object for i in interpreters for t in i.threads], np.uint64)
    return np.isin(threads, own)
