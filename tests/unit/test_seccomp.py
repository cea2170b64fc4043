"""A system call is injected only where every seccomp filter is seen to let it pass."""

from __future__ import annotations

import struct

import pytest

from diagtool.capture import seccomp, sigframe

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050001
CLONE = 56


def program(*instructions: tuple[int, int, int, int]) -> bytes:
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in instructions)


LOAD_NUMBER, LOAD_ARCH = (0x20, 0, 0, 0), (0x20, 0, 0, 4)
NO_CLONE = program(
    LOAD_ARCH,
    (0x15, 1, 0, 0xC000003E),
    (6, 0, 0, KILL),
    LOAD_NUMBER,
    (0x15, 0, 1, CLONE),
    (6, 0, 0, ERRNO),
    (6, 0, 0, ALLOW),
)
#: As containers have it: clone passes unless it asks for a new user namespace.
NO_NAMESPACE = program(
    LOAD_NUMBER,
    (0x15, 0, 3, CLONE),
    (0x20, 0, 0, 16),
    (0x54, 0, 0, 0x7E020000),
    (0x15, 0, 1, 0),
    (6, 0, 0, ALLOW),
    (6, 0, 0, ERRNO),
)


@pytest.mark.parametrize(
    ("filters", "number", "arguments", "expected"),
    [
        ([], CLONE, (), True),
        ([NO_CLONE], CLONE, (), False),
        ([NO_CLONE], 61, (), True),
        ([NO_NAMESPACE], CLONE, (0x400,), True),
        ([NO_NAMESPACE], CLONE, (0x10000000,), False),
        ([NO_NAMESPACE, NO_CLONE], CLONE, (0x400,), False),
        ([program((6, 0, 0, 0x7FC00000))], CLONE, (), False),  # SECCOMP_RET_USER_NOTIF
        ([program((6, 0, 0, 0x7FFC0000))], CLONE, (), True),  # SECCOMP_RET_LOG
        ([b""], CLONE, (), False),
        ([program((5, 0, 0, 99))], CLONE, (), False),  # a jump out of the program
    ],
)
def test_what_passes(filters: list[bytes], number: int, arguments: tuple[int, ...], expected: bool) -> None:
    assert seccomp.passes(filters, number, arguments) is expected


def test_the_frame_lies_below_the_red_zone_and_the_threads_own_part_is_the_lowest() -> None:
    places = sigframe.layout_below(0x7FFF_0000_1000, 2436)
    assert places.own + sigframe.SIZE <= places.child
    assert places.child + sigframe.SIZE <= places.fp
    assert places.fp + 2436 <= 0x7FFF_0000_1000 - 128
    assert places.fp % 64 == 0


def test_a_frame_leaves_the_alternate_signal_stack_as_it_is() -> None:
    registers = dict.fromkeys(sigframe.REGISTERS_X86_64, 0)
    data = sigframe.frame(1, registers, 5, 64)
    assert len(data) == sigframe.SIZE
    assert struct.unpack_from("<i", data, 8 + 16 + 8)[0] not in (
        0,
        1,
        2,
    )  # no ss_flags that sigaltstack knows


@pytest.mark.parametrize(
    ("features", "used", "size"), [(0xE7, 0xE7, 2432), (0x602E7, 0xE7, 2816), (0x602E7, 0x402E7, 11008)]
)
def test_who_does_not_use_amx_has_a_frame_without_it(features: int, used: int, size: int) -> None:
    state = bytearray(11008 if features > 0xFFFF else 2432)
    struct.pack_into("<Q", state, 464, features)
    struct.pack_into("<Q", state, 512, used)
    out = sigframe.fp_state(bytes(state))
    assert len(out) == size + 4
    magic, extended, kept, held = struct.unpack_from("<IIQI", out, 464)
    assert (magic, extended, held) == (0x46505853, size + 4, size)
    assert bool(kept & 1 << 18) == (size == 11008)
    assert out[-4:] == struct.pack("<I", 0x46505845)


def test_an_interrupted_call_is_made_again() -> None:
    registers = dict.fromkeys(sigframe.REGISTERS_X86_64, 0) | {
        "rip": 0x1002,
        "orig_rax": 202,
        "rax": (1 << 64) - 512,
    }
    again = sigframe.resumed(list(registers.values()))
    assert (again["rip"], again["rax"]) == (0x1000, 202)
    registers["orig_rax"] = (1 << 64) - 1  # not in a system call: the number is the program's own
    assert sigframe.resumed(list(registers.values())) == registers
