"""Names of Go's types, from the tables that every program carries (internal/abi.Type, Name)."""

from __future__ import annotations

from diagtool.runtimes.golang.model import GoRuntime

__all__ = ["TypeNames"]

_EXTRA_STAR = 1 << 1  # tflag: the text is that of the pointer to the type
_STRING = 40  # offset of the name's offset in a type
_FLAGS = 20
_LONGEST = 512


class TypeNames:
    """Types by address, each read once."""

    def __init__(self, runtime: GoRuntime) -> None:
        self.runtime = runtime
        self._known: dict[int, str] = {}
        words = [m.words for m in runtime.modules]
        self._types = [(w.get("types", 0), w.get("etypes", 0)) for w in words]

    def of(self, address: int) -> str:
        """The name of the type at ``address`` ("*main.job", "chan int"); "" where it is not known."""
        found = self._known.get(address)
        if found is None:
            found = self._known[address] = self._read(address)
        return found

    def _read(self, address: int) -> str:
        memory = self.runtime.memory
        base = next((low for low, high in self._types if low <= address < high), 0)
        head = memory.try_read(address, 48) if base else None
        if head is None:
            return ""
        place = base + int.from_bytes(head[_STRING : _STRING + 4], "little", signed=True)
        data = memory.try_read(place, 3 + _LONGEST) or memory.try_read(place, 64)
        if not data:
            return ""
        size, used = data[1] & 127, 2
        if data[1] & 128:
            size, used = size | (data[2] & 127) << 7, 3
        text = data[used : used + min(size, _LONGEST)].decode("utf-8", "replace")
        return text[1:] if head[_FLAGS] & _EXTRA_STAR and text.startswith("*") else text
