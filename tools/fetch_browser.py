#!/usr/bin/env python3
"""Have what the tests of the HTML report use: Chromium with its driver, and axe-core.

usage: fetch_browser.py

Chromium and chromedriver come from Debian's packages chromium and chromium-driver, which apt-get installs
(needs root; on other systems install them yourself). axe-core, which looks for what hinders people, comes
from the npm registry in the version of tools/charts/package-lock.json, and is kept in .cache/browser/.
Tests are skipped for what is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AXE = ROOT / ".cache" / "browser" / "axe.min.js"
PACKAGES = ["chromium", "chromium-driver", "fonts-dejavu-core"]


def main() -> int:
    problems = [problem for problem in (chromium(), axe()) if problem]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def chromium() -> str:
    """Install it where it is missing; what went wrong, or ""."""
    if shutil.which("chromium") and shutil.which("chromedriver"):
        return ""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return f"chromium: install {' and '.join(PACKAGES[:2])} (needs root and apt-get)"
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", "-qq", *words], env=quiet, capture_output=True, text=True)
        if done.returncode:
            return f"chromium: {(done.stderr.strip() or 'apt-get failed').splitlines()[-1]}"
    return ""


def axe() -> str:
    """Fetch axe-core where it is missing; what went wrong, or ""."""
    if AXE.exists():
        return ""
    if not shutil.which("npm"):
        return "axe-core: this machine has no npm"
    with tempfile.TemporaryDirectory() as folder:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(ROOT / "tools" / "charts" / name, folder)
        words = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            return f"axe-core: {(done.stderr.strip() or 'npm failed').splitlines()[-1]}"
        AXE.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(folder, "node_modules/axe-core/axe.min.js"), AXE)
    return ""


if __name__ == "__main__":
    sys.exit(main())
