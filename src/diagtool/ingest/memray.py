"""A window of allocations, recorded by memray: attached to a process for some seconds, then read.

memray injects code into the process, by gdb or lldb, and the process imports memray: so this is done only
when somebody asks for it, and memray has to be installed for diagtool and for the process. It is told to stop
by itself after the time, so that the process is rid of it whatever becomes of diagtool; who gives up earlier
detaches it.

gdb is never killed: it has breakpoints in the code of the process until memray is in, and a process that runs
into one without gdb dies of it. An interrupt makes gdb take them out and let go. A process that does nothing
never runs into one: it is not attached to before it does something.

Sums by place are small, whatever the process does. Who wants to know where single blocks were allocated has
every allocation written down, in a file that is watched: memray is detached before it gets too large.
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
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGINT
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LiveBlocks", "NoRecord", "Recording", "record"]

_READER = Path(__file__).with_name("memray_records.py")
_ATTACH = 45.0  # seconds to attach; gdb reads symbols meanwhile
_PATIENCE = 15.0  # seconds to attach that are left to it when somebody gives up
_LET_GO = 30.0  # seconds that gdb may take to let go
_FINISH = 60.0  # seconds that the process may take to write what was recorded
_LOOK = 0.2
_READ_BLOCKS = 900.0  # seconds to read allocations one by one, at most
_LARGEST = 256 << 20  # bytes of a file of all allocations: 80 million, as a rule
_PART = 4  # of the free room on its disk at most this part


class NoRecord(Exception):
    """Nothing could be recorded; ``str()`` says why."""


@dataclass(frozen=True, slots=True)
class LiveBlocks:
    """Blocks that were not freed when the recording ended, sorted by address; parallel arrays.

    ``address``, ``size`` (as asked for), ``site`` (index into ``sites``). A site has the columns ``file``,
    ``line``, ``function`` of the innermost frame, ``frames`` of Python and ``native`` ones inside of these
    (where memray recorded them; [file, line, function], innermost first), ``allocator`` where it is no
    ordinary one.
    """

    address: NDArray[np.uint64]
    size: NDArray[np.uint64]
    site: NDArray[np.int64]
    sites: list[dict[str, Any]]


@dataclass(slots=True)
class Recording:
    """A recording that is over, and being read by a process of its own. Close it.

    ``tables``, ``blocks`` and ``notes`` are there when :meth:`wait` has returned: the tables ``memray`` and
    ``allocation_sites`` of what was not freed, single blocks where these were asked for and could be read,
    and what is missing, in words.
    """

    pid: int
    file: Path
    seconds: float
    each: bool = False
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    blocks: LiveBlocks | None = None
    notes: list[str] = field(default_factory=list)
    _reader: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start to read it."""
        command = [sys.executable, "-I", str(_READER), str(self.file), *(["blocks"] if self.each else [])]
        self._reader = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def wait(self) -> None:
        """Wait until it is read. Raises NoRecord."""
        end = time.monotonic() + _FINISH
        while True:
            found, arrays = self._read(_READ_BLOCKS if self.each else _FINISH)
            if "error" not in found:
                break
            if time.monotonic() > end:
                raise NoRecord(f"what it recorded can't be read: {found['error']}")
            if not os.path.exists(f"/proc/{self.pid}/stat"):  # noqa: PTH110
                raise NoRecord(f"the process ended meanwhile ({found['error']})")
            time.sleep(_LOOK)  # the process may not have written all of it
        try:
            self.tables = _tables(found, self.seconds)
            if self.each:
                self._take_blocks(found, arrays)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise NoRecord(f"what it recorded makes no sense: {error}") from None

    def _take_blocks(self, found: dict[str, Any], arrays: bytes) -> None:
        if "unread" in found:
            self.notes.append(f"where single blocks were allocated is not known: {found['unread']}")
            return
        number = max(int(found["live"]), 0)
        address = np.frombuffer(arrays, np.uint64, number)
        size = np.frombuffer(arrays, np.uint64, number, 8 * number)
        site = np.frombuffer(arrays, np.int32, number, 16 * number)
        self.blocks = LiveBlocks(address, size, site.astype(np.int64), [_site(*p) for p in found["places"]])

    def _read(self, seconds: float) -> tuple[dict[str, Any], bytes]:
        if self._reader is None:
            self.start()
        process, self._reader = self._reader, None
        assert process is not None
        try:
            said, _ = process.communicate(timeout=seconds)
            line, _, rest = said.partition(b"\n")
            found = json.loads(line)
            return (found if isinstance(found, dict) else {"error": "no object"}), rest
        except (OSError, ValueError, subprocess.TimeoutExpired, RecursionError) as error:
            return {"error": str(error)[:200]}, b""
        finally:
            _end(process)

    def close(self) -> None:
        """End the reading, take the file away."""
        process, self._reader = self._reader, None
        if process is not None:
            _end(process)
        shutil.rmtree(self.file.parent, ignore_errors=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def record(pid: int, seconds: float, *, each: bool = False, native: bool = False) -> Recording:
    """Watch a process for that long; returns when memray has stopped.

    ``each``: single blocks are kept, too, ``native``: with the frames of C that led to them, which makes the
    process slower still. Raises NoRecord. Whatever happens, memray is detached then, or detaches itself at
    the end of the time.
    """
    obstacle = _obstacle(pid)
    if obstacle is not None:
        raise NoRecord(obstacle)
    start = time.monotonic()
    _wait_for_activity(pid, seconds)
    whole = max(1, round(seconds))
    recording = Recording(pid, _folder_of(pid) / "record", whole, each)
    try:
        _attach(recording, whole, native)
        try:
            _when_complete(recording, whole)
        except BaseException:
            if not _written(recording):  # else it has stopped already
                _detach(pid)
            raise
        recording.seconds = time.monotonic() - start
        recording.start()
    except BaseException:
        recording.close()
        raise
    return recording


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


def _attach(recording: Recording, seconds: int, native: bool) -> None:
    options = ["--no-compress", "--trace-python-allocators", "--duration", str(seconds)]
    options += [] if recording.each else ["--aggregate"]
    options += ["--native"] if native else []
    done = _memray("attach", *options, "-o", str(recording.file), str(recording.pid))
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


def _when_complete(recording: Recording, seconds: int) -> None:
    """Wait until the process has written what was recorded: not before the time is over, or room is."""
    pid, start = recording.pid, time.monotonic()
    end = start + seconds + _FINISH
    most = _largest(recording.file)
    while time.monotonic() < end:
        there = os.path.exists(f"/proc/{pid}/stat")  # noqa: PTH110
        if _written(recording):
            return
        if not there:
            raise NoRecord("the process ended meanwhile")
        if recording.each and not recording.notes and _size(recording.file) > most:
            after = f"{time.monotonic() - start:.0f} s"
            recording.notes.append(f"memray was stopped after {after}: it had recorded {most >> 20:,} MiB")
            _detach(pid)
        time.sleep(_LOOK)
    raise NoRecord("what it recorded was not written to its end")


def _largest(file: Path) -> int:
    try:
        return min(_LARGEST, shutil.disk_usage(file.parent).free // _PART)
    except OSError:
        return _LARGEST


def _size(file: Path) -> int:
    try:
        found = file.lstat()
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


# Sums are written at the end: until then the file is empty. Where all is written it is open until the end.
def _written(recording: Recording) -> bool:
    if not _size(recording.file):
        return False
    if not recording.each:
        return True
    folder, path = f"/proc/{recording.pid}/fd", str(recording.file)
    with suppress(OSError):
        for fd in os.listdir(folder):  # noqa: PTH208
            with suppress(OSError):
                if os.readlink(f"{folder}/{fd}") == path:  # noqa: PTH115
                    return False
    return True


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


def _site(kind: str, frames: list[list[Any]], native: list[list[Any]]) -> dict[str, Any]:
    file, line, function = (frames or native or [[None, None, None]])[0]
    site = {"source": "memray", "file": file, "line": line, "function": function, "frames": frames}
    return {**site, "native": native, **({"allocator": kind} if kind else {})}
