"""A call that goes on after a stop is known by its code, or by where in the kernel it sleeps."""

from __future__ import annotations

import pytest

from diagtool.capture.restarted import RESTART_SYSCALL, restarted_syscall


@pytest.mark.parametrize(
    ("code", "wchan", "number"),
    [
        (b"\xb8\xe6\x00\x00\x00\x0f\x05", None, 230),
        (b"\xb8\xca\x00\x00\x00\x0f\x05", "hrtimer_nanosleep", 202),
        (b"\xb8\xff\xff\xff\xff\x0f\x05", "do_poll.constprop.0", 7),
        (b"\x48\xe6\x00\x00\x00\x0f\x05", "futex_wait_queue", 202),
        (b"\xb8\xe6\x00\x00\x00\x0f\x34", None, RESTART_SYSCALL),
        (b"\x0f\x05", "unheard_of", RESTART_SYSCALL),
        (None, None, RESTART_SYSCALL),
    ],
)
def test_restarted_calls(code: bytes | None, wchan: str | None, number: int) -> None:
    assert restarted_syscall(code, wchan) == number
