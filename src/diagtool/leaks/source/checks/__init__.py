"""All source checks by name. Each looks at one function of one file; docs/templates.md describes them."""

from __future__ import annotations

from diagtool.leaks.source.checks import golang, kept, locks, loops, tasks, threads

__all__ = ("CHECKS",)

CHECKS = {
    check.name: check for module in (tasks, locks, loops, threads, kept, golang) for check in module.CHECKS
}
