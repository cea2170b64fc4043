"""Checks of sources of Go, which stand in a package of their own: they look at trees of another kind."""

from __future__ import annotations

from diagtool.leaks.source.golang import channels, resources, shared, waits

__all__ = ("CHECKS",)

CHECKS = (*channels.CHECKS, *shared.CHECKS, *waits.CHECKS, *resources.CHECKS)
