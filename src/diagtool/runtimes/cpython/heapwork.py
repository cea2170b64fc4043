"""What is done with the heap of a process, in its order. Imported where somebody asks for it: it is much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.allocations import add_allocations
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.graph.tables import add_graph
from diagtool.runtimes.cpython.heap.bases import add_bases
from diagtool.runtimes.cpython.heap.details.details import add_details
from diagtool.runtimes.cpython.heap.details.foreign import add_foreign
from diagtool.runtimes.cpython.heap.details.values import add_values
from diagtool.runtimes.cpython.heap.tables import add_heap, add_why
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

__all__ = ["HeapWork"]


class HeapWork:
    """The objects of a process, counted when it is made; for the parameters see ``decode.decode``."""

    def __init__(
        self,
        ctx: Context,
        interpreters: Sequence[Interpreter],
        *,
        heap: bool,
        why: str | None,
        graph: bool | None,
        values: str | None,
    ) -> None:
        self.ctx = ctx
        self.interpreters = list(interpreters)
        self.heap, self.why, self.graph, self.values = heap, why, graph, values
        with ctx.capture.memory.unwatched():
            self.census = add_heap(ctx)

    def look(self, tasks: U64) -> None:
        """What the objects are and who keeps them. ``tasks``: addresses of the tasks."""
        ctx, census, interpreters = self.ctx, self.census, self.interpreters
        if census is None:
            return
        with ctx.capture.memory.unwatched():
            if self.heap:
                add_details(ctx, census, interpreters)
                add_allocations(ctx, census)
                if self.graph is not False:
                    with _as_far_as_memory_goes(ctx, "what keeps the largest containers"):
                        add_bases(ctx, census, interpreters, tasks)
            if self.values is not None:
                add_values(ctx, census, interpreters, self.values)
            if self.why is not None:
                add_why(ctx, census, interpreters, tasks, self.why)

    def look_late(self, tasks: U64) -> None:
        """What nobody refers to. It may read what is late: after what is to be of one instant."""
        ctx, census, interpreters = self.ctx, self.census, self.interpreters
        if census is None or not self.heap or self.graph is False:
            return
        with ctx.capture.memory.unwatched(), _as_far_as_memory_goes(ctx, "what nobody refers to"):
            add_graph(ctx, census, interpreters, tasks, asked=self.graph is True)
            if len(census.garbage):
                add_foreign(ctx, census, interpreters)  # again, without what only waits for the collector


@contextmanager
def _as_far_as_memory_goes(ctx: Context, what: str) -> Iterator[None]:
    """A part that a core without all memory need not have."""
    try:
        yield
    except MemoryFault as fault:
        ctx.warn(f"{what} is not known: {fault}")
