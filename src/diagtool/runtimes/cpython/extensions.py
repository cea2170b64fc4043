"""Which mapped libraries are extension modules: the modules of sys.modules, and where their code is.

A module object refers to its definition (PyModuleDef, or from 3.15 on its token and its exec function), which
is in the data of its library: that needs no name. For the others ``__file__`` says it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from diagtool.capture.memory import U64, MemoryFault
from diagtool.capture.modules import Module
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

__all__ = ["ModulesByAddress", "add_extensions"]

_DEFINITIONS = ("PyModuleObject.md_def", "PyModuleObject.md_exec", "PyModuleObject.md_token")
_MOST_ROWS = 10_000
_MOST_PATH = 1 << 16  # characters
_MOST_ASKED = 2_000  # modules whose __file__ is looked for one by one


class ModulesByAddress:
    """The mapped files of a capture by address."""

    def __init__(self, modules: Sequence[Module]) -> None:
        self._modules = sorted(modules, key=lambda m: m.start)
        self._starts = [m.start for m in self._modules]

    def at(self, address: int) -> Module | None:
        """The file that is mapped at an address."""
        i = bisect_right(self._starts, address) - 1
        module = self._modules[i] if i >= 0 else None
        return module if module is not None and module.contains(address) else None


def add_extensions(ctx: Context, interpreters: Sequence[Interpreter]) -> None:
    """Add the table ``python_libraries``, a row a module of Python that has code of its own in a library.

    ``module`` (its name in sys.modules), ``library`` (path as it is mapped; null where it is not known which
    that is), ``file`` (``__file__``), ``address`` of the module object; and one row for the interpreter
    itself, whose ``module`` is null.
    """
    own = ctx.runtime.module
    rows: list[dict[str, object]] = [{"module": None, "library": _plain(own), "file": None, "address": None}]
    seen: set[tuple[str, str | None]] = set()
    for interpreter in interpreters:
        try:
            names, modules = (
                ctx.objects.dict_items(interpreter.modules) if interpreter.modules else (None, None)
            )
        except MemoryFault as fault:
            ctx.warn(f"which libraries are extension modules is not known: {fault}")
            continue
        if names is None or modules is None:
            continue
        good = ctx.vectors.are(modules, "module")
        for name, library, file, address in _extensions(ctx, names[good], modules[good], own):
            if (name, library) not in seen and len(rows) < _MOST_ROWS:
                seen.add((name, library))
                rows.append({"module": name, "library": library, "file": file, "address": address})
    ctx.builder.snapshot.tables["python_libraries"] = rows


def _extensions(
    ctx: Context, names: U64, modules: U64, interpreter: str
) -> list[tuple[str, str | None, str | None, int]]:
    v, layout = ctx.vectors, ctx.runtime.layout
    known = ModulesByAddress(ctx.capture.modules)
    libraries: list[str | None] = [None] * len(modules)
    for name in _DEFINITIONS:
        if name in layout:
            for i, address in enumerate(v.field(modules, name).tolist()):
                found = known.at(address) if address and libraries[i] is None else None
                libraries[i] = found.path if found is not None else libraries[i]
    # Of modules in Python the interpreter's is the only definition; built-in ones are in its library.
    open_ = np.array([path is None or path == interpreter for path in libraries], np.bool_)
    dicts = v.field(modules, "PyModuleObject.md_dict")
    told = v.dict_values(dicts, "__file__")
    files = v.texts(_of_libraries(ctx, told))
    asked = 0
    out = []
    by_file = {_plain(m.path): m.path for m in ctx.capture.modules}
    by_name = _by_last_part([m.path for m in ctx.capture.modules])
    for i, (name, address) in enumerate(zip(v.texts(names), modules.tolist(), strict=True)):
        file = files[i] or None
        if open_[i]:
            # Of a dict with many names only the first are looked through for all at once.
            if not told[i] and libraries[i] is None and asked < _MOST_ASKED:
                asked += 1
                file = ctx.objects.text(ctx.objects.dict_get(int(dicts[i]), "__file__")) if dicts[i] else None
            if file is None or ".so" not in file.rpartition("/")[2]:
                continue
            libraries[i] = by_file.get(file) or by_name.get(file.rpartition("/")[2])
        library = libraries[i]
        out.append((name, None if library is None else _plain(library), file, address))
    return out


# The texts that end as names of libraries do, 0 for the others: most are long paths of sources.
def _of_libraries(ctx: Context, texts: U64) -> U64:
    v, layout = ctx.vectors, ctx.runtime.layout
    length = np.where(v.are(texts, "str"), v.field(texts, "PyASCIIObject.length"), np.uint64(0))
    length = np.where(length < _MOST_PATH, length, np.uint64(0))
    end = texts + np.uint64(layout["sizeof.PyASCIIObject"]) + length - np.uint64(3)
    ascii_only = v.memory.load_block(np.where(length > 3, end, np.uint64(0)), 3)[0]
    plain = (ascii_only == np.frombuffer(b".so", np.uint8)).all(axis=1)
    state = v.small(texts, "PyASCIIObject.state", "<u4") >> layout["const.unicode_state_ascii_shift"] & 1
    return np.where((length > 3) & (plain | (state == 0)), texts, np.uint64(0))


# The only mapped file of a name: the path of a module may go through links, or another root.
def _by_last_part(paths: Sequence[str]) -> dict[str, str]:
    out: dict[str, str] = {}
    twice: set[str] = set()
    for path in paths:
        name = _plain(path).rpartition("/")[2]
        if name in out and out[name] != path:
            twice.add(name)
        out[name] = path
    return {name: path for name, path in out.items() if name not in twice}


def _plain(path: str) -> str:
    return path.removesuffix(" (deleted)")
