"""apt as a downloader: other suites of this machine's Debian mirror, without touching its package state."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path


class FetchError(Exception):
    """Raised with one sentence of why packages could not be had."""


class Apt:
    """apt on its own sources, lists and archives: this machine's packages are neither read nor changed."""

    def __init__(self, folder: Path) -> None:
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            raise FetchError("this machine has no apt-get")
        self.folder = folder
        for name in ("lists/partial", "archives/partial", "state"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "state/status").touch()
        self.sources = folder / "sources.list"
        self.updated: set[str] = set()
        self.mirror, self.options = _mirror()

    def run(self, *words: str, archives: Path | None = None, cwd: Path | None = None) -> str:
        """Run apt-get, raising FetchError with its last words."""
        settings = {
            "Dir::Etc::sourcelist": self.sources,
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State": self.folder / "state",
            "Dir::State::lists": self.folder / "lists",
            "Dir::State::status": self.folder / "state/status",
            "Dir::Cache": self.folder,
            "Dir::Cache::archives": archives or self.folder / "archives",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
            "Acquire::http::Timeout": "20",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root" if os.geteuid() == 0 else "",
            "Debug::NoLocking": "true",
        }
        command = ["apt-get", *(f"-o{k}={v}" for k, v in settings.items()), "-qq", "-y", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=900)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"status {done.returncode}"]
            raise FetchError(f"apt-get {words[0]}: {said[0]}")
        return done.stdout

    def update(self, suite: str, kind: str = "deb") -> None:
        """Fetch the lists of one suite, those of earlier ones kept; ``kind`` "deb-src" is for its sources."""
        line = f"{kind} {self.options} {self.mirror} {suite} main\n"
        if line in self.updated:
            return
        self.sources.write_text("".join(sorted(self.updated | {line})))
        self.run("update", "-oAPT::Update::Error-Mode=any")
        self.updated.add(line)

    def closure(self, suite: str, packages: list[str], archives: Path) -> None:
        """Download packages of a suite with all they depend on."""
        (archives / "partial").mkdir(parents=True, exist_ok=True)
        self.run("-t", suite, "--download-only", "install", *packages, archives=archives)

    def download(self, suite: str, packages: list[str], archives: Path) -> None:
        """Download packages of a suite alone."""
        self.run("download", *(f"{p}/{suite}" for p in packages), cwd=archives)


def _mirror() -> tuple[str, str]:
    """The Debian mirror that this machine is set up with, and the options that name its keys."""
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(REPO_URI)|$(CODENAME)", "Created-By: Packages"],
        capture_output=True,
        text=True,
    ).stdout
    for line in listing.splitlines():
        origin, _, rest = line.partition("|")
        uri, _, codename = rest.partition("|")
        if origin == "Debian" and "-" not in codename:
            return uri, _keys()
    for path in _source_files():  # no lists on this machine yet: read the sources themselves
        for uri in re.findall(r"\S+://\S+/debian/?(?=\s)", path.read_text()):
            return uri, _keys()
    raise FetchError("this machine is not set up with a Debian mirror")


def _source_files() -> Iterable[Path]:
    etc = Path("/etc/apt")
    return [p for p in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))] if p.is_file()]


def _keys() -> str:
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    return f"[signed-by={keyring}]" if keyring.exists() else ""
