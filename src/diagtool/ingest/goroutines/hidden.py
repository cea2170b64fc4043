"""What the goroutines of a text profile wait on: their frames of the runtime are addresses without names.

All that wait have the same innermost address, in gopark. Between it and the first frame with a name are two
addresses for operations on one channel (chanrecv in chanrecv1 or chanrecv2, chansend in chansend1), and one
for a select (selectgo) or ``select {}`` (block). Which is which their order tells, which is that of the
source in all versions (1.19 to 1.27): chansend1, chansend, chanrecv1, chanrecv2; block, selectgo. Where
that does not tell it, nothing is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from diagtool.ingest.goroutines.counted import Entry

__all__ = ["reasons"]

_NEIGHBOURS = 0x40  # bytes between chanrecv1 and chanrecv2; chansend, which is far longer, is before both


def reasons(entries: Sequence[Entry]) -> list[str]:
    """The wait of each entry, "waiting" where only that is certain, "" where its frames must tell."""
    depth = [_hidden(entry) for entry in entries]
    first = Counter(e.addresses[0] for e, d in zip(entries, depth, strict=True) if d in (2, 3))
    parked = max(first, key=lambda address: first[address]) if first else 0
    waiting = [bool(e.addresses) and e.addresses[0] == parked for e in entries]
    channels = sorted(
        {e.addresses[2] for e, d, w in zip(entries, depth, waiting, strict=True) if w and d == 3}
    )
    selects = sorted(
        {e.addresses[1] for e, d, w in zip(entries, depth, waiting, strict=True) if w and d == 2}
    )
    said = dict(zip(channels, _channels(channels), strict=True))
    out = []
    for entry, hidden, waits in zip(entries, depth, waiting, strict=True):
        if not waits:
            out.append("")
        elif hidden == 3:
            out.append(said[entry.addresses[2]])
        elif hidden == 2 and len(selects) <= 2:
            out.append("select" if entry.addresses[1] == selects[-1] else "select (no cases)")
        else:
            out.append("waiting")
    return out


def _hidden(entry: Entry) -> int:
    """How many addresses there are before the first with a name; a line has the one before the return."""
    for at, address in enumerate(entry.addresses):
        if entry.frames and address in (entry.first, entry.first + 1):
            return at
    return 0


def _channels(addresses: Sequence[int]) -> list[str]:
    unknown = ["waiting"] * len(addresses)
    if len(addresses) == 1:
        return unknown
    if len(addresses) == 2:
        near = addresses[1] - addresses[0] < _NEIGHBOURS
        return ["chan receive", "chan receive"] if near else ["chan send", "chan receive"]
    if len(addresses) == 3 and addresses[2] - addresses[1] < _NEIGHBOURS:
        return ["chan send", "chan receive", "chan receive"]
    return unknown
