"""Pools of native threads by the library that owns them, against the processors that there are for them.

    threads  running  pool                              limited by
         15       15  OpenMP (libgomp.so.1.0.0)         OMP_NUM_THREADS
          7        7  OpenBLAS (libopenblas.so.0)       OPENBLAS_NUM_THREADS

Each library sizes its pool by the processors of the machine, not by those that a container may use, and knows
nothing of the others. Threads that sleep cost nothing; more that run than there are processors take turns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diagtool.capture.cpus import CpuLimits, cpu_limits
from diagtool.capture.model import Capture
from diagtool.snapshot.model import Snapshot

__all__ = ["add", "kind_of_pool"]

Row = dict[str, Any]

_LEAST = 2  # threads of a library that nobody knows for its pool
_MOST_POOLS = 200
_NAMED = 4  # pools that a sentence names


@dataclass(frozen=True, slots=True)
class _Kind:
    """A pool by the start of the names of the libraries whose threads it has, and what limits it."""

    name: str
    files: tuple[str, ...]
    limit: str


_KINDS = (
    _Kind("OpenMP", ("libgomp", "libiomp", "libomp.", "libomp-", "libomp5"), "OMP_NUM_THREADS"),
    _Kind("OpenBLAS", ("libopenblas", "libscipy_openblas"), "OPENBLAS_NUM_THREADS"),
    _Kind("MKL", ("libmkl_",), "MKL_NUM_THREADS"),
    _Kind("BLIS", ("libblis",), "BLIS_NUM_THREADS"),
    _Kind("TBB", ("libtbb",), "tbb::global_control (MKL_NUM_THREADS, NUMBA_NUM_THREADS where these use it)"),
    _Kind("PyTorch", ("libtorch", "libc10", "libcaffe2"), "torch.set_num_threads()"),
    _Kind("OpenCV", ("libopencv", "cv2."), "cv2.setNumThreads()"),
    _Kind(
        "TensorFlow",
        ("libtensorflow", "_pywrap_tensorflow"),
        "TF_NUM_INTRAOP_THREADS, TF_NUM_INTEROP_THREADS",
    ),
    _Kind("ONNX Runtime", ("libonnxruntime", "onnxruntime_"), "SessionOptions.intra_op_num_threads"),
    _Kind("numba", ("workqueue.", "omppool.", "tbbpool."), "NUMBA_NUM_THREADS"),
    _Kind("Arrow", ("libarrow",), "pyarrow.set_cpu_count()"),
    _Kind("Polars", ("polars.", "_polars_runtime"), "POLARS_MAX_THREADS"),
)
#: Libraries that start threads for others: what these are for is not known by the library.
_NOT_A_POOL = ("libc.", "libc-", "libpthread", "libstdc++", "libglib-2.0", "libpython", "ld-")


def add(capture: Capture, snapshot: Snapshot) -> None:
    """Add the tables ``thread_pools`` and ``oversubscription``.

    ``thread_pools``, a row a library: ``pool`` (what it is known as), ``library``, ``threads``, ``running``,
    ``limit`` (what limits it, null where that is not known), ``setting`` (the value of that variable in the
    environment), ``cpu_seconds``. The threads of an interpreter, and of the program itself, are not in it.

    ``oversubscription``, one row where there is a pool: ``cpus`` (what can run at once, null where not
    known), ``known_by``, ``host``, ``allowed``, ``quota``; ``pools``, ``threads``, ``running`` and
    ``ratio`` (of these to the processors), ``text`` and ``limits`` in words.
    """
    threads = snapshot.tables.get("native_threads", [])
    pools = _pools(threads, capture.process.exe, snapshot.target.details.get("environ") or {})
    snapshot.tables["thread_pools"] = pools[:_MOST_POOLS]
    snapshot.tables["oversubscription"] = []
    if pools:
        limits = cpu_limits(capture.process.pid) if capture.kind == "live" else None
        snapshot.tables["oversubscription"] = [_row(pools, threads, limits)]


def kind_of_pool(library: str) -> tuple[str, str | None] | None:
    """(name, what limits it) of the pool that a library's threads are; None where they are none."""
    name = library.rpartition("/")[2]
    for kind in _KINDS:
        if name.startswith(kind.files):
            return kind.name, kind.limit
    return None if name.startswith(_NOT_A_POOL) else (name, None)


def _pools(threads: Sequence[Row], exe: str | None, environ: dict[str, Any]) -> list[Row]:
    by_library: dict[str, list[Row]] = {}
    for row in threads:
        if row["library"] and row["library"] != exe and not row["python"]:
            by_library.setdefault(row["library"], []).append(row)
    out = []
    for library, own in by_library.items():
        kind = kind_of_pool(library)
        if kind is None or (kind[1] is None and len(own) < _LEAST):
            continue
        name, limit = kind
        seconds = [r["cpu_seconds"] for r in own if r["cpu_seconds"] is not None]
        out.append(
            {
                "pool": name,
                "library": library,
                "threads": len(own),
                "running": sum(r["running"] is True for r in own),
                "limit": limit,
                "setting": environ.get(limit) if limit is not None else None,
                "cpu_seconds": round(sum(seconds), 3) if seconds else None,
            }
        )
    return sorted(out, key=lambda r: (-r["running"], -r["threads"], r["library"]))


def _row(pools: list[Row], threads: Sequence[Row], limits: CpuLimits | None) -> Row:
    running = sum(p["running"] for p in pools)
    cpus, known_by = _cpus({p["library"] for p in pools}, threads, limits)
    return {
        "cpus": cpus,
        "known_by": known_by,
        "host": limits.host if limits is not None else None,
        "allowed": limits.allowed if limits is not None else None,
        "quota": limits.quota if limits is not None else None,
        "pools": sum(p["running"] > 0 for p in pools),
        "threads": sum(p["threads"] for p in pools),
        "running": running,
        "ratio": round(running / cpus, 2) if cpus else None,
        "text": _text(pools, running, cpus, known_by),
        "limits": _limits(pools),
    }


def _cpus(
    libraries: set[str], threads: Sequence[Row], limits: CpuLimits | None
) -> tuple[int | None, str | None]:
    """How many processors there are for the threads, and how that is known.

    A core does not tell. But threads that all run are spread over all processors that they may use: those
    that they ran on last, as the kernel notes it in their memory (rseq), are as many as there are for them.
    """
    if limits is not None and limits.usable is not None:
        return limits.usable, limits.known_by
    seen = [t["cpu"] for t in threads if t["running"] and t["library"] in libraries]
    if not seen or None in seen:
        return None, None
    return len(set(seen)), "where these threads ran last"


def _text(pools: list[Row], running: int, cpus: int | None, known_by: str | None) -> str:
    busy = [p for p in pools if p["running"]]
    named = ", ".join(f"{p['running']:,} of {_called(p)}" for p in busy[:_NAMED])
    more = f" and of {len(busy) - _NAMED:,} more" if len(busy) > _NAMED else ""
    places = "an unknown number of processors" if cpus is None else _plural(cpus, "processor")
    by = f" ({known_by})" if known_by else ""
    return f"{_plural(running, 'thread')} of pools run at once on {places}{by}: {named}{more}"


def _called(pool: Row) -> str:
    file = pool["library"].rpartition("/")[2]
    return file if file == pool["pool"] else f"{pool['pool']} ({file})"


def _limits(pools: list[Row]) -> str:
    """What to set, in words: the names of variables and functions of the pools that run."""
    out = []
    for (name, limit), _ in Counter((p["pool"], p["limit"]) for p in pools if p["running"]).items():
        if limit is not None:
            settings = {p["setting"] for p in pools if p["pool"] == name} - {None}
            now = f" (now {', '.join(sorted(map(str, settings)))})" if settings else ""
            out.append(f"{name} by {limit}{now}")
    return "; ".join(out) or "no variable of these is known"


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
