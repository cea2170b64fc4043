"""What the kernel says a thread waits for: system calls that block, and where in the kernel they sleep.

Numbers of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl) and aarch64 (include/uapi/asm-generic/unistd.h);
only calls that can block for long are here, everything else is "not waiting".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

__all__ = ("blocking_call", "fds_of", "seconds_left")

_X86_64 = """
accept=43,288 connect=42 epoll=232,281,441 fcntl=72 flock=73 fsync=74,75 futex=202 io_getevents=208
io_uring_enter=426 ioctl=16 mq_receive=243 mq_send=242 msgrcv=70 msgsnd=69 open=2,257 pause=34,130
poll=7 ppoll=271 read=0,17,19,295,327 recv=45,47,299 restart=219 select=23,270 semop=65,220
send=44,46,307 sendfile=40 sigwait=128 sleep=35,230 splice=275 wait=61,247 write=1,18,20,296,328
"""
_AARCH64 = """
accept=202,242 connect=203 epoll=22,441 fcntl=25 flock=32 fsync=82,83 futex=98 io_getevents=4
io_uring_enter=426 ioctl=29 mq_receive=183 mq_send=182 msgrcv=188 msgsnd=189 open=56 pause=133
ppoll=73 read=63,65,67,69,286 recv=207,212,243 restart=128 select=72 semop=192,193
send=206,211,269 sendfile=71 sigwait=137 sleep=101,115 splice=76 wait=95,260 write=64,66,68,70,287
"""


def _numbers(table: str) -> dict[int, str]:
    rows = (row.split("=") for row in table.split())
    return {int(n): name for name, numbers in rows for n in numbers.split(",")}


_CALLS = {"x86_64": _numbers(_X86_64), "aarch64": _numbers(_AARCH64)}

# Calls of one kind that take their deadline in different ways.
_SELECT = 23  # takes a timeval where pselect6 takes a timespec
_SELECTS = (23, 270, 72)
_PWAIT2 = 441  # epoll_pwait2 takes a timespec where its elders take milliseconds

#: Where threads sleep in the kernel (/proc/PID/task/TID/wchan), by how the name begins. The names change with
#: the kernel: futex_wait_queue_me (to 5.15), futex_wait_queue (5.16), futex_do_wait (6.x).
_WCHAN = (
    ("futex_", "futex"),
    ("hrtimer_nanosleep", "sleep"),
    ("do_nanosleep", "sleep"),
    ("common_nsleep", "sleep"),
    ("ep_poll", "epoll"),
    ("do_epoll_", "epoll"),
    ("do_select", "select"),
    ("core_sys_select", "select"),
    ("poll_schedule_timeout", "poll"),  # of poll and select alike
    ("do_poll", "poll"),
    ("do_sys_poll", "poll"),
    ("pipe_read", "read"),
    ("anon_pipe_read", "read"),
    ("pipe_wait", "read"),
    ("pipe_write", "write"),
    ("anon_pipe_write", "write"),
    ("n_tty_read", "read"),
    ("wait_woken", "read"),  # a terminal or a socket that somebody reads
    ("eventfd_read", "read"),
    ("inotify_read", "read"),
    ("signalfd_dequeue", "read"),
    ("unix_stream_data_wait", "recv"),
    ("unix_stream_read", "recv"),
    ("sk_wait_data", "recv"),
    ("__skb_wait_for_more_packets", "recv"),
    ("inet_csk_accept", "accept"),
    ("inet_csk_wait_for_connect", "accept"),
    ("inet_wait_for_connect", "connect"),
    ("unix_wait_for_peer", "connect"),
    ("sk_stream_wait_memory", "send"),
    ("sock_alloc_send_pskb", "send"),
    ("do_wait", "wait"),
    ("kernel_wait4", "wait"),
    ("do_sigtimedwait", "sigwait"),
    ("sigsuspend", "pause"),
    ("flock_lock_inode_wait", "flock"),
    ("locks_lock_inode_wait", "flock"),
    ("fcntl_setlk", "flock"),
    ("posix_lock_inode_wait", "flock"),
    ("io_cqring_wait", "io_uring_enter"),
    ("read_events", "io_getevents"),
    ("do_semtimedop", "semop"),
    ("do_msgrcv", "msgrcv"),
    ("do_msgsnd", "msgsnd"),
    ("wq_sleep", "mq_receive"),
)

# Of a futex's operation (second argument), the low bits (linux/futex.h): those that wait.
_FUTEX_CMD = 0x7F
_FUTEX_WAIT, _FUTEX_WAIT_BITSET = 0, 9
_FUTEX_WAITS = {_FUTEX_WAIT, 6, _FUTEX_WAIT_BITSET, 11, 13}  # LOCK_PI, WAIT_REQUEUE_PI, LOCK_PI2
_FUTEX_CLOCK_REALTIME = 256
_REGISTERED_RING = 16  # flag of io_uring_enter: its first argument is an index of a table, no descriptor
_F_SETLKW, _F_OFD_SETLKW = 7, 38  # linux/fcntl.h
_TIMER_ABSTIME = 1
_CLOCK_MONOTONIC = 1
_CLOCKS = 16  # a first argument below is a clock, else an address: clock_nanosleep or nanosleep

_MAX_FDS = 64  # of one poll or select that are worth naming
_MAX_SECONDS = 1 << 40


def blocking_call(
    number: int | None, args: Sequence[int] = (), wchan: str | None = None, machine: str = "x86_64"
) -> str | None:
    """What kind of waiting a system call is: "futex", "poll", "recv" …; "" for one that does not wait.

    None when nothing is known: no system call number (user code runs, or a core does not say) and no wchan.
    """
    if number is None or number < 0:
        return _by_wchan(wchan)
    name = _CALLS.get(machine, {}).get(number, "")
    if name == "restart":
        # After a stop (ours too) the kernel restarts sleeps with a deadline as restart_syscall: the
        # registers still hold the arguments of the call that was interrupted (kernel/signal.c).
        return _by_wchan(wchan) or _by_arguments(args)
    if name == "futex" and len(args) > 1 and args[1] & _FUTEX_CMD not in _FUTEX_WAITS:
        return ""
    if name == "fcntl":
        return "flock" if len(args) > 1 and args[1] in (_F_SETLKW, _F_OFD_SETLKW) else ""
    if name == "select" and len(args) > 3 and args[0] == 0 and not any(args[1:4]):
        return "sleep"  # time.sleep before 3.11
    return name


def _by_wchan(wchan: str | None) -> str | None:
    if not wchan or wchan == "0":
        return None
    name = wchan.removeprefix("__x64_sys_").removeprefix("__arm64_sys_")
    return next((call for begins, call in _WCHAN if name.startswith(begins)), None)


def _by_arguments(args: Sequence[int]) -> str | None:
    # restart_syscall follows only nanosleep, clock_nanosleep, futex with a timeout, and poll.
    if len(args) < 3:
        return None
    first, second, third = args[:3]
    if first < _CLOCKS:
        return "sleep"
    if second & ~0x1FF == 0 and second & 0x80 and second & _FUTEX_CMD in _FUTEX_WAITS:
        return "futex"
    if second < 1 << 16 and third & 0xFFFFFFFF < 1 << 31:
        return "poll"
    if 0 < second < 1 << 16 and third & 0xFFFFFFFF == 0xFFFFFFFF:  # without a time limit
        return "poll"
    return "sleep"  # nanosleep(struct timespec *, …)


def fds_of(
    call: str, args: Sequence[int], read: Callable[[int, int], bytes | None] | None = None
) -> list[int]:
    """The file descriptors that a blocking call waits for, at most 64; an epoll fd for "epoll".

    ``read(address, size)`` reads the memory of the process, for the lists that poll and select take.
    """
    if not args:
        return []
    if call in (
        "read",
        "write",
        "recv",
        "send",
        "accept",
        "connect",
        "epoll",
        "flock",
        "fsync",
        "ioctl",
        "io_uring_enter",
    ):
        fd = args[0] & 0xFFFFFFFF
        registered = call == "io_uring_enter" and len(args) > 3 and args[3] & _REGISTERED_RING
        return [fd] if fd < 1 << 30 and not registered else []
    if read is None or len(args) < 4:
        return []
    if call in ("poll", "ppoll"):
        # struct pollfd: int fd, short events, short revents; a negative fd is left out (poll(2))
        count = min(args[1], _MAX_FDS)
        data = read(args[0], 8 * count) if count else None
        return [fd for fd, _, _ in struct.iter_unpack("<ihh", data) if fd >= 0] if data else []
    if call == "select":
        fds: set[int] = set()
        words = (min(args[0], 1024) + 63) // 64
        for bits in args[1:4]:
            data = read(bits, 8 * words) if bits and words else None
            for i, word in enumerate(struct.unpack(f"<{words}Q", data) if data else ()):
                fds |= {i * 64 + b for b in range(64) if word >> b & 1}
        return sorted(fds)[:_MAX_FDS]
    return []


def seconds_left(
    call: str,
    number: int | None,
    args: Sequence[int],
    read: Callable[[int, int], bytes | None],
    monotonic: float | None = None,
    realtime: float | None = None,
) -> tuple[bool | None, float | None]:
    """When a wait ends by itself: (whether it does, seconds left or None where that cannot be said).

    ``monotonic`` and ``realtime`` are the clocks at the capture. A relative timeout whose beginning is not
    known counts as "ends by itself", with its full length as the upper bound.
    """
    if call == "epoll" and number == _PWAIT2:
        return _deadline(args, 3, read, None)
    if call in ("poll", "epoll"):
        at = 2 if call == "poll" else 3
        if len(args) <= at:
            return None, None
        milliseconds = args[at] & 0xFFFFFFFF
        return (False, None) if milliseconds >> 31 else (True, milliseconds / 1000)
    if call == "futex":
        if len(args) < 4:
            return None, None
        operation = args[1]
        clock = realtime if operation & _FUTEX_CLOCK_REALTIME else monotonic
        return _deadline(args, 3, read, clock, absolute=operation & _FUTEX_CMD != _FUTEX_WAIT)
    if call == "sleep":
        if number in _SELECTS:  # without any fd
            return _deadline(args, 4, read, None, scale=1e6 if number == _SELECT else 1e9)
        if args and args[0] >= _CLOCKS:  # nanosleep(request, remain)
            return _deadline(args, 0, read, None)
        clock = monotonic if args and args[0] == _CLOCK_MONOTONIC else realtime
        return _deadline(args, 2, read, clock, absolute=len(args) > 1 and bool(args[1] & _TIMER_ABSTIME))
    if call == "ppoll":
        return _deadline(args, 2, read, None)
    if call == "select":
        return _deadline(args, 4, read, None, scale=1e6 if number == _SELECT else 1e9)
    if call == "sigwait":
        return _deadline(args, 2, read, None)
    return None, None


def _deadline(
    args: Sequence[int],
    index: int,
    read: Callable[[int, int], bytes | None],
    clock: float | None,
    *,
    absolute: bool = False,
    scale: float = 1e9,
) -> tuple[bool | None, float | None]:
    # A pointer to a struct timespec (scale 1e9) or timeval (1e6): null means for ever.
    if len(args) <= index:
        return None, None
    if not args[index]:
        return False, None
    data = read(args[index], 16)
    if data is None:
        return True, None
    whole, part = struct.unpack("<qq", data)
    if not 0 <= whole < _MAX_SECONDS or not 0 <= part < scale:
        return True, None
    seconds = whole + part / scale
    if not absolute:
        return True, seconds
    if not seconds:  # no deadline of this machine's clocks: the memory is lost
        return True, None
    return True, None if clock is None else max(0.0, seconds - clock)
