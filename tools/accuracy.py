"""docs/accuracy.md: which leaks are found, and what is found in healthy programs, measured.

    python tools/accuracy.py [--only applications|fixtures] [--name NAME …] [--write docs/accuracy.md]

Every mode of every fixture runs on one version of CPython and is judged as `diagtool leaks --heap` does,
leaks that need a series by three snapshots. Every healthy application runs idle and under load, all its
processes are looked at three times, and each look and the series of all three are judged.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import diagtool  # noqa: E402
from diagtool._version import __version__  # noqa: E402
from diagtool.leaks import find_leaks  # noqa: E402
from diagtool.leaks.template import builtin  # noqa: E402
from fixture_programs import FIXTURES, Fixture, FixtureFailed, FixtureSkipped, interpreters, launch  # noqa: E402

APPLICATIONS = ROOT / "fixtures" / "applications"
VENV = ROOT / ".cache" / "venvs" / "applications"
LOOKS, PAUSE = 3, 4.0  # of an application: how many, seconds between them
READY_WITHIN = 120.0
SNAPSHOT = {"heap": True, "clone": "always"}


@dataclass
class Case:
    """One program in one mode. ``told``: (verdict, template) of every finding."""

    name: str
    mode: str
    leaks: bool
    catalogue: str = ""
    told: list[tuple[str, str]] = field(default_factory=list)
    processes: int = 1
    looks: int = 1
    problem: str = ""

    @property
    def found(self) -> bool:
        """Whether a leak was told as what it is; of a healthy program, whether anything was."""
        if not self.leaks:
            return bool(self.told)
        wanted = self.catalogue.split(",")
        return any(CATALOGUE.get(template) in wanted for _, template in self.told)


CATALOGUE = {t.id: t.catalogue for t in builtin()}


# --- fixtures ----------------------------------------------------------------------------------------------


def of_fixtures(names: list[str]) -> list[Case]:
    """All modes of the fixtures (of those called ``names``), on CPython 3.12."""
    interpreter = next(i for i in interpreters() if i.version == "3.12")
    jobs = []
    for fixture in FIXTURES.values():
        if fixture.name in ("zoo", "service") or (names and fixture.name not in names):
            continue
        for mode in (*fixture.leak_modes, *fixture.hard_modes, *fixture.healthy_modes):
            jobs.append((fixture, mode, interpreter))
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda job: _fixture(*job), jobs))


def _fixture(fixture: Fixture, mode: str, interpreter: Any) -> Case:
    leaks = mode not in fixture.healthy_modes
    case = Case(fixture.name, mode, leaks, fixture.template or "")
    try:
        with launch(fixture, mode, interpreter) as program:
            line = next(line for line in program.lines() if line.startswith("READY "))
            pid = int(line.split()[1])
            series = [diagtool.snapshot(pid, **SNAPSHOT)]
            if mode in fixture.hard_modes or not leaks:
                for _ in range(2):  # what one look cannot tell; and healthy ones must stay silent
                    with contextlib.suppress(FixtureFailed, ProcessLookupError):
                        if fixture.grows and mode in fixture.hard_modes:
                            program.grow()
                    series.append(diagtool.snapshot(pid, **SNAPSHOT))
                case.looks = len(series)
            told = [*find_leaks(series[-1:]).findings]
            told += find_leaks(series).findings if len(series) > 1 else []
            case.told = sorted({(f.verdict, f.template or "-") for f in told})
    except (FixtureSkipped, FixtureFailed, diagtool.TargetError) as error:
        case.problem = str(error).splitlines()[0][:150]
    print(_line(case), flush=True)
    return case


# --- applications ------------------------------------------------------------------------------------------


def of_applications(names: list[str]) -> list[Case]:
    """All applications, idle and under load."""
    python = VENV / "bin" / "python"
    if not python.exists():
        install(python)
    cases = []
    for program in sorted(APPLICATIONS.glob("[a-z]*.py")):
        if names and program.stem not in names:
            continue
        for mode in ("idle", "load"):
            case = Case(program.stem, mode, leaks=False)
            try:
                _application(case, program, python)
            except (OSError, RuntimeError, diagtool.TargetError) as error:
                case.problem = str(error).splitlines()[0][:150]
            print(_line(case), flush=True)
            cases.append(case)
    return cases


def install(python: Path) -> None:
    """Install what the applications need, for CPython 3.11, of which torch has a small build."""
    base = next(i for i in interpreters() if i.version == "3.11" and i.root is None)
    subprocess.run([*base.argv, "-m", "venv", str(VENV)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "-r", str(APPLICATIONS / "requirements.txt")]
    subprocess.run(pip, check=True)


def _application(case: Case, program: Path, python: Path) -> None:
    with _running(program, case.mode, python) as pid:
        series: dict[int, list[Any]] = {}
        for number in range(LOOKS):
            if number:
                time.sleep(PAUSE)
            for one in _tree(pid):
                with contextlib.suppress(diagtool.TargetError):
                    series.setdefault(one, []).append(diagtool.snapshot(one, **SNAPSHOT))
        case.processes, case.looks = len(series), LOOKS
        if not series:
            raise RuntimeError("no process of it could be read")
        told = []
        for looks in series.values():
            for look in looks:
                told += find_leaks([look]).findings
            told += find_leaks(looks).findings if len(looks) > 1 else []
        case.told = sorted({(f.verdict, f.template or "-") for f in told})


@contextlib.contextmanager
def _running(program: Path, mode: str, python: Path) -> Iterator[int]:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TMPDIR": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        log = Path(folder) / "log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [str(python), str(program), mode],
                stdout=sink,
                stderr=sink,
                env=environment,
                cwd=folder,
                start_new_session=True,
            )
        try:
            deadline = time.monotonic() + READY_WITHIN
            while True:
                lines = log.read_text(errors="replace").splitlines()
                found = [line for line in lines if line.startswith("READY ")]
                if found:
                    yield int(found[0].split()[1])
                    return
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("it is not ready: " + " | ".join(lines[-3:]))
                time.sleep(0.1)
        finally:
            pids = [process.pid, *_tree(process.pid, everybody=True)]
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def _tree(pid: int, everybody: bool = False) -> list[int]:
    """A process and those that it started, without the load and what is no Python."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                children = [int(word) for word in task.read_text().split()]
                found += [c for c in children if everybody or _comm(c) != "load"]
    return found


def _comm(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


# --- the page ----------------------------------------------------------------------------------------------


def _line(case: Case) -> str:
    said = ", ".join(f"{verdict} {template}" for verdict, template in case.told) or "nothing"
    wrong = (case.leaks and not case.found) or (not case.leaks and case.told)
    mark = "skip" if case.problem else "WRONG" if wrong else "ok"
    return f"{mark:5} {case.name} {case.mode}: {case.problem or said}"


def page(fixtures: list[Case], applications: list[Case]) -> str:
    """The text of docs/accuracy.md."""
    lines = [
        "# Accuracy",
        "",
        f"Made by `make accuracy` (tools/accuracy.py) on {date.today().isoformat()}, diagtool {__version__}.",
        "Fixtures on CPython 3.12, applications on 3.11. A leak counts as found if a finding names the",
        "template of its entry in the catalogue; anything at all that is said of a healthy program, a",
        "suspect too, counts against it.",
        "",
        "## Healthy applications",
        "",
        f"Each process is looked at {LOOKS} times, {PAUSE:.0f} s apart, with its heap; each look and the",
        "series are judged.",
        "",
        "| application | how | processes | findings |",
        "|---|---|---:|---|",
    ]
    for case in applications:
        said = ", ".join(f"{verdict} `{template}`" for verdict, template in case.told) or "none"
        lines.append(f"| {case.name} | {case.mode} | {case.processes} | {case.problem or said} |")
    clean = sum(not c.told and not c.problem for c in applications)
    lines += ["", f"{clean} of {len(applications)} without a finding.", "", "## Fixtures", ""]
    ran = [c for c in fixtures if not c.problem]
    leaks = [c for c in ran if c.leaks]
    healthy = [c for c in ran if not c.leaks]
    wronged = sum(bool(c.told) for c in healthy)
    lines += [
        f"{sum(c.found for c in leaks)} of {len(leaks)} leaks are found; {wronged} of {len(healthy)} healthy",
        f"twins and idle programs lead to a finding; {len(fixtures) - len(ran)} could not run here.",
        "",
        "| fixture | catalogue | leaks found | healthy modes silent |",
        "|---|---|---:|---:|",
    ]
    for name in dict.fromkeys(c.name for c in ran):
        mine = [c for c in ran if c.name == name]
        bad = [c for c in mine if c.leaks]
        good = [c for c in mine if not c.leaks]
        found = f"{sum(c.found for c in bad)}/{len(bad)}" if bad else "-"
        silent = f"{sum(not c.told for c in good)}/{len(good)}" if good else "-"
        lines.append(f"| {name} | {mine[0].catalogue or '-'} | {found} | {silent} |")
    wrong = [c for c in ran if (c.leaks and not c.found) or (not c.leaks and c.told)]
    if wrong:
        lines += ["", "What is wrong:", ""]
        for case in wrong:
            said = ", ".join(f"{verdict} `{template}`" for verdict, template in case.told) or "nothing"
            lines.append(f"- {case.name} {case.mode}: {said}")
    skipped = [c for c in fixtures if c.problem]
    if skipped:
        lines += ["", "What could not run:", ""]
        lines += [f"- {c.name} {c.mode}: {c.problem}" for c in skipped]
    return "\n".join(lines) + "\n"


def _replaced(kept: list[Case], measured: list[Case], names: list[str]) -> list[Case]:
    """What was kept, with what was measured in its place; all anew where everything was measured."""
    if not names:
        return measured
    new = {(c.name, c.mode): c for c in measured}
    return [new.pop((c.name, c.mode), c) for c in kept] + list(new.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["applications", "fixtures"])
    parser.add_argument("--name", action="append", default=[], help="of a fixture or application")
    parser.add_argument("--write", type=Path, help="the page to write")
    parser.add_argument("--keep", type=Path, help="a JSON file with what was measured; also read, for --only")
    options = parser.parse_args()
    kept: dict[str, list[dict[str, Any]]] = {}
    if options.keep and options.keep.exists():
        kept = json.loads(options.keep.read_text())
    parts: dict[str, list[Case]] = {
        part: [Case(**{**row, "told": [tuple(t) for t in row["told"]]}) for row in kept.get(part, [])]
        for part in ("fixtures", "applications")
    }
    if options.only != "applications":
        parts["fixtures"] = _replaced(parts["fixtures"], of_fixtures(options.name), options.name)
    if options.only != "fixtures":
        parts["applications"] = _replaced(parts["applications"], of_applications(options.name), options.name)
    if options.keep:
        rows = {part: [vars(c) for c in cases] for part, cases in parts.items()}
        options.keep.write_text(json.dumps(rows, indent=1))
    if options.write:
        options.write.write_text(page(parts["fixtures"], parts["applications"]))
    wrong = [
        c
        for cases in parts.values()
        for c in cases
        if not c.problem and ((c.leaks and not c.found) or (not c.leaks and c.told))
    ]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
