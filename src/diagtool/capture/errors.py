"""What can be wrong with a target. Each error says what, and what to do about it."""

from __future__ import annotations


class TargetError(Exception):
    """The target could not be read. ``str()`` is one sentence of what; ``hint`` one of what to do."""

    hint = ""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        if hint:
            self.hint = hint


class NoSuchTarget(TargetError):
    """No such process or file."""


class NotPermitted(TargetError):
    """The process may not be read by this user."""


class NotSupported(TargetError):
    """A target that diagtool does not read: 32-bit, kernel thread, no Python, unknown version."""


class NoRuntime(NotSupported):
    """A process in which there is no runtime that diagtool reads."""


class Refused(Exception):
    """No image is made, the target is left alone; says why, as a part of a sentence."""


class Unsuitable(Refused):
    """No thread of the target will do just now. Another moment may be better."""


class BadCore(TargetError):
    """Not a core file, or one that can't be used."""


class BadEvidence(TargetError):
    """What another program wrote, and that can't be used."""
