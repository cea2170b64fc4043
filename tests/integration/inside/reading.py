"""Runs inside the interpreter under test: reads its own memory at the places that a layout table names.

The test puts this text and those of its neighbours together into one program (they import from here by way of
__main__). Standard input holds the table; standard output gets a list of [topic, key, found, expected]. Keeps
to what CPython 3.9 understands.
"""

import ctypes
import json
import sys
import sysconfig

TABLE = json.load(sys.stdin)
VERSION = sys.version_info[:2]
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
CHECKS = []
TOPIC = [""]


def read(address, size=8, signed=False):
    return int.from_bytes(ctypes.string_at(address, size), "little", signed=signed)


def has(*keys):
    return all(key in TABLE for key in keys)


def at(base, key, signed=False):
    """The value of a field of the structure at ``base``."""
    return read(base + TABLE[key], TABLE.get("sizeof." + key, 8), signed)


def bits(base, key):
    """The value of a bit-field."""
    return read(base + TABLE[key], 4) >> TABLE["shift." + key] & (1 << TABLE["width." + key]) - 1


def note(key, found, expected):
    CHECKS.append([TOPIC[-1], key, found, expected])


def check(base, key, expected, mask=-1):
    """A field of the structure at ``base`` holds ``expected``: an object, an int, None for a null pointer."""
    if key not in TABLE:
        return
    if not isinstance(expected, int) or isinstance(expected, bool):
        expected = 0 if expected is None else id(expected)
    note(key, (bits(base, key) if "shift." + key in TABLE else at(base, key)) & mask, expected)


def array(base, key, count):
    return [read(base + TABLE[key] + 8 * i) for i in range(count)]


def hamt(node, wanted):
    """Bitmap, array and collision nodes, told apart by the names of their types."""
    kind = ctypes.string_at(at(at(node, "PyObject.ob_type"), "PyTypeObject.tp_name"))
    if b"array" in kind:
        below = array(node, "PyHamtNode_Array.a_array", 32)
        for child in below:
            if child:
                hamt(child, wanted)
    else:
        name = "PyHamtNode_Collision.c_array" if b"collision" in kind else "PyHamtNode_Bitmap.b_array"
        words = array(node, name, at(node, "PyVarObject.ob_size"))
        for key, value in zip(words[::2], words[1::2]):  # noqa: B905 (3.10 has strict)
            if key:
                wanted[key] = value
            else:
                hamt(value, wanted)
    return kind


def symbol(name):
    return ctypes.addressof(ctypes.c_char.in_dll(ctypes.pythonapi, name))


def call(name):
    function = getattr(ctypes.pythonapi, name)
    function.restype = ctypes.c_void_p
    return function()


def offsets(block, group, struct, renamed):
    """Every field of a group of debug offsets says what the table says of the structure."""
    for key in TABLE:
        if not key.startswith(group + "."):
            continue
        field = key[len(group) + 1 :]
        name = renamed.get(field, field)
        own = "sizeof." + struct if field == "size" else name if "." in name else struct + "." + name
        if own not in TABLE:
            continue
        value = read(block + TABLE[key])
        if VERSION >= (3, 15) and field == "size" and value == TABLE[own] + 8:
            value -= (
                8  # built with the JIT: one word more near the end of _PyThreadStateImpl, and what holds it
            )
        note(key, value, TABLE[own])
