"""What is proven of goroutines in memory, measured with Go's own leak tests: all versions, live and from
cores.

    python tools/go_proofs.py [--minor 1.27 ...] [--name CASE ...] [--repeat N] [--core] [--write FILE]

``runtime/testdata/testgoroutineleakprofile`` of a toolchain has programs that leak in known ways, and
where the
runtime can prove it (1.26, 1.27), it says which goroutines these are. A program stops where it would ask for
that; diagtool looks at it from outside; then the runtime is asked. Older versions run the same programs;
there the sites
that are expected are counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tools"))

from go_accuracy import Case, Site, cases_of, leaked_of  # noqa: E402

from diagtool import api  # noqa: E402
from diagtool._version import __version__  # noqa: E402
from go_programs import ALL, CACHE, environment, goroot, running  # noqa: E402

#: The newest tests, for all versions: older toolchains have none of their own.
TESTS = "1.27"
KNOWS = ("1.26", "1.27")  # versions whose runtime can say what leaked
SETTLED = 1.0  # seconds for a program to get where it gets stuck

MAIN = """package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime/pprof"
	"time"
)

const (
	yieldCount = 10
	asked      = 3
)

var cmds = map[string]func(){}

func register(name string, f func()) { cmds[name] = f }

func registerInit(name string, f func()) {
	if len(os.Args) >= 2 && os.Args[1] == name {
		f()
	}
}

func min(a, b int) int {
	if a < b {
		return a
	}
	return b
}

func profiled(prof *pprof.Profile, f *os.File) {
	fmt.Println("READY")
	bufio.NewReader(os.Stdin).ReadString('\\n')
	// A collection that runs beside the program keeps what is touched meanwhile: it is asked several times.
	for i := 0; prof != nil && i < asked; i++ {
		time.Sleep(time.Duration(i) * 100 * time.Millisecond)
		prof.WriteTo(f, 2)
		f.WriteString("\\n\\n")
	}
	os.Exit(0)
}

func main() { cmds[os.Args[1]]() }
"""


@dataclass
class Look:
    """One run of a case: numbers of goroutines that are proven stuck, by us and by the runtime."""

    ours: set[int]
    theirs: set[int] | None
    sites: set[str]
    their_sites: set[str] = field(default_factory=set)
    why_not: str = ""
    judged: int = 0


def programs(minor: str, out: Path) -> dict[str, Path]:
    """The programs, built by a version: folder of the tests -> program."""
    root, tests = goroot(minor), goroot(TESTS)
    assert root is not None and tests is not None
    source = tests / "src/runtime/testdata/testgoroutineleakprofile"
    made = {}
    for folder in ("", "goker"):
        target = out / f"{minor}-{folder or 'simple'}"
        shutil.copytree(source / folder, target, ignore=shutil.ignore_patterns("goker", "*.md", "LICENSE"))
        for file in target.glob("*.go"):
            text = file.read_text()
            text = re.sub(r"(\w+)\.WriteTo\(os\.Stdout, 2\)", r"profiled(\1, os.Stdout)", text)
            file.write_text(text)
        (target / "main.go").write_text(MAIN)
        (target / "go.mod").write_text(f"module leaks\n\ngo {minor}\n")
        made[folder] = target / "program"
        done = subprocess.run(
            [str(root / "bin/go"), "build", "-o", str(made[folder]), "."],
            cwd=target,
            env=environment(minor, experiment="goroutineleakprofile" if minor == "1.26" else ""),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"Go {minor} does not build {folder or 'simple'}:\n{done.stderr}")
    return made


def look(case: Case, program: Path, minor: str, core: bool) -> Look:
    """Run a case once, look at it, ask the runtime."""
    env = {"GODEBUG": "asyncpreemptoff=1", **({"GOMAXPROCS": "1"} if case.simple else {})}
    with running(program, case.name, env=env) as target, tempfile.TemporaryDirectory(dir=CACHE) as name:
        time.sleep(SETTLED)
        if core:
            snapshot = api.snapshot(str(target.gcore(Path(name))), inventory=[], frames=False)
        else:
            snapshot = api.snapshot(target.pid, inventory=[], frames=False)
        assert target.process.stdin is not None and target.process.stdout is not None
        target.process.stdin.write("go\n")
        target.process.stdin.flush()
        text = target.process.stdout.read()
    ours, sites = set(), set()
    for stack in snapshot:
        if stack.kind == "goroutine" and stack.stuck:
            ours.add(stack.address)
            if stack.frames:
                sites.add(f"{stack.frames[-1].function.removeprefix('main.')}(...) [{stack.wait}]")
    judged = snapshot.tables["go_judgement"][0]
    found = Look(ours, None, sites, why_not=str(judged["why_not"]), judged=int(judged["judged"]))
    if minor in KNOWS:
        found.theirs, found.their_sites = set(), leaked_of(text)
        for part in text.split("\n\n"):
            head = re.match(r"goroutine (\d+) \[([^\],]*) \(leaked\)", part)
            if head:
                found.theirs.add(int(head[1]))
    return found


@dataclass
class Result:
    case: Case
    looks: list[Look] = field(default_factory=list)

    @property
    def goroutines(self) -> tuple[int, int, int, int]:
        """(runs, proven by us, by the runtime, by us and not by it)."""
        theirs = sum(len(k.theirs or ()) for k in self.looks)
        more = sum(len(k.ours - k.theirs) for k in self.looks if k.theirs is not None)
        return len(self.looks), sum(len(k.ours) for k in self.looks), theirs, more

    @property
    def missed(self) -> int:
        return sum(len(k.theirs - k.ours) for k in self.looks if k.theirs is not None)

    def found(self, site: Site) -> bool:
        """Whether an expected site was proven in any run."""
        return any(re.search(site.pattern, text) for k in self.looks for text in k.sites)

    def found_by_runtime(self, site: Site) -> bool:
        return any(re.search(site.pattern, text) for k in self.looks for text in k.their_sites)


def measure(minor: str, names: Sequence[str], repeat: int, core: bool, out: Path) -> list[Result]:
    tests = goroot(TESTS)
    assert tests is not None
    made = programs(minor, out)
    cases = [case for case in cases_of(tests) if not names or case.name in names]

    def run(case: Case) -> Result:
        result = Result(case)
        for _ in range(repeat):
            try:
                result.looks.append(look(case, made[case.folder], minor, core))
            except RuntimeError as error:  # some cases end themselves by chance
                case.problem = " ".join(str(error)[:120].split())
        runs, ours, theirs, more = result.goroutines
        flags = " MORE THAN THE RUNTIME" if more else ""
        flags += f" missed {result.missed}" if result.missed else ""
        why = "; ".join({k.why_not for k in result.looks if k.why_not})
        text = f"{minor} {case.name:24} runs {runs} ours {ours} theirs {theirs}{flags} {why} {case.problem}"
        print(text, flush=True)
        return result

    with ThreadPoolExecutor(3) as pool:  # they sleep most of the time
        return list(pool.map(run, cases))


def summary(minor: str, core: bool, results: list[Result]) -> dict[str, object]:
    sites = [(r, s) for r in results for s in r.case.sites]
    silent = [r for r in results if not r.case.sites]
    return {
        "minor": minor,
        "from": "core" if core else "live",
        "cases": len(results),
        "sites": len(sites),
        "sites proven": sum(r.found(s) for r, s in sites),
        "sites by the runtime": sum(r.found_by_runtime(s) for r, s in sites) if minor in KNOWS else None,
        "goroutines proven": sum(r.goroutines[1] for r in results),
        "by the runtime": sum(r.goroutines[2] for r in results) if minor in KNOWS else None,
        "more than the runtime": sum(r.goroutines[3] for r in results) if minor in KNOWS else None,
        "missed": sum(r.missed for r in results) if minor in KNOWS else None,
        "alarms where nothing leaks": sum(r.goroutines[1] for r in silent),
        "not judged": sum(bool(k.why_not) for r in results for k in r.looks),
    }


COLUMNS = {
    "Go": "minor",
    "from": "from",
    "expected sites": "sites",
    "proven": "sites proven",
    "by the runtime ": "sites by the runtime",
    "goroutines proven": "goroutines proven",
    "by the runtime": "by the runtime",
    "more than it": "more than the runtime",
    "missed": "missed",
    "alarms where nothing leaks": "alarms where nothing leaks",
}


def page(rows: list[dict[str, object]], repeat: int) -> str:
    lines = [
        "# Accuracy for Go, from memory",
        "",
        f"Made by tools/go_proofs.py on {date.today().isoformat()}, diagtool {__version__}.",
        "",
        "The runtime's own tests of its profile of leaked goroutines: 85 programs, of which some leak by",
        f"chance only, built by each version and run {repeat} times each. A program stops where it would ask",
        "the runtime; diagtool looks at its memory; then the runtime is asked, three times, where the",
        "version can say it (1.26, 1.27). What it finds more may have got stuck meanwhile (*missed*).",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---|---|" + "---:|" * (len(COLUMNS) - 2),
    ]
    for row in rows:
        values = [row.get(c) for c in COLUMNS.values()]
        cells = ["-" if v is None else f"{v:,}" if isinstance(v, int) else str(v) for v in values]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minor", action="append", default=[], choices=ALL)
    parser.add_argument("--name", action="append", default=[], help="of a case")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--core", action="store_true", help="from cores that gcore makes")
    parser.add_argument("--write", type=Path, help="the page to write")
    parser.add_argument(
        "--json", type=Path, help="add what was measured to a file, and make the page of all of it"
    )
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    if options.json and options.json.exists():
        rows = json.loads(options.json.read_text())
    with contextlib.ExitStack() as stack:
        out = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=CACHE)))
        for minor in options.minor or ALL:
            if goroot(minor) is None:
                print(f"Go {minor} is not here", file=sys.stderr)
                continue
            results = measure(minor, options.name, options.repeat, options.core, out)
            row = summary(minor, options.core, results)
            print(row, flush=True)
            same = ("minor", "from")
            rows = [r for r in rows if any(r[k] != row[k] for k in same)] + [row]
            for result in results:
                for site in result.case.sites:
                    if not result.found(site) and result.looks:
                        print(f"   {minor} not proven: {result.case.name} {site.pattern}")
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if options.write:
        rows.sort(key=lambda r: (str(r["from"]) != "live", str(r["minor"])))
        options.write.write_text(page(rows, options.repeat))
    return 0


if __name__ == "__main__":
    sys.exit(main())
