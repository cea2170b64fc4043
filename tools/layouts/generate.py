"""Write the layout tables, one JSON file a minor version, from the headers of interpreters on this machine.

Usage: generate.py [--only 3.12 ...] [--include FOLDER ...] [--check]

Headers come from what tools/fetch_interpreters.py knows (best with --headers), from pyenv's, from
/usr/include, and from each FOLDER (of the form .../include/python3.X). The newest patch release of a minor
version makes the table; the other ones are compared with it, and what differs is kept under "older", together
with what earlier runs found out from headers that are not here now. Needs gcc; runs nothing of Python.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from probing import FLAVOURS, HERE, CompileError, Probe, ask, parse

ROOT = HERE.parents[1]
OUT = ROOT / "src/diagtool/runtimes/cpython/layouts"
INDEX = ROOT / ".cache/interpreters/index.json"
MINORS = [f"3.{n}" for n in range(9, 16)]

#: Patch releases after which a structure of a .c file changed; transcribed.h says how, and why.
TRANSCRIBED = {"3.10": ["3.10.5"], "3.13": ["3.13.0"]}

#: Changes inside a minor version that a source tells of and no headers here show:
#: (last release before, flavours, structure, last field that stays, bytes by which later ones were earlier).
#: 3.14.5 brought the generational collector back (gh-148726) and appended three words to struct
#: _gc_runtime_state, long_lived_total, long_lived_pending and generation0; generations[0..2] lie where young,
#: old[0] and old[1] lay.
SHIFTED = {"3.14": [("3.14.4", ("release", "debug"), "PyInterpreterState", "gc.long_lived_total", 24)]}
SHIFTED_ABSENT = {"3.14.4": ["gc.long_lived_total", "gc.long_lived_pending", "gc.generation0"]}

Table = dict[str, int]
Overlay = dict[str, "int | None"]


def headers(more: list[Path]) -> dict[str, dict[str, list[Path]]]:
    """minor -> full version -> include folders (that of Python.h first), of all that this machine has."""
    folders = [
        *more,
        *Path.home().glob(".pyenv/versions/3.*/include/python3.*"),
        *Path("/usr/include").glob("python3.*"),
        *ROOT.glob(".cache/headers/*/usr/include/python3.*"),
    ]
    if INDEX.exists():
        folders += [Path(e["headers"]) for e in json.loads(INDEX.read_text())["interpreters"] if e["headers"]]
    found: dict[str, dict[str, list[Path]]] = {}
    for folder in folders:
        level = folder / "patchlevel.h"
        if not level.exists() or not (folder / "internal").is_dir() or folder.name.endswith("d"):
            continue
        match = re.search(r'^#define PY_VERSION\s+"([^"+]+)\+?"', level.read_text(), re.MULTILINE)
        if not match:
            continue
        minor = ".".join(match[1].split(".")[:2])
        found.setdefault(minor, {}).setdefault(match[1], [folder, *_platform_folder(folder)])
    return found


def _platform_folder(folder: Path) -> list[Path]:
    # Debian keeps pyconfig.h under include/<multiarch>/python3.X and puts a switch in its place.
    beside = [p for p in folder.parent.glob("*-linux-gnu*") if (p / folder.name / "pyconfig.h").exists()]
    return [folder.parent] if beside else []


def order(full: str) -> tuple[int, int, int]:
    """Sort key of "3.15.0rc2", "3.14.1": (patch, a < b < rc < final, number)."""
    match = re.match(r"3\.\d+\.(\d+)(?:(a|b|rc)(\d+))?$", full)
    if not match:
        raise ValueError(full)
    return int(match[1]), {"a": 0, "b": 1, "rc": 2, None: 3}[match[2]], int(match[3] or 0)


def hex_of(full: str) -> int:
    """PY_VERSION_HEX of a final release."""
    major, minor, patch = (int(n) for n in full.split("."))
    return major << 24 | minor << 16 | patch << 8 | 0xF0


def flavours_of(minor: str) -> list[str]:
    """The flavours that a minor version can be built in."""
    free_threaded = int(minor.split(".")[1]) >= 13
    return [f for f in FLAVOURS if free_threaded or not f.startswith("free-threaded")]


def table(include: list[Path], probes: list[Probe], flavour: str, hex_version: int | None = None) -> Table:
    """One flavour's answers, with the string state's bits under the names that readers of strings use."""
    answers = ask(include, probes, flavour, hex_version=hex_version)
    state = answers["PyASCIIObject.state"]
    for key in [k for k in answers if k.startswith("shift.PyASCIIObject.state.")]:
        field = key.rsplit(".", 1)[1]
        full = key.removeprefix("shift.")
        answers[f"const.unicode_state_{field}_shift"] = answers[key] + 8 * (answers[full] - state)
        answers[f"const.unicode_state_{field}_width"] = answers[f"width.{full}"]
    return answers


def overlay(new: Table, old: Table) -> Overlay:
    """What to lay over ``new`` to get ``old``: changed and added values, None where a key is absent."""
    changed: Overlay = {k: v for k, v in old.items() if new.get(k) != v}
    changed.update({k: None for k in new if k not in old})
    changed.pop("const.PY_VERSION_HEX", None)
    return changed


def laid_over(new: Table, changes: Overlay) -> Table:
    """The reverse of overlay()."""
    return {k: v for k, v in {**new, **changes}.items() if v is not None}


def shifted(full: str, tables: dict[str, Table]) -> dict[str, Table]:
    """Tables of an older release, made of those of a newer one by a rule of SHIFTED."""
    minor = full.rsplit(".", 1)[0]
    out = {}
    for flavour, answers in tables.items():
        old = dict(answers)
        for until, flavours, struct, field, by in SHIFTED[minor]:
            if until != full or flavour not in flavours:
                continue
            edge = answers[f"{struct}.{field}"]
            for key, value in answers.items():
                if (key.startswith(f"{struct}.") and value > edge) or key == f"sizeof.{struct}":
                    old[key] = value - by
            for gone in SHIFTED_ABSENT[until]:
                old.pop(f"{struct}.{gone}", None)
                old.pop(f"sizeof.{struct}.{gone}", None)
        out[flavour] = old
    return out


def document(minor: str, here: dict[str, list[Path]], probes: list[Probe], before: Any) -> dict[str, Any]:
    """The JSON document of one minor version, made anew; ``before`` is the one it replaces, or None."""
    newest, *others = sorted(here, key=order, reverse=True)
    tables = {f: table(here[newest], probes, f) for f in flavours_of(minor)}
    older: dict[str, dict[str, Any]] = {}

    def add(full: str, source: str, old: dict[str, Table]) -> None:
        changes = {f: overlay(t, old[f]) for f, t in tables.items() if f in old}
        older[full] = {"until": full, "source": source, "flavours": changes}

    all_tables = {newest: tables, **{v: {f: table(here[v], probes, f) for f in tables} for v in others}}

    def next_newer(full: str) -> str:
        return min((v for v in here if order(v) > order(full)), key=order)

    for full in [v for v in TRANSCRIBED.get(minor, []) if v not in here]:
        include = here[next_newer(full)]
        add(full, "transcribed.h", {f: table(include, probes, f, hex_of(full)) for f in tables})
    for full in [rule[0] for rule in SHIFTED.get(minor, []) if rule[0] not in here]:
        add(full, "generate.py", shifted(full, all_tables[next_newer(full)]))
    for full in others:
        add(full, "headers", all_tables[full])
    for entry in before["older"] if before else []:  # from headers that are not on this machine now
        if entry["source"] == "headers" and entry["until"] not in here:
            add(entry["until"], "headers", _remembered(entry, before, tables))
    compared = sorted({*others, *(before["compared"] if before else [])} - {newest}, key=order, reverse=True)
    return {
        "version": minor,
        "headers": newest,
        "compared": compared,
        "arch": "x86_64",
        "flavours": tables,
        "older": _without_repeats(sorted(older.values(), key=lambda o: order(o["until"]), reverse=True)),
    }


def _remembered(entry: Any, before: Any, tables: dict[str, Table]) -> dict[str, Table]:
    # An older release's tables as an earlier run knew them; what that run did not ask is taken as unchanged.
    out = {}
    for flavour, changes in entry["flavours"].items():
        known = before["flavours"][flavour]
        asked_since = {k: v for k, v in tables[flavour].items() if k not in known}
        out[flavour] = {**asked_since, **laid_over(known, changes)}
    return out


def _without_repeats(older: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # Newest first. An entry holds for its release and those before it, down to the next entry: one that
    # changes nothing more than the entry above it (or the table) says nothing.
    out: list[dict[str, Any]] = []
    for entry in older:
        above = out[-1]["flavours"] if out else {f: {} for f in entry["flavours"]}
        if entry["flavours"] != above:
            out.append(entry)
    return out


def report(doc: dict[str, Any]) -> None:
    """Print what a document holds."""
    sizes = ", ".join(f"{f} {len(t)}" for f, t in doc["flavours"].items())
    compared = ", ".join(doc["compared"]) or "none"
    print(f"{doc['version']} from {doc['headers']}, compared with {compared}: {sizes}")
    for entry in doc["older"]:
        changes = entry["flavours"]["release"]
        text = ", ".join(f"{k} {v}" for k, v in list(changes.items())[:8])
        print(f"  up to {entry['until']} ({entry['source']}), {len(changes)} keys: {text}")


def main() -> int:
    """Write or check the tables; the exit status is 1 when a check finds a difference."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", nargs="*", metavar="3.X", help="these minor versions only")
    parser.add_argument("--include", nargs="*", type=Path, default=[], metavar="FOLDER", help="more headers")
    parser.add_argument(
        "--check", action="store_true", help="write nothing, say whether the tables are current"
    )
    args = parser.parse_args()
    probes = parse((HERE / "probes.txt").read_text())
    found = headers([p.resolve() for p in args.include])
    answered: set[str] = set()
    stale = False
    for minor in args.only or MINORS:
        path = OUT / f"cpython-{minor}.json"
        before = json.loads(path.read_text()) if path.exists() else None
        here = found.get(minor, {})
        if not here or (before and order(before["headers"]) > max(map(order, here))):
            have = f"only headers of {', '.join(here)}" if here else "no headers"
            print(f"{minor}: this machine has {have}, the table stays as it is")
            answered |= {k for t in before["flavours"].values() for k in t} if before else set()
            continue
        try:
            doc = document(minor, here, probes, before)
        except CompileError as error:
            print(f"{minor}: its headers do not compile:\n{error}", file=sys.stderr)
            return 1
        answered |= {k for t in doc["flavours"].values() for k in t}
        text = json.dumps(doc, indent=0, separators=(",", ":")) + "\n"
        if not path.exists() or path.read_text() != text:
            stale = True
            if not args.check:
                path.write_text(text)
        report(doc)
    if not args.only:
        for key in sorted({p.key for p in probes if not p.key.startswith("sizeof.")} - answered):
            print(f"no version answers {key}", file=sys.stderr)
    return int(args.check and stale)


if __name__ == "__main__":
    sys.exit(main())
