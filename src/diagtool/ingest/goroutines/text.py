"""From a log to plain text: pieces of whole lines, without what others put around a goroutine dump.

Time stamps and names of containers before each line, quotes, indents, carriage returns, colours, lines as
JSON strings (Docker's files), and dumps within one string of a structured log. What a line is preceded by is
learned from the headers of goroutines.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

__all__ = ["CHUNK", "MAX_LINE", "Cleaner", "chunks"]

CHUNK = 1 << 20
#: A longer line is cut; the rest of it is left out.
MAX_LINE = 16 << 20

_START = re.compile(rb"goroutine (?=\d{1,20} (?:gp=0x|\[))")
_BEFORE = re.compile(
    rb"^[^\n]{1,300}?(?=goroutine \d{1,20} (?:gp=0x[^\n]{1,80})?\[[^\n]{1,300}:[ \t|]*$)", re.MULTILINE
)
_COLOUR = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")
_DOCKER = re.compile(rb'^\{"log":("[^"\\\n]*(?:\\.[^"\\\n]*)*")[^\n]*$', re.MULTILINE)
_STRING = re.compile(rb'"[^"\\\n]*(?:\\.[^"\\\n]*)*"')
_MAX_PREFIX = 300
_MOST_PREFIXES = 8


def chunks(file: BinaryIO) -> Iterator[bytes]:
    """What ``file`` holds in pieces of whole lines, each of which ends in a newline."""
    start = file.read(4)
    file.seek(0)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        blocks = _from_utf16(file)
    else:
        blocks = iter(lambda: file.read(CHUNK), b"")
    held: list[bytes] = []
    size, skipping = 0, False
    for block in blocks:
        if skipping:
            end = block.find(b"\n")
            if end < 0:
                continue
            block, skipping = block[end:], False
        end = block.rfind(b"\n") + 1
        if not end:
            held.append(block)
            size += len(block)
            if size > MAX_LINE:
                yield b"".join(held)[:MAX_LINE] + b"\n"
                held, size, skipping = [], 0, True
            continue
        yield b"".join((*held, block[:end])) if held else block[:end]
        rest = block[end:]
        held, size = ([rest], len(rest)) if rest else ([], 0)
    if held:
        yield b"".join((*held, b"\n"))


def _from_utf16(file: BinaryIO) -> Iterator[bytes]:
    # What PowerShell makes of `program 2> file`.
    decoder = codecs.getincrementaldecoder("utf-16")(errors="replace")
    for block in iter(lambda: file.read(CHUNK), b""):
        yield decoder.decode(block).encode("utf-8", "surrogatepass")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")


class Cleaner:
    """Takes from text what does not belong to a dump. Knows the prefixes of lines seen so far."""

    def __init__(self) -> None:
        self._known: dict[bytes, None] = {}
        self._prefix: re.Pattern[bytes] | None = None

    @property
    def active(self) -> bool:
        """Whether lines with prefixes were seen: then all text is to be cleaned of them."""
        return self._prefix is not None

    def unpacked(self, chunk: bytes) -> bytes:
        """``chunk`` without carriage returns and colours, and out of strings."""
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n")
        if chunk.startswith(b"\xef\xbb\xbf"):
            chunk = chunk[3:]
        if b"\x1b" in chunk:
            chunk = _COLOUR.sub(b"", chunk)
        if b"\\" in chunk:
            if b'{"log":"' in chunk:
                chunk = _DOCKER.sub(_line_of_docker, chunk)
            if b"]:\\" in chunk:
                chunk = _out_of_strings(chunk)
        return chunk

    def stripped(self, text: bytes) -> bytes:
        """``text`` with headers of goroutines, and what follows them, at the start of their lines."""
        if self._has_prefixes(text):
            self._learn(text)
        if self._prefix is not None:
            text = self._prefix.sub(b"", text)
            if self._has_prefixes(text):  # too many different ones
                text = _BEFORE.sub(b"", text)
        return text

    def _has_prefixes(self, chunk: bytes) -> bool:
        at_start = chunk.count(b"\ngoroutine ") + chunk.startswith(b"goroutine ")
        return chunk.count(b"goroutine ") > at_start + chunk.count(b" in goroutine ")

    def _learn(self, chunk: bytes) -> None:
        before = len(self._known)
        last = b""
        for found in _START.finditer(chunk):
            start = found.start()
            if not start or chunk[start - 1] == 10:
                continue
            line = chunk.rfind(b"\n", max(0, start - _MAX_PREFIX), start) + 1
            if not line and start > _MAX_PREFIX:
                continue
            prefix = chunk[line:start]
            if prefix == last:
                continue
            last = prefix
            pattern = _pattern(prefix)
            if pattern not in self._known:
                self._known[pattern] = None
                if len(self._known) > _MOST_PREFIXES:
                    self._known.pop(next(iter(self._known)))
                    break
        if len(self._known) != before or last:
            # The longest first: an indent alone may be the start of another one.
            patterns = sorted(self._known, key=len, reverse=True)
            self._prefix = re.compile(rb"^(?:" + rb"|".join(patterns) + rb")", re.MULTILINE)


def _pattern(prefix: bytes) -> bytes:
    # Times and counters differ from line to line; blanks behind the prefix of an empty line may be gone.
    core = prefix.rstrip(b" \t")
    parts = re.split(rb"(\d+)", core)
    text = b"".join(rb"\d+" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    tail = re.escape(prefix[len(core) :])
    if not core:
        return tail
    return text + rb"(?:" + tail + rb"|[ \t]*$)" if tail else text


def _line_of_docker(match: re.Match[bytes]) -> bytes:
    return _unquoted(match[1]).rstrip(b"\n") if match[1] else match[0]


def _out_of_strings(chunk: bytes) -> bytes:
    """``chunk`` with dumps that are within a string of a line as lines of their own."""
    out, done, at = [], 0, 0
    while (at := chunk.find(b"]:\\", at)) >= 0:
        start = max(chunk.rfind(b"\n", 0, at) + 1, done)
        end = chunk.find(b"\n", at)
        end = len(chunk) if end < 0 else end
        line = chunk[start:end]
        if b"goroutine " in line:
            out += [chunk[done:start], b"\n", _STRING.sub(_if_dump, line), b"\n"]
            done = end
        at = end
    return b"".join((*out, chunk[done:]))


def _if_dump(match: re.Match[bytes]) -> bytes:
    text = match[0]
    for _ in range(3):  # a log may be in a log
        if b"]:\\" not in text:
            break
        text = _unquoted(text if text[:1] == b'"' else b'"' + text + b'"')
    return b"\n" + text + b"\n" if text is not match[0] else text


def _unquoted(text: bytes) -> bytes:
    try:
        found = json.loads(text, strict=False)
        return found.encode("utf-8", "surrogatepass") if isinstance(found, str) else text
    except (ValueError, RecursionError):
        return text[1:-1].replace(b"\\n", b"\n").replace(b"\\t", b"\t").replace(b'\\"', b'"')
