"""How much memory a capture may take without driving the machine or the container out of it."""

from __future__ import annotations

from diagtool.capture.procfs import parse_status, try_read


def headroom() -> int:
    """Bytes that may be taken for a copy: half of what is available.

    The limits of the control groups that we are in count too: inside a container we share the limit with
    the target, and an out-of-memory kill there would hit the target.
    """
    return room_of("self") // 2


def room_of(process: int | str) -> int:
    """Bytes that a process may still take: what is available here, and what its control groups allow."""
    room = 1 << 62
    for line in (try_read("/proc/meminfo") or b"").split(b"\n"):
        if line.startswith(b"MemAvailable:"):
            room = (_number(line.split()[1]) or 0) << 10
    for used, limit, reclaimable in _cgroup_memory(process):
        room = min(room, max(0, limit - used + reclaimable))
    return room


def resident_bytes(pid: int) -> tuple[int, int]:
    """(anonymous bytes in memory, bytes swapped out) of a process; zeros where that is not known."""
    status = parse_status(try_read(f"/proc/{pid}/status") or b"")
    found = [_number(status.get(name, "").split(" ")[0].encode()) or 0 for name in ("RssAnon", "VmSwap")]
    return found[0] << 10, found[1] << 10


def _cgroup_memory(process: int | str) -> list[tuple[int, int, int]]:
    """(used, limit, inactive file cache) in bytes, of every limit on a process (cgroup v2 and v1)."""
    out = []
    for line in (try_read(f"/proc/{process}/cgroup") or b"").decode("utf-8", "replace").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            base, names = "/sys/fs/cgroup", ("memory.current", "memory.max", "inactive_file ")
        elif "memory" in controllers.split(","):
            base = "/sys/fs/cgroup/memory"
            names = ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file ")
        else:
            continue
        # Inside a container the path may be that of the host; then only the mount's root exists.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            folder = "/".join([base, *parts[:depth]])
            used, limit = (_number(try_read(f"{folder}/{name}")) for name in names[:2])
            if used is None or limit is None:
                continue
            stat = (try_read(f"{folder}/memory.stat") or b"").decode("ascii", "replace").splitlines()
            cache = [_number(entry.split()[-1].encode()) for entry in stat if entry.startswith(names[2])]
            out.append((used, limit, (cache[0] if cache else None) or 0))
    return out


def _number(text: bytes | None) -> int | None:
    word = (text or b"").strip()
    return int(word) if word.isdigit() else None
