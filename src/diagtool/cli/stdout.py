"""The standard output when nobody reads it any more."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

#: What to do when it can't be written.
ELSEWHERE = "Make room there, or send it to another place."


def silence_stdout() -> None:
    """Send what is still buffered nowhere, so that it can't fail once more when the interpreter ends."""
    with suppress(OSError, AttributeError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
