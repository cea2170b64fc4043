"""What the interpreter itself says of its layout (3.13)."""

import ctypes
import sys

from __main__ import TABLE, has, note, offsets, read, symbol


def check_debug_offsets():
    if not has("_Py_DebugOffsets.version"):
        return
    block = symbol("_PyRuntime") + TABLE["_PyRuntimeState.debug_offsets"]
    note(
        "_Py_DebugOffsets.cookie", ctypes.string_at(block + TABLE["_Py_DebugOffsets.cookie"], 8), b"xdebugpy"
    )
    note("_Py_DebugOffsets.version", read(block + TABLE["_Py_DebugOffsets.version"]), sys.hexversion)
    prefix = "_Py_DebugOffsets."
    for group, struct, renamed in [
        ("runtime_state", "_PyRuntimeState", {
            "finalizing": "_finalizing", "interpreters_head": "interpreters.head"}),
        ("interpreter_state", "PyInterpreterState", {
            "threads_head": "threads.head", "threads_main": "threads.main",
            "imports_modules": "imports.modules",
            "ceval_gil": "ceval.gil", "gil_runtime_state": "_gil", "gil_runtime_state_locked": "_gil.locked",
            "gil_runtime_state_holder": "_gil.last_holder"}),
        ("thread_state", "PyThreadState", {"status": "_status"}),
        ("interpreter_frame", "_PyInterpreterFrame", {"executable": "f_executable"}),
        ("code_object", "PyCodeObject", {
            n: "co_" + n for n in ("filename", "name", "qualname", "linetable", "firstlineno", "argcount",
                                   "localsplusnames", "localspluskinds")}),
        ("pyobject", "PyObject", {}),
        ("type_object", "PyTypeObject", {}),
        ("heap_type_object", "PyHeapTypeObject", {}),
        ("tuple_object", "PyTupleObject", {"ob_size": "PyVarObject.ob_size"}),
        ("list_object", "PyListObject", {"ob_size": "PyVarObject.ob_size"}),
        ("bytes_object", "PyBytesObject", {"ob_size": "PyVarObject.ob_size"}),
        ("set_object", "PySetObject", {}),
        ("dict_object", "PyDictObject", {}),
        ("float_object", "PyFloatObject", {}),
        ("long_object", "PyLongObject", {"lv_tag": "long_value.lv_tag", "ob_digit": "long_value.ob_digit"}),
        ("unicode_object", "PyUnicodeObject", {
            "state": "PyASCIIObject.state", "length": "PyASCIIObject.length",
            "asciiobject_size": "sizeof.PyASCIIObject",
            "compactunicodeobject_size": "sizeof.PyCompactUnicodeObject"}),
        ("gen_object", "PyGenObject", {}),
        ("llist_node", "llist_node", {}),
        ("err_stackitem", "_PyErr_StackItem", {}),
    ]:  # fmt: skip
        offsets(block, prefix + group, struct, renamed)


check_debug_offsets()
