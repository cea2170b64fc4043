"""The pytest plugin at work: after each test what is new is judged, given back, or kept for its scope's end.

A test whose fixtures are wider than itself (class, module, session) may have made what these own: that waits
for their teardown. What failed tests leave is not judged: their tracebacks keep it.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from diagtool.probes.accepted import Accepted
from diagtool.probes.left import KINDS, Left
from diagtool.probes.pytest_marks import leak_limits, validate, wanted_of
from diagtool.probes.pytest_report import Results, merge_worker
from diagtool.probes.pytest_scopes import Owner, wide_owners
from diagtool.probes.sites import begin_at
from diagtool.probes.watch import TIMEOUT, Key, Wanted, Watch

if TYPE_CHECKING:
    from diagtool.probes.engine import Engine

#: Seconds given to what will be looked at once more anyway.
_GLANCE = 0.01

#: What calls tests and fixtures.
_CALLERS = (("_pytest.python", "pytest_pyfunc_call"), ("_pytest.fixtures", "call_fixture_func"))


@dataclass(frozen=True, slots=True)
class Pending:
    """Something that a fixture of a wider scope may own; judged when its owners are gone."""

    test: str
    owners: tuple[Owner, ...]
    wanted: Wanted


def begin(config: pytest.Config, mode: str) -> None:
    """Register what looks. Raises pytest.UsageError for settings that make no sense."""
    config.pluginmanager.register(Session(config, mode), "diagtool-session")


class Session:
    """The hooks of one test session."""

    def __init__(self, config: pytest.Config, mode: str) -> None:
        self.config = config
        self.mode = mode
        self.wanted = Wanted(_kinds(config), tuple(config.getini("diagtool_ignore")))
        self.results = Results(config, mode)
        self.watch = Watch(_timeout(config))
        self.watch.tasks.explain = self._explain
        self.watch.origins.install()
        self._engine: Engine | None = None
        self._use_engine = config.getini("diagtool_engine") and not config.getoption("diagtool_no_engine")
        self._accepted = Accepted(str(config.rootpath))
        self._failed = False
        self.heap: list[Left] = []
        self._pending: dict[Key, Pending] = {}

    # Before the tests.

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        marked = [validate(item) for item in items]
        if any(marked) and "heap" in self.wanted.kinds:
            self.config.pluginmanager.register(_HeapRuns(self), "diagtool-heap")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self) -> None:
        given = getattr(getattr(self.config, "_tmp_path_factory", None), "_given_basetemp", None)
        self.watch.files.elsewhere = (str(given),) if given else ()
        for place, (module, name) in enumerate(_CALLERS):
            begin_at(place, getattr(sys.modules.get(module), name, None))
        self.watch.origins.find_asyncio()
        self.watch.adopt()

    def pytest_exception_interact(self, call: pytest.CallInfo[object]) -> None:
        # Not of a teardown: that is over by then, and the next test is not the failed one.
        self._failed = getattr(call, "when", "") in ("setup", "call")

    # After each test.

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, None, None]:
        failed = self._failed or getattr(sys, "last_value", None) is not None
        self._failed = False
        try:
            result = yield
        except BaseException:
            self.watch.changed()
            self._judge(item, True)
            raise
        if self.watch.changed() or self._pending or self.heap:
            text = self._judge(item, failed)
            if text and self.mode == "fail":
                pytest.fail(text, pytrace=False)
        self.watch.origins.find_asyncio()
        return result

    def _judge(self, item: pytest.Item | None, failed: bool) -> str:
        told: list[tuple[str, str, list[Left]]] = []  # scope, test that made it, what
        heap, self.heap = self.heap, []
        new = self.watch.new() - set(self._pending) if item is not None else set()
        if failed:
            self.results.not_judged += bool(new)
        elif item is not None:
            wanted = wanted_of(item, self.wanted) if heap or new else self.wanted
            leaks = [left for left in heap if not wanted.reason(left)]
            if new:
                leaks += self._of_test(item, new, wanted)
            if leaks:
                told.append(("test", item.nodeid, leaks))
        told += self._of_scopes()
        looked = bool(told)
        self._explain([left for _, _, leaks in told for left in leaks])
        told = [(scope, test, self._not_accepted(leaks)) for scope, test, leaks in told]
        told = [(scope, test, leaks) for scope, test, leaks in told if leaks]
        self.watch.adopt(self._pending, same=item is not None and not new and not looked)
        for _, _, leaks in told:
            self.watch.told.update(left.likeness for left in leaks)
        return self.results.add(item, told)

    def _of_test(self, item: pytest.Item, new: set[Key], wanted: Wanted) -> list[Left]:
        owners = wide_owners(item)
        timeout = _GLANCE if owners else None
        leaks = []
        for key, left in self.watch.settle(new, wanted, timeout, lambda: _release(item)).items():
            if self._is_leak(left, wanted):
                if owners and not _is_over(left):
                    self._pending[key] = Pending(item.nodeid, owners, wanted)
                else:
                    leaks.append(left)
        return leaks

    def _of_scopes(self) -> list[tuple[str, str, list[Left]]]:
        ended = {k: p for k, p in self._pending.items() if not any(o.lives() for o in p.owners)}
        out: dict[tuple[str, str], list[Left]] = {}
        for key in ended:
            del self._pending[key]
        for wanted in {id(p.wanted): p.wanted for p in ended.values()}.values():
            keys = {k for k, p in ended.items() if p.wanted is wanted}
            for key, left in self.watch.settle(keys, wanted).items():
                if self._is_leak(left, wanted):
                    made = ended[key]
                    out.setdefault((max(made.owners).scope, made.test), []).append(left)
        return [(scope, test, leaks) for (scope, test), leaks in out.items()]

    def _is_leak(self, left: Left, wanted: Wanted) -> bool:
        reason = wanted.reason(left)
        if not reason and self.watch.may_be_pool(left):
            reason = "the first of its kind: perhaps a library's pool"
        if reason:
            self.results.ignored[reason] += 1
        return not reason

    def _not_accepted(self, leaks: list[Left]) -> list[Left]:
        notes = self.watch.notes
        before, notes.quiet = notes.quiet, True
        try:
            self._accepted.mark(leaks)
        finally:
            notes.quiet = before
        self.results.trouble = self._accepted.problem
        for left in leaks:
            if left.ignored:
                self.results.ignored[left.ignored] += 1
        return [left for left in leaks if not left.ignored]

    def _explain(self, leaks: list[Left]) -> None:
        if self._use_engine and leaks:
            if self._engine is None:
                from diagtool.probes.engine import Engine

                self._engine = Engine()
            notes = self.watch.notes
            before, notes.quiet = notes.quiet, True
            try:
                self._engine.explain(leaks)
            finally:
                notes.quiet = before

    # At the end.

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        text = self._judge(None, False)
        if text and self.mode == "fail" and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        self.results.finish()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        """A worker of xdist has ended: what it found is ours."""
        merge_worker(self.results, node)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        self.results.summary(terminalreporter)

    def pytest_unconfigure(self) -> None:
        self.watch.uninstall()


class _HeapRuns:
    """Runs tests with the mark ``leaks`` again and again. Registered if there is one."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        limits = leak_limits(item)
        if limits is not None:
            from diagtool.probes.pytest_heap import measured

            self._session.heap = measured(item, limits)
        return (yield)


# Values of fixtures are kept by the test until all its hooks are through.
def _release(item: pytest.Item) -> None:
    funcargs = getattr(item, "funcargs", None)
    if isinstance(funcargs, dict):
        for name in funcargs:
            funcargs[name] = None


# What a loop left when it was closed can't be given back later.
def _is_over(left: Left) -> bool:
    return isinstance(left.key, int) and left.key < 0


def _kinds(config: pytest.Config) -> tuple[str, ...]:
    kinds = tuple(config.getini("diagtool_kinds")) or KINDS
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise pytest.UsageError(
            f"diagtool_kinds: there is no kind {', '.join(unknown)}; there are {', '.join(KINDS)}"
        )
    return kinds


def _timeout(config: pytest.Config) -> float:
    given = config.getoption("diagtool_timeout")
    text = config.getini("diagtool_timeout")
    try:
        seconds = float(text or TIMEOUT) if given is None else float(given)
    except ValueError:
        raise pytest.UsageError(f"diagtool_timeout = {text} in the ini file: seconds are a number") from None
    if not 0 <= seconds <= 60:
        raise pytest.UsageError(f"diagtool's timeout is {seconds:g} seconds: 0 to 60 make sense")
    return seconds
