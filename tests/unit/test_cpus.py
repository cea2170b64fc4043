"""How many processors a process may use: the least of machine, affinity, cpuset and quota."""

from __future__ import annotations

from pathlib import Path

import pytest

from diagtool.capture import cpus
from diagtool.capture.cpus import CpuLimits, cpu_limits, parse_cpu_list


@pytest.mark.parametrize(
    ("text", "number"),
    [("0-3,8", 5), ("0", 1), ("0-1\n", 2), ("", 0), ("all", 0), ("3-1", 0), ("0-9999999", 0), ("1,,2", 0)],
)
def test_a_list_of_processors(text: str, number: int) -> None:
    assert parse_cpu_list(text) == number


@pytest.mark.parametrize(
    ("limits", "usable", "known_by"),
    [
        (CpuLimits(64, 64, 2.0), 2, "the quota of its control group"),
        (CpuLimits(64, 64, 2.5), 3, "the quota of its control group"),
        (CpuLimits(64, 64, 0.1), 1, "the quota of its control group"),
        (CpuLimits(64, 4, None), 4, "its affinity or cpuset"),
        (CpuLimits(8, 8, None), 8, "all of the machine"),
        (CpuLimits(None, None, None), None, None),
    ],
)
def test_the_least_limit_counts(limits: CpuLimits, usable: int | None, known_by: str | None) -> None:
    assert (limits.usable, limits.known_by) == (usable, known_by)


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def limits(monkeypatch: pytest.MonkeyPatch, root: Path, cgroup: str) -> CpuLimits:
    said = {"/proc/7/cgroup": cgroup.encode(), "/proc/7/status": b"Name:\tx\nCpus_allowed_list:\t0-31\n"}
    real = cpus.try_read
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr(cpus, "try_read", lambda path: said.get(path) or real(path))
    return cpu_limits(7, root=root)


def test_a_limit_of_a_group_above_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group(tmp_path)
    group(tmp_path / "pods", cpu__max="150000 100000", cpuset__cpus__effective="0-31")
    group(tmp_path / "pods" / "a", cpu__max="max 100000", cpuset__cpus__effective="0-7")
    found = limits(monkeypatch, tmp_path, "0::/pods/a\n")
    assert (found.allowed, found.quota, found.usable) == (8, 1.5, 2)


def test_control_groups_of_version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group(tmp_path / "cpu,cpuacct" / "box", cpu__cfs_quota_us="400000", cpu__cfs_period_us="100000")
    group(tmp_path / "cpuset" / "box", cpuset__effective_cpus="2-4")
    found = limits(monkeypatch, tmp_path, "5:cpuset:/box\n4:cpu,cpuacct:/box\n3:memory:/other\n")
    assert (found.allowed, found.quota, found.usable) == (3, 4.0, 3)


@pytest.mark.parametrize(
    ("cpu_max", "cgroup"),
    [
        ("max 100000", "0::/a"),
        ("-1 0", "0::/a"),
        ("1 0", "0::/a"),
        ("x", "0::/a"),
        ("200000 100000", "0::/../.."),
        ("200000 100000", "nonsense"),
    ],
)
def test_no_limit_and_nonsense_limit_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_max: str, cgroup: str
) -> None:
    group(tmp_path / "a", cpu__max=cpu_max)
    assert limits(monkeypatch, tmp_path, cgroup).quota is None


def test_this_process_may_use_one_at_least() -> None:
    import os

    usable = cpu_limits(os.getpid()).usable
    assert usable is not None and 1 <= usable <= (os.cpu_count() or 1)
