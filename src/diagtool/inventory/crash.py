"""What ended a process that left a core: the signal, what it was about, and where.

{"signal": "SIGSEGV", "number": 11, "code": "SEGV_MAPERR", "reason": "address not mapped", "address": 0x10,
 "hit": "16 bytes behind NULL", "sender_pid": None, "sender_uid": None, "tid": 4242, "library": "/…/libx.so",
 "symbol": "store", "offset": 18, "instruction": 0x7f…, "text": "SIGSEGV in store+0x12 of libx.so (thread …)"}

Codes: include/uapi/asm-generic/siginfo.h. Where a handler has run first and raised the signal again, as
faulthandler's does, what the core says is of that raise(); the fault itself is in the frame that the kernel
made for the handler (struct rt_sigframe, arch/x86/include/asm/sigframe.h), on the same stack.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from diagtool.capture.demangle import demangle
from diagtool.capture.model import Capture, CapturedThread, Mapping
from diagtool.capture.signals import SignalInfo, name_of
from diagtool.snapshot.model import Snapshot

__all__ = ["add_crash", "crash"]

Row = dict[str, Any]

_FROM = {
    0: ("SI_USER", "sent by kill()"),
    0x80: ("SI_KERNEL", "sent by the kernel"),
    -1: ("SI_QUEUE", "sent by sigqueue()"),
    -2: ("SI_TIMER", "a timer ran out"),
    -6: ("SI_TKILL", "sent by tgkill(), as raise() and abort() do"),
}
_CODES = {
    (11, 1): ("SEGV_MAPERR", "address not mapped"),
    (11, 2): ("SEGV_ACCERR", "mapped, but not for this access"),
    (11, 3): ("SEGV_BNDERR", "bounds check failed"),
    (11, 4): ("SEGV_PKUERR", "protection key forbids it"),
    (11, 10): ("SEGV_CPERR", "return address and shadow stack differ"),
    (7, 1): ("BUS_ADRALN", "address not aligned"),
    (7, 2): ("BUS_ADRERR", "no memory behind the address: the mapped file is shorter, or its disk is full"),
    (7, 3): ("BUS_OBJERR", "hardware error"),
    (7, 4): ("BUS_MCEERR_AR", "broken memory"),
    (4, 1): ("ILL_ILLOPC", "illegal instruction"),
    (4, 2): ("ILL_ILLOPN", "illegal instruction"),
    (8, 1): ("FPE_INTDIV", "integer divided by zero"),
    (8, 2): ("FPE_INTOVF", "integer overflow"),
    (31, 1): ("SYS_SECCOMP", "seccomp refused a system call"),
}
_DUMPS = {3, 4, 6, 7, 8, 11, 24, 25, 31}  # signal(7); SIGTRAP only of a trap: gdb stops processes by it
_FRAMES = 128 << 10  # bytes above a stack pointer in which a signal frame is looked for
_MAX_TRIED = 4096
_RESTORE = (b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05", b"\xb8\x0f\x00\x00\x00\x0f\x05")
#: In such a frame, from its return address on: rsp, rip; error code, trap number, address of a page fault.
_SAVED, _TRAPPED, _FRAME = struct.Struct("<2Q"), struct.Struct("<4Q"), 232
_SAVED_AT, _TRAPPED_AT = 168, 200
#: Traps (arch/x86/include/asm/trapnr.h) that become each signal.
_TRAPS = {4: {6}, 7: {11, 12, 14, 17}, 8: {0, 16, 19}, 11: {4, 5, 13, 14}}
_PAGE_FAULT, _PROTECTION, _ERROR_BITS = 14, 1, 1 << 16
_NULL = 64 << 10  # bytes from address 0 that can't be mapped (vm.mmap_min_addr)
_NEAR = 1 << 20  # bytes from a stack pointer that a call moves it at most, nearly always
_STACK_STEP = 64 << 10
_HANDLER_FRAME = 12 << 10  # bytes: with the largest vector registers (AMX)
_TRAP, _ABORT, _SEGV = 5, 6, 11


def add_crash(capture: Capture, snapshot: Snapshot) -> None:
    """Add table ``crash``, of one row, to the snapshot of a core, and ``details["crash"]`` to its target."""
    row = crash(capture)
    if row is None:
        return
    snapshot.tables["crash"] = [row]
    addresses = {k: None if row[k] is None else hex(row[k]) for k in ("address", "instruction")}
    snapshot.target.details["crash"] = {**row, **addresses}


def crash(capture: Capture) -> Row | None:
    """The row, None where no signal ended the process or nothing is known of it."""
    if capture.process.signal is None:  # of a process only when it stands in its end
        return None
    number = capture.process.signal
    info = capture.signals.info
    if number not in _DUMPS and not (number == _TRAP and info is not None and info.code > 0):
        return None
    if info is not None and info.number != number:
        info = None
    thread = capture.threads[0] if capture.threads else None
    before = _before_handler(capture, thread, number) if info is None or info.code <= 0 else None
    if before is not None and thread is not None:
        info, registers = before
        thread = CapturedThread(tid=thread.tid, registers={**thread.registers, **registers})
    code, reason = _reason(number, info)
    pointer = thread.registers.get("rsp", 0) if thread is not None else 0
    if number == _SEGV and code == "SI_KERNEL" and _no_room(capture.mappings, pointer):
        reason = "the stack has overflowed: it has no room for the frame of the handler"
    address = info.address if info is not None else None
    row: Row = {"signal": name_of(number), "number": number, "code": code, "reason": reason}
    row |= {"address": address, "hit": _hit(capture, address, thread) if address is not None else None}
    own = info is not None and info.pid == capture.process.pid
    row["sender_pid"] = info.pid if info is not None else None
    row["sender_uid"] = info.uid if info is not None else None
    row["tid"] = thread.tid if thread is not None else None
    row |= _frame(capture, thread)
    row["text"] = _text(row, own)
    return row


def _reason(number: int, info: SignalInfo | None) -> tuple[str | None, str | None]:
    if info is None:
        return None, None
    if number == _SEGV and info.code == 0x80:
        return "SI_KERNEL", "an address that no process can have (the processor does not say which)"
    if number == 31 and info.syscall is not None:
        return "SYS_SECCOMP", f"seccomp refused system call {info.syscall}"
    return _CODES.get((number, info.code)) or _FROM.get(info.code) or (str(info.code), None)


# -- what an address is ---------------------------------------------------------------------------------


def _hit(capture: Capture, address: int, thread: CapturedThread | None) -> str:
    """In words what lies at the address of a fault."""
    registers = thread.registers if thread is not None else {}
    pointer, instruction = registers.get("rsp", 0), registers.get("rip", 0)
    if address < _NULL:
        return "NULL" if not address else f"{address} bytes behind NULL"
    mapping = _holding(capture.mappings, address)
    usable = mapping is not None and mapping.permissions[:1] == "r"
    if not usable and _is_overflow(capture.mappings, address, pointer):
        return "just below the stack: it has overflowed (endless recursion, or a frame too large)"
    if mapping is None:
        return "no memory: freed, unmapped or a wild pointer"
    what = mapping.path.rpartition("/")[2] or "anonymous memory"
    if address == instruction and "x" not in mapping.permissions:
        return f"{what} ({mapping.permissions}): code was expected there, and none may run"
    if usable and not mapping.writable:
        return f"{what} ({mapping.permissions}): written to, though it may only be read"
    if not usable:
        return f"{what} ({mapping.permissions}): no access at all, as guards and reserved memory are"
    return f"{what} ({mapping.permissions}) at offset {address - mapping.start:#x}"


# Near the stack pointer, and that is at the lower end of its stack or has left it.
def _is_overflow(mappings: list[Mapping], address: int, pointer: int) -> bool:
    if not pointer or not -_NEAR < address - pointer < _STACK_STEP:
        return False
    stack = _holding(mappings, pointer)
    if stack is None or not stack.writable:
        return True
    return pointer - stack.start < _STACK_STEP and address < stack.start


# A handler that should run on a stack that is at its end: the kernel ends the process (force_sigsegv).
def _no_room(mappings: list[Mapping], pointer: int) -> bool:
    stack = _holding(mappings, pointer)
    return bool(pointer) and (stack is None or not stack.writable or pointer - stack.start < _HANDLER_FRAME)


def _holding(mappings: list[Mapping], address: int) -> Mapping | None:
    return next((m for m in mappings if m.start <= address < m.end), None)


def _before_handler(
    capture: Capture, thread: CapturedThread | None, number: int
) -> tuple[SignalInfo, dict[str, int]] | None:
    """(what came with the signal at first, the registers that count as they were then)."""
    pointer = thread.registers.get("rsp", 0) if thread is not None else 0
    stack = _holding(capture.mappings, pointer)
    if number not in _TRAPS or stack is None:
        return None
    raw = capture.memory.try_read(pointer & -8, min(_FRAMES, stack.end - pointer & -8)) or b""
    words = np.frombuffer(raw, "<u8")
    code = [(m.start, m.end) for m in capture.mappings if m.permissions[2:3] == "x"]
    likely = np.zeros(len(words), np.bool_)
    for low, high in code:
        likely |= (words >= np.uint64(low)) & (words < np.uint64(high))
    known: dict[int, bool] = {}
    for place in np.flatnonzero(likely).tolist()[:_MAX_TRIED]:
        target = int(words[place])
        if target not in known:
            known[target] = (capture.memory.try_read(target, 9) or b"").startswith(_RESTORE)
        frame = raw[8 * place : 8 * place + _FRAME]
        if not known[target] or len(frame) < _FRAME:
            continue
        saved = dict(zip(("rsp", "rip"), _SAVED.unpack_from(frame, _SAVED_AT), strict=True))
        error, trap, _, address = _TRAPPED.unpack_from(frame, _TRAPPED_AT)
        if trap in _TRAPS[number] and error < _ERROR_BITS:
            if trap != _PAGE_FAULT:
                return SignalInfo(number, 0x80 if number == _SEGV else 0), saved
            return SignalInfo(number, 2 if error & _PROTECTION else 1, address), saved
    return None


# -- where ----------------------------------------------------------------------------------------------


def _frame(capture: Capture, thread: CapturedThread | None) -> Row:
    row: Row = {"instruction": None, "library": None, "symbol": None, "offset": None}
    if thread is None or not thread.registers:
        return row
    address = row["instruction"] = thread.registers.get("rip", thread.registers.get("pc", 0))
    module = next((m for m in capture.modules if m.contains(address)), None)
    if module is not None:
        row["library"] = module.path
        found = module.symbol_at(address)
        symbol, row["offset"] = found if found is not None else (None, address - module.bias)
        row["symbol"] = None if symbol is None else demangle(symbol)
    return row


def _text(row: Row, own: bool) -> str:
    name = (row["library"] or "").rpartition("/")[2]
    where = ""
    if row["symbol"]:
        where = f" in {row['symbol']}+{row['offset']:#x} of {name}"
    elif row["library"]:
        where = f" in {name}+{row['offset']:#x}"
    elif row["instruction"] is not None:
        where = f" at {row['instruction']:#x}, where no library is"
    text = f"{row['signal']}{where}"
    if row["address"] is not None:
        text += f", at address {row['address']:#x}: {row['hit']}"
    elif row["sender_pid"] is not None and not (own and row["number"] == _ABORT):
        text += ", sent by " + ("itself" if own else f"process {row['sender_pid']} (uid {row['sender_uid']})")
    elif row["sender_pid"] is not None:
        text += ": it aborted itself"
    elif row["reason"]:
        text += f": {row['reason']}"
    return text + (f" (thread {row['tid']})" if row["tid"] is not None else "")
