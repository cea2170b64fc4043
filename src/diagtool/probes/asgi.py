"""An ASGI middleware that reports what outlives its request.

    app = LeakMiddleware(app)                              # any ASGI application
    app.add_middleware(LeakMiddleware, grace=10)           # Starlette, FastAPI

Background tasks of the framework run within their request and are no leaks; what is started and meant to go
on is named with ``ignore``.
"""

from __future__ import annotations

from typing import Any

from diagtool.probes import scopes
from diagtool.probes.middleware import Middleware
from diagtool.probes.scopes import Scope, attach, current

__all__ = ["LeakMiddleware"]


class LeakMiddleware(Middleware):
    """Reports tasks, threads, async generators and descriptors that outlive their request.

    ``kinds``: which of these. ``grace``: seconds that they have to end after their request. ``on_leak``:
    "log" (logger ``diagtool``), "warn" or a function that is given a :class:`Leak`. ``ignore``: globs of
    names (``refresh*``) or places (``app/cache.py:refresh``). ``least``: how many from one place must
    be alive before something is said, by kind, in the place of ``LEAST_ALIVE``.
    """

    def close(self) -> None:
        """Look no more: requests are passed on, and what was replaced is given back."""
        was_installed = self._installed
        super().close()
        if was_installed:
            scopes.detach()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        kind = scope["type"]
        if not self._installed or (kind != "http" and kind != "websocket"):
            await self.app(scope, receive, send)
            return
        attach()
        one = Scope(self._kinds)
        outlived = self._outlived
        outlived.began()
        token = current.set(one)
        try:
            await self.app(scope, receive, send)
        finally:
            current.reset(token)
            if one.things or one.files:
                one.where = _where(scope)
            outlived.ended(one)


# The route where the framework says it (Starlette, FastAPI): a path may hold what is nobody's business.
def _where(scope: Any) -> str:
    route = getattr(scope.get("route"), "path", None)
    return f"{scope.get('method', 'WEBSOCKET')} {route if isinstance(route, str) else scope.get('path', '')}"
