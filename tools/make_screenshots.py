#!/usr/bin/env python3
"""Make the pictures of docs/html-report.md: reports of real programs, in headless Chromium.

usage: make_screenshots.py

Starts the demo service (fixtures/python/service.py), the service that eats memory (thumbnails.py, three
snapshots with --heap) and a deadlock (c08_lock_order.py), as tools/make_docs.py does, and takes pictures of
their reports. Needs Chromium (make browser).
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]

from make_docs import Sample, run, service, started, thumbnails  # noqa: E402

import browser as chromium  # noqa: E402
from browser import Browser  # noqa: E402

IMAGES = ROOT / "docs" / "images"
LOCKS = [sys.executable, str(ROOT / "fixtures/python/c08_lock_order.py"), "leak"]


def main() -> int:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, chromium.started() as browser:
        with service() as sample:
            page = report(sample, Path(folder), ["service.diag"])
        browser.open(page, width=1080)
        keep(browser, "html-findings", 760)
        with started(LOCKS) as (_, sample):
            page = report(sample, Path(folder), [sample.pid])
        browser.open(page, width=1180, scheme="dark")
        keep(browser, "html-waits", 480, "#waits")
        with thumbnails() as sample:
            page = report(sample, Path(folder), ["1.diag", "2.diag", "3.diag"])
        browser.open(page, width=1080)
        keep(browser, "html-growth", 640, "#growth")
    return 0


def report(sample: Sample, folder: Path, targets: list[str]) -> Path:
    """The HTML report of what was taken, without what only this machine has."""
    page = folder / f"{sample.pid}.html"
    run(["leaks", *targets, "--format", "html", "-o", str(page), "--fail-on", "never"], sample.folder)
    text = sample.shown(page.read_text("utf-8"))
    page.write_text(re.sub(r'\["Host","[^"]*"\]', '["Host","shop-1"]', text), "utf-8")
    return page


def keep(browser: Browser, name: str, height: int, selector: str | None = None) -> None:
    """A picture for the documentation, cut to ``height``."""
    shot = browser.shot(name, selector, height)
    (IMAGES / f"{name}.png").write_bytes(shot.read_bytes())
    print(f"{name}.png: {shot.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
