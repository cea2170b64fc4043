"""Native stacks, merged with Python's: of every version, live and from a core, as two unwinders see them."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import diagtool
from diagtool.api import snapshot_of
from diagtool.capture.model import CapturedThread
from diagtool.leaks import find_leaks
from diagtool.leaks.template import builtin
from diagtool.runtimes.native.stacks import NativeFrame, native_stacks
from diagtool.runtimes.native.stacks.alike import Waiting
from diagtool.runtimes.native.stacks.drgnengine import _Unwinder
from diagtool.snapshot.model import Snapshot, Stack
from fixture_programs import FIXTURES, Interpreter, interpreters, launch

NATIVE = Path(__file__).parents[2] / "fixtures" / "native"
SOME = [i for i in interpreters() if i.version in ("3.9", "3.11", "3.13", "3.14")]

NESTED = """
import functools, os, signal, threading, time

def leaf(event):
    arrived.append(None)
    event.wait()

def items(event):
    yield leaf(event)

class Record:
    def __init__(self, event):
        list(map(leaf, [event]))

def compared(event):
    sorted([1, 2], key=functools.cmp_to_key(lambda a, b: next(items(event))))

def deep(n, event):
    return deep(n - 1, event) if n else Record(event)

arrived = []
event = threading.Event()
for target, arguments in ((compared, (event,)), (deep, (50, event))):
    threading.Thread(target=target, args=arguments, name=target.__name__, daemon=True).start()
while len(arrived) < 2:
    time.sleep(0.001)
time.sleep(0.1)
print("READY", os.getpid(), flush=True)
while True:
    signal.pause()
"""


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nested") / "program.py"
    path.write_text(NESTED)
    return path


def is_python(stack: Stack) -> bool:
    return bool(stack.frames)


@pytest.mark.parametrize("interpreter", interpreters(), ids=str)
def test_python_frames_stand_between_native_ones_in_the_order_of_their_calls(
    interpreter: Interpreter, nested: Path
) -> None:
    with launch(nested, interpreter=interpreter) as program:
        snapshot = diagtool.snapshot(program.pid, inventory=())
    stacks = {s.name.partition(" ")[0]: s for s in snapshot if is_python(s)}
    for stack in stacks.values():
        assert [f for f in stack.merged if f.language == "python"] == stack.frames
        # Each call of the interpreter was replaced by the Python frames that it ran.
        assert not any("EvalFrameDefault" in f.function for f in stack.merged)
        assert stack.merged[-1].library is not None  # a thread begins in C
    compared = stacks["compared"].merged
    names = [f.function.rpartition(".")[2] for f in compared if f.language == "python"]
    between = [i for i, f in enumerate(compared) if f.language == "python"]
    key, caller = names.index("<lambda>"), names.index("compared")
    # C code of sorted() and of cmp_to_key() is between the function that is the key and who sorts.
    assert between[caller] - between[key] > 1


SUBINTERPRETER = """
import os, signal, threading, time
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

CODE = (
    "import os, time\\n"
    "def deep(n):\\n"
    "    if n: return deep(n - 1)\\n"
    "    os.write(%d, b'x')\\n"
    "    time.sleep(3000)\\n"
    "deep(3)\\n"
)

def run():
    run_in = getattr(interpreters, "run_string", None) or interpreters.exec
    run_in(interpreters.create(), CODE % writer)

reader, writer = os.pipe()
threading.Thread(target=run, daemon=True, name="caller").start()
os.read(reader, 1)
time.sleep(0.1)
print("READY", os.getpid(), flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize("interpreter", [i for i in SOME if i.minor < 14], ids=str)
def test_frames_of_a_subinterpreter_stand_above_those_of_its_caller(
    interpreter: Interpreter, tmp_path: Path
) -> None:
    path = tmp_path / "program.py"
    path.write_text(SUBINTERPRETER)
    with launch(path, interpreter=interpreter) as program:
        snapshot = diagtool.snapshot(program.pid, inventory=())
    (names,) = {
        tuple(f.function.rpartition(".")[2] for f in s.merged if f.language == "python")
        for s in snapshot
        if s.kind == "thread" and any(f.function == "deep" for f in s.merged)
    }
    assert names == ("deep",) * 4 + ("<module>", "run", "run", "_bootstrap_inner", "_bootstrap")


@pytest.mark.parametrize("interpreter", SOME[:2], ids=str)
def test_a_core_has_the_same_stacks(interpreter: Interpreter, nested: Path, tmp_path: Path) -> None:
    with launch(nested, interpreter=interpreter) as program:
        live = diagtool.snapshot(program.pid, inventory=())
        dead = diagtool.snapshot(program.gcore(tmp_path), inventory=())
    of_live = {s.address: s.merged for s in live if is_python(s)}
    of_dead = {s.address: s.merged for s in dead if is_python(s)}
    assert of_live == of_dead


# -- without Python ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    path = tmp_path_factory.mktemp("native") / "pools"
    subprocess.run(["g++", "-O1", "-g", "-pthread", str(NATIVE / "pools.cpp"), "-o", path], check=True)
    return path


@pytest.fixture
def blocked(pools: Path, request: pytest.FixtureRequest) -> Iterator[int]:
    process = subprocess.Popen([pools, request.param], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("READY")
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def shape(frames: list[NativeFrame]) -> list[tuple[int, int, bool, int | None]]:
    return [(f.pc, f.sp, f.inline, f.line) for f in frames]


CROWD = """
import os, threading
def wait(deep):
    if deep:
        return wait(deep - 1)
    here.release()
    threading.Event().wait()
here = threading.Semaphore(0)
for number in range(24):
    threading.Thread(target=wait, args=(number % 3,), daemon=True).start()
for _ in range(24):
    here.acquire()
print("READY", os.getpid(), flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("interpreter", [i for i in SOME if i.minor in (9, 13)], ids=str)
def test_threads_that_are_alike_are_unwound_once_and_have_the_frames_that_each_would_have(
    interpreter: Interpreter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "crowd.py"
    path.write_text(CROWD)
    unwound: list[int] = []
    frames = _Unwinder.frames

    def counted(self: _Unwinder, thread: CapturedThread) -> tuple[list[NativeFrame], str]:
        unwound.append(thread.tid)
        return frames(self, thread)

    monkeypatch.setattr(_Unwinder, "frames", counted)
    with launch(path, interpreter=interpreter) as program, diagtool.capture(program.pid) as capture:
        shared = native_stacks(capture, "drgn")
        of_few = len(unwound)
        monkeypatch.setattr(Waiting, "alike", lambda self, number, unwound: [])
        each = native_stacks(capture, "drgn")
    assert shared == each
    assert list(shared.frames) == list(each.frames)
    assert len(shared.frames) == 25
    assert of_few < 25 == len(unwound) - of_few


AWAITING = """
import asyncio, os, threading
async def main():
    queue, loop = asyncio.Queue(), asyncio.get_running_loop()
    tasks = [asyncio.create_task(queue.get()) for _ in range(5)]
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    await asyncio.sleep(0.1)
    print("READY", os.getpid(), flush=True)
    await asyncio.gather(*tasks)
asyncio.run(main())
"""


@pytest.mark.parametrize("interpreter", [i for i in SOME if i.minor in (9, 14)], ids=str)
def test_a_view_of_threads_alone_says_of_them_what_the_whole_snapshot_says(
    interpreter: Interpreter, tmp_path: Path
) -> None:
    path = tmp_path / "awaiting.py"
    path.write_text(AWAITING)
    with launch(path, interpreter=interpreter) as program, diagtool.capture(program.pid) as capture:
        whole = snapshot_of(capture, inventory=())
        alone = snapshot_of(capture, inventory=(), tasks=False)
    assert any(stack.kind == "task" for stack in whole)
    assert {stack.kind for stack in alone} == {"thread"}

    def told(snapshot: Snapshot) -> list[object]:
        threads = [stack for stack in snapshot if stack.kind == "thread"]
        return [
            (
                s.name,
                s.address,
                s.state,
                s.wait,
                s.frames,
                s.merged,
                s.thing and (s.thing.type, s.thing.detail),
            )
            for s in threads
        ]

    assert told(alone) == told(whole)


@pytest.mark.parametrize("blocked", ["deadlock"], indirect=True)
def test_gdb_and_drgn_see_the_same_frames(blocked: int, tmp_path: Path) -> None:
    if shutil.which("gdb") is None:
        pytest.skip("no gdb here")
    core = tmp_path / "core"
    subprocess.run(["gcore", "-o", str(core), str(blocked)], check=True, capture_output=True)
    for target in (blocked, f"{core}.{blocked}"):
        with diagtool.capture(target) as capture:
            one, other = native_stacks(capture, "drgn"), native_stacks(capture, "gdb")
        assert one.warnings == other.warnings == []
        assert {t: shape(list(f)) for t, f in one.frames.items()} == {
            t: shape(list(f)) for t, f in other.frames.items()
        }
        assert all(len(frames) > 3 for frames in one.frames.values())


@pytest.mark.parametrize("blocked", ["deadlock"], indirect=True)
def test_a_deadlock_of_a_program_without_python_is_proven(blocked: int, tmp_path: Path) -> None:
    core = tmp_path / "core"
    subprocess.run(["gcore", "-o", str(core), str(blocked)], check=True, capture_output=True)
    for target in (blocked, f"{core}.{blocked}"):
        snapshot = diagtool.snapshot(target)
        (finding,) = find_leaks([snapshot]).findings
        assert (finding.template, finding.verdict, finding.count) == ("native-deadlock", "proven", 2)
        assert "app::Account::transfer" in finding.evidence[0]


@pytest.mark.parametrize("blocked", ["chain"], indirect=True)
def test_threads_that_wait_for_one_who_is_at_work_are_no_deadlock(blocked: int) -> None:
    snapshot = diagtool.snapshot(blocked)
    assert {s.wait for s in snapshot} >= {"pthread_mutex_lock", "sleep"}
    assert find_leaks([snapshot]).findings == ()


# -- what hangs --------------------------------------------------------------------------------------------

HANGS = [f for f in FIXTURES.values() if f.native and f.name != "e07x"]  # that one has to be built
CATALOGUE = {t.id: t.catalogue for t in builtin()}
PROVEN = {*((f.name, mode) for f in HANGS if f.name == "e07" for mode in f.leak_modes), ("e04b", "leak")}
CASES = [(f.name, mode) for f in HANGS for mode in (*f.leak_modes, *f.healthy_modes)]


def hung(pid: int) -> Snapshot:
    """A snapshot of a process that hangs for good; on a busy machine its threads take a while to do so."""
    deadline = time.monotonic() + 20
    while True:
        snapshot = diagtool.snapshot(pid)
        if find_leaks([snapshot]).findings or time.monotonic() > deadline:
            return snapshot


@pytest.mark.parametrize("case", CASES, ids=" ".join)
@pytest.mark.parametrize("interpreter", [i for i in SOME if i.root is None][::2], ids=str)
def test_what_hangs_in_native_code_is_told_and_its_twin_is_not(
    interpreter: Interpreter, case: tuple[str, str]
) -> None:
    name, mode = case
    fixture = FIXTURES[name]
    with launch(fixture, mode, interpreter) as program:
        ready = next(line for line in program.lines() if line.startswith("READY "))
        pid = int(ready.split()[1])  # of a child, where it is the child that hangs
        snapshot = hung(pid) if mode in fixture.leak_modes else diagtool.snapshot(pid)
        findings = find_leaks([snapshot]).findings
    told = [(CATALOGUE[f.template or ""], f.verdict) for f in findings]
    expected = [(fixture.template, "proven" if case in PROVEN else "likely")]
    assert told == (expected if mode in fixture.leak_modes else [])


# -- an extension in C++ -----------------------------------------------------------------------------------

CPYTHON = next((i for i in interpreters() if i.version == "3.12"), SOME[-2])


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the extension of fixtures/native/journal.cpp, built for CPYTHON."""
    if shutil.which("g++") is None or CPYTHON.headers is None:
        pytest.skip("no g++ or no headers here")
    pybind11 = pytest.importorskip("pybind11")
    folder = tmp_path_factory.mktemp("journal")
    include = [f"-I{CPYTHON.headers}", f"-I{pybind11.get_include()}"]
    command = ["g++", "-O1", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", *include]
    subprocess.run([*command, str(NATIVE / "journal.cpp"), "-o", "journal.so"], cwd=folder, check=True)
    return folder


@pytest.mark.parametrize(("mode", "verdict"), [("leak", "proven"), ("leak2", "likely"), ("healthy", None)])
def test_deadlocks_of_an_extension_with_the_gil_are_told(
    journal: Path, mode: str, verdict: str | None, tmp_path: Path
) -> None:
    with launch(FIXTURES["e07x"], mode, CPYTHON, env={"DIAGTOOL_BUILT": str(journal)}) as program:
        snapshots = [hung(program.pid) if verdict else diagtool.snapshot(program.pid)]
        if mode == "leak":
            snapshots.append(diagtool.snapshot(program.gcore(tmp_path)))
    for snapshot in snapshots:
        findings = find_leaks([snapshot]).findings
        expected = [] if verdict is None else [("native-deadlock", verdict, 2)]
        assert [(f.template, f.verdict, f.count) for f in findings] == expected
        if mode == "leak":
            assert "journal::Journal::append of journal.so" in findings[0].evidence[0]
        elif mode == "leak2":
            assert "journal::settings of journal.so" in findings[0].evidence[0]


# -- what is hard to unwind --------------------------------------------------------------------------------

NO_TABLES = ["-fomit-frame-pointer", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables"]


def built(folder: Path, *options: str) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here")
    path = folder / "odd"
    subprocess.run(["gcc", "-O1", str(NATIVE / "odd.c"), "-o", path, "-pthread", *options], check=True)
    return path


def look(
    program: Path, mode: str, debug_directories: Sequence[str] = (), warning: str = ""
) -> dict[int, Sequence[NativeFrame]]:
    process = subprocess.Popen([program, mode], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("READY")
        with diagtool.capture(process.pid) as capture:
            stacks = native_stacks(capture, "drgn", debug_directories)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert [w[: len(warning)] for w in stacks.warnings] == [warning] * bool(warning)
    return dict(stacks.frames)


def own(frames: Sequence[NativeFrame]) -> list[str]:
    """Functions of the program itself, the guessed ones marked."""
    return [
        f.function + "?" * f.guessed for f in frames if (f.library or "").endswith("odd") and not f.inline
    ]


def test_functions_are_named_by_symbols_and_without_them_by_their_place(tmp_path: Path) -> None:
    program = built(tmp_path)
    (frames,) = look(program, "plain").values()
    assert own(frames) == ["wait_here", "inner", "outer", "main", "_start"]
    subprocess.run(["strip", program], check=True)
    (stripped,) = look(program, "plain").values()
    ours = [f for f in stripped if (f.library or "").endswith("odd")]
    assert [f.function for f in ours] == [""] * 5
    assert all(0 < f.offset < program.stat().st_size for f in ours)


def test_separate_debug_files_are_found_where_one_says(tmp_path: Path) -> None:
    if shutil.which("objcopy") is None:
        pytest.skip("no objcopy here")
    program = built(tmp_path, "-g", "-Wl,--build-id=0x0123456789abcdef0123456789abcdef01234567")
    debug = tmp_path / "debug" / ".build-id" / "01" / "23456789abcdef0123456789abcdef01234567.debug"
    debug.parent.mkdir(parents=True)
    subprocess.run(["objcopy", "--only-keep-debug", program, debug], check=True)
    subprocess.run(["strip", program], check=True)
    link = tmp_path / "linked" / "odd.debug"
    link.parent.mkdir()
    shutil.copy(debug, link)
    subprocess.run(["objcopy", f"--add-gnu-debuglink={link}", program], check=True)
    (without,) = look(program, "plain").values()
    (frames,) = look(program, "plain", debug_directories=[str(tmp_path / "debug")]).values()
    (linked,) = look(program, "plain", debug_directories=[str(link.parent)]).values()
    assert own(without) == [""] * 5
    assert own(frames)[:4] == ["wait_here", "inner", "outer", "main"] == own(linked)[:4]
    assert all(
        f.file and f.file.endswith("odd.c") and f.line for f in frames if f.function in own(frames)[:4]
    )


def test_a_debug_server_is_asked_only_if_one_says_and_one_that_is_silent_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "debuginfod" not in pytest.importorskip("drgn").Program().registered_debug_info_finders():
        pytest.skip("no libdebuginfod here")
    program = built(tmp_path, "-Wl,--build-id=0x0123456789abcdef0123456789abcdef01234568")
    subprocess.run(["strip", program], check=True)
    with socket.create_server(("127.0.0.1", 0)) as server:  # it accepts, in the backlog, and says nothing
        server.setblocking(False)
        monkeypatch.delenv("DEBUGINFOD_URLS", raising=False)
        (without,) = look(program, "plain").values()
        with pytest.raises(BlockingIOError):
            server.accept()
        monkeypatch.setenv("DEBUGINFOD_URLS", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("DEBUGINFOD_TIMEOUT", "1")
        monkeypatch.setenv("DEBUGINFOD_CACHE_PATH", str(tmp_path / "cache"))
        (asked,) = look(program, "plain", warning="debuginfod was not asked for").values()
        server.accept()[0].close()
        with pytest.raises(BlockingIOError):  # libc would have been the next one
            server.accept()
    assert own(asked) == own(without) == [""] * 5
    assert "DRGN_DISABLE_PLUGINS" not in os.environ and "DEBUGINFOD_RETRY_LIMIT" not in os.environ


def test_unwind_tables_of_the_other_section_type_are_used(tmp_path: Path) -> None:
    """As PyTorch's libraries have them: SHT_X86_64_UNWIND, of which drgn does not take any."""
    program = built(tmp_path, "-fomit-frame-pointer")
    data = bytearray(program.read_bytes())
    start, (size, count) = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<HH", data, 58)
    allocated = [
        start + size * i + 4
        for i in range(count)
        if struct.unpack_from("<IIQ", data, start + size * i)[1:] == (1, 2)  # PROGBITS, SHF_ALLOC alone
    ]
    for at in allocated:  # .eh_frame among them
        struct.pack_into("<I", data, at, 0x70000001)
    program.write_bytes(data)
    (frames,) = look(program, "plain").values()
    assert own(frames) == ["wait_here", "inner", "outer", "main", "_start"]


def test_code_made_at_run_time_is_a_frame_and_the_stack_goes_on(tmp_path: Path) -> None:
    (frames,) = look(built(tmp_path), "jit").values()
    assert own(frames) == ["wait_here", "outer?", "main", "_start"]
    made = next(f for f in frames if f.library is None)
    assert made.function == ""


def test_a_program_without_unwind_information_has_frames_that_are_guessed(tmp_path: Path) -> None:
    (frames,) = look(built(tmp_path, *NO_TABLES), "plain").values()
    assert own(frames) == ["wait_here", "inner?", "outer?", "main?", "_start"]


def test_a_smashed_stack_has_the_frames_before_the_damage_and_the_other_threads_all(tmp_path: Path) -> None:
    main, smashed = look(built(tmp_path), "smashed").values()
    assert own(main) == ["main", "_start"]
    assert own(smashed)[:2] == ["wait_here", "smash"]
    assert len(smashed) < 20


def test_code_of_the_kernel_in_the_process_is_no_obstacle(tmp_path: Path) -> None:
    program = built(tmp_path)
    seen: list[str] = []
    for _ in range(8):  # where exactly it is looked at is chance: in a stub between libraries, too
        main, telling = look(program, "vdso").values()
        assert own(main)[-2:] == ["main", "_start"]
        assert telling
        seen += own(telling)
    assert "tell_time" in seen


def test_a_program_that_was_replaced_on_disk_is_named_by_what_runs(tmp_path: Path) -> None:
    program = built(tmp_path)
    process = subprocess.Popen([program, "plain"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("READY")
        program.unlink()
        shutil.copy("/bin/true", program)
        with diagtool.capture(process.pid) as capture:
            (frames,) = native_stacks(capture, "drgn").frames.values()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    names = [f.function for f in frames]
    assert names[-1] == "_start"
    assert [n for n in names if n in ("wait_here", "inner", "outer", "main")] == [
        "wait_here",
        "inner",
        "outer",
        "main",
    ]


def test_who_waits_in_the_driver_waits_for_the_gpu(tmp_path: Path) -> None:
    """Simulated: the driver is a library of ours with its name."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here")
    source = Path(__file__).parent.parent / "programs" / "waits_for_gpu.c"
    driver, program = tmp_path / "libcuda.so.1", tmp_path / "program"
    subprocess.run(["gcc", "-DDRIVER", "-shared", "-fPIC", source, "-o", driver], check=True)
    subprocess.run(["gcc", source, driver, "-o", program, f"-Wl,-rpath,{tmp_path}"], check=True)
    process = subprocess.Popen([program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("READY")
        wait = None
        while wait is None:  # it says so with the mutex, right before it waits
            (stack,) = diagtool.snapshot(process.pid, inventory=())
            wait = stack.wait
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert wait == "cuda.synchronize"
    assert stack.thing is not None and stack.thing.type == "GPU"


def test_a_deadlock_with_the_gil_is_found_in_a_core(tmp_path: Path) -> None:
    with launch(FIXTURES["e07"], "leak", SOME[-2]) as program:
        hung(program.pid)
        snapshot = diagtool.snapshot(program.gcore(tmp_path))
    (finding,) = find_leaks([snapshot]).findings
    assert (finding.template, finding.verdict) == ("native-deadlock", "proven")
