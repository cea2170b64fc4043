"""Which system call a stopped or dumped thread is blocked in, from its registers."""

from __future__ import annotations

import errno
from collections.abc import Mapping

__all__ = ["blocked_syscall"]

# ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK (include/linux/errno.h): results that no
# program ever sees, there while a signal (the one that dumps or stops) is looked at. EINTR is the result of
# those that never restart: epoll_wait, poll with a handler, semop (signal(7)).
_INTERRUPTED = {-512, -513, -514, -516, -errno.EINTR}
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_MAX_NUMBER = 1 << 16


def blocked_syscall(registers: Mapping[str, int]) -> tuple[int, tuple[int, ...]] | None:
    """(number, six arguments) on x86-64, None for a thread that was not blocked in a system call.

    ``orig_rax`` is the number for a thread that entered the kernel by ``syscall``, negative for one that came
    by an interrupt or a fault (arch/x86/entry/entry_64.S). Kernel cores and gcore agree in this.
    """
    if not all(name in registers for name in (*_ARGUMENTS, "orig_rax", "rax")):
        return None
    number, result = _signed(registers["orig_rax"]), _signed(registers["rax"])
    if not 0 <= number < _MAX_NUMBER or result not in _INTERRUPTED:
        return None
    return number, tuple(registers[name] for name in _ARGUMENTS)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
