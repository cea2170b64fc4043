#!/usr/bin/env python3
"""The demo: a leaking asyncio service, looked at while it runs, then from the core of its crash.

Run by ``make demo``. Starts fixtures/python/service.py, takes a snapshot, prints the report, lets the service
crash and prints the report of its core. Everything is made in a temporary folder and removed again.
"""

from __future__ import annotations

import os
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIAGTOOL = ROOT / ".venv/bin/diagtool"
SERVICE = ROOT / "fixtures/python/service.py"


def show(*command: str) -> int:
    """Print a command and run it as a person would."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    return subprocess.run([str(DIAGTOOL), *command[1:]], check=False).returncode


def start(folder: str) -> subprocess.Popen[str]:
    """Start the service with cores allowed; returns when it says that it is ready."""

    def allow_cores() -> None:
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))

    service = subprocess.Popen(
        [sys.executable, str(SERVICE), "leak", "200"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        preexec_fn=allow_cores,
    )
    assert service.stdout is not None
    for line in service.stdout:
        if line.startswith("READY"):
            return service
    sys.exit("the demo service did not start")


def core_of(service: subprocess.Popen[str], folder: str) -> str | None:
    """Let the service crash; the core that the kernel wrote, else one that gcore made before."""
    fallback = Path(folder, f"gcore.{service.pid}")
    subprocess.run(
        ["gcore", "-o", str(fallback.with_suffix("")), str(service.pid)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    os.kill(service.pid, signal.SIGABRT)
    service.wait()
    cores = sorted(Path(folder).glob("core*"))
    if cores:
        return str(cores[-1])
    return str(fallback) if fallback.exists() else None


def main() -> int:
    """Run the demo; 0 when both reports found the leak."""
    with tempfile.TemporaryDirectory(prefix="diagtool-demo-") as folder:
        service = start(folder)
        try:
            snapshot = str(Path(folder, "service.diag"))
            print(f"A leaking asyncio service runs as pid {service.pid}.")
            show("diagtool", "snapshot", str(service.pid), "-o", snapshot)
            live = show("diagtool", "leaks", snapshot)
            print("\nThe service crashes now (SIGABRT).")
            core = core_of(service, folder)
            if core is None:
                print("No core was written here (see core_pattern), so the demo ends with the live report.")
                return int(live != 1)
            dead = show("diagtool", "leaks", core)
        finally:
            service.kill()
            service.wait()
    return int((live, dead) != (1, 1))


if __name__ == "__main__":
    sys.exit(main())
