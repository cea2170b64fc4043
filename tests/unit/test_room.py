"""A capture takes at most half of the memory that is free, of the machine and of the container."""

from __future__ import annotations

import pytest

from diagtool.capture import room

GIB = 1 << 30


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 4 * GIB),
        # cgroup v2: a limit of 3 GiB of which 2 are used, half of a GiB of that being old cache
        (
            {
                "/proc/self/cgroup": "0::/app\n",
                "/sys/fs/cgroup/app/memory.current": f"{2 * GIB}\n",
                "/sys/fs/cgroup/app/memory.max": f"{3 * GIB}\n",
                "/sys/fs/cgroup/app/memory.stat": f"anon 5\ninactive_file {GIB // 2}\nx 1\n",
            },
            3 * GIB // 4,
        ),
        # the limit is that of the parent; our own is "max"
        (
            {
                "/proc/self/cgroup": "0::/pod/app\n",
                "/sys/fs/cgroup/pod/app/memory.current": f"{GIB}\n",
                "/sys/fs/cgroup/pod/app/memory.max": "max\n",
                "/sys/fs/cgroup/pod/memory.current": f"{2 * GIB}\n",
                "/sys/fs/cgroup/pod/memory.max": f"{3 * GIB}\n",
            },
            GIB // 2,
        ),
        # in a container the path is that of the host: what is mounted is the root
        (
            {
                "/proc/self/cgroup": "9:cpu:/x\n4:cpuset,memory:/docker/4711\n",
                "/sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
            },
            GIB // 2,
        ),
        # more used than allowed
        (
            {
                "/proc/self/cgroup": "0::/\n",
                "/sys/fs/cgroup/memory.current": f"{2 * GIB}\n",
                "/sys/fs/cgroup/memory.max": f"{GIB}\n",
            },
            0,
        ),
        ({"/proc/self/cgroup": "garbage\n0:\n:::\n"}, 4 * GIB),
    ],
)
def test_headroom(monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int) -> None:
    there = {"/proc/meminfo": f"MemTotal: 1 kB\nMemAvailable:    {8 * GIB >> 10} kB\n", **files}

    def read(path: str) -> bytes | None:
        text = there.get(path.replace("//", "/"))
        return None if text is None else text.encode()

    monkeypatch.setattr(room, "try_read", read)
    assert room.headroom() == expected


def test_resident_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "try_read", lambda _: b"RssAnon:\t   100 kB\nVmSwap:\t       7 kB\n")
    assert room.resident_bytes(1) == (100 << 10, 7 << 10)
    monkeypatch.setattr(room, "try_read", lambda _: None)
    assert room.resident_bytes(1) == (0, 0)
