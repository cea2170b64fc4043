"""What ``py-spy dump`` prints, as text and with ``--json``, several of them in one file, too."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from typing import Any

from diagtool.capture.errors import BadEvidence
from diagtool.ingest.stacks.model import MAX_NAME, MAX_STACKS, Dump, Notes, Written
from diagtool.snapshot.model import Frame

__all__ = ["parse", "parse_json"]

_PROCESS = re.compile(r"Process (?P<pid>\d{1,10}): (?P<command>.*)$")
_PYTHON = re.compile(r"Python v(?P<version>\d+\.\d+\.\d+\S*) \((?P<exe>[^)]*)\)")
_THREAD = re.compile(
    r"Thread (?P<id>0x[0-9A-Fa-f]{1,16}|\d{1,20}) \((?P<state>idle|active)(?P<gil>\+gil)?\)"
    r"(?:: \"(?P<name>.*)\")?\s*$"
)
_FRAME = re.compile(r"^\s*(?P<function>\S.*?) \((?P<file>[^()]*?)(?::(?P<line>\d{1,9}))?\)\s*$")
_LOCALS = re.compile(r"^\s*(Arguments|Locals):\s*$")
_STDLIB = sys.stdlib_module_names

#: Sizes of one file of JSON.
_MAX_JSON = 256 << 20


def parse(lines: Iterable[str], notes: Notes) -> list[Dump]:
    """All dumps in ``lines``."""
    dumps: list[Dump] = []
    stack: Written | None = None
    count = inner = column = 0
    version = ""
    for line in lines:
        if (found := _PROCESS.search(line)) is not None:
            command = found["command"][:4096]
            dumps.append(Dump(pid=int(found["pid"]), cmdline=command.split()))
            stack, version = None, ""
            continue
        if (found := _PYTHON.search(line)) is not None and dumps and stack is None:
            dumps[-1].version, dumps[-1].exe = found["version"], found["exe"][:MAX_NAME]
            version = ".".join(found["version"].split(".")[:2])
            continue
        if (found := _THREAD.search(line)) is not None:
            stack = _thread(found)
            if not dumps or any(s.tid == stack.tid and s.ident == stack.ident for s in dumps[-1].stacks[:1]):
                dumps.append(Dump())
            column, inner = found.start(), 0
            count += 1
            if count > MAX_STACKS:
                notes.cut += 1
            else:
                dumps[-1].stacks.append(stack)
            continue
        body = line[column:] if column and not line[column : column + 4].strip() else line
        if not body.strip():
            continue
        indent = len(body) - len(body.lstrip())
        if stack is not None and (_LOCALS.match(body) or (inner and indent >= inner)):
            inner = inner or indent
            continue
        found = _FRAME.match(body) if stack is not None else None
        if found is None or stack is None:
            notes.unknown += 1
            continue
        inner = indent + 1
        frame, native = _frame(found, version)
        _push(stack, frame, native)
    return dumps


def _push(stack: Written, frame: Frame, native: bool) -> None:
    if native and not stack.native:
        stack.native = list(stack.frames)
    if native or stack.native:
        stack.push(frame, native=True)
    if not native:
        stack.push(frame)


def _thread(found: re.Match[str]) -> Written:
    number = int(found["id"], 0)
    stack = Written(name=found["name"] or "")
    if number < 1 << 22:
        stack.tid = number
    else:
        stack.ident = number & (1 << 64) - 1
    stack.state = "waiting" if found["state"] == "idle" else "running"
    stack.holds_gil = bool(found["gil"])
    return stack


def _frame(found: re.Match[str], version: str) -> tuple[Frame, bool]:
    function, file = found["function"][:MAX_NAME], found["file"][:MAX_NAME]
    line = int(found["line"]) if found["line"] else None
    name = file.rpartition("/")[2]
    if file.endswith((".py", ".pyx", ".pyw")) or file.startswith("<") or "." not in name:
        return Frame(function, _whole(file, version), line), False
    library = "?" if line else file
    return Frame(function, file if line else "", line, None, "native", library), True


def _whole(file: str, version: str) -> str:
    """A path of the standard library, of which py-spy prints the end only."""
    first = file.partition("/")[0].removesuffix(".py")
    if version and not file.startswith("/") and first in _STDLIB:
        return f"lib/python{version}/{file}"
    return file


# --- JSON ----------------------------------------------------------------------------------------------


def parse_json(path: str, notes: Notes) -> list[Dump]:
    """All dumps in a file of ``--json``, which may be several documents. Raises BadEvidence."""
    with open(path, "rb") as file:  # noqa: PTH123
        data = file.read(_MAX_JSON + 1)
    if len(data) > _MAX_JSON:
        raise BadEvidence(f"{path} is larger than {_MAX_JSON >> 20} MiB of JSON")
    text = data.decode("utf-8", "replace")
    decoder = json.JSONDecoder()
    dumps: list[Dump] = []
    at = 0
    while True:
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        if at >= len(text):
            break
        try:
            document, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            dumps += _document(_threads(decoder, text, at), notes)
            if not any(dump.stacks for dump in dumps):
                raise BadEvidence(f"{path} is no JSON that makes sense: {str(error)[:100]}") from None
            notes.others["document of JSON is cut off or damaged: the threads before are read"] += 1
            break
        dumps += _document(document, notes)
    return dumps


def _threads(decoder: json.JSONDecoder, text: str, at: int) -> list[Any]:
    """The threads of a document whose end is missing."""
    found: list[Any] = []
    at = text.find("{", at)
    while at >= 0 and len(found) < MAX_STACKS:
        try:
            thread, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            break
        found.append(thread)
        rest = text[at : at + 64].lstrip()
        at = text.find("{", at) if rest.startswith(",") else -1
    return found


def _document(document: Any, notes: Notes) -> list[Dump]:
    by_pid: dict[int | None, Dump] = {}
    for thread in document if isinstance(document, list) else ():
        if not isinstance(thread, dict) or not isinstance(thread.get("frames"), list):
            notes.unknown += 1
            continue
        pid = _int(thread.get("pid")) or None
        dump = by_pid.setdefault(pid, Dump(pid=pid))
        info = thread.get("process_info")
        if isinstance(info, dict) and isinstance(info.get("command_line"), str):
            dump.cmdline = info["command_line"][:4096].split()
        if sum(len(d.stacks) for d in by_pid.values()) >= MAX_STACKS:
            notes.cut += 1
            continue
        dump.stacks.append(_json_thread(thread))
    return list(by_pid.values())


def _json_thread(thread: dict[str, Any]) -> Written:
    stack = Written(
        name=_str(thread.get("thread_name")),
        tid=_int(thread.get("os_thread_id")),
        ident=_int(thread.get("thread_id")),
    )
    stack.tid = stack.tid if stack.tid < 1 << 31 else 0
    active = thread.get("active")
    stack.state = "" if active is None else "running" if active else "waiting"
    stack.holds_gil = bool(thread.get("owns_gil"))
    for told in thread["frames"]:
        if not isinstance(told, dict):
            continue
        file, line = _str(told.get("filename")), _int(told.get("line"))
        module = _str(told.get("module"))
        name = _str(told.get("name")) or "?"
        if module and not file.endswith((".py", ".pyx", ".pyw")):
            _push(stack, Frame(name, file if line else "", line or None, None, "native", module), True)
        else:
            _push(stack, Frame(name, file or "<unknown>", line or None), False)
    return stack


def _int(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 1 << 64 else 0


def _str(value: Any) -> str:
    return value[:MAX_NAME] if isinstance(value, str) else ""
