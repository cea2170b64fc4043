"""A service that serves net/http/pprof: what it tells, and what becomes of services that misbehave.

What Go's own server answers was recorded (tools/make_go_evidence.py), a server in Python answers with it. A
live one is in tests/integration/test_go_service.py.
"""

from __future__ import annotations

import base64
import gzip
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from made_profiles import MINORS, goroutines, profile, recorded, waiting

from diagtool import api
from diagtool.capture.errors import BadEvidence, NoSuchTarget, NotPermitted, NotSupported, TargetError
from diagtool.cli import main
from diagtool.ingest import read_evidence, service
from diagtool.ingest.service import Asking, read_service
from diagtool.ingest.service.fetch import Slow
from diagtool.leaks import find_leaks
from diagtool.snapshot import store
from diagtool.snapshot.model import Snapshot

Answer = bytes | Callable[[BaseHTTPRequestHandler], None]

#: For requests that are to succeed; none is to take any time.
PATIENT = Asking(seconds=100.0)
#: For those that are never answered.
BRIEF = Asking(seconds=0.3)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@dataclass
class Served:
    url: str
    asked: list[str] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)


@contextmanager
def served(answers: Mapping[str, Answer]) -> Iterator[Served]:
    """A server on loopback: path with query -> what it answers, or who answers; others are 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            it.asked.append(self.path)
            it.headers.append(dict(self.headers))
            answer = answers.get(self.path)
            if answer is None:
                self.send_error(404)
            elif callable(answer):
                answer(self)
            else:
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        def handle(self) -> None:
            with suppress(OSError):  # who asked has gone
                super().handle()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    it = Served(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield it
    finally:
        it.over.set()
        server.shutdown()
        server.server_close()


NAMES = {
    "": "index.html",
    "cmdline": "cmdline",
    "goroutine": "goroutine.pb.gz",
    "goroutine?debug=2": "debug2.txt.gz",
    "heap": "heap.pb.gz",
    "block": "block.pb.gz",
    "mutex": "mutex.pb.gz",
    "goroutineleak": "goroutineleak.pb.gz",
}


def answers(minor: str, prefix: str = "/debug/pprof/", *, leaked: bool = False) -> dict[str, Answer]:
    """What net/http/pprof of a version answered."""
    out: dict[str, Answer] = {}
    for path, name in NAMES.items():
        if leaked and path == "goroutine?debug=2":
            name = "leak-debug2.txt.gz"
        if (file := recorded(minor, name)).exists():
            data = file.read_bytes()
            out[prefix + path] = gzip.decompress(data) if ".txt" in name else data
    return out


def ask(url: str, asking: Asking = PATIENT) -> Snapshot:
    (snapshot,) = read_service(url, asking)
    return snapshot


def places(snapshot: Snapshot) -> Counter[tuple[str, str | None]]:
    return Counter((s.frames[0].function, s.wait) for s in snapshot if s.frames and s.wait)


LEAKED = Counter(
    {
        ("main.(*broker).listen", "chan receive"): 40,
        ("main.fetch.func1", "chan send"): 25,
        ("main.(*queue[...]).pop", "select"): 15,
        ("main.upload", "sync.WaitGroup.Wait"): 10,
        ("main.descend", "chan receive"): 5,
    }
)


class TestWhatItTells:
    @pytest.mark.parametrize("minor", ["1.19", "1.27"])
    def test_stacks_heap_contention_labels_and_command_line_are_one_snapshot(self, minor: str) -> None:
        with served(answers(minor)) as it:
            snap = ask(f"{it.url}/debug/pprof")
        assert places(snap) >= LEAKED
        assert all(s.address and (s.created_by or s.frames) for s in snap)  # numbers: the full dump was read
        assert snap.tables["allocation_sites"][0]["function"] == "main.remember"
        assert {row["kind"] for row in snap.tables["contention"]} == {"block", "mutex"}
        assert Counter(key for _, key, _ in snap.labels) == {"service": 25, "trace_id": 25}
        assert snap.target.cmdline == ["/srv/profiles", "leak"]
        assert snap.target.kind == "evidence" and snap.target.host == it.url.removeprefix("http://")
        assert snap.target.details["url"] == f"{it.url}/debug/pprof"
        assert "exact" not in snap.target.details and not snap.stacks.stuck.any()

    def test_nothing_that_costs_the_service_much_is_asked_for(self) -> None:
        with served(answers("1.27")) as it:
            ask(it.url)
        names = ["", "goroutine", "goroutine?debug=2", "cmdline", "heap", "mutex", "block"]
        assert it.asked == [f"/debug/pprof/{name}" for name in names]

    def test_of_many_goroutines_the_profile_is_read_which_stops_nobody(self) -> None:
        with served(answers("1.27")) as it:
            snap = ask(it.url, Asking(seconds=100, dump_limit=100))
        assert "/debug/pprof/goroutine?debug=2" not in it.asked
        assert places(snap) >= LEAKED and not snap.stacks.address.any()
        assert any("115 goroutines: their profile was read" in w for w in snap.warnings)
        assert snap.target.captured_at is not None

    @pytest.mark.parametrize("dump_limit", [0, 1000])
    def test_the_service_proves_leaks_where_somebody_wants_it(self, dump_limit: int) -> None:
        with served(answers("1.27", leaked=True)) as it:
            snap = ask(it.url, Asking(seconds=100, dump_limit=dump_limit, prove=True))
        assert it.asked.index("/debug/pprof/goroutineleak") < it.asked.index("/debug/pprof/goroutine")
        stuck = Counter((s.frames[0].function, s.wait) for s in snap if s.stuck)
        assert stuck == LEAKED and snap.target.details["exact"] is True
        report = find_leaks([snap])
        assert {(f.count, f.frames[0].function) for f in report.findings if f.verdict == "proven"} == {
            (count, function) for (function, _), count in LEAKED.items()
        }

    def test_a_service_that_can_prove_nothing_says_so(self) -> None:
        with served(answers("1.22")) as it:
            snap = ask(it.url, Asking(seconds=100, prove=True))
        assert any("can't prove which goroutines are leaked" in w for w in snap.warnings)
        assert "exact" not in snap.target.details

    def test_labels_of_equal_stacks_are_given_by_number_and_that_is_said(self) -> None:
        with served(answers("1.22")) as it:
            snap = ask(it.url)
        by_value = Counter(value for _, key, value in snap.labels if key == "trace_id")
        assert by_value == {f"t0{i}": 5 for i in range(5)}
        assert {snap.stack(row).frames[0].function for row, _, _ in snap.labels} == {"main.fetch.func1"}
        assert any("25 have theirs by number" in w for w in snap.warnings)

    def test_a_service_without_an_index_is_asked_for_what_is_usual(self) -> None:
        some = answers("1.24", "/internal/")
        del some["/internal/"], some["/internal/mutex"]
        with served(some) as it:
            snap = ask(f"{it.url}/internal/")
        assert places(snap) >= LEAKED and "allocation_sites" in snap.tables
        assert {row["kind"] for row in snap.tables["contention"]} == {"block"}

    @pytest.mark.parametrize("path", ["goroutine", "goroutine?debug=2", "heap"])
    def test_one_profile_by_its_address(self, path: str) -> None:
        with served(answers("1.26")) as it:
            snap = ask(f"{it.url}/debug/pprof/{path}")
        assert it.asked == [f"/debug/pprof/{path}"]
        assert (places(snap) >= LEAKED) is (path != "heap")
        assert ("allocation_sites" in snap.tables) is (path == "heap")

    def test_what_belongs_to_a_query_is_sent_along(self) -> None:
        with served({}) as it, pytest.raises(BadEvidence):
            ask(f"{it.url}/debug/pprof?token=1")
        assert it.asked[:2] == ["/debug/pprof/?token=1", "/debug/pprof/goroutine?token=1"]


@pytest.mark.parametrize("minor", MINORS)
def test_the_same_leak_is_the_same_finding_in_dump_profile_and_service(minor: str, tmp_path: Path) -> None:
    def found(snapshot: Snapshot) -> dict[str, tuple[str | None, int]]:
        report = find_leaks([snapshot], min_count=10)
        return {f.id: (f.template, f.count) for f in report.findings}

    with served(answers(minor)) as it:
        asked = ask(it.url)
    (dump,) = read_evidence(recorded(minor, "debug2.txt.gz"))
    (profiled,) = read_evidence(recorded(minor, "goroutine.pb.gz"))
    assert len(found(dump)) >= 4
    assert found(dump) == found(profiled)
    assert found(dump).keys() <= found(asked).keys()


# --- services that misbehave --------------------------------------------------------------------------------


def _raw(data: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(data)

    return answer


def _head(**headers: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode()


def _redirect(where: str) -> Callable[[BaseHTTPRequestHandler], None]:
    return _raw(f"HTTP/1.1 302 Found\r\nLocation: {where}\r\nContent-Length: 0\r\n\r\n".encode())


INDEX = "/debug/pprof/"
GOROUTINE = "/debug/pprof/goroutine"


class TestMisbehaviour:
    def test_a_service_that_never_answers(self) -> None:
        with served({INDEX: lambda _: it.over.wait(100) and None}) as it, pytest.raises(Slow) as told:
            ask(it.url, BRIEF)
        assert "0.3 s" in str(told.value) and "--timeout" in told.value.hint

    @pytest.mark.parametrize("head", [b"", _head()], ids=["head", "body"])
    def test_an_answer_that_drips_for_ever(self, head: bytes) -> None:
        def drip(handler: BaseHTTPRequestHandler) -> None:
            handler.wfile.write(head)
            while not it.over.wait(0.02):
                handler.wfile.write(b"a")

        with served({INDEX: drip}) as it, pytest.raises(Slow):
            ask(it.url, BRIEF)

    def test_an_answer_without_end_is_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(service, "_MOST_PROFILE", 4 << 20)
        monkeypatch.setattr(service, "_MOST_DUMP", 4 << 20)

        def flood(handler: BaseHTTPRequestHandler) -> None:
            handler.wfile.write(_head())
            while not it.over.is_set():
                handler.wfile.write(b"goroutine 1 [running]:\n" * 1000)

        with (
            served({GOROUTINE: flood, f"{GOROUTINE}?debug=2": flood}) as it,
            pytest.raises(BadEvidence, match="sends more than 4 MiB"),
        ):
            ask(it.url)

    @pytest.mark.parametrize("how", ["body", "encoding"])
    def test_little_that_unpacks_to_much(self, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(service, "_MOST_UNPACKED", 8 << 20)
        monkeypatch.setattr(service, "_MOST_PROFILE", 8 << 20)
        bomb = gzip.compress(bytes(64 << 20), 1)
        head = _head(Content_Encoding="gzip") if how == "encoding" else _head()
        some = answers("1.27")
        some["/debug/pprof/heap"] = _raw(head + bomb)
        with served(some) as it:
            snap = ask(it.url)
        assert "allocation_sites" not in snap.tables and places(snap) >= LEAKED
        assert [w for w in snap.warnings if "profile heap is missing" in w and "more than 8 MiB" in w]

    @pytest.mark.parametrize(
        "data, said",
        [
            (b"<html>log in</html>", "is no profile"),
            (gzip.compress(b"x" * 100), "is no profile"),
            (recorded("1.27", "heap.pb.gz").read_bytes()[:1000], "cut off"),
            (b"\x1f\x8b" + b"wrong", "damaged"),
            (b"", "is no profile"),
        ],
        ids=["html", "text", "cut", "gzip", "empty"],
    )
    def test_a_heap_that_is_none_is_a_warning(self, data: bytes, said: str) -> None:
        some = answers("1.27")
        some["/debug/pprof/heap"] = data
        with served(some) as it:
            snap = ask(it.url)
        assert places(snap) >= LEAKED and "contention" in snap.tables
        assert [w for w in snap.warnings if "profile heap is missing" in w and said in w]

    def test_an_answer_that_breaks_off_is_noticed(self) -> None:
        some = answers("1.27")
        some["/debug/pprof/heap"] = _raw(_head(Content_Length="100000") + b"abc")
        with served(some) as it:
            snap = ask(it.url)
        assert [w for w in snap.warnings if "broke off its answer after 3 bytes" in w]

    def test_who_is_too_slow_once_is_not_asked_for_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = service._Service._parsed

        def parsed(self: service._Service, name: str) -> object:
            if name == "heap":
                raise Slow("heap took too long")
            return real(self, name)

        monkeypatch.setattr(service._Service, "_parsed", parsed)
        with served(answers("1.27")) as it:
            snap = ask(it.url)
        assert it.asked[-1] == "/debug/pprof/cmdline" and "contention" not in snap.tables
        assert places(snap) >= LEAKED and [w for w in snap.warnings if "profile heap is missing" in w]

    @pytest.mark.parametrize("page", [b"<html>please log in</html>", b"", b"goroutine profile: total x"])
    def test_a_server_of_something_else(self, page: bytes) -> None:
        names = (INDEX, GOROUTINE, f"{GOROUTINE}?debug=2", "/debug/pprof/heap", "/debug/pprof/cmdline")
        with served(dict.fromkeys(names, page)) as it, pytest.raises(TargetError) as told:
            ask(it.url)
        assert isinstance(told.value, (BadEvidence, NotSupported)) and told.value.hint

    def test_a_server_that_has_none_of_it(self) -> None:
        with served({}) as it, pytest.raises(BadEvidence, match="serves no profiles") as told:
            ask(it.url)
        assert "http://HOST:PORT/debug/pprof" in told.value.hint

    def test_a_circle_of_redirects(self) -> None:
        with (
            served({INDEX: _redirect("/a"), "/a": _redirect("/b"), "/b": _redirect("/a")}) as it,
            pytest.raises(BadEvidence, match="is redirected"),
        ):
            ask(it.url)

    def test_a_redirect_to_a_file_is_not_followed(self) -> None:
        with (
            served({INDEX: _redirect("file:///etc/passwd")}) as it,
            pytest.raises(BadEvidence, match="is not allowed"),
        ):
            ask(it.url)

    def test_a_redirect_is_followed_and_takes_no_password_elsewhere(self) -> None:
        with served(answers("1.27")) as other:
            moved = {path: _redirect(other.url + path) for path in answers("1.27")}
            with served(moved) as it:
                snap = ask(it.url, Asking((("Authorization", "Bearer secret"),), 100))
        assert places(snap) >= LEAKED
        assert all(h["Authorization"] == "Bearer secret" for h in it.headers)
        assert not any("Authorization" in h for h in other.headers)

    def test_a_redirect_within_the_service_keeps_the_password(self) -> None:
        some = answers("1.27", "/moved/") | {
            "/debug/pprof/" + name: _redirect(f"/moved/{name}") for name in NAMES
        }
        with served(some) as it:
            ask(it.url, Asking((("Authorization", "Bearer secret"),), 100))
        assert len(it.headers) > 7 and all(h["Authorization"] == "Bearer secret" for h in it.headers)

    def test_who_may_not_ask_is_told_how(self) -> None:
        with (
            served({INDEX: lambda h: h.send_error(401)}) as it,
            pytest.raises(NotPermitted, match=r"may not be read \(401\)") as told,
        ):
            ask(it.url)
        assert "--header" in told.value.hint

    def test_what_speaks_no_http(self) -> None:
        with served({INDEX: _raw(b"SSH-2.0-OpenSSH_9.2\r\n\x00\x01\x02")}) as it, pytest.raises(BadEvidence):
            ask(it.url)

    def test_an_encoding_that_nobody_asked_for(self) -> None:
        with (
            served({INDEX: _raw(_head(Content_Encoding="br") + b"abc")}) as it,
            pytest.raises(NotSupported, match="in the encoding br"),
        ):
            ask(it.url)

    def test_answers_that_a_proxy_packed_are_read(self) -> None:
        some = {
            path: _raw(_head(Content_Encoding="gzip") + gzip.compress(data))
            for path, data in answers("1.27").items()
            if isinstance(data, bytes)
        }
        with served(some) as it:
            snap = ask(it.url)
        assert places(snap) >= LEAKED and "allocation_sites" in snap.tables and not snap.warnings

    @pytest.mark.parametrize(
        "url",
        [
            "http://",
            "http://a b/",
            "http://[::1",
            "http://x:99999/",
            "http://x:y/",
            "http://\n/",
            "http://é" * 80,
        ],
    )
    def test_what_is_no_address(self, url: str) -> None:
        with pytest.raises(TargetError):
            ask(url, BRIEF)

    def test_nobody_there(self) -> None:
        with served({}) as it:
            pass
        with pytest.raises(NoSuchTarget, match="nobody listens"):
            ask(it.url)

    def test_a_processor_profile_is_not_even_asked_for(self) -> None:
        with served({}) as it, pytest.raises(NotSupported, match="where a program computes"):
            ask(f"{it.url}/debug/pprof/profile?seconds=30")
        assert not it.asked

    def test_counts_that_are_nonsense(self) -> None:
        huge = goroutines(waiting(1 << 62))
        with served(
            {GOROUTINE: huge, "/debug/pprof/heap": profile([("space", "bytes")], [([-5], [], {})])}
        ) as it:
            snap = ask(it.url)
        assert 0 < len(snap.stacks) <= 2_000_000 and snap.tables["allocation_sites"] == []


class TestCommands:
    def test_a_snapshot_of_a_service_is_judged_later(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "s.diag"
        secret = base64.b64encode(b"me:hidden").decode()
        with served(answers("1.27", leaked=True)) as it:
            url = it.url.replace("http://", "http://me:hidden@")
            assert main(["snapshot", "--url", f"{url}/debug/pprof", "--prove", "-o", str(file)]) == 0
        assert it.headers[0]["Authorization"] == f"Basic {secret}"
        assert "115 goroutines" in capsys.readouterr().out
        data = file.read_bytes()
        assert b"hidden" not in data and secret.encode() not in data
        assert len(store.load(file).tables["contention"]) > 3
        assert main(["leaks", str(file)]) == 1
        assert "PROVEN  40 goroutines" in capsys.readouterr().out

    def test_a_service_is_a_target_of_leaks(self, capsys: pytest.CaptureFixture[str]) -> None:
        with served(answers("1.27")) as it:
            main(["leaks", f"{it.url}/debug/pprof"])
            first = capsys.readouterr().out
            main(["leaks", "--url", it.url.removeprefix("http://"), "--header", "X-Team: a"])
        assert "goroutines  waiting in chan send" in first and capsys.readouterr().out == first
        assert it.headers[-1]["X-Team"] == "a"

    def test_headers_come_from_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "headers"
        file.write_text("Authorization: Bearer abc\n\nX-Team: b\n")
        with served(answers("1.27")) as it:
            main(["stacks", it.url])
            main(["leaks", it.url, "--header", f"@{file}"])
        assert it.headers[-1]["Authorization"] == "Bearer abc" and it.headers[-1]["X-Team"] == "b"

    @pytest.mark.parametrize(
        "arguments",
        [
            ["snapshot"],
            ["leaks"],
            ["leaks", "--url", "x", "--header", "nothing"],
            ["leaks", "--url", "x", "--header", "A: b\r\nC: d"],
            ["leaks", "--url", "x", "--header", "@/no/such/file"],
            ["snapshot", "1", "--url", "x"],
        ],
    )
    def test_wrong_usage(self, arguments: list[str]) -> None:
        assert main(arguments) == 2

    def test_a_name_for_the_file_comes_from_the_service(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with served(answers("1.27")) as it:
            assert main(["snapshot", it.url]) == 0
        (file,) = tmp_path.glob("*.diag")
        assert file.name.startswith("diagtool-127.0.0.1_")

    def test_a_service_has_no_memory(self) -> None:
        with pytest.raises(NotSupported, match="gives no memory"):
            api.capture("http://127.0.0.1:1")
