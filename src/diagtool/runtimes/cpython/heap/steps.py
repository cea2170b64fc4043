"""Steps of a retention path in words: ``_images (dict, 812,004 items)``.

Names of globals and attributes are shown, for they are the program's text. Keys and items of containers are
data, and are not.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from diagtool.capture.memory import MemoryFault
from diagtool.runtimes.cpython.context import Context

_SIZED = ("dict", "list", "tuple", "set", "frozenset", "collections.deque", "collections.OrderedDict")
_DICTS = ("dict", "collections.OrderedDict", "collections.defaultdict")
_MAX_TOLD = 14  # steps; of longer paths the middle is left out


@dataclass(slots=True)
class Step:
    """One object on a path. ``name``: of the global, local or attribute that it is, None for other items."""

    address: int
    type: str
    name: str | None = None
    items: int | None = None
    folded: bool = False  # the __dict__ of the step before: part of its attribute


def step_to(ctx: Context, outer: int, inner: int, name: str | None) -> Step:
    """The step from an object (0: a root that has no names) to one that it refers to."""
    o = ctx.objects
    kind = o.kind(inner)
    step = Step(inner, o.qualified_kind(inner) or kind or "object", name)
    if kind in _SIZED:
        step.items = o.size(inner)
    if outer and name is None:
        with suppress(MemoryFault):
            step.name, step.folded = _name(ctx, outer, inner)
    return step


def _name(ctx: Context, outer: int, inner: int) -> tuple[str | None, bool]:
    o, lay = ctx.objects, ctx.runtime.layout
    kind = o.kind(outer)
    if kind == "module":
        return None, o.kind(inner) in _DICTS
    if o.kind(inner) == "cell" or kind == "cell":
        return None, kind != "cell"
    if o.is_a(outer, "type"):
        own = o.memory.u64(outer + lay["PyTypeObject.tp_dict"])
        return (None, True) if own == inner else (None, False)
    if kind in _DICTS:
        return None, False
    if kind == "function":
        return None, False
    if kind == "method":
        return "__self__", False
    if kind in _SIZED or kind in ("frame", "generator", "coroutine", "async_generator"):
        return None, False
    if o.instance_dict(outer) == inner:
        return None, True
    return o.attribute_name(outer, inner), False


def name_in_dict(ctx: Context, own: int, inner: int) -> str | None:
    """The key of a dict (of a module, class or instance) that ``inner`` is the value of."""
    try:
        keys, values = ctx.objects.dict_items(own)
    except MemoryFault:
        return None
    at = (values == inner).nonzero()[0]
    return ctx.objects.text(int(keys[at[0]])) if len(at) else None


def in_words(label: str, steps: list[Step]) -> str:
    """``module app.cache → _images (dict, 812,004 items) → PIL.Image``."""
    told = [label, *(_said(step) for step in steps if not step.folded)]
    if len(told) > _MAX_TOLD:
        told = [*told[: _MAX_TOLD // 2], "…", *told[-_MAX_TOLD // 2 :]]
    return " → ".join(told)


def _said(step: Step) -> str:
    what = step.type
    if step.items is not None:
        what += f", {step.items:,} item{'s' * (step.items != 1)}"
    return f"{step.name} ({what})" if step.name else what
