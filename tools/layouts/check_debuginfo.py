"""Compare the layout tables with the debug information of the interpreters on this machine.

Usage: check_debuginfo.py [3.12 ...]

The tables come from headers and from declarations written down in transcribed.h. Where an interpreter carries
its DWARF (pyenv builds do; Debian's -dbg packages bring it: fetch_interpreters.py --all), gdb says what the
compiler really did. Prints each field that differs, counts those that agree; exit status 1 when any differs.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from generate import INDEX

from diagtool.runtimes.cpython import layouts

MODULES = ["_asyncio", "_queue", "_socket", "select", "_functools", "_collections"]

#: Names that the tables give to structures of another name, or that need "struct" in front.
C_NAMES = {
    "deque_block": "BLOCK",
    "PyODictObject": "_odictobject",
    "Py_AsyncioModuleDebugOffsets": "_Py_AsyncioModuleDebugOffsets",
}

#: Runs inside gdb: for each file, the offset of each key that the file's debug information knows.
IN_GDB = r"""
import gdb, json
job = json.load(open(JOB))
answers = {}
RECORDS = (gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION)

def find(name):
    for spelled in (name, "struct " + name):
        try:
            return gdb.lookup_type(spelled).strip_typedefs()
        except gdb.error:
            pass
    return None

def offset(kind, path):
    bits = 0
    for step in path:
        name, _, index = step.partition("[")
        kind = kind.strip_typedefs()
        todo, field = [(kind, 0)], None
        while todo and field is None:  # anonymous members are looked through
            inner, base = todo.pop()
            for f in inner.fields():
                if f.name == name:
                    field = (f, base + f.bitpos)
                elif not f.name and f.type.strip_typedefs().code in RECORDS:
                    todo.append((f.type.strip_typedefs(), base + f.bitpos))
        if field is None:
            return None
        bits += field[1]
        kind = field[0].type
        if index:
            kind = kind.strip_typedefs().target()
            bits += int(index.rstrip("]")) * kind.sizeof * 8
    return bits

for file in job["files"]:
    gdb.execute("file " + file, to_string=True)
    types = {}
    for key in job["keys"]:
        sized = key.startswith("sizeof.")
        name, *path = (key[7:] if sized else key).split(".")
        if sized and path:
            continue
        if name not in types:
            types[name] = find(job["names"].get(name, name))
        kind = types[name]
        if kind is None or kind.code not in RECORDS:
            continue
        got = kind.sizeof * 8 if sized else offset(kind, path)
        if got is not None:
            answers.setdefault(key, [])
            if got not in answers[key]:
                answers[key].append(got)
json.dump(answers, open(job["out"], "w"))
"""


def files_of(entry: dict[str, str]) -> Iterator[Path]:
    """The files with debug information of an interpreter: itself, libpython, extension modules."""
    minor, root = entry["version"], Path(entry["root"] or "/")
    binary = Path(entry["argv"][-1]) if not entry["root"] else root / entry["argv"][-1].lstrip("/")
    binary = binary.resolve()
    lib = binary.parent.parent / "lib"
    tag = minor.replace(".", "")
    tag += "d" if entry["flavour"] == "debug" and entry["root"] else "t" * entry["flavour"].startswith("free")
    candidates = [binary, *lib.glob(f"libpython{minor}.so.1.0")]
    for module in MODULES:
        candidates += lib.glob(f"python{minor}*/lib-dynload/{module}.cpython-{tag}-*.so")
    for path in candidates:
        notes = subprocess.run(["readelf", "-nSW", str(path)], capture_output=True, text=True).stdout
        if ".debug_info" in notes:
            yield path
        elif found := re.search(r"Build ID: ([0-9a-f]{2})([0-9a-f]+)", notes):
            beside = root / f"usr/lib/debug/.build-id/{found[1]}/{found[2]}.debug"
            if beside.exists():
                yield beside


def ask(files: list[Path], keys: list[str], folder: Path) -> dict[str, list[int]]:
    """key -> offsets in bits, as the debug information of the files has them."""
    job, out, script = folder / "job.json", folder / "out.json", folder / "script.py"
    job.write_text(
        json.dumps({"files": [str(f) for f in files], "keys": keys, "names": C_NAMES, "out": str(out)})
    )
    script.write_text(IN_GDB.replace("JOB", repr(str(job))))
    command = ["gdb", "-batch", "-nx", "-iex", "set debuginfod enabled off", "-x", str(script)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not out.exists():
        raise SystemExit(f"gdb failed: {done.stderr[-600:]}")
    answers: dict[str, list[int]] = json.loads(out.read_text())
    return answers


def compare(entry: dict[str, str]) -> int:
    """Compare the table of one interpreter; returns how many fields differ."""
    name = f"{entry['full']} {entry['flavour']}"
    files = list(files_of(entry))
    if not files:
        print(f"{name}: no debug information")
        return 0
    table = layouts.load(entry["full"], entry["flavour"])
    keys = [k for k in table if not k.startswith(("const.", "shift.", "width."))]
    with tempfile.TemporaryDirectory() as folder:
        answers = ask(files, keys, Path(folder))
    wrong = 0
    for key, bits in answers.items():
        expected = table[key] * 8 + table.get(f"shift.{key}", 0)
        if expected not in bits:
            wrong += 1
            print(f"{name}: {key} is {expected / 8:g}, not {' or '.join(f'{b / 8:g}' for b in bits)}")
    unknown = ", ".join(sorted(_structures(keys) - _structures(answers))) or "none"
    print(f"{name}: {len(answers) - wrong} of {len(answers)} agree; not in {len(files)} files: {unknown}")
    return wrong


def _structures(keys: Iterable[str]) -> set[str]:
    return {k.removeprefix("sizeof.").split(".")[0] for k in keys}


def main() -> int:
    """Compare every interpreter that has debug information."""
    entries = json.loads(INDEX.read_text())["interpreters"]
    return int(sum(compare(e) for e in entries if not sys.argv[1:] or e["version"] in sys.argv[1:]) > 0)


if __name__ == "__main__":
    sys.exit(main())
