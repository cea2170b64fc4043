"""What suspended greenlets wait for, by their innermost frames and what they are calling.

gevent's own waits are compiled: ``gevent.sleep`` and sockets have frames, queues, events and locks have none.
For these the callee lies on the evaluation stack of the frame that waits, among what earlier calls left
there: it counts if the running line names it, and no other. Greenlets with one trace are looked at together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import STACKREF_TAGS, Context
from diagtool.runtimes.cpython.frames.callsites import call_site
from diagtool.runtimes.cpython.greenlets.frames import GreenletFrames
from diagtool.runtimes.cpython.threads.interpreters import Interpreter
from diagtool.runtimes.cpython.threads.things import ThreadThings
from diagtool.runtimes.cpython.threads.waits import wait_in_python
from diagtool.snapshot.model import Frame, Thing

__all__ = ("GreenletWaits",)

I32 = NDArray[np.int32]

_LIBRARIES = ("gevent", "eventlet")
_SWITCH = "greenlet.switch"  # a wait of which no more is known

_COMPILED = ("cython_function_or_method", "builtin_function_or_method", "builtin_method", "method_descriptor")
#: Types by which gevent waits for everything, so nothing that is waited for.
_MACHINERY = ("Hub", "Waiter", ".timer", ".io", ".async_", ".loop")
#: Compiled functions of gevent that wait, under their public names.
_FUNCTIONS = {
    "joinall": "joinall",
    "killall": "killall",
    "wait_on_objects": "wait",
    "iwait_on_objects": "iwait",
}
#: What is waited for where no method lies on the stack: `with semaphore`, `for item in queue`.
_USUAL = {
    "AsyncResult": "get",
    "BoundedSemaphore": "acquire",
    "Event": "wait",
    "Greenlet": "join",
    "JoinableQueue": "get",
    "LifoQueue": "get",
    "PriorityQueue": "get",
    "Queue": "get",
    "RLock": "acquire",
    "Semaphore": "acquire",
    "SimpleQueue": "get",
}

#: Methods of these that wait.
_WAITING = frozenset({"acquire", "get", "join", "peek", "put", "wait"})

_MAX_SLOTS = 256  # of one evaluation stack
_THING, _CALLABLE, _BOUND = 1, 2, 3  # what lies in a slot of one; 0: something else

_0, _8 = np.uint64(0), np.uint64(8)
_TAGS = np.uint64(~STACKREF_TAGS & (1 << 64) - 1)


class GreenletWaits:
    """Names the waits of the suspended greenlets of one process."""

    def __init__(self, ctx: Context, interpreters: Sequence[Interpreter]) -> None:
        self.ctx = ctx
        self.things = ThreadThings(ctx, interpreters)
        self._kinds: dict[int, int] = {0: 0}  # type -> _THING …
        self._functions: dict[int, tuple[str, str]] = {}

    def of(self, trace: I32, frames: GreenletFrames) -> tuple[I32, I32]:
        """(index of the wait's name, row of the thing or -1) of each greenlet, both in the builder."""
        waits = np.full(len(trace), self.ctx.builder.wait(_SWITCH), np.int32)
        things = np.full(len(trace), -1, np.int32)
        for one in np.unique(trace[trace != 0]):
            rows = np.flatnonzero(trace == one)
            own = self.ctx.builder.frames_of(int(one))
            inner = 0
            while inner < len(own) and (own[inner].module or "").partition(".")[0] in _LIBRARIES:
                inner += 1
            known = wait_in_python(own[inner:], None)
            if known is not None:  # threading and queue, monkey-patched
                name, depth = known[0], inner + known[1] - 1
            elif inner:
                name, depth = _name_of(own[inner - 1]), inner - 1
            else:
                waits[rows], things[rows] = self._called(rows, frames)
                continue
            waits[rows] = self.ctx.builder.wait(name)
            things[rows] = self._things(self._selves(rows, frames, depth), name)
        return waits, things

    # -- waits with frames ------------------------------------------------------------------------------

    def _selves(self, rows: NDArray[np.intp], frames: GreenletFrames, depth: int) -> U64:
        """The local ``self`` of the frames at ``depth``, which share one code object."""
        at = frames.at(rows, depth)
        code = self.ctx.codes.get(int(frames.code[at[0]])) if len(at) and at[0] >= 0 else None
        names = self.ctx.codes.local_names(code) if code is not None else []
        if "self" not in names:
            return np.zeros(len(rows), np.uint64)
        base = np.where(at >= 0, frames.locals[at], _0)
        values = self.ctx.vectors.words(base, 8 * names.index("self")) & _TAGS
        cells = self.ctx.vectors.kinds(values) == "cell"
        return np.where(cells, self.ctx.vectors.field(values, "PyCellObject.ob_ref"), values)

    def _things(self, addresses: U64, wait: str) -> I32:
        distinct, inverse = np.unique(addresses, return_inverse=True)
        out = np.full(len(distinct), -1, np.int32)
        for i, address in enumerate(distinct.tolist()):
            thing = self.things.read(address, wait) if address else None
            if thing is not None:
                self._socket(thing)
                out[i] = self.ctx.builder.thing(thing)
        return out[inverse]

    def _socket(self, thing: Thing) -> None:
        o, field = self.ctx.objects, self.ctx.runtime.layout.get("PySocketSockObject.sock_fd")
        inner = o.attribute(thing.address, "_sock")  # gevent's socket wraps the real one
        if field is None or not inner or not o.is_a(inner, "_socket.socket"):
            return
        raw = o.memory.try_read(inner + field, 4)
        if raw is not None:
            fd = int.from_bytes(raw, "little", signed=True)
            thing.state["fd"] = fd
            thing.detail = f"fd {fd} {self.ctx.capture.fds.get(fd, '')}".rstrip()

    # -- waits in compiled code -------------------------------------------------------------------------

    def _called(self, rows: NDArray[np.intp], frames: GreenletFrames) -> tuple[I32, I32]:
        """The one thing or function of gevent or eventlet that the innermost frames are calling."""
        at = frames.at(rows, 0)
        slots = self._slots(frames, at)
        kind = self._kinds_of(slots)
        # callee and what it is called on: the slot behind it, or its own part when it is bound
        following = np.concatenate([slots[:, 1:], np.zeros((len(rows), 1), np.uint64)], axis=1)
        bound = np.where(kind == _BOUND, slots, _0)
        function = self.ctx.vectors.field(bound, "PyMethodObject.im_func")
        callee = np.where(
            kind == _CALLABLE, slots, np.where(self._kinds_of(function) == _CALLABLE, function, _0)
        )
        receiver = np.where(
            kind == _BOUND, self.ctx.vectors.field(bound, "PyMethodObject.im_self"), following
        )
        receiver = np.where(self._kinds_of(receiver) == _THING, receiver, _0)
        callees, which = np.unique(callee, return_inverse=True)
        which = which.reshape(slots.shape)
        names = [self._function(int(f)) for f in callees]
        usual, old = "", self.ctx.runtime.version < (3, 11)
        site = call_site(self.ctx, int(frames.code[at[0]]), int(frames.offset[at[0]]))
        loaded = np.array([site is None or bool({n[1], _FUNCTIONS.get(n[1])} & site.names) for n in names])
        bare = np.zeros_like(slots)
        if site is None or site.enters or site.iterates:  # the thing itself lies there, or its __exit__
            bare = np.where(kind == _THING, slots, np.where(kind == _BOUND, receiver, _0))
        elif old and len(site.names & _WAITING) == 1:  # 3.9 and 3.10 put self into the slot of a bound method
            (usual,) = site.names & _WAITING
            bare = np.where(kind == _THING, slots, _0)
        receiver = np.where((callee != 0) & loaded[which], receiver, _0)
        thing = np.maximum(receiver, bare).max(axis=1, initial=0)
        same = ((receiver == thing[:, None]) | (receiver == 0)) & ((bare == thing[:, None]) | (bare == 0))
        found = (thing != 0) & same.all(axis=1)
        # functions that wait on their arguments
        builder = self.ctx.builder
        public = [_public(n) if ok else "" for n, ok in zip(names, loaded.tolist(), strict=True)]
        waits = np.array([builder.wait(p) if p else -1 for p in public], np.int32)
        alone = waits[which].max(axis=1, initial=-1)
        out = np.where((thing == 0) & (alone >= 0), alone, np.int32(builder.wait(_SWITCH)))
        places = np.full(len(rows), -1, np.int32)
        method = np.where((receiver != 0) & (receiver == thing[:, None]), which, -1).max(axis=1, initial=-1)
        out[found], places[found] = self._methods(thing[found], method[found], names, usual)
        return out, places

    def _methods(
        self, things: U64, callees: NDArray[np.intp], names: list[tuple[str, str]], usual: str
    ) -> tuple[I32, I32]:
        o, builder = self.ctx.objects, self.ctx.builder
        waits, places = np.zeros(len(things), np.int32), np.zeros(len(things), np.int32)
        references = self.ctx.vectors.references(things).tolist()
        seen: dict[tuple[int, int], tuple[int, int]] = {}
        for i, key in enumerate(zip(things.tolist(), callees.tolist(), strict=True)):
            if key not in seen:
                address, callee = key
                kind = o.qualified_kind(address)
                short = kind.rpartition(".")[2]
                name = names[callee][1] if callee >= 0 else usual
                name = _USUAL.get(short, "") if name.startswith("__") or not name else name
                wait = f"{kind.partition('.')[0]}.{short}" + (f".{name}" if name else "")
                count = references[i] if references[i] >= 0 else None
                seen[key] = builder.wait(wait), builder.thing(Thing(address, kind, references=count))
            waits[i], places[i] = seen[key]
        return waits, places

    def _slots(self, frames: GreenletFrames, at: NDArray[np.intp]) -> U64:
        """The evaluation stacks of frames that share one code object: a row each, 0 for an empty slot."""
        v, m, lay = self.ctx.vectors, self.ctx.objects.memory, self.ctx.runtime.layout
        code, base = int(frames.code[at[0]]), frames.locals[at]
        try:
            count = m.i32(code + lay["PyCodeObject.co_stacksize"])
            if "PyFrameObject.f_valuestack" in lay:
                base = v.field(frames.address[at], "PyFrameObject.f_valuestack")
            else:
                base = base + np.uint64(8 * m.i32(code + lay["PyCodeObject.co_nlocalsplus"]))
        except MemoryFault:
            count = 0
        places = base[:, None] + np.arange(min(max(count, 0), _MAX_SLOTS), dtype=np.uint64)[None, :] * _8
        slots: U64 = v.words(places) & _TAGS
        if "_PyInterpreterFrame.stackpointer" in lay:  # 3.14+ says where the stack ends
            top = v.field(frames.address[at], "_PyInterpreterFrame.stackpointer")
            slots = np.where((places < top[:, None]) | (top[:, None] == 0), slots, _0)
        return slots

    def _kinds_of(self, addresses: U64) -> NDArray[np.int64]:
        types, inverse = np.unique(self.ctx.vectors.types(addresses), return_inverse=True)
        kinds = [self._kind_of(int(t)) for t in types]
        return np.array(kinds, np.int64)[inverse].reshape(addresses.shape)

    def _kind_of(self, type_address: int) -> int:
        known = self._kinds.get(type_address)
        if known is None:
            name = self.ctx.objects.qualified_type(type_address)
            if name.endswith(_COMPILED):
                known = _CALLABLE
            elif name == "method":
                known = _BOUND
            else:
                known = _THING * (name.partition(".")[0] in _LIBRARIES and not name.endswith(_MACHINERY))
            self._kinds[type_address] = known
        return known

    def _function(self, callee: int) -> tuple[str, str]:
        """(module, name) of a compiled function: Cython's begin with a PyCFunctionObject."""
        known = self._functions.get(callee)
        if known is None:
            o, lay = self.ctx.objects, self.ctx.runtime.layout
            known = ("", "")
            try:
                if o.kind(callee) == "method_descriptor":
                    known = "", o.text(o.memory.u64(callee + lay["PyDescrObject.d_name"])) or ""
                elif callee:
                    definition = o.memory.u64(callee + lay["PyCFunctionObject.m_ml"])
                    name = o.memory.cstring(o.memory.u64(definition + lay["PyMethodDef.ml_name"]), 64)
                    module = o.text(o.memory.u64(callee + lay["PyCFunctionObject.m_module"]))
                    known = module or "", name.decode("ascii", "replace")
            except MemoryFault:
                pass
            self._functions[callee] = known
        return known


def _public(function: tuple[str, str]) -> str:
    """ "gevent.joinall" for a compiled function that waits, else ""."""
    module, name = function
    library = module.partition(".")[0]
    return f"{library}.{_FUNCTIONS[name]}" if library in _LIBRARIES and name in _FUNCTIONS else ""


def _name_of(frame: Frame) -> str:
    """ "gevent.sleep", "gevent.socket.recv" (of gevent._socketcommon:SocketMixin.recv)."""
    library, _, rest = (frame.module or "").partition(".")
    owner, _, function = frame.function.rpartition(".")
    if "socket" in rest:
        return f"{library}.socket.{function}"
    owner = owner.rpartition(".")[2]
    return f"{library}.{owner}.{function}" if owner and owner != "<locals>" else f"{library}.{function}"
