"""What the goroutines of a text profile wait on: their frames of the runtime are addresses without names.

All that wait have the same innermost address, in gopark. Between it and the first frame with a name are two
addresses for operations on one channel (chanrecv in chanrecv1 or chanrecv2, chansend in chansend1), and one
for a select (selectgo) or ``select {}`` (block). Which is which their order tells, which is that of the
source in all versions (1.19 to 1.27): chansend1, chansend, chanrecv1, chanrecv2; block, selectgo; in both
channel operations the wait for a nil channel comes first. Of one operation alone the distance tells between
the two addresses, which hangs on the version only (amd64). Where nothing tells it, nothing is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from diagtool.golang.waits import wait_of_frames
from diagtool.ingest.goroutines.counted import Entry

__all__ = ["reasons"]

#: Bytes from the call in chansend1 to where chansend parks, of 1.19 and 1.21 to 1.27; and of the receives.
_SENDS = frozenset((0x44F, 0x3AE, 0x396, 0x3D4, 0x405))
_RECEIVES = frozenset(
    (0x503, 0x4C3, 0x3FB, 0x3DB, 0x3ED, 0x3CD, 0x44A, 0x42A, 0x473, 0x453, 0x4A1, 0x481, 0x4DC, 0x4BC)
)
_NEIGHBOURS = 0x100  # bytes between chanrecv1 and chanrecv2; chansend, which is far longer, is before both


def reasons(entries: Sequence[Entry]) -> list[str]:
    """The wait of each entry, "waiting" where only that is certain, "" where its frames must tell."""
    depth = [_hidden(entry) for entry in entries]
    first = Counter(e.addresses[0] for e, hidden in zip(entries, depth, strict=True) if hidden in (2, 3))
    parked = max(first, key=lambda address: first[address]) if first else 0
    waiting = [
        entry if hidden and entry.addresses[0] == parked else None
        for entry, hidden in zip(entries, depth, strict=True)
    ]
    silent = [
        (entry.addresses, hidden)
        for entry, hidden in zip(waiting, depth, strict=True)
        if entry is not None and wait_of_frames(f.function for f in entry.frames) is None
    ]
    channels = _channels({(a[2], a[1]) for a, hidden in silent if hidden == 3})
    selects = _selects({a[1] for a, hidden in silent if hidden == 2})
    told = {addresses: channels[addresses[2], addresses[1]] for addresses, hidden in silent if hidden == 3}
    told |= {addresses: selects[addresses[1]] for addresses, hidden in silent if hidden == 2}
    return ["" if e is None else told.get(e.addresses, "waiting") for e in waiting]


def _hidden(entry: Entry) -> int:
    """How many addresses there are before the first with a name; a line has the one before the return."""
    for at, address in enumerate(entry.addresses):
        if entry.frames and address in (entry.first, entry.first + 1):
            return at
    return 0


def _channels(calls: set[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """By (where chanrecv1 or the like calls, where that calls gopark)."""
    callers = sorted({caller for caller, _ in calls})
    words = [""] * len(callers)
    if len(callers) == 2:
        near = callers[1] - callers[0] < _NEIGHBOURS
        words = ["chan receive", "chan receive"] if near else ["chan send", "chan receive"]
    elif len(callers) == 3 and callers[2] - callers[1] < _NEIGHBOURS:
        words = ["chan send", "chan receive", "chan receive"]
    word = dict(zip(callers, words, strict=True))
    for caller, at in sorted(calls):
        if not word[caller] and at - caller in _SENDS | _RECEIVES:
            word[caller] = "chan send" if at - caller in _SENDS else "chan receive"
    out = {}
    for caller, at in calls:
        within = {a for c, a in calls if word[c] == word[caller]}
        nil = len(within) == 2 and at == min(within)
        out[caller, at] = word[caller] + " (nil chan)" * nil if word[caller] else "waiting"
    return out


def _selects(calls: set[int]) -> dict[int, str]:
    if len(calls) > 2:
        return dict.fromkeys(calls, "waiting")
    return {at: "select (no cases)" if at < max(calls) else "select" for at in calls}
