"""Connections that a pool has given out and nobody has any more: they never come back to it.

A pool knows the connections in use so that it can close them in the end. Whoever got one refers to it: a
frame, a coroutine, an object. Where all references to it are the pool's own, nobody can give it back.

Facts, each of the libraries' own sources: redis-py (connection.py, asyncio/connection.py) has a set
``_in_use_connections``, which is the only reference to a connection besides whoever uses it. asyncpg
(pool.py) gives out a PoolConnectionProxy, which its PoolConnectionHolder (``_proxy``) and its Connection
(``_proxy``) refer to while it is out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.objects.census import Census, TypeNames

__all__ = ("PooledConnections",)

_REDIS = {
    "redis.connection": ("ConnectionPool", "BlockingConnectionPool"),
    "redis.asyncio.connection": ("ConnectionPool", "BlockingConnectionPool"),
}
_PROXIES = ("asyncpg.pool", "PoolConnectionProxy")

#: References that the pool itself has to what it gave out.
_BY_REDIS = 1
_BY_ASYNCPG = 2

_MAX_POOLS = 10_000


class PooledConnections:
    """From a census. ``types`` are those that the census must look for."""

    def __init__(self, ctx: Context, names: TypeNames) -> None:
        self.ctx = ctx
        self._pools = {module: names.types(module, *which) for module, which in _REDIS.items()}
        self._proxies = names.types(*_PROXIES)

    @property
    def types(self) -> list[int]:
        """Addresses of all types that are looked for."""
        return [*(t for types in self._pools.values() for t in types), *self._proxies]

    def table(self, census: Census) -> list[dict[str, Any]]:
        """{"pool": "redis.asyncio.connection", "pools": 1, "in_use": 40, "lost": 37}, a row a library.

        ``in_use``: connections that pools have given out; ``lost``: those of them that nothing but the pool
        refers to. Only libraries that have pools; none in use: no row.
        """
        rows = []
        for module, types in self._pools.items():
            pools = census.of(types)
            if row := self._row(module, len(pools), self._members(pools), _BY_REDIS):
                rows.append(row)
        proxies = census.of(self._proxies)
        held = self.ctx.vectors.attribute(proxies, "_con")
        out = proxies[(held != 0) & ~self.ctx.vectors.are(held, "NoneType")]
        if row := self._row("asyncpg.pool", 0, out, _BY_ASYNCPG):
            rows.append(row)
        return rows

    def _row(self, pool: str, pools: int, in_use: U64, own: int) -> dict[str, Any] | None:
        if not len(in_use):
            return None
        lost: NDArray[np.bool_] = self.ctx.vectors.references(in_use) == own
        row = {"pool": pool, "in_use": len(in_use), "lost": int(lost.sum())}
        return {**row, "pools": pools} if pools else row

    def _members(self, pools: U64) -> U64:
        """What is in the sets of connections in use."""
        sets = self.ctx.vectors.attribute(pools[:_MAX_POOLS], "_in_use_connections")
        found = [np.zeros(0, np.uint64)]
        for address in sets[self.ctx.vectors.are(sets, "set")].tolist():
            try:
                found.append(self.ctx.objects.set_items(address))
            except MemoryFault:
                continue
        return np.unique(np.concatenate(found))
