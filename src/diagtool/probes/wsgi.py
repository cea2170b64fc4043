"""A WSGI middleware that reports what outlives its request.

    application = LeakMiddleware(application)              # any WSGI application
    app.wsgi_app = LeakMiddleware(app.wsgi_app)            # Flask

There is no loop that would wake us after a request, and no thread is started for it: what a request left is
judged when a later one ends, or when somebody asks for ``leaks``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from diagtool.probes.middleware import Middleware
from diagtool.probes.scopes import Scope, current

__all__ = ["LeakMiddleware"]


class LeakMiddleware(Middleware):
    """Reports threads and descriptors that outlive their request; see ``diagtool.probes.asgi``."""

    KINDS = ("threads", "fds")

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        if not self._installed:
            passed: Iterable[bytes] = self.app(environ, start_response)
            return passed
        scope = Scope(self._kinds)
        self._outlived.began()
        before = current.get()
        current.set(scope)
        try:
            body: Iterable[bytes] = self.app(environ, start_response)
        except BaseException:
            self._end(scope, environ, before)
            raise
        wrapper = environ.get("wsgi.file_wrapper")
        # A list is complete, and what the server sends by itself must stay what it is.
        if type(body) in (list, tuple) or (isinstance(wrapper, type) and isinstance(body, wrapper)):
            self._end(scope, environ, before)
            return body
        return _Body(body, lambda: self._end(scope, environ, before))

    def _end(self, scope: Scope, environ: Any, before: Scope | None) -> None:
        current.set(before)
        if scope.things or scope.files:
            scope.where = f"{environ.get('REQUEST_METHOD', '')} {environ.get('PATH_INFO', '')}"
        self._outlived.ended(scope)


class _Body:
    """A response that is still being made when the application has returned."""

    def __init__(self, body: Iterable[bytes], end: Callable[[], None]) -> None:
        self._body = body
        self._end: Callable[[], None] | None = end

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        """Called by the server when the response was sent."""
        end, self._end = self._end, None
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            if end is not None:
                end()
