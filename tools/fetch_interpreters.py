"""Find the CPython interpreters of this machine, and fetch those that the tests need and the machine lacks.

Usage: fetch_interpreters.py [--list] [--all] [--free-threaded [3.X ...]] [--headers] [--update]

Looked for: python3.9 to python3.15 on PATH and in pyenv's versions. What is missing comes from Debian
packages of a suite that has it, unpacked together with their C library into folders under
.cache/interpreters/ and run there with chroot; nothing is installed, and apt works on its own lists under
.cache/apt. One debug build always comes that way. ``--all`` unpacks every version and every debug build,
whatever else the machine has; ``--free-threaded`` builds 3.13t, 3.14t and 3.15t, or those named, from
Debian's source packages, as no suite has them (gcc, make, some minutes for each); ``--headers`` unpacks the
headers of every release that any suite has, for tools/layouts/generate.py.

Writes .cache/interpreters/index.json:

    {"interpreters": [{"version": "3.14", "flavour": "release", "full": "3.14.8",
                       "argv": [".../chroot", "<root>", "/usr/bin/python3.14"], "root": "<root>",
                       "headers": "<root>/usr/include/python3.14"}, ...],
     "missing": [{"version": "3.15", "why": "..."}]}

``flavour`` is release, debug, free-threaded or free-threaded-debug; ``root`` is null for an interpreter of
this machine, ``headers`` for one without. A program for an interpreter with a root must lie in that root, or
come on standard input or with -c. With CI=true the exit status is 1 when one of 3.9 to 3.13 is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from private_apt import Apt, FetchError

CACHE = Path(__file__).resolve().parents[1] / ".cache"
HOME = CACHE / "interpreters"
INDEX = HOME / "index.json"

MINORS = [f"3.{n}" for n in range(9, 16)]
NEEDED_IN_CI = MINORS[:5]

#: The oldest suite of Debian that has a version, then newer ones to fall back on. None has 3.10 and 3.12.
SUITES = {
    "3.9": ["bullseye"],
    "3.11": ["bookworm"],
    "3.13": ["trixie", "forky", "sid"],
    "3.14": ["forky", "sid"],
    "3.15": ["forky", "sid", "experimental"],
}
#: Debug builds are large (80 MB each): one comes always, the others with --all.
DEBUG_BUILDS = ["3.11"]

#: What free-threaded interpreters are built from: version, and the suite whose source package has it.
FREE_THREADED = {"3.13": "trixie", "3.14": "forky", "3.15": "forky"}

#: What a root folder needs besides the packages: device nodes as (major, minor), and folders.
DEVICES = {"null": (1, 3), "zero": (1, 5), "random": (1, 8), "urandom": (1, 9)}
FOLDERS = {"dev/shm": 0o1777, "tmp": 0o1777, "proc": 0o555, "root": 0o700, "etc": 0o755}
#: What programs in fixtures/ and tests/ import.
USED = (
    "asyncio array argparse atexit bisect code codecs collections concurrent.futures contextlib "
    "contextvars ctypes ctypes.util dataclasses datetime decimal email.message enum faulthandler "
    "fractions functools gc getpass glob hashlib heapq html http.client http.server "
    "importlib.metadata inspect io itertools json logging.handlers mmap multiprocessing.connection "
    "multiprocessing.managers multiprocessing.pool multiprocessing.shared_memory operator pathlib pdb "
    "pickle pprint queue random re resource runpy secrets select selectors shutil signal socket "
    "socketserver sqlite3 ssl statistics string struct subprocess sysconfig tempfile textwrap "
    "threading timeit token traceback tracemalloc types typing unittest.mock urllib.request uuid "
    "warnings weakref wsgiref.simple_server xml.dom.minidom xml.etree.ElementTree zipfile zoneinfo"
)
MERGED = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"]

#: Asked of every interpreter; must not import anything that a broken one lacks.
QUESTION = """
import sys, sysconfig
name = sys.implementation.name
full = "%d.%d.%d" % sys.version_info[:3]
level, number = sys.version_info[3:]
if level != "final":
    full += {"alpha": "a", "beta": "b", "candidate": "rc"}[level] + str(number)
debug = hasattr(sys, "gettotalrefcount")
threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
print(name, full, int(debug), int(threaded), sysconfig.get_path("include"))
"""


@dataclass(frozen=True)
class Interpreter:
    """One entry of index.json."""

    version: str
    flavour: str
    full: str
    argv: list[str]
    root: str | None
    headers: str | None
    stamp: str  # command, size and time of the binary: as long as they hold, it is not run again


# -- what is there ------------------------------------------------------------------------------------------


def on_this_machine() -> Iterator[Path]:
    """Binaries named python3.X (or 3.Xt, 3.Xd) on PATH and of pyenv, shims left out, each once."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    folders = [
        Path(p) for p in os.environ.get("PATH", "").split(os.pathsep) if p and Path(p) != pyenv / "shims"
    ]
    folders += [*sorted(pyenv.glob("versions/*/bin")), *sorted(HOME.glob("built-*/bin"))]
    seen = set()
    for folder in folders:
        for minor in MINORS:
            for suffix in ("", "t", "d"):
                path = folder / f"python{minor}{suffix}"
                real = path.resolve()
                if not real.is_file() or not os.access(real, os.X_OK):
                    continue
                file = real.stat().st_dev, real.stat().st_ino  # python3.13 and python3.13t may be one
                if file not in seen:
                    seen.add(file)
                    yield real


def in_roots() -> Iterator[tuple[Path, Path]]:
    """(root folder, binary) of every unpacked interpreter."""
    for root in sorted(p.parent for p in HOME.glob("*/.complete")):
        for minor in MINORS:
            for suffix in ("", "d"):
                binary = root / "usr/bin" / f"python{minor}{suffix}"
                if binary.exists():
                    yield root, binary


def ask(binary: Path, root: Path | None, known: dict[str, Interpreter]) -> Interpreter | None:
    """What an interpreter says it is; None when it does not run or is not CPython."""
    argv = [*enter(root), "/" + str(binary.relative_to(root))] if root else [str(binary)]
    status = binary.stat()
    stamp = f"{' '.join(argv)} {status.st_size} {status.st_mtime_ns}"
    if stamp in known:
        return known[stamp]
    try:
        done = subprocess.run([*argv, "-Ic", QUESTION], capture_output=True, text=True, timeout=60, cwd="/")
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"{binary}: does not run: {error}", file=sys.stderr)
        return None
    if done.returncode:
        print(f"{binary}: does not run: {done.stderr.strip()[-300:]}", file=sys.stderr)
        return None
    name, full, debug, threaded, include = done.stdout.split(None, 4)
    if name != "cpython":
        return None
    flavour = (
        "-".join([w for w, on in (("free-threaded", threaded), ("debug", debug)) if on == "1"]) or "release"
    )
    headers = Path(f"{root or ''}{include.strip()}")
    return Interpreter(
        version=".".join(full.split(".")[:2]),
        flavour=flavour,
        full=full,
        argv=argv,
        root=str(root) if root else None,
        headers=str(headers) if (headers / "patchlevel.h").exists() else None,
        stamp=stamp,
    )


def enter(root: Path) -> list[str]:
    """The command that runs something inside a root folder."""
    chroot = [shutil.which("chroot") or "/usr/sbin/chroot", str(root)]  # often not on a plain user's PATH
    return chroot if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", *chroot]


def survey() -> list[Interpreter]:
    """All interpreters that run, those of this machine first."""
    known: dict[str, Interpreter] = {}
    with contextlib.suppress(
        OSError, ValueError, KeyError, TypeError
    ):  # no index yet, or one of another form
        known = {e["stamp"]: Interpreter(**e) for e in json.loads(INDEX.read_text())["interpreters"]}
    places: list[tuple[Path | None, Path]] = [(None, b) for b in on_this_machine()]
    places += in_roots()
    found = (ask(binary, root, known) for root, binary in places)
    return sorted(
        (i for i in found if i), key=lambda i: (MINORS.index(i.version), i.flavour, i.root is not None)
    )


# -- root folders -------------------------------------------------------------------------------------------


def unpack(apt: Apt, suite: str, packages: list[str], alone: list[str]) -> None:
    """Make or extend the root folder of a suite; complete or not at all."""
    root = HOME / f"debian-{suite}"
    done = root / ".complete"
    have = set(done.read_text().split()) if done.exists() else set()
    if have >= {*packages, *alone}:
        return
    apt.update(suite)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        archives = Path(folder)
        apt.closure(suite, packages, archives)
        if alone:
            apt.download(suite, alone, archives)
        done.unlink(missing_ok=True)
        prepare(root)
        for deb in sorted(archives.glob("*.deb")):
            unpacked = subprocess.run(["dpkg-deb", "-x", str(deb), str(root)], capture_output=True, text=True)
            if unpacked.returncode:
                raise FetchError(f"{deb.name}: {unpacked.stderr.strip()}")
    for part in ("usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(root / part, ignore_errors=True)
    done.write_text("\n".join(sorted(have | {*packages, *alone})) + "\n")


def prepare(root: Path) -> None:
    """What the packages themselves do not bring: links of the merged /usr, devices, folders to write in."""
    for name in MERGED:
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        if not (root / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    for name, mode in FOLDERS.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name).chmod(mode)
    for name, number in DEVICES.items():
        node = root / "dev" / name
        if not node.exists():
            with contextlib.suppress(PermissionError):  # needs root; only programs that open it notice
                os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(*number))
                node.chmod(0o666)


def fetch(version: str, apt: Apt, *, release: bool, debug: bool) -> None:
    """Unpack a version from the first suite that has it; raises FetchError with the last suite's reason."""
    reason = FetchError("no suite of Debian has it")
    python = f"python{version}"
    packages = [python]
    alone = [f"lib{python}-dev"] if release else []
    alone += [f"{python}-dbg", f"lib{python}-dbg"] if debug else []
    for suite in SUITES[version]:
        try:
            unpack(apt, suite, packages, alone)
        except FetchError as error:
            reason = FetchError(f"{suite}: {error}")
        else:
            return
    raise reason


def keep_bytecode(found: list[Interpreter]) -> None:
    """Have unpacked interpreters compile what the tests' programs import, once: the packages have no
    bytecode, and a program that compiles its library each time it starts is several times slower.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    program = f"""
import importlib
for name in {USED!r}.split():
    try:
        importlib.import_module(name)
    except Exception:
        pass
"""
    for one in found:
        if one.root is not None:
            argv = [*one.argv, "-c", program]
            subprocess.run(argv, env=environment, cwd="/", check=False, capture_output=True, timeout=120)


def build_free_threaded(version: str) -> None:
    """Build a free-threaded interpreter into .cache/interpreters/built-3.Xt; complete or not at all."""
    suite = FREE_THREADED[version]
    prefix = HOME / f"built-{version}t"
    if (prefix / f"bin/python{version}t").exists():
        return
    apt = Apt(CACHE / "apt")
    apt.update(suite)
    apt.update(suite, "deb-src")
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        apt.run("source", "--download-only", f"python{version}/{suite}", cwd=folder)
        archive = next(p for p in folder.glob("*.orig.tar.*") if p.suffix != ".asc")
        subprocess.run(["tar", "-xf", str(archive)], cwd=folder, check=True)
        tree = next(p for p in folder.iterdir() if p.is_dir())
        configure = ["./configure", "-q", f"--prefix={prefix}", "--disable-gil", "--disable-test-modules"]
        make = ["nice", "make", "-s", f"-j{os.cpu_count() or 1}"]
        for command in ([*configure, "CFLAGS=-O1"], make, [*make, "altinstall"]):
            done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
            if done.returncode:
                shutil.rmtree(prefix, ignore_errors=True)
                raise FetchError(f"{' '.join(command[:2])}: {done.stderr.strip()[-300:]}")


def fetch_headers() -> None:
    """Unpack the headers of every release that a suite has, each suite into a folder of its own."""
    apt = Apt(CACHE / "apt")
    for suite in sorted({s for suites in SUITES.values() for s in suites}):
        folder = CACHE / "headers" / suite
        try:
            apt.update(suite)
            with tempfile.TemporaryDirectory(dir=CACHE) as archives:
                for version in [v for v, suites in SUITES.items() if suite in suites]:
                    with contextlib.suppress(FetchError):  # a suite that has dropped the version
                        apt.download(suite, [f"libpython{version}-dev"], Path(archives))
                folder.mkdir(parents=True, exist_ok=True)
                for deb in Path(archives).glob("*.deb"):
                    subprocess.run(["dpkg-deb", "-x", str(deb), str(folder)], check=True)
        except (FetchError, OSError, subprocess.SubprocessError) as error:
            print(f"headers of {suite}: {error}", file=sys.stderr)


def fetch_missing(have: list[Interpreter], everything: bool) -> list[dict[str, str]]:
    """Fetch what is wanted and not there; returns what could not be had, with the reason."""
    release = {i.version for i in have if i.flavour == "release" and (i.root or not everything)}
    debug = {i.version for i in have if i.flavour == "debug"}
    wanted = {v: (v not in release, v not in debug and (everything or v in DEBUG_BUILDS)) for v in MINORS}
    missing = []
    apt = None
    for version, (want_release, want_debug) in wanted.items():
        if not (want_release or want_debug) or (everything and version not in SUITES):
            continue
        try:
            if version not in SUITES:
                raise FetchError(f"no suite of Debian has {version}")
            apt = apt or Apt(CACHE / "apt")
            print(
                f"fetching {version}{' (debug build)' if want_debug else ''} ...", file=sys.stderr, flush=True
            )
            fetch(version, apt, release=want_release, debug=want_debug)
        except (FetchError, OSError, subprocess.TimeoutExpired) as error:
            missing.append({"version": version, "why": str(error)})
    return missing


# -- the program --------------------------------------------------------------------------------------------


def write_index(found: list[Interpreter], missing: list[dict[str, str]]) -> None:
    """Write index.json when it changes."""
    HOME.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"interpreters": [asdict(i) for i in found], "missing": missing}, indent=1) + "\n"
    if not INDEX.exists() or INDEX.read_text() != text:
        INDEX.write_text(text)


def main() -> int:
    """Find, fetch, write the index; the exit status is 1 where CI lacks a version that it must have."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--list", action="store_true", help="fetch nothing, say what is there")
    parser.add_argument("--all", action="store_true", help="unpack every version and debug build of Debian's")
    parser.add_argument(
        "--free-threaded",
        nargs="*",
        metavar="3.X",
        help="build free-threaded interpreters: those named, or all",
    )
    parser.add_argument("--headers", action="store_true", help="also fetch headers for the layout generator")
    parser.add_argument("--update", action="store_true", help="forget what was unpacked and fetch it again")
    args = parser.parse_args()
    if args.update:
        for root in HOME.glob("debian-*"):
            shutil.rmtree(root)
    found = survey()
    missing: list[dict[str, str]] = []
    if not args.list:
        missing = fetch_missing(found, args.all)
        if args.headers:
            fetch_headers()
        for version in [] if args.free_threaded is None else args.free_threaded or FREE_THREADED:
            try:
                build_free_threaded(version)
            except (FetchError, OSError, KeyError, subprocess.SubprocessError) as error:
                print(f"free-threaded {version}: {error}", file=sys.stderr)
        found = survey()
        keep_bytecode(found)
    lacking = [v for v in MINORS if v not in {i.version for i in found if i.flavour == "release"}]
    reasons = {m["version"]: m["why"] for m in missing}
    missing = [{"version": v, "why": reasons.get(v, "not on this machine")} for v in lacking]
    if not args.list:
        write_index(found, missing)
    for one in found:
        print(f"{one.version:5} {one.flavour:14} {one.full:10} {' '.join(one.argv)}")
    for entry in missing:
        print(f"{entry['version']:5} missing: {entry['why']}")
    return int(os.environ.get("CI") == "true" and any(v in NEEDED_IN_CI for v in lacking))


if __name__ == "__main__":
    sys.exit(main())
