"""``_Py_DebugOffsets``: the layout that CPython 3.13+ publishes at the start of ``_PyRuntime``.

The table in memory is right for the very build that runs, but short; the generated tables are complete, but
made from one patch release. So the generated table that agrees best is taken, and what the process itself
says is laid over it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from diagtool.capture.memory import AddressSpace
from diagtool.runtimes.cpython import layouts

_PREFIX = "_Py_DebugOffsets."
_MAX_OFFSET = 1 << 24  # larger than any structure, the interpreter state included

#: Group of _Py_DebugOffsets -> structure of our names, and how its fields are named there.
_STRUCTURES = {
    "runtime_state": (
        "_PyRuntimeState",
        {"interpreters_head": "interpreters.head", "finalizing": "_finalizing"},
    ),
    "interpreter_state": (
        "PyInterpreterState",
        {
            "threads_head": "threads.head",
            "threads_main": "threads.main",
            "imports_modules": "imports.modules",
            "ceval_gil": "ceval.gil",
            "gil_runtime_state_locked": "_gil.locked",
            "gil_runtime_state_holder": "_gil.last_holder",
            **{f: f for f in ("id", "next", "gc", "sysdict", "builtins")},
        },
    ),
    "thread_state": (
        "PyThreadState",
        {
            "status": "_status",
            **{
                f: f
                for f in (
                    "prev",
                    "next",
                    "interp",
                    "current_frame",
                    "thread_id",
                    "native_thread_id",
                    "datastack_chunk",
                )
            },
        },
    ),
    "interpreter_frame": (
        "_PyInterpreterFrame",
        {
            "executable": "f_executable",
            **{f: f for f in ("previous", "instr_ptr", "localsplus", "owner", "stackpointer", "tlbc_index")},
        },
    ),
    "code_object": (
        "PyCodeObject",
        {
            "co_code_adaptive": "co_code_adaptive",
            "co_tlbc": "co_tlbc",
            **{
                f: f"co_{f}"
                for f in (
                    "filename",
                    "name",
                    "qualname",
                    "linetable",
                    "firstlineno",
                    "argcount",
                    "localsplusnames",
                    "localspluskinds",
                )
            },
        },
    ),
    "pyobject": ("PyObject", {"ob_type": "ob_type"}),
    "type_object": ("PyTypeObject", {"tp_name": "tp_name", "tp_flags": "tp_flags"}),
    "tuple_object": ("PyTupleObject", {"ob_item": "ob_item"}),
    "list_object": ("PyListObject", {"ob_item": "ob_item"}),
    "set_object": ("PySetObject", {f: f for f in ("used", "table", "mask")}),
    "dict_object": ("PyDictObject", {f: f for f in ("ma_keys", "ma_values")}),
    "float_object": ("PyFloatObject", {"ob_fval": "ob_fval"}),
    "long_object": (
        "PyLongObject",
        {"lv_tag": "long_value.lv_tag", "ob_digit": "long_value.ob_digit"},
    ),
    "bytes_object": ("PyBytesObject", {"ob_sval": "ob_sval"}),
    "unicode_object": ("PyASCIIObject", {f: f for f in ("state", "length")}),
    "gen_object": ("PyGenObject", {f: f for f in ("gi_name", "gi_iframe", "gi_frame_state")}),
}


def published(memory: AddressSpace, address: int, table: Mapping[str, int]) -> dict[str, int]:
    """What the process says, under our names. ``table`` says where each entry lies in the structure."""
    size = table["sizeof._Py_DebugOffsets"]
    words = np.frombuffer(memory.read(address, size), dtype="<u8")
    out: dict[str, int] = {}
    for group, (structure, fields) in _STRUCTURES.items():
        for field, ours in fields.items():
            at = table.get(f"{_PREFIX}{group}.{field}")
            if at is None or f"{structure}.{ours}" not in table:
                continue
            value = int(words[at // 8])
            if value < _MAX_OFFSET:
                out[f"{structure}.{ours}"] = value
    size_at = table.get(f"{_PREFIX}unicode_object.asciiobject_size")
    if size_at is not None and 0 < int(words[size_at // 8]) < 256:
        out["sizeof.PyASCIIObject"] = int(words[size_at // 8])
    return out


def layout_of(
    memory: AddressSpace, address: int, version: str, free_threaded: bool
) -> tuple[dict[str, int], str, list[str]]:
    """Of a 3.13+ runtime: (layout, flavour, names where the process disagrees with the generated table).

    Raises KeyError when no table of this version and flavour is known.
    """
    flavour = "free-threaded" if free_threaded else "release"
    best: tuple[int, dict[str, int], str, list[str]] | None = None
    for candidate, name in (
        (flavour, flavour),
        ("free-threaded-debug" if free_threaded else "debug", "debug"),
    ):
        try:
            table = layouts.load(version, candidate)
        except KeyError:
            continue
        said = published(memory, address, table)
        differ = [k for k, v in said.items() if table[k] != v]
        if best is None or len(differ) < best[0]:
            best = (len(differ), {**table, **said}, flavour if free_threaded else name, differ)
    if best is None:
        raise KeyError(version)
    return best[1], best[2], best[3]
