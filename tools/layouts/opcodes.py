#!/usr/bin/env python3
"""Write the numbers of the opcodes that diagtool looks for, by asking each interpreter.

usage: opcodes.py [--check]     writes src/diagtool/runtimes/cpython/layouts/opcodes.json

By version: ``attribute`` (LOAD_ATTR, LOAD_METHOD) and ``name`` (LOAD_GLOBAL) with their specialised and
adaptive forms, ``attribute_shift`` and ``name_shift`` (bits of the argument below the index into co_names),
and ``caches``: how many 2-byte inline cache entries follow an opcode, where there are any.
Interpreters: those of tools/fetch_interpreters.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "src/diagtool/runtimes/cpython/layouts/opcodes.json"
INDEX = ROOT / ".cache/interpreters/index.json"

#: Runs in the interpreter that is asked; 3.11 and 3.12 have their specialised forms in a header only.
QUESTION = r"""
import json, opcode, os, re, sys, sysconfig
numbers = dict(opcode.opmap)
numbers.update(getattr(opcode, "_specialized_opmap", {}))
base = {form: name for name, forms in getattr(opcode, "_specializations", {}).items() for form in forms}
if (3, 11) <= sys.version_info < (3, 13):
    header = open(os.path.join(sysconfig.get_path("include"), "opcode.h")).read()
    numbers.update((k, int(v)) for k, v in re.findall(r"#define ([A-Z_0-9]+)\s+(\d+)", header))
    base.update((k, k[: -len("_ADAPTIVE")]) for k in numbers if k.endswith("_ADAPTIVE"))
entries = getattr(opcode, "_inline_cache_entries", None)
def caches(name):
    name = base.get(name, name)
    if entries is None or name not in opcode.opmap:
        return 0
    return entries.get(name, 0) if hasattr(entries, "get") else entries[opcode.opmap[name]]
def forms(*names):
    return sorted(v for k, v in numbers.items() if (base.get(k, k) in names) and v < 256)
new = sys.version_info >= (3, 11)
print(json.dumps({"%d.%d" % sys.version_info[:2]: {
    "attribute": forms("LOAD_ATTR", "LOAD_METHOD"),
    "attribute_shift": int(sys.version_info >= (3, 12)),
    "caches": {str(v): caches(k) for k, v in sorted(numbers.items(), key=lambda i: i[1])
               if v < 256 and caches(k) and not k.startswith(("INSTRUMENTED", "MIN_", "MAX_", "NB_"))},
    "name": forms("LOAD_GLOBAL"),
    "name_shift": int(new),
}}))
"""


def main() -> int:
    """Ask one interpreter of each version."""
    asked: dict[str, list[str]] = {}
    for entry in json.loads(INDEX.read_text())["interpreters"]:
        if entry["flavour"] == "release" and (entry["headers"] or entry["root"] is not None):
            asked.setdefault(entry["version"], entry["argv"])
    table: dict[str, object] = {}
    for version in sorted(asked, key=lambda v: int(v.partition(".")[2])):
        done = subprocess.run([*asked[version], "-c", QUESTION], capture_output=True, text=True, check=True)
        table.update(json.loads(done.stdout))
    text = json.dumps(table, separators=(",", ":")).replace('},"3', '},\n"3') + "\n"
    if "--check" in sys.argv[1:]:
        return int(text != OUT.read_text())
    OUT.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
