"""What a team has accepted, ``[[ignore]]`` of its baseline file, applied to what tests left.

    python -m diagtool.probes.accepted FOLDER < '[finding, ...]'

prints ``{"reasons": ["…" or "", ...], "problem": ""}``. Reading the file takes the engine, so it is done in a
process of its own, and only when something was left and there is such a file.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import Any

from diagtool.probes.left import Left

SECONDS = 30.0


class Accepted:
    """Asks about what is left; what is like something that was asked about is not asked about again."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._there = _may_have_baseline(folder)
        self._said: dict[tuple[object, ...], str] = {}
        self.problem = ""

    def mark(self, leaks: Iterable[Left]) -> None:
        """Say in ``ignored`` of those that are accepted why they are."""
        if not self._there:
            return
        unknown = {(left.likeness, left.label): left for left in leaks}
        unknown = {key: left for key, left in unknown.items() if key not in self._said}
        if unknown:
            asked = [{**left.as_json(), "label": left.label or left.name} for left in unknown.values()]
            for key, reason in zip(unknown, self._ask(asked), strict=False):
                self._said[key] = reason
        for left in leaks:
            left.ignored = self._said.get((left.likeness, left.label), "")

    def _ask(self, asked: list[dict[str, Any]]) -> list[str]:
        from subprocess import DEVNULL, SubprocessError, run

        command = [sys.executable, "-m", __name__, self._folder]
        try:
            done = run(
                command,
                input=json.dumps(asked).encode(),
                stdout=-1,
                stderr=DEVNULL,
                timeout=SECONDS,
                check=True,
            )
            answer = json.loads(done.stdout)
            self.problem = str(answer["problem"])
            return [str(reason) for reason in answer["reasons"]]
        except (OSError, ValueError, KeyError, TypeError, SubprocessError) as error:
            self.problem = f"the baseline file could not be read: {error}"
            return []


# Whether it is worth a look. The rules are diagtool.leaks.baseline's, which say it exactly.
def _may_have_baseline(folder: str) -> bool:
    while True:
        if os.path.exists(os.path.join(folder, ".diagtool.toml")):
            return True
        try:
            with open(os.path.join(folder, "pyproject.toml"), "rb") as file:
                if b"diagtool" in file.read(1 << 20):
                    return True
        except OSError:
            pass
        above = os.path.dirname(folder)
        if above == folder:
            return False
        folder = above


def reasons(folder: str, things: list[dict[str, Any]]) -> tuple[list[str], str]:
    """(Why each is accepted, "" if it is not; what is wrong with the file, "" if nothing is)."""
    from datetime import date
    from pathlib import Path

    from diagtool.leaks import baseline
    from diagtool.leaks.model import Finding
    from diagtool.snapshot.model import Frame

    file = baseline.find(Path(folder))
    if file is None:
        return [""] * len(things), ""
    try:
        entries = baseline.read(file).entries
    except (baseline.BaselineError, OSError) as error:
        return [""] * len(things), str(error)
    out = []
    for thing in things:
        frames = {
            part: tuple(Frame(f["function"], f["file"], f["line"]) for f in thing[part])
            for part in ("created", "waiting")
        }
        finding = Finding(
            id="",
            template=thing.get("template"),
            verdict="likely",
            severity="medium",
            kind=thing["kind"],
            count=1,
            title=thing["name"],
            state="",
            frames=frames["waiting"],
            created_by=frames["created"],
            examples=(thing["label"],),
        )
        today = date.today()
        fitting = (e for e in entries if e.matches(finding) and not e.expired(today))
        entry = next(fitting, None)
        out.append("" if entry is None else f"accepted in {file.name}: {entry.reason}")
    return out, ""


def main() -> None:
    """Read what is asked about, print the answer."""
    said, problem = reasons(sys.argv[1], json.load(sys.stdin))
    print(json.dumps({"reasons": said, "problem": problem}))


if __name__ == "__main__":
    main()
