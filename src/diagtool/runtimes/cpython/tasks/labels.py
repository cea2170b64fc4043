"""Context variables of tasks: request ids, tenants and whatever else a program marks its work with.

A PyContext holds an immutable hash tree (Python/hamt.c) of ContextVar -> value. Copies of a context share it,
so the trees are told apart by address and each is read once, all of them level by level. Only short texts and
numbers become labels, and never those of variables whose names look like secrets.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.objects.referents import Edges, joined, ragged

__all__ = ("ContextValues", "looks_secret")

_MAX_LEVELS = 9  # HAMT_MAX_TREE_DEPTH is 8 (Include/internal/pycore_hamt.h, 3.12: 9)
_MAX_LABELS = 200_000  # of one snapshot
_MAX_VALUES = 1 << 20
_MAX_TEXT = 128  # characters of a value; longer ones are data, not labels
_MAX_ROWS = 200  # of the table of values

_SECRET = re.compile(
    r"token|passw|passphrase|pwd|secret|(?<![a-z])key|api_?key|auth|cookie|session|cred|bearer|jwt|private|"
    r"signature|certificate|csrf|salt|otp(?![a-z])|(?<![a-z])pin(?![a-z])",
    re.IGNORECASE,
)
_SECRET_TEXT = re.compile(r"(bearer|basic)\s|eyJ|-----BEGIN|[a-z+]+://[^/\s]*:[^/\s]*@", re.IGNORECASE)
_EXCEPTION = 1 << 30  # Py_TPFLAGS_BASE_EXC_SUBCLASS
_SIMPLE = ("str", "int", "bool", "float")
_ARRAY_WIDTH = 32  # HAMT_ARRAY_NODE_SIZE

_0 = np.uint64(0)


def looks_secret(name: str) -> bool:
    """Whether a variable of this name may hold something that must not leave the process."""
    return _SECRET.search(name) is not None


def secret_text(text: str) -> bool:
    """Whether a text looks like credentials by itself: a token, a private key, an address with a password."""
    return _SECRET_TEXT.match(text) is not None


class ContextValues:
    """What the contexts of one process hold: values by tree."""

    def __init__(self, ctx: Context, contexts: U64) -> None:
        self.ctx = ctx
        trees = ctx.vectors.field(_of_kind(ctx, contexts, "_contextvars.Context"), "PyContext.ctx_vars")
        self._trees, self._tree_of = np.unique(_of_kind(ctx, trees, "hamt"), return_inverse=True)
        self._tree, self._variable, self._value = self._walk()

    def _walk(self) -> tuple[NDArray[np.intp], U64, U64]:
        # (index of the tree, address of the ContextVar, address of the value), for all trees together
        ctx, v = self.ctx, self.ctx.vectors
        nodes = v.field(self._trees, "PyHamtObject.h_root")
        trees = np.arange(len(self._trees))
        found: list[tuple[NDArray[np.intp], U64, U64]] = []
        total = 0
        for _ in range(_MAX_LEVELS):
            there = nodes != 0
            trees, nodes = trees[there], nodes[there]
            if not len(nodes):
                break
            pairs, keys, values = _pairs(ctx, nodes)
            leaf = keys != 0
            found.append((trees[pairs[leaf]], keys[leaf], values[leaf]))
            total += len(pairs)
            if total > _MAX_VALUES:
                ctx.warn(f"contexts hold more than {_MAX_VALUES:,} values: labels are not complete")
                break
            inner, children = joined([(pairs[~leaf], values[~leaf]), _children(ctx, nodes)])
            trees, nodes = trees[inner], children
        if not found:
            return np.zeros(0, np.intp), np.zeros(0, np.uint64), np.zeros(0, np.uint64)
        tree, variable, value = (np.concatenate([f[i] for f in found]) for i in range(3))
        order = np.argsort(tree, kind="stable")
        return tree[order], variable[order], value[order]

    def _names(self) -> tuple[list[str], NDArray[np.intp]]:
        # (names of the distinct variables, index of each value's)
        v = self.ctx.vectors
        variables, inverse = np.unique(self._variable, return_inverse=True)
        variables = _of_kind(self.ctx, variables, "_contextvars.ContextVar")
        return v.texts(v.field(variables, "PyContextVar.var_name")), inverse

    def sizes(self) -> NDArray[np.int64]:
        """How many variables each of the given contexts has set."""
        counts = self.ctx.vectors.field(self._trees, "PyHamtObject.h_count").astype(np.int64)
        return np.where(self._trees[self._tree_of] != 0, counts[self._tree_of], 0)

    def private(self) -> NDArray[np.bool_]:
        """Of which contexts the values are held by none but the given contexts."""
        references = self.ctx.vectors.references(self._trees)
        uses = np.bincount(self._tree_of, minlength=len(self._trees))
        own: NDArray[np.bool_] = (references == uses) & (self._trees != 0)
        return own[self._tree_of]

    def labels(self, first: int) -> list[tuple[int, str, str]]:
        """Rows of (``first`` + index of the context, variable, value), in order."""
        names, name_of = self._names()
        good = np.array([bool(n) and not looks_secret(n) for n in names], np.bool_)
        kinds = self.ctx.vectors.kinds(self._value)
        pick = np.isin(kinds, _SIMPLE)
        pick[pick] = good[name_of[pick]]
        rows = np.flatnonzero(pick)
        texts = self._texts(self._value[rows], kinds[rows])
        short = np.array([0 < len(t) <= _MAX_TEXT and not _SECRET_TEXT.match(t) for t in texts], np.bool_)
        rows = rows[short] if len(rows) else rows
        of_value = dict(zip(np.flatnonzero(pick).tolist(), texts, strict=True))
        return self._spread(first, rows, [names[i] for i in name_of[rows].tolist()], of_value)

    def _spread(
        self, first: int, rows: NDArray[np.intp], names: list[str], texts: dict[int, str]
    ) -> list[tuple[int, str, str]]:
        by_tree: dict[int, list[tuple[str, str]]] = {}
        for row, name in zip(rows.tolist(), names, strict=True):
            by_tree.setdefault(int(self._tree[row]), []).append((name, texts[row]))
        out: list[tuple[int, str, str]] = []
        if not by_tree:
            return out
        marked = np.isin(self._tree_of, list(by_tree))
        for i in np.flatnonzero(marked).tolist():
            if len(out) > _MAX_LABELS:
                self.ctx.warn(f"more than {_MAX_LABELS:,} context labels: those of later tasks were left out")
                break
            out += [(first + i, name, text) for name, text in by_tree[int(self._tree_of[i])]]
        return out

    def _texts(self, values: U64, kinds: NDArray[np.str_]) -> list[str]:
        v = self.ctx.vectors
        texts = v.texts(np.where(kinds == "str", values, _0))
        numbers = v.integers(np.where(kinds == "str", _0, values), 1 << 62).tolist()
        reals = v.reals(values)
        for i in np.flatnonzero(kinds != "str").tolist():
            if kinds[i] == "float":
                texts[i] = repr(float(reals[i]))
            elif kinds[i] == "bool":
                texts[i] = str(bool(numbers[i]))
            else:
                texts[i] = str(numbers[i]) if numbers[i] != 1 << 62 else ""
        return texts

    def table(self) -> list[dict[str, Any]]:
        """In how many contexts each variable holds a value of each type, the most first:

        {"variable": "request", "type": "app.Request", "count": 200, "exception": False}
        """
        v, o = self.ctx.vectors, self.ctx.objects
        names, name_of = self._names()
        uses = np.bincount(self._tree_of, minlength=len(self._trees))
        types, type_of = np.unique(v.types(self._value), return_inverse=True)
        key = name_of.astype(np.int64) << 32 | type_of
        distinct, inverse = np.unique(key, return_inverse=True)
        counts = np.bincount(inverse, weights=uses[self._tree], minlength=len(distinct)).astype(np.int64)
        out: list[dict[str, Any]] = []
        for i in np.argsort(-counts, kind="stable")[:_MAX_ROWS].tolist():
            name, t = names[int(distinct[i]) >> 32], int(types[int(distinct[i]) & 0xFFFFFFFF])
            if name and t:
                out.append(
                    {
                        "variable": name,
                        "type": o.qualified_type(t),
                        "count": int(counts[i]),
                        "exception": bool(o.type_flags(t) & _EXCEPTION),
                    }
                )
        return out


def _of_kind(ctx: Context, addresses: U64, kind: str) -> U64:
    bare = kind.rpartition(".")[2]
    return ctx.vectors.only(addresses, kind, bare)


def _pairs(ctx: Context, nodes: U64) -> tuple[NDArray[np.intp], U64, U64]:
    """(key, value) pairs of bitmap and collision nodes; a key of 0 makes the value a node."""
    v = ctx.vectors
    kinds = v.kinds(nodes)
    parts: list[Edges] = []
    for kind, field in (
        ("hamt_bitmap_node", "PyHamtNode_Bitmap.b_array"),
        ("hamt_collision_node", "PyHamtNode_Collision.c_array"),
    ):
        mine = np.where(kinds == kind, nodes, _0)
        slots = v.field(mine, "PyVarObject.ob_size").astype(np.int64)
        first = np.where(mine != 0, mine + np.uint64(ctx.runtime.layout[field]), _0)
        parts.append(ragged(first, np.where(slots <= 2 * _ARRAY_WIDTH, slots // 2, 0), 16))
    owner, places = joined(parts)
    return owner, v.words(places), v.words(places, 8)


def _children(ctx: Context, nodes: U64) -> Edges:
    """The nodes below array nodes."""
    v = ctx.vectors
    mine = v.only(nodes, "hamt_array_node")
    first = np.where(mine != 0, mine + np.uint64(ctx.runtime.layout["PyHamtNode_Array.a_array"]), _0)
    owner, places = ragged(first, np.full(len(nodes), _ARRAY_WIDTH))
    return owner, v.words(places)
