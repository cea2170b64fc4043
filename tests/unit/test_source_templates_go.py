"""Templates of Go that the source may raise or lower: the leaking source does, its twin does not."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from made_goroutines import Program

from diagtool.leaks import find_leaks
from diagtool.leaks.model import Finding
from diagtool.leaks.source.files import Sources
from diagtool.leaks.template import builtin

#: (template, wait, functions innermost first, leaking source, healthy source). The goroutines are in the line
#: with the comment ``// here``, were made in the one with ``// made``.
CASES = [
    (
        "go-send-nobody-receives",
        "chan send",
        "main.ask.func1",
        """
        func ask(broken bool) int {
            answer := make(chan int)
            go func() { // made
                answer <- 1 // here
            }()
            if broken {
                return 0
            }
            return <-answer
        }
        """,
        """
        func ask(broken bool) int {
            answer := make(chan int)
            go func() { // made
                answer <- 1 // here
            }()
            return <-answer
        }
        """,
    ),
    (
        "go-receive-nobody-sends",
        "chan receive",
        "main.count.func1",
        """
        func count(n int) {
            items := make(chan int)
            go func() { // made
                for range items { // here
                }
            }()
            for i := 0; i < n; i++ {
                items <- i
            }
        }
        """,
        """
        func count(n int) {
            items := make(chan int)
            go func() { // made
                for range items { // here
                }
            }()
            for i := 0; i < n; i++ {
                items <- i
            }
            close(items)
        }
        """,
    ),
    (
        "go-select-nobody-answers",
        "select",
        "main.watch.func1",
        """
        func watch(events chan int) {
            ctx, _ := context.WithCancel(context.Background())
            go func() { // made
                select { // here
                case <-ctx.Done():
                case <-events:
                }
            }()
        }
        """,
        """
        func watch(events chan int) {
            ctx, cancel := context.WithCancel(context.Background())
            defer cancel()
            go func() { // made
                select { // here
                case <-ctx.Done():
                case <-events:
                }
            }()
        }
        """,
    ),
    (
        "go-mutex-never-unlocked",
        "sync.Mutex.Lock",
        "main.(*account).deposit main.(*account).transfer",
        """
        func (a *account) transfer() { // made
            a.mutex.Lock()
            defer a.mutex.Unlock()
            a.deposit() // there
        }

        func (a *account) deposit() {
            a.mutex.Lock() // here
            defer a.mutex.Unlock()
        }
        """,
        """
        func (a *account) transfer() { // made
            a.deposit() // there
            a.mutex.Lock()
            defer a.mutex.Unlock()
        }

        func (a *account) deposit() {
            a.mutex.Lock() // here
            defer a.mutex.Unlock()
        }
        """,
    ),
    (
        "go-rwmutex-read-blocked",
        "sync.RWMutex.RLock",
        "main.(*table).get main.(*table).all",
        """
        func (t *table) all() { // made
            t.mutex.RLock()
            defer t.mutex.RUnlock()
            t.get() // there
        }

        func (t *table) get() {
            t.mutex.RLock() // here
            defer t.mutex.RUnlock()
        }
        """,
        """
        func (t *table) all() { // made
            t.get() // there
        }

        func (t *table) get() {
            t.mutex.RLock() // here
            defer t.mutex.RUnlock()
        }
        """,
    ),
    (
        "go-waitgroup-never-done",
        "sync.WaitGroup.Wait",
        "main.collect",
        """
        func collect() { // made
            var group sync.WaitGroup
            group.Add(1)
            go func() { work() }()
            group.Wait() // here
        }
        """,
        """
        func collect() { // made
            var group sync.WaitGroup
            group.Add(1)
            go func() { defer group.Done(); work() }()
            group.Wait() // here
        }
        """,
    ),
    (
        "go-cond-not-signalled",
        "sync.Cond.Wait",
        "main.(*box).take",
        """
        func (b *box) take() { // made
            b.mutex.Lock()
            for b.n == 0 {
                b.some.Wait() // here
            }
            b.mutex.Unlock()
        }

        func (b *box) put() {
            b.mutex.Lock()
            b.n++
            b.mutex.Unlock()
        }

        func newBox() *box {
            b := &box{}
            b.some = sync.NewCond(&b.mutex)
            return b
        }
        """,
        """
        func (b *box) take() { // made
            b.mutex.Lock()
            for b.n == 0 {
                b.some.Wait() // here
            }
            b.mutex.Unlock()
        }

        func (b *box) put() {
            b.mutex.Lock()
            b.n++
            b.mutex.Unlock()
            b.some.Signal()
        }

        func newBox() *box {
            b := &box{}
            b.some = sync.NewCond(&b.mutex)
            return b
        }
        """,
    ),
    (
        "go-http-body-not-closed",
        "select",
        "net/http.(*persistConn).readLoop",
        """
        import "net/http"

        func size(url string) int64 {
            response, err := http.Get(url)
            if err != nil {
                return 0
            }
            return response.ContentLength
        }
        """,
        """
        import "net/http"

        func size(url string) int64 {
            response, err := http.Get(url)
            if err != nil {
                return 0
            }
            defer response.Body.Close()
            return response.ContentLength
        }
        """,
    ),
    *(
        (
            template,
            wait,
            functions,
            f"""
            import "{package}"

            func fetch(name string) {{
                {call}
                client.Call(name)
            }}
            """,
            f"""
            import "{package}"

            func main() {{
                {call}
                client.Call(name)
            }}
            """,
        )
        for template, wait, functions, package, call in (
            (
                "go-http-transport-per-request",
                "IO wait",
                "net.(*conn).Read net/http.(*persistConn).readLoop",
                "net/http",
                "client := http.Client{Transport: &http.Transport{}}",
            ),
            (
                "go-sql-open-per-use",
                "select",
                "database/sql.(*DB).connectionOpener",
                "database/sql",
                'client, _ := sql.Open("none", name)',
            ),
            (
                "go-grpc-connection-per-call",
                "select",
                "google.golang.org/grpc/internal/transport.(*http2Client).keepalive",
                "google.golang.org/grpc",
                "client, _ := grpc.NewClient(name)",
            ),
        )
    ),
]

#: What is likely for another reason, and the source speaks against.
LOWERED = [
    (
        "go-receive-nobody-sends",
        "chan receive",
        "main.work",
        """
        var jobs = make(chan int)

        func work() { // made
            for range jobs { // here
            }
        }
        """,
    ),
    (
        "go-send-nobody-receives",
        "chan send",
        "main.work",
        """
        var jobs = make(chan int)

        func work() { // made
            jobs <- 1 // here
        }
        """,
    ),
    (
        "go-select-nobody-answers",
        "select",
        "main.poll",
        """
        func poll(jobs chan int) { // made
            ticker := time.NewTicker(time.Minute)
            for {
                select { // here
                case <-ticker.C:
                case <-jobs:
                }
            }
        }
        """,
    ),
]


def line(text: str, mark: str) -> int:
    return next((n for n, told in enumerate(text.split("\n"), 1) if f"// {mark}" in told), 1)


def judged(folder: Path, source: str, wait: str, functions: str, *counts: int) -> Finding:
    text = "package main\n\n" + textwrap.dedent(source).strip() + "\n"
    (folder / "main.go").write_text(text)
    snapshots = []
    for number, count in enumerate(counts):
        program = Program(1000.0 + 60 * number)
        program.go(
            count,
            wait,
            functions,
            functions.split()[-1].partition(".func")[0],
            lines=(line(text, "here"), line(text, "there")),
            made_at=line(text, "made"),
            file=str(folder / "main.go"),
        )
        snapshots.append(program.build())
    sources = Sources(snapshots[-1].target, folders=[folder])
    (finding,) = find_leaks(snapshots, sources=sources).findings
    return finding


@pytest.mark.parametrize(
    ("template", "wait", "functions", "leak", "twin"), CASES, ids=[case[0] for case in CASES]
)
def test_the_source_makes_it_likely_and_its_twin_does_not(
    template: str, wait: str, functions: str, leak: str, twin: str, tmp_path: Path
) -> None:
    found = judged(tmp_path, leak, wait, functions, 300)
    assert (found.template, found.verdict) == (template, "likely"), found.source
    assert any("raised from suspect by its source" in reason for reason in found.evidence)
    healthy = judged(tmp_path, twin, wait, functions, 300)
    assert (healthy.template, healthy.verdict) == (template, "suspect"), healthy.source


@pytest.mark.parametrize(("template", "wait", "functions", "source"), LOWERED)
def test_the_source_may_speak_against_what_grew(
    template: str, wait: str, functions: str, source: str, tmp_path: Path
) -> None:
    found = judged(tmp_path, source, wait, functions, 50, 90)
    assert (found.template, found.verdict) == (template, "suspect")
    assert any("lowered from likely by its source" in reason for reason in found.evidence)


def test_every_template_that_is_raised_is_tried_here() -> None:
    ours = [t for t in builtin() if t.kind == "goroutine"]
    assert {t.id for t in ours if any(rule.raises for rule in t.source)} == {case[0] for case in CASES}
