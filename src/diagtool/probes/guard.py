"""``diagtool.guard()``: what a block starts must have ended when it does.

with diagtool.guard():                                # warns
    work()

async with diagtool.guard(on_leak="raise"):
    await work()

@diagtool.guard(kinds=["threads"])                    # sync and async functions
def job(): ...
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Collection, Iterator
from contextvars import Token
from types import TracebackType
from typing import Any, TypeVar

from diagtool.probes import ignore as known
from diagtool.probes import scopes
from diagtool.probes.outlived import Leak, Remaining, left_of
from diagtool.probes.reports import LeakError, LeakWarning, OnLeak, reporter
from diagtool.probes.scopes import KINDS, Scope, attach, current, running_loop

__all__ = ["LeakError", "LeakWarning", "guard"]

_F = TypeVar("_F", bound=Callable[..., Any])

_FIRST_PAUSE = 0.001  # seconds; each is twice the one before, 50 ms at most
_LONGEST_PAUSE = 0.05
#: What only its event loop can end.
_OF_LOOPS = ("tasks", "asyncgens")


class guard:
    """Reports tasks, threads, async generators and descriptors that outlive a block or a call.

    ``kinds``: which of "tasks", "threads", "asyncgens", "fds". ``on_leak``: "warn" (LeakWarning), "raise"
    (LeakError, unless the block raised something itself), "log" (logger ``diagtool``), or a function that is
    given each :class:`Leak`. ``grace``: seconds that all of it has to end by itself; nobody waits where
    nothing is left. ``ignore``: globs of names (``refresh*``) or places (``app/cache.py:refresh``).

    In a coroutine use ``async with``, or decorate the coroutine function. A plain ``with`` can't let tasks
    end there: tasks and async generators are looked at by the loop, ``grace`` seconds after the block, and
    told by a warning where ``on_leak`` is "raise".
    """

    def __init__(
        self,
        *,
        kinds: Collection[str] = KINDS,
        on_leak: OnLeak = "warn",
        grace: float = 0.5,
        ignore: Collection[str] = (),
    ) -> None:
        self._kinds = scopes.checked(kinds)
        self._on_leak = on_leak
        self._report = reporter(on_leak, raising=True)
        self._grace = grace
        self._ignored = tuple(ignore)
        self._entered: list[tuple[Scope, Token[Scope | None]]] = []
        #: What the last block left behind.
        self.leaks: list[Leak] = []

    # -- as a decorator -----------------------------------------------------------------------------------

    def __call__(self, function: _F) -> _F:
        """Guard every call of a function."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def guarded(*args: Any, **kwargs: Any) -> Any:
                async with self._again():
                    return await function(*args, **kwargs)

            return guarded  # type: ignore[return-value]

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            with self._again():
                return function(*args, **kwargs)

        return called  # type: ignore[return-value]

    # A block of its own for each call: calls may overlap.
    def _again(self) -> guard:
        return guard(kinds=self._kinds, on_leak=self._on_leak, grace=self._grace, ignore=self._ignored)

    # -- as a block ---------------------------------------------------------------------------------------

    def __enter__(self) -> guard:
        self._begin(self._kinds)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        scope = self._end()
        if (loop := running_loop()) is not None:
            self._tell_later(loop, scope)
        for pause in self._pauses(scope):
            time.sleep(pause)
        self._tell(scope, error)

    # Only the loop can let tasks end, and it runs when this coroutine has given way.
    def _tell_later(self, loop: Any, scope: Scope) -> None:
        later = Scope(scope.kinds)
        later.ended = True
        later.things = [thing for thing in scope.things if thing[0] in _OF_LOOPS]
        scope.things = [thing for thing in scope.things if thing[0] not in _OF_LOOPS]
        if not later.things:
            return
        report = reporter("warn", raising=False) if self._on_leak == "raise" else self._report

        def look() -> None:
            self.leaks += self._found(later, report)

        loop.call_later(self._grace, look)

    async def __aenter__(self) -> guard:
        self._begin(self._kinds)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from asyncio import sleep

        scope = self._end()
        if scope.things:
            await sleep(0)
        for pause in self._pauses(scope):
            await sleep(pause)
        self._tell(scope, error)

    def _begin(self, kinds: Collection[str]) -> None:
        scopes.install()
        attach()
        scope = Scope(kinds)
        self._entered.append((scope, current.set(scope)))

    def _end(self) -> Scope:
        scope, token = self._entered.pop()
        current.reset(token)
        scope.ended = True
        scopes.uninstall()
        return scope

    def _pauses(self, scope: Scope) -> Iterator[float]:
        end = time.monotonic() + self._grace
        pause = _FIRST_PAUSE
        while self._left(scope) and (now := time.monotonic()) < end:
            yield min(pause, end - now)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _left(self, scope: Scope) -> list[Remaining]:
        return left_of(scope) if scope.things or scope.files else []

    def _tell(self, scope: Scope, error: BaseException | None) -> None:
        self.leaks = self._found(scope, self._report)
        if self.leaks and self._on_leak == "raise" and error is None:
            raise LeakError(self.leaks)

    def _found(self, scope: Scope, report: Callable[[Leak], None]) -> list[Leak]:
        places: dict[object, Leak] = {}
        for one in self._left(scope):
            left = one.describe()
            if left.ignored or any(known.matches(name, self._ignored) for name in left.names()):
                continue
            place = places.setdefault(one.place, Leak(left.kind, left, first=time.time()))
            place.add(one.key, one.check)
        found = list(places.values())
        for leak in found:
            leak.told = True
            report(leak)
        return found
