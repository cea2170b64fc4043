"""The interpreter's own hash tables (``_Py_hashtable_t``), all entries at once.

A table is an array of buckets, each the head of a list of entries (Include/internal/pycore_hashtable.h, alike
in 3.9 to 3.15):

    buckets[i] ─▶ next, key_hash, key, value ─▶ …

Half of the buckets are used at most, so lists are short: all of them are followed together, one step at a
time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, AddressSpace
from diagtool.runtimes.cpython.context import Context

__all__ = ["Damaged", "entries", "looks_like_table"]

# A table is shrunk when less than a tenth of its buckets are in use (HASHTABLE_LOW, Python/hashtable.c).
_BUCKETS_AN_ENTRY = 32
_LEAST_BUCKETS = 1 << 10
_MAX_STEPS = 4096  # the longest list that is followed
_BATCH = 1 << 22  # buckets looked at together


class Damaged(Exception):
    """A table makes no sense; ``str()`` says how."""


def looks_like_table(ctx: Context, address: int) -> bool:
    """Whether there may be a table at an address: its numbers fit each other, and its buckets are there."""
    memory, lay = ctx.capture.memory, ctx.runtime.layout
    if not address or address % 8 or memory.try_read(address, lay["sizeof._Py_hashtable_t"]) is None:
        return False
    count = memory.u64(address + lay["_Py_hashtable_t.nentries"])
    buckets = memory.u64(address + lay["_Py_hashtable_t.nbuckets"])
    first = memory.u64(address + lay["_Py_hashtable_t.buckets"])
    if not 0 < buckets <= _LEAST_BUCKETS + _BUCKETS_AN_ENTRY * count or buckets & buckets - 1:
        return False
    # What is there bounds the time that a wild number could cost.
    if count > 2 * buckets or count * lay["sizeof._Py_hashtable_entry_t"] > memory.size:
        return False
    return first % 8 == 0 and memory.try_read(first + 8 * (buckets - 1), 8) is not None


def entries(ctx: Context, address: int) -> tuple[U64, U64]:
    """(keys, values) of a table, in no order; of one in mid-change what makes sense. Raises Damaged."""
    memory, lay = ctx.capture.memory, ctx.runtime.layout
    if not looks_like_table(ctx, address):
        raise Damaged(f"what lies at {address:#x} is no table")
    count = memory.u64(address + lay["_Py_hashtable_t.nentries"])
    buckets = memory.u64(address + lay["_Py_hashtable_t.nbuckets"])
    first = memory.u64(address + lay["_Py_hashtable_t.buckets"])
    room = count + count // 8 + 64  # more entries are a ring
    parts: list[NDArray[np.uint64]] = [np.zeros((0, 2), np.uint64)]
    for at in range(0, buckets, _BATCH):
        number = min(_BATCH, buckets - at)
        heads = memory.load(np.arange(number, dtype=np.uint64) * np.uint64(8) + np.uint64(first + 8 * at))[0]
        parts.append(_lists(memory, lay["sizeof._Py_hashtable_entry_t"], _offsets(ctx), heads, room))
        room -= len(parts[-1])
        if room < 0:
            raise Damaged(f"the table at {address:#x} has more entries than the {count:,} it says")
    found = np.concatenate(parts)
    return found[:, 0], found[:, 1]


def _offsets(ctx: Context) -> tuple[int, int, int]:
    lay = ctx.runtime.layout
    names = ("_Py_slist_item", "key", "value")
    following, key, value = (lay[f"_Py_hashtable_entry_t.{name}"] for name in names)
    return following, key, value


def _lists(
    memory: AddressSpace, size: int, offsets: tuple[int, int, int], heads: U64, room: int
) -> NDArray[np.uint64]:
    """(key, value) of each entry in the lists that begin at ``heads``, about ``room`` of them at most."""
    following, key, value = (offset // 8 for offset in offsets)
    out: list[NDArray[np.uint64]] = [np.zeros((0, 2), np.uint64)]
    at = heads[heads != 0]
    for _ in range(_MAX_STEPS):
        if not len(at) or room < 0:
            break
        data, ok = memory.load_block(at, size)
        words = data.view("<u8")[ok]
        out.append(words[:, (key, value)])
        room -= len(words)
        at = words[:, following]
        at = at[at != 0]
    return np.concatenate(out)
