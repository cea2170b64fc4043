"""What is told of open files is what the process itself says of them: kinds, ends, members, owners."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import diagtool
from diagtool.cli import main
from diagtool.leaks import find_leaks
from diagtool.leaks.template import builtin
from diagtool.report.json import schema
from diagtool.snapshot import store
from diagtool.snapshot.model import Snapshot
from fixture_programs import FIXTURES, Fixture, Interpreter, Running, interpreters, launch

pytestmark = pytest.mark.timeout(300)

ONE = [i for i in interpreters() if i.minor == 12] or interpreters()[-1:]
EDGES = [i for i in interpreters() if i.minor in (9, 15)]
#: What these tests are about, and nothing else.
OWNERS: dict[str, Any] = {
    "heap": True,
    "graph": False,
    "native": False,
    "frames": False,
    "inventory": ("fds",),
}

PROGRAM = """
import asyncio, io, json, mmap, multiprocessing, os, select, signal, socket, subprocess, sys

truth = {}

class Latch:
    def __init__(self, fd):
        self.wake_fd = fd

class Line(socket.socket):
    pass

log = open("app.log", "w")
truth[log.fileno()] = ["file", "io.FileIO", "app.log"]
raw = io.FileIO("raw.bin", "w")
truth[raw.fileno()] = ["file", "io.FileIO", "raw.bin"]
listening = socket.create_server(("127.0.0.1", 0))
truth[listening.fileno()] = ["socket", "socket.socket"]
ours = Line()
ours.connect(listening.getsockname())
truth[ours.fileno()] = ["socket", "__main__.Line"]
theirs = listening.accept()[0]
truth[theirs.fileno()] = ["socket", "socket.socket"]
poll = select.epoll()
poll.register(listening, select.EPOLLIN)
truth[poll.fileno()] = ["epoll", "select.epoll"]
with open("data", "wb") as file:
    file.truncate(1 << 16)
before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
number = os.open("data", os.O_RDWR)
mapped = mmap.mmap(number, 1 << 16)
os.close(number)
if before is not None:
    new = [int(fd) for fd in os.listdir("/proc/self/fd") if fd not in before]
    truth[[fd for fd in new if os.path.exists("/proc/self/fd/%d" % fd)][0]] = ["file", "mmap.mmap"]
os.mkdir("folder")
for i in range(3):
    open("folder/%d" % i, "w").close()
folder = os.scandir("folder")
next(folder)
r, w = os.pipe()
latch = Latch(r)
truth[r] = ["pipe", "__main__.Latch"]
one, two = multiprocessing.Pipe()
truth[one.fileno()] = ["socket", "multiprocessing.connection.Connection"]
truth[two.fileno()] = ["socket", "multiprocessing.connection.Connection"]
lost = [os.dup(w) for i in range(5)]
nobody = [w, *lost]
child = subprocess.Popen(
    [sys.executable, "-S", "-c", "import ctypes, sys; ctypes.CDLL(None).prctl(1, 9); sys.stdin.read()"],
    stdin=subprocess.PIPE, text=True)
truth[child.stdin.fileno()] = ["pipe", "io.FileIO", "subprocess.Popen.stdin"]

async def main():
    a, b = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=a)
    truth[a.fileno()] = ["socket", "socket.socket", "_SelectorSocketTransport, registered with "]
    registered = os.eventfd(0) if hasattr(os, "eventfd") else os.pipe()[0]
    asyncio.get_running_loop().add_reader(registered, print)
    kind = "eventfd" if hasattr(os, "eventfd") else "pipe"
    loop = "registered with asyncio.unix_events._UnixSelectorEventLoop"
    truth[registered] = [kind, "selectors.EpollSelector", loop]
    print(json.dumps({"truth": truth, "nobody": nobody, "folder": os.path.realpath("folder")}))
    print("READY", os.getpid(), flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


@pytest.fixture(scope="module", params=EDGES, ids=str)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    program = tmp_path_factory.mktemp("program") / "program.py"
    program.write_text(PROGRAM)
    with launch(program, interpreter=request.param) as started:
        yield started


def told(program: Running) -> dict[str, Any]:
    truth: dict[str, Any] = json.loads(program.wait_line(r"\{"))
    return truth


def check_owners(rows: dict[int, dict[str, Any]], truth: dict[str, list[str]], kinds: bool) -> None:
    for number, (kind, owner, *words) in truth.items():
        row = rows[int(number)]
        assert row["owner"] == owner, row
        assert row["owned"] is True
        if kinds:
            assert row["kind"] == kind, row
        for word in words:
            assert word in row["owner_text"] + row.get("name", ""), row


def by_fd(snapshot: Snapshot) -> dict[int, dict[str, Any]]:
    return {row["fd"]: row for row in snapshot.tables["fds"]}


def test_every_descriptor_has_the_owner_that_the_program_gave_it(running: Running) -> None:
    truth = told(running)
    rows = by_fd(diagtool.snapshot(running.pid, **OWNERS))
    check_owners(rows, truth["truth"], kinds=True)
    for fd in truth["nobody"]:
        assert rows[fd]["owned"] is False, rows[fd]
    folders = [r for r in rows.values() if r["name"].endswith("/folder")]
    assert [r["owner"] for r in folders] == ["os.scandir"]


def test_a_core_tells_the_same_owners(running: Running, tmp_path: Path) -> None:
    truth = told(running)["truth"]
    snapshot = diagtool.snapshot(running.gcore(tmp_path), **OWNERS)
    check_owners(by_fd(snapshot), truth, kinds=False)
    assert snapshot.tables["fd_limits"] == [{"known": False}]


# --- leaks -------------------------------------------------------------------------------------------------

JUDGED = [FIXTURES[name] for name in ("g01", "g02", "g03", "g04", "g05", "g06")]
CATALOGUE = {t.id: t.catalogue for t in builtin()}
MODES = [(f, mode) for f in JUDGED for mode in f.modes]


def verdicts(*snapshots: Snapshot) -> list[tuple[str, str]]:
    return [(f.verdict, CATALOGUE[f.template or ""]) for f in find_leaks(snapshots).findings]


@pytest.mark.parametrize(("fixture", "mode"), MODES, ids=[f"{f.name}-{mode}" for f, mode in MODES])
@pytest.mark.parametrize("interpreter", ONE, ids=str)
def test_leaks_of_descriptors_are_found_and_healthy_twins_are_not(
    interpreter: Interpreter, fixture: Fixture, mode: str
) -> None:
    def look() -> Snapshot:
        # Of these only G01 and G02 ask who owns them.
        return diagtool.snapshot(program.pid, **{**OWNERS, "heap": fixture.name in ("g01", "g02")})

    with launch(fixture, mode, interpreter) as program:
        series = [look()]
        for again in range(2 if fixture.name != "g03" else 0):  # its limit leaves no room for more
            program.grow()
            if mode in fixture.leak_modes or again:
                series.append(look())
    if mode in fixture.leak_modes:
        once = "likely" if fixture.name == "g03" else "suspect"
        assert verdicts(series[0]) == [(once, fixture.template)]
        assert verdicts(*series) == [("likely", fixture.template)]
    else:
        assert verdicts(series[0]) == verdicts(*series) == []


# --- the view ----------------------------------------------------------------------------------------------


def test_the_view_shows_them_from_a_process_a_file_and_a_core(
    running: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = told(running)
    file = str(tmp_path / "taken.diag")
    store.save(diagtool.snapshot(running.pid, **OWNERS), file)
    core = str(running.gcore(tmp_path))
    capsys.readouterr()
    for target in (str(running.pid), file, core):
        assert main(["handles", target, "--format", "json"]) == 0
        document = json.loads(capsys.readouterr().out)
        jsonschema.validate(document, schema("handles"))
        rows = {row["fd"]: row for row in document["handles"]}
        check_owners(rows, truth["truth"], kinds=target != core)
        assert document["limits"]["known"] is (target != core)
        assert main(["handles", target, "--all", "-v"]) == 0
        text = capsys.readouterr().out
        assert "subprocess.Popen.stdin" in text
        assert ("a core has no table of open files" in text) is (target == core)
    assert main(["handles", str(running.pid), "--unowned", "--format", "json"]) == 0
    unowned = {row["fd"] for row in json.loads(capsys.readouterr().out)["handles"]}
    assert set(truth["nobody"]) <= unowned
    assert not unowned & {int(fd) for fd in truth["truth"]}


def test_who_has_the_other_end_of_a_pipe_is_told_when_asked(running: Running) -> None:
    fd = next(int(fd) for fd, (_, _, *words) in told(running)["truth"].items() if "subprocess" in str(words))
    child = running.children()[0]
    snapshot = diagtool.snapshot(running.pid, inventory=("fds", "peers"))
    (peer,) = by_fd(snapshot)[fd]["peers"]
    assert peer.startswith(f"{child} ") and peer.endswith("(fd 0, r)")


def test_a_kind_that_is_not_there_is_wrong_usage(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["handles", str(running.pid), "--no-owners", "--kind", "tcp"]) == 0
    assert "socket.socket" not in capsys.readouterr().out
    assert main(["handles", str(running.pid), "--no-owners", "--kind", "dragons"]) == 2
    assert "no open file of the kind dragons; there are: " in capsys.readouterr().err


# --- other processes ---------------------------------------------------------------------------------------

APART = """
import ctypes, os, signal, socket
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x40000000):
    print("SKIP no network namespace of its own:", os.strerror(ctypes.get_errno()), flush=True)
listening = socket.create_server(("0.0.0.0", 0), backlog=5)
local = socket.socket(socket.AF_UNIX)
local.bind("\\0apart")
local.listen(3)
print("PORT", listening.getsockname()[1])
print("READY", os.getpid(), flush=True)
signal.pause()
"""


@pytest.mark.parametrize("interpreter", ONE, ids=str)
@pytest.mark.parametrize("how", ["netlink", "text"])
def test_sockets_of_another_network_namespace(
    interpreter: Interpreter, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "apart.py"
    path.write_text(APART)
    if how == "text":

        def refused(pid: int, work: Callable[[], None]) -> None:
            raise PermissionError(1, "setns")

        monkeypatch.setattr("diagtool.capture.sockets._in_namespace", refused)
    ours = Path("/proc/thread-self/ns/net").readlink()
    with launch(path, interpreter=interpreter) as program:
        port = program.wait_line("PORT ").split()[1]
        rows = diagtool.snapshot(program.pid, inventory=("fds",), frames=False).tables["fds"]
    listening = [row for row in rows if row.get("state") == "LISTEN"]
    assert {row["local"] for row in listening} == {f"0.0.0.0:{port}", "@apart"}
    assert {row.get("send") for row in listening} == ({5, 3} if how == "netlink" else {None})
    assert Path("/proc/thread-self/ns/net").readlink() == ours


NOT_PYTHON = """
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <unistd.h>
int main(void) {
    prctl(PR_SET_PDEATHSIG, 9);
    int ends[2], poll = epoll_create1(0), event = eventfd(41, 0), timer = timerfd_create(CLOCK_MONOTONIC, 0);
    struct itimerspec when = {{60, 0}, {3600, 0}};
    struct epoll_event wanted = {.events = EPOLLIN};
    timerfd_settime(timer, 0, &when, NULL);
    if (pipe(ends)) return 1;
    for (int i = 0; i < 3; i++) epoll_ctl(poll, EPOLL_CTL_ADD, dup(ends[0]), &wanted);
    close(ends[1] + 1);
    printf("READY %d %d %d %d %d\\n", getpid(), poll, event, timer, ends[0]);
    fflush(stdout);
    for (;;) pause();
}
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
def test_a_process_without_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "program.c").write_text(NOT_PYTHON)
    subprocess.run(["gcc", "-o", "program", "program.c"], cwd=tmp_path, check=True)
    with subprocess.Popen([tmp_path / "program"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            pid, poll, event, timer, pipe = map(int, process.stdout.readline().split()[1:])
            assert main(["handles", str(pid), "--format", "json"]) == 0
        finally:
            process.kill()
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, schema("handles"))
    rows = {row["fd"]: row for row in document["handles"]}
    assert (rows[poll]["watches"], rows[poll]["dead"], rows[poll]["dead_fds"]) == (3, 1, [pipe + 2])
    assert rows[event]["value"] == 41
    assert rows[timer]["detail"].startswith("in 3") and rows[timer]["detail"].endswith("then every 60 s")
    assert rows[pipe]["ends"] == [pipe + 1]
    assert document["owners_known"] is False and "owned" not in rows[pipe]
