"""``extends``: a template takes what it does not say itself from another one, of the same folder or ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from diagtool.leaks.template import LIBRARY
from diagtool.leaks.template_table import Document, nearest, tomllib
from diagtool.leaks.tomllines import Path

__all__ = ("Bases",)

_Raw = Mapping[str, Any]


@lru_cache(maxsize=1)
def _builtin() -> dict[str, _Raw]:
    """Our own templates as TOML has them, by id."""
    toml = tomllib()
    texts = (file.read_text("utf-8") for file in sorted(LIBRARY.glob("*.toml")))
    return {raw["id"]: raw for text in texts for raw in toml.loads(text)["template"]}


class Bases:
    """What can be extended: the templates of ``documents``, and ours."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self._own: dict[str, _Raw] = {}
        for document in documents:
            for raw in document.raw_templates():
                if isinstance(raw.get("id"), str):
                    self._own.setdefault(raw["id"], raw)

    def extended(self, document: Document, raw: _Raw, path: Path) -> _Raw | None:
        """``raw`` with what it takes from others; None where that can't be found out, which is then told."""
        chain = [raw]
        names = [str(raw.get("id"))]
        ours = False
        while "extends" in chain[-1]:
            name = chain[-1]["extends"]
            if not isinstance(name, str):
                self._tell(document, raw, path, "must be the id of a template")
                return None
            base = None if ours or name == names[-1] else self._own.get(name)
            if base is None:
                base, ours = _builtin().get(name), True
            elif name in names:
                self._tell(document, raw, path, f"goes in a circle: {' → '.join([*names, name])}")
                return None
            if base is None:
                near = nearest(name, [*self._own, *_builtin()])
                self._tell(document, raw, path, f"there is no template {name!r}{near}")
                return None
            chain.append(base)
            names.append(name)
        whole: dict[str, Any] = {}
        for part in reversed(chain):
            whole.update(part)
        if ours and "runbook" not in whole and not whole.get("idle"):
            whole["runbook"] = f"docs/runbooks/{names[-1]}.md"
        whole.pop("extends", None)
        if len(chain) > 1 and "id" not in raw:
            whole.pop("id", None)  # that is its own
        return whole

    def _tell(self, document: Document, raw: _Raw, path: Path, what: str) -> None:
        where = raw.get("id")
        document.problem(
            f"{where if isinstance(where, str) else 'template'}.extends", what, (*path, "extends")
        )
