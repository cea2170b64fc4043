"""Which function a caller called: where the C library has no names for what the program's call led to.

pthread_join and sem_wait of a stripped glibc jump on into functions that it exports no names of. The call
itself says it: the function that its target, or the slot which a stub of the linkage table jumps through, is
the beginning of. x86-64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from diagtool.capture.modules import Module
from diagtool.runtimes.native.stacks.libc import is_libc
from diagtool.runtimes.native.stacks.model import NativeFrame

__all__ = ["called", "with_entry"]

Read = Callable[[int, int], "bytes | None"]

_ENDBR, _BND = b"\xf3\x0f\x1e\xfa", b"\xf2"
_JUMP_SLOT, _CALL_SLOT = b"\xff\x25", b"\xff\x15"  # jmp, call *disp32(%rip)


def with_entry(
    frames: Sequence[NativeFrame], read: Read, module_at: Callable[[int], Module | None]
) -> Sequence[NativeFrame]:
    """``frames`` with the name of what the program called, where the C library's outermost one has none."""
    own = next((i for i, frame in enumerate(frames) if not is_libc(frame.library)), 0)
    if not own or frames[own - 1].function:
        return frames
    target = called(frames[own].pc, read)
    module = module_at(target) if target else None
    found = module.symbol_at(target) if module is not None else None
    if found is None or found[1]:  # not where a function begins
        return frames
    return [*frames[: own - 1], replace(frames[own - 1], function=found[0]), *frames[own:]]


def called(pc: int, read: Read) -> int:
    """The address of what the call before the return address ``pc`` called; 0 where that is not known."""
    code = read(pc - 6, 6) if pc > 6 else None
    if code is None:
        return 0
    if code.startswith(_CALL_SLOT):
        return _word(pc + _signed(code[2:]), read)
    if code[1] != 0xE8:
        return 0
    target = pc + _signed(code[2:])
    stub = read(target, 16)
    if stub is None:
        return target
    prefix = 4 if stub.startswith(_ENDBR) else 0
    prefix += stub.startswith(_BND, prefix)
    if not stub.startswith(_JUMP_SLOT, prefix):
        return target
    return _word(target + prefix + 6 + _signed(stub[prefix + 2 : prefix + 6]), read)


def _signed(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


def _word(address: int, read: Read) -> int:
    raw = read(address, 8) if address > 0 else None
    return 0 if raw is None else int.from_bytes(raw, "little")
