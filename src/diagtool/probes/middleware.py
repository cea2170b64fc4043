"""What the middlewares for ASGI and WSGI share: settings, what was reported, an end."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from diagtool.probes import scopes
from diagtool.probes.outlived import LEAST_ALIVE, Leak, Outlived
from diagtool.probes.reports import OnLeak, reporter
from diagtool.probes.scopes import KINDS

__all__ = ["Middleware"]


class Middleware:
    """``KINDS``: what is looked for by default. The parameters are those of ``asgi.LeakMiddleware``."""

    KINDS: Collection[str] = KINDS

    def __init__(
        self,
        app: Any,
        *,
        kinds: Collection[str] | None = None,
        grace: float = 5.0,
        on_leak: OnLeak = "log",
        ignore: Collection[str] = (),
        least: Mapping[str, int] | None = None,
    ) -> None:
        self.app = app
        self._kinds = scopes.checked(self.KINDS if kinds is None else kinds)
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
