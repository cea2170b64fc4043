"""The signal frame by which a thread returns from an injected system call by itself.

The thread is sent to a ``syscall; ret`` with its stack pointer at a frame as the kernel writes one for a
signal handler. Its ``ret`` takes it to ``mov $15, %rax; syscall`` (rt_sigreturn), and the kernel restores
from the frame what was: registers, signal mask, floating-point state. Nobody else has to do anything for it.

Layout: struct rt_sigframe, ucontext, sigcontext_64 and _fpx_sw_bytes (arch/x86/include/uapi/asm/
sigcontext.h, ucontext.h; restore_sigcontext in arch/x86/kernel/signal_64.c; fpu__restore_sig in
arch/x86/kernel/fpu/signal.c).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diagtool.capture.model import REGISTERS_X86_64
from diagtool.capture.plan import RED_ZONE

__all__ = ["ALL_SIGNALS", "FrameLayout", "Unrestorable", "fp_state", "frame", "layout_below", "resumed"]

#: Every signal that can be blocked: all but SIGKILL and SIGSTOP.
ALL_SIGNALS = ~(1 << 8 | 1 << 18) & (1 << 64) - 1

SIZE = 312  # bytes from the return address to the end of uc_sigmask

_UC_FP_XSTATE, _UC_SIGCONTEXT_SS, _UC_STRICT_RESTORE_SS = 1, 2, 4
# No mode that sigaltstack(2) knows: rt_sigreturn passes over the error and leaves the thread's own alternate
# stack as it is (restore_altstack and do_sigaltstack in kernel/signal.c). ptrace can't tell what that is.
_KEEP_ALTSTACK = 7
_ORDER = "r8 r9 r10 r11 r12 r13 r14 r15 rdi rsi rbp rbx rdx rax rcx rsp rip eflags".split()

_FX_SW, _XSTATE_HEADER, _XSTATE_LEAST = 464, 512, 576
_MAGIC1, _MAGIC2 = 0x46505853, 0x46505845
_TILE_DATA, _TILE_BYTES = 1 << 18, 8192  # AMX: last in the buffer, and not in a frame of who doesn't use it

# Results that no program sees (include/linux/errno.h), and the number of restart_syscall(2).
_RESTARTS, _RESTART_BLOCK, _RESTART_SYSCALL = (-512, -513, -514), -516, 219


class Unrestorable(Exception):
    """The floating-point state comes in a form that is not known."""


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """Where on the stack of a thread things are put, from the lowest address up.

    The thread's own frame is the lowest: a signal that arrives in between writes below it only.
    """

    own: int
    child: int
    fp: int


def layout_below(stack_pointer: int, fp_bytes: int) -> FrameLayout:
    """Places below the red zone of a stack pointer."""
    fp = stack_pointer - RED_ZONE - fp_bytes & -64
    child = fp - SIZE & -16
    return FrameLayout(child - SIZE & -16, child, fp)


def resumed(words: Sequence[int]) -> dict[str, int]:
    """Registers by name as the kernel lets the stopped thread go on: an interrupted call is made again."""
    registers = dict(zip(REGISTERS_X86_64, words, strict=True))
    result = registers["rax"] - (1 << 64) if registers["rax"] >> 63 else registers["rax"]
    if not registers["orig_rax"] >> 63 and (result in _RESTARTS or result == _RESTART_BLOCK):
        registers["rip"] -= 2
        registers["rax"] = _RESTART_SYSCALL if result == _RESTART_BLOCK else registers["orig_rax"]
    return registers


def fp_state(xstate: bytes) -> bytes:
    """NT_X86_XSTATE as a frame holds it. Raises Unrestorable."""
    if len(xstate) < _XSTATE_LEAST:
        raise Unrestorable(f"a floating-point state of {len(xstate)} bytes")
    features = struct.unpack_from("<Q", xstate, _FX_SW)[0]  # ptrace keeps xcr0 there
    used = struct.unpack_from("<Q", xstate, _XSTATE_HEADER)[0]
    size = len(xstate)
    if features & _TILE_DATA and not used & _TILE_DATA:
        # A thread that never asked for AMX has a smaller frame; with a larger one, AVX would be lost, too.
        features &= ~_TILE_DATA
        size -= _TILE_BYTES
    if not features or size < _XSTATE_LEAST:
        raise Unrestorable("a floating-point state without features")
    out = bytearray(xstate[:size])
    out[_FX_SW:_XSTATE_HEADER] = struct.pack("<IIQI28x", _MAGIC1, size + 4, features, size)
    return bytes(out) + struct.pack("<I", _MAGIC2)


def frame(restorer: int, registers: Mapping[str, int], mask: int, fp: int) -> bytes:
    """A frame: the return address, then the context. ``fp`` is where fp_state() lies, 0: nowhere."""
    flags = _UC_SIGCONTEXT_SS | _UC_STRICT_RESTORE_SS | (_UC_FP_XSTATE if fp else 0)
    out = struct.pack("<QQQ", restorer, flags, 0)
    out += struct.pack("<QiiQ", 0, _KEEP_ALTSTACK, 0, 0)
    out += struct.pack("<18Q", *(registers[name] for name in _ORDER))
    out += struct.pack("<4H", registers["cs"] & 0xFFFF, 0, 0, registers["ss"] & 0xFFFF)
    out += struct.pack("<5Q64x", 0, 0, 0, 0, fp)
    return out + struct.pack("<Q", mask)
