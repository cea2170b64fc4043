"""What a thread waits for, by its Python frames and by the system call it is blocked in.

The standard library's waits written in Python leave their frames on the stack and are known by these: the
longest row of the table below that fits the innermost frames. Which rows a version shows differs (3.13 lost
``Thread._wait_for_tstate_lock``), so the table holds all of them. Waits in C leave no frame: the system call
names them, and for locks, which are all one futex to the kernel, :mod:`.waitthings` looks at what was called.
"""

from __future__ import annotations

from collections.abc import Sequence

from diagtool.runtimes.syscalls import blocking_call
from diagtool.runtimes.waits import CALLS
from diagtool.snapshot.model import Frame

__all__ = ("classify", "wait_in_python")

#: "name of the wait | calls that it can be blocked in | module:function …", innermost frame first. "lock" is
#: a futex, "any" whatever blocks. 3.9 and 3.10 know no qualified names: there the last part alone must fit.
_TABLE = """
threading.Condition.wait | lock | threading:Condition.wait
threading.Condition.wait | lock | threading:Condition.wait threading:Condition.wait_for
threading.Event.wait | lock | threading:Condition.wait threading:Event.wait
threading.Semaphore.acquire | lock | threading:Condition.wait threading:Semaphore.acquire
threading.Barrier.wait | lock | C.wait C.wait_for threading:Barrier._wait threading:Barrier.wait
threading.Barrier.wait | lock | C.wait C.wait_for threading:Barrier._enter threading:Barrier.wait
threading.RLock.acquire | lock | threading:_RLock.acquire
threading.Thread.start | lock | C.wait threading:Event.wait threading:Thread.start
threading.Thread.join | lock | threading:Thread._wait_for_tstate_lock threading:Thread.join
threading.Thread.join | lock | threading:Thread.join
threading._shutdown | lock | threading:Thread._wait_for_tstate_lock threading:_shutdown
threading._shutdown | lock | threading:_shutdown
queue.Queue.get | lock | C.wait queue:Queue.get
queue.Queue.put | lock | C.wait queue:Queue.put
queue.Queue.join | lock | C.wait queue:Queue.join
queue.SimpleQueue.get | lock | C.wait threading:Semaphore.acquire queue:_PySimpleQueue.get
concurrent.futures.Future.result | lock | C.wait concurrent.futures._base:Future.result
concurrent.futures.Future.exception | lock | C.wait concurrent.futures._base:Future.exception
concurrent.futures.wait | lock | C.wait threading:Event.wait concurrent.futures._base:wait
concurrent.futures.as_completed | lock | C.wait threading:Event.wait concurrent.futures._base:as_completed
importlib.lock | lock | importlib._bootstrap:_ModuleLock.acquire
importlib.lock | lock | _frozen_importlib:_ModuleLock.acquire
subprocess.wait | any | subprocess:Popen._try_wait
subprocess.wait | any | subprocess:Popen._wait
subprocess.communicate | any | selectors:_PollLikeSelector.select subprocess:Popen._communicate
subprocess.communicate | any | selectors:SelectSelector.select subprocess:Popen._communicate
subprocess.communicate | any | subprocess:Popen.communicate
subprocess.communicate | lock | C.wait threading:Thread.join subprocess:Popen._communicate
socket.accept | any | socket:socket.accept
socket.connect | any | socket:create_connection
socket.getaddrinfo | any | socket:getaddrinfo
socket.recv | any | socket:SocketIO.readinto
socket.send | any | socket:SocketIO.write
socket.recv | any | ssl:SSLSocket.read
socket.recv | any | ssl:SSLSocket.recv
socket.recv | any | ssl:SSLSocket.recv_into
socket.send | any | ssl:SSLSocket.write
socket.send | any | ssl:SSLSocket.send
ssl.do_handshake | any | ssl:SSLSocket.do_handshake
multiprocessing.Lock.acquire | lock | multiprocessing.synchronize:SemLock.__enter__
multiprocessing.Condition.wait | lock | multiprocessing.synchronize:Condition.wait
multiprocessing.Event.wait | lock | multiprocessing.synchronize:Condition.wait M:Event.wait
multiprocessing.Condition.wait | lock | multiprocessing.synchronize:Condition.wait M:Condition.wait_for
multiprocessing.Connection.recv | any | N:Connection._recv
multiprocessing.Connection.recv | any | RECV N:_ConnectionBase.recv
multiprocessing.Connection.send | any | N:Connection._send
multiprocessing.Connection.poll | any | S.select N:wait N:Connection._poll
multiprocessing.Connection.poll | any | S.select N:wait N:Connection._poll N:_ConnectionBase.poll
multiprocessing.connection.wait | any | S.select N:wait
multiprocessing.Queue.get | any | RECV N:_ConnectionBase.recv_bytes Q:Queue.get
multiprocessing.SimpleQueue.get | any | RECV N:_ConnectionBase.recv_bytes Q:SimpleQueue.get
multiprocessing.Queue.get | any | S.select N:wait N:Connection._poll N:_ConnectionBase.poll Q:Queue.get
multiprocessing.Queue.get | lock | M:SemLock.__enter__ Q:Queue.get
multiprocessing.Queue.get | lock | Q:Queue.get
multiprocessing.SimpleQueue.get | lock | M:SemLock.__enter__ Q:SimpleQueue.get
multiprocessing.Queue.put | lock | Q:Queue.put
multiprocessing.JoinableQueue.join | lock | M:Condition.wait Q:JoinableQueue.join
multiprocessing.AsyncResult.get | lock | C.wait threading:Event.wait multiprocessing.pool:ApplyResult.wait
multiprocessing.Process.join | any | P:Popen.poll P:Popen.wait
multiprocessing.Process.join | any | S.select N:wait P:Popen.wait
multiprocessing.Process.join | any | multiprocessing.popen_forkserver:Popen.poll P:Popen.wait
"""

_SHORT = {
    "C.": "threading:Condition.",
    "S.": "selectors:",
    "M:": "multiprocessing.synchronize:",
    "N:": "multiprocessing.connection:",
    "Q:": "multiprocessing.queues:",
    "P:": "multiprocessing.popen_fork:",
}
_RECV = "N:Connection._recv N:Connection._recv_bytes"


def _entry(text: str) -> tuple[str, str, str]:
    """(module, qualified name, bare name); an empty qualified name fits every class."""
    for short, long in _SHORT.items():
        if text.startswith(short):
            text = long + text.removeprefix(short)
            break
    module, _, name = text.partition(":")
    bare = name.rpartition(".")[2]
    return module, "" if module == "selectors" else name, bare


def _rows() -> dict[str, list[tuple[str, str, list[tuple[str, str, str]]]]]:
    """Rows by the bare name of the innermost frame, the longest first."""
    by_name: dict[str, list[tuple[str, str, list[tuple[str, str, str]]]]] = {}
    for line in _TABLE.strip().splitlines():
        wait, blocked, chain = line.split(" | ")
        entries = [_entry(e) for e in chain.replace("RECV", _RECV).split()]
        by_name.setdefault(entries[0][2], []).append((wait, blocked, entries))
    for rows in by_name.values():
        rows.sort(key=lambda row: -len(row[2]))
    return by_name


_BY_NAME = _rows()


def classify(
    frames: Sequence[Frame],
    syscall: int | None,
    syscall_args: Sequence[int],
    wchan: str | None,
    gil: str | None,
    machine: str = "x86_64",
) -> str:
    """Name of what a thread waits for, "" when it does not wait.

    ``frames`` are innermost first, ``gil`` is "holds", "waits" or None. "futex" is a lock that neither frames
    nor the kernel can name: a Lock, a SimpleQueue or something native; :func:`.waitthings.wait_of_thread`
    goes on from there.
    """
    if gil == "waits":
        return "gil"
    call = blocking_call(syscall, syscall_args, wchan, machine)
    if gil == "holds" or call == "":
        # Whoever holds the GIL runs; if it is blocked all the same, then in native code.
        return "" if not call or call == "ioctl" else CALLS.get(call, call)
    known = wait_in_python(frames, call)
    if known is not None:
        return known[0]
    if call is None:
        return ""
    if call == "sleep" and not frames:
        return "sleep"
    return CALLS.get(call, call)


def wait_in_python(frames: Sequence[Frame], call: str | None) -> tuple[str, int] | None:
    """(name, number of frames) of a wait written in Python that the innermost frames show, or None.

    ``call`` is the kind of system call (:func:`.syscalls.blocking_call`), None when unknown. The outermost of
    these frames is usually the method of the thing that is waited on: its ``self`` is that thing.
    """
    if not frames:
        return None
    for wait, blocked, chain in _BY_NAME.get(frames[0].function.rpartition(".")[2], ()):
        if call is not None and blocked == "lock" and call != "futex":
            continue
        if len(chain) <= len(frames) and all(map(_fits, frames, chain)):
            return wait, len(chain)
    return None


def _fits(frame: Frame, entry: tuple[str, str, str]) -> bool:
    module, qualified, bare = entry
    if frame.module is not None:
        if frame.module != module:
            return False
    elif not f"/{frame.file}".endswith(f"/{module.replace('.', '/')}.py"):
        return False
    class_part, _, name = frame.function.rpartition(".")
    if name != bare:
        return False
    return not class_part or not qualified or frame.function == qualified
