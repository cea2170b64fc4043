"""The stack that Go keeps in each of its threads for signals: room that nothing uses in between.

Threads of a Go program run on stacks of goroutines and of the scheduler, which have no room to spare: a few
hundred bytes below the stack pointer another goroutine's begins. What a debugger wants to write there goes
where the kernel itself would write the frame of a signal: every thread has 32 KiB for that (mpreinit in
runtime/os_linux.go, minitSignalStack in runtime/signal_unix.go).

Found from the thread's registers: without cgo fs - 8 is where Go keeps the current goroutine
(runtime/asm_amd64.s), which leads to the m of the thread, and that to gsignal. Offsets: runtime/runtime2.go,
1.19 to 1.27. As all of it points back to itself, what is something else does not pass for it.
"""

from __future__ import annotations

import os

__all__ = ["go_signal_stack"]

SIZE = 32 << 10  # bytes
_LO, _HI, _M = 0, 8, 48  # of a g: both ends of its stack, its m
#: Of an m: (the number of its thread, gsignal), up to 1.24, and from 1.25 on.
_OF_M = ((72, 80), (64, 72))
_LAST = 1 << 47


def go_signal_stack(pid: int, inner_tid: int, pointer: int, thread_block: int) -> tuple[int, int] | None:
    """(lowest address, end) of the unused signal stack of a stopped thread of a Go program; None otherwise.

    ``inner_tid``: its number as it sees itself; ``pointer``: its stack pointer; ``thread_block``: fs.
    """
    if not 8 < thread_block < _LAST:
        return None
    try:
        fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    except OSError:
        return None
    try:
        current = _word(fd, thread_block - 8)
        machine = _word(fd, current + _M)
        for number, signal in _OF_M:
            handler = _word(fd, machine + signal)
            if _word(fd, machine + number) != inner_tid or not handler or handler == current:
                continue
            low, high = _word(fd, handler + _LO), _word(fd, handler + _HI)
            if _word(fd, handler + _M) == machine and high - low == SIZE and not low <= pointer <= high:
                return low, high
    except OSError:
        pass
    finally:
        os.close(fd)
    return None


def _word(fd: int, address: int) -> int:
    """Raises OSError where nothing is."""
    if not 0 < address < _LAST:
        raise OSError
    data = os.pread(fd, 8, address)
    if len(data) < 8:
        raise OSError
    return int.from_bytes(data, "little")
