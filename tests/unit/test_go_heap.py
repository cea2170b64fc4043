"""What Go's heap says of itself, on bytes that were made up: pointer masks, spans, types."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diagtool.capture.memory import AddressSpace, Segment
from diagtool.runtimes.golang.heap.pointers import _Types, _with_marks
from diagtool.runtimes.golang.liveness.stackmaps import FrameMap, _locals_end
from diagtool.runtimes.golang.types import TypeNames

AT = 0x500000


def memory_of(data: bytes) -> AddressSpace:
    memory = AddressSpace()
    number = memory.add_buffer(np.frombuffer(data.ljust(8192, b"\0"), np.uint8).copy())
    memory.add_segments([Segment(AT, AT + 8192, number, 0)])
    return memory


def type_head(
    size: int, pointers: int, flags: int = 0, kind: int = 25, mask: int = 0, name: int = 0
) -> bytes:
    """A type as internal/abi.Type has it."""
    head = bytearray(48)
    head[0:8], head[8:16] = size.to_bytes(8, "little"), pointers.to_bytes(8, "little")
    head[20], head[23] = flags, kind
    head[32:40] = mask.to_bytes(8, "little")
    head[40:44] = name.to_bytes(4, "little")
    return bytes(head)


def runtime(data: bytes, minor: int = 27) -> Any:
    module = SimpleNamespace(words={"types": AT, "etypes": AT + 4096})
    return SimpleNamespace(memory=memory_of(data), minor=minor, modules=[module])


def test_the_mask_of_a_type_is_repeated_for_each_value() -> None:
    # Three words, of which the first and the last but one may be pointers.
    data = type_head(24, 16, mask=AT + 64).ljust(64, b"\0") + b"\x01"
    types = _Types(runtime(data))
    at = np.arange(-1, 9)
    known = types.pointers(np.full(len(at), AT, np.uint64), at)
    assert known.tolist() == [False, True, False, False, True, False, False, True, False, False]


@pytest.mark.parametrize(
    ("minor", "head"),
    [
        (23, type_head(24, 16, kind=25 | 1 << 6, mask=AT + 64)),  # a program, not a mask
        (27, type_head(24, 16, flags=1 << 4, mask=AT + 64)),  # made when it is needed, and not made yet
        (27, type_head(0, 0)),
        (27, type_head(8, 1 << 40, mask=AT + 64)),
        (27, type_head(24, 16, mask=1)),
    ],
)
def test_where_a_type_does_not_say_it_every_word_may_be_a_pointer(minor: int, head: bytes) -> None:
    types = _Types(runtime(head, minor))
    assert types.pointers(np.full(4, AT, np.uint64), np.arange(4)).all()
    assert types.pointers(np.full(4, 7, np.uint64), np.arange(4)).all()  # nothing is there


def spans(sizes: list[int], objects: list[int]) -> Any:
    count = len(sizes)
    return SimpleNamespace(
        noscan=np.zeros(count, bool),
        size=np.array(sizes),
        objects=np.array(objects),
        pages=np.ones(count, int),
    )


@pytest.mark.parametrize(
    ("sizes", "objects", "marks"),
    [
        ([16, 48], [504, 168], False),
        ([16, 48], [496, 165], True),
        ([512], [15], None),  # as many in either case
        ([16, 16], [504, 496], None),
        ([], [], None),
    ],
)
def test_mark_bits_in_spans_show_in_how_many_objects_fit(
    sizes: list[int], objects: list[int], marks: bool | None
) -> None:
    assert _with_marks(spans(sizes, objects)) is marks


@pytest.mark.parametrize(
    ("flags", "text", "name"),
    [
        (0, b"int", "int"),
        (1 << 1, b"*main.job", "main.job"),
        (0, b"*main.job", "*main.job"),
        (1 << 1, b"x" * 300, "x" * 300),
    ],
)
def test_names_of_types(flags: int, text: bytes, name: str) -> None:
    size = len(text)
    length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    data = type_head(8, 8, flags=flags, name=64).ljust(64, b"\0") + b"\0" + length + text
    names = TypeNames(runtime(data))
    assert names.of(AT) == name
    assert names.of(AT + 0x100000) == ""  # no type of this program


def test_a_frame_without_locals_has_no_saved_frame_pointer() -> None:
    assert (_locals_end(0), _locals_end(8)) == (-8, -16)
    assert FrameMap(0).slots.tolist() == []
