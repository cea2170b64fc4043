"""Whether seccomp filters let a system call pass: the classic BPF that they are, run here on one call.

A filter may kill the caller, or send it a SIGSYS that its handler isn't ready for, so no call is made that
was not seen to pass. Facts: seccomp(2), Documentation/userspace-api/seccomp_filter.rst, and the instructions
that seccomp_check_filter in kernel/seccomp.c lets in.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

_AUDIT_ARCH_X86_64 = 0xC000003E  # include/uapi/linux/audit.h
_ALLOW, _LOG = 0x7FFF0000, 0x7FFC0000
_MAX_STEPS = 4096  # BPF has no loops
_MASK = 0xFFFFFFFF

# include/uapi/linux/bpf_common.h: class, mode, operation, source.
_LD, _LDX, _ST, _STX, _ALU, _JMP, _RET, _MISC = range(8)
_IMM, _ABS, _MEM, _LEN = 0x00, 0x20, 0x60, 0x80


def passes(
    filters: Iterable[bytes], number: int, arguments: Sequence[int] = (), instruction_pointer: int = 0
) -> bool:
    """Whether every filter lets the call pass unseen; false for what is not understood."""
    words = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<IIQ6Q", number, _AUDIT_ARCH_X86_64, instruction_pointer, *words)
    return all(_run(program, data) in (_ALLOW, _LOG) for program in filters)


# What one filter returns for a struct seccomp_data, without SECCOMP_RET_DATA; None when it makes no sense.
def _run(program: bytes, data: bytes) -> int | None:
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program) & -8, 8)]
    a = x = at = 0
    memory = [0] * 16
    for _ in range(_MAX_STEPS):
        if at >= len(code):
            return None
        op, jump_true, jump_false, k = code[at]
        at += 1
        kind, mode = op & 7, op & 0xE0
        operand = x if op & 8 else k
        if kind in (_LD, _LDX):
            value = _loaded(mode, k, memory, data)
            if value is None:
                return None
            a, x = (value, x) if kind == _LD else (a, value)
        elif kind in (_ST, _STX) and k < 16:
            memory[k] = a if kind == _ST else x
        elif kind == _ALU:
            result = _computed(op & 0xF0, a, operand)
            if result is None:
                return None
            a = result
        elif kind == _JMP and op & 0xF0 == 0:
            at += k
        elif kind == _JMP:
            truth = _holds(op & 0xF0, a, operand)
            if truth is None:
                return None
            at += jump_true if truth else jump_false
        elif kind == _RET:
            return (a if op & 0x18 == 0x10 else k) & 0xFFFF0000
        elif kind == _MISC:
            a, x = (x, x) if op & 0xF8 == 0x80 else (a, a)
        else:
            return None
    return None


def _loaded(mode: int, k: int, memory: list[int], data: bytes) -> int | None:
    if mode == _IMM:
        return k
    if mode == _ABS and k % 4 == 0 and k + 4 <= len(data):
        return int.from_bytes(data[k : k + 4], "little")
    if mode == _MEM and k < 16:
        return memory[k]
    return len(data) if mode == _LEN else None


def _computed(operation: int, a: int, operand: int) -> int | None:
    if operation in (0x60, 0x70) and operand > 31:
        return None
    if operation == 0x30:
        return a // operand if operand else None
    results = {
        0x00: lambda: a + operand,
        0x10: lambda: a - operand,
        0x20: lambda: a * operand,
        0x40: lambda: a | operand,
        0x50: lambda: a & operand,
        0x60: lambda: a << operand,
        0x70: lambda: a >> operand,
        0x80: lambda: -a,
        0xA0: lambda: a ^ operand,
    }
    return results[operation]() & _MASK if operation in results else None


def _holds(operation: int, a: int, operand: int) -> bool | None:
    if operation == 0x10:
        return a == operand
    if operation == 0x20:
        return a > operand
    if operation == 0x30:
        return a >= operand
    return bool(a & operand) if operation == 0x40 else None
