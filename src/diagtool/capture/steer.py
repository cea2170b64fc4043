"""ptrace requests that change a stopped thread, and those that only the copy-on-write image needs.

For ptrace.py's rule holds here, too: all requests for one target come from one thread of ours, and its end
lets every thread go. Requests: include/uapi/linux/ptrace.h, arch/x86/include/uapi/asm/ptrace-abi.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence

from diagtool.capture.ptrace import REGISTER_WORDS

TRACESYSGOOD, TRACECLONES, EXITKILL = 0x1, 0x2 | 0x4 | 0x8, 0x100000  # PTRACE_O_…
EVENT_STOP, EVENTS_CLONE = 128, (1, 2, 3)  # PTRACE_EVENT_STOP; _FORK, _VFORK, _CLONE
SYSCALL_STOP = 0x85  # SIGTRAP | 0x80: with TRACESYSGOOD, the begin or the end of a system call

_CONT, _SYSCALL, _GETREGSET, _SETREGSET = 7, 24, 0x4204, 0x4205
_SETOPTIONS, _GETEVENTMSG, _GETSIGMASK, _SETSIGMASK = 0x4200, 0x4201, 0x420A, 0x420B
_SECCOMP_GET_FILTER, _RSEQ, _DISPATCH = 0x420C, 0x420F, 0x4211
_NT_PRSTATUS, _NT_PRFPREG, _NT_X86_XSTATE = 1, 2, 0x202
_MAX_XSTATE = 1 << 14  # bytes: 11,008 with AMX
_MAX_FILTERS, _MAX_INSTRUCTIONS = 64, 4096  # BPF_MAXINSNS, include/uapi/linux/bpf_common.h

_libc = ctypes.PyDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def _ask(request: int, tid: int, address: int = 0, data: int = 0) -> int:
    result = int(_ptrace(request, tid, address or None, data or None))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def get_registers(tid: int) -> tuple[int, ...]:
    """The general registers, in the order of REGISTERS_X86_64. Raises OSError."""
    words = (ctypes.c_uint64 * REGISTER_WORDS)()
    _regset(_GETREGSET, tid, _NT_PRSTATUS, words)
    return tuple(words)


def set_registers(tid: int, registers: Sequence[int]) -> None:
    """Set the general registers, in the order of REGISTERS_X86_64. Raises OSError."""
    words = (ctypes.c_uint64 * REGISTER_WORDS)(*registers)
    _regset(_SETREGSET, tid, _NT_PRSTATUS, words)


def get_xstate(tid: int) -> bytes:
    """Floating-point and vector state (NT_X86_XSTATE). Raises OSError where there is none."""
    buffer = ctypes.create_string_buffer(_MAX_XSTATE)
    size = _regset(_GETREGSET, tid, _NT_X86_XSTATE, buffer)
    return buffer.raw[:size]


def _regset(
    request: int, tid: int, kind: int, buffer: ctypes.Array[ctypes.c_uint64] | ctypes.Array[ctypes.c_char]
) -> int:
    vector = (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), ctypes.sizeof(buffer))
    _ask(request, tid, kind, ctypes.addressof(vector))
    return int(vector[1])


def get_mask(tid: int) -> int:
    """The blocked signals; in sigsuspend, ppoll … those that it will go back to. Raises OSError."""
    word = ctypes.c_uint64()
    _ask(_GETSIGMASK, tid, 8, ctypes.addressof(word))
    return int(word.value)


def set_mask(tid: int, mask: int) -> None:
    """Set the blocked signals. Raises OSError."""
    word = ctypes.c_uint64(mask)
    _ask(_SETSIGMASK, tid, 8, ctypes.addressof(word))


def set_options(tid: int, options: int) -> None:
    """Set PTRACE_O_… of one thread; its children inherit them. Raises OSError."""
    _ask(_SETOPTIONS, tid, 0, options)


def to_syscall(tid: int, signal: int = 0) -> None:
    """Let a thread run to the begin or end of a system call. Raises OSError."""
    _ask(_SYSCALL, tid, 0, signal)


def go_on(tid: int, signal: int = 0) -> None:
    """Let a thread run, still traced. Raises OSError."""
    _ask(_CONT, tid, 0, signal)


def event_message(tid: int) -> int:
    """Of a clone event: the new process, as our pid namespace numbers it. Raises OSError."""
    word = ctypes.c_uint64()
    _ask(_GETEVENTMSG, tid, 0, ctypes.addressof(word))
    return int(word.value)


def rseq_area(tid: int) -> int:
    """The address of the thread's struct rseq, 0 when it has none or the kernel (before 5.13) can't say."""
    buffer = ctypes.create_string_buffer(24)
    try:
        _ask(_RSEQ, tid, 24, ctypes.addressof(buffer))
    except OSError:
        return 0
    return int(struct.unpack_from("<Q", buffer)[0])


def dispatches_syscalls(tid: int) -> bool:
    """Whether system calls of the thread go to its own handler (prctl PR_SET_SYSCALL_USER_DISPATCH)."""
    buffer = ctypes.create_string_buffer(32)
    try:
        _ask(_DISPATCH, tid, 32, ctypes.addressof(buffer))
    except OSError:
        return False  # Linux before 6.4
    return bool(struct.unpack_from("<Q", buffer)[0])


def seccomp_filters(tid: int) -> list[bytes]:
    """The thread's seccomp programs (struct sock_filter …). Raises OSError where we may not read them."""
    out: list[bytes] = []
    for number in range(_MAX_FILTERS):
        buffer = ctypes.create_string_buffer(8 * _MAX_INSTRUCTIONS)
        try:
            count = _ask(_SECCOMP_GET_FILTER, tid, number, ctypes.addressof(buffer))
        except OSError as error:
            if error.errno == errno.ENOENT and out:
                return out
            raise
        out.append(buffer.raw[: 8 * count])
    raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
