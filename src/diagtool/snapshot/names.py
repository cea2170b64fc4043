"""Names of functions of C++ and Rust as a person reads them."""

from __future__ import annotations

__all__ = ["without_arguments"]

_MAX_NAME = 4096
#: Brackets in a name that are not the start of its arguments.
_NO_ARGUMENTS = ("(anonymous namespace)", "(anonymous class)")


def without_arguments(name: str) -> str:
    """``name`` without the arguments of its own and what follows them: ``std::mutex::lock`` of
    ``std::mutex::lock()``.

    Kept are those of templates, of lambdas, and of ``operator()``, which is a name.
    """
    if "(" not in name or len(name) > _MAX_NAME:
        return name
    depth = 0
    place = 0
    while place < len(name):
        char = name[place]
        if char == "(" and not depth:
            if name.startswith(_NO_ARGUMENTS, place):
                place = name.index(")", place)
            elif name.startswith("()", place) and name[:place].endswith("operator"):
                place += 1
            else:
                return name[:place] or name
        elif char in "<{[":
            depth += not name[:place].endswith(("operator", "operator<"))  # operator< and operator<<
        elif char in ">}]" and depth:
            depth -= not name[:place].endswith("-")  # operator->
        place += 1
    return name
