"""Waits of threads by frames and system calls alone."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagtool.runtimes.cpython.frames.evalstack import exception_depths, exception_table
from diagtool.runtimes.cpython.threads.waits import classify, wait_in_python
from diagtool.runtimes.syscalls import blocking_call, fds_of, seconds_left
from diagtool.snapshot.model import Frame

FUTEX, READ, POLL, SLEEP, SELECT, RESTART = 202, 0, 7, 230, 270, 219
WAIT, WAKE = (0x7F0000001000, 0x189, 0), (0x7F0000001000, 0x81, 1)


def frames(*entries: str) -> list[Frame]:
    """From "module:function", innermost first; a module with a / is a file whose globals were unreadable."""
    out = []
    for entry in entries:
        module, _, function = entry.partition(":")
        file = module if module.startswith("/") else f"/usr/lib/{module.replace('.', '/')}.py"
        out.append(Frame(function, file, 1, None if module.startswith("/") else module))
    return out


USER = "app.work:handle"
WAITS = [
    ("threading.Condition.wait", ["threading:Condition.wait"]),
    ("threading.Condition.wait", ["threading:Condition.wait", "threading:Condition.wait_for"]),
    ("threading.Event.wait", ["threading:Condition.wait", "threading:Event.wait"]),
    ("threading.Semaphore.acquire", ["threading:Condition.wait", "threading:Semaphore.acquire"]),
    (
        "threading.Barrier.wait",
        [f"threading:{f}" for f in ("Condition.wait", "Condition.wait_for", "Barrier._wait", "Barrier.wait")],
    ),
    ("threading.Thread.join", ["threading:Thread._wait_for_tstate_lock", "threading:Thread.join"]),
    ("threading.Thread.join", ["threading:Thread.join"]),
    ("queue.Queue.get", ["threading:Condition.wait", "queue:Queue.get"]),
    ("queue.Queue.put", ["threading:Condition.wait", "queue:Queue.put"]),
    ("queue.Queue.join", ["threading:Condition.wait", "queue:Queue.join"]),
    (
        "concurrent.futures.Future.result",
        ["threading:Condition.wait", "concurrent.futures._base:Future.result"],
    ),
    (
        "concurrent.futures.wait",
        ["threading:Condition.wait", "threading:Event.wait", "concurrent.futures._base:wait"],
    ),
]


@pytest.mark.parametrize(("name", "chain"), WAITS)
def test_waits_in_python_are_known_with_and_without_qualified_names(name: str, chain: list[str]) -> None:
    stack = frames(*chain, USER)
    assert classify(stack, FUTEX, WAIT, None, None) == name
    bare = [Frame(f.function.rpartition(".")[2], f.file, f.line, f.module) for f in stack]  # 3.9, 3.10
    assert classify(bare, FUTEX, WAIT, None, None) == name
    nameless = [Frame(f.function, f.file, f.line, None) for f in stack]
    assert classify(nameless, FUTEX, WAIT, None, None) == name
    assert wait_in_python(stack, "futex") == (name, len(chain))


def test_user_code_of_the_same_name_is_no_wait_of_the_library() -> None:
    assert wait_in_python(frames("app.threading:Condition.wait", USER), "futex") is None
    assert wait_in_python(frames("threading:MyCondition.wait", USER), "futex") is None
    assert wait_in_python(frames("/srv/app/mythreading.py:wait", USER), "futex") is None
    assert wait_in_python([], None) is None


def test_who_waits_for_the_gil_waits_for_nothing_else() -> None:
    stack = frames("threading:Condition.wait", "queue:Queue.get", USER)
    assert classify(stack, FUTEX, WAIT, None, "waits") == "gil"


def test_who_holds_the_gil_does_not_wait_in_python() -> None:
    stack = frames("threading:Condition.wait", "queue:Queue.get", USER)
    assert classify(stack, None, (), None, "holds") == ""
    assert classify(stack, FUTEX, WAIT, None, "holds") == "futex"  # a mutex of native code
    assert classify(stack, READ, (3,), None, "holds") == "read"


def test_calls_that_do_not_block_are_no_waits() -> None:
    stack = frames("threading:Condition.wait", USER)
    assert classify(stack, 9, (), None, None) == ""  # mmap
    assert classify(stack, FUTEX, WAKE, None, None) == ""
    assert classify(frames(USER), 72, (3, 1, 0), None, None) == ""  # fcntl F_GETFD
    assert classify(frames(USER), 72, (3, 7, 0), None, None) == "flock"  # F_SETLKW
    assert classify(frames(USER), None, (), None, None) == ""


@pytest.mark.parametrize(
    ("number", "args", "name"),
    [
        (FUTEX, WAIT, "futex"),
        (SLEEP, (1, 1, 0x7F00), "time.sleep"),
        (SELECT, (0, 0, 0, 0, 0x7F00), "time.sleep"),  # before 3.11
        (SELECT, (4, 0x7F00, 0, 0, 0), "select"),
        (POLL, (0x7F00, 1, -1), "poll"),
        (232, (5, 0x7F00, 10, -1), "epoll"),
        (45, (6,), "socket.recv"),
        (43, (6,), "socket.accept"),
        (42, (6,), "socket.connect"),
        (44, (6,), "socket.send"),
        (READ, (0,), "read"),
        (61, (77,), "os.waitpid"),
        (128, (), "signal.sigwait"),
        (73, (3,), "flock"),
    ],
)
def test_waits_in_c_are_named_by_the_system_call(number: int, args: tuple[int, ...], name: str) -> None:
    assert classify(frames(USER), number, args, None, None) == name


def test_other_machines_have_other_numbers() -> None:
    assert classify(frames(USER), 98, WAIT, None, None, "aarch64") == "futex"
    assert classify(frames(USER), 63, (0,), None, None, "aarch64") == "read"
    assert classify(frames(USER), 98, WAIT, None, None, "riscv64") == ""


def test_without_registers_the_place_in_the_kernel_says_it() -> None:
    for wchan, call in [
        ("futex_wait_queue_me", "futex"),
        ("futex_do_wait", "futex"),
        ("hrtimer_nanosleep", "sleep"),
        ("ep_poll", "epoll"),
        ("poll_schedule_timeout.constprop.0", "poll"),
        ("anon_pipe_read", "read"),
        ("inet_csk_accept", "accept"),
    ]:
        assert blocking_call(None, (), wchan) == call
    assert blocking_call(None, (), "0") is None
    assert blocking_call(None, (), "no_such_function") is None


def test_a_restarted_call_is_known_by_its_arguments() -> None:
    assert blocking_call(RESTART, (), "futex_do_wait") == "futex"
    assert blocking_call(RESTART, (0x7F0000001000, 0x89, 0, 0x7F00), None) == "futex"
    assert blocking_call(RESTART, (1, 0, 0x7F0000001000, 0), None) == "sleep"
    assert blocking_call(RESTART, (0x7F0000001000, 2, 5000), None) == "poll"
    assert blocking_call(RESTART, (0x7F0000001000, 1, 0xFFFFFFFF), None) == "poll"
    assert blocking_call(RESTART, (0x7F0000001000, 0, 0xFFFFFFFF), None) == "sleep"  # nanosleep(request, 0)
    assert blocking_call(RESTART, (0x7F0000001000, 0x7F0000002000, 0x7F00002000), None) == "sleep"


def test_subprocess_waits_stay_theirs_whatever_the_kernel_call() -> None:
    stack = frames("subprocess:Popen._wait", "subprocess:Popen.wait", USER)
    assert classify(stack, SLEEP, (1, 0, 0x7F00), None, None) == "subprocess.wait"
    stack = frames("subprocess:Popen._try_wait", "subprocess:Popen._wait", "subprocess:Popen.wait")
    assert classify(stack, 61, (77,), None, None) == "subprocess.wait"


def test_native_threads_sleep_and_python_threads_time_sleep() -> None:
    assert classify([], SLEEP, (1, 1, 0x7F00), None, None) == "sleep"
    assert classify([], FUTEX, WAIT, None, None) == "futex"


MEMORY: dict[int, bytes] = {
    0x1000: struct.pack("<ihhihh", 5, 1, 0, -1, 1, 0) + struct.pack("<ihh", 9, 4, 0),
    0x2000: struct.pack("<Q", 1 << 3 | 1 << 60),
    0x3000: struct.pack("<Q", 1 << 2),
    0x4000: struct.pack("<qq", 110, 500_000_000),
    0x5000: struct.pack("<qq", -1, 1 << 60),
}


def read(address: int, size: int) -> bytes | None:
    data = MEMORY.get(address)
    return data[:size].ljust(size, b"\0") if data is not None else None


def test_the_fds_of_poll_and_select_are_read_from_memory() -> None:
    assert fds_of("poll", (0x1000, 3, 0, 0), read) == [5, 9]
    assert fds_of("io_uring_enter", (3, 0, 1, 1, 0, 0), read) == [3]
    assert fds_of("io_uring_enter", (0, 0, 1, 17, 0, 0), read) == []  # a registered ring: an index
    assert fds_of("select", (64, 0x2000, 0x3000, 0, 0), read) == [2, 3, 60]
    assert fds_of("recv", (7, 0), read) == [7]
    assert fds_of("read", (0xFFFFFFFF, 0), read) == []
    assert fds_of("poll", (0x9999, 3, 0, 0), read) == []
    assert fds_of("poll", (0x1000, 1 << 62, 0, 0), lambda a, n: None) == []


def test_deadlines_are_absolute_relative_or_never() -> None:
    assert seconds_left("futex", FUTEX, (1, 0x189, 0, 0), read, 100.0) == (False, None)
    assert seconds_left("futex", FUTEX, (1, 0x89, 0, 0x4000), read, 100.0) == (True, 10.5)
    assert seconds_left("futex", FUTEX, (1, 0x189, 0, 0x4000), read, 0.0, 110.0) == (
        True,
        0.5,
    )  # CLOCK_REALTIME
    assert seconds_left("futex", FUTEX, (1, 0x80, 0, 0x4000), read, 100.0) == (
        True,
        110.5,
    )  # FUTEX_WAIT: relative
    assert seconds_left("sleep", SLEEP, (1, 1, 0x4000, 0), read, 100.0) == (True, 10.5)
    assert seconds_left("sleep", SLEEP, (1, 0, 0x4000, 0), read, 100.0) == (True, 110.5)
    assert seconds_left("sleep", 35, (0x4000, 0, 0, 0), read) == (True, 110.5)
    assert seconds_left("poll", POLL, (1, 1, 2500), read) == (True, 2.5)
    assert seconds_left("poll", POLL, (1, 1, 0xFFFFFFFF), read) == (False, None)
    assert seconds_left("epoll", 232, (1, 1, 1, (1 << 64) - 1), read) == (False, None)
    assert seconds_left("sleep", SLEEP, (1, 1, 0x5000, 0), read, 100.0) == (True, None)  # garbage
    assert seconds_left("sleep", SLEEP, (1, 1, 0x6000, 0), read, 100.0) == (True, None)  # unreadable
    assert seconds_left("flock", 73, (1,), read) == (None, None)


def test_nested_handlers_give_falling_depths() -> None:
    handlers = [(10, 20, 60, 2), (20, 30, 40, 1), (60, 70, 80, 5), (80, 90, 40, 1), (40, 50, 55, 4)]
    assert exception_depths(handlers, 12) == [2, 1]
    assert exception_depths(handlers, 22) == [1]
    assert exception_depths(handlers, 5) == []


def test_handlers_that_lead_in_a_circle_end() -> None:
    assert exception_depths([(0, 10, 20, 9), (20, 30, 0, 8)], 4) == [9, 8]


def test_the_exception_table_of_this_interpreter_is_read_as_dis_reads_it() -> None:
    dis = pytest.importorskip("dis")
    if not hasattr(dis, "_parse_exception_table"):
        pytest.skip("this interpreter has no exception tables")

    def nested(a, b, c):  # type: ignore[no-untyped-def]
        with a, b:
            try:
                return [x for x in c if x]
            except KeyError:
                return c()
            finally:
                a()

    expected = [(e.start, e.end, e.target, e.depth) for e in dis._parse_exception_table(nested.__code__)]
    assert len(expected) > 5
    got = exception_table(nested.__code__.co_exceptiontable)
    inclusive = expected[0][1] != got[0][1]  # dis says where the last instruction begins in some versions
    assert got == [(s, e + 2 * inclusive, t, d) for s, e, t, d in expected]


@given(st.binary(max_size=200), st.integers(-2, 1 << 20))
def test_garbage_tables_never_raise(table: bytes, offset: int) -> None:
    depths = exception_depths(exception_table(table), offset)
    assert depths == sorted(set(depths), reverse=True)


@given(
    st.one_of(st.none(), st.integers(-1, 500)),
    st.lists(st.integers(0, (1 << 64) - 1), max_size=6),
    st.sampled_from(["x86_64", "aarch64", ""]),
)
def test_garbage_registers_never_raise(number: int | None, args: list[int], machine: str) -> None:
    name = classify(frames(USER), number, args, None, None, machine)
    call = blocking_call(number, args, None, machine)
    assert isinstance(name, str)
    fds = fds_of(call or "", args, read)
    assert all(0 <= fd < 1 << 31 for fd in fds) and len(fds) <= 64
    seconds_left(call or "", number, args, read, 1.0, 1.0)
