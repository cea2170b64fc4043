"""Which channels, locks and lists each goroutine waits on, from the runtime's own notes of it.

A goroutine that waits has a ``sudog`` for each channel, in ``g.waiting``; for a lock or a condition from 1.26
on, too. Before, only its own stack leads to that (semacquire1 keeps it), or the list that it is in. A
waiter that somebody
has just taken out of its queue, to wake it, is not waiting any more, though its status says so: only what is
still in its queue counts here (runtime/chan.go, sema.go, select.go).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, Mask
from diagtool.runtimes.golang.model import GoRuntime, Status

__all__ = ["CHANNEL", "NOBODY", "SYNC", "Waiting", "top_words", "waits_of"]

_Index = NDArray[np.int64]

CHANNEL = frozenset({"chan receive", "chan send", "select"})
#: What nobody can wake, whatever they do.
NOBODY = frozenset({"chan receive (nil chan)", "chan send (nil chan)", "select (no cases)"})
SYNC = frozenset(
    {"sync.Cond.Wait", "sync.Mutex.Lock", "sync.RWMutex.RLock", "sync.RWMutex.Lock", "sync.WaitGroup.Wait"}
)

_WINDOW = 96  # words of a stack in which semacquire1 and notifyListWait keep theirs
_MOST_CASES = 1 << 16  # of a select (reflect.Select)
_MOST_LISTED = 1 << 20  # waiters in lists of conditions
_AT_ONCE = 1 << 14  # stacks looked at together


@dataclass(slots=True)
class Waiting:
    """Who waits on what: ``row[i]`` (of the goroutines) on ``thing[i]``, by ``sudog[i]`` (0: not known).

    Things are addresses: of an hchan; of the semaphore in a lock; of a notifyList. ``judged``: the goroutines
    whose things are all here, who wait on these and nothing else. ``hidden``: addresses of words in sudogs
    that lead to the things; others must lead there, too.
    """

    row: _Index
    thing: U64
    sudog: U64
    judged: Mask
    hidden: U64 = field(default_factory=lambda: np.zeros(0, np.uint64))


def waits_of(runtime: GoRuntime, waits: Sequence[str]) -> Waiting:
    """What the goroutines wait on; ``waits`` has a word for each, as ``golang.waits`` says it."""
    return _Reader(runtime, waits).read()


def top_words(runtime: GoRuntime, rows: _Index) -> tuple[U64, Mask]:
    """(n x words at the inner end of each stack, which of them are there)."""
    g = runtime.goroutines
    steps = np.arange(_WINDOW, dtype=np.uint64) * np.uint64(8)
    addresses = g.sp[rows][:, None] + steps
    inside = addresses + np.uint64(8) <= g.hi[rows][:, None]
    words = np.zeros(addresses.shape, np.uint64)
    words[inside], ok = runtime.memory.load(addresses[inside])
    inside[inside] = ok
    return words, inside


class _Reader:
    def __init__(self, runtime: GoRuntime, waits: Sequence[str]) -> None:
        self.runtime = runtime
        self.memory = runtime.memory
        self.all = runtime.goroutines
        kinds = {w: 1 if w in CHANNEL else 2 if w in NOBODY else 3 if w in SYNC else 0 for w in set(waits)}
        self.kind = np.array([kinds[w] for w in waits], np.int8) if len(waits) else np.zeros(0, np.int8)
        self.condition = np.array([w == "sync.Cond.Wait" for w in waits], np.bool_)
        self.select = np.array([w == "select" for w in waits], np.bool_)
        asleep = (self.all.status == Status.WAITING) | (self.all.status == Status.LEAKED)
        self.kind[~asleep | self.all.scan] = 0
        self.hidden: list[U64] = []
        self.noted = runtime.minor >= 26  # locks are noted in g.waiting, too

    def read(self) -> Waiting:
        judged = self.kind == 2
        parts = []
        for found, sound in (self._channels(), self._semaphores(), self._conditions()):
            parts.append(found)
            judged |= sound
        row = np.concatenate([p[0] for p in parts])
        thing = np.concatenate([p[1] for p in parts])
        sudog = np.concatenate([p[2] for p in parts])
        hidden = np.unique(np.concatenate([np.zeros(0, np.uint64), *self.hidden]))
        return Waiting(row, thing, sudog, judged, hidden)

    # -- channels ---------------------------------------------------------------------------------------

    def _channels(self) -> tuple[tuple[_Index, U64, U64], Mask]:
        rows = np.flatnonzero((self.kind == 1) & (self.all.waiting != 0))
        row, sudog, broken = self._chains(rows)
        good = np.zeros(len(self.all), np.bool_)
        good[rows] = True
        good[broken] = False
        channel, ok = self._pointer(sudog, "c")
        owner, fine = self.runtime.load(sudog, "sudog", "g")
        ok &= fine & (owner == self.all.address[row]) & (channel != 0)
        ok[ok] &= self._queued(sudog[ok], channel[ok])
        good[row[~ok]] = False
        chosen = self.runtime.load(self.all.address[rows], "g", "selectDone", "<u4")[0]
        parking = self.runtime.load(self.all.address[rows], "g", "parkingOnChan", "u1")[0]
        good[rows[((chosen != 0) & self.select[rows]) | (parking != 0)]] = False
        self._hide(sudog, "c")
        return (row[ok], channel[ok], sudog[ok]), good

    # All sudogs of each goroutine, along waitlink; and those goroutines whose chain has no end.
    def _chains(self, rows: _Index) -> tuple[_Index, U64, _Index]:
        row, sudog = rows, self.all.waiting[rows]
        rows_found, found = [rows[:0]], [sudog[:0]]
        broken = [rows[:0]]
        for _ in range(_MOST_CASES):
            if not len(row):
                break
            rows_found.append(row)
            found.append(sudog)
            following, ok = self.runtime.load(sudog, "sudog", "waitlink")
            broken.append(row[~ok])
            row, sudog = row[ok & (following != 0)], following[ok & (following != 0)]
        else:
            broken.append(row)
        return np.concatenate(rows_found), np.concatenate(found), np.concatenate(broken)

    # Whether a sudog is in one of its channel's queues, with nothing there that would have woken it.
    def _queued(self, sudog: U64, channel: U64) -> Mask:
        load = self.runtime.load
        receivers, ok = load(channel, "hchan", "recvq.first")
        senders, fine = load(channel, "hchan", "sendq.first")
        before, there = load(sudog, "sudog", "prev")
        following = load(before, "sudog", "next")[0]
        queued = (receivers == sudog) | (senders == sudog) | ((before != 0) & (following == sudog))
        closed = load(channel, "hchan", "closed", "<u4")[0]
        lock = load(channel, "hchan", "lock")[0]
        out: Mask = ok & fine & there & queued & (closed == 0) & (lock == 0)
        return out

    # A field that the runtime empties while it looks for leaks itself; its value stays beside it (1.26).
    def _pointer(self, sudog: U64, name: str) -> tuple[U64, Mask]:
        found, ok = self.runtime.load(sudog, "sudog", name)
        if self.noted:
            other, _ = self.runtime.memory.load(sudog + np.uint64(self.runtime.o("sudog", name) + 8))
            found = np.where(found == 0, other, found)
        return found, ok

    def _hide(self, sudog: U64, name: str) -> None:
        self.hidden.append(sudog + np.uint64(self.runtime.o("sudog", name)))
        if self.noted:  # the same address once more, as a number
            self.hidden.append(sudog + np.uint64(self.runtime.o("sudog", name) + 8))

    # -- locks ------------------------------------------------------------------------------------------

    def _semaphores(self) -> tuple[tuple[_Index, U64, U64], Mask]:
        rows = np.flatnonzero((self.kind == 3) & ~self.condition)
        good = np.zeros(len(self.all), np.bool_)
        if self.noted:
            row, sudog = rows, self.all.waiting[rows]
        else:
            row, sudog = self._on_stack(rows)
        address, ok = self._pointer(sudog, "elem")
        owner, fine = self.runtime.load(sudog, "sudog", "g")
        ok &= fine & (owner == self.all.address[row]) & (address != 0) & (sudog != 0)
        if self.noted:
            ok &= self.all.waiting[row] == sudog
        row, address, sudog = row[ok], address[ok], sudog[ok]
        good[row] = True
        self._hide(sudog, "elem")
        return (row, address, sudog), good

    # Words near the top of the stacks that are sudogs of their own goroutine.
    def _on_stack(self, rows: _Index) -> tuple[_Index, U64]:
        found_rows, found = [rows[:0]], [np.zeros(0, np.uint64)]
        for first in range(0, len(rows), _AT_ONCE):
            part = rows[first : first + _AT_ONCE]
            words, inside = top_words(self.runtime, part)
            near = inside & (words >= np.uint64(1 << 16)) & (words % 8 == 0) & (words >> np.uint64(47) == 0)
            which, place = np.nonzero(near)
            word = words[which, place]
            owner, ok = self.runtime.look(word, "sudog", "g")
            channel, _ = self.runtime.look(word, "sudog", "c")
            lock, fine = self.runtime.look(word, "sudog", "elem")
            ok &= fine & (owner == self.all.address[part[which]]) & (channel == 0) & (lock != 0)
            pairs = np.unique(np.stack([part[which[ok]].astype(np.uint64), word[ok]], axis=1), axis=0)
            found_rows.append(pairs[:, 0].astype(np.int64))
            found.append(pairs[:, 1])
        return np.concatenate(found_rows), np.concatenate(found)

    # -- conditions -------------------------------------------------------------------------------------

    def _conditions(self) -> tuple[tuple[_Index, U64, U64], Mask]:
        rows = np.flatnonzero((self.kind == 3) & self.condition)
        good = np.zeros(len(self.all), np.bool_)
        if self.noted:
            sudog = self.all.waiting[rows]
            lists = self._pointer(sudog, "elem")[0]
        else:
            lists = self._lists_on_stacks(rows)
        listed, lists = self._listed(np.unique(lists[lists != 0]))
        owner, ok = self.runtime.load(listed, "sudog", "g")
        order = np.argsort(self.all.address)
        place = np.minimum(np.searchsorted(self.all.address[order], owner), max(len(order) - 1, 0))
        row = order[place] if len(order) else place
        ok &= (self.all.address[row] == owner) & np.isin(row, rows) if len(order) else False
        row, listed, lists = row[ok], listed[ok], lists[ok]
        good[row] = True
        self._hide(listed, "elem")
        return (row, lists, listed), good

    def _lists_on_stacks(self, rows: _Index) -> U64:
        found = [np.zeros(0, np.uint64)]
        for first in range(0, len(rows), _AT_ONCE):
            words, inside = top_words(self.runtime, rows[first : first + _AT_ONCE])
            near = inside & (words >= np.uint64(1 << 16)) & (words % 8 == 0) & (words >> np.uint64(47) == 0)
            word = np.unique(words[near])
            head, ok = self.runtime.look(word, "notifyList", "head")
            tail, fine = self.runtime.look(word, "notifyList", "tail")
            end, _ = self.runtime.look(tail, "sudog", "next")
            owner, there = self.runtime.look(head, "sudog", "g")
            ok &= fine & there & (head != 0) & (tail != 0) & (end == 0) & np.isin(owner, self.all.address)
            found.append(word[ok])
        return np.concatenate(found)

    # The sudogs in each of the lists, and the list of each; of lists that are just being changed nothing.
    def _listed(self, lists: U64) -> tuple[U64, U64]:
        load = self.runtime.load
        head, ok = load(lists, "notifyList", "head")
        tail, fine = load(lists, "notifyList", "tail")
        lock = load(lists, "notifyList", "lock")[0]
        notified = load(lists, "notifyList", "notify", "<u4")[0]
        ok &= fine & (lock == 0)
        sudogs: list[int] = []
        owners: list[int] = []
        link, ticket = self.runtime.o("sudog", "next"), self.runtime.o("sudog", "ticket")
        columns = zip(*(c[ok].tolist() for c in (lists, head, tail, notified)), strict=True)
        for address, first, last, done in columns:
            chain: list[int] = []
            seen: set[int] = set()
            at = first
            while at and at not in seen and len(sudogs) + len(chain) < _MOST_LISTED:
                data = self.memory.try_read(at, self.runtime.size("sudog"))
                if data is None:
                    break
                seen.add(at)
                number = int.from_bytes(data[ticket : ticket + 4], "little")
                if (number - done) & 0x80000000 == 0:  # not notified yet
                    chain.append(at)
                following = int.from_bytes(data[link : link + 8], "little")
                if not following and at == last:
                    sudogs += chain
                    owners += [address] * len(chain)
                at = following
        return np.array(sudogs, np.uint64), np.array(owners, np.uint64)
