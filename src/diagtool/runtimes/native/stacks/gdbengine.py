"""Unwinding with gdb, where drgn can't be had, or to compare.

gdb never sees the process: it is given a slim core of the capture, and told everything at once, in its
machine interface (MI), so that it is asked once. No init file, no script of a library and no server is used.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from diagtool.capture.corewriter import SparseFile
from diagtool.capture.demangle import demangle, language_of
from diagtool.capture.model import Capture, CapturedThread
from diagtool.capture.modules import Module
from diagtool.capture.slimcore import write_slim_core
from diagtool.runtimes.native.stacks.model import NativeFrame, NativeStacks
from diagtool.runtimes.native.stacks.resync import CallSites

__all__ = ["NoGdb", "unwind"]

_SECONDS = 120.0
_MOST_FRAMES = 5_000  # of one thread
_STACK_POINTER = "diagtool-sp"  # what marks our own lines in gdb's output
_LWP = re.compile(r"LWP (\d+)")


class NoGdb(Exception):
    """There is no gdb, or it failed."""


def unwind(capture: Capture, debug_directories: Sequence[str] = ()) -> NativeStacks:
    """The native frames of all threads that have registers. Raises NoGdb."""
    program = shutil.which("gdb")
    if program is None:
        raise NoGdb("gdb is not installed")
    threads = [t for t in capture.threads if t.registers]
    if not threads:
        return NativeStacks()
    with tempfile.TemporaryDirectory(prefix="diagtool-gdb-") as folder:
        core = Path(folder) / "core"
        with core.open("wb") as file:
            write_slim_core(capture, SparseFile(file))
        commands = _commands(capture, len(threads), debug_directories)
        output = _run(program, commands, folder)
    return _Parsed(capture, threads).stacks(output)


def _commands(capture: Capture, threads: int, directories: Sequence[str]) -> list[str]:
    root = capture.process.root or (f"/proc/{capture.process.pid}/root" if capture.kind == "live" else "/")
    exe = next((m.path for m in capture.modules if m.path == capture.process.exe), capture.process.exe) or ""
    file = root.rstrip("/") + exe
    if capture.kind == "live" and not Path(file).exists():
        file = f"/proc/{capture.process.pid}/exe"
    where = ":".join([*directories, "/usr/lib/debug"])
    show = f'printf \\"{_STACK_POINTER} %lx\\\\n\\", (unsigned long)$sp'
    return [
        "-gdb-set confirm off",
        "-gdb-set pagination off",
        "-gdb-set print frame-arguments none",
        "-gdb-set backtrace past-main on",
        f"-gdb-set sysroot {root if root != '/' else ''}",
        f"-gdb-set debug-file-directory {where}",
        f"-file-exec-and-symbols {_quoted(file)}",
        "-target-select core core",  # in the folder that it runs in
        "1-thread-info",
        *(f"{n + 1}-stack-list-frames --thread {n} 0 {_MOST_FRAMES - 1}" for n in range(1, threads + 1)),
        *(
            f'-interpreter-exec --thread {n} console "frame apply {_MOST_FRAMES} -q -s {show}"'
            for n in range(1, threads + 1)
        ),
        "-gdb-exit",
    ]


def _quoted(path: str) -> str:
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _run(program: str, commands: Sequence[str], folder: str) -> str:
    argv = [program, "--nx", "--quiet", "--interpreter=mi3"]
    for setting in ("auto-load no", "debuginfod enabled off", "startup-with-shell off"):
        argv += ["-iex", f"set {setting}"]
    environment = {
        k: v for k, v in os.environ.items() if k not in ("DEBUGINFOD_URLS", "PYTHONPATH", "PYTHONHOME")
    }
    environment.update(HOME=folder, LC_ALL="C.UTF-8")
    try:
        done = subprocess.run(
            argv,
            input="\n".join(commands) + "\n",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            cwd=folder,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NoGdb(f"gdb took more than {_SECONDS:.0f} s") from None
    except OSError as error:
        raise NoGdb(f"gdb can't be started: {error.strerror}") from error
    return done.stdout


class _Parsed:
    def __init__(self, capture: Capture, threads: Sequence[CapturedThread]) -> None:
        self.capture = capture
        self.tids = {t.ns_tid or t.tid: t.tid for t in threads}
        self.sites = CallSites(capture.memory, capture.modules, capture.mappings)

    def stacks(self, output: str) -> NativeStacks:
        """What gdb said."""
        of_thread: dict[int, int] = {}  # gdb's number -> tid
        listed: dict[int, list[dict[str, Any]]] = {}
        pointers: list[list[int]] = [[]]
        for kind, token, payload in _records(output):
            if kind == "console":
                pointers[-1] += _pointers(payload)
            elif kind == "result" and token == 1 and isinstance(payload, dict):
                for thread in payload.get("threads", []):
                    tid = _LWP.search(str(thread.get("target-id", "")))
                    with suppress(KeyError, ValueError):
                        if tid is not None:
                            of_thread[int(thread["id"])] = self.tids[int(tid.group(1))]
            elif kind == "result" and token is not None and token > 1 and isinstance(payload, dict):
                listed[token - 1] = [f for f in payload.get("stack", []) if isinstance(f, dict)]
            elif kind == "result" and token is None and pointers[-1]:
                pointers.append([])
        if not of_thread or not listed:
            raise NoGdb("gdb could not read the core that was made for it")
        stacks = NativeStacks()
        sp = iter(pointers)
        frames = {}
        for number in sorted(listed):
            mine = next(sp, [])
            if number in of_thread and listed[number]:
                frames[of_thread[number]] = list(self._frames(listed[number], mine))
        stacks.frames = frames
        return stacks

    def _frames(self, listed: Sequence[dict[str, Any]], pointers: Sequence[int]) -> Iterator[NativeFrame]:
        pcs = [int(str(f.get("addr", "0")), 16) for f in listed]
        for number, (frame, pc) in enumerate(zip(listed, pcs, strict=True)):
            sp = pointers[number] if number < len(pointers) else 0
            following = pointers[number + 1] if number + 1 < len(pointers) else None
            inline = number + 1 < len(pcs) and pcs[number + 1] == pc and following == sp
            module = self.sites.module_at(pc)
            yield _frame(frame, pc, sp, inline, module)


def _frame(frame: dict[str, Any], pc: int, sp: int, inline: bool, module: Module | None) -> NativeFrame:
    name = str(frame.get("func", ""))
    name = "" if name == "??" else name
    known = module.symbol_at(pc) if module is not None and not inline else None
    symbol, offset = known or ("", pc - module.bias if module is not None else 0)
    language = language_of(symbol) if symbol else "native"
    line = str(frame.get("line", ""))
    return NativeFrame(
        pc=pc,
        sp=sp,
        function=demangle(symbol if language in ("c++", "rust") else name),
        offset=offset,
        library=module.path if module is not None else frame.get("from"),
        file=frame.get("file"),
        line=int(line) if line.isdigit() else None,
        inline=inline,
        language=language if name else "native",
    )


def _records(output: str) -> Iterator[tuple[str, int | None, Any]]:
    from pygdbmi import gdbmiparser

    for line in output.splitlines():
        with suppress(Exception):  # of a line that it does not understand it raises what comes
            parsed = gdbmiparser.parse_response(line)
            yield str(parsed["type"]), parsed.get("token"), parsed["payload"]


def _pointers(text: object) -> list[int]:
    found = re.findall(rf"{_STACK_POINTER} ([0-9a-f]{{1,16}})", str(text))
    return [int(word, 16) for word in itertools.islice(found, _MOST_FRAMES)]
