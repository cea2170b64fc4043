"""Qualified names of functions in 3.9 and 3.10, whose code objects know only the bare name.

Found where Python itself would look the function up: in the classes of the first argument, in the globals. A
function counts only with the very code object of the frame; its ``__qualname__`` is then the answer.
"""

from __future__ import annotations

from diagtool.capture.memory import MemoryFault
from diagtool.runtimes.cpython.objects.reader import Objects


def qualname_of(objects: Objects, code: int, name: str, first_local: int, globals_address: int) -> str | None:
    """The qualified name of the function of a frame; None where it is not found."""
    for scope in _scopes(objects, first_local, globals_address):
        try:
            value = objects.dict_get(scope, name)
            function = _function(objects, value)
            if (
                function
                and objects.memory.u64(function + objects.layout["PyFunctionObject.func_code"]) == code
            ):
                return objects.text(
                    objects.memory.u64(function + objects.layout["PyFunctionObject.func_qualname"])
                )
        except MemoryFault:
            continue
    return None


def _scopes(objects: Objects, first_local: int, globals_address: int) -> list[int]:
    scopes: list[int] = []
    try:
        if first_local:
            kind = objects.type_of(first_local)
            # a method's first argument is an instance, a class method's a class
            owners = objects.mro(kind) + (
                objects.mro(first_local) if objects.is_a(first_local, "type") else []
            )
            offset = objects.layout["PyTypeObject.tp_dict"]
            scopes += [objects.memory.u64(t + offset) for t in owners]
    except MemoryFault:
        pass
    return [s for s in [*scopes, globals_address] if s]


def _function(objects: Objects, value: int) -> int:
    """The function behind a class attribute: itself, or inside a class or static method."""
    kind = objects.kind(value)
    if kind == "function":
        return value
    if kind in ("classmethod", "staticmethod"):  # the callable follows the object's head (funcobject.c)
        inner = objects.memory.u64(value + objects.layout["sizeof.PyObject"])
        return inner if objects.kind(inner) == "function" else 0
    return 0
