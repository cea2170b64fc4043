"""Finding CPython in a capture: the ``_PyRuntime``, its version, build flavour and layout."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from diagtool.capture.errors import NoRuntime, NotSupported
from diagtool.capture.memory import AddressSpace, MemoryFault
from diagtool.capture.model import Capture
from diagtool.capture.modules import Module
from diagtool.runtimes.cpython import layouts
from diagtool.runtimes.cpython.debugoffsets import layout_of

COOKIE = b"xdebugpy"  # starts _PyRuntime from 3.13 on (Include/internal/pycore_debug_offsets.h)
OLDEST, NEWEST = (3, 9), (3, 15)
TESTED_FREE_THREADED = ((3, 13), (3, 14))  # the tables of 3.15t come from headers alone

_VERSION_IN_NAME = re.compile(r"python(3)\.(\d+)(t?)(d?)")


@dataclass(frozen=True, slots=True)
class Runtime:
    """One CPython in a process. ``layout`` maps "PyCodeObject.co_name" to an offset in bytes."""

    address: int  # of _PyRuntime
    version: tuple[int, int]
    micro: int | None
    flavour: str  # release | debug | free-threaded
    layout: Mapping[str, int]
    module: str  # path of the executable or libpython that holds it
    differences: int = 0  # offsets that the process publishes and the generated table has otherwise

    @property
    def free_threaded(self) -> bool:
        return self.flavour == "free-threaded"


#: What to do about a core whose Python can't be read.
FILES = "If it is a Python process, name its executable with --exe or the folder of its files with --sysroot."


def find_runtime(capture: Capture) -> Runtime:
    """The CPython runtime of a process; raises NotSupported when there is none that diagtool reads."""
    seen: list[str] = []
    for module, address in _candidates(capture.modules):
        cookie = capture.memory.try_read(address, 24)
        if cookie is not None and cookie[:8] == COOKIE:
            return _from_debug_offsets(capture.memory, address, module)
        version = _version(capture.memory, module)
        if version is None:
            seen.append(f"{module.path}: version unknown")
            continue
        _check_version(version, module.path)
        runtime = _validated(capture.memory, address, version, module)
        if runtime is not None:
            return runtime
        seen.append(f"{module.path}: no interpreter where CPython {version[0]}.{version[1]} keeps it")
    if seen:
        raise NotSupported(
            f"the Python in this process could not be read ({'; '.join(seen[:3])})",
            FILES if capture.kind == "core" else "`py-spy dump --pid PID` may still show its threads.",
        )
    raise NoRuntime(
        "no CPython interpreter was found in this process",
        f"diagtool reads CPython 3.9 to 3.15. {FILES if capture.kind == 'core' else ''}".rstrip(),
    )


def _candidates(modules: list[Module]) -> Iterator[tuple[Module, int]]:
    """Modules that hold a _PyRuntime, those named after Python first."""
    ranked = sorted(modules, key=lambda m: "python" not in m.path.rpartition("/")[2])
    for module in ranked:
        address = module.symbol("_PyRuntime")
        if address is None:
            section = module.section(".PyRuntime")
            address = section[0] if section else None
        if address:
            yield module, address


def _from_debug_offsets(memory: AddressSpace, address: int, module: Module) -> Runtime:
    hexversion = memory.u64(address + 8)
    version = (hexversion >> 24 & 0xFF, hexversion >> 16 & 0xFF)
    _check_version(version, module.path)
    free_threaded = bool(memory.u64(address + 16))
    if free_threaded and version not in TESTED_FREE_THREADED:
        raise NotSupported(
            f"free-threaded CPython {version[0]}.{version[1]} is not read: none could be had to test with",
            "Use its release build, or 3.14t, or `pystack remote PID` for plain thread stacks.",
        )
    micro = hexversion >> 8 & 0xFF
    try:
        layout, flavour, differ = layout_of(
            memory, address, f"{version[0]}.{version[1]}.{micro}", free_threaded
        )
    except KeyError:
        raise NotSupported(
            f"diagtool has no layout for this {'free-threaded ' * free_threaded}build of CPython "
            f"{version[0]}.{version[1]}",
            "Use the release build of this version, or `py-spy dump --pid PID` for plain thread stacks.",
        ) from None
    return Runtime(address, version, micro, flavour, layout, module.path, len(differ))


def _check_version(version: tuple[int, int], path: str) -> None:
    if not OLDEST <= version <= NEWEST:
        raise NotSupported(
            f"CPython {version[0]}.{version[1]} ({path}) is outside of what diagtool reads (3.9 to 3.15)",
            "`py-spy dump --pid PID` may show plain thread stacks of other versions.",
        )


def _version(memory: AddressSpace, module: Module) -> tuple[int, int] | None:
    """(major, minor), from the Py_Version constant (3.11+), else from the name of the file."""
    address = module.symbol("Py_Version")
    if address:
        try:
            value = memory.u64(address)
            return value >> 24 & 0xFF, value >> 16 & 0xFF
        except MemoryFault:
            pass
    match = _VERSION_IN_NAME.search(module.path.rpartition("/")[2])
    if match:
        return int(match[1]), int(match[2])
    return _version_from_text(memory, module)


def _version_from_text(memory: AddressSpace, module: Module) -> tuple[int, int] | None:
    """From the constant "3.9.18" that PY_VERSION leaves in the read-only data of ``python`` itself."""
    section = module.section(".rodata")
    text = memory.try_read(section[0], min(section[1], 16 << 20)) if section else None
    found = re.findall(rb"\0(3)\.(\d{1,2})\.\d{1,2}(?:[abc+rc]\d*)?\0", text or b"")
    return (int(found[0][0]), int(found[0][1])) if found else None


def _validated(
    memory: AddressSpace, address: int, version: tuple[int, int], module: Module
) -> Runtime | None:
    """The flavour whose layout leads to an interpreter that points back to itself (versions before 3.13)."""
    for flavour in ("release", "debug"):
        try:
            layout = layouts.load(f"{version[0]}.{version[1]}", flavour)
        except KeyError:
            continue
        try:
            interpreter = memory.u64(address + layout["_PyRuntimeState.interpreters.head"])
            head = layout.get("PyInterpreterState.threads.head")
            if head is None:
                head = layout["PyInterpreterState.tstate_head"]
            thread = memory.u64(interpreter + head)
            back = memory.u64(thread + layout["PyThreadState.interp"])
        except MemoryFault:
            continue
        if interpreter and back == interpreter:
            return Runtime(address, version, None, flavour, layout, module.path)
    return None
