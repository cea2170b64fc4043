"""What ``python -m asyncio ps PID`` and ``pstree PID`` print (3.14 on; Lib/asyncio/tools.py).

``ps`` has a row a task: thread, address, name, functions innermost first joined by " -> ", the same of who
awaits it, and name and address of that task; no files. ``pstree`` has files and lines, and no addresses.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from diagtool.ingest.stacks.model import MAX_NAME, MAX_STACKS, Dump, Notes, Written
from diagtool.runtimes.cpython.tasks.waits import classify
from diagtool.snapshot.model import Frame

__all__ = ["parse"]

_HEAD = re.compile(r"tid +task id +task name +coroutine stack +awaiter chain +awaiter name +awaiter id")
_RULE = re.compile(r"^-{20,}\s*$")
_ROW = re.compile(
    r"^(?P<tid>\d{1,10}) +(?P<id>0x[0-9a-f]{1,16}) (?P<rest>.*?)(?P<awaiter>0x[0-9a-f]{1,16})\s*$"
)
_NODE = re.compile(r"^(?P<lead>[│ |]*)(?:├──|└──|\|--|`--) (?P<text>.*)$")
_TASK = re.compile(r"^\((?:T|Task)\) (?P<name>.*)$")
_PLACE = re.compile(r"^\s*(?P<function>.+?) (?P<file>\S.*):(?P<line>\d{1,9})$")
#: Widths of the columns name, stack, awaiters and their name, each with a space behind.
_WIDTHS = (20, 50, 50, 15)

#: Where the functions of asyncio are, which ps does not say.
_MODULES = {
    "queues": ("Queue.", "PriorityQueue.", "LifoQueue."),
    "locks": ("Lock.", "Event.", "Condition.", "Semaphore.", "BoundedSemaphore.", "Barrier."),
    "streams": ("StreamReader.", "StreamWriter.", "FlowControlMixin."),
    "taskgroups": ("TaskGroup.",),
    "timeouts": ("Timeout.",),
    "subprocess": ("Process.",),
    "base_events": ("Server.", "BaseEventLoop."),
    "selector_events": ("BaseSelectorEventLoop.",),
    "threads": ("to_thread",),
    "runners": ("Runner.",),
}
#: Functions of asyncio.tasks. A program may have such names, too: only the innermost one is asyncio's.
_PLAIN = ("sleep", "wait", "_wait", "wait_for", "_cancel_and_wait", "_wrap_awaitable")


def parse(lines: Iterable[str], notes: Notes) -> list[Dump]:
    """All tables and trees in ``lines``."""
    dumps: list[Dump] = []
    tree: list[tuple[int, Written]] = []
    in_tree = False
    awaiters: list[list[int]] = []
    count = 0
    for line in lines:
        if _HEAD.search(line):
            _join(dumps, awaiters)
            dumps.append(Dump())
            awaiters, in_tree = [], False
            continue
        if (found := _ROW.match(line)) is not None and dumps and not in_tree:
            count += 1
            if count > MAX_STACKS:
                notes.cut += 1
                continue
            dumps[-1].stacks.append(_row(found))
            awaiters.append([int(found["awaiter"], 16)])
            continue
        if (node := _NODE.match(line)) is not None:
            if not in_tree:
                _join(dumps, awaiters)
                dumps.append(Dump())
                awaiters, in_tree, tree = [], True, []
            count += 1
            if count > MAX_STACKS:
                notes.cut += 1
            else:
                _node(dumps[-1], tree, len(node["lead"]) // 4, node["text"], notes)
            continue
        if not line.strip() or _RULE.match(line):
            continue
        notes.unknown += 1
    _join(dumps, awaiters)
    for dump in dumps:
        dump.stacks = _once(dump.stacks)
        _name_gathers(dump.stacks)
        for stack in dump.stacks:
            if not stack.native:
                stack.frames = [frame for frame in stack.frames if frame.function]
    return dumps


def _row(found: re.Match[str]) -> Written:
    fields = _fields(found["rest"])
    stack = Written(kind="task", name=fields[0], tid=int(found["tid"]), address=int(found["id"], 16))
    for depth, function in enumerate(f.strip() for f in fields[1].split(" -> ")):
        if function:
            stack.push(_guessed(function[:MAX_NAME], innermost=depth == 0))
    return stack


def _fields(rest: str) -> list[str]:
    """The columns. One that is wider than its place pushes the others; a single space ends it then."""
    out = []
    for width in _WIDTHS:
        end = width
        while end < len(rest) and (rest[end] != " " or _goes_on(rest, end)):
            end += 1
        out.append(rest[:end].strip())
        rest = rest[end + 1 :]
    return out


def _goes_on(rest: str, at: int) -> bool:
    """Whether the space at ``at`` is one of an arrow between two functions."""
    return rest.startswith(" -> ", at) or rest.endswith(" ->", 0, at)


def _guessed(function: str, *, innermost: bool) -> Frame:
    for module, names in _MODULES.items():
        if function.startswith(names) or function in names:
            return _asyncio(function, module)
    if innermost and function in _PLAIN:
        return _asyncio(function, "tasks")
    return Frame(function, "<unknown>", None)


def _asyncio(function: str, module: str) -> Frame:
    return Frame(function, f"lib/python3/asyncio/{module}.py", None, f"asyncio.{module}")


def _join(dumps: list[Dump], awaiters: list[list[int]]) -> None:
    """Rows of who awaits each task, by their addresses; a task that several await has a row for each."""
    if not dumps or not awaiters:
        return
    rows = {stack.address: i for i, stack in reversed(list(enumerate(dumps[-1].stacks)))}
    first: dict[int, Written] = {}
    for stack, addresses in zip(dumps[-1].stacks, awaiters, strict=True):
        known = first.setdefault(stack.address, stack)
        known.parents += [rows[a] for a in addresses if a in rows and rows[a] not in known.parents]


def _once(stacks: list[Written]) -> list[Written]:
    """Tasks that were printed for each of those that await them, once."""
    kept: list[Written] = []
    place: dict[int, int] = {}
    new: dict[int, int] = {}
    for i, stack in enumerate(stacks):
        if stack.address and stack.address in place:
            new[i] = place[stack.address]
            continue
        new[i] = len(kept)
        if stack.address:
            place[stack.address] = len(kept)
        kept.append(stack)
    for stack in kept:
        stack.parents = [new[p] for p in stack.parents]
    return kept


def _name_gathers(stacks: list[Written]) -> None:
    """A task that awaits several others in a function of its own does so in gather(): no frame shows that."""
    awaited = Counter(parent for stack in stacks for parent in stack.parents)
    for row, count in awaited.items():
        if not classify(stacks[row].frames).name:
            stacks[row].state = "waiting"
            stacks[row].wait = "asyncio.gather" if count > 1 else None


def _node(dump: Dump, tree: list[tuple[int, Written]], depth: int, text: str, notes: Notes) -> None:
    while tree and tree[-1][0] >= depth:
        tree.pop()
    task = _TASK.match(text)
    if task is not None:
        stack = Written(kind="task", name=task["name"].strip())
        above = next((s for _, s in reversed(tree)), None)
        if above is not None:
            stack.parents.append(
                next(i for i in range(len(dump.stacks) - 1, -1, -1) if dump.stacks[i] is above)
            )
        dump.stacks.append(stack)
        tree.append((depth, stack))
        return
    found = _PLACE.match(text)
    if found is None or not tree:
        notes.unknown += 1
        return
    stack = tree[-1][1]
    frame = Frame(found["function"][:MAX_NAME], found["file"][:MAX_NAME], int(found["line"]))
    if len(stack.frames) < 2000:
        stack.frames.insert(0, frame)  # the tree goes inward
    tree.append((depth, stack))
