"""A window of allocations, recorded by memray: attached to a process for some seconds, then read.

memray injects code into the process, by gdb or lldb, and the process imports memray: so this is done only
when somebody asks for it, and memray has to be installed for diagtool and for the process. It is told to stop
by itself after the time, so that the process is rid of it whatever becomes of diagtool; who gives up earlier
detaches it.

gdb is never killed: it has breakpoints in the code of the process until memray is in, and a process that runs
into one without gdb dies of it. An interrupt makes gdb take them out and let go. A process that does nothing
never runs into one: it is not attached to before it does something.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from signal import SIGINT
from typing import Any

__all__ = ["NoRecord", "record"]

_READER = Path(__file__).with_name("memray_records.py")
_ATTACH = 45.0  # seconds to attach; gdb reads symbols meanwhile
_PATIENCE = 15.0  # seconds to attach that are left to it when somebody gives up
_LET_GO = 30.0  # seconds that gdb may take to let go
_FINISH = 60.0  # seconds that the process may take to write what was recorded
_LOOK = 0.2


class NoRecord(Exception):
    """Nothing could be recorded; ``str()`` says why."""


def record(pid: int, seconds: float) -> dict[str, list[dict[str, Any]]]:
    """Watch a process for that long: tables ``memray`` and ``allocation_sites`` of what was not freed.

    Raises NoRecord. Whatever happens, memray is detached then, or detaches itself at the end of the time.
    """
    obstacle = _obstacle(pid)
    if obstacle is not None:
        raise NoRecord(obstacle)
    start = time.monotonic()
    _wait_for_activity(pid, seconds)
    whole = max(1, round(seconds))
    folder = _folder_of(pid)
    try:
        file = folder / "record"
        _attach(pid, file, whole)
        try:
            found = _when_complete(pid, file, whole)
        except BaseException:
            if not _written(file):  # else it has stopped already
                _detach(pid)
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _tables(found, time.monotonic() - start)


def _obstacle(pid: int) -> str | None:
    if not sys.executable or importlib.util.find_spec("memray") is None:
        return "memray is not installed beside diagtool: pip install 'diagtool[memray]'"
    if sys.version_info < (3, 14) and not (shutil.which("gdb") or shutil.which("lldb")):
        return "it is attached by gdb or lldb, and neither is installed"
    try:
        if os.readlink(f"/proc/{pid}/root") != os.readlink("/proc/self/root"):  # noqa: PTH115
            return "the process has another root directory: run diagtool below it"
        for kind, what in (("mnt", "files"), ("net", "network"), ("pid", "processes")):
            if os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"):  # noqa: PTH115
                return f"the process has its own namespace of {what}: run diagtool where it runs"
    except OSError as error:
        return f"the process can't be attached to: {error.strerror}"
    return None


def _wait_for_activity(pid: int, seconds: float) -> None:
    before, end = _time_slices(pid), time.monotonic() + max(seconds, 1.0)
    while _time_slices(pid) == before:
        if time.monotonic() > end:
            raise NoRecord("the process did nothing in all that time, so it was not attached to")
        time.sleep(_LOOK)


def _time_slices(pid: int) -> int:
    total = 0
    with suppress(OSError, ValueError, IndexError):
        for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
            total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[2])
    return total


# The process itself writes there, as its own user.
def _folder_of(pid: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="diagtool-"))
    with suppress(OSError):
        owner = os.stat(f"/proc/{pid}")  # noqa: PTH116
        if owner.st_uid != os.geteuid():
            os.chown(folder, owner.st_uid, owner.st_gid)
    return folder


def _attach(pid: int, file: Path, seconds: int) -> None:
    options = ["--aggregate", "--no-compress", "--trace-python-allocators", "--duration", str(seconds)]
    done = _memray("attach", *options, "-o", str(file), str(pid))
    if done is None:
        raise NoRecord(f"it was not attached within {_ATTACH:.0f} s")
    if done.returncode:
        raise NoRecord(_said(done.stdout))


def _detach(pid: int) -> None:
    if os.path.exists(f"/proc/{pid}"):  # noqa: PTH110
        _memray("detach", str(pid))


def _memray(*arguments: str) -> subprocess.CompletedProcess[str] | None:
    """Run memray to its end, whoever interrupts us meanwhile; None where it was interrupted for its time."""
    command = [sys.executable, "-m", "memray", *arguments]
    # A session of its own: an interrupt from the terminal is for us, and gdb must not get it.
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    interrupted: KeyboardInterrupt | None = None
    end = time.monotonic() + _ATTACH
    timed_out = False
    while True:
        try:
            output, _ = process.communicate(timeout=max(0.1, end - time.monotonic()))
            break
        except KeyboardInterrupt as error:
            interrupted = error
            end = min(end, time.monotonic() + _PATIENCE)
        except subprocess.TimeoutExpired:
            if timed_out:
                raise NoRecord(
                    f"process {process.pid} is still about to attach it: interrupt its gdb (kill -INT), and "
                    "do not kill it"
                ) from None
            timed_out, end = True, time.monotonic() + _LET_GO
            _interrupt_debugger(process.pid)
    if interrupted is not None:
        if not timed_out and process.returncode == 0 and arguments[0] == "attach":
            _detach(int(arguments[-1]))
        raise interrupted
    if timed_out and process.returncode:
        return None
    return subprocess.CompletedProcess(command, process.returncode, output)


def _interrupt_debugger(parent: int) -> None:
    with suppress(OSError, ValueError):
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            os.kill(int(child), SIGINT)


def _when_complete(pid: int, file: Path, seconds: int) -> dict[str, Any]:
    """What was recorded, once the process has written it: not before the time is over."""
    end = time.monotonic() + seconds + _FINISH
    why = "nothing was written"
    while time.monotonic() < end:
        there = os.path.exists(f"/proc/{pid}/stat")  # noqa: PTH110
        if _written(file):
            found = _sums(file)
            if "error" not in found:
                return found
            why = found["error"]
        if not there:
            raise NoRecord(f"the process ended meanwhile ({why})")
        time.sleep(_LOOK)
    raise NoRecord(f"what it recorded can't be read: {why}")


# It is empty until it is complete.
def _written(file: Path) -> bool:
    try:
        found = file.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0


def _sums(file: Path) -> dict[str, Any]:
    command = [sys.executable, "-I", str(_READER), str(file)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_FINISH, check=False
        )
        found: dict[str, Any] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired, RecursionError) as error:
        return {"error": str(error)[:200]}
    return found


def _said(output: str) -> str:
    """The words of memray, on one line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    text = " ".join(lines)[-400:] or "memray did not say why"
    if "No module named" in text:
        text += " (memray has to be installed for the process, too)"
    return f"memray could not be attached: {text}"


def _tables(found: dict[str, Any], seconds: float) -> dict[str, list[dict[str, Any]]]:
    summary = {key: found[key] for key in ("blocks", "bytes", "sites")}
    rows = []
    for kind, count, size, frames, sites in found["rows"]:
        file, line, function = frames[0] if frames else (None, None, None)
        row = {"source": "memray", "file": file, "line": line, "function": function, "count": count}
        row.update({"bytes": size, "types": [], "frames": frames})
        row.update({key: value for key, value in (("allocator", kind), ("sites", sites)) if value})
        rows.append(row)
    return {
        "memray": [{**summary, "seconds": round(found["seconds"] or seconds, 1)}],
        "allocation_sites": rows,
    }
