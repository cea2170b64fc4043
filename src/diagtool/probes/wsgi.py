"""A WSGI middleware that reports what outlives its request.

    application = LeakMiddleware(application)              # any WSGI application
    app.wsgi_app = LeakMiddleware(app.wsgi_app)            # Flask

There is no loop that would wake us after a request, and no thread is started for it: what a request left is
judged when a later one ends, or when somebody asks for ``leaks``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from diagtool.probes import scopes
from diagtool.probes.outlived import LEAST_ALIVE, Leak, Outlived
from diagtool.probes.reports import OnLeak, reporter
from diagtool.probes.scopes import Scope, current

__all__ = ["LeakMiddleware"]

_App = Callable[[Any, Any], Iterable[bytes]]


class LeakMiddleware:
    """Reports threads and descriptors that outlive their request; see ``diagtool.probes.asgi``."""

    def __init__(
        self,
        app: _App,
        *,
        kinds: Collection[str] = ("threads", "fds"),
        grace: float = 5.0,
        on_leak: OnLeak = "log",
        ignore: Collection[str] = (),
        least: Mapping[str, int] | None = None,
    ) -> None:
        self.app = app
        self._kinds = scopes.checked(kinds)
        self._outlived = Outlived(
            reporter(on_leak, raising=False),
            grace=grace,
            least={**LEAST_ALIVE, **(least or {})},
            ignored=ignore,
        )
        self._installed = True
        scopes.install()

    @property
    def leaks(self) -> list[Leak]:
        """What was reported, most first, with how many there are now."""
        return self._outlived.leaks

    @property
    def requests(self) -> int:
        """How many requests have ended."""
        return self._outlived.scopes

    def look(self) -> None:
        """Judge now what had its time, without waiting for the next request."""
        self._outlived.look()

    def close(self) -> None:
        """Look no more: requests are passed on, and what was replaced is given back."""
        if self._installed:
            self._installed = False
            scopes.uninstall()

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        if not self._installed:
            return self.app(environ, start_response)
        scope = Scope(self._kinds)
        self._outlived.began()
        before = current.get()
        current.set(scope)
        try:
            body = self.app(environ, start_response)
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
