"""On which line of a TOML file a key stands. The text is TOML that was read already: nothing is checked.

at = lines_of('[[template]]\\nid = "x"\\n[template.match]\\nwait = "y"')
at["template", 0, "match", "wait"] == 4
"""

from __future__ import annotations

import re
from typing import TypeAlias

__all__ = ("Path", "line_of", "lines_of")

#: Keys from the top of the file; numbers are places in lists.
Path: TypeAlias = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY = re.compile(r"""[ \t]*(?:"((?:[^"\\\n]|\\.)*)"|'([^'\n]*)'|([A-Za-z0-9_-]+))[ \t]*""")
_STRING = re.compile(
    r'"""(?:[^\\]|\\[\s\S])*?"{3,5}'
    r"|'''[\s\S]*?'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
)
_BARE = re.compile(r"[^,\]}#\n]*")


def lines_of(text: str) -> dict[Path, int]:
    """The line (from 1 on) of every key and table in ``text``."""
    return _Scanner(text).lines


def line_of(lines: dict[Path, int], path: Path) -> int | None:
    """The line of ``path``, or of the nearest table around it that is in the file."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self._line, self._counted = 1, 0
        self._lists: dict[Path, int] = {}  # path of a list of tables -> how many there are
        table: Path = ()
        while self._blank():
            before = self.at
            if text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)
            if self.at == before:  # no TOML
                break

    def _blank(self) -> bool:
        found = _BLANK.match(self.text, self.at)
        self.at = found.end() if found else self.at
        return self.at < len(self.text)

    def _note(self, path: Path, at: int) -> None:
        self._line += self.text.count("\n", self._counted, at)
        self._counted = at
        self.lines.setdefault(path, self._line)

    def _keys(self) -> list[str]:
        keys: list[str] = []
        while found := _KEY.match(self.text, self.at):
            keys.append(next(part for part in found.groups() if part is not None))
            self.at = found.end()
            if self.text[self.at : self.at + 1] != ".":
                break
            self.at += 1
        return keys

    def _header(self) -> Path:
        start = self.at
        many = self.text.startswith("[[", start)
        self.at += 2 if many else 1
        path: Path = ()
        keys = self._keys()
        for i, key in enumerate(keys):
            path = (*path, key)
            last = i == len(keys) - 1
            if last and many:
                self._lists[path] = self._lists.get(path, 0) + 1
            if path in self._lists:
                path = (*path, self._lists[path] - 1)
        end = self.text.find("\n", self.at)
        self.at = len(self.text) if end < 0 else end
        self._note(path, start)
        return path

    def _pair(self, table: Path) -> None:
        start = self.at
        path = table
        for key in self._keys():
            path = (*path, key)
            self._note(path, start)
        if self.text[self.at : self.at + 1] == "=":
            self.at += 1
            self._value(path, 0)

    def _value(self, path: Path, depth: int) -> None:
        self._blank()
        head = self.text[self.at : self.at + 1]
        if head in ("[", "{") and depth < 50:
            self.at += 1
            index = 0
            while self._blank() and self.text[self.at] not in "]}":
                before = self.at
                if head == "{":
                    self._pair(path)
                else:
                    self._note((*path, index), self.at)
                    self._value((*path, index), depth + 1)
                    index += 1
                self._blank()
                if self.text[self.at : self.at + 1] == ",":
                    self.at += 1
                if self.at == before:
                    return
            self.at += 1
            return
        found = _STRING.match(self.text, self.at) or _BARE.match(self.text, self.at)
        self.at = found.end() if found else self.at
