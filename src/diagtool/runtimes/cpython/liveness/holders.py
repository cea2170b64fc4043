"""Who holds what: the nearest way from a module global or a frame's local to tasks and to things.

A breadth-first walk along strong references, from all globals and locals at once, user code before libraries,
a few steps deep. It finds the holders that people write (a set in a module, a list on a service
object); it is no complete heap walk, and says nothing where it finds nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import STACKREF_TAGS, Context
from diagtool.runtimes.cpython.objects.addresssets import contains, distinct
from diagtool.runtimes.cpython.objects.referents import Referents
from diagtool.runtimes.cpython.tasks.chains import Chains
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

MAX_DEPTH = 4
MAX_NODES = 200_000
_MAX_PATH_ITEMS = 100_000
_MAX_FRAMES = 200  # of one stack whose locals are looked at
_MAX_TRACES = 500
_MANY_GLOBALS = 16_384  # of modules that are looked at together

#: What is walked through besides instances of Python classes.
_THROUGH = (
    "dict",
    "list",
    "tuple",
    "set",
    "frozenset",
    "collections.deque",
    "collections.OrderedDict",
    "collections.defaultdict",
    "function",
    "cell",
    "method",
    "functools.partial",
)
_CONTAINERS = ("dict", "list", "tuple", "set", "frozenset", "collections.deque")
_NEVER = ("type", "module", "code", "str", "int", "float", "bytes", "NoneType")


@dataclass(slots=True)
class _Nodes:
    address: U64
    parent: NDArray[np.int64]  # index of the node it was reached from, -1 for roots
    labels: dict[int, str] = field(default_factory=dict)  # of roots


@dataclass(slots=True)
class Root:
    """A named place: ``label`` is "app.tasks" or "local tasks in main (app.py:12)"."""

    address: int
    label: str


def global_roots(ctx: Context, interpreters: list[Interpreter]) -> list[Root]:
    """The globals of all loaded modules, those of the program before those of libraries."""
    own: list[Root] = []
    libraries: list[Root] = []
    for interpreter in interpreters:
        for modules in _batches(_modules(ctx, interpreter)):
            keys = np.concatenate([m.keys for m in modules])
            values = np.concatenate([m.values for m in modules])
            owner = np.repeat(np.arange(len(modules)), [len(m.keys) for m in modules])
            users = _are_users(ctx, keys, values, owner, len(modules))
            worth = np.flatnonzero(_walkable(ctx, values))
            texts = ctx.vectors.texts(keys[worth])
            for number, text, value in zip(owner[worth].tolist(), texts, values[worth].tolist(), strict=True):
                root = Root(value, f"{modules[number].name}.{text}")
                (own if users[number] else libraries).append(root)
    return own + libraries


@dataclass(slots=True)
class _Module:
    name: str  # in sys.modules
    keys: U64  # of its globals
    values: U64


def _modules(ctx: Context, interpreter: Interpreter) -> Iterator[_Module]:
    try:
        names, modules = ctx.objects.dict_items(interpreter.modules)
    except MemoryFault:
        return
    texts = ctx.vectors.texts(names)
    dicts = ctx.vectors.field(modules, "PyModuleObject.md_dict")
    kinds = ctx.vectors.kinds(modules)
    for name, own_dict, kind in zip(texts, dicts.tolist(), kinds.tolist(), strict=True):
        if kind == "module" and own_dict:
            with suppress(MemoryFault):
                yield _Module(name, *ctx.objects.dict_items(own_dict))


def _batches(modules: Iterable[_Module]) -> Iterator[list[_Module]]:
    """Modules whose globals are looked at together: so much quicker than one by one."""
    batch: list[_Module] = []
    size = 0
    for module in modules:
        batch.append(module)
        size += len(module.keys)
        if size >= _MANY_GLOBALS:
            yield batch
            batch, size = [], 0
    if size:
        yield batch


def _are_users(
    ctx: Context, keys: U64, values: U64, owner: NDArray[np.intp], modules: int
) -> NDArray[np.bool_]:
    """Which modules are the program's own, by ``__name__`` and ``__file__`` (names of eight characters)."""
    eight = np.flatnonzero(ctx.vectors.field(keys, "PyASCIIObject.length") == np.uint64(8))
    texts = ctx.vectors.texts(keys[eight])
    rows = eight[np.array([text in ("__name__", "__file__") for text in texts], np.bool_)]
    out = np.zeros(modules, np.bool_)
    for module, key, value in zip(
        owner[rows].tolist(),
        ctx.vectors.texts(keys[rows]),
        ctx.vectors.texts(values[rows]),
        strict=True,
    ):
        if key == "__name__":
            out[module] |= value == "__main__"
        else:
            out[module] |= bool(value) and "/lib/python3" not in value and "site-packages" not in value
    return out


def _walkable(ctx: Context, addresses: U64) -> NDArray[np.bool_]:
    """Which objects are walked through: containers, closures, instances of classes written in Python."""
    types, inverse = np.unique(ctx.vectors.types(addresses), return_inverse=True)
    referents = Referents(ctx)
    good = []
    for t in types.tolist():
        name = ctx.objects.type_name(t) if t else ""
        good.append(bool(name) and name not in _NEVER and (name in _THROUGH or referents.known(t)))
    return np.array(good, np.bool_)[inverse] if len(addresses) else np.zeros(0, np.bool_)


def find_holders(
    ctx: Context, roots: list[Root], targets: U64, stop_at: U64
) -> tuple[NDArray[np.int64], list[str]]:
    """For each of ``targets`` (sorted addresses) the index of its holder in the list of paths, -1 for none.

    ``stop_at`` (sorted) are objects that are not walked through: tasks and coroutines.
    """
    holder = np.full(len(targets), -1, np.int64)
    nodes = _Nodes(np.array([r.address for r in roots], np.uint64), np.full(len(roots), -1, np.int64))
    nodes.labels = {i: r.label for i, r in enumerate(roots)}
    _claim(holder, targets, nodes.address, np.arange(len(roots)))
    seen = distinct(nodes.address)
    frontier = np.flatnonzero(~contains(stop_at, nodes.address))
    referents = Referents(ctx)
    for _ in range(MAX_DEPTH):
        if not len(frontier) or len(nodes.address) > MAX_NODES:
            break
        source, target = referents.of(nodes.address[frontier])
        order = np.argsort(source, kind="stable")
        source, target = frontier[source[order]], target[order]
        _claim(holder, targets, target, source)
        if (holder >= 0).all():
            break
        fresh, first = np.unique(target, return_index=True)
        pick = ~contains(seen, fresh) & ~contains(stop_at, fresh)
        fresh, first = fresh[pick], first[pick]
        seen = distinct(np.concatenate([seen, fresh]))
        worth = _walkable(ctx, fresh)
        order = np.argsort(first[worth], kind="stable")[:MAX_NODES]
        start = len(nodes.address)
        nodes.address = np.concatenate([nodes.address, fresh[worth][order]])
        nodes.parent = np.concatenate([nodes.parent, source[first[worth][order]]])
        frontier = np.arange(start, len(nodes.address))
    return _paths(ctx, nodes, holder)


def _claim(holder: NDArray[np.int64], targets: U64, found: U64, source: NDArray[np.int64]) -> None:
    """Note for targets among ``found`` the first source that leads to them (roots name themselves)."""
    if not len(targets) or not len(found):
        return
    at = np.minimum(np.searchsorted(targets, found), len(targets) - 1)
    hit = np.flatnonzero((targets[at] == found) & (holder[at] < 0))
    for_first = at[hit][::-1]
    holder[for_first] = source[hit][::-1]  # of several, the first in order is written last


def _paths(ctx: Context, nodes: _Nodes, holder: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[str]]:
    used, inverse = np.unique(holder[holder >= 0], return_inverse=True)
    out = np.full(len(holder), -1, np.int64)
    out[holder >= 0] = inverse
    return out, [_path(ctx, nodes, int(n)) for n in used]


def _path(ctx: Context, nodes: _Nodes, node: int) -> str:
    """ "app.service.tasks (set, 10,000 items)" """
    steps: list[int] = []
    while node >= 0 and len(steps) < 16:
        steps.append(node)
        node = int(nodes.parent[node])
    steps.reverse()
    label = nodes.labels.get(steps[0], "?")
    for outer, inner in itertools.pairwise(steps):
        label += _step(ctx, int(nodes.address[outer]), int(nodes.address[inner]))
    last = int(nodes.address[steps[-1]])
    kind = ctx.objects.kind(last)
    if kind in _CONTAINERS:
        size = ctx.objects.size(last)
        return f"{label} ({kind.rpartition('.')[2]}, {size:,} item{'s' * (size != 1)})"
    return f"{label} ({ctx.objects.qualified_kind(last) or kind})"


def _step(ctx: Context, outer: int, inner: int) -> str:
    """How ``inner`` is reached from ``outer``: ".attribute", "['key']", "[3]", ""."""
    o = ctx.objects
    kind = o.kind(outer)
    try:
        if kind in ("dict", "collections.OrderedDict", "collections.defaultdict"):
            return _by_key(ctx, outer, inner)
        if kind in ("list", "tuple", "collections.deque"):
            items = o.sequence_items(outer, _MAX_PATH_ITEMS)
            return f"[{items.index(inner)}]" if inner in items else "[…]"
        if kind == "function":
            return ".__closure__"
        if kind == "cell":
            return ""
        if kind == "method":
            return ".__self__"
        if kind == "traceback":
            return ".tb_next" if o.kind(inner) == kind else ".tb_frame"
        if kind == "frame":
            return ".f_back" if o.kind(inner) == kind else ".f_locals"
        if o.kind(inner) == "traceback":
            return ".__traceback__"
        name = o.attribute_name(outer, inner)
        if name:
            return f".{name}"
        own = o.instance_dict(outer)
        return "" if own == inner else ".…"
    except MemoryFault:
        return ".…"


def _by_key(ctx: Context, outer: int, inner: int) -> str:
    keys, values = ctx.objects.dict_items(outer)
    at = np.flatnonzero(values == np.uint64(inner))
    if not len(at):
        return "[…]"
    key = int(keys[at[0]])
    text = ctx.objects.text(key)
    if text is not None:
        return f"[{text[:40]!r}]"
    number = ctx.objects.integer(key)
    return f"[{number}]" if number is not None else "[…]"


def frame_roots(ctx: Context, interpreters: list[Interpreter], chains: Chains) -> list[Root]:
    """Locals of frames that are worth following: of all threads, and of one task for each distinct trace."""
    frames: list[tuple[int, int]] = [
        (f.code, f.locals) for i in interpreters for t in i.threads for f in t.frames[:_MAX_FRAMES]
    ]
    rows = np.unique(chains.trace, return_index=True)[1][:_MAX_TRACES]
    for depth in range(min(len(chains.levels), _MAX_FRAMES)):
        codes = chains.level_of(rows, depth, "code").tolist()
        frames += zip(codes, chains.level_of(rows, depth, "locals").tolist(), strict=True)
    found = [root for code, first in frames if code for root in _local_roots(ctx, code, first)]
    worth = _walkable(ctx, np.array([r.address for r in found], np.uint64))
    return [r for r, good in zip(found, worth.tolist(), strict=True) if good]


def _local_roots(ctx: Context, address: int, first: int) -> list[Root]:
    code = ctx.codes.get(address)
    names = ctx.codes.local_names(code) if code else []
    if code is None or not first or not names:
        return []
    slots = first + np.arange(len(names), dtype=np.uint64) * np.uint64(8)
    values = (ctx.vectors.words(slots) & np.uint64(~STACKREF_TAGS & (1 << 64) - 1)).tolist()
    return [Root(v, f"local {n} of {code.qualname}") for n, v in zip(names, values, strict=True) if v]


def hold_stacks(
    ctx: Context, interpreters: list[Interpreter], chains: Chains, addresses: U64, stop_at: U64
) -> tuple[NDArray[np.int64], list[str]]:
    """Holders of tasks (or whatever ``addresses`` are, sorted): (index for each, -1 for none; paths)."""
    roots = global_roots(ctx, interpreters) + frame_roots(ctx, interpreters, chains)
    return find_holders(ctx, roots, addresses, stop_at)
