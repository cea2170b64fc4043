"""A service that serves net/http/pprof: what it offers, as one snapshot. See docs/go.md.

Asked for is what costs the service little. The full dump of goroutines stops all of them while it is written,
so it is asked for only where there are few enough; where there are more the profile is, which doesn't.
Profiles of processor time and traces are never asked for, and the profile of leaks, which takes a garbage
collection, only where somebody wants it.
"""

from __future__ import annotations

import html
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from urllib.parse import urlsplit

from diagtool.capture.errors import BadEvidence, NotSupported, TargetError
from diagtool.ingest.service.fetch import Client, NotServed, Slow, is_address, unpacked_body

if TYPE_CHECKING:
    from diagtool.ingest.pprof.profile import Profile
    from diagtool.snapshot.model import Snapshot

__all__ = ["DUMP_LIMIT", "Asking", "is_address", "read_service"]

T = TypeVar("T")

#: Goroutines up to which the full dump is asked for.
DUMP_LIMIT = 10_000

_MOST_PROFILE = 64 << 20  # bytes of an answer
_MOST_UNPACKED = 256 << 20
_MOST_DUMP = 2 << 30
_MOST_INDEX = 4 << 20
_WHERE = "Name where the service serves net/http/pprof: http://HOST:PORT/debug/pprof."

#: What net/http/pprof serves besides its index: an address that ends in one of these is that file.
_PROFILES = (
    "goroutine",
    "goroutineleak",
    "heap",
    "allocs",
    "block",
    "mutex",
    "threadcreate",
    "trace",
    "profile",
)

_ROW = re.compile(r"<td>\s*(\d{1,18})\s*</td>\s*<td>\s*<a href=['\"]?([^'\"?>\s]{1,200})")


@dataclass(frozen=True, slots=True)
class Asking:
    """How a service is asked. ``headers`` are sent to it, and to no machine that it redirects to.

    ``seconds`` for each request. ``dump_limit``: goroutines up to which the full dump is asked for, which
    stops the service while it is written. ``prove``: have the service find out which goroutines are leaked
    (Go 1.27; 1.26 where it was built for that), which takes a garbage collection.
    """

    headers: tuple[tuple[str, str], ...] = ()
    seconds: float = 30.0
    dump_limit: int = DUMP_LIMIT
    prove: bool = False


def read_service(address: str, asking: Asking | None = None) -> list[Snapshot]:
    """What the service at ``address`` tells: one snapshot; of a trace or dump at it maybe more.

    ``address``: of the index (http://HOST:PORT/debug/pprof, or the machine alone), or of one profile.
    Raises TargetError.
    """
    asking = asking or Asking()
    client = Client(address, asking.headers, asking.seconds)
    path = urlsplit(client.base).path
    name = path.rpartition("/")[2]
    if name in _PROFILES and "/" in path.strip("/"):
        return _one(address, name, asking)
    if not path:
        client.base += "/debug/pprof"
        client.shown = client.base
    return [_Service(client, asking).snapshot()]


def _one(address: str, name: str, asking: Asking) -> list[Snapshot]:
    """What is at one address, whatever it is."""
    from diagtool.ingest import read_evidence
    from diagtool.ingest.files import spooled

    if name == "profile":
        raise NotSupported(
            "a profile of processor time says where a program computes, not what it keeps", _WHERE
        )
    client = Client(address, asking.headers, asking.seconds)
    with client.get("", _MOST_DUMP) as body:
        path = spooled(body, client.shown)  # type: ignore[arg-type]  # it can be read, and that is all
    snapshots = read_evidence(path)
    for snap in snapshots:
        _about(snap, client, exact=snap.target.details.get("exact") is True)
    return snapshots


class _Index(NamedTuple):
    """What a service offers: how many there are of each profile. None: it has no index."""

    counts: dict[str, int] | None

    def offers(self, name: str) -> bool:
        return self.counts is None or name in self.counts


@dataclass
class _Service:
    client: Client
    asking: Asking
    warnings: list[str] = field(default_factory=list)
    _slow: bool = False  # it did not answer in time: it is not asked for more

    def snapshot(self) -> Snapshot:
        index = self._index()
        leaked = self._leaked(index)
        at = time.time()
        profile = self._profile("goroutine")
        total = 0 if profile is None else int(profile.values[:, 0].clip(0).sum())
        if profile is None and index.counts is not None:
            total = index.counts["goroutine"]
        snap = self._dump(total) if total <= self.asking.dump_limit else None
        if snap is None:
            snap = self._of_profile(profile, leaked)
        elif profile is not None:
            from diagtool.ingest.service.labels import add_labels

            self.warnings += add_labels(snap, profile)
        snap.target.captured_at = at
        if profile is not None:
            from diagtool.ingest.pprof.frames import go_version

            snap.target.exe = snap.target.exe or profile.executable or None
            if snap.target.runtime in ("", "go"):
                snap.target.runtime = go_version(profile)
        if index.offers("cmdline"):
            snap.target.cmdline = self._cmdline()
        self._tables(snap, index)
        _about(snap, self.client, exact=leaked is not None)
        snap.warnings += self.warnings
        return snap

    # --- what it offers ----------------------------------------------------------------------------------

    def _index(self) -> _Index:
        try:
            with self.client.get("/", _MOST_INDEX) as body:
                text = body.read().decode("utf-8", "replace")
        except NotServed:
            return _Index(None)  # a service may serve single profiles alone
        rows = {html.unescape(name): int(count) for count, name in _ROW.findall(text)}
        return _Index(rows if "goroutine" in rows else None)

    def _leaked(self, index: _Index) -> Profile | None:
        """The goroutines that the service proves to be leaked; asked for first: the marks stay."""
        if not self.asking.prove:
            return None
        found = self._profile("goroutineleak") if index.offers("goroutineleak") else None
        if found is None or found.column("goroutineleak") is None:
            self.warnings.append(
                "the service can't prove which goroutines are leaked: that takes Go 1.27, or 1.26 built with "
                "GOEXPERIMENT=goroutineleakprofile"
            )
            return None
        return found

    # --- goroutines --------------------------------------------------------------------------------------

    def _dump(self, total: int) -> Snapshot | None:
        """The full dump: with numbers, creators and times. None where there is none."""
        from diagtool.ingest import read_evidence
        from diagtool.ingest.files import spooled

        path = "/goroutine?debug=2"
        try:
            with self.client.get(path, _MOST_DUMP) as body:
                text = spooled(body, self.client.shown + path)  # type: ignore[arg-type]
            return read_evidence(text)[-1]
        except NotServed as error:
            if not total:
                raise BadEvidence(f"{self.client.shown} serves no profiles ({error})", _WHERE) from None
            return None
        except NotSupported:
            if not total:
                raise BadEvidence(
                    f"{self.client.shown} serves something else than profiles", _WHERE
                ) from None
            return None
        except TargetError as error:
            if not total:
                raise
            self._missing("the full dump of goroutines", error)
            return None

    def _of_profile(self, profile: Profile | None, leaked: Profile | None) -> Snapshot:
        from diagtool.ingest.pprof import goroutine_snapshot

        if profile is None:
            raise BadEvidence(f"{self.client.shown} serves no goroutines", _WHERE)
        total = int(profile.values[:, 0].clip(0).sum())
        if total > self.asking.dump_limit:
            self.warnings.append(
                f"{total:,} goroutines: their profile was read, which has no numbers, creators and times of "
                "waiting; the full dump would stop the service while it is written (--dump-limit says from "
                "which number on)"
            )
        return goroutine_snapshot(profile, leaked)

    # --- the others --------------------------------------------------------------------------------------

    def _tables(self, snap: Snapshot, index: _Index) -> None:
        from diagtool.ingest.pprof import tables_of

        for name in ("heap", "mutex", "block"):
            if not index.offers(name):
                continue
            profile = self._profile(name)
            if profile is None:
                continue
            for table, rows in tables_of(profile, name).items():
                snap.tables.setdefault(table, []).extend(rows)

    def _profile(self, name: str) -> Profile | None:
        return self._optional(f"the profile {name}", lambda: self._parsed(name))

    def _parsed(self, name: str) -> Profile:
        from diagtool.ingest.pprof import parsed
        from diagtool.ingest.pprof.profile import looks_like_profile

        with self.client.get(f"/{name}", _MOST_PROFILE) as body:
            data = body.read()
        shown = f"{self.client.shown}/{name}"
        try:
            data = unpacked_body(data, _MOST_UNPACKED)
        except ValueError as error:
            raise BadEvidence(f"{shown} is no profile that can be read: {error}", _WHERE) from None
        if not looks_like_profile(data[: 64 << 10]):
            raise BadEvidence(f"{shown} is no profile", _WHERE)
        return parsed(data, shown)

    def _cmdline(self) -> list[str]:
        def read() -> list[str]:
            with self.client.get("/cmdline", 1 << 20) as body:
                return body.read().decode("utf-8", "replace").split("\0")[:1000]

        return self._optional("the command line", read) or []

    def _optional(self, what: str, read: Callable[[], T]) -> T | None:
        if self._slow:
            return None
        try:
            return read()
        except NotServed:
            return None
        except Slow as error:
            if what == "the profile goroutine":
                raise
            self._slow = True
            self._missing(what, error)
        except TargetError as error:
            self._missing(what, error)
        return None

    def _missing(self, what: str, error: TargetError) -> None:
        self.warnings.append(f"{what} is missing: {error}")


def _about(snap: Snapshot, client: Client, *, exact: bool) -> None:
    target = snap.target
    target.kind = "evidence"
    target.host = urlsplit(client.shown).netloc or None
    target.details["evidence"] = "what the service at this address told"
    target.details["url"] = client.shown
    if exact:
        target.details["exact"] = True
