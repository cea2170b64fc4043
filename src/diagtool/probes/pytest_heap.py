"""Heap growth of a marked test: its runs, without what pytest itself collects from them."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest

from diagtool.probes.heapgrowth import Growth, Limits, measure
from diagtool.probes.left import Left
from diagtool.probes.sites import Site, is_own


def measured(item: pytest.Item, limits: Limits) -> list[Left]:
    """Run the test as often as the mark says; what grows, as one finding. The fixtures are set up once."""
    kept = _log_handlers()

    def run() -> None:
        # Each warning and each record that is caught would be growth.
        with warnings.catch_warnings(record=True):
            item.runtest()
        for handler in kept:
            handler.reset()

    growth = measure(run, limits)
    return [] if growth is None else [_left(item, growth)]


def _log_handlers() -> list[Any]:
    handlers = logging.getLogger().handlers
    return [h for h in handlers if type(h).__module__ == "_pytest.logging" and hasattr(h, "reset")]


def _left(item: pytest.Item, growth: Growth) -> Left:
    path, line, _ = item.location
    said = [f"{n:,.3g} {kind}" for kind, n in growth.types]
    lines = [Site(file, number, f"{blocks:,.3g} blocks, {size:,.0f} bytes a run")
             for file, number, blocks, size in growth.lines]  # fmt: skip
    return Left(
        "heap",
        item.nodeid,
        growth.sentence(),
        f"objects a run: {', '.join(said)}" if said else "no objects that the collector knows",
        tuple(sorted(lines, key=lambda site: not is_own(site.file))),
        extra={
            "blocks": growth.blocks,
            "native_bytes": growth.native_bytes,
            "runs": growth.runs,
            "types": [{"type": kind, "count": n} for kind, n in growth.types],
            "test_file": path,
            "test_line": (line or 0) + 1,
        },
    )
