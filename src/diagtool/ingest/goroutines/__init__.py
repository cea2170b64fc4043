"""Goroutine dumps as text: ``debug=2`` and ``debug=1`` of net/http/pprof, SIGQUIT, panics, race reports.

Alone or anywhere in logs, one or several in a file. The grammar is that of runtime/traceback.go of Go 1.19 to
1.27, and of older versions as far as dumps of theirs were seen.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from diagtool.capture.errors import BadEvidence

if TYPE_CHECKING:
    from diagtool.snapshot.model import Snapshot

__all__ = ["looks", "read"]

_LOOKS = re.compile(
    rb"goroutine \d{1,20} (?:gp=0x[0-9a-f]+ m=\S+ (?:mp=\S+ )?)?\[[a-zA-Z?]"
    rb"|(?:goroutine|goroutineleak) profile: total \d"
)
_RACE = re.compile(rb"WARNING: DATA RACE\r?\n")
_AGAIN = "Have it written again: curl HOST:PORT/debug/pprof/goroutine?debug=2, or kill -QUIT PID."


def looks(head: bytes) -> bool:
    """Whether part of a text has a goroutine, a profile of them as text, or a report of a data race."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        head = head.decode("utf-16", "replace").encode()
    return bool(_LOOKS.search(head) or _RACE.search(head))


def read(path: str) -> list[Snapshot]:
    """The dumps in a file, oldest first. Raises BadEvidence."""
    from diagtool.ingest.goroutines.dumps import snapshots
    from diagtool.ingest.goroutines.parser import Parser
    from diagtool.ingest.goroutines.text import chunks

    parser = Parser()
    with open(path, "rb") as file:  # noqa: PTH123
        for chunk in chunks(file):
            parser.feed(chunk)
    parser.close()
    found = snapshots(parser)
    if not found:
        raise BadEvidence(f"{path} has no goroutine that can be read", _AGAIN)
    return found
