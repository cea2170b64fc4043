"""How many processors a process may use: affinity, cpuset and quota of its control groups.

Facts: sched_setaffinity(2); Linux Documentation/admin-guide/cgroup-v2.rst (cpu.max, cpuset.cpus.effective),
scheduler/sched-bwc.rst and cgroup-v1/cpusets.rst (cpu.cfs_quota_us, cpuset.effective_cpus). A limit of any
group above counts, too. In a container the groups above its own can't be seen; the nearest usually limits.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from diagtool.capture.procfs import parse_status, try_read

__all__ = ["CpuLimits", "cpu_limits", "parse_cpu_list"]

_ROOT = Path("/sys/fs/cgroup")
_MOST_GROUPS = 64  # from a group to the root
_MOST_CPUS = 1 << 16


@dataclass(frozen=True, slots=True)
class CpuLimits:
    """Processors: ``host`` has so many, the process may run on ``allowed`` of them, for ``quota`` of one
    processor's time each (2.5: two and a half). None where it is not known, or not limited."""

    host: int | None
    allowed: int | None
    quota: float | None

    @property
    def usable(self) -> int | None:
        """Threads that can run at once, at least one: the least of all limits."""
        least = self._least
        return None if least is None else max(math.ceil(least[0]), 1)

    @property
    def known_by(self) -> str | None:
        """What limits it, in words."""
        least = self._least
        return None if least is None else least[1]

    @property
    def _least(self) -> tuple[float, str] | None:
        limits = (
            (self.host, "all of the machine"),
            (self.allowed, "its affinity or cpuset"),
            (self.quota, "the quota of its control group"),
        )
        known = [(number, why) for number, why in limits if number is not None]
        return min(known, key=lambda limit: limit[0], default=None)


def cpu_limits(pid: int, *, root: Path = _ROOT) -> CpuLimits:
    """The limits of a live process now. ``root``: where the file systems of control groups are mounted."""
    status = parse_status(try_read(f"/proc/{pid}/status") or b"")
    allowed = parse_cpu_list(status.get("Cpus_allowed_list", ""))
    groups = _groups((try_read(f"/proc/{pid}/cgroup") or b"").decode("utf-8", "replace"))
    quotas: list[float] = []
    sets: list[int] = []
    for controllers, path in groups:
        for folder in _folders(root, controllers, path):
            quota = _quota(folder)
            if quota is not None:
                quotas.append(quota)
            for name in ("cpuset.cpus.effective", "cpuset.effective_cpus"):
                cpus = parse_cpu_list(_text(folder / name))
                if cpus:
                    sets.append(cpus)
    counts = [n for n in (allowed, *sets) if n]
    return CpuLimits(os.cpu_count(), min(counts) if counts else None, min(quotas) if quotas else None)


def parse_cpu_list(text: str) -> int:
    """How many processors a list like "0-3,8" names; 0 for what is none."""
    total = 0
    for part in text.strip().split(","):
        low, dash, high = part.partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()) or len(low) > 6 or len(high) > 6:
            return 0
        total += int(high) - int(low) + 1 if dash else 1
    return total if 0 < total < _MOST_CPUS else 0


# Lines of /proc/PID/cgroup: "4:cpu,cpuacct:/path" of version 1, "0::/path" of version 2.
def _groups(text: str) -> list[tuple[tuple[str, ...], str]]:
    out = []
    for line in text.splitlines()[:_MOST_GROUPS]:
        fields = line.split(":", 2)
        if len(fields) == 3 and fields[2].startswith("/"):
            names = tuple(n for n in fields[1].split(",") if n)
            if not names or {"cpu", "cpuset"} & set(names):
                out.append((names, fields[2]))
    return out


def _folders(root: Path, controllers: tuple[str, ...], path: str) -> list[Path]:
    """The folder of a group and those above it."""
    if controllers:
        tops = [root / ",".join(controllers), *(root / name for name in controllers)]
    else:
        tops = [root / "unified", root]
    parts = [p for p in PurePosixPath(path).parts[1:] if p != ".."][:_MOST_GROUPS]
    for top in tops:
        if top.is_dir():
            return [top.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]
    return []


def _quota(folder: Path) -> float | None:
    """Processors' worth of time: cpu.max ("200000 100000") or cpu.cfs_quota_us over cpu.cfs_period_us."""
    words = _text(folder / "cpu.max").split()
    if not words:
        words = [_text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip()]
    if len(words) != 2 or not all(w.isdecimal() and len(w) < 16 for w in words) or not int(words[1]):
        return None  # "max", -1: no limit
    return int(words[0]) / int(words[1]) or None


def _text(path: Path) -> str:
    return (try_read(str(path)) or b"").decode("ascii", "replace")
