"""What was looked at, as far as a capture tells it."""

from __future__ import annotations

from diagtool.capture.model import Capture
from diagtool.snapshot.model import Target

__all__ = ["describe"]


def describe(capture: Capture, flavour: str = "") -> Target:
    """What was looked at, as far as the capture tells it."""
    process = capture.process
    details = {
        "uid": process.uid,
        "gid": process.gid,
        "cgroup": process.cgroup,
        "namespaces": process.namespaces,
        "environ": process.environ,
        "ns_pid": process.ns_pid,
        "missing": capture.missing,
        "root": process.root,
    }
    return Target(
        kind=capture.kind,
        pid=process.pid,
        flavour=flavour,
        exe=process.exe,
        cmdline=list(process.cmdline),
        host=process.host,
        start_time=process.start_time,
        captured_at=process.captured_at,
        boot_id=process.boot_id,
        signal=process.signal,
        details={k: v for k, v in details.items() if v},
    )
