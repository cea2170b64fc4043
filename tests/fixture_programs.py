"""The programs of fixtures/: which there are, with which interpreters they run, and how to start one.

    with launch(FIXTURES["a01"], "leak", interpreter) as program:
        program.pid                       # the python itself, also behind a chroot
        program.gcore(tmp_path)           # a core, the program runs on
        program.grow()                    # another N of the same
        program.kernel_core(tmp_path)     # the end

A program that can't show its state raises FixtureSkipped, which pytest takes for a skip. Nothing survives its
``with`` block: every program leads its own session and is killed with its whole process group, and dies with
the thread that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ROOT / "fixtures" / "python"
REQUIREMENTS = ROOT / "fixtures" / "requirements.txt"
CACHE = ROOT / ".cache"

#: Of the interpreters that tests run on: DIAGTOOL_TEST_FLAVOUR=free-threaded runs them on those instead.
FLAVOUR = os.environ.get("DIAGTOOL_TEST_FLAVOUR", "release")

READY_WITHIN = 30.0  # seconds; a fixture takes less than five on an idle machine
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class FixtureSkipped(unittest.SkipTest):
    """The program can't show its state here, and says why. (pytest reports unittest.SkipTest as a skip.)"""


class FixtureFailed(AssertionError):
    """The program did not reach its state; its output says why."""


# --- interpreters ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interpreter:
    """One CPython: ``argv`` starts it, ``root`` is the folder it is chrooted into, if any."""

    version: str  # "3.12"
    flavour: str  # release, debug, free-threaded, free-threaded-debug
    full: str  # "3.12.1"
    argv: tuple[str, ...]
    root: Path | None = None
    headers: Path | None = None

    @property
    def minor(self) -> int:
        return int(self.version.split(".")[1])

    def __str__(self) -> str:
        flavour = "" if self.flavour == "release" else f"-{self.flavour}"
        return f"{self.full}{flavour}{'-chroot' if self.root else ''}"


def _from_index(path: Path) -> list[Interpreter]:
    data = json.loads(path.read_text())
    entries = data["interpreters"] if isinstance(data, dict) else data
    return [
        Interpreter(
            e["version"],
            e["flavour"],
            e["full"],
            tuple(e["argv"]),
            Path(e["root"]) if e.get("root") else None,
            Path(e["headers"]) if e.get("headers") else None,
        )
        for e in entries
    ]


def _from_machine() -> Iterator[Interpreter]:
    """Without the index: pyenv's versions and python3.X on PATH."""
    ask = "import sys; print('%d.%d.%d' % sys.version_info[:3])"
    for minor in range(9, 16):
        name = f"python3.{minor}"
        homes = sorted((Path.home() / ".pyenv" / "versions").glob(f"3.{minor}.*"))
        found = [str(h / "bin" / name) for h in homes] + [shutil.which(name) or ""]
        for exe in filter(os.path.exists, found):
            p = subprocess.run([exe, "-c", ask], capture_output=True, text=True)
            if p.returncode == 0:
                yield Interpreter(f"3.{minor}", "release", p.stdout.strip(), (exe,))


@functools.cache
def all_interpreters() -> tuple[Interpreter, ...]:
    """Every interpreter known, several of one version included."""
    index = CACHE / "interpreters" / "index.json"
    if index.exists():
        return tuple(i for i in _from_index(index) if (i.root or Path("/")).exists())
    return tuple(_from_machine())


def interpreters(flavour: str = FLAVOUR) -> list[Interpreter]:
    """One interpreter a version, oldest version first: of this machine if it has one, else a chroot's."""
    best: dict[str, Interpreter] = {}
    for i in all_interpreters():
        if i.flavour != flavour or not 9 <= i.minor <= 15 or (i.root and os.geteuid() != 0):
            continue
        known = best.get(i.version)
        if known is None or (known.root and not i.root):
            best[i.version] = i
    return sorted(best.values(), key=lambda i: i.minor)


# --- fixtures ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fixture:
    """One program of fixtures/python/.

    ``leak_modes`` must each lead to a finding of ``template`` (an id of the catalogue; "A10,A01" where
    some mode or version looks like another one), ``healthy_modes`` to none. ``hard_modes`` leak too, but
    what gives it away may need the heap, a second snapshot or more luck; ``ambiguous_modes`` are healthy,
    but one look at the memory can't tell. ``count`` is the default N; ``stacks`` says how many stacks of
    ``kind`` a finding has, as a function of N. Modes that one interpreter can't show print SKIP.
    ``requirements`` are names in fixtures/requirements.txt.
    """

    name: str
    program: str
    template: str | None = None
    leak_modes: tuple[str, ...] = ()
    healthy_modes: tuple[str, ...] = ()
    hard_modes: tuple[str, ...] = ()
    ambiguous_modes: tuple[str, ...] = ()
    kind: str = "task"  # task, thread, heap, both, process, idle
    count: int = 50
    stacks: Callable[[int], int] | None = field(default=lambda n: n, compare=False)
    min_minor: int = 9
    requirements: tuple[str, ...] = ()
    grows: bool = True  # SIGUSR2 makes N more
    heap: bool = False  # shows only where the objects are counted
    native: bool = False  # shows only with native frames; the same in every version
    heavy: bool = False  # its libraries are large: only where all libraries are tested

    @property
    def path(self) -> Path:
        return PROGRAMS / self.program

    @property
    def modes(self) -> tuple[str, ...]:
        return self.leak_modes + self.hard_modes + self.healthy_modes + self.ambiguous_modes

    def __str__(self) -> str:
        return self.name


def _modes(spec: str) -> tuple[str, ...]:
    return tuple(spec.split())


def _h(n: int) -> tuple[str, ...]:
    """healthy, healthy2, … healthyN."""
    return tuple("healthy" if i == 1 else f"healthy{i}" for i in range(1, n + 1))


def _native(
    name: str, program: str, template: str, leaks: str, healthy: int, count: int = 1, **more: bool
) -> Fixture:
    """A program that hangs in native code."""
    return Fixture(
        name,
        program,
        template,
        _modes(leaks),
        _h(healthy),
        kind="thread",
        count=count,
        stacks=None,
        grows=False,
        native=True,
        **more,
    )


def _heap(
    name: str,
    program: str,
    template: str,
    leaks: str,
    healthy: int,
    count: int,
    hard: str = "",
    requirements: tuple[str, ...] = (),
) -> Fixture:
    """A program whose leak shows in the tables of the heap."""
    return Fixture(
        name,
        program,
        template,
        _modes(leaks),
        _h(healthy),
        _modes(hard),
        kind="heap",
        count=count,
        stacks=None,
        requirements=requirements,
        heap=True,
    )


def _clients(
    name: str,
    program: str,
    template: str,
    leaks: str,
    healthy: int,
    count: int,
    requirement: str,
    heavy: bool = False,
) -> Fixture:
    """A program with many clients, channels or connections of a library."""
    return Fixture(
        name,
        program,
        template,
        _modes(leaks),
        _h(healthy),
        kind="heap",
        count=count,
        stacks=None,
        requirements=tuple(requirement.split()),
        heavy=heavy,
    )


def _library(name: str, modes: int, count: int, requirement: str = "") -> Fixture:
    """An idle program of a library."""
    return Fixture(
        f"idle_{name}",
        f"idle_{name}.py",
        healthy_modes=_h(modes),
        kind="idle",
        count=count,
        requirements=(requirement or name,),
    )


_ALL = [
    Fixture("a01", "a01_queue_get_starved.py", "A01", _modes("leak leak2"), _h(6), ("leak3",)),
    Fixture("a02", "a02_queue_put_full.py", "A02", _modes("leak leak2"), _h(3), ("leak3",)),
    Fixture("a03", "a03_semaphore_permit_lost.py", "A03", _modes("leak leak2"), _h(3), ("leak3",)),
    Fixture("a04", "a04_lock_orphaned.py", "A04", _modes("leak leak2 leak3"), _h(3)),
    Fixture(
        "a05",
        "a05_never_satisfied.py",
        "A05",
        _modes("leak event condition barrier taskgroup future"),
        _h(7),
    ),
    Fixture("a06", "a06_task_dropped.py", "A06", ("leak",), _h(3)),
    Fixture("a07", "a07_duplicated_loops.py", "A07", ("leak",), _h(2)),
    Fixture("a08", "a08_finished_tasks_kept.py", "A08", _modes("leak leak2"), _h(3), count=200),
    Fixture("a09", "a09_shield_long_future.py", "A09", ("leak",), _h(2), ("shield",), kind="heap", count=100),
    Fixture(
        "a10", "a10_wait_for_race.py", "A10,A01,A05", _modes("leak ignored"), _h(2), ("owned", "swallowed")
    ),
    Fixture("a11", "a11_asyncgen_not_closed.py", "A11", _modes("leak leak2"), _h(3), kind="asyncgen"),
    Fixture(
        "a12",
        "a12_default_executor_exhausted.py",
        "A12",
        _modes("leak leak2"),
        _h(3),
        ("shared",),
        kind="both",
    ),
    Fixture(
        "a13",
        "a13_loop_blocked.py",
        "A13",
        _modes("leak leak2 leak3 leak4"),
        _h(3),
        kind="thread",
        count=20,
        stacks=lambda n: 1,
        grows=False,
    ),
    Fixture("a14", "a14_timers_keep_context.py", "A14", ("leak",), _h(3), kind="heap", count=100),
    Fixture("a15", "a15_contextvar_keeps_exception.py", "A15", ("leak",), _h(2), kind="heap", count=100),
    Fixture(
        "a16", "a16_transport_cycles.py", "A16,D08", ("leak",), _h(2), ("leak2",), kind="heap", count=150
    ),
    Fixture(
        "a17",
        "a17_starlette_middleware.py",
        "A17",
        ("leak",),
        _h(2),
        ("leak2",),
        count=20,
        requirements=("starlette",),
    ),
    Fixture("a18", "a18_subprocess_wait.py", "A18", _modes("leak leak2"), _h(2), count=5),
    Fixture(
        "a19",
        "a19_peer_never_answers.py",
        "A19",
        _modes("leak leak2"),
        _h(2),
        ambiguous_modes=("healthy3",),
        count=60,
    ),
    Fixture(
        "b01",
        "b01_aiohttp_session_per_request.py",
        "B01",
        ("leak",),
        _h(2),
        kind="heap",
        count=60,
        requirements=("aiohttp",),
    ),
    Fixture(
        "b02",
        "b02_httpx_client_per_call.py",
        "B02",
        _modes("leak leak2 leak3"),
        _h(2),
        kind="heap",
        count=50,
        requirements=("httpx",),
    ),
    Fixture(
        "b03",
        "b03_httpcore_slot_orphaned.py",
        "B03",
        ("leak",),
        _h(2),
        count=20,
        requirements=("httpcore", "anyio"),
    ),
    Fixture(
        "b04",
        "b04_urllib3_pool_blocked.py",
        "B04",
        _modes("leak leak2"),
        _h(2),
        kind="thread",
        count=10,
        requirements=("requests",),
    ),
    _clients("b05", "b05_boto3_client_per_call.py", "B05", "leak leak2", 3, 120, "boto3", heavy=True),
    _clients("b07", "b07_websockets_kept.py", "B07", "leak", 2, 150, "aiohttp"),
    Fixture(
        "b08",
        "b08_sqlalchemy_pool_exhausted.py",
        "B08",
        ("leak",),
        _h(2),
        kind="thread",
        count=10,
        requirements=("sqlalchemy",),
    ),
    Fixture(
        "b09",
        "b09_async_pool_not_returned.py",
        "B09",
        _modes("leak leak2"),
        _h(3),
        count=20,
        requirements=("asyncpg", "psycopg", "psycopg-binary", "psycopg-pool"),
        heavy=True,
    ),
    _clients("b10", "b10_redis_pubsub_not_closed.py", "B10", "leak leak2 leak3", 4, 150, "redis"),
    _clients("b12", "b12_grpc_channel_per_call.py", "B12", "leak leak2", 3, 150, "grpcio", heavy=True),
    _clients("b14", "b14_kafka_producer_per_call.py", "B14", "leak leak2", 2, 60, "kafka-python", heavy=True),
    _clients("b15", "b15_celery_errors_kept.py", "B15", "leak leak2", 1, 250, "celery", heavy=True),
    Fixture(
        "c01", "c01_consumer_starved.py", "C01", _modes("leak leak2 leak3"), _h(5), kind="thread", count=20
    ),
    Fixture(
        "c02",
        "c02_queue_listener_restarted.py",
        "C02",
        _modes("leak leak2"),
        _h(3),
        kind="thread",
        count=20,
    ),
    Fixture(
        "c03", "c03_sdk_thread_not_stopped.py", "C03", _modes("leak leak2"), _h(3), kind="thread", count=20
    ),
    Fixture("c04", "c04_timer_not_cancelled.py", "C04", ("leak",), _h(3), kind="thread", count=20),
    Fixture(
        "c05",
        "c05_executor_per_call.py",
        "C05",
        _modes("leak leak2"),
        _h(3),
        kind="thread",
        count=16,
        stacks=lambda n: 2 * n,
    ),
    Fixture("c06", "c06_threads_not_joined.py", "C06", ("leak",), _h(2), kind="heap", count=150),
    Fixture(
        "c07", "c07_exit_blocked.py", "C07", _modes("leak leak2"), _h(2), kind="thread", count=5, grows=False
    ),
    Fixture(
        "c08",
        "c08_lock_order.py",
        "C08",
        _modes("leak leak2 leak3"),
        _h(2),
        kind="thread",
        count=3,
        stacks=None,  # 2 N, but N in leak3
    ),
    Fixture(
        "c09", "c09_lock_owner_gone.py", "C09", _modes("leak leak2 leak3"), _h(3), kind="thread", count=10
    ),
    Fixture(
        "c10",
        "c10_loop_waits_for_itself.py",
        "C10",
        _modes("leak leak2"),
        _h(2),
        kind="thread",
        count=5,
        stacks=lambda n: 1,
        grows=False,
    ),
    Fixture(
        "c11",
        "c11_executor_waits_for_itself.py",
        "C11",
        _modes("leak leak2"),
        _h(2),
        kind="thread",
        count=8,
    ),
    Fixture(
        "c12",
        "c12_cancelled_task_leaves_thread.py",
        "C12",
        _modes("leak leak2"),
        _h(2),
        kind="thread",
        count=5,
    ),
    _heap("d01", "d01_cache_keeps_objects.py", "D01", "leak leak2", 6, 1200),
    _heap("d02", "d02_containers_grow.py", "D02", "", 8, 5000, hard="leak leak2 leak3 leak4 leak5 leak6"),
    _heap("d03", "d03_exceptions_stored.py", "D03", "leak leak2", 4, 150),
    _heap("d04", "d04_registries_grow.py", "D04", "leak leak2 leak3 leak4 leak5 leak6", 4, 200),
    _heap("d05", "d05_interned_strings.py", "D05", "", 2, 20_000, hard="leak"),
    _heap("d08", "d08_collector_off.py", "D08", "leak leak2 leak3", 5, 6000),
    _heap("d06", "d06_label_cardinality.py", "D06", "", 1, 3000, "leak", ("prometheus-client",)),
    _heap("d07", "d07_metric_files.py", "D07", "", 1, 60, "leak", ("prometheus-client",)),
    _heap("d09", "d09_array_views.py", "D09", "leak leak2", 3, 40, requirements=("numpy",)),
    _heap("d10", "d10_maps_kept.py", "D10", "", 2, 80, hard="leak leak2"),
    _heap("d11", "d11_asyncio_debug.py", "D11", "leak", 1, 600),
    _heap("e08", "e08_heap_fragmented.py", "E08", "leak leak2", 5, 128 << 10),
    _heap("e13", "e13_memory_grows.py", "E13,E14,E15", "", 4, 24, hard="leak leak2 leak3 leak4"),
    _heap("e01", "e01_references_lost.py", "E01", "leak leak2", 5, 1200),
    _heap("e03", "e03_native_blocks_lost.py", "E03", "leak leak2 leak3 leak4", 6, 2000),
    _heap("e04", "e04_callbacks_kept.py", "E04", "leak leak2", 3, 1500),
    _heap("e05", "e05_handles_kept.py", "E05,E03", "leak leak2", 3, 1500, requirements=("cffi",)),
    _native("e04b", "e04_callback_blocked.py", "E04", "leak leak2", 4),
    _native("e06", "e06_gil_held.py", "E06", "leak leak2", 3),
    _native("e07", "e07_gil_and_mutex.py", "E07", "leak leak2 leak3 leak4", 4, 3),
    _native("e07x", "e07_extension.py", "E07", "leak leak2", 1),
    Fixture("f03", "f03_child_not_drained.py", "F03", _modes("leak leak2"), _h(4), kind="thread", count=1),
    Fixture(
        "f04", "f04_process_pool_broken.py", "F04", ("leak",), _h(2), kind="thread", count=1, grows=False
    ),
    _native("e09", "e09_openmp_team_gone.py", "E09", "leak", 2),
    _native("f01", "f01_fork_with_mutex.py", "F01", "leak", 1),
    _heap("e10", "e10_pools_oversubscribed.py", "E10", "leak leak2", 3, 18),
    _heap("e11", "e11_native_threads_grow.py", "E11", "", 2, 10, hard="leak"),
    _heap("g01", "g01_descriptors_lost.py", "G01", "leak leak2 leak3", 7, 300),
    _heap("g02", "g02_sockets_open_twice.py", "G02", "leak", 3, 150),
    _heap("g03", "g03_descriptor_limit.py", "G03", "leak", 2, 250),
    _heap("g04", "g04_close_wait.py", "G04", "leak leak2", 3, 150),
    _heap("g05", "g05_deleted_files.py", "G05", "leak leak2 leak3", 3, 250),
    _heap("g06", "g06_epoll_dead.py", "G06", "leak", 3, 80),
    _heap("h01", "h01_handler_replaced.py", "H01", "leak leak2 leak3 leak4 leak5", 6, 1),
    _heap("h02", "h02_children_not_kept.py", "H02", "leak leak2 leak3 leak4", 4, 1),
    _heap("h03", "h03_signal_stack.py", "H03", "leak leak2", 4, 1),
    _heap("h04", "h04_sigpipe.py", "H04", "leak leak2 leak3", 3, 1),
    _heap("h05", "h05_signal_blocked.py", "H05", "leak leak2", 4, 1),
    _heap("heaps_grow", "heaps_grow.py", "E01,D08,E03", "", 3, 10_000, hard="leak leak2 leak3"),
    Fixture("uvloop", "uvloop_tasks.py", "A01", ("leak",), _h(3), requirements=("uvloop",)),
    Fixture("idle_executor", "idle_executor.py", None, healthy_modes=_h(3), kind="idle", count=32),
    Fixture("idle_servers", "idle_servers.py", None, healthy_modes=_h(5), kind="idle", count=32),
    Fixture("idle_threads", "idle_threads.py", None, healthy_modes=_h(8), kind="idle", count=1),
    Fixture("idle_tasks", "idle_tasks.py", None, healthy_modes=_h(6), kind="idle", count=20),
    Fixture(
        "idle_multiprocessing", "idle_multiprocessing.py", None, healthy_modes=_h(4), kind="idle", count=2
    ),
    _library("trio", 2, 20),
    _library("anyio", 1, 8),
    _library("tornado", 1, 20),
    _library("gevent", 2, 20),
    _library("gunicorn", 2, 1),
    _library("uvicorn", 2, 10),
    _library("celery", 2, 4),
    _library("debugpy", 1, 1),
    _library("opentelemetry", 1, 1, "opentelemetry-sdk"),
    _library("prometheus", 1, 1, "prometheus-client"),
    _library("sentry", 1, 1, "sentry-sdk"),
    _library("apscheduler", 1, 1),
    Fixture("service", "service.py", "A01", ("leak",), ("healthy",), count=1000, grows=False),
    Fixture(
        "zoo",
        "zoo.py",
        None,
        kind="both",
        ambiguous_modes=_modes("full busy deep subinterpreters"),
        grows=False,
    ),
]

#: By name: the ones with a template, the idle ones ("idle_…"), "zoo" and "service".
FIXTURES: dict[str, Fixture] = {f.name: f for f in _ALL}


def cases(*kinds: str) -> list[tuple[Fixture, str]]:
    """(fixture, mode) for every mode of the given kinds: "leak", "healthy", "hard", "ambiguous"."""
    return [(f, mode) for f in FIXTURES.values() for kind in kinds for mode in getattr(f, f"{kind}_modes")]


def some(every: Sequence[Interpreter], *minors: int) -> list[Interpreter]:
    """Those of these versions; all where everything is asked for (make test-all), and where none is there."""
    if os.environ.get("DIAGTOOL_TEST_FRAMES") == "all":
        return list(every)
    return [i for i in every if i.minor in minors] or list(every)


# --- libraries ---------------------------------------------------------------------------------------------


#: Libraries for every interpreter take many minutes and gigabytes: `make test` fetches a few, for one.
LIBRARIES_ON = "3.12"
#: What it fetches: "all" for every interpreter, "3.12" for that one, no large ones; else small ones only.
LIBRARIES = os.environ.get("DIAGTOOL_TEST_LIBRARIES", "")
ALL_LIBRARIES = LIBRARIES == "all"
SMALL = frozenset({"numpy", "cffi", "uvloop", "prometheus-client"})


def is_left_out(fixture: Fixture) -> bool:
    """Whether a fixture needs libraries that this run does not fetch (`make test-libraries` does)."""
    if fixture.heavy:
        return not ALL_LIBRARIES
    return not LIBRARIES and not SMALL.issuperset(fixture.requirements)


def with_libraries(version: str, in_root: bool = False) -> bool:
    """Whether tests with real libraries run on this interpreter."""
    return ALL_LIBRARIES or (version == LIBRARIES_ON and not in_root)


def libraries(interpreter: Interpreter, names: Sequence[str]) -> Path:
    """A folder for PYTHONPATH with the pinned libraries for this interpreter, installed on first use.

    An interpreter in a chroot has neither pip nor the network: the host's pip chooses its wheels. Raises
    FixtureSkipped when a library has no wheel for the version, or nothing can be fetched; the answer is kept.
    """
    if not with_libraries(interpreter.version, interpreter.root is not None):
        raise FixtureSkipped(f"libraries are tested on {LIBRARIES_ON} alone (make test-libraries: on all)")
    key = hashlib.sha256("\n".join([*sorted(names), REQUIREMENTS.read_text()]).encode()).hexdigest()[:12]
    home = CACHE / "venvs" / str(interpreter) / key
    failed = home.with_suffix(".failed")
    if home.exists():
        return home
    if failed.exists():
        raise FixtureSkipped(failed.read_text())
    home.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=home.parent))
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-warn-script-location"]
    options = ["--target", str(part), "--only-binary=:all:", "--constraint", str(REQUIREMENTS), *names]
    if interpreter.root:
        abi = f"cp3{interpreter.minor}" + ("t" if interpreter.flavour.startswith("free") else "")
        pip = [
            sys.executable,
            *pip,
            "--implementation=cp",
            f"--python-version={interpreter.version}",
            f"--abi={abi}",
        ]
        pip += ["--abi=abi3", "--abi=none"]
        pip += [
            f"--platform={p}_x86_64" for p in ("manylinux_2_28", "manylinux_2_17", "manylinux2014", "linux")
        ]
    else:
        pip = [*interpreter.argv, *pip]
    p = subprocess.run([*pip, *options], capture_output=True, text=True, cwd="/")
    if p.returncode:
        shutil.rmtree(part)
        why = (p.stderr.strip().splitlines() or ["pip failed"])[-1]
        failed.write_text(f"{', '.join(names)} for {interpreter}: {why}")
        raise FixtureSkipped(failed.read_text())
    _move_unless_there(part, home)
    return home


def _move_unless_there(part: Path, place: Path) -> None:
    """Rename a finished folder to its place; another test may have been faster."""
    try:
        part.rename(place)
    except OSError:
        shutil.rmtree(part)


# --- running -----------------------------------------------------------------------------------------------


def _into_root(folder: Path, root: Path) -> str:
    """A copy of ``folder`` inside ``root``, made once for each state of its files; its path inside."""
    digest = hashlib.sha256(str(folder).encode())
    for f in sorted(folder.rglob("*")):
        if f.is_file() and "__pycache__" not in f.parts:
            digest.update(f"{f.relative_to(folder)} {f.stat().st_size} {f.stat().st_mtime_ns}\n".encode())
    inside = Path("/tmp") / f"{folder.name}-{digest.hexdigest()[:16]}"
    outside = root / str(inside)[1:]
    if not outside.exists():
        part = tempfile.mkdtemp(prefix="part-", dir=outside.parent)
        shutil.copytree(folder, part, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        os.chmod(part, 0o755)
        _move_unless_there(Path(part), outside)
    return str(inside)


class Running:
    """A started program. ``directory`` is where it runs and drops its core, as seen from here."""

    def __init__(self, proc: subprocess.Popen[bytes], output: Path, directory: Path) -> None:
        self.proc = proc
        self.pid = proc.pid
        self.output = output
        self.directory = directory

    def lines(self) -> list[str]:
        """Whole lines of output so far, stderr included."""
        return self.output.read_text(errors="replace").split("\n")[:-1]

    def wait_line(self, pattern: str, within: float = READY_WITHIN, nth: int = 1) -> str:
        """The ``nth`` line that matches the regular expression, once it is there."""
        deadline = time.monotonic() + within
        while True:
            gone = self.proc.poll()
            lines = self.lines()
            found = [line for line in lines if re.match(pattern, line)]
            if len(found) >= nth:
                return found[nth - 1]
            for line in lines:
                if line.startswith("SKIP "):
                    raise FixtureSkipped(line[5:])
            if gone is not None:
                raise FixtureFailed(f"ended with {gone} before {pattern!r}:\n" + "\n".join(lines[-20:]))
            if time.monotonic() > deadline:
                raise FixtureFailed(f"no {pattern!r} within {within} s:\n" + "\n".join(lines[-20:]))
            time.sleep(0.005)

    def alive(self) -> bool:
        """Neither ended nor stopped."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state in "RSD"

    def children(self) -> list[int]:
        """Pids of its child processes, all levels."""
        found = [self.pid]
        for pid in found:  # grows while it is walked
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                found.extend(int(child) for child in task.read_text().split())
        return found[1:]

    def grow(self) -> None:
        """Make the program do it again, N more, and wait until it has."""
        nth = 1 + sum(line.startswith("GREW ") for line in self.lines())
        os.kill(self.pid, signal.SIGUSR2)
        self.wait_line("GREW ", nth=nth)

    def gcore(self, directory: Path) -> Path:
        """A core written by gcore; the program runs on."""
        if not shutil.which("gcore"):
            raise FixtureSkipped("gcore is not installed")
        p = subprocess.run(
            ["gcore", "-o", str(directory / "gcore"), str(self.pid)], capture_output=True, text=True
        )
        core = directory / f"gcore.{self.pid}"
        if not core.exists():
            raise FixtureFailed(f"gcore: {p.stderr[-500:]}")
        return core

    def kernel_core(self, directory: Path) -> Path:
        """Abort the program; the kernel's core, moved into ``directory``."""
        pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
        if pattern.startswith(("|", "/")):
            raise FixtureSkipped(
                f"core_pattern is {pattern!r}: the kernel writes no core into the program's folder"
            )
        os.kill(self.pid, signal.SIGABRT)
        self.proc.wait()
        cores = sorted(self.directory.glob("core*"), key=lambda f: f.stat().st_mtime_ns)
        if not cores:
            raise FixtureFailed(f"no core in {self.directory}, status {self.proc.returncode}")
        return Path(shutil.move(cores[-1], directory / f"core.{self.pid}"))


def _in_child(root: Path | None, directory: str) -> Callable[[], None]:
    parent = os.getpid()

    def setup() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if root:
            os.chroot(root)
        os.chdir(directory)

    return setup


@contextlib.contextmanager
def launch(
    fixture: Fixture | Path,
    mode: str = "leak",
    interpreter: Interpreter | Sequence[str] = (sys.executable,),
    n: int | None = None,
    cwd: Path | None = None,
    arguments: Sequence[str] = (),
    options: Sequence[str] = (),
    env: dict[str, str] | None = None,
) -> Iterator[Running]:
    """Start a fixture in a mode and wait until it is READY.

    ``interpreter``: an Interpreter or the argv of one (``chroot ROOT EXE`` is understood). ``n``: without it
    the fixture's default. ``cwd``: where it runs (a folder of its own without it); not for one in a chroot.
    ``arguments`` go to the program, ``options`` to the interpreter. A Path runs a program that is no fixture.
    """
    if not isinstance(interpreter, Interpreter):
        argv = tuple(interpreter)
        root = Path(argv[1]) if argv[0].endswith("chroot") else None
        interpreter = Interpreter("3.0", "release", "3.0.0", argv, root)
    program = fixture.path if isinstance(fixture, Fixture) else fixture
    command = [mode] if isinstance(fixture, Fixture) else []
    if isinstance(fixture, Fixture):
        if 0 < interpreter.minor < fixture.min_minor:
            raise FixtureSkipped(f"{fixture.name} needs 3.{fixture.min_minor}")
        command.append(str(fixture.count if n is None else n))
    environment = {k: os.environ[k] for k in ("PATH", "HOME", "LD_LIBRARY_PATH") if k in os.environ}
    environment.update({"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1", **(env or {})})
    root = interpreter.root
    path = str(program)
    exe = interpreter.argv
    with contextlib.ExitStack() as stack:
        base = root / "tmp" if root else None
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="run-", dir=base))
        inside = directory
        if root:
            inside = "/" + str(Path(directory).relative_to(root))
            path = f"{_into_root(program.parent, root)}/{program.name}"
            exe = exe[2:] if exe[0].endswith("chroot") else exe
        elif cwd:
            directory = inside = str(cwd)
        if isinstance(fixture, Fixture) and fixture.requirements:
            if is_left_out(fixture):
                raise FixtureSkipped("these libraries are tested by make test-libraries")
            folder = libraries(interpreter, fixture.requirements)
            environment["PYTHONPATH"] = _into_root(folder, root) if root else str(folder)
        environment["TMPDIR"] = inside
        output = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="out-"))) / "output"
        with output.open("wb") as sink:
            proc = subprocess.Popen(
                [*exe, *options, path, *command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=environment,
                start_new_session=True,
                preexec_fn=_in_child(root, inside),
            )
        running = Running(proc, output, Path(directory))
        try:
            running.wait_line("READY ")
            yield running
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(proc.pid, signal.SIGKILL)
            proc.wait()
