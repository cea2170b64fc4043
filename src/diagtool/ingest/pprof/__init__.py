"""Profiles in pprof's format: goroutines, leaked goroutines, heap, blocking and mutexes.

``wire`` reads protobuf, ``profile`` the format, ``frames`` makes frames of its places; ``goroutines``,
``heap`` and ``contention`` make of each kind of profile what a snapshot has for it.
"""

from __future__ import annotations

import os
from typing import Any, NoReturn

from diagtool.capture.errors import BadEvidence, NotSupported
from diagtool.ingest.pprof.profile import MOST_BYTES, Profile, ProfileError, looks_like_profile, parse
from diagtool.snapshot.model import Snapshot, SnapshotBuilder, Target

__all__ = [
    *("goroutine_snapshot", "is_profile", "parsed", "read_profile"),
    *("snapshot_of_profile", "tables_of"),
]

_AGAIN = "Take it again: curl -o FILE http://HOST:PORT/debug/pprof/goroutine."
_OTHERS = "diagtool reads profiles of goroutines, goroutineleak, heap, allocs, block and mutex."

_CONTENTION = {"mutex": "profile of mutexes", "block": "profile of blocking"}

#: What profiles are that have nothing to say about leaks: by the types of their values.
_REFUSED = {
    "cpu": "a profile of processor time: it says where the program computed, not what it keeps",
    "samples": "a profile of samples in time: it says where the program was, not what it keeps",
    "wall": "a profile of samples in time: it says where the program was, not what it keeps",
    "threadcreate": "a profile of threads that were made ({total:,}): the runtime no longer records where",
}


def is_profile(head: bytes) -> bool:
    """Whether a file that starts with ``head`` (unpacked) is a profile in pprof's format."""
    return looks_like_profile(head)


def read_profile(path: str) -> Snapshot:
    """The snapshot of a profile, which is unpacked already. Raises TargetError."""
    with open(path, "rb") as file:  # noqa: PTH123
        data = file.read(MOST_BYTES + 1)
    snapshot = snapshot_of_profile(parsed(data, path), path)
    if snapshot.target.captured_at is None:
        snapshot.target.captured_at = os.stat(path).st_mtime  # noqa: PTH116
    return snapshot


def parsed(data: bytes, name: str) -> Profile:
    """The profile in ``data``; ``name`` is what errors call it. Raises BadEvidence."""
    try:
        return parse(data)
    except ProfileError as error:
        raise BadEvidence(f"{name} is no profile that can be read: {error}", _AGAIN) from None


def snapshot_of_profile(profile: Profile, name: str) -> Snapshot:
    """What a profile tells, by its kind. Raises NotSupported for one that tells nothing of leaks."""
    if profile.column("goroutine") is not None or profile.column("goroutineleak") is not None:
        return goroutine_snapshot(profile)
    tables = tables_of(profile)
    if not tables:
        _refuse(profile, name)
    snapshot = _builder(profile).finish()
    snapshot.tables.update(tables)
    kinds = {str(row["kind"]) for row in tables.get("contention", ())} or {"block"}
    said = "heap profile" if "allocation_sites" in tables else _CONTENTION[kinds.pop()]
    snapshot.target.details["evidence"] = f"{said} (pprof)"
    snapshot.warnings += profile.warnings
    return snapshot


def goroutine_snapshot(profile: Profile, leaked: Profile | None = None) -> Snapshot:
    """The goroutines of a profile. ``leaked``: the profile of leaked ones of the same service, taken before.

    Of a profile of leaked ones all are: the runtime proved it.
    """
    from diagtool.ingest.pprof.goroutines import add_goroutines

    builder = _builder(profile)
    proved = profile if profile.column("goroutineleak") is not None else leaked
    warnings = add_goroutines(builder, profile, proved)
    snapshot = builder.finish()
    target = snapshot.target
    target.runtime = target.runtime or "go"
    said = "profile of leaked goroutines" if proved is profile else "goroutine profile"
    target.details["evidence"] = f"{said} (pprof)"
    if proved is not None:
        target.details["exact"] = True
    snapshot.warnings += [*profile.warnings, *warnings]
    return snapshot


def tables_of(profile: Profile, name: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """The tables that a profile without goroutines becomes, by name; none of one that says nothing of leaks.

    ``name``: what the profile is called where it came from.
    """
    from diagtool.ingest.pprof.contention import contention_table, is_contention
    from diagtool.ingest.pprof.heap import heap_tables, is_heap

    if is_heap(profile):
        return heap_tables(profile)
    if is_contention(profile):
        return {"contention": contention_table(profile, name if name in _CONTENTION else None)}
    return {}


def _builder(profile: Profile) -> SnapshotBuilder:
    from diagtool.ingest.pprof.frames import Frames, go_version

    return SnapshotBuilder(
        Target(
            kind="evidence",
            runtime=go_version(profile) if Frames(profile).go else "",
            exe=profile.executable or None,
            captured_at=profile.time,
        )
    )


def _refuse(profile: Profile, name: str) -> NoReturn:
    names = [kind for kind, _ in profile.kinds]
    total = int(profile.values[:, 0].clip(0).sum()) if len(profile.values) else 0
    for kind in reversed(names):
        if kind in _REFUSED:
            raise NotSupported(f"{name} is {_REFUSED[kind].format(total=total)}", _OTHERS)
    told = ", ".join(names[:4])
    raise NotSupported(f"{name} is a profile of {told}, of which diagtool knows nothing", _OTHERS)
