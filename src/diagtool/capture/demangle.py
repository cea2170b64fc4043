"""Names of functions as their programmers wrote them: C++ and Rust demangled.

C++ (and Rust's older scheme, which looks like it) by the C++ runtime's own ``__cxa_demangle``, Rust's own
scheme (``_R…``, RFC 2603) by rust-demangler. A name that can't be demangled stays as it is.
"""

from __future__ import annotations

import ctypes
import re
from contextlib import suppress
from functools import cache, lru_cache

__all__ = ["demangle", "language_of"]

_LONGEST = 4096  # bytes of a mangled name; what is longer stays as it is
_LONGEST_SHOWN = 300  # characters of a name; templates of templates go on for kilobytes
#: Rust's older scheme: a path of C++ whose last part is a hash.
_RUST_LEGACY = re.compile(r"^(.*)::h[0-9a-f]{16}$")
_RUST_ESCAPES = {
    "$SP$": "@", "$BP$": "*", "$RF$": "&", "$LT$": "<", "$GT$": ">", "$LP$": "(", "$RP$": ")", "$C$": ",",
}  # fmt: skip
#: What LLVM puts behind the name of a function that it has moved between modules; only C++ knows it.
_LLVM_SUFFIX = re.compile(r"\.llvm\.[0-9A-F]+$")
_RUST_UNICODE = re.compile(r"\$u([0-9a-f]{1,6})\$")


def language_of(symbol: str) -> str:
    """The language that a symbol's name tells: c++, rust or c."""
    if symbol.startswith("_R") or (symbol.startswith("_ZN") and re.search(r"17h[0-9a-f]{16}E", symbol)):
        return "rust"
    return "c++" if symbol.startswith("_Z") else "c"


@lru_cache(maxsize=65536)
def demangle(symbol: str) -> str:
    """The name that a symbol stands for, without the version that the linker adds."""
    name = symbol.partition("@")[0].removeprefix("__GI_")  # glibc's names for calls of its own
    if len(name) > _LONGEST:
        return name[:_LONGEST_SHOWN]
    shown = name
    if language_of(name) == "rust":
        name = _LLVM_SUFFIX.sub("", name)
    if name.startswith("_R"):
        shown = _rust(name) or name
    elif name.startswith("_Z"):
        shown = _cxx(name) or name
        legacy = _RUST_LEGACY.match(shown)
        if legacy is not None:
            shown = _unescaped(legacy.group(1))
    return shown if len(shown) <= _LONGEST_SHOWN else shown[: _LONGEST_SHOWN - 1] + "…"


def _cxx(name: str) -> str | None:
    function = _cxa_demangle()
    if function is None:
        return None
    status = ctypes.c_int(0)
    pointer = function(name.encode("utf-8", "surrogateescape"), None, None, ctypes.byref(status))
    if not pointer:
        return None
    try:
        return ctypes.string_at(pointer).decode("utf-8", "replace")
    finally:
        _libc().free(ctypes.c_void_p(pointer))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


@cache
def _cxa_demangle() -> ctypes._NamedFuncPointer | None:
    with suppress(OSError, AttributeError):
        function = ctypes.CDLL("libstdc++.so.6").__cxa_demangle  # which numpy needs, too
        function.restype = ctypes.c_void_p
        function.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        return function
    return None


def _rust(name: str) -> str | None:
    import rust_demangler

    try:
        found = rust_demangler.demangle(name)
    except Exception:  # noqa: BLE001 - of names of a sick process it raises what comes
        return None
    return str(found) if found else None


def _unescaped(name: str) -> str:
    for escape, sign in _RUST_ESCAPES.items():
        name = name.replace(escape, sign)
    name = _RUST_UNICODE.sub(lambda m: chr(min(int(m.group(1), 16), 0x10FFFF)), name)
    parts = [part.removeprefix("_") if part.startswith(("_<", "_{")) else part for part in name.split("::")]
    return "::".join(parts).replace("..", "::")
