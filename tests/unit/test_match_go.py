"""Templates of goroutines: each finds its leak, and stays silent for what is healthy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from made_goroutines import Program

from diagtool.leaks import find_leaks
from diagtool.leaks.model import Finding
from diagtool.leaks.template import builtin

HANDLER = "net/http.HandlerFunc.ServeHTTP net/http.serverHandler.ServeHTTP net/http.(*conn).serve"
READ = "internal/poll.(*FD).Read net.(*netFD).Read net.(*conn).Read"
LOCK = "sync.runtime_SemacquireMutex sync.(*Mutex).lockSlow sync.(*Mutex).Lock"
RLOCK = "sync.runtime_SemacquireRWMutexR sync.(*RWMutex).RLock"


Build = Callable[[Program, int], object]  # the second: how many


def findings(build: Build, *counts: int) -> tuple[Finding, ...]:
    snapshots = []
    for at, count in enumerate(counts):
        program = Program(1000.0 + 30.0 * at)
        build(program, count)
        snapshots.append(program.build())
    return find_leaks(snapshots).findings


#: (template, goroutines that wait so): each grows from one dump to the next, and is likely then.
GROWS: list[tuple[str, Build]] = [
    ("go-send-nobody-receives", lambda p, n: p.go(n, "chan send", "runtime.chansend1 main.ask.func1")),
    ("go-receive-nobody-sends", lambda p, n: p.go(n, "chan receive", "runtime.chanrecv2 main.consume")),
    ("go-select-nobody-answers", lambda p, n: p.go(n, "select", "runtime.selectgo main.(*worker).run")),
    ("go-pipe-left", lambda p, n: p.go(n, "select", "io.(*pipe).write io.(*PipeWriter).Write main.encode")),
    (
        "go-watch-not-stopped",
        lambda p, n: p.go(n, "select", "google.golang.org/grpc.newClientStreamWithParams.func4"),
    ),
    ("go-mutex-never-unlocked", lambda p, n: p.go(n, "sync.Mutex.Lock", f"{LOCK} main.(*account).deposit")),
    ("go-mutex-never-unlocked", lambda p, n: p.go(n, "semacquire", f"{LOCK} main.(*account).deposit")),
    ("go-rwmutex-read-blocked", lambda p, n: p.go(n, "sync.RWMutex.RLock", f"{RLOCK} main.(*table).read")),
    (
        "go-waitgroup-never-done",
        lambda p, n: p.go(n, "sync.WaitGroup.Wait", "sync.(*WaitGroup).Wait main.collect"),
    ),
    ("go-cond-not-signalled", lambda p, n: p.go(n, "sync.Cond.Wait", "sync.(*Cond).Wait main.(*box).take")),
    ("go-http-body-not-closed", lambda p, n: persistent(p, n, "select")),
    ("go-http-transport-per-request", lambda p, n: persistent(p, n, "IO wait")),
    ("go-sql-open-per-use", lambda p, n: p.go(n, "select", "database/sql.(*DB).connectionOpener")),
    (
        "go-grpc-connection-per-call",
        lambda p, n: p.go(
            n, "IO wait", f"{READ} google.golang.org/grpc/internal/transport.(*http2Client).reader"
        ),
    ),
    (
        "go-cgo-calls-blocked",
        lambda p, n: p.go(n, "syscall", "runtime.cgocall main._Cfunc_wait main.ask.func1"),
    ),
    (
        "go-threads-in-system-calls",
        lambda p, n: p.go(n, "syscall", "syscall.Syscall syscall.read syscall.Read main.tail"),
    ),
]

IDS = [f"{i}-{name}" for i, (name, _) in enumerate(GROWS)]

#: Likely, or no more than a suspect, from one dump.
ALONE: list[tuple[str, str, int, Build]] = [
    (
        "go-nil-channel",
        "likely",
        1,
        lambda p, n: p.go(n, "chan receive (nil chan)", "runtime.chanrecv1 main.(*hub).run"),
    ),
    ("go-select-no-cases", "likely", 2, lambda p, n: p.go(n, "select (no cases)", "runtime.block main.f")),
    ("go-select-no-cases", "suspect", 1, lambda p, n: p.go(n, "select (no cases)", "runtime.block main.f")),
    ("go-mutex-never-unlocked", "suspect", 10, GROWS[5][1]),
    ("go-send-nobody-receives", "suspect", 20, GROWS[0][1]),
    ("go-send-nobody-receives", "suspect", 20_000, GROWS[0][1]),
    ("go-receive-nobody-sends", "suspect", 100, GROWS[1][1]),
    ("go-receive-nobody-sends", "suspect", 100_000, GROWS[1][1]),
    ("go-sql-open-per-use", "suspect", 30, GROWS[12][1]),
    (
        "go-send-nobody-receives",
        "likely",
        3,
        lambda p, n: p.go(n, "chan send", "runtime.chansend1 main.ask.func1", wait_seconds=660.0),
    ),
    (
        "go-mutex-never-unlocked",
        "likely",
        1,
        lambda p, n: p.go(n, "sync.Mutex.Lock", f"{LOCK} main.(*account).deposit", wait_seconds=660.0),
    ),
]


def persistent(p: Program, count: int, reason: str) -> None:
    """Connections of an HTTP client."""
    reading = f"{READ} net/http.(*persistConn).Read bufio.(*Reader).Peek" if reason == "IO wait" else ""
    made = "net/http.(*Transport).dialConn"
    for i in range(count):
        p.go(1, reason, f"{reading} net/http.(*persistConn).readLoop", made, goid=1000 + 2 * i)
        p.go(1, "select", "net/http.(*persistConn).writeLoop", made, goid=1001 + 2 * i)


@pytest.mark.parametrize(("template", "build"), GROWS, ids=IDS)
def test_what_stays_and_grows_is_likely(template: str, build: Build) -> None:
    (finding,) = findings(build, 20, 50)
    assert (finding.template, finding.verdict, finding.count) == (template, "likely", 50)


@pytest.mark.parametrize(("template", "build"), GROWS, ids=IDS)
def test_what_stays_as_it_is_is_never_likely(template: str, build: Build) -> None:
    """While there is somebody at work in the program, who may still do something for them."""

    def and_one_at_work(p: Program, count: int) -> None:
        build(p, count)
        p.go(1, "IO wait", f"{READ} main.fetch", goid=99)

    assert [f.verdict for f in findings(and_one_at_work, 50, 50) if f.verdict != "suspect"] == []


@pytest.mark.parametrize(
    ("template", "verdict", "count", "build"), ALONE, ids=[f"{i}-{case[0]}" for i, case in enumerate(ALONE)]
)
def test_one_dump_makes_a_suspect_where_nothing_is_conclusive(
    template: str, verdict: str, count: int, build: Build
) -> None:
    (finding,) = findings(build, count)
    assert (finding.template, finding.verdict, finding.count) == (template, verdict, count)


def test_the_runtimes_own_mark_is_a_proof() -> None:
    program = Program()
    program.go(3, "chan receive (leaked)", "runtime.chanrecv1 main.consume", leaked=True)
    program.builder.snapshot.target.details["exact"] = True
    (finding,) = find_leaks([program.build()]).findings
    assert (finding.template, finding.verdict, finding.count) == ("go-receive-nobody-sends", "proven", 3)


def test_who_accepts_connections_minds_none_of_them() -> None:
    """Handlers that hang are told though who made them is awake, and in the function that did."""

    def build(p: Program, count: int) -> None:
        accept = "internal/poll.(*FD).Accept net.(*netFD).accept net.(*TCPListener).Accept"
        p.go(1, "IO wait", f"{accept} net/http.(*Server).Serve main.serve", goid=50)
        stuck = f"runtime.chanrecv1 main.order {HANDLER}"
        p.go(count, "chan receive", stuck, "net/http.(*Server).Serve", parent=50)

    (finding,) = findings(build, 30, 60)
    assert (finding.template, finding.verdict, finding.count) == ("go-receive-nobody-sends", "likely", 60)


def test_loops_that_sleep_are_likely_only_after_three_dumps() -> None:
    """Many sleep for a while and end: two dumps of a time of more work look the same."""

    def build(p: Program, count: int) -> None:
        p.go(count, "sleep", "time.Sleep main.poll")

    told = [findings(build, *counts) for counts in ((20, 50), (20, 50, 80))]
    assert [[(f.template, f.verdict) for f in found] for found in told] == [
        [("go-sleep-loops-pile-up", "suspect")],
        [("go-sleep-loops-pile-up", "likely")],
    ]


def test_peers_that_are_silent_for_hours_are_a_suspect() -> None:
    def build(p: Program, count: int) -> None:
        p.go(count, "IO wait", f"{READ} main.(*session).read", wait_seconds=7200.0)

    (finding,) = findings(build, 100)
    assert (finding.template, finding.verdict) == ("go-peer-never-answers", "suspect")


@pytest.mark.parametrize(
    ("counts", "told"),
    [((60,), "suspect"), ((20, 50), "likely"), ((10,), None), ((30, 30), None)],
)
def test_threads_that_are_locked_to_goroutines_are_counted(counts: tuple[int, ...], told: str | None) -> None:
    snapshots = []
    for at, count in enumerate(counts):
        snapshot = Program(1000.0 + 60.0 * at).build()
        row = {"running": False, "locked": True}
        snapshot.tables["go_threads"] = [{"tid": i, "goroutine": i, **row} for i in range(count)]
        snapshots.append(snapshot)
    verdicts = [(f.template, f.verdict) for f in find_leaks(snapshots).findings]
    assert verdicts == ([] if told is None else [("go-threads-locked", told)])


# --- healthy -----------------------------------------------------------------------------------------------


def workers(p: Program, count: int) -> None:
    p.go(32, "chan receive", "runtime.chanrecv2 main.(*pool).work", parent=1)


def subscribers(p: Program, count: int) -> None:
    """As many as before, in a select over messages and their end."""
    p.go(80, "select", "runtime.selectgo main.(*hub).listen")


def writers_of_connections(p: Program, count: int) -> None:
    """More connections than before: each has a goroutine that waits for what is to be sent, and its maker
    reads from the network."""
    for i in range(count):
        p.go(1, "IO wait", f"{READ} main.(*socket).serve", "main.accept", goid=2000 + 2 * i)
        p.go(
            1,
            "select",
            "main.(*socket).write",
            "main.(*socket).serve",
            goid=2001 + 2 * i,
            parent=2000 + 2 * i,
        )


def a_chain_that_one_will_end(p: Program, count: int) -> None:
    """Each waits for the one that it made; the last one sleeps."""
    for i in range(count):
        p.go(1, "chan receive", "runtime.chanrecv1 main.link", "main.link", goid=5000 + i, parent=4999 + i)
    p.go(1, "sleep", "time.Sleep main.link.func1", "main.link", goid=9000, parent=4999 + count)


def a_chain_whose_last_maker_has_ended(p: Program, count: int) -> None:
    for i in range(count):
        p.go(1, "chan receive", "runtime.chanrecv1 main.link", "main.link", goid=5000 + i, parent=4999 + i)
    p.go(1, "sleep", "time.Sleep main.link.func1", "main.link", goid=9000, parent=8999)


def a_contended_lock(p: Program, count: int) -> None:
    """Many want it, one has it and is at work."""
    p.go(count, "sync.Mutex.Lock", f"{LOCK} main.(*account).deposit main.loop")
    p.go(1, "runnable", "main.(*account).withdraw main.loop", goid=77)


def results_that_are_collected(p: Program, count: int) -> None:
    """Each request waits for workers that wait for the network."""
    for i in range(count):
        waits = "sync.runtime_SemacquireWaitGroup sync.(*WaitGroup).Wait main.fetchAll"
        p.go(1, "sync.WaitGroup.Wait", f"{waits} {HANDLER}", goid=3000 + 2 * i)
        p.go(1, "IO wait", f"{READ} main.fetch", "main.fetchAll", goid=3001 + 2 * i, parent=3000 + 2 * i)


def many_results_that_are_collected(p: Program, count: int) -> None:
    """A few requests that wait for more workers than anybody would mind one by one."""
    for i in range(count):
        waits = "sync.runtime_SemacquireWaitGroup sync.(*WaitGroup).Wait main.fetchAll"
        p.go(1, "sync.WaitGroup.Wait", f"{waits} {HANDLER}", goid=100_000 + 100 * i)
        p.go(
            60,
            "IO wait",
            f"{READ} main.fetch",
            "main.fetchAll",
            goid=100_001 + 100 * i,
            parent=100_000 + 100 * i,
        )


def a_server_between_requests(p: Program, count: int) -> None:
    serving = "net/http.(*connReader).Read bufio.(*Reader).Peek net/http.(*conn).serve"
    p.go(count, "IO wait", f"{READ} {serving}", "net/http.(*Server).Serve")
    p.go(1, "IO wait", "internal/poll.(*FD).Accept net.(*netFD).accept net.(*TCPListener).Accept main.serve")


def a_client_with_its_idle_connections(p: Program, count: int) -> None:
    persistent(p, 90, "IO wait")


def a_few_pools_of_databases(p: Program, count: int) -> None:
    p.go(4, "select", "database/sql.(*DB).connectionOpener", "database/sql.OpenDB", parent=1)


def main_that_waits_for_ever(p: Program, count: int) -> None:
    p.go(1, "select (no cases)", "runtime.block main.main", "", goid=2, parent=0)


def who_sends_is_served(p: Program, count: int) -> None:
    """A crowd that sends, of whom none was there before."""
    p.go(60, "chan send", "runtime.chansend1 main.ask.func1", goid=10_000 * count)


HEALTHY = [
    workers,
    subscribers,
    writers_of_connections,
    a_chain_that_one_will_end,
    a_chain_whose_last_maker_has_ended,
    a_contended_lock,
    results_that_are_collected,
    many_results_that_are_collected,
    a_server_between_requests,
    a_client_with_its_idle_connections,
    a_few_pools_of_databases,
    main_that_waits_for_ever,
    who_sends_is_served,
]


def test_a_lock_is_likely_lost_where_the_whole_program_stands_still() -> None:
    """From two dumps in which nothing happened; one goroutine that is awake elsewhere may have the lock."""

    def still(p: Program, count: int) -> None:
        p.go(2, "sync.Mutex.Lock", f"{LOCK} main.(*pair).one")
        p.go(2, "sync.Mutex.Lock", f"{LOCK} main.(*pair).two")
        p.go(9, "IO wait", f"{READ} net/http.(*connReader).Read net/http.(*conn).serve")
        p.go(5, "select", "main.(*worker).run")

    def at_work(p: Program, count: int) -> None:
        still(p, count)
        p.go(1, "IO wait", f"{READ} main.fetch")

    assert [f.verdict for f in findings(still, 1, 1)] == ["likely", "likely"]
    assert [f.verdict for f in findings(at_work, 1, 1)] == ["suspect", "suspect"]


def test_of_a_process_looked_at_from_outside_who_runs_is_at_work() -> None:
    """In a dump it is who takes it."""
    verdicts = []
    for kind in ("evidence", "live"):
        snapshots = []
        for at in range(2):
            program = Program(1000.0 + 30.0 * at)
            program.go(2, "sync.Mutex.Lock", f"{LOCK} main.(*pair).one")
            snapshots.append(program.build())
            snapshots[-1].target.kind = kind
        verdicts += [f.verdict for f in find_leaks(snapshots).findings]
    assert verdicts == ["likely", "suspect"]


@pytest.mark.parametrize("build", HEALTHY, ids=lambda build: str(build.__name__))
def test_nothing_is_said_of_healthy_programs_from_two_dumps(build: Build) -> None:
    assert findings(build, 40, 90) == ()


@pytest.mark.parametrize("build", HEALTHY[:-1], ids=lambda build: str(build.__name__))
def test_nothing_is_said_of_healthy_programs_from_one_dump(build: Build) -> None:
    assert findings(build, 90) == ()


#: (idle template, wait, functions), a hundred goroutines each, or as many as it takes.
IDLE = [
    ("go-runtime-goroutines", "GC worker (idle)", "runtime.gopark runtime.gcBgMarkWorker", 100),
    ("go-runtime-goroutines", "force gc (idle)", "runtime.gopark runtime.forcegchelper", 100),
    ("go-runtime-waits", "finalizer wait", "runtime.gopark runtime.another", 100),
    ("go-signal-loop", "syscall", "os/signal.signal_recv os/signal.loop", 100),
    ("go-main-waits", "sync.WaitGroup.Wait", "sync.(*WaitGroup).Wait main.main", 1),
    ("go-tests-wait", "chan receive", "testing.(*T).Run shop.TestAll testing.tRunner", 100),
    ("go-accept-loop", "IO wait", "net.(*netFD).accept net.(*TCPListener).Accept main.serve", 100),
    (
        "go-http-server-connections",
        "IO wait",
        f"{READ} net/http.(*connReader).Read bufio.(*Reader).Peek net/http.(*conn).serve",
        100,
    ),
    ("go-http2-connections", "select", "golang.org/x/net/http2.(*serverConn).serve", 100),
    ("go-http-client-idle", "select", "net/http.(*persistConn).writeLoop", 100),
    (
        "go-http-requests-in-flight",
        "select",
        "net/http.(*persistConn).roundTrip net/http.(*Client).do main.fetch",
        100,
    ),
    ("go-sql-pool", "select", "database/sql.(*DB).connectionOpener", 3),
    (
        "go-sql-driver-connections",
        "select",
        "github.com/go-sql-driver/mysql.(*mysqlConn).startWatcher.func1",
        100,
    ),
    (
        "go-grpc-server",
        "select",
        "google.golang.org/grpc/internal/transport.(*http2Server).keepalive",
        100,
    ),
    ("go-library-loops", "select", "k8s.io/klog/v2.(*flushDaemon).run.func1", 2),
    ("go-network-waits", "IO wait", f"{READ} main.(*session).read", 100),
    ("go-sleeps", "sleep", "time.Sleep main.poll", 100),
    ("go-few-wait-for-work", "chan receive", "runtime.chanrecv1 main.work", 8),
]


@pytest.mark.parametrize(
    ("template", "wait", "functions", "count"), IDLE, ids=[f"{i}-{case[0]}" for i, case in enumerate(IDLE)]
)
def test_what_has_nothing_to_do_is_idle(template: str, wait: str, functions: str, count: int) -> None:
    program = Program()
    program.go(count, wait, functions)
    report = find_leaks([program.build()])
    assert report.findings == ()
    assert [(c.template, c.idle) for c in report.clusters if c.state == "waiting"] == [(template, True)]


def test_every_template_of_go_is_tried_here() -> None:
    ours = [t for t in builtin() if t.kind == "goroutine"]
    tried = (
        {name for name, _ in GROWS}
        | {name for name, *_ in ALONE}
        | {"go-peer-never-answers", "go-sleep-loops-pile-up"}
    )
    elsewhere = {"go-created-never-ended"}  # of execution traces alone
    assert {t.id for t in ours if not t.idle} - elsewhere == tried
    assert {t.id for t in ours if t.idle} == {name for name, *_ in IDLE}


def test_a_leak_has_the_same_id_whatever_the_source_tells_of_it() -> None:
    """Profiles know neither numbers nor makers; tracebacks after a signal show the runtime's frames."""

    def id_of(functions: str, reason: str, made_in: str, **more: Any) -> str:
        program = Program()
        program.go(30, reason, functions, made_in, **more)
        (finding,) = find_leaks([program.build()]).findings
        return finding.id

    plain = id_of("main.ask.func1", "chan send", "main.ask")
    assert id_of("runtime.gopark runtime.chansend1 main.ask.func1 runtime.goexit", "", "") == plain
    assert (
        id_of("runtime.gopark runtime.chansend main.ask.func1 main.ask.gowrap1", "chan send", "main.ask")
        == plain
    )
    assert id_of("runtime.chansend1 main.other.func1", "chan send", "main.ask") != plain
