"""The containers that hold most: dicts, lists, sets and deques with many items, and what is in them.

A leak in Python text nearly always ends in one of them: a cache without a limit, a list that is only appended
to. Items are sampled, spread over the container, so that one of millions costs as much as one of hundreds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.sizes import NO_SIZE, Sizer
from diagtool.runtimes.cpython.objects.referents import Referents

LEAST = 32  # items: what has fewer is of no interest
MOST = 2000  # containers whose items are looked at: those with most items
SAMPLE = 24  # items of one container
OLDEST = 8  # items at its beginning that are remembered
_HEAD = 64  # entries at the beginning among which these are looked for
_DEPTH = 5  # steps from an item to what only it keeps
_MOST_KEPT = 1 << 19  # objects at one of these steps, of all samples together
_MOST_REFERENCES = 16  # an item with more of them is not the container's alone
_LIST, _DICT = 1 << 25, 1 << 29  # Py_TPFLAGS_*_SUBCLASS, Include/object.h
_0 = np.uint64(0)
_8 = np.uint64(8)
_NO_HASH = np.uint64(2**64 - 1)  # of a removed entry (Objects/setobject.c)

Ints = NDArray[np.int64]


@dataclass(slots=True)
class Containers:
    """Parallel arrays, those with most items first.

    ``kind``: number of the type. ``limit``: maxlen of a deque, -1 for none. ``own``: bytes of container and
    table. ``sample``: for each a row of addresses of items (of dicts values, then keys), 0 for none.
    ``oldest``: a row of OLDEST addresses, of dicts of keys; of sets none, as they have no order. ``each``:
    bytes of an item with what only it keeps, on average of the sample.
    """

    address: U64
    kind: NDArray[np.int32]
    items: Ints
    limit: Ints
    own: Ints
    sample: U64
    oldest: U64
    each: NDArray[np.float64]

    @property
    def bytes(self) -> Ints:
        """What would go with the container, as far as the sample tells."""
        estimated: Ints = self.own + (self.each * self.items).astype(np.int64)
        return estimated

    def __len__(self) -> int:
        return len(self.address)


def large_containers(ctx: Context, census: HeapCensus, leave_out: U64) -> Containers:
    """The containers with most items, at least LEAST; without those of the sorted addresses ``leave_out``."""
    reader = _Reader(ctx, census)
    address, kind, items = reader.longest(leave_out)
    n = len(address)
    found = Containers(
        address,
        kind,
        items,
        np.full(n, -1, np.int64),
        np.zeros(n, np.int64),
        np.zeros((n, 2 * SAMPLE), np.uint64),
        np.zeros((n, OLDEST), np.uint64),
        np.zeros(n),
    )
    for number in np.unique(kind).tolist():
        reader.read(number, np.flatnonzero(kind == number), found)
    _measure(ctx, census, found)
    return found


class _Reader:
    def __init__(self, ctx: Context, census: HeapCensus) -> None:
        self.ctx = ctx
        self.census = census
        self._shapes = [self._shape(i, a) for i, a in enumerate(census.types.address.tolist())]

    def _shape(self, kind: int, address: int) -> str:
        flags = int(self.census.types.flags[kind])
        if flags & (_LIST | _DICT):
            return "list" if flags & _LIST else "dict"
        names = {self.ctx.objects.type_name(t) for t in self.ctx.objects.mro(address)}
        return "set" if "set" in names else "deque" if "collections.deque" in names else ""

    def longest(self, leave_out: U64) -> tuple[U64, NDArray[np.int32], Ints]:
        """(address, kind, number of items) of the MOST containers with most items."""
        fields = {"dict": "PyDictObject.ma_used", "set": "PySetObject.used"}
        addresses, kinds, lengths = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
        for kind, shape in enumerate(self._shapes):
            objects = self.census.of(kind) if shape else addresses[0]
            if not len(objects):
                continue
            items = self.ctx.vectors.field(objects, fields.get(shape, "PyVarObject.ob_size")).astype(np.int64)
            keep = np.flatnonzero((items >= LEAST) & (items < 1 << 40))
            keep = keep[np.argsort(-items[keep], kind="stable")[: MOST + len(leave_out)]]
            addresses.append(objects[keep])
            kinds.append(np.full(len(keep), kind, np.int32))
            lengths.append(items[keep])
        address, number = np.concatenate(addresses), np.concatenate(lengths)
        order = np.argsort(-number, kind="stable")
        order = order[~np.isin(address[order], leave_out)][:MOST]
        return address[order], np.concatenate(kinds)[order], number[order]

    def read(self, kind: int, rows: NDArray[np.intp], found: Containers) -> None:
        """Fill in ``own``, ``limit``, ``sample`` and ``oldest`` of the containers of one type."""
        objects = found.address[rows]
        own, owned = Sizer(self.ctx, self.census.types).of(kind, objects)
        found.own[rows] = np.where(own < NO_SIZE, own + owned, 0)
        getattr(self, f"_{self._shapes[kind]}")(objects, found.items[rows], rows, found)

    def _list(self, objects: U64, items: Ints, rows: NDArray[np.intp], found: Containers) -> None:
        table = self.ctx.vectors.field(objects, "PyListObject.ob_item")
        found.sample[rows, :SAMPLE] = self._at(table, _spread(items, SAMPLE), 8)
        found.oldest[rows] = self._at(table, _first(items, OLDEST), 8)

    def _dict(self, objects: U64, items: Ints, rows: NDArray[np.intp], found: Containers) -> None:
        lay, v = self.ctx.runtime.layout, self.ctx.vectors
        keys = v.field(objects, "PyDictObject.ma_keys")
        keys = np.where(v.field(objects, "PyDictObject.ma_values") == 0, keys, _0)
        entries = v.field(keys, "PyDictKeysObject.dk_nentries").astype(np.int64)
        entries = np.where((entries > 0) & (entries < 1 << 40), entries, 0)
        first, general = v.dict_entries(keys)
        for name, mine in (("PyDictKeyEntry", general), ("PyDictUnicodeEntry", ~general)):
            if f"sizeof.{name}" not in lay or not mine.any():
                continue
            size, table, used = lay[f"sizeof.{name}"], first[mine], entries[mine]
            key, value = (table + np.uint64(lay[f"{name}.{f}"]) for f in ("me_key", "me_value"))
            place = _spread(used, SAMPLE)
            values = self._at(value, place, size)
            found.sample[rows[mine], :SAMPLE] = values
            found.sample[rows[mine], SAMPLE:] = np.where(values != 0, self._at(key, place, size), _0)
            place = _first(used, _HEAD)
            living = self._at(value, place, size) != 0
            found.oldest[rows[mine]] = _leading(np.where(living, self._at(key, place, size), _0))

    def _set(self, objects: U64, items: Ints, rows: NDArray[np.intp], found: Containers) -> None:
        lay, v = self.ctx.runtime.layout, self.ctx.vectors
        size = lay.get("sizeof.setentry", 16)
        slots = v.field(objects, "PySetObject.mask").astype(np.int64) + 1
        slots = np.where((slots >= items) & (slots < 1 << 40), slots, 0)
        table = v.field(objects, "PySetObject.table")
        place = _spread(slots, 2 * SAMPLE)
        hashes = self._at(table + np.uint64(lay.get("setentry.hash", 8)), place, size)
        keys = self._at(table + np.uint64(lay.get("setentry.key", 0)), place, size)
        found.sample[rows, : 2 * SAMPLE] = np.where(hashes != _NO_HASH, keys, _0)

    def _deque(self, objects: U64, items: Ints, rows: NDArray[np.intp], found: Containers) -> None:
        lay, v = self.ctx.runtime.layout, self.ctx.vectors
        length = lay.get("const.BLOCKLEN", 64)
        index = v.field(objects, "dequeobject.leftindex").astype(np.int64)
        index = np.where((index >= 0) & (index < length), index, length)
        data = np.uint64(lay["deque_block.data"])
        left = v.field(objects, "dequeobject.leftblock") + data
        begin = left + index.astype(np.uint64) * _8
        there = np.minimum(items, length - index)
        found.oldest[rows] = self._at(begin, _first(there, OLDEST), 8)
        found.sample[rows, :SAMPLE] = self._at(begin, _spread(there, SAMPLE), 8)
        # The newest ones, where they lie in another block.
        last = v.field(objects, "dequeobject.rightindex").astype(np.int64) + 1
        last = np.where((last > 0) & (last <= length) & (items > 2 * length), last, 0)
        right = v.field(objects, "dequeobject.rightblock") + data
        found.sample[rows, SAMPLE:] = self._at(right, _spread(last, SAMPLE), 8)
        found.limit[rows] = v.field(objects, "dequeobject.maxlen").astype(np.int64)

    def _at(self, table: U64, place: Ints, stride: int) -> U64:
        """Words of tables at ``place`` (a row each, -1 for none) in steps of ``stride`` bytes."""
        where = table[:, None] + np.maximum(place, 0).astype(np.uint64) * np.uint64(stride)
        where = np.where((place >= 0) & (table[:, None] > np.uint64(4096)), where, _0)
        return self.ctx.vectors.words(where.reshape(-1)).reshape(place.shape)


def _spread(count: Ints, number: int) -> Ints:
    """``number`` places spread over 0 to ``count``, -1 behind the last."""
    steps = np.arange(number)
    far = (count[:, None] * (2 * steps + 1)[None, :]) // (2 * number)
    near = np.where(steps[None, :] < count[:, None], steps[None, :], -1)
    places: Ints = np.where(count[:, None] > number, far, near)
    return places


def _first(count: Ints, number: int) -> Ints:
    steps = np.arange(number)[None, :]
    places: Ints = np.where(steps < count[:, None], steps, -1)
    return places


def _leading(rows: U64) -> U64:
    """The first OLDEST addresses of each row that are not 0."""
    order = np.argsort(rows == 0, axis=1, kind="stable")[:, :OLDEST]
    leading: U64 = np.take_along_axis(rows, order, axis=1)
    return leading


def _measure(ctx: Context, census: HeapCensus, found: Containers) -> None:
    """Fill in ``each``: the sampled items, and what only they refer to, step by step."""
    shape = found.sample.shape
    owner = np.repeat(np.arange(shape[0]), shape[1])
    objects = found.sample.reshape(-1)
    there = objects != 0
    mappings = np.array([bool(int(census.types.flags[k]) & _DICT) for k in found.kind.tolist()], np.bool_)
    values = (found.sample[:, :SAMPLE] != 0).sum(axis=1)
    number = np.where(mappings, values, (found.sample != 0).sum(axis=1))
    objects, owner = objects[there], owner[there]
    counts = ctx.vectors.references(objects)
    keep = (counts > 0) & (counts <= _MOST_REFERENCES)
    objects, owner = _once(objects[keep], owner[keep])
    total = np.zeros(len(found))
    sizer, referents = Sizer(ctx, census.types), Referents(ctx)
    for _ in range(_DEPTH):
        if not len(objects) or len(objects) > _MOST_KEPT:
            break
        total += np.bincount(owner, _sizes(ctx, census, sizer, objects), len(found))
        source, target = referents.of(objects)
        alone = ctx.vectors.references(target) == 1
        objects, owner = _once(target[alone], owner[source[alone]])
    found.each = total / np.maximum(number, 1)


def _once(objects: U64, owner: NDArray[np.intp]) -> tuple[U64, NDArray[np.intp]]:
    distinct, first = np.unique(objects, return_index=True)
    return distinct, owner[first]


def kinds_of(ctx: Context, census: HeapCensus, objects: U64) -> NDArray[np.int32]:
    """Number of the type of each object, -1 for what is none or of a type that the census has not met."""
    known = census.types.address[: len(census.first) - 1]
    words = ctx.vectors.types(objects)
    if not len(known):
        return np.full(len(objects), -1, np.int32)
    order = np.argsort(known)
    at = np.minimum(np.searchsorted(known[order], words), len(known) - 1)
    return np.where((known[order][at] == words) & (objects != 0), order[at], -1).astype(np.int32)


def _sizes(ctx: Context, census: HeapCensus, sizer: Sizer, objects: U64) -> NDArray[np.float64]:
    """Bytes of each object with what it owns; 0 for what is none."""
    kinds = kinds_of(ctx, census, objects)
    out = np.zeros(len(objects))
    for kind in np.unique(kinds[kinds >= 0]).tolist():
        rows = np.flatnonzero(kinds == kind)
        own, owned = sizer.of(kind, objects[rows])
        out[rows] = np.where(own < NO_SIZE, own + owned, 0)
    return out
