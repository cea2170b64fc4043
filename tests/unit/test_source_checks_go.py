"""Every source check of Go finds its leak in a source, and stays silent for the healthy twins."""

from __future__ import annotations

import textwrap

import pytest

from diagtool.leaks.source.check import Ask
from diagtool.leaks.source.checks import CHECKS
from diagtool.leaks.source.golang.module import GoModule

HERE = "// here"


def module_of(code: str, name: str = "main.go", others: tuple[GoModule, ...] = ()) -> GoModule:
    text = textwrap.dedent(code).strip() + "\n"
    if not text.startswith("package"):
        text = "package main\n" + text
    return GoModule(name, text.encode(), lambda: others, lambda: others)


def found(check: str, code: str) -> list[str]:
    """``line: says`` of each hit. The stack is in the line that has the comment ``// here``."""
    module = module_of(code)
    assert module.tree is not None, module.problem
    assert CHECKS[check].language == "go"
    if not CHECKS[check].words.search(module.text):
        return []
    lines = [n for n, line in enumerate(module.lines, 1) if HERE in line]
    functions = module.functions
    if lines:
        functions = [f for f in functions if any(n.covers(lines[0]) for n in f.nodes)][-1:]
    ask = Ask(lines[0] if lines else None)
    return [f"{h.line}: {h.says}" for f in functions for h in CHECKS[check].find(f, ask) if h.says]


#: (check, line of the hit, leaking source, healthy sources)
TWINS = [
    (
        "go-channel-of-package",
        5,
        """
        var jobs = make(chan int)

        func work() {
            for j := range jobs { // here
                use(j)
            }
        }
        """,
        [
            """
            var jobs = make(chan int)

            func work(jobs chan int) {
                for j := range jobs { // here
                    use(j)
                }
            }
            """,
            """
            var jobs = make(chan int)

            func work() {
                jobs := make(chan int)
                func() {
                    <-jobs // here
                }()
            }
            """,
        ],
    ),
    (
        "go-select-has-timer",
        5,
        """
        func poll(jobs chan int) {
            for {
                select { // here
                case <-time.After(time.Second):
                case j := <-jobs:
                    use(j)
                }
            }
        }
        """,
        [
            """
            func poll(jobs chan int, stop chan int) {
                select { // here
                case <-stop:
                case j := <-jobs:
                    use(j)
                }
            }
            """,
            """
            func poll(ctx context.Context, jobs chan int) {
                ticker := time.NewTicker(time.Second)
                for range ticker.C {
                    select { // here
                    case <-ctx.Done():
                    case j := <-jobs:
                        use(j)
                    }
                }
            }
            """,
        ],
    ),
    (
        "go-select-has-timer",
        7,
        """
        func poll(jobs chan int) {
            ticker := time.NewTicker(time.Second)
            for {
                select { // here
                case <-jobs:
                case <-ticker.C:
                }
            }
        }
        """,
        [],
    ),
    (
        "go-select-has-timer",
        6,
        """
        func poll(parent context.Context, jobs chan int) {
            ctx, cancel := context.WithTimeout(parent, time.Second)
            defer cancel()
            select { // here
            case <-ctx.Done():
            case <-jobs:
            }
        }
        """,
        [],
    ),
    (
        "go-select-has-done",
        4,
        """
        func poll(ctx context.Context, jobs chan int) {
            select { // here
            case <-ctx.Done():
            case <-jobs:
            }
        }
        """,
        ["func poll(jobs, more chan int) { select { // here\ncase <-jobs:\ncase <-more:\n} }"],
    ),
    (
        "go-range-never-closed",
        10,
        """
        func serve(n int) {
            jobs := make(chan int)
            for i := 0; i < n; i++ {
                go work(jobs)
            }
            jobs <- 1 // close(jobs) was forgotten
        }
        func work(in <-chan int) {
            for job := range in { // here
                use(job)
            }
        }
        """,
        [
            """
            func serve(n int) {
                jobs := make(chan int)
                go work(jobs)
                jobs <- 1
                close(jobs)
            }
            func work(in <-chan int) {
                for job := range in { // here
                    use(job)
                }
            }
            """,
            """
            func serve(n int) {
                jobs := make(chan int)
                go work(jobs)
                other.Package(jobs)
            }
            func work(in <-chan int) {
                for job := range in { // here
                    use(job)
                }
            }
            """,
            """
            type pool struct { jobs chan int }
            func newPool() *pool { return &pool{jobs: make(chan int)} }
            func (p *pool) Stop() { close(p.jobs) }
            func (p *pool) work() {
                for job := range p.jobs { // here
                    use(job)
                }
            }
            """,
            """
            func gen() chan int {
                out := make(chan int)
                go func() { defer close(out); out <- 1 }()
                return out
            }
            func work() {
                for job := range gen() { // here
                    use(job)
                }
            }
            """,
            """
            func work() {
                jobs := make(chan int)
                for job := range jobs { // here
                    if job == 0 { return }
                }
            }
            """,
            "func work(items []int) { for _, i := range items { // here\n use(i) } }",
            """
            package queue
            func Work(jobs chan int) {
                for job := range jobs { // here
                    use(job)
                }
            }
            func test() { c := make(chan int); go Work(c) }
            """,
        ],
    ),
    (
        "go-range-never-closed",
        3,
        """
        func each(count int) { items := make(chan int); go consume(items); items <- count }
        func consume(items <-chan int) { for range items { // here
        } }
        """,
        [
            # Pools of workers that live as long as the program.
            """
            type pool struct { jobs chan int }
            func newPool() *pool { return &pool{jobs: make(chan int)} }
            func (p *pool) work() {
                for job := range p.jobs { // here
                    use(job)
                }
            }
            """,
            """
            var jobs = make(chan int)
            func start() { go work(jobs); jobs <- 1 }
            func work(jobs <-chan int) {
                for job := range jobs { // here
                    use(job)
                }
            }
            """,
            """
            func start() {
                jobs := make(chan int)
                go work(jobs)
                for { jobs <- next() }
            }
            func work(jobs <-chan int) {
                for job := range jobs { // here
                    use(job)
                }
            }
            """,
            "func main() { jobs := make(chan int); go work(jobs) }\n"
            "func work(jobs <-chan int) {\n for job := range jobs { // here\n use(job) } }",
        ],
    ),
    (
        "go-nobody-sends",
        4,
        """
        func wait() {
            done := make(chan struct{})
            <-done // here
        }
        """,
        [
            "func wait() { done := make(chan int); go func() { done <- 1 }()\n <-done // here\n }",
            "func wait() { done := make(chan int); go func() { close(done) }()\n <-done // here\n }",
            "func wait() { done := make(chan int); other.Use(done)\n <-done // here\n }",
            "func wait(done chan int) {\n <-done // here\n }",
        ],
    ),
    (
        "go-nobody-receives",
        4,
        """
        func tell() {
            done := make(chan struct{})
            done <- struct{}{} // here
        }
        """,
        ["func tell() { done := make(chan int); go func() { <-done }()\n done <- 1 // here\n }"],
    ),
    (
        "go-receiver-may-leave",
        9,
        """
        func ask(ctx context.Context) int {
            answer := make(chan int)
            go func() {
                answer <- compute() // here
            }()
            select {
            case a := <-answer: return a
            case <-ctx.Done(): return 0
            }
        }
        """,
        [
            """
            func ask(ctx context.Context) int {
                answer := make(chan int, 1)
                go func() {
                    answer <- compute() // here
                }()
                select {
                case a := <-answer: return a
                case <-ctx.Done(): return 0
                }
            }
            """,
            """
            func ask() int {
                answer := make(chan int)
                go func() {
                    answer <- compute() // here
                }()
                return <-answer
            }
            """,
            """
            func ask(ctx context.Context) {
                answer := make(chan int)
                go func() {
                    answer <- compute() // here
                }()
                for {
                    select {
                    case a := <-answer: use(a)
                    case <-ctx.Done(): log()
                    }
                }
            }
            """,
        ],
    ),
    (
        "go-receiver-may-leave",
        6,
        """
        func ask(fail bool) int {
            answer := make(chan int)
            go compute(answer)
            if err := check(); err != nil {
                return 0
            }
            return <-answer
        }
        func compute(out chan<- int) {
            out <- 1 // here
        }
        """,
        [
            """
            func ask(fail bool) int {
                answer := make(chan int)
                if err := check(); err != nil {
                    return 0
                }
                go compute(answer)
                return <-answer
            }
            func compute(out chan<- int) {
                out <- 1 // here
            }
            """,
        ],
    ),
    (
        "go-receiver-may-leave",
        9,
        """
        func first(replicas []string) int {
            answers := make(chan int)
            for _, r := range replicas {
                go func() {
                    answers <- ask(r) // here
                }()
            }
            return <-answers
        }
        """,
        [
            """
            func all(replicas []string) (sum int) {
                answers := make(chan int)
                for _, r := range replicas {
                    go func() {
                        answers <- ask(r) // here
                    }()
                }
                for range replicas { sum += <-answers }
                return
            }
            """,
        ],
    ),
    (
        "go-sends-twice",
        4,
        """
        func compute(out chan error, err error) {
            if err != nil {
                out <- err
            }
            out <- nil // here
        }
        func run() { out := make(chan error); go compute(out, nil); <-out }
        """,
        [
            """
            func compute(out chan error, err error) {
                if err != nil {
                    out <- err
                    return
                }
                out <- nil // here
            }
            """,
            """
            func compute(out chan error, err error) {
                if err != nil {
                    out <- err
                } else {
                    out <- nil // here
                }
            }
            """,
        ],
    ),
    (
        "go-sends-twice",
        6,
        """
        func run() { out := make(chan int); go compute(out); <-out }
        func compute(out chan<- int) {
            out <- 1
            // a word
            out <- 2 // here
        }
        """,
        [
            """
            func run() { out := make(chan int); go compute(out); <-out; <-out }
            func compute(out chan<- int) {
                out <- 1
                out <- 2 // here
            }
            """,
        ],
    ),
    (
        "go-done-missing",
        5,
        """
        func run(n int) {
            for i := 0; i < n; i++ {
                var wg sync.WaitGroup
                wg.Add(2)
                go func() { defer wg.Done() }()
                go await(&wg)
            }
        }
        func await(wg *sync.WaitGroup) {
            wg.Wait() // here
        }
        """,
        [
            """
            func run(n int) {
                var wg sync.WaitGroup
                wg.Add(2)
                go func() { defer wg.Done() }()
                go work(&wg)
                wg.Wait() // here
            }
            func work(wg *sync.WaitGroup) { defer wg.Done() }
            """,
            """
            func run(n int) {
                var wg sync.WaitGroup
                wg.Add(2)
                for range 2 { go func() { defer wg.Done() }() }
                wg.Wait() // here
            }
            """,
        ],
    ),
    (
        "go-send-has-room",
        3,
        """
        func ask() {
            answer := make(chan int, 1)
            go func() {
                answer <- compute() // here
            }()
        }
        """,
        [
            "func ask() { answer := make(chan int)\n go func() {\n answer <- 1 // here\n }() }",
            "func ask() { a := make(chan int, 1)\n for {\n go func() {\n a <- 1 // here\n }() } }",
            "func ask() { a := make(chan int, 1)\n go func() { a <- 1; a <- 2 // here\n }() }",
        ],
    ),
    (
        "go-cancel-dropped",
        3,
        """
        func watch(parent context.Context) {
            ctx, _ := context.WithCancel(parent)
            go run(ctx)
        }
        """,
        [
            """
            func watch(parent context.Context) {
                ctx, cancel := context.WithCancel(parent)
                defer cancel()
                run(ctx)
            }
            """,
            """
            func (s *server) watch(parent context.Context) {
                ctx, cancel := context.WithCancel(parent)
                s.cancel = cancel
                go run(ctx)
            }
            """,
            """
            func watch(parent context.Context) context.CancelFunc {
                ctx, cancel := context.WithCancel(parent)
                go run(ctx)
                return cancel
            }
            """,
            """
            func watch(parent context.Context) error {
                ctx, cancel := context.WithTimeout(parent, time.Second)
                if err := run(ctx); err != nil {
                    cancel()
                    return err
                }
                cancel()
                return nil
            }
            """,
            """
            func (s *server) start(parent context.Context) {
                s.ctx, s.cancel = context.WithCancel(parent)
                go s.run()
            }
            """,
            "func v() { ctx := context.WithValue(p, k, 1); use(ctx) }",
        ],
    ),
    (
        "go-cancel-dropped",
        5,
        """
        func watch(parent context.Context) error {
            ctx, cancel := context.WithCancel(parent)
            if err := run(ctx); err != nil {
                return err
            }
            cancel()
            return nil
        }
        """,
        [],
    ),
    (
        "go-cancel-dropped",
        3,
        """
        func watch(parent context.Context) {
            ctx, cancel := context.WithTimeout(parent, time.Hour)
            _ = cancel
            go run(ctx)
        }
        """,
        [],
    ),
    (
        "go-done-missing",
        11,
        """
        func all(jobs []int) {
            var wg sync.WaitGroup
            for range jobs {
                wg.Add(1)
                go work(&wg)
            }
            wg.Wait() // here
        }
        func work(wg *sync.WaitGroup) {
            if broken() { return }
            wg.Done()
        }
        """,
        [
            """
            func all(jobs []int) {
                var wg sync.WaitGroup
                for range jobs {
                    wg.Add(1)
                    go work(&wg)
                }
                wg.Wait() // here
            }
            func work(wg *sync.WaitGroup) {
                defer wg.Done()
                if broken() { return }
            }
            """,
            """
            func all(jobs []int) {
                var wg sync.WaitGroup
                for range jobs {
                    wg.Go(func() { work() })
                }
                wg.Wait() // here
            }
            """,
            """
            func all(jobs []int) {
                var wg sync.WaitGroup
                wg.Add(1)
                other.Run(wg.Done)
                wg.Wait() // here
            }
            """,
            """
            func all(jobs []int) {
                var wg sync.WaitGroup
                wg.Add(1)
                other.Run(&wg)
                wg.Wait() // here
            }
            """,
        ],
    ),
    (
        "go-done-missing",
        4,
        """
        func all() {
            var wg sync.WaitGroup
            wg.Add(1)
            go work()
            wg.Wait() // here
        }
        """,
        [],
    ),
    (
        "go-cond-not-signalled",
        6,
        """
        type q struct { cond *sync.Cond; items []int }
        func newQ() *q { return &q{cond: sync.NewCond(&sync.Mutex{})} }
        func (q *q) take() {
            for len(q.items) == 0 {
                q.cond.Wait() // here
            }
        }
        """,
        [
            """
            type q struct { cond *sync.Cond; items []int }
            func (q *q) put() { q.cond.Signal() }
            func (q *q) take() {
                for len(q.items) == 0 {
                    q.cond.Wait() // here
                }
            }
            """,
        ],
    ),
    (
        "go-lock-not-released",
        5,
        """
        func (s *store) get(k string) (int, error) {
            s.mu.Lock()
            if s.closed {
                return 0, errClosed
            }
            v := s.m[k]
            s.mu.Unlock()
            return v, nil
        }
        """,
        [
            """
            func (s *store) get(k string) (int, error) {
                s.mu.Lock()
                defer s.mu.Unlock()
                if s.closed {
                    return 0, errClosed
                }
                return s.m[k], nil
            }
            """,
            """
            func (s *store) get(k string) (int, error) {
                s.mu.RLock()
                if s.closed {
                    s.mu.RUnlock()
                    return 0, errClosed
                }
                v := s.m[k]
                s.mu.RUnlock()
                return v, nil
            }
            """,
            "func (s *store) begin() { s.mu.Lock()\n if s.closed { return }\n }",
            """
            func (s *store) get(k string) int {
                if s.slow {
                    s.mu.Lock()
                    s.n++
                    s.mu.Unlock()
                }
                return s.n
            }
            """,
            """
            func (s *store) get(k string) func() {
                s.mu.Lock()
                if s.closed { return s.mu.Unlock }
                return func() { s.mu.Unlock() }
            }
            """,
        ],
    ),
    (
        "go-lock-taken-again",
        5,
        """
        func (s *store) add(k string) {
            s.mu.Lock()
            defer s.mu.Unlock()
            s.m[k] = s.size()
        }
        func (s *store) size() int {
            s.mu.Lock()
            defer s.mu.Unlock()
            return len(s.m)
        }
        """,
        [
            """
            func (s *store) add(k string) {
                s.mu.Lock()
                s.m[k] = 1
                s.mu.Unlock()
                s.size()
            }
            func (s *store) size() int {
                s.mu.Lock()
                defer s.mu.Unlock()
                return len(s.m)
            }
            """,
            """
            func (s *store) add(k string) {
                s.mu.Lock()
                defer s.mu.Unlock()
                go s.size()
                s.other.size()
            }
            func (s *store) size() int {
                s.mu.Lock()
                defer s.mu.Unlock()
                return len(s.m)
            }
            """,
        ],
    ),
    (
        "go-timer-not-stopped",
        4,
        """
        func poll(in chan int) {
            for {
                select { case <-in: case <-time.After(time.Minute): }
            }
        }
        """,
        [
            "func wait(in chan int) { select { case <-in: case <-time.After(time.Minute): } }",
            "func f() { t := time.NewTicker(1)\n defer t.Stop()\n for range t.C { } }",
            "func f() *time.Ticker { t := time.NewTicker(1)\n return t }",
            "func (s *s) f() { s.t = time.NewTicker(1) }",
        ],
    ),
    ("go-timer-not-stopped", 3, "func f() {\n t := time.NewTicker(1)\n for range t.C { work() } }", []),
    ("go-timer-not-stopped", 3, "func f() {\n for range time.NewTicker(1).C { work() } }", []),
    (
        "go-body-not-closed",
        4,
        """
        import "net/http"
        func get(u string) (int, error) {
            resp, err := http.Get(u)
            if err != nil { return 0, err }
            return resp.StatusCode, nil
        }
        """,
        [
            """
            import "net/http"
            func get(u string) (int, error) {
                resp, err := http.Get(u)
                if err != nil { return 0, err }
                defer resp.Body.Close()
                return resp.StatusCode, nil
            }
            """,
            """
            import "net/http"
            func get(u string) (*http.Response, error) {
                resp, err := http.Get(u)
                return resp, err
            }
            """,
            """
            import "net/http"
            func get(u string) (io.ReadCloser, error) {
                resp, err := http.Get(u)
                if err != nil { return nil, err }
                return resp.Body, nil
            }
            """,
            """
            import "net/http"
            func (c *client) get(r *http.Request) error {
                v, err := c.once.Do(r)
                return err
            }
            """,
        ],
    ),
    (
        "go-body-not-closed",
        7,
        """
        import "net/http"
        func (c *api) get(r *http.Request) ([]byte, error) {
            resp, err := c.client.Do(r)
            if err != nil { return nil, err }
            if resp.StatusCode != 200 {
                return nil, errStatus
            }
            b, err := io.ReadAll(resp.Body)
            resp.Body.Close()
            return b, err
        }
        """,
        [],
    ),
    (
        "go-body-not-closed",
        4,
        """
        import "net/http"
        func ping(u string) {
            _, err := http.Get(u)
            use(err)
        }
        """,
        [],
    ),
    (
        "go-client-per-call",
        3,
        """
        func fetch(u string) {
            t := &http.Transport{MaxIdleConns: 3}
            c := &http.Client{Transport: t}
            c.Get(u)
        }
        """,
        [
            "var t = &http.Transport{}",
            "func newClient() *http.Client { t := &http.Transport{}\n return &http.Client{Transport: t} }",
            "func f() { t := &http.Transport{}\n defer t.CloseIdleConnections()\n use(t) }",
            "func f() { db, err := sql.Open(d, u)\n defer db.Close() }",
            "func (s *s) open() { db, err := sql.Open(d, u)\n s.db = db }",
            "func main() { db, err := sql.Open(d, u)\n db.Ping() }",
        ],
    ),
    ("go-client-per-call", 3, "func f() {\n db, err := sql.Open(d, u)\n db.Query(q) }", []),
    (
        "go-spawns-without-limit",
        4,
        """
        func all(items []int) {
            for _, i := range items {
                go work(i)
            }
        }
        """,
        [
            "func f() { for i := 0; i < 4; i++ { go work(i) } }",
            "func f(items []int) { for _, i := range items { sem <- 1\n go work(i) } }",
            "func f() { for { c, _ := l.Accept()\n go serve(c) } }",
            "func f() { go work(1) }",
        ],
    ),
    (
        "go-stop-not-called",
        4,
        """
        type worker struct{}
        func (w *worker) Start() { go w.run() }
        func (w *worker) Stop() { close(w.done) }
        func serve() { w := &worker{}; w.Start() }
        """,
        [
            """
            type worker struct{}
            func (w *worker) Start() { go w.run() }
            func (w *worker) Stop() { close(w.done) }
            func serve() { w := &worker{}; w.Start(); defer w.Stop() }
            """,
            "type worker struct{}\nfunc (w *worker) Start() { w.n = 1 }\nfunc (w *worker) Stop() { }",
        ],
    ),
]


@pytest.mark.parametrize(
    ("check", "line", "leaking", "healthy"), TWINS, ids=[f"{i}-{t[0]}" for i, t in enumerate(TWINS)]
)
def test_the_check_finds_the_leak_and_nothing_in_its_healthy_twins(
    check: str, line: int, leaking: str, healthy: list[str]
) -> None:
    hits = found(check, leaking)
    assert [int(hit.partition(":")[0]) for hit in hits] == [line], hits
    for twin in healthy:
        assert found(check, twin) == [], twin


def test_every_check_of_go_has_a_leaking_and_a_healthy_source() -> None:
    checked = {t[0] for t in TWINS}
    assert checked == {name for name, check in CHECKS.items() if check.language == "go"}
    assert checked == {t[0] for t in TWINS if t[3]}
