#!/usr/bin/env python3
"""Make the library that the HTML report draws with: Vega and dagre, as one file of JavaScript.

usage: make_charts.py [--check]

Takes the packages of tools/charts/package-lock.json from the npm registry (their hashes are in it; no script
of a package is run), joins what tools/charts/index.js names with esbuild, and writes into
src/diagtool/report/html/assets/vendor/:

    charts.js      the library, with the licences of everything in it at its top, as every report holds it
    LICENSES.txt   the same licences

--check writes nothing and fails when charts.js is not what it should be. Needs npm and node.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHARTS = ROOT / "tools" / "charts"
VENDOR = ROOT / "src" / "diagtool" / "report" / "html" / "assets" / "vendor"

#: What every browser of the last five years understands.
TARGET = "es2020"
_PACKAGE = re.compile(r"node_modules/((?:@[^/]+/)?[^/]+)/")
_COPYRIGHT = re.compile(r"^\s*Copyright.*$", re.MULTILINE)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library, licences = made(folder)
    text = f"/*!\n{licences}*/\n{library}"
    if check:
        same = (VENDOR / "charts.js").read_text("utf-8") == text
        print("charts.js is as it should be" if same else "charts.js is stale: run tools/make_charts.py")
        return 0 if same else 1
    VENDOR.mkdir(parents=True, exist_ok=True)
    (VENDOR / "charts.js").write_text(text, "utf-8")
    (VENDOR / "LICENSES.txt").write_text(licences, "utf-8")
    print(f"charts.js: {len(text.encode()):,} bytes")
    return 0


def made(folder: Path) -> tuple[str, str]:
    """The library and its licences, made in ``folder``."""
    for name in ("package.json", "package-lock.json", "index.js"):
        shutil.copy(CHARTS / name, folder)
    subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"], cwd=folder, check=True
    )
    command = [
        *("node_modules/.bin/esbuild", "index.js", "--bundle", "--minify", "--format=iife"),
        *("--global-name=charts", f"--target={TARGET}", "--charset=utf8", "--legal-comments=none"),
        *("--log-level=warning", "--outfile=charts.js", "--metafile=meta.json"),
    ]
    subprocess.run(command, cwd=folder, check=True)
    inputs = json.loads((folder / "meta.json").read_text())["outputs"]["charts.js"]["inputs"]
    found = (_PACKAGE.search(path) for path, part in inputs.items() if part["bytesInOutput"])
    packages = sorted({match[1] for match in found if match})
    library = (folder / "charts.js").read_text("utf-8")
    if "</script" in library.lower():
        raise ValueError("the library can't stand in a page: it holds </script")
    return library, licences_of(folder / "node_modules", packages)


def licences_of(modules: Path, packages: list[str]) -> str:
    """The text of each licence once, with the packages and the copyright lines that it is for."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    holders: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for package in packages:
        about = json.loads((modules / package / "package.json").read_text("utf-8"))
        file = next(p for p in sorted((modules / package).iterdir()) if p.name.lower().startswith("licen"))
        text = file.read_text("utf-8").replace("*/", "* /")
        body = re.sub(r"\s+", " ", _COPYRIGHT.sub("", text)).strip()
        body = body.removeprefix("All rights reserved. ")
        names[body].append(f"{package} {about['version']} ({about['license']})")
        holders[body].update(dict.fromkeys(line.strip() for line in _COPYRIGHT.findall(text)))
    parts = [
        "\n".join([", ".join(names[body]), *holders[body], "", body])
        for body in sorted(names, key=names.get)  # type: ignore[arg-type]
    ]
    return ("\n\n" + "-" * 20 + "\n\n").join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
