"""Lengths of time as people write them: 30s, 2m, 90."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

__all__ = ["Duration"]

if TYPE_CHECKING:
    _ParamType = click.ParamType[float]
else:  # generic in new releases of click only
    _ParamType = click.ParamType

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_TEXT = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)(s|m|min|h|)")


class Duration(_ParamType):
    """Seconds, of one second to a day."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read "30s"."""
        if isinstance(value, float):
            return value
        found = _TEXT.fullmatch(str(value).strip())
        seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
        if not 1 <= seconds <= 86400:
            self.fail(f"{value} is no time from 1s to 24h, such as 30s or 2m.", param, ctx)
        return seconds
