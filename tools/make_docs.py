#!/usr/bin/env python3
"""Fill in what programs say in docs/: help texts, the schema, samples of reports.

usage: make_docs.py [--check] [--samples]

A page holds blocks between two comments; this program writes what is between them:

    <!-- make_docs: help leaks -->                      what `diagtool leaks --help` prints
    <!-- make_docs: file src/diagtool/snapshot/schema.sql -->
    <!-- make_docs: run leaks service.diag -->          what the command prints, about the demo service
    <!-- make_docs: memory leaks core -->               what it prints about the service that eats memory
    <!-- make_docs: native stacks core --native -->     what it prints about an extension that hangs
    <!-- make_docs: template templates check x.toml --> about fixtures/templates and baskets.py
    <!-- make_docs: sql SELECT * FROM cluster_text -->  what sqlite3 answers, about the same
    <!-- /make_docs -->

Help and files are always written. Samples (run, memory, native, template, sql) only with --samples, because
they start the demo service (fixtures/python/service.py) and take a snapshot of it,
fixtures/python/thumbnails.py, of which there are 1.diag, 2.diag, 3.diag and core, and
fixtures/python/e07_extension.py with journal.diag and core; a pid is shown as 4242. --check writes nothing
and fails when a help text or a file is not what it should be.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIAGTOOL = [sys.executable, "-m", "diagtool"]
SERVICE = [sys.executable, str(ROOT / "fixtures/python/service.py"), "leak", "200"]
THUMBNAILS = [sys.executable, str(ROOT / "fixtures/python/thumbnails.py"), "leak", "256"]
BASKETS = [sys.executable, str(ROOT / "fixtures/python/baskets.py"), "40"]
SAMPLED = ("run", "memory", "native", "template", "sql")
SHOWN_PID = "4242"
SHOWN_ROOT = "/srv/shop"

BLOCK = re.compile(r"(<!-- make_docs: (\w+) (.*?) -->\n).*?(<!-- /make_docs -->)", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--samples", action="store_true")
    parser.add_argument("--only", choices=("template",), help="of the samples only these")
    options = parser.parse_args()
    if options.only:
        with baskets() as template:
            return write({"template": template}, options.check)
    if not options.samples:
        return write({}, options.check)
    with service() as sample, thumbnails() as memory, journal() as native, baskets() as template:
        samples = {"run": sample, "sql": sample, "memory": memory, "native": native, "template": template}
        return write(samples, options.check)


def write(samples: Samples, check: bool) -> int:
    """Fill in every page; the number of pages that were wrong, if only checking."""
    stale = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        before = page.read_text("utf-8")
        after = filled(before, samples)
        if after != before:
            stale.append(page.relative_to(ROOT))
            if not check:
                page.write_text(after, "utf-8")
    for page in stale:
        print(f"{page} {'is stale: run tools/make_docs.py' if check else 'written'}")
    return len(stale) if check else 0


def filled(page: str, samples: Samples) -> str:
    """``page`` with its blocks filled in; samples stay as they are where there is none."""

    def fill(match: re.Match[str]) -> str:
        head, what, argument, tail = match.groups()
        if what in SAMPLED and what not in samples:
            return match[0]
        return f"{head}\n{block(what, argument, samples.get(what))}\n{tail}"

    return BLOCK.sub(fill, page)


def block(what: str, argument: str, sample: Sample | None) -> str:
    """The Markdown of one block."""
    if what == "help":
        words = argument.split() if argument != "diagtool" else []
        return fenced(f"$ {' '.join(['diagtool', *words, '--help'])}\n" + run([*words, "--help"]))
    if what == "file":
        path = ROOT / argument
        return fenced(path.read_text("utf-8"), path.suffix.lstrip("."))
    if sample is None:
        raise ValueError(f"{what} needs the demo service")
    if what in ("run", "memory", "native", "template"):
        words = [sample.real(word) for word in shlex.split(argument)]
        text = f"$ diagtool {argument.replace('PID', SHOWN_PID)}\n{run(words, sample.folder)}"
        return fenced(sample.shown(text))
    if what == "sql":
        return fenced(sample.shown(f'$ sqlite3 service.diag "{argument}"\n{sample.ask(argument)}'))
    raise ValueError(f"no such block: {what}")


def fenced(text: str, language: str = "text") -> str:
    lines = [line.rstrip() for line in text.rstrip().splitlines()]
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("^`{3,}", text, re.MULTILINE))])
    return "\n".join([f"{fence}{language}", *lines, fence])


def run(words: list[str], folder: str | None = None) -> str:
    """What diagtool prints. COLUMNS makes the width of help texts independent of the terminal."""
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([*DIAGTOOL, *words], cwd=folder, env=environment, capture_output=True, timeout=120)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"diagtool {' '.join(words)}: {done.stderr.decode()}")
    return done.stdout.decode("utf-8")


class Sample:
    """A service, and the folder in which what was taken of it is."""

    def __init__(self, pid: str, folder: str) -> None:
        self.pid = pid
        self.folder = folder

    def shown(self, text: str) -> str:
        """``text`` without what only this machine has."""
        text = re.sub(rf"\b{self.pid}\b", SHOWN_PID, text).replace(str(ROOT), SHOWN_ROOT)
        python = Path(sys.executable).resolve()
        text = text.replace(f"{sys.base_prefix}/lib/", "/usr/lib/")
        return text.replace(str(python), f"/usr/bin/{python.name}").replace(os.uname().release, "6.12.0")

    def real(self, word: str) -> str:
        """A word of a command as it has to be on this machine."""
        return self.pid if word == "PID" else word.replace(SHOWN_ROOT, str(ROOT))

    def ask(self, query: str) -> str:
        with sqlite3.connect(Path(self.folder, "service.diag")) as db:
            rows = db.execute(query).fetchall()
        return "\n".join("|".join("" if value is None else str(value) for value in row) for row in rows)


Samples = dict[str, Sample]  # by what a block begins with


@contextmanager
def started(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], Sample]]:
    """A program that is ready."""
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process,
    ):
        try:
            yield process, Sample(said(process, "READY"), folder)
        finally:
            process.kill()


def said(process: subprocess.Popen[str], word: str) -> str:
    """What follows ``word`` in the line that begins with it."""
    assert process.stdout is not None
    line = next((line for line in process.stdout if line.startswith(word)), "")
    if not line:
        raise RuntimeError(f"{process.args} did not say {word}")
    return line.split()[1]


@contextmanager
def service() -> Iterator[Sample]:
    """The demo service, a snapshot and a core of it."""
    with started(SERVICE) as (_, sample):
        run(["snapshot", sample.pid, "-o", "service.diag"], sample.folder)
        run(["core", sample.pid, "-o", "core"], sample.folder)
        yield sample


@contextmanager
def thumbnails() -> Iterator[Sample]:
    """The service that eats memory: three snapshots with work in between, and a core."""
    with started(THUMBNAILS) as (process, sample):
        for number in (1, 2, 3):
            run(["snapshot", sample.pid, "--heap", "-o", f"{number}.diag"], sample.folder)
            if number < 3:
                process.send_signal(signal.SIGUSR2)
                said(process, "GREW")
        run(["core", sample.pid, "-o", "core"], sample.folder)
        yield sample


@contextmanager
def baskets() -> Iterator[Sample]:
    """A shop whose baskets wait, a snapshot of it, and the templates of the tutorial beside it."""
    with started(BASKETS) as (_, sample):
        run(["snapshot", sample.pid, "-o", "shop.diag"], sample.folder)
        for template in (ROOT / "fixtures/templates").glob("*.toml"):
            shutil.copy(template, sample.folder)
        Path(sample.folder, "templates").mkdir()
        shutil.copy(ROOT / "fixtures/templates/baskets.toml", Path(sample.folder, "templates"))
        yield sample


@contextmanager
def journal() -> Iterator[Sample]:
    """An extension in C++ whose threads wait for each other, a snapshot and a core of it."""
    import pybind11

    source = ROOT / "fixtures/native/journal.cpp"
    include = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}"]
    with tempfile.TemporaryDirectory() as folder:
        command = ["g++", "-O1", "-g", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", *include]
        subprocess.run([*command, str(source), "-o", f"{folder}/journal.so"], check=True)
        program = [sys.executable, str(ROOT / "fixtures/python/e07_extension.py"), "leak"]
        with started(["env", f"DIAGTOOL_BUILT={folder}", *program]) as (_, sample):
            run(["snapshot", sample.pid, "-o", "journal.diag"], sample.folder)
            run(["core", sample.pid, "-o", "core"], sample.folder)
            yield sample


if __name__ == "__main__":
    sys.exit(main())
