"""Values of a few objects of the types that somebody asked for, shortened: only on demand, and no secrets.

Table ``heap_values``, a row an object: ``type``, ``address``, ``value`` (as Python would write it, cut), or
``hidden``: why it is not shown. Objects that are known under a name that looks like a secret are hidden, and
so are values under such names inside of others, and texts that look like credentials.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.details.callables import name_of
from diagtool.runtimes.cpython.heap.details.contents import items_of
from diagtool.runtimes.cpython.heap.details.secrets import under_secret_names
from diagtool.runtimes.cpython.objects.addresssets import contains, distinct
from diagtool.runtimes.cpython.tasks.labels import looks_secret, secret_text
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

_MAX_TYPES = 20
_PER_TYPE = 10
_TEXT, _INNER = 60, 24  # characters of a text, of one inside of something else
_ITEMS = 6
_MAX_DIGITS = 40
_HIDDEN = "(hidden)"
_CALLED = ("function", "method", "builtin_function_or_method", "type", "functools.partial")


def add_values(ctx: Context, census: HeapCensus, interpreters: Sequence[Interpreter], pattern: str) -> None:
    """Add the table ``heap_values``: examples of objects of types of this name, or whose names match it."""
    chosen = _chosen(ctx, census, pattern)
    every = np.concatenate([np.zeros(0, np.uint64), *(objects for _, objects in chosen)])
    secret = under_secret_names(ctx, census, interpreters, every)
    reader = _Values(ctx)
    rows = []
    for name, objects in chosen:
        for address, hide in zip(objects.tolist(), contains(secret, objects).tolist(), strict=True):
            row = {"type": name, "address": address}
            if hide:
                rows.append({**row, "hidden": "its name looks like a secret"})
            else:
                rows.append({**row, "value": reader.shown(address)})
    ctx.builder.snapshot.tables["heap_values"] = rows


def _chosen(ctx: Context, census: HeapCensus, pattern: str) -> list[tuple[str, U64]]:
    """Examples by type, spread over memory; types with most objects first."""
    by_name: dict[str, list[U64]] = {}
    for kind, address in enumerate(census.types.address.tolist()):
        name = ctx.objects.qualified_type(address)
        if any(fnmatch.fnmatchcase(n, pattern) for n in (name, name.rpartition(".")[2])):
            objects = census.of(kind)
            if len(objects):
                by_name.setdefault(name, []).append(objects)
    out = []
    for name, parts in sorted(by_name.items(), key=lambda item: -sum(map(len, item[1])))[:_MAX_TYPES]:
        every = np.sort(np.concatenate(parts))
        pick = distinct(np.linspace(0, len(every) - 1, min(_PER_TYPE, len(every))).astype(np.uint64))
        out.append((name, every[pick.astype(np.intp)]))
    return out


class _Values:
    """Objects in few words."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx

    def shown(self, address: int) -> str:
        """The object as Python would write it, shortened; its type where that says nothing."""
        try:
            return self._plain(address, _TEXT) or self._whole(address)
        except MemoryFault:
            return "(unreadable)"

    def _plain(self, address: int, limit: int) -> str | None:
        """Texts, numbers, None; None for all else."""
        o = self.ctx.objects
        kind = o.kind(address)
        if o.is_none(address):
            return "None"
        if kind == "bool":
            return str(bool(o.truth(address)))
        if o.is_a(address, "str"):
            return self._text(o.text(address) or "", self._length(address, "PyASCIIObject.length"), limit)
        if kind in ("bytes", "bytearray"):
            return self._bytes(address, kind, limit)
        if o.is_a(address, "int"):
            return self._number(address)
        if kind == "float":
            return repr(o.real(address))
        return None

    def _length(self, address: int, field: str) -> int:
        return max(0, min(self.ctx.objects.memory.i64(address + self.ctx.runtime.layout[field]), 1 << 48))

    def _text(self, text: str, length: int, limit: int) -> str:
        if secret_text(text):
            return f"{_HIDDEN} ({length:,} characters)"
        if length <= limit:
            return repr(text)
        return f"{text[:limit]!r}… ({length:,} characters)"

    def _bytes(self, address: int, kind: str, limit: int) -> str:
        lay, m = self.ctx.runtime.layout, self.ctx.objects.memory
        size = self._length(address, "PyVarObject.ob_size")
        start = address + lay["PyBytesObject.ob_sval"]
        if kind == "bytearray":
            start = m.u64(address + lay["PyByteArrayObject.ob_start"])
        raw = m.read(start, min(size, 2 * limit)) if size else b""
        if secret_text(raw.decode("latin-1")):
            return f"{_HIDDEN} ({size:,} bytes)"
        shown = repr(raw[: limit // 2])
        shown = f"{kind}({shown})" if kind == "bytearray" else shown
        return shown if size <= limit // 2 else f"{shown}… ({size:,} bytes)"

    def _number(self, address: int) -> str:
        number = self.ctx.objects.integer(address)
        if number is None:
            return "an int of more than 64 digits of 30 bits"
        text = str(number)
        return text if len(text) <= _MAX_DIGITS else f"{text[:_MAX_DIGITS]}… ({len(text):,} digits)"

    def _inner(self, address: int) -> str:
        """Something inside of something else: no more than one level is shown."""
        plain = self._plain(address, _INNER)
        if plain is not None:
            return plain
        kind = self.ctx.objects.kind(address)
        if kind in _CALLED:
            return f"<{name_of(self.ctx, address)}>"
        return f"<{self.ctx.objects.qualified_kind(address) or 'unreadable'}>"

    def _whole(self, address: int) -> str:
        o = self.ctx.objects
        kind = o.kind(address)
        if o.is_a(address, "dict"):
            return self._dict(address)
        if o.is_a(address, "list", "tuple", "set", "frozenset", "collections.deque"):
            return self._sequence(address, kind)
        if kind in _CALLED or o.is_a(address, "type"):
            return f"<{name_of(self.ctx, address)}>"
        parts = list(self._attributes(address))
        if o.is_a(address, "BaseException"):
            with suppress(MemoryFault):
                args = o.memory.u64(address + self.ctx.runtime.layout["PyBaseExceptionObject.args"])
                parts[:0] = [self._inner(a) for a in items_of(self.ctx, args)[:_ITEMS].tolist()]
        return f"{o.qualified_kind(address)}({', '.join(parts)})"

    def _dict(self, address: int) -> str:
        keys, values = self.ctx.objects.dict_items(address)
        parts = []
        for key, value in zip(keys[:_ITEMS].tolist(), values[:_ITEMS].tolist(), strict=True):
            name = self.ctx.objects.text(key)
            shown = _HIDDEN if name is not None and looks_secret(name) else self._inner(value)
            parts.append(f"{self._inner(key)}: {shown}")
        return "{" + _joined(parts, len(keys)) + "}"

    def _sequence(self, address: int, kind: str) -> str:
        items = items_of(self.ctx, address)
        parts: list[str] = []
        hide = False  # the item after the name of a secret, as in a header or an item of a dict
        for item in items[:_ITEMS].tolist():
            name = self.ctx.objects.text(item)
            parts.append(_HIDDEN if hide else self._inner(item))
            hide = not hide and name is not None and looks_secret(name)
        text = _joined(parts, len(items))
        if kind == "list":
            return f"[{text}]"
        if kind == "tuple":
            return f"({text})" if len(items) != 1 else f"({text},)"
        return f"{kind.rpartition('.')[2]}({text})"

    def _attributes(self, address: int) -> Iterator[str]:
        """Attributes of an instance as ``name=value``."""
        for number, (name, value) in enumerate(_named(self.ctx, address)):
            if number == _ITEMS:
                yield "…"
                return
            yield f"{name}={_HIDDEN if looks_secret(name) else self._inner(value)}"


def _joined(parts: list[str], total: int) -> str:
    more = f", … ({total:,} items)" if total > len(parts) else ""
    return ", ".join(parts) + more


def _named(ctx: Context, address: int) -> Iterator[tuple[str, int]]:
    """(name, address of the value) of attributes: of slots, of the dict or the values in its place."""
    o, v, lay = ctx.objects, ctx.vectors, ctx.runtime.layout
    kind = o.type_of(address)
    for base in o.mro(kind):
        own = o.memory.u64(base + lay["PyTypeObject.tp_dict"])
        names, descriptors = o.dict_items(own) if own else (np.zeros(0, np.uint64),) * 2
        members = np.flatnonzero(v.are(descriptors, "member_descriptor"))
        for name in v.texts(names[members]):
            offset = o.slot(kind, name)
            value = o.memory.u64(address + offset) if offset is not None else 0
            if value and not name.startswith("__"):
                yield name, value
    values = o.inline_values(address, kind)
    if values:
        names = o.key_names(o.cached_keys(kind))
        held = v.words(np.uint64(values) + np.arange(len(names), dtype=np.uint64) * np.uint64(8))
        pairs = zip(v.texts(names), held.tolist(), strict=True)
    else:
        own = o.instance_dict(address, kind)
        names, held = o.dict_items(own) if own else (np.zeros(0, np.uint64),) * 2
        pairs = zip(v.texts(names), held.tolist(), strict=True)
    yield from ((name, value) for name, value in pairs if name and value)
