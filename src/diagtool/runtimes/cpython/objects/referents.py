"""What objects refer to, thousands at a time: a bounded ``tp_traverse`` over captured memory.

Only references that count in the referent's reference count are given, and only of types whose layout is
known; an object of any other type has no edges here. That errs to one side: whoever counts references finds
some of them unexplained.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import STACKREF_TAGS, Context
from diagtool.runtimes.cpython.frames.generators import GENERATOR_KINDS, read_generators
from diagtool.runtimes.cpython.objects.reader import INLINE_VALUES, MANAGED_DICT

#: Edges: (index into the given objects, address of what it refers to).
Edges = tuple[NDArray[np.intp], U64]

MAX_ITEMS = 1 << 17  # of one container; larger ones have no edges
_MAX_EDGES = 1 << 24  # of one call

_HEAPTYPE = 1 << 9
_BASE_EXCEPTION = 1 << 30  # Py_TPFLAGS_BASE_EXC_SUBCLASS
_MAX_SLOTS = 1 << 16  # of one frame

#: Names that a class of the program may have as well, which then is none of CPython's own.
_STATIC = ("frame", "traceback")
_0 = np.uint64(0)
_TAGS = np.uint64(~STACKREF_TAGS & (1 << 64) - 1)


def no_edges() -> Edges:
    """No edge at all."""
    return np.zeros(0, np.intp), np.zeros(0, np.uint64)


def joined(parts: list[Edges]) -> Edges:
    """Several sets of edges as one, without null references."""
    if not parts:
        return no_edges()
    source = np.concatenate([p[0] for p in parts])
    target = np.concatenate([p[1] for p in parts])
    there = target != 0
    return source[there], target[there]


def ragged(starts: U64, counts: NDArray[np.int64], stride: int = 8) -> Edges:
    """The addresses of ``counts[i]`` consecutive fields from ``starts[i]`` on: (i, address)."""
    counts = np.where((starts != 0) & (counts > 0) & (counts <= MAX_ITEMS), counts, 0)
    total = int(counts.sum())
    if not 0 < total <= _MAX_EDGES:
        return no_edges()
    owner = np.repeat(np.arange(len(starts)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    step = (np.arange(total) - first).astype(np.uint64) * np.uint64(stride)
    return owner, starts[owner] + step


class Referents:
    """Edges of objects by type."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self._slots: dict[int, list[int]] = {}
        self._by_name: dict[str, Callable[[U64], Edges]] = {
            "list": self._list,
            "tuple": self._tuple,
            "set": self._set,
            "frozenset": self._set,
            "dict": self._dict,
            "collections.deque": self._deque,
            "cell": lambda a: self._fields(a, "PyCellObject.ob_ref"),
            "method": lambda a: self._fields(a, "PyMethodObject.im_func", "PyMethodObject.im_self"),
            "function": lambda a: self._fields(
                a, "PyFunctionObject.func_closure", "PyFunctionObject.func_defaults"
            ),
            "functools.partial": lambda a: self._fields(
                a, "partialobject.fn", "partialobject.args", "partialobject.kw"
            ),
            "_asyncio.FutureIter": lambda a: self._fields(a, "futureiterobject.future"),
            "_asyncio.Future": lambda a: self._future(a, "fut", "FutureObj"),
            "_asyncio.Task": lambda a: self._future(a, "task", "TaskObj"),
            "coroutine_wrapper": lambda a: self._fields(a, "PyCoroWrapper.cw_coroutine"),
            "async_generator_asend": lambda a: self._fields(a, "PyAsyncGenASend.ags_gen"),
            "builtin_function_or_method": lambda a: self._fields(a, "PyCFunctionObject.m_self"),
            # Structures that no header file declares (Objects/descrobject.c, namespaceobject.c, listobject.c,
            # Modules/_collectionsmodule.c): one or two fields behind the header, alike since 3.9.
            "mappingproxy": lambda a: self._behind_header(a, 0),
            "types.SimpleNamespace": lambda a: self._behind_header(a, 0),
            "list_iterator": lambda a: self._behind_header(a, 1),
            "collections.defaultdict": self._defaultdict,
            "collections.OrderedDict": self._dict,
            "traceback": lambda a: self._fields(a, "PyTracebackObject.tb_next", "PyTracebackObject.tb_frame"),
            "frame": self._frame,
            **dict.fromkeys(GENERATOR_KINDS, self._generator),
        }

    def of(self, objects: U64) -> Edges:
        """All edges of ``objects``."""
        v = self.ctx.vectors
        parts: list[Edges] = []
        for t, rows in v.by_type(objects):
            source, target = self._of_type(objects[rows], t)
            parts.append((rows[source], target))
        return joined(parts)

    def known(self, type_address: int) -> bool:
        """Whether edges of this type are known."""
        return self._reader(type_address) is not None

    def _reader(self, type_address: int) -> Callable[[U64], Edges] | None:
        flags = self.ctx.objects.type_flags(type_address)
        name = self.ctx.objects.type_name(type_address)
        if name in self._by_name and not (name in _STATIC and flags & _HEAPTYPE):
            return self._by_name[name]
        if flags & _BASE_EXCEPTION:
            return lambda a: self._exceptions(a, type_address)
        if self._plain_instance(type_address):
            return lambda a: self._instances(a, type_address)
        return None

    def _of_type(self, objects: U64, type_address: int) -> Edges:
        reader = self._reader(type_address) if type_address else None
        try:
            return reader(objects) if reader is not None else no_edges()
        except MemoryFault:
            return no_edges()

    # -- containers -------------------------------------------------------------------------------------

    def _fields(self, objects: U64, *names: str) -> Edges:
        lay, v = self.ctx.runtime.layout, self.ctx.vectors
        rows = np.arange(len(objects))
        return joined([(rows, v.field(objects, n)) for n in names if n in lay])

    def _behind_header(self, objects: U64, field: int) -> Edges:
        first = self.ctx.runtime.layout["PyVarObject.ob_size"]  # where the header of an object ends
        return np.arange(len(objects)), self.ctx.vectors.words(objects, first + 8 * field)

    def _defaultdict(self, objects: U64) -> Edges:
        factory = self.ctx.vectors.words(objects, self.ctx.runtime.layout["PyDictObject.ma_values"] + 8)
        return joined([self._dict(objects), (np.arange(len(objects)), factory)])

    def _words_at(self, where: Edges) -> Edges:
        return where[0], self.ctx.vectors.words(where[1])

    def _list(self, objects: U64) -> Edges:
        v = self.ctx.vectors
        size = v.field(objects, "PyVarObject.ob_size").astype(np.int64)
        return self._words_at(ragged(v.field(objects, "PyListObject.ob_item"), size))

    def _tuple(self, objects: U64) -> Edges:
        size = self.ctx.vectors.field(objects, "PyVarObject.ob_size").astype(np.int64)
        first = objects + np.uint64(self.ctx.runtime.layout["PyTupleObject.ob_item"])
        return self._words_at(ragged(first, size))

    def _set(self, objects: U64) -> Edges:
        v, lay = self.ctx.vectors, self.ctx.runtime.layout
        size = v.field(objects, "PySetObject.mask").astype(np.int64) + 1
        owner, entries = ragged(v.field(objects, "PySetObject.table"), size, lay.get("sizeof.setentry", 16))
        keys = v.words(entries, lay.get("setentry.key", 0))
        hashes = v.words(entries, lay.get("setentry.hash", 8))
        return owner, np.where(hashes != np.uint64(2**64 - 1), keys, _0)

    def _deque(self, objects: U64) -> Edges:
        parts: list[Edges] = []
        for i, address in enumerate(objects[:4096].tolist()):
            try:
                items = self.ctx.objects.deque_items(address, MAX_ITEMS)
            except MemoryFault:
                continue
            parts.append((np.full(len(items), i), np.array(items, np.uint64)))
        return joined(parts)

    def _dict(self, objects: U64) -> Edges:
        v, lay = self.ctx.vectors, self.ctx.runtime.layout
        keys = v.field(objects, "PyDictObject.ma_keys")
        values = v.field(objects, "PyDictObject.ma_values")
        used = v.field(keys, "PyDictKeysObject.dk_nentries").astype(np.int64)
        split = values != 0
        offset = np.uint64(lay.get("PyDictValues.values", 0))
        parts = [self._words_at(ragged(np.where(split, values + offset, _0), used))]
        first, general = v.dict_entries(keys)
        for kind, rows in (("PyDictKeyEntry", general), ("PyDictUnicodeEntry", ~general)):
            if f"sizeof.{kind}" not in lay:
                continue
            start = np.where(rows & ~split, first, _0)
            owner, entries = ragged(start, used, lay[f"sizeof.{kind}"])
            parts.append((owner, v.words(entries, lay[f"{kind}.me_key"])))
            parts.append((owner, v.words(entries, lay[f"{kind}.me_value"])))
        return joined(parts)

    # -- flows of control -------------------------------------------------------------------------------

    def _future(self, objects: U64, prefix: str, structure: str) -> Edges:
        # not the loop: everything leads to it, and it to everything
        names = ("callback0", "context0", "callbacks", "exception", "result")
        fields = [f"{structure}.{prefix}_{n}" for n in names]
        if prefix == "task":
            fields += [f"TaskObj.task_{n}" for n in ("fut_waiter", "coro", "name", "context")]
        return self._fields(objects, *fields)

    def _generator(self, objects: U64) -> Edges:
        columns = read_generators(self.ctx, objects)
        slots = slot_edges(self.ctx, columns.frame, columns.locals, columns.depth)
        return joined([slots, handled_exceptions(self.ctx, objects)])

    def _frame(self, objects: U64) -> Edges:
        """Of frames that outlived their call, which tracebacks keep. The slots of all others are counted with
        the flow of control that they belong to."""
        if self.ctx.runtime.version < (3, 11):
            return self._frame_object(objects)
        v, lay = self.ctx.vectors, self.ctx.runtime.layout
        own = objects + np.uint64(lay["PyFrameObject._f_frame_data"])
        rows = np.flatnonzero(v.field(objects, "PyFrameObject.f_frame") == own)  # take_ownership(), frame.c
        frames = own[rows]
        first = frames + np.uint64(lay["_PyInterpreterFrame.localsplus"])
        if "_PyInterpreterFrame.stackpointer" in lay:  # 3.14+
            depth = _depth(first, v.field(frames, "_PyInterpreterFrame.stackpointer"))
        else:
            depth = v.small(frames, "_PyInterpreterFrame.stacktop", "<i4")
        names = [f"PyFrameObject.{n}" for n in ("f_back", "f_trace", "f_extra_locals", "f_locals_cache")]
        parts = [
            slot_edges(self.ctx, frames, first, np.where(depth < _MAX_SLOTS, depth, 0)),
            self._fields(frames, "_PyInterpreterFrame.f_locals"),
            self._fields(objects[rows], *names, "PyFrameObject.f_overwritten_fast_locals"),
        ]
        return joined([(rows[source], target) for source, target in parts])

    def _frame_object(self, objects: U64) -> Edges:
        # To 3.10: a generator's frame belongs to it until it ends, then f_gen is cleared (gen_send_ex()).
        v, lay = self.ctx.vectors, self.ctx.runtime.layout
        ended = v.field(objects, "PyFrameObject.f_gen") == 0
        if "PyFrameObject.f_state" in lay:
            ended &= v.small(objects, "PyFrameObject.f_state", "i1") > lay["const.FRAME_EXECUTING"]
        else:
            ended &= v.small(objects, "PyFrameObject.f_executing", "i1") == 0
        rows = np.flatnonzero(ended)
        frames = objects[rows]
        first = frames + np.uint64(lay["PyFrameObject.f_localsplus"])
        depth = _depth(first, v.field(frames, "PyFrameObject.f_valuestack"))  # the stack itself was emptied
        names = [f"PyFrameObject.{n}" for n in ("f_back", "f_trace", "f_locals")]
        parts = [slot_edges(self.ctx, frames, first, depth), self._fields(frames, *names)]
        return joined([(rows[source], target) for source, target in parts])

    # -- exceptions -------------------------------------------------------------------------------------

    def _exceptions(self, objects: U64, type_address: int) -> Edges:
        """What more a class written in C keeps (``StopIteration.value``) is not followed."""
        names = ["args", "notes", "traceback", "context", "cause"]
        plain = self._plain_instance(type_address)
        if not plain:
            names.append("dict")
        fields = self._fields(objects, *(f"PyBaseExceptionObject.{n}" for n in names))
        return joined([fields, self._instances(objects, type_address)]) if plain else fields

    # -- instances --------------------------------------------------------------------------------------

    def _plain_instance(self, type_address: int) -> bool:
        """A class of Python code without items; its C part, if any, is not followed."""
        o = self.ctx.objects
        if not o.type_flags(type_address) & _HEAPTYPE:
            return False
        try:
            return o.memory.i64(type_address + self.ctx.runtime.layout["PyTypeObject.tp_itemsize"]) == 0
        except MemoryFault:
            return False

    def _instances(self, objects: U64, type_address: int) -> Edges:
        v = self.ctx.vectors
        rows = np.arange(len(objects))
        parts: list[Edges] = [(rows, v.words(objects, at)) for at in self._slot_offsets(type_address)]
        flags = self.ctx.objects.type_flags(type_address)
        managed = self.ctx.runtime.version >= (3, 11) and flags & MANAGED_DICT
        dictoffset = self.ctx.objects.memory.i64(
            type_address + self.ctx.runtime.layout["PyTypeObject.tp_dictoffset"]
        )
        if managed or flags & INLINE_VALUES or dictoffset > 0:
            values, dicts = v.instance_storage(objects, type_address)
            parts.append((rows, dicts))
            if values.any():
                keys = self.ctx.objects.cached_keys(type_address)
                used = self.ctx.objects.keys_entries(keys)[2]
                parts.append(self._words_at(ragged(values, np.where(values != 0, used, 0))))
        return joined(parts)

    def _slot_offsets(self, type_address: int) -> list[int]:
        known = self._slots.get(type_address)
        if known is None:
            known = self._slots[type_address] = self.ctx.objects.slot_offsets(type_address)
        return known


def _depth(first: U64, top: U64) -> NDArray[np.int64]:
    """Slots from ``first`` up to ``top``, 0 where that makes no sense."""
    good = (top > first) & (top - first < np.uint64(8 * _MAX_SLOTS))
    slots: NDArray[np.int64] = np.where(good, (top - first) // np.uint64(8), _0).astype(np.int64)
    return slots


def handled_exceptions(ctx: Context, generators: U64) -> Edges:
    """Edges of generators that are suspended in an ``except`` or ``finally``: the exception handled there.

    (gi_exc_state; up to 3.10 its type and traceback are kept as well.)
    """
    lay = ctx.runtime.layout
    names = [f"_PyErr_StackItem.{n}" for n in ("exc_type", "exc_value", "exc_traceback")]
    at = [lay["PyGenObject.gi_exc_state"] + lay[name] for name in names if name in lay]
    rows = np.arange(len(generators))
    return joined([(rows, ctx.vectors.words(generators, offset)) for offset in at])


def slot_edges(ctx: Context, frames: U64, first: U64, depth: NDArray[np.int64]) -> Edges:
    """Edges of suspended frames: their fast locals and evaluation stacks, and their function (3.11+).

    From 3.14 on a slot may hold a borrowed reference (low bit set), which does not count.
    """
    owner, where = ragged(np.where(frames != 0, first, _0), depth)
    values = ctx.vectors.words(where)
    if ctx.runtime.version >= (3, 14):
        values = np.where(values & np.uint64(1) == 0, values & _TAGS, _0)
    parts: list[Edges] = [(owner, values)]
    lay = ctx.runtime.layout
    for name in ("_PyInterpreterFrame.f_func", "_PyInterpreterFrame.f_funcobj"):
        if name in lay:
            function = ctx.vectors.field(frames, name)
            if ctx.runtime.version >= (3, 14):
                function = np.where(function & np.uint64(1) == 0, function & _TAGS, _0)
            parts.append((np.arange(len(frames)), function))
    return joined(parts)
