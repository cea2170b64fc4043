"""What the columns of the store may hold: shared by its writer and its reader."""

from __future__ import annotations

I64_MIN, I64_MAX = -(2**63), 2**63 - 1
U64 = 2**64 - 1

#: Types that SQLite hands out, by what a column may hold. bool is stored as 0 or 1.
Types = frozenset[type]
TEXT: Types = frozenset({str})
TEXT_OR_NONE: Types = frozenset({str, type(None)})
INT: Types = frozenset({int})
INT_OR_NONE: Types = frozenset({int, type(None)})
FLOAT_OR_NONE: Types = frozenset({float, int, type(None)})

#: What Target fields hold. cmdline and details are JSON.
TARGET_FIELDS: dict[str, Types] = {
    "kind": TEXT,
    "pid": INT_OR_NONE,
    "runtime": TEXT,
    "flavour": TEXT,
    "exe": TEXT_OR_NONE,
    "host": TEXT_OR_NONE,
    "start_time": FLOAT_OR_NONE,
    "captured_at": FLOAT_OR_NONE,
    "boot_id": TEXT_OR_NONE,
    "signal": INT_OR_NONE,
}

#: Columns of the thread table after id, with what they may hold. "bool" is None, 0 or 1.
THREAD_FIELDS: dict[str, Types | str] = {
    "tid": INT,
    "stack": INT,
    "name": TEXT,
    "comm": TEXT_OR_NONE,
    "ident": "address",
    "python": "bool",
    "interpreter": INT,
    "daemon": "bool",
    "holds_gil": "bool",
    "waits_for_gil": "bool",
    "collecting": "bool",
    "state": TEXT_OR_NONE,
    "syscall": INT_OR_NONE,
    "wchan": TEXT_OR_NONE,
    "cpu_seconds": FLOAT_OR_NONE,
    "running_loop": "address",
}
