"""Frames and samples of a profile as a snapshot has them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from diagtool.golang.goroutines import go_frame
from diagtool.golang.names import function_name
from diagtool.ingest.pprof.profile import Place, Profile
from diagtool.snapshot.model import Frame

__all__ = ["Frames", "go_version"]

#: Where toolchains are, as far as the folder tells their version: downloaded by Go itself, by golang.org/dl,
#: Debian's.
_TOOLCHAIN = re.compile(
    r"(?:toolchain@v[0-9.]+-|/sdk/|/)go-?(1\.[0-9]{1,3}(?:\.[0-9]{1,3}|rc[0-9]+|beta[0-9]+)?)"
    r"(?:\.[a-z0-9]+-[a-z0-9]+)?/src/runtime/"
)


@dataclass(slots=True)
class Frames:
    """Makes frames of the places of a profile; the same place is the same frame."""

    profile: Profile
    go: bool = field(init=False)
    _known: dict[Place, Frame] = field(default_factory=dict)

    def __post_init__(self) -> None:
        files = self.profile.files
        self.go = any(file.endswith(".go") for file in files)

    def of(self, stack: int) -> list[Frame]:
        """The frames of a stack of the profile, innermost first."""
        return [self._frame(place) for place in self.profile.places(stack)]

    def _frame(self, place: Place) -> Frame:
        known = self._known.get(place)
        if known is None:
            line = place.line or None
            if self.go and not place.library:
                known = go_frame(function_name(place.function), place.file, line)
            elif place.file.endswith((".py", ".pyx")) or place.file.startswith("<"):
                known = Frame(place.function, place.file, line)
            else:
                known = Frame(place.function, place.file, line, None, "native", place.library or None)
            self._known[place] = known
        return known


def go_version(profile: Profile) -> str:
    """``go1.22.10``, where the folder of the toolchain tells it, else ``go``."""
    for file in profile.files:
        if "/src/runtime/" in file and (found := _TOOLCHAIN.search(file)):
            return f"go{found[1]}"
    return "go"
