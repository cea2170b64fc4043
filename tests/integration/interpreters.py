"""The CPython interpreters of this machine, as tools/fetch_interpreters.py found them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INDEX = Path(__file__).parents[2] / ".cache/interpreters/index.json"


@dataclass(frozen=True)
class Interpreter:
    """One interpreter: "3.12", its flavour, "3.12.1", the command that starts it, its root folder or None."""

    version: str
    flavour: str
    full: str
    argv: tuple[str, ...]
    root: str | None

    def __str__(self) -> str:
        words = [self.full, self.flavour if self.flavour != "release" else "", "chroot" if self.root else ""]
        return "-".join(w for w in words if w)


def interpreters() -> list[Interpreter]:
    """All interpreters of the index, each (release, flavour, in a root or not) once; else the tests' own."""
    if INDEX.exists():
        entries: list[dict[str, Any]] = json.loads(INDEX.read_text())["interpreters"]
        fields = ("version", "flavour", "full", "root")
        found = [Interpreter(argv=tuple(e["argv"]), **{f: e[f] for f in fields}) for e in entries]
        return list({str(i): i for i in reversed(found)}.values())[::-1]
    version = sys.version_info
    full = f"{version.major}.{version.minor}.{version.micro}"
    return [Interpreter(full.rsplit(".", 1)[0], "release", full, (sys.executable,), None)]


def run(interpreter: Interpreter, program: str, stdin: str = "") -> str:
    """Run a program text in an interpreter, isolated from the environment; returns what it printed.

    The text is handed over with -c, so that it works inside a root folder too. Raises AssertionError with the
    program's last words when it fails.
    """
    command = [*interpreter.argv, "-I", "-c", program]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=100, cwd="/")
    assert done.returncode == 0, f"{interpreter}: {done.stderr[-2000:]}"
    return done.stdout
