"""docs/accuracy-go.md: what is found in goroutine dumps, measured on programs of which it is known.

    python tools/go_accuracy.py [--minor 1.27] [--name CASE ...] [--write docs/accuracy-go.md]

Go's own leak tests (``runtime/testdata/testgoroutineleakprofile`` of the toolchain) say for each case which
goroutines leak, as expressions; which of them did, the runtime itself marks in the dumps (``(leaked)``). The
marks are taken out before diagtool sees the dumps. The fixtures of fixtures/go are judged, too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from diagtool._version import __version__  # noqa: E402
from diagtool.ingest import read_evidence  # noqa: E402
from diagtool.leaks import find_leaks  # noqa: E402
from diagtool.leaks.model import Report  # noqa: E402
from diagtool.leaks.source.files import Sources  # noqa: E402
from diagtool.snapshot.model import Snapshot  # noqa: E402
from go_programs import ALL, CACHE, PROGRAMS, built, environment, goroot, started  # noqa: E402

RUNS = 10  # of a case before the first dump, and again before the last
WITHIN = 180.0  # seconds for a case
SURE = ("likely", "proven")

#: In the place of the tests' own main: runs a case, and has the runtime mark what leaked before each dump.
MAIN = """package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/pprof"
	"strconv"
	"time"
)

const yieldCount = 10

var cmds = map[string]func(){}

func register(name string, f func()) { cmds[name] = f }

func registerInit(name string, f func()) {
	if len(os.Args) >= 2 && os.Args[1] == name {
		f()
	}
}

func profiled(*pprof.Profile, io.Writer) {}

func stay(int) {}

func main() {
	runs, _ := strconv.Atoi(os.Args[2])
	turn, done := make(chan bool, 1), make(chan bool, 1)
	go dumps(turn, done)
	for range turn {
		for i := 0; i < runs; i++ {
			cmds[os.Args[1]]()
		}
		done <- true
	}
}

func dumps(turn, done chan bool) {
	limit := 60 * time.Second
	for number, again := range []bool{true, false, true} {
		if again {
			turn <- true
			select {
			case <-done:
			case <-time.After(limit):
				limit = time.Second // it will not return: main is what waits
			}
		}
		time.Sleep(time.Second)
		if leaked := pprof.Lookup("goroutineleak"); leaked != nil {
			leaked.WriteTo(io.Discard, 0)
		}
		text := make([]byte, 256<<20)
		text = text[:runtime.Stack(text, true)]
		os.WriteFile(fmt.Sprintf("%s/%d.txt", os.Args[3], number), text, 0o600)
	}
	os.Exit(0)
}
"""


@dataclass
class Site:
    """One goroutine that a case leaks: an expression for its function and wait."""

    pattern: str
    leaked: bool = False  # by the runtime's own mark, in the last dump
    told: dict[str, str] = field(default_factory=dict)  # by which dumps -> the verdict


@dataclass
class Case:
    name: str
    sites: list[Site]
    simple: bool = True
    folder: str = ""
    wrong: dict[str, list[str]] = field(default_factory=dict)  # told surely, and not leaked
    problem: str = ""


#: Which of the dumps are judged together.
LOOKS = {
    "one dump": (2,),
    "two dumps, nothing happened between": (0, 1),
    "two dumps, more work between": (0, 2),
}


def cases_of(root: Path) -> list[Case]:
    """The cases and what they leak, from the source of Go's own test."""
    text = (root / "src/runtime/goroutineleakprofile_test.go").read_text()
    text = re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)
    found = []
    folder = root / "src/runtime/testdata/testgoroutineleakprofile/goker"
    registered = "".join(file.read_text() for file in folder.glob("*.go"))
    for flaky, name, rest in re.findall(r"make(Flaky)?Test\(\"(\w+)\"((?:\s*,\s*`[^`]*`)*)\s*,?\s*\)", text):
        sites = [Site(p) for p in re.findall(r"`([^`]*)`", rest)]
        goker = f'register("{name}"' in registered
        found.append(Case(name, sites, not flaky, "goker" if goker else ""))
    return found


def programs(root: Path, minor: str, out: Path) -> dict[str, Path]:
    """The test programs, built with our main: folder -> program."""
    source = root / "src/runtime/testdata/testgoroutineleakprofile"
    made = {}
    for folder in ("", "goker"):
        target = out / (folder or "simple")
        shutil.copytree(source / folder, target, ignore=shutil.ignore_patterns("goker", "*.md", "LICENSE"))
        for file in target.glob("*.go"):
            text = file.read_text()
            text = re.sub(r"prof\.WriteTo\((os\.Stdout|io\.Discard), 2\)", r"profiled(prof, \1)", text)
            file.write_text(re.sub(r"os\.Exit\(0\)", "stay(len(os.Args))", text))
        (target / "main.go").write_text(MAIN)
        (target / "go.mod").write_text(f"module leaks\n\ngo {minor}\n")
        made[folder] = target / "program"
        experiment = "goroutineleakprofile" if minor == "1.26" else ""
        subprocess.run(
            [str(root / "bin/go"), "build", "-o", str(made[folder]), "."],
            cwd=target,
            env=environment(minor, experiment=experiment),
            check=True,
        )
    return made


def run_case(case: Case, program: Path, folder: Path) -> None:
    """Run ``case`` and judge its dumps."""
    env = {"PATH": os.environ["PATH"], "GODEBUG": "asyncpreemptoff=1"}
    if case.simple:
        env["GOMAXPROCS"] = "1"
    try:
        subprocess.run(
            [str(program), case.name, str(RUNS), str(folder)],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=WITHIN,
            check=True,
        )
    except subprocess.TimeoutExpired:
        case.problem = f"did not end within {WITHIN:.0f} s"
        return
    except subprocess.CalledProcessError as error:
        case.problem = f"ended with {error.returncode}: {error.stderr.decode(errors='replace')[:200]!r}"
        return
    marked, dumps = [], []
    for number in range(3):
        text = (folder / f"{number}.txt").read_text()
        marked.append(text)
        plain = folder / f"{number}-plain.txt"
        plain.write_text(text.replace(" (leaked)", ""))
        (snapshot,) = read_evidence(plain)
        snapshot.target.captured_at = time.time() - 60 + 10 * number
        dumps.append(snapshot)
    truth = leaked_of(marked[2])
    for site in case.sites:
        site.leaked = any(re.search(site.pattern, t) for t in truth)
    for look, numbers in LOOKS.items():
        judge(case, look, [dumps[n] for n in numbers], truth, program.parent)


def leaked_of(text: str) -> set[str]:
    """``function(...) [wait]`` of what the runtime marked, as its own test makes it."""
    out = set()
    for stack in text.split("\n\n"):
        lines = stack.split("\n")
        head = re.match(r"goroutine \d+ (?:gp=\S+ m=\S+ (?:mp=\S+ )?)?\[([^\],]*) \(leaked\)", lines[0])
        at = next((i for i in range(len(lines) - 1, 1, -1) if lines[i].startswith("created by")), 0)
        if head and at >= 2:
            out.add(f"{lines[at - 2].removeprefix('main.')} [{head[1]}]")
    return out


def judge(case: Case, look: str, dumps: Sequence[Snapshot], truth: set[str], source: Path) -> None:
    report = find_leaks(dumps, sources=Sources(dumps[-1].target, folders=[source]))
    verdicts = {f.id: f.verdict for f in report.findings}
    plain = {re.sub(r"\([^()]*\) \[", "(...) [", t) for t in truth}
    for cluster in report.clusters:
        verdict = verdicts.get(cluster.finding or "")
        if verdict is None or not cluster.frames:
            continue
        site_text = f"{cluster.frames[-1].function.removeprefix('main.')}(...) [{cluster.wait}]"
        for site in case.sites:
            if re.search(site.pattern, site_text) and site.told.get(look) not in SURE:
                site.told[look] = verdict
        if verdict in SURE and site_text not in plain:
            case.wrong.setdefault(look, []).append(site_text)


# --- fixtures ----------------------------------------------------------------------------------------------


@dataclass
class Fixture:
    name: str
    leaks: bool
    told: dict[str, list[str]] = field(default_factory=dict)


def fixtures(minor: str) -> list[Fixture]:
    """Each mode of leaks and service: one dump, and two with more work between."""
    said = subprocess.run([str(built("leaks", minor)), "list"], capture_output=True, text=True, check=True)
    modes = [
        ("leaks", name, not at) for at, line in enumerate(said.stdout.splitlines()) for name in names(line)
    ]
    modes += [
        ("service", name, name != "healthy") for name in ("lookup", "body", "transport", "sql", "healthy")
    ]
    out = []
    for program, mode, leaks in modes:
        fixture = Fixture(f"{program} {mode}", leaks)
        with tempfile.TemporaryDirectory() as name, started(program, minor, mode, "25") as running:
            dumps = []
            for number in range(2):
                path = Path(name) / f"{number}.txt"
                running.debug2(path)
                dumps += read_evidence(path)
                if not number:
                    running.grow(25)
                    time.sleep(1.0)
        for look, numbers in (("one dump", (0,)), ("two dumps", (0, 1))):
            judged = [dumps[n] for n in numbers]
            report = find_leaks(judged, sources=Sources(judged[-1].target, folders=[PROGRAMS]))
            fixture.told[look] = told(report)
        out.append(fixture)
        print(f"{fixture.name:28} {fixture.told}", flush=True)
    return out


def names(line: str) -> list[str]:
    return line.partition("[")[2].rstrip("]\n").split()


def told(report: Report) -> list[str]:
    counts = Counter(f"{f.verdict} `{f.template}`" for f in report.findings)
    return [f"{n} × {what}" if n > 1 else what for what, n in counts.items()]


# --- the page ----------------------------------------------------------------------------------------------


def figures(cases: Iterable[Case], look: str) -> tuple[int, int, int, int]:
    """(sites that leaked, told at likely or better, told at all, told surely and wrong)."""
    ran = [c for c in cases if not c.problem]
    sites = [s for c in ran for s in c.sites if s.leaked]
    sure = sum(s.told.get(look) in SURE for s in sites)
    wrong = sum(len(c.wrong.get(look, ())) for c in ran)
    return len(sites), sure, sum(look in s.told for s in sites), wrong


def page(cases: list[Case], programs_: list[Fixture], minor: str) -> str:
    lines = [
        "# Accuracy for Go",
        "",
        f"Made by `make accuracy` (tools/go_accuracy.py) on {date.today().isoformat()},",
        f"diagtool {__version__}, Go {minor}.",
        "",
        "## Go's own leak tests, from text",
        "",
        "The runtime's tests of its profile of leaks say for each case which goroutines leak. Each case runs",
        f"{RUNS} times; dumps (`debug=2`) are taken then, a second later, and after {RUNS} more runs. The",
        "runtime marks in the dumps what it proves; the marks are taken out before diagtool reads them, and",
        "are what it is compared with. The source is given (`--source`). A site is a function and what it",
        "waits on. A false alarm is a place told at *likely* or better of which the runtime proves nothing.",
        "",
        "| judged | sites that leaked | likely or better | told at all | false alarms |",
        "|---|---:|---:|---:|---:|",
    ]
    for look in LOOKS:
        total, sure, any_, wrong = figures(cases, look)
        share = f" ({100 * sure / total:.0f} %)" if total else ""
        lines.append(f"| {look} | {total} | {sure}{share} | {any_} | {wrong} |")
    expected = sum(len(c.sites) for c in cases)
    silent = [c for c in cases if not c.sites and not c.problem]
    lines += [
        "",
        f"{len(cases)} cases with {expected} sites; the others did not leak in these runs (many need luck).",
        f"Cases that leak nothing: {', '.join(c.name for c in silent)}: "
        + (
            "nothing is told of them at *likely* or better." if not any(c.wrong for c in silent) else "WRONG."
        ),
        "",
    ]
    grown = list(LOOKS)[-1]
    missed = [f"{c.name}: `{s.pattern}` ({s.told.get(grown, 'nothing')})"
              for c in cases for s in c.sites if s.leaked and s.told.get(grown) not in SURE]  # fmt: skip
    wrong_ = [f"{c.name}: `{w}`" for c in cases for w in c.wrong.get(grown, ())]
    failed = [f"{c.name}: {c.problem}" for c in cases if c.problem]
    for title, rows in (
        (f"Not likely from {grown}", missed),
        (f"Told and not proven by the runtime, from {grown}", wrong_),
        ("Could not run", failed),
    ):
        if rows:
            lines += [f"{title}:", "", *(f"- {row}" for row in rows), ""]
    leaking = [f for f in programs_ if f.leaks]
    well = [f for f in programs_ if not f.leaks]
    found = sum(any(t.removeprefix("2 × ").startswith(SURE) for t in f.told["two dumps"]) for f in leaking)
    alarmed = sum(bool(f.told["two dumps"] or f.told["one dump"]) for f in well)
    lines += [
        "## Fixtures",
        "",
        f"From two dumps {found} of {len(leaking)} leaks are likely or better; of {len(well)} healthy",
        f"programs (pools, subscribers, tickers, locks that many want, a service under load …) {alarmed}",
        "lead to a finding of any kind.",
        "",
        "| program | leaks | one dump | two dumps |",
        "|---|---|---|---|",
    ]
    for f in programs_:
        cells = [", ".join(f.told[look]) or "-" for look in ("one dump", "two dumps")]
        lines.append(f"| {f.name} | {'yes' if f.leaks else 'no'} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minor", default="1.27", choices=ALL)
    parser.add_argument("--name", action="append", default=[], help="of a case")
    parser.add_argument("--write", type=Path, help="the page to write")
    parser.add_argument("--json", type=Path, help="write what was measured")
    parser.add_argument("--keep", type=Path, help="a folder for the dumps")
    options = parser.parse_args()
    root = goroot(options.minor)
    if root is None:
        print(f"Go {options.minor} is not here: tools/fetch_go.py {options.minor}", file=sys.stderr)
        return 1
    cases = [c for c in cases_of(root) if not options.name or c.name in options.name]
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(dir=CACHE)))
        folder.mkdir(parents=True, exist_ok=True)
        made = programs(
            root, options.minor, Path(stack.enter_context(tempfile.TemporaryDirectory(dir=CACHE)))
        )

        def run(case: Case) -> None:
            out = folder / case.name
            out.mkdir(exist_ok=True)
            run_case(case, made[case.folder], out)
            print(line(case), flush=True)
            if not options.keep:
                shutil.rmtree(out)

        with ThreadPoolExecutor(4) as pool:  # they sleep most of the time
            list(pool.map(run, cases))
    for look in LOOKS:
        print(look, figures(cases, look))
    if options.json:
        options.json.write_text(json.dumps([plain(c) for c in cases], indent=1))
    if options.write:
        options.write.write_text(page(cases, fixtures(options.minor), options.minor))
    return 0


def plain(case: Case) -> dict[str, Any]:
    return {**vars(case), "sites": [vars(s) for s in case.sites]}


def line(case: Case) -> str:
    grown = list(LOOKS)[-1]
    said = [f"{s.told.get(grown, '-') if s.leaked else 'did not leak'}" for s in case.sites]
    return f"{case.name:24} {case.problem or ', '.join(said) or 'no leak'} {case.wrong or ''}"


if __name__ == "__main__":
    sys.exit(main())
