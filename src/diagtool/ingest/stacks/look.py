"""Whether a piece of a file holds stacks that the readers of this package read. Quick: it is asked of all."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diagtool.snapshot.model import Snapshot

__all__ = ["NAMES", "looks", "read"]

PYSPY, PYSPY_JSON, GDB = "py-spy dump", "py-spy dump --json", "gdb backtrace"
ASYNCIO, THREADS, EXCEPTIONS = "asyncio ps", "dump of Python threads", "log with tracebacks"
#: Readers in the order in which they are asked.
NAMES = (PYSPY_JSON, PYSPY, GDB, ASYNCIO, THREADS, EXCEPTIONS)

#: One of these is there, or nothing is: most files are done with quickly.
_SIGNS = {
    PYSPY_JSON: (b'"thread_id"',),
    PYSPY: (b" (idle)", b" (active"),
    GDB: (b"LWP ", b"(process "),
    ASYNCIO: (b"coroutine stack", b"(T) ", b"(Task) "),
    THREADS: (b"most recent call", b'  File "'),
    EXCEPTIONS: (b"Traceback (most recent call last)",),
}
_PATTERNS = {
    PYSPY_JSON: (r'\A\s*\[\s*\{\s*"pid":\s*\d+,\s*"thread_id":\s*\d+,\s*"thread_name":',),
    PYSPY: (r"(?m)Thread (?:0x[0-9A-Fa-f]+|\d+) \((?:idle|active)(?:\+gil)?\)(?:: \".*\")?[ \r]*$",),
    GDB: (
        r"Thread \d+ \((?:Thread 0x[0-9a-f]+ )?\(?(?:LWP|process) \d+\)?[^\n]*:[^\n]*\n[^\n]{0,80}"
        r"(?:#0 |Traceback \(most recent)",
    ),
    ASYNCIO: (
        r"tid +task id +task name +coroutine stack +awaiter chain +awaiter name +awaiter id",
        r"(?m)^(?:├──|└──) \((?:T|Task)\) .*$\n^[│ ]{4}(?:├──|└──) {1,2}\S.*:\d+$",
    ),
    THREADS: (
        r"(?:Current t|T)hread 0x[0-9a-fA-F]+(?: \[[^\]\n]*\])? \(most recent call first\):",
        r"Traceback for thread \d+ .{0,200}\(most recent call (?:last|first)\)",
        r"Stack \(most recent call first\):\s*\n.{0,80}File \"",
        r"Stack for <Task ",
        r"Traceback \(most recent call first\):?\s*\n.{0,80}File \"",
    ),
    EXCEPTIONS: (
        r"Traceback \(most recent call last\).{0,40}\n\s*.{0,80}?File \"[^\"\n]+\", line \d+",
        r"─ Traceback \(most recent call last\) ─",
    ),
}
#: A line, and below it what traceback.format_stack() gives: programs that print their own threads.
_OWN = re.compile(r'(?m)^(?P<before>.{0,300})\n.{0,120}?  File "[^"\n]{1,400}", line \d+, in ')
_HEADERISH = re.compile(r"thread|tid\b|stack of", re.IGNORECASE)
_PIECE = 1 << 20


def looks(name: str) -> Callable[[bytes], bool]:
    """The question whether a piece of a file holds what reader ``name`` reads."""

    def look(head: bytes) -> bool:
        if not any(sign in head for sign in _SIGNS[name]):
            return False
        from diagtool.ingest.stacks.lines import plain

        if name == PYSPY_JSON:
            head = head[:1000]
        for at in range(0, len(head), _PIECE):
            text = head[at : at + _PIECE + 4096].decode("utf-8", "replace")
            text = "\n".join(map(plain, text.splitlines()))
            if any(re.search(pattern, text) for pattern in _PATTERNS[name]) or (
                name == THREADS and _has_own_dump(text)
            ):
                return True
        return False

    return look


def _has_own_dump(text: str) -> bool:
    return any(_HEADERISH.search(m["before"]) and "Traceback" not in m["before"] for m in _OWN.finditer(text))


def read(name: str) -> Callable[[str], list[Snapshot]]:
    """What reader ``name`` makes of a file: snapshots, oldest first. Raises TargetError."""

    def one(path: str) -> list[Snapshot]:
        from diagtool.ingest.stacks.read import read_file

        return read_file(name, path)

    return one
