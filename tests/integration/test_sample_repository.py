"""The promise to a team: a leak fails the build in each of three ways, at its line; repaired it passes.

The repository of fixtures/shop/ is copied, and its CI run as GitHub would run it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(180)

SHOP = Path(__file__).resolve().parents[2] / "fixtures" / "shop"
DIAGTOOL = [sys.executable, "-m", "diagtool"]
LEAKING = "order, price = await self.queue.get()"  # where the workers wait
CREATED = "self.workers = ["  # where they are started


@pytest.fixture(params=["leaking", "repaired"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The sample repository as it is, or with its fix."""
    folder = tmp_path / "shop"
    shutil.copytree(SHOP, folder, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    if request.param == "repaired":
        subprocess.run(["git", "apply", "fix.patch"], cwd=folder, check=True)
    return folder


def ci(folder: Path, *command: str) -> tuple[int, str]:
    """Exit status and output of a step of CI."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "GITHUB_"))}
    environment |= {"GITHUB_ACTIONS": "true", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def line_of(folder: Path, text: str) -> int:
    lines = (folder / "shop" / "pricing.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def judge(folder: Path, status: int, output: str, where: str) -> None:
    leaking = "pricing.close()" not in (folder / "shop" / "pricing.py").read_text()
    annotation = f"::error file=shop/pricing.py,line={line_of(folder, where)},"
    assert (status, annotation in output) == ((1, True) if leaking else (0, False)), output


def test_pytest_fails_at_the_line_that_starts_what_is_left(shop: Path) -> None:
    status, output = ci(shop, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--diagtool")
    judge(shop, status, output, CREATED)


def test_run_fails_at_the_line_that_waits(shop: Path) -> None:
    command = [*DIAGTOOL, "run", "--format", "github", "--", sys.executable, "-m", "shop", "20", "3"]
    judge(shop, *ci(shop, *command), LEAKING)


@pytest.fixture
def core(shop: Path) -> Iterator[Path]:
    """A core of the repository's program."""
    if shutil.which("gcore") is None:
        pytest.skip("no gcore here")
    command = [sys.executable, "-m", "shop", "20", "1000"]
    with subprocess.Popen(command, cwd=shop, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            pid = process.stdout.readline().split()[1]
            subprocess.run(["gcore", "-o", str(shop / "core"), pid], check=True, capture_output=True)
        finally:
            process.send_signal(signal.SIGKILL)
    yield shop / f"core.{pid}"


def test_a_core_fails_at_the_line_that_waits(shop: Path, core: Path) -> None:
    judge(shop, *ci(shop, *DIAGTOOL, "leaks", core.name, "--format", "github"), LEAKING)
