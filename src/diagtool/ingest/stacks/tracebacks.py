"""Stacks made of ``File "…", line N, in f`` lines: faulthandler's, sys._current_frames dumpers', pystack's.

    faulthandler    Thread 0x… [name] (most recent call first):   and   File "f", line 1 in g
    pystack         Traceback for thread 12 (name) [Has the GIL] (most recent call last):   (C) File …
    py-bt of gdb    Thread 3 (Thread 0x… (LWP 12) "name"):   Traceback (most recent call first):
    own dumpers     any line with a number and perhaps a name, then what traceback.format_stack() gives
    asyncio         Stack for <Task pending name='…' …> (most recent call last):

Tracebacks of exceptions look the same and are no stacks of threads: they are counted, with their type and
place. Formats: Python/traceback.c and Modules/faulthandler.c of 3.9 to 3.15, Lib/traceback.py, and what the
tools write.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from diagtool.ingest.stacks.model import MAX_NAME, MAX_STACKS, Dump, Notes, Written
from diagtool.snapshot.model import Frame

__all__ = ["parse"]

_FILE = re.compile(
    r'File (?:"(?P<file>[^"]*)"|\?\?\?), line (?P<line>\d+|\?\?\?)(?P<comma>,?) in (?P<function>.*)$'
)
_PYSTACK = re.compile(r"\((?P<kind>Python|C|Other)\) File ")
_PYSTACK_LIBRARY = re.compile(r"^(?P<function>.*?)(?P<inlined> \(inlined\))?(?: \((?P<library>[^()]*)\))?$")

_FAULT = re.compile(
    r"(?P<current>Current thread|Thread) 0x(?P<ident>[0-9a-fA-F]+)"
    r"(?: \[(?P<name>[^\]]*)\])? \(most recent call first\):(?P<rest>.*)$"
)
_FAULT_ONE = re.compile(r"Stack \(most recent call first\):\s*$")
_FATAL = re.compile(r"Fatal Python error: (?P<what>.*)$|(?P<windows>Windows fatal exception: .*)$")
_TIMEOUT = re.compile(r"Timeout \(\d+:\d+:\d+(?:\.\d+)?\)!\s*$")
_C_STACK = re.compile(r"Current thread's C stack trace \(most recent call first\):")
_C_FRAME = re.compile(
    r'Binary file "(?P<library>[^"]*)"(?:, at (?P<function>[^+\s]*)\+0x[0-9a-f]+)? \[0x[0-9a-f]+\]'
)
_EXTENSIONS = re.compile(r"Extension modules: (?P<names>.*?)(?: \(total: \d+\))?\s*$")
_QUIET = re.compile(
    r"<(no Python frame|truncated rest of calls|cannot get C stack on this system|freed interpreter|"
    r"freed thread state|invalid frame|timeout)>|Python runtime state: |Garbage-collecting|"
    r"(Current )?<tstate |The frame stack for thread \d+ is empty"
)
_BUILTIN = re.compile(r"\s+(?:<built-in |\(frame information optimized out\))")  # of py-bt, above its frame
_CUT = re.compile(r"^\s*(\.\.\.|<truncated rest of calls>)\s*$")

_PYSTACK_THREAD = re.compile(
    r"Traceback for thread (?P<tid>\d+) (?:\((?P<name>[^\[\]]{0,200})\) )?\[(?P<flags>[^\]]*)\] "
    r"\(most recent call (?P<order>last|first)\)"
)
_TASK = re.compile(r"Stack for <Task (?P<state>\w+) (?:name='(?P<name>[^']*)')?.*\(most recent call last\)")
_GDB_THREAD = re.compile(
    r"Thread \d+ \((?:Thread (?P<ident>0x[0-9a-f]+) )?\(?LWP (?P<tid>\d+)\)?\)?(?: \"(?P<name>[^\"]*)\")?\)?:"
)
_EXCEPTION_STARTS = re.compile(r"Traceback \(most recent call last\)|Exception Group Traceback")
_FIRST_STARTS = re.compile(r"Traceback \(most recent call first\)")
_STACK_INFO = re.compile(r"Stack \(most recent call last\):")
_EXCEPTION = re.compile(r"^[\s|+]*(?P<type>[A-Za-z_][\w.]*)(?::.*)?$")

#: What programs that print their own threads write above each.
_NUMBER = re.compile(r"0x(?P<hex>[0-9a-fA-F]{6,16})|(?<![\w.:])(?P<number>\d{2,20})(?![\w:.])")
_HEADERISH = re.compile(r"thread|tid\b|stack of", re.IGNORECASE)
_OBJECT = re.compile(r"<_?\w*Thread\((?P<name>.*?), [\w ]*?(?P<ident>\d+)\)>")
_NAMED = (
    re.compile(r"""\bname\s*[:=]\s*(?P<q>["']?)(?P<name>[^"',;)\]]+?)(?P=q)(?=[\s,;)\]]|$)""", re.IGNORECASE),
    re.compile(r'"(?P<name>[^"]+)"'),
    re.compile(r"'(?P<name>[^']+)'"),
    re.compile(r"\((?P<name>[A-Za-z_][^()=]*)\)"),
    re.compile(r"\bthread\b[^\w]*(?!0x|\d|id\b)(?P<name>[A-Za-z_][\w.-]*)", re.IGNORECASE),
)

_ESCAPED = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")
_SIGNALS = {
    "Segmentation fault": 11,
    "Floating point exception": 8,
    "Floating-point exception": 8,
    "Aborted": 6,
    "Bus error": 7,
    "Illegal instruction": 4,
}


@dataclass(slots=True)
class _Run:
    """File lines that belong together, being collected."""

    kind: str  # "stack" | "exception"
    stack: Written
    first: bool  # innermost first
    column: int = 0
    lines: int = 0
    frames: list[tuple[Frame, bool]] = field(default_factory=list)  # in the order of the text; native?
    text: str = ""  # source line that follows the frame read last
    inner_text: str = ""
    settled: bool = False


def parse(lines: Iterable[str], notes: Notes) -> list[Dump]:
    """All dumps in ``lines``."""
    return _Parser(notes).parse(lines)


class _Parser:
    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self.stacks: list[Written] = []
        self.facts: dict[int, Dump] = {}  # what is known of the dump that begins with the stack of that index
        self.run: _Run | None = None
        self.next: Written | None = None  # a header was read
        self.next_first = True
        self.before = ""  # the last line that is nothing else
        self.exception = ""  # place of an exception whose type comes next
        self.starts = False
        self.pending: Dump | None = None
        self.c_stack = False

    def parse(self, lines: Iterable[str]) -> list[Dump]:
        for line in lines:
            self._line(line)
        self._end()
        if self.next is not None:
            self._keep(self.next)
        return self._dumps()

    # --- lines -----------------------------------------------------------------------------------------

    def _line(self, line: str) -> None:
        at = line.find("File ")
        if at >= 0 and (found := _FILE.search(line, at)) is not None:
            self._file(line, found)
            return
        run = self.run
        if run is not None and self._is_inside(run, line):
            return
        if not line.strip():
            if run is None or run.kind != "exception":  # loguru puts blank lines between frames
                self._end()
            return
        if self._header(line):
            return
        self._end()
        if self.exception:
            found = _EXCEPTION.match(line)
            self.notes.exceptions[found["type"][:80] if found else "one", self.exception] += 1
            self.exception = ""
            if found is not None:
                return
        self.before = line
        self.notes.unknown += 1

    def _is_inside(self, run: _Run, line: str) -> bool:
        """Whether a line is source text below a File line, or marks in it."""
        if _CUT.match(line):
            run.stack.cut += 1
            return True
        if _QUIET.search(line):
            return True
        if not run.lines:
            if _BUILTIN.match(line):
                run.inner_text = line.strip()[:MAX_NAME]
            return bool(_BUILTIN.match(line)) or not line.strip()
        if len(line.rstrip()) <= run.column or line[run.column : run.column + 2].strip():
            return False
        if not run.text:
            run.text = line.strip()[:MAX_NAME]
        return True

    def _file(self, line: str, found: re.Match[str]) -> None:
        run = self.run
        first = not found["comma"]
        if run is not None and found["comma"] and run.first and run.lines == 0:
            first = True  # py-bt of gdb
        elif run is not None and run.lines:
            first = run.first if found["comma"] or run.first else first
        if run is None or (run.lines and run.first != first):
            self._end()
            run = self._begin(first)
        run.first = first
        self._settle_text(run)
        number = int(found["line"]) if found["line"].isdigit() and len(found["line"]) < 10 else None
        told = _PYSTACK.search(line)
        native = told is not None and told["kind"] != "Python"
        run.column = line.find("(", 0, found.start()) if told is not None else found.start()
        run.frames.append((_frame(found, number, native), native))
        run.lines += 1
        run.text = ""
        if len(run.frames) > 100_000:  # no stack: a line again and again
            run.stack.cut += len(run.frames) - 50_000
            del run.frames[50_000:]

    def _settle_text(self, run: _Run) -> None:
        """The source line just read belongs to the frame before; keep that of the innermost of Python."""
        if not run.lines or run.frames[-1][1]:
            return
        if not run.first:
            run.inner_text = run.text
        elif not run.settled:
            run.inner_text = run.inner_text or run.text
            run.settled = True

    def _begin(self, first: bool) -> _Run:
        """A run that no header announced."""
        stack, kind = self.next, "stack"
        self.next = None
        if stack is None:
            stack = _own_header(self.before)
            if stack is None:
                stack = Written(bare=True)
            elif self.notes.unknown:
                self.notes.unknown -= 1
        self.before = ""
        self.run = _Run(kind, stack, first)
        return self.run

    def _header(self, line: str) -> bool:
        """Whether ``line`` says what comes next."""
        found = _FAULT.search(line)
        if found is not None:
            self._end()
            self._open(
                Written(name=_text(found["name"] or ""), ident=int(found["ident"], 16) & (1 << 64) - 1), True
            )
            return True
        if (found := _PYSTACK_THREAD.search(line)) is not None:
            self._end()
            flags = found["flags"]
            stack = Written(tid=int(found["tid"][:18]), name=(found["name"] or "").strip())
            stack.holds_gil = "Has the GIL" in flags
            stack.collecting = "Garbage collecting" in flags or None
            self._open(stack, found["order"] == "first")
            return True
        if (found := _TASK.search(line)) is not None:
            self._end()
            self._open(Written(kind="task", name=found["name"] or ""), False)
            return True
        if (found := _GDB_THREAD.search(line)) is not None:
            self._end()
            self.next = Written(
                tid=int(found["tid"][:18]), ident=int(found["ident"] or "0", 16), name=found["name"] or ""
            )
            return True
        if _FIRST_STARTS.search(line):
            self._end()
            stack = self.next or _own_header(self.before) or Written(bare=True)
            self._open(stack, True)
            return True
        if _EXCEPTION_STARTS.search(line):
            self._end()
            self.next, self.exception = None, ""
            if "─" in line:  # rich draws a box around it
                self.notes.exceptions["one", "a place that only rich's picture shows"] += 1
            else:
                self.run = _Run("exception", Written(), False)
            return True
        if _STACK_INFO.search(line) or _FAULT_ONE.search(line):
            self._end()
            self._open(Written(bare="last" in line), "first" in line)
            return True
        return self._fault(line)

    def _fault(self, line: str) -> bool:
        """What else faulthandler writes."""
        found = _FATAL.search(line)
        if found is not None or _TIMEOUT.search(line):
            self._end()
            self.starts = True
            what = "timeout" if found is None else (found["what"] or found["windows"]).strip()[:200]
            self.pending = Dump(details={"fatal": what} if found is not None else {"timeout": True})
            self.pending.signal = _SIGNALS.get(what)
            return True
        if _C_STACK.search(line):
            self._end()
            self.c_stack = True
            return True
        if self.c_stack and (found := _C_FRAME.search(line)) is not None:
            if self.stacks:
                library = found["library"]
                name = found["function"] or "??"
                self.stacks[-1].apart.append(
                    Frame(name[:MAX_NAME], "", None, language="native", library=library)
                )
            return True
        if (found := _EXTENSIONS.search(line)) is not None:
            names = [n.strip()[:MAX_NAME] for n in found["names"][:100_000].split(",")]
            self._dump_of_last().details["extension_modules"] = names[:1000]
            return True
        if _CUT.match(line) and self.stacks:
            self.notes.others[
                "dumps end before all threads were written: faulthandler stops at a hundred"
            ] += 1
            self.starts = True
            return True
        return bool(_QUIET.search(line))

    # --- stacks ----------------------------------------------------------------------------------------

    def _open(self, stack: Written, first: bool) -> None:
        self.c_stack = False
        if self.starts:
            stack.starts, self.starts = True, False
            if self.pending is not None:
                self.facts[id(stack)] = self.pending
                self.pending = None
        self.next = None
        self.run = _Run("stack", stack, first)
        self.before = ""

    def _dump_of_last(self) -> Dump:
        for stack in reversed(self.stacks):
            if id(stack) in self.facts:
                return self.facts[id(stack)]
        if self.stacks:
            return self.facts.setdefault(id(self.stacks[0]), Dump())
        return self.pending or Dump()

    def _end(self) -> None:
        """The run is over."""
        run, self.run = self.run, None
        if run is None:
            return
        if run.kind == "exception":
            if run.frames:
                frame = run.frames[-1][0]
                self.exception = f"{frame.file.rpartition('/')[2]}:{frame.line} in {frame.function}"[:200]
            else:
                self.run = run if not run.lines else None  # the box around a traceback, a blank line
            return
        self._settle_text(run)
        if not run.first:
            run.frames.reverse()
        stack = run.stack
        mixed = any(native for _, native in run.frames)
        for frame, native in run.frames:
            if mixed:
                stack.push(frame, native=True)
            if not native:
                stack.push(frame)
        stack.text = run.inner_text
        self._keep(stack)

    def _keep(self, stack: Written) -> None:
        if len(self.stacks) >= MAX_STACKS:
            self.notes.cut += 1
        elif stack.frames or stack.native or not stack.bare:
            self.stacks.append(stack)

    # --- dumps -----------------------------------------------------------------------------------------

    def _dumps(self) -> list[Dump]:
        stacks = self.stacks
        if any(not s.bare for s in stacks):
            left = sum(s.bare for s in stacks)
            if left:
                self.notes.others["stacks of one place (print_stack, stack_info) are no threads'"] += left
            stacks = [s for s in stacks if not s.bare]
        out: list[Dump] = []
        for part in _split(stacks):
            dump = next((self.facts[id(s)] for s in part if id(s) in self.facts), Dump())
            dump.stacks = part
            out.append(dump)
        return out


def _split(stacks: list[Written]) -> Iterator[list[Written]]:
    """Where one dump ends and the next begins: a thread that is there already, or a second main thread.

    New threads are written before old ones, and the main thread last: what comes after it is of the next.
    """
    part: list[Written] = []
    seen: set[tuple[str, int | str]] = set()
    for stack in stacks:
        keys = _keys(stack)
        if part and (stack.starts or not seen.isdisjoint(keys)):
            cut = len(part)
            if not stack.starts:
                main = next((i for i, s in enumerate(part) if s.is_main), 0)
                cut = main + 1 if main else cut
            yield part[:cut]
            part = part[cut:]
            seen = {key for s in part for key in _keys(s)}
        part.append(stack)
        seen.update(keys)
    if part:
        yield part


def _keys(stack: Written) -> list[tuple[str, int | str]]:
    keys: list[tuple[str, int | str]] = []
    if stack.ident:
        keys.append(("ident", stack.ident))
    if stack.tid:
        keys.append(("tid", stack.tid))
    if stack.is_main and stack.kind == "thread" and not stack.bare:
        keys.append(("main", 0))
    return keys


def _frame(found: re.Match[str], line: int | None, native: bool) -> Frame:
    function, library = found["function"].rstrip()[:MAX_NAME], None
    language = "python"
    if native:
        told = _PYSTACK_LIBRARY.match(function)
        language = "native"
        if told is not None:
            function, library = told["function"], told["library"] or "?"
    file = (found["file"] or "<unknown>")[:MAX_NAME]
    return Frame(_text(function) or "?", _text(file), line or None, None, language, library)


def _text(text: str) -> str:
    """Undo what faulthandler makes of what is no ASCII."""
    if "\\" not in text:
        return text
    return _ESCAPED.sub(lambda m: chr(min(int(m[1] or m[2] or m[3], 16), 0x10FFFF)), text)


def _own_header(line: str) -> Written | None:
    """The thread that a line names above what a program prints of itself; None where it names none."""
    if not _HEADERISH.search(line) or len(line) > 1000:
        return None
    stack = Written()
    found = _OBJECT.search(line)
    if found is not None:
        stack.name, stack.ident = found["name"], int(found["ident"][:19])
        return stack
    numbers = [int(m["hex"], 16) if m["hex"] else int(m["number"]) for m in _NUMBER.finditer(line)][-4:]
    named = next((m["name"].strip() for p in _NAMED if (m := p.search(line)) is not None), "")
    if not numbers and not named:
        return None
    for number in numbers:
        if number < 1 << 22:
            stack.tid = stack.tid or number
        elif number < 1 << 64:
            stack.ident = stack.ident or number
    stack.name = named
    return stack
