"""A core without the file of its interpreter: refused in a sentence, not read as one without stacks."""

from __future__ import annotations

import pytest
from made_objects import BASE, Heap

from diagtool.capture.errors import NotSupported
from diagtool.runtimes.cpython.threads.interpreters import Interpreter, require_type_names

ELSEWHERE = BASE + (1 << 40)


def interpreter(modules: int) -> Interpreter:
    return Interpreter(0, 0, modules, 0, 0)


def test_types_whose_names_are_missing() -> None:
    heap = Heap()
    modules = heap.object("dict", 64)
    require_type_names(heap.context(), [interpreter(modules)])
    heap.field(heap.type("dict"), "PyTypeObject.tp_name", ELSEWHERE)
    require_type_names(heap.context(), [interpreter(modules)])
    heap.field(heap.type("type"), "PyTypeObject.tp_name", ELSEWHERE)
    with pytest.raises(NotSupported, match="without its file") as caught:
        require_type_names(heap.context(), [interpreter(modules)])
    assert "--sysroot" in caught.value.hint


def test_what_else_is_missing_is_no_reason() -> None:
    """An interpreter that is ending has no modules; of a core cut off, one may be missing."""
    heap = Heap()
    whole = interpreter(heap.object("dict", 64))
    require_type_names(heap.context(), [interpreter(0), interpreter(ELSEWHERE), whole])
    require_type_names(heap.context(), [])
