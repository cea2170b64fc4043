"""Which system call a thread goes on with that says only ``restart_syscall``.

A call with a time limit that was stopped once (by a tracer, by Ctrl-Z) is gone on with by restart_syscall,
and that is what its registers say from then on (x86-64: ERESTART_RESTARTBLOCK, arch/x86/kernel/signal.c). A
second capture of the same process would know no sleep, no poll and no lock with a time limit.
"""

from __future__ import annotations

RESTART_SYSCALL = 219  # arch/x86/entry/syscalls/syscall_64.tbl

#: Bytes before the instruction pointer that :func:`restarted_syscall` looks at.
CODE = 7

# From the kernel function that the thread sleeps in; the names differ between kernel versions.
_BY_WCHAN = {
    "hrtimer_nanosleep": 230,
    "do_nanosleep": 230,
    "futex_wait": 202,
    "futex_wait_queue": 202,
    "futex_wait_queue_me": 202,
    "futex_do_wait": 202,
    "poll_schedule_timeout": 7,
    "do_sys_poll": 7,
    "do_poll": 7,
}


def restarted_syscall(code: bytes | None, wchan: str | None) -> int:
    """The number of the call, from the code before it or the place in the kernel; else RESTART_SYSCALL."""
    # ``mov $number, %eax; syscall`` is how C libraries most often write it.
    if code is not None and len(code) == CODE and code[0] == 0xB8 and code[5:] == b"\x0f\x05":
        number = int.from_bytes(code[1:5], "little")
        if 0 <= number < 1024:
            return number
    return _BY_WCHAN.get((wchan or "").partition(".")[0], RESTART_SYSCALL)
