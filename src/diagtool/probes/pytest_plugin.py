"""``pytest --diagtool``: options and marks. What looks is imported when it is asked for."""

from __future__ import annotations

import pytest

MODES = ("off", "report", "fail")

_MARKS = (
    'diagtool(allow=[...], ignore="glob", off=True): what this test may leave behind '
    "(kinds: threads, native-threads, tasks, asyncgens, fds, gpu, processes, temp-files)",
    "leaks(repeat=20, warmup=3, max_objects=0, max_bytes=0): run the test again and again; "
    "it fails if the heap grows with each run",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the command line and the keys of the ini file."""
    group = parser.getgroup("diagtool", "leaks of tests (diagtool)")
    # Three options, not one with an optional value: that would swallow the path in `pytest --diagtool tests`.
    group.addoption(
        "--diagtool",
        action="store_const",
        const="fail",
        dest="diagtool",
        help="look for what tests, modules and the session leave behind (threads, tasks, open files, child "
        "processes, temporary files …); each leak is an error. The same as --diagtool=fail",
    )
    for mode, text in (
        ("fail", "each leak is an error of the test, or of the last one of its module or session"),
        ("report", "leaks are told at the end and fail nothing"),
        ("off", "do not look, whatever the ini file says"),
    ):
        group.addoption(
            f"--diagtool={mode}", action="store_const", const=mode, dest="diagtool", help=f"… {text}"
        )
    group.addoption(
        "--diagtool-report",
        metavar="FILE",
        default=None,
        help="also write what was found as JSON",
    )
    group.addoption(
        "--diagtool-timeout",
        metavar="SECONDS",
        type=float,
        default=None,
        help="how long something may take to end before it is a leak (default: 1)",
    )
    group.addoption(
        "--diagtool-no-engine",
        action="store_true",
        default=False,
        help="do not have diagtool's templates judge the first leaks (cause and fix; about a second each)",
    )
    parser.addini("diagtool", "off, report or fail: as --diagtool", default="off")
    parser.addini("diagtool_kinds", "kinds that are looked for; all without it", type="args", default=[])
    parser.addini(
        "diagtool_ignore",
        'globs of what is no leak: names, or "file:function" of any frame, one a line',
        type="linelist",
        default=[],
    )
    parser.addini("diagtool_timeout", "seconds, as --diagtool-timeout", default="")
    parser.addini("diagtool_engine", "whether templates judge the first leaks", type="bool", default=True)


def pytest_configure(config: pytest.Config) -> None:
    """Begin, if it was asked for."""
    for line in _MARKS:
        config.addinivalue_line("markers", line)
    from_ini = config.getini("diagtool")
    if from_ini not in MODES:
        raise pytest.UsageError(f"diagtool = {from_ini} in the ini file: it takes {', '.join(MODES)}")
    mode = config.getoption("diagtool") or from_ini
    if mode != "off":
        from diagtool.probes.pytest_session import begin

        begin(config, mode)
