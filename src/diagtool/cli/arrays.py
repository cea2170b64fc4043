"""Loads numpy, when it is imported, without the threads of its linear algebra, which nothing here uses.

OpenBLAS starts one for each processor when it is loaded, and each of them looks for work in a loop first: a
fifth of the time that loading numpy takes, on processors that the target may be running on. What limits them
is taken back at once: programs that we start are to find the environment that we have found.
"""

from __future__ import annotations

import os

_LIMIT = "OPENBLAS_NUM_THREADS"

if _LIMIT in os.environ:
    import numpy as np
else:
    os.environ[_LIMIT] = "1"
    try:
        import numpy as np  # noqa: F401
    finally:
        del os.environ[_LIMIT]
