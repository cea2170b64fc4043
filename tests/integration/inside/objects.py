"""Type objects, strings, numbers, containers, functions."""

import asyncio
import collections
import contextvars
import ctypes
import functools
import queue
import select
import socket
import sys
import threading
import types
import weakref

from __main__ import TABLE, VERSION, array, at, check, has, note, read


class Plain:
    pass


class Slots:
    __slots__ = ("__weakref__", "a")


def check_sizes():
    for kind, name in [
        (type, "PyHeapTypeObject"),
        (types.FunctionType, "PyFunctionObject"),
        (types.MethodType, "PyMethodObject"),
        (types.ModuleType, "PyModuleObject"),
        (types.TracebackType, "PyTracebackObject"),
        (types.CellType, "PyCellObject"),
        (dict, "PyDictObject"),
        (set, "PySetObject"),
        (list, "PyListObject"),
        (float, "PyFloatObject"),
        (str, "PyUnicodeObject"),
        (bytearray, "PyByteArrayObject"),
        (collections.OrderedDict, "PyODictObject"),
        (collections.deque, "dequeobject"),
        (functools.partial, "partialobject"),
        (type(functools.lru_cache(abs)), "lru_cache_object"),
        (weakref.ref, "PyWeakReference"),
        (contextvars.Context, "PyContext"),
        (contextvars.ContextVar, "PyContextVar"),
        (queue.SimpleQueue, "simplequeueobject"),
        (socket.socket.__base__, "PySocketSockObject"),
        (type(threading.Lock()), "lockobject"),
        (type(threading.RLock()), "rlockobject"),
        (asyncio.Future, "FutureObj"),
        (asyncio.Task, "TaskObj"),
        (BaseException, "PyBaseExceptionObject"),
        (type(select.epoll()), "pyEpoll_Object"),
        (type("".join), "PyCFunctionObject"),
        (type(None.__repr__), "wrapperobject"),
    ]:
        note("sizeof." + name, TABLE["sizeof." + name], kind.__basicsize__)
        check(id(kind), "PyTypeObject.tp_basicsize", kind.__basicsize__)
    for kind, name in [
        (types.GeneratorType, "PyGenObject.gi"),
        (types.CoroutineType, "PyCoroObject.cr"),
        (types.AsyncGeneratorType, "PyAsyncGenObject.ag"),
    ]:
        size = TABLE["sizeof." + name[:-3]]
        if has(name + "_iframe"):  # ends in a frame, whose variables count as items
            size = TABLE[name + "_iframe"] + TABLE["_PyInterpreterFrame.localsplus"]
        note("sizeof." + name[:-3], size, kind.__basicsize__)


def check_types():
    check(id(Plain), "PyTypeObject.tp_itemsize", Plain.__itemsize__)
    check(id(Plain), "PyTypeObject.tp_flags", Plain.__flags__)
    check(id(Plain), "PyTypeObject.tp_base", object)
    check(id(Plain), "PyTypeObject.tp_bases", Plain.__bases__)
    check(id(Plain), "PyTypeObject.tp_mro", Plain.__mro__)
    check(id(Plain), "PyHeapTypeObject.ht_name", Plain.__name__)
    check(id(Plain), "PyHeapTypeObject.ht_qualname", Plain.__qualname__)
    note("PyTypeObject.tp_name", ctypes.string_at(at(id(Plain), "PyTypeObject.tp_name")), b"Plain")
    check(id(Slots), "PyTypeObject.tp_weaklistoffset", Slots.__weakrefoffset__ & (1 << 64) - 1)
    check(id(Plain), "PyTypeObject.tp_dictoffset", Plain.__dictoffset__ & (1 << 64) - 1)
    plain = Plain()
    check(id(plain), "PyObject.ob_type", Plain)
    flag = TABLE["const.Py_TPFLAGS_HEAPTYPE"]
    note("const.Py_TPFLAGS_HEAPTYPE", Plain.__flags__ & flag, flag)
    for name, kind in [("LONG", int), ("LIST", list), ("TUPLE", tuple), ("BYTES", bytes), ("UNICODE", str),
                       ("DICT", dict), ("BASE_EXC", BaseException), ("TYPE", type)]:  # fmt: skip
        key = f"const.Py_TPFLAGS_{name}_SUBCLASS"
        flag = TABLE[key]
        note(key, kind.__flags__ & flag, flag)


def check_strings():
    for text, kind in [("ascii text", 1), ("h\xf6flich", 1), ("\u03b1\u03b2\u03b3", 2), ("\U0001f40d!", 4)]:
        base = id(text)
        check(base, "PyASCIIObject.length", len(text))
        check(base, "PyASCIIObject.state.kind", kind)
        check(base, "PyASCIIObject.state.compact", 1)
        check(base, "PyASCIIObject.state.ascii", int(text.isascii()))
        state = at(base, "PyASCIIObject.state")
        for field, value in (("kind", kind), ("compact", 1), ("ascii", int(text.isascii()))):
            shift, width = (TABLE[f"const.unicode_state_{field}_{w}"] for w in ("shift", "width"))
            note("const.unicode_state_" + field, state >> shift & (1 << width) - 1, value)
        name = "sizeof.PyASCIIObject" if text.isascii() else "sizeof.PyCompactUnicodeObject"
        data = ctypes.string_at(base + TABLE[name], len(text) * kind)
        note(name, data.decode({1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}[kind]), text)

    class Text(str):
        pass

    text = Text("not compact")
    check(id(text), "PyASCIIObject.state.compact", 0)
    note("PyUnicodeObject.data", ctypes.string_at(at(id(text), "PyUnicodeObject.data"), 11), b"not compact")


def check_numbers():
    number = 5 << 30 | 7
    key = "PyLongObject.long_value.ob_digit" if VERSION >= (3, 12) else "PyLongObject.ob_digit"
    digits = [read(id(number) + TABLE[key] + 4 * i, 4) for i in range(2)]
    note(key, digits, [7, 5])
    note("const.PyLong_SHIFT", TABLE["const.PyLong_SHIFT"], sys.int_info.bits_per_digit)
    note("sizeof.digit", TABLE["sizeof.digit"], sys.int_info.sizeof_digit)
    if has("PyLongObject.long_value.lv_tag"):
        negative = -number
        for value, sign in ((number, 0), (negative, 2)):
            tag = at(id(value), "PyLongObject.long_value.lv_tag")
            note("const._PyLong_NON_SIZE_BITS", tag >> TABLE["const._PyLong_NON_SIZE_BITS"], 2)
            note("const._PyLong_SIGN_MASK", tag & TABLE["const._PyLong_SIGN_MASK"], sign)
    else:
        check(id(number), "PyVarObject.ob_size", 2)
    real = 0.1
    note(
        "PyFloatObject.ob_fval",
        ctypes.c_double.from_address(id(real) + TABLE["PyFloatObject.ob_fval"]).value,
        real,
    )


def check_sequences():
    one, two = object(), object()
    pair, pairs, raw, array_ = (one, two), [one, two], b"raw bytes", bytearray(b"mutable")
    for value in (pair, pairs, raw, array_):
        check(id(value), "PyVarObject.ob_size", len(value))
    note("PyTupleObject.ob_item", array(id(pair), "PyTupleObject.ob_item", 2), [id(one), id(two)])
    items = at(id(pairs), "PyListObject.ob_item")
    note("PyListObject.ob_item", [read(items), read(items + 8)], [id(one), id(two)])
    note("PyListObject.allocated", at(id(pairs), "PyListObject.allocated") >= 2, True)
    note("PyBytesObject.ob_sval", ctypes.string_at(id(raw) + TABLE["PyBytesObject.ob_sval"], len(raw)), raw)
    start = at(id(array_), "PyByteArrayObject.ob_start")
    note("PyByteArrayObject.ob_start", ctypes.string_at(start, 7), b"mutable")
    many = {object() for _ in range(20)}
    base = id(many)
    check(base, "PySetObject.used", 20)
    check(base, "PySetObject.fill", 20)
    table, size = at(base, "PySetObject.table"), TABLE["sizeof.setentry"]
    slots = [at(table + size * i, "setentry.key") for i in range(at(base, "PySetObject.mask") + 1)]
    note("setentry.key", sorted(s for s in slots if s), sorted(map(id, many)))
    double = collections.deque(range(1000, 1100), maxlen=500)
    check(id(double), "dequeobject.maxlen", 500)
    block, index = at(id(double), "dequeobject.leftblock"), at(id(double), "dequeobject.leftindex")
    found = []
    while len(found) < 100:
        room = min(TABLE["const.BLOCKLEN"] - index, 100 - len(found))
        found += array(block + 8 * index, "deque_block.data", room)
        block, index = at(block, "deque_block.rightlink"), 0
    note("deque_block.data", found, [id(v) for v in double])
    ordered = collections.OrderedDict(a=one)
    check(id(ordered), "PyDictObject.ma_used", 1)
    note(
        "PyODictObject.od_first",
        at(id(ordered), "PyODictObject.od_first"),
        at(id(ordered), "PyODictObject.od_last"),
    )


def keys_of(base):
    """[(key, value)] of a combined dict's keys object, through the entries behind its index."""
    keys = at(base, "PyDictObject.ma_keys")
    if has("PyDictKeysObject.dk_log2_index_bytes"):
        skip = 1 << at(keys, "PyDictKeysObject.dk_log2_index_bytes")
        general = at(keys, "PyDictKeysObject.dk_kind") == TABLE["const.DICT_KEYS_GENERAL"]
    else:
        size = at(keys, "PyDictKeysObject.dk_size")
        skip, general = size * (1 if size <= 0xFF else 2 if size <= 0xFFFF else 4), True
    entries = keys + TABLE["PyDictKeysObject.dk_indices"] + skip
    name = "PyDictKeyEntry" if general else "PyDictUnicodeEntry"
    found = []
    for i in range(at(keys, "PyDictKeysObject.dk_nentries")):
        entry = entries + i * TABLE["sizeof." + name]
        found.append([at(entry, name + ".me_key"), at(entry, name + ".me_value")])
    return found


def check_dicts():
    value = object()
    for sample in ({"a": value, "b": 2}, {value: 1, 7: value}, {str(i): i for i in range(300)}):
        check(id(sample), "PyDictObject.ma_used", len(sample))
        note("PyDictKeysObject.dk_indices", keys_of(id(sample)), [[id(k), id(v)] for k, v in sample.items()])
    instance = Plain()
    instance.first, instance.second = value, sample
    found = None
    if has("const.INLINE_VALUES_POINTER_OFFSET"):  # 3.11
        values = read(id(instance) + TABLE["const.INLINE_VALUES_POINTER_OFFSET"])
        key, found = "const.INLINE_VALUES_POINTER_OFFSET", array(values, "PyDictValues.values", 2)
    elif has("const.Py_TPFLAGS_INLINE_VALUES"):  # 3.13
        key, values = "PyDictValues.values", id(instance) + Plain.__basicsize__
        note("PyDictValues.valid", at(values, "PyDictValues.valid"), 1)
        found = array(values, "PyDictValues.values", 2)
    elif has("const.MANAGED_DICT_OFFSET"):  # 3.12: odd when it is values, and one less than their address
        key, tagged = "const.MANAGED_DICT_OFFSET", read(id(instance) + TABLE["const.MANAGED_DICT_OFFSET"])
        note(key, tagged & 1, 1)
        found = array(tagged + 1, "PyDictValues.values", 2)
    else:
        slot = read(id(instance) + Plain.__dictoffset__)
        key, values = "PyDictObject.ma_values", at(slot, "PyDictObject.ma_values")
        found = [read(values), read(values + 8)]
    note(key, found, [id(value), id(sample)])
    attributes = instance.__dict__
    if has("const.Py_TPFLAGS_INLINE_VALUES"):
        note(
            "const.MANAGED_DICT_OFFSET",
            read(id(instance) + TABLE["const.MANAGED_DICT_OFFSET"]),
            id(attributes),
        )
    reference = weakref.ref(instance, str)
    if has("const.MANAGED_WEAKREF_OFFSET"):
        head = read(id(instance) + TABLE["const.MANAGED_WEAKREF_OFFSET"])
        note("const.MANAGED_WEAKREF_OFFSET", head, id(reference))
    check(id(reference), "PyWeakReference.wr_object", instance)
    check(id(reference), "PyWeakReference.wr_callback", str)


def check_caches():
    cache = functools.lru_cache(maxsize=77)(abs)
    results = [cache(n) for n in (1000.5, 2000.5, 1000.5, 3000.5, 1000.5, 2000.5)]
    for field, value in [
        ("hits", 3),
        ("misses", 3),
        ("maxsize", 77),
        ("func", abs),
        ("dict", cache.__dict__),
    ]:
        check(id(cache), "lru_cache_object." + field, value)
    note("lru_cache_object.root", TABLE["lru_cache_object.root"], 0)
    table = at(id(cache), "lru_cache_object.cache")
    note("lru_cache_object.cache", read(table + TABLE["PyDictObject.ma_used"]), 3)
    least_used = at(id(cache), "lru_list_elem.next")
    check(least_used, "lru_list_elem.result", results[3])
    check(least_used, "lru_list_elem.prev", id(cache))
    note("lru_list_elem.key", read(at(least_used, "lru_list_elem.key") + TABLE["PyVarObject.ob_size"]), 1)


def check_callables():
    captured = object()

    def inner(argument=captured):
        return captured

    base, code = id(inner), inner.__code__
    check(base, "PyFunctionObject.func_code", code)
    check(base, "PyFunctionObject.func_globals", inner.__globals__)
    check(base, "PyFunctionObject.func_closure", inner.__closure__)
    check(base, "PyFunctionObject.func_defaults", inner.__defaults__)
    check(base, "PyFunctionObject.func_name", inner.__name__)
    check(base, "PyFunctionObject.func_qualname", inner.__qualname__)
    check(base, "PyFunctionObject.func_module", inner.__module__)
    check(id(inner.__closure__[0]), "PyCellObject.ob_ref", captured)
    base = id(code)
    for name in ("argcount", "posonlyargcount", "kwonlyargcount", "stacksize", "flags", "firstlineno"):
        check(base, "PyCodeObject.co_" + name, getattr(code, "co_" + name))
    for name in ("filename", "name", "consts", "names", "exceptiontable", "qualname"):
        if hasattr(code, "co_" + name):
            check(base, "PyCodeObject.co_" + name, getattr(code, "co_" + name))
    if VERSION >= (3, 10):
        check(base, "PyCodeObject.co_linetable", code.co_linetable)
    if VERSION < (3, 11):
        for name in ("code", "varnames", "freevars", "cellvars", "nlocals"):
            check(base, "PyCodeObject.co_" + name, getattr(code, "co_" + name))
    else:
        names = ctypes.cast(at(base, "PyCodeObject.co_localsplusnames"), ctypes.py_object).value
        note("PyCodeObject.co_localsplusnames", list(names), ["argument", "captured"])
        kinds = ctypes.cast(at(base, "PyCodeObject.co_localspluskinds"), ctypes.py_object).value
        free = TABLE["const.CO_FAST_FREE"]
        note("PyCodeObject.co_localspluskinds", [k & free for k in kinds], [0, free])
        check(base, "PyCodeObject.co_nlocalsplus", 2)
        check(base, "PyCodeObject.co_nfreevars", 1)
        check(base, "PyVarObject.ob_size", len(code.co_code) // 2)
        if VERSION < (3, 13):  # later ones change instructions in place from the first call on
            start = ctypes.string_at(base + TABLE["PyCodeObject.co_code_adaptive"], 2)
            note("PyCodeObject.co_code_adaptive", start, code.co_code[:2])
    bound = Plain.__init__.__get__(Plain()), types.MethodType(inner, captured)
    check(id(bound[1]), "PyMethodObject.im_func", inner)
    check(id(bound[1]), "PyMethodObject.im_self", captured)
    check(id(bound[0]), "wrapperobject.self", bound[0].__self__)
    builtin = "text".join
    check(id(builtin), "PyCFunctionObject.m_self", builtin.__self__)
    name = at(at(id(builtin), "PyCFunctionObject.m_ml"), "PyMethodDef.ml_name")
    note("PyMethodDef.ml_name", ctypes.string_at(name), b"join")
    partial = functools.partial(inner, 1, key=2)
    check(id(partial), "partialobject.fn", inner)
    check(id(partial), "partialobject.args", partial.args)
    check(id(partial), "partialobject.kw", partial.keywords)


check_sizes()
check_types()
check_strings()
check_numbers()
check_sequences()
check_dicts()
check_caches()
check_callables()
