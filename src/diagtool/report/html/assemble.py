"""Puts a page together: one file with the style, the scripts and the data in it, and a policy that allows
nothing else.

The data are a block of JSON, which is no script: ``<``, ``>`` and ``&`` in it are escapes, so that no name
can end it. The policy lets only the scripts and the style run whose hashes it names.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from diagtool.leaks.model import Report
from diagtool.report.html.data import subject, verdict_line
from diagtool.report.html.limits import MOST_BYTES, Limits
from diagtool.report.text import clean

__all__ = ["assembled", "head"]

_ASSETS = Path(__file__).parent / "assets"
#: Ours, in the order in which they build on each other.
_SCRIPTS = ("dom", "tables", "findings", "pictures", "waits", "flame", "areas", "growth", "main")
_PLACE = re.compile("@([A-Z]+)@")
_ESCAPES = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


def head(report: Report) -> str:
    """The title of the page."""
    return clean(f"{verdict_line(report)} · {subject(report.target)} · diagtool", 300)


def assembled(make: Callable[[Limits], dict[str, Any]], title: str) -> str:
    """The text of the page with what ``make`` gives; with less of it where it would get too large."""
    limits = Limits()
    while True:
        page = _page(title, as_json(make(limits)))
        if len(page) * 4 <= MOST_BYTES or len(page.encode()) <= MOST_BYTES or limits == limits.less():
            return page
        limits = limits.less()


def as_json(document: dict[str, Any]) -> str:
    """``document`` as JSON that may stand between tags of HTML."""
    text = json.dumps(_finite(document), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # What no encoding has (surrogates) was made an escape when the text was cleaned.
    return text.translate(_ESCAPES)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value


def _page(title: str, data: str) -> str:
    style, ours, charts = _asset("page.css"), _ours(), _asset("vendor/charts.js")
    policy = (
        "default-src 'none'",
        f"script-src {_hash(ours)} {_hash(charts)}",
        f"style-src {_hash(style)}",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    parts = {
        "TITLE": html.escape(title),
        "POLICY": "; ".join(policy),
        "STYLE": style,
        "DATA": data,
        "CHARTS": charts,
        "OURS": ours,
    }
    # In one pass: what is put in may hold what looks like a place for more.
    return _PLACE.sub(lambda place: parts[place[1]], _asset("page.html")) + "\n"


@cache
def _asset(name: str) -> str:
    return (_ASSETS / name).read_text("utf-8").strip()


@cache
def _ours() -> str:
    return "\n".join(("'use strict';", *(_asset(f"{name}.js") for name in _SCRIPTS)))


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
