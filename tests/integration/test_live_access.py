"""Which processes can be captured: other namespaces, other users; one clear sentence for each that can't."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import native
from diagtool.capture import access, ptrace
from diagtool.capture.errors import NoSuchTarget, NotPermitted, NotSupported, TargetError
from diagtool.capture.live import capture_live

pytestmark = pytest.mark.skipif(not ptrace.supported(), reason="live processes on Linux on x86-64 only")

NOBODY = 65534
WAITS = "print('READY', flush=True); input()"
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root becomes another user or makes namespaces"
)


def sentence(error: TargetError) -> str:
    """The message, checked to be what a person can be shown: one line, no full stop, and a hint."""
    text = str(error)
    assert "\n" not in text
    assert text[-1] not in ".!"
    assert "Errno" not in text
    assert not error.hint or (error.hint[-1] not in ",:" and "\n" not in error.hint)
    return text


def refused(pid: int) -> TargetError:
    with pytest.raises(TargetError) as caught:
        capture_live(pid)
    return caught.value


def become_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


# -- what can't be captured -----------------------------------------------------------------------------


@pytest.mark.parametrize("pid", [0, -1, 4194304 + 17, 1 << 40])
def test_no_such_process(pid: int) -> None:
    error = refused(pid)
    assert isinstance(error, NoSuchTarget)
    assert sentence(error) == f"there is no process {pid}"


def test_a_zombie() -> None:
    process = subprocess.Popen(["true"])
    native.wait_until(lambda: native.status(process.pid)["State"][0] == "Z", "it is a zombie")
    error = refused(process.pid)
    process.wait()
    assert isinstance(error, NoSuchTarget)
    assert "zombie" in sentence(error)


def test_a_kernel_thread() -> None:
    for entry in Path("/proc").iterdir():
        stat = entry / "stat"
        if (
            entry.name.isdigit()
            and stat.exists()
            and int(stat.read_text().rpartition(")")[2].split()[6]) & 0x200000
        ):
            error = refused(int(entry.name))
            assert isinstance(error, NotSupported)
            assert "is a kernel thread" in sentence(error)
            return
    pytest.skip("no kernel threads in this pid namespace")


def test_diagtool_itself() -> None:
    error = refused(os.getpid())
    assert isinstance(error, NotSupported)
    assert "diagtool itself" in sentence(error)


def test_a_thread_instead_of_its_process() -> None:
    with native.started(native.built("counters")) as program:
        tid = next(int(n) for n in os.listdir(f"/proc/{program.pid}/task") if int(n) != program.pid)
        error = refused(tid)
        assert sentence(error) == f"{tid} is a thread of process {program.pid}"
        assert str(program.pid) in error.hint


def test_a_process_that_is_traced_already() -> None:
    with native.started(sys.executable, "-c", WAITS) as program:
        source = (
            f"from diagtool.capture import ptrace; print(ptrace.seize({program.pid}), flush=True); input()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as debugger:
            assert debugger.stdout is not None
            assert debugger.stdout.readline() == "0\n"
            error = refused(program.pid)
            debugger.kill()
        assert isinstance(error, NotPermitted)
        assert f"is traced by process {debugger.pid} (python" in sentence(error)
        native.wait_until(lambda: native.status(program.pid)["TracerPid"] == "0", "the debugger is gone")
        capture_live(program.pid).close()


def test_a_process_whose_main_thread_has_ended() -> None:
    source = """
import ctypes, threading
threading.Thread(target=threading.Event().wait).start()
print("READY", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""
    with native.started(sys.executable, "-c", source) as program:
        native.wait_until(lambda: native.status(program.pid)["State"][0] == "Z", "the main thread ended")
        error = refused(program.pid)
        assert isinstance(error, NotSupported)
        assert "main thread" in sentence(error)
        assert "kill -ABRT" in error.hint  # gcore takes it for a zombie


def elf32() -> bytes:
    """A 32-bit program that pauses for ever, byte by byte: no compiler for that is needed."""
    code = b"\xb8\x1d\x00\x00\x00\xcd\x80\xeb\xf7"  # 1: mov $29 (pause), %eax; int $0x80; jmp 1b
    size = 52 + 32 + len(code)
    base = 0x08048000
    header = struct.pack(
        "<16sHHIIIIIHHHHHH", b"\x7fELF\x01\x01\x01", 2, 3, 1, base + 84, 52, 0, 0, 52, 32, 1, 0, 0, 0
    )
    return header + struct.pack("<8I", 1, 0, base, base, size, size, 5, 4096) + code


def test_a_32_bit_program(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(elf32())
    path.chmod(0o755)
    try:
        process = subprocess.Popen([str(path)])
    except OSError:
        pytest.skip("this kernel runs no 32-bit programs")
    try:
        native.wait_until(lambda: native.status(process.pid)["State"][0] == "S", "it pauses")
        error = refused(process.pid)
        assert isinstance(error, NotSupported)
        assert "32-bit" in sentence(error)
    finally:
        process.kill()
        if process.wait() == -signal.SIGSEGV:
            pytest.skip("this kernel runs no 32-bit programs")


#: A diagtool that became an ordinary user. Everything is imported before: that user may not read our files.
AS_NOBODY = f"""
import json, os, sys
from diagtool.capture import access, live
from diagtool.capture.errors import TargetError
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
try:
    with live.capture_live(int(sys.argv[1])) as c:
        libc = next(m for m in c.modules if "libc.so" in m.path)
        print(json.dumps({{
            "threads": len(c.threads), "warnings": c.warnings, "late": c.late_pages, "fds": len(c.fds),
            "word": c.memory.u64(int(sys.argv[2])), "symbol": libc.symbol("getpid") is not None,
            "copied": sum(s.end - s.start for s in c.memory.segments if s.writable),
        }}))
except TargetError as e:
    print(json.dumps({{"error": type(e).__name__, "message": str(e), "hint": e.hint}}))
"""


def as_nobody(pid: int, address: int = 0) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(pid), str(address)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


@needs_root
def test_another_users_process_is_refused_and_says_why() -> None:
    with native.started(native.built("counters")) as program:
        found = as_nobody(program.pid)
        assert found["error"] == "NotPermitted"
        assert f"belongs to uid 0, we are uid {NOBODY} without CAP_SYS_PTRACE" in str(found["message"])
        assert "root" in str(found["hint"])
        assert native.status(program.pid)["TracerPid"] == "0"


@needs_root
def test_as_an_ordinary_user_ones_own_processes_work() -> None:
    """All of it: pagemap, memory, files of the mappings, the stop."""
    with native.started(native.built("counters"), before=become_nobody) as program:
        found = as_nobody(program.pid, int(program.words[1]))
        assert found["threads"] == 2
        assert found["warnings"] == []
        assert found["late"] == 0
        assert found["symbol"]
        assert found["fds"] == 3
        assert int(str(found["word"])) > 0
        # Page by page: the untouched rest of the second thread's 64 MiB of malloc arena is not there.
        assert 24 << 20 < int(str(found["copied"])) < 30 << 20


@needs_root
def test_an_undumpable_process_of_the_same_user_says_why() -> None:
    """A program that changed its uid is not dumpable: its /proc files belong to root."""
    changes = f"import os; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); {WAITS}"
    with native.started(sys.executable, "-c", changes) as program:
        found = as_nobody(program.pid)
        assert found["error"] == "NotPermitted"
        assert "not dumpable" in str(found["message"])


# -- other namespaces -----------------------------------------------------------------------------------


def unshare(*options: str) -> list[str]:
    command = ["unshare", *options]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("namespaces can't be made here")
    return command


def find(marker: str) -> int:
    """The pid, as we see it, of the process whose command line holds a marker."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[-2:-1] == [marker.encode()] and words[0] != b"unshare":
                return int(entry.name)
    raise AssertionError(f"no process with {marker}")


@needs_root
def test_a_process_in_another_pid_namespace_knows_itself_by_other_numbers() -> None:
    command = unshare("--pid", "--fork", "--mount-proc", "--kill-child")
    source = """
import os, threading
t = threading.Thread(target=threading.Event().wait); t.start()
print("READY", os.getpid(), t.native_id, flush=True)
"""
    marker = f"diagtool-test-{os.getpid()}"
    with native.started(*command, sys.executable, "-c", source, marker) as program:
        inside, inside_tid = map(int, program.words)
        pid = find(marker)
        assert pid != inside == 1
        with capture_live(pid) as capture:
            assert capture.process.pid == pid
            assert capture.process.ns_pid == inside
            assert [t.ns_tid for t in capture.threads] == [inside, inside_tid]
            assert capture.threads[1].tid != inside_tid
            assert capture.process.namespaces["pid"] != os.readlink("/proc/self/ns/pid")


@needs_root
@pytest.mark.parametrize("map_files", [True, False])
def test_files_of_a_process_in_a_chroot_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, map_files: bool
) -> None:
    """Its C library lies at a path that does not exist outside."""
    program = native.built("signals")
    libraries = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    root = tmp_path / "root"
    (root / "inner").mkdir(parents=True)
    shutil.copy(program, root / "inner" / "program")
    for line in libraries.splitlines():
        for word in line.split():
            if word.startswith("/"):
                target = root / word.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(os.path.realpath(word), target)
    if not map_files:
        opened = access.procfs.open_regular
        monkeypatch.setattr(
            access.procfs, "open_regular", lambda path: None if "map_files" in path else opened(path)
        )

    def enter() -> None:
        os.chroot(root)
        os.chdir("/")

    with native.started("/inner/program", before=enter) as running, capture_live(running.pid) as capture:
        assert not capture.warnings
        # The kernel writes paths as we see them, not as the process does (d_path in fs/d_path.c).
        executable = next(m for m in capture.modules if m.path.endswith("/inner/program"))
        assert executable.symbol("main") is not None
        libc = next(m for m in capture.modules if "libc.so" in m.path)
        assert libc.file is not None
        assert not Path("/inner").exists()
        assert capture.process.root == str(root)  # so that nobody looks for its sources at their paths here


def test_a_process_with_our_root_says_so() -> None:
    with native.started(native.built("signals")) as program, capture_live(program.pid) as capture:
        assert capture.process.root is None
        assert capture.process.host == os.uname().nodename


@needs_root
def test_a_program_that_was_replaced_on_disk_is_read_as_it_was_mapped(tmp_path: Path) -> None:
    path = tmp_path / "program"
    shutil.copy(native.built("signals"), path)
    with native.started(str(path)) as running:
        path.unlink()
        path.write_bytes(b"something else")
        with capture_live(running.pid) as capture:
            executable = next(m for m in capture.modules if m.path.startswith(str(path)))
            assert executable.symbol("main") is not None


@needs_root
def test_the_clock_is_that_of_the_time_namespace() -> None:
    command = unshare("--time", "--monotonic", "100000", "--fork", "--kill-child")
    marker = f"diagtool-test-{os.getpid()}"
    source = "import time; print('READY', time.monotonic(), flush=True); input()"
    with (
        native.started(*command, sys.executable, "-c", source, marker) as program,
        capture_live(find(marker)) as capture,
    ):
        assert capture.process.monotonic is not None
        assert 0 <= capture.process.monotonic - float(program.words[0]) < 60


def test_a_fifo_that_poses_as_a_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "libc.so.6")
    assert access.procfs.open_regular(str(tmp_path / "libc.so.6")) is None


def test_our_own_access_to_a_child_has_no_obstacle() -> None:
    with native.started(sys.executable, "-c", WAITS) as program:
        found = access.Access.of(program.pid)
        assert found.same_user
        assert found.descendant
        if found.seccomp == 0 and found.yama != 3:
            assert found.obstacle() is None
