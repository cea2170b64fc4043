"""The things that goroutines wait on, in words: channels, locks, wait groups, selects, timers,
descriptors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.golang.liveness.waiting import Waiting, top_words
from diagtool.runtimes.golang.model import GoRuntime
from diagtool.runtimes.golang.types import TypeNames
from diagtool.snapshot.model import Thing

__all__ = ["things_of"]

_Index = NDArray[np.int64]

_MOST_THINGS = 500_000
_MOST_CASES = 64  # of one select that are listed
_UNKNOWN = "Go does not note who has it"
_READERS = 1 << 30  # sync.rwmutexMaxReaders: taken off readerCount while a writer waits or writes
_BUBBLE = 0x80000000  # flag beside the number of waiters in a WaitGroup, from 1.25 on


def things_of(
    runtime: GoRuntime, waits: Sequence[str], waiting: Waiting, now: int
) -> tuple[list[Thing], NDArray[np.int32]]:
    """(things, and for each goroutine the number of the one it waits on, -1: none is known).

    ``waits``: what each waits on, in words. ``now``: nanotime() at the capture, 0: not known.
    """
    return _Things(runtime, waits, waiting, now).read()


class _Things:
    def __init__(self, runtime: GoRuntime, waits: Sequence[str], waiting: Waiting, now: int) -> None:
        self.runtime = runtime
        self.waits = waits
        self.waiting = waiting
        self.now = now
        self.things: list[Thing] = []
        self.number = np.full(len(runtime.goroutines), -1, np.int32)
        self.types = TypeNames(runtime)

    def read(self) -> tuple[list[Thing], NDArray[np.int32]]:
        names = np.array(self.waits, object) if len(self.waits) else np.zeros(0, object)
        kind = names[self.waiting.row]
        receive_or_send = (kind == "chan receive") | (kind == "chan send")
        self._channels(receive_or_send, kind == "select")
        for wait, make in self._locks().items():
            self._each(kind == wait, make)
        for wait, text in (
            ("chan receive (nil chan)", "a channel that is nil: nobody can ever send"),
            ("chan send (nil chan)", "a channel that is nil: nobody can ever receive"),
            ("select (no cases)", "no cases: it waits for ever"),
        ):
            rows = np.flatnonzero(names == wait)
            if len(rows):
                what = "select" if wait.startswith("select") else "chan (nil)"
                self.number[rows] = self._add(Thing(0, what, text))
        self._sleeps(np.flatnonzero(names == "sleep"))
        self._polled(np.flatnonzero(names == "IO wait"))
        return self.things, self.number

    def _add(self, thing: Thing) -> int:
        self.things.append(thing)
        return len(self.things) - 1

    # -- channels ---------------------------------------------------------------------------------------

    def _channels(self, alone: NDArray[np.bool_], select: NDArray[np.bool_]) -> None:
        w = self.waiting
        some = alone | select
        distinct, inverse = np.unique(w.thing[some], return_inverse=True)
        distinct, facts = distinct[:_MOST_THINGS], self._facts(distinct[:_MOST_THINGS])
        waiters = np.bincount(inverse, minlength=len(distinct))
        place = np.full(len(w.row), -1, np.int64)
        place[some] = np.where(inverse < len(distinct), inverse, -1)
        rows = np.flatnonzero(alone & (place >= 0))
        used = np.unique(place[rows])
        number = np.full(len(distinct), -1, np.int32)
        for at in used.tolist():
            number[at] = self._add(self._channel(facts[at], int(waiters[at])))
        self.number[w.row[rows]] = number[place[rows]]
        self._selects(np.flatnonzero(select & (place >= 0)), place, facts, waiters)

    # (address, type, length, capacity, closed, has receivers, has senders, when its timer fires)
    def _facts(self, channels: U64) -> list[tuple[int, str, int, int, bool, bool, bool, float | None]]:
        def column(name: str, dtype: str = "<u8") -> list[int]:
            values: list[int] = self.runtime.load(channels, "hchan", name, dtype)[0].tolist()
            return values

        timers = column("timer") if self.runtime.has("hchan", "timer") else [0] * len(channels)
        return [
            (
                address,
                self.types.of(kind) or "?",
                length,
                room,
                closed != 0,
                first != 0,
                last != 0,
                self._due(timer),
            )
            for address, kind, length, room, closed, first, last, timer in zip(
                channels.tolist(),
                column("elemtype"),
                column("qcount"),
                column("dataqsiz"),
                column("closed", "<u4"),
                column("recvq.first"),
                column("sendq.first"),
                timers,
                strict=True,
            )
        ]

    def _due(self, timer: int) -> float | None:
        when = self.runtime.word(timer, "timer", "when") if timer else 0
        return max(0.0, (when - self.now) / 1e9) if when and self.now and when < 1 << 62 else None

    def _channel(
        self, facts: tuple[int, str, int, int, bool, bool, bool, float | None], waiters: int
    ) -> Thing:
        address, kind, length, room, closed, receivers, senders, due = facts
        state: dict[str, object] = {"len": length, "cap": room, "closed": closed}
        state |= {
            "receivers": waiters if receivers else 0,
            "senders": waiters if senders and not receivers else 0,
        }
        words = [f"{length:,} of {room:,} in it" if room else "unbuffered"]
        if closed:
            words.append("closed")
        who = "receiver" if receivers else "sender" if senders else "waiter"
        words.append(f"{waiters:,} {who}{'s' if waiters != 1 else ''} waiting")
        if due is not None:
            state["time_left"] = round(due, 3)
            words.append(f"a timer fires in {due:,.1f} s")
        return Thing(address, f"chan {kind}", ", ".join(words), state)

    def _selects(
        self,
        cases: _Index,
        place: _Index,
        facts: list[tuple[int, str, int, int, bool, bool, bool, float | None]],
        waiters: NDArray[np.int64],
    ) -> None:
        order = cases[np.lexsort((place[cases], self.waiting.row[cases]))]
        row = self.waiting.row[order]
        cuts = np.flatnonzero(np.diff(row)) + 1
        known: dict[tuple[int, ...], int] = {}
        for part in np.split(order, cuts):
            if not len(part):
                continue
            channels = tuple(place[part].tolist())
            number = known.get(channels)
            if number is None:
                listed = [facts[i] for i in channels[:_MOST_CASES]]
                texts = [f"{'receive from' if f[5] else 'send to'} chan {f[1]}" for f in listed]
                state = {
                    "cases": [
                        {
                            "op": "receive" if f[5] else "send",
                            "type": f"chan {f[1]}",
                            "address": f"{f[0]:#x}",
                            "len": f[2],
                            "cap": f[3],
                        }
                        for f in listed
                    ]
                }
                more = len(channels) - len(listed)
                detail = f"{len(channels)} case{'s' if len(channels) != 1 else ''}: " + ", ".join(texts[:6])
                detail += f" and {more + len(texts) - 6} more" if more + len(texts) > 6 else ""
                number = known[channels] = self._add(Thing(0, "select", detail, state))
            self.number[int(self.waiting.row[part[0]])] = number

    # -- locks ------------------------------------------------------------------------------------------

    def _locks(self) -> dict[str, Callable[[int, int], Thing]]:
        return {
            "sync.Mutex.Lock": self._mutex,
            "sync.RWMutex.RLock": lambda a, n: self._rwmutex(a, n, "readerSem"),
            "sync.RWMutex.Lock": lambda a, n: self._rwmutex(a, n, "writerSem"),
            "sync.WaitGroup.Wait": self._group,
            "sync.Cond.Wait": self._condition,
        }

    def _each(self, some: NDArray[np.bool_], make: Callable[[int, int], Thing]) -> None:
        rows = self.waiting.row[some]
        distinct, inverse, counts = np.unique(
            self.waiting.thing[some], return_inverse=True, return_counts=True
        )
        number = np.full(len(distinct), -1, np.int32)
        pairs = zip(distinct.tolist()[:_MOST_THINGS], counts.tolist(), strict=False)
        for at, (address, count) in enumerate(pairs):
            number[at] = self._add(make(address, count))
        self.number[rows] = number[inverse]

    def _u32(self, address: int) -> int:
        data = self.runtime.memory.try_read(address, 4) if address > 0 else None
        return int.from_bytes(data, "little") if data else 0

    def _i32(self, address: int) -> int:
        value = self._u32(address)
        return value - (1 << 32) if value >> 31 else value

    def _mutex(self, semaphore: int, count: int) -> Thing:
        inner = "mu." if self.runtime.has("sync.Mutex", "mu.sema") else ""
        address = semaphore - self.runtime.o("sync.Mutex", f"{inner}sema")
        word = self._u32(address + self.runtime.o("sync.Mutex", f"{inner}state"))
        locked = bool(word & 1)
        state = {"locked": locked, "waiters": word >> 3, "starving": bool(word & 4)}
        text = f"{'locked' if locked else 'not locked'}, {count:,} waiting; {_UNKNOWN}"
        return Thing(address, "sync.Mutex", text, state)

    def _rwmutex(self, semaphore: int, count: int, which: str) -> Thing:
        address = semaphore - self.runtime.o("sync.RWMutex", which)
        readers = self._i32(address + self.runtime.o("sync.RWMutex", "readerCount"))
        left = self._i32(address + self.runtime.o("sync.RWMutex", "readerWait"))
        writer = readers < 0
        readers += _READERS if writer else 0
        state = {"readers": readers, "writer_waits": writer, "readers_before_writer": left}
        text = f"{readers:,} readers hold or wait for it"
        if writer:
            text += f", a writer has it or waits for {left:,} readers" if left else ", a writer has it"
        return Thing(address, "sync.RWMutex", f"{text}; {count:,} waiting; {_UNKNOWN}", state)

    def _group(self, semaphore: int, count: int) -> Thing:
        new = self.runtime.has("sync.WaitGroup", "sema")
        address = semaphore - (self.runtime.o("sync.WaitGroup", "sema") if new else 8)
        counter, waiters = self._i32(address + 4), self._u32(address) & ~_BUBBLE
        text = f"{counter:,} not done, {waiters:,} waiting"
        return Thing(address, "sync.WaitGroup", text, {"counter": counter, "waiters": waiters})

    def _condition(self, notify: int, count: int) -> Thing:
        address = notify - self.runtime.o("sync.Cond", "notify")
        return Thing(address, "sync.Cond", f"{count:,} waiting for a signal", {"waiters": count})

    # -- timers and descriptors -------------------------------------------------------------------------

    def _sleeps(self, rows: _Index) -> None:
        if not len(rows) or not self.now:
            return
        g = self.runtime.goroutines.address[rows]
        if self.runtime.has("g", "sleepWhen"):
            when = self.runtime.load(g, "g", "sleepWhen", "<i8")[0]
        else:
            timer, ok = self.runtime.load(g, "g", "timer")
            when = self.runtime.load(timer, "timer", "when", "<i8")[0]
            later = self.runtime.load(timer, "timer", "nextwhen", "<i8")[0]
            when = np.where(ok & (when == 0), later, when)
        left = (when - self.now) / 1e9
        good = (when > 0) & (left > -1e6) & (left < 1e9)
        for row, seconds in zip(rows[good].tolist(), left[good].tolist(), strict=True):
            text = f"fires in {seconds:,.1f} s" if seconds > 0 else "is due"
            state = {"time_left": round(max(seconds, 0.0), 3)}
            self.number[row] = self._add(Thing(0, "time.Timer", text, state))

    # netpollblock keeps the pollDesc on the stack; that knows its goroutine.
    def _polled(self, rows: _Index) -> None:
        words, inside = top_words(self.runtime, rows)
        memory = self.runtime.memory
        places = words + np.uint64(self.runtime.o("pollDesc", "rg"))
        inside &= (words % 8 == 0) & (words > 1 << 16) & (words >> np.uint64(47) == 0)
        inside[inside] = memory.mapped(places[inside], 16)
        which, at = np.nonzero(inside)
        word = words[which, at]
        own = self.runtime.goroutines.address[rows[which]]
        reads = self.runtime.load(word, "pollDesc", "rg")[0] == own
        writes = self.runtime.load(word, "pollDesc", "wg")[0] == own
        some = np.flatnonzero(reads | writes)
        fds = self.runtime.load(word[some], "pollDesc", "fd")[0]
        files = {d.number: d for d in self.runtime.capture.descriptors}
        for place, fd in zip(some.tolist(), fds.tolist(), strict=True):
            row = int(rows[which[place]])
            if self.number[row] >= 0 or fd >> 31:
                continue
            file = files.get(fd)
            socket = file.socket if file is not None else None
            state: dict[str, object] = {"fd": fd, "op": "read" if reads[place] else "write"}
            if socket is not None:
                state |= {"local": socket.local, "peer": socket.remote, "state": socket.state}
            what = f": {file.text}" if file is not None else ""
            text = f"to {'read' if reads[place] else 'write'}, descriptor {fd}{what}"
            self.number[row] = self._add(Thing(int(word[place]), "net fd", text, state))
