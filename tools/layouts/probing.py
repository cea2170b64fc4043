"""Ask the C compiler where fields lie: probes.txt -> C program -> {"Struct.field": offset, ...}.

Each probe becomes a function of its own on a line of its own. What the headers of a version do not know fails
to compile; the compiler's messages name the lines, those probes are dropped, and the rest is compiled again.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent

#: flavour -> (macros defined, macros undefined) after pyconfig.h and before Python.h
FLAVOURS = {
    "release": (["NDEBUG"], ["Py_DEBUG", "Py_GIL_DISABLED"]),
    "debug": (["Py_DEBUG"], ["Py_GIL_DISABLED", "NDEBUG"]),
    "free-threaded": (["NDEBUG", "Py_GIL_DISABLED"], ["Py_DEBUG"]),
    "free-threaded-debug": (["Py_DEBUG", "Py_GIL_DISABLED"], ["NDEBUG"]),
}

#: Included where the version has them; the rest comes with these.
_HEADERS = """
frameobject.h structmember.h internal/pycore_runtime.h internal/pycore_interp.h internal/pycore_pystate.h
internal/pycore_gc.h internal/pycore_context.h internal/pycore_hamt.h internal/pycore_object.h
internal/pycore_code.h internal/pycore_frame.h internal/pycore_interpframe.h
internal/pycore_interpframe_structs.h internal/pycore_dict.h internal/pycore_genobject.h
internal/pycore_moduleobject.h internal/pycore_obmalloc.h
internal/pycore_tstate.h internal/pycore_lock.h internal/pycore_llist.h internal/pycore_stackref.h
internal/pycore_debug_offsets.h internal/pycore_long.h internal/pycore_unicodeobject.h
internal/pycore_hashtable.h internal/pycore_pymem.h internal/pycore_tracemalloc.h
internal/pycore_weakref.h internal/pycore_gil.h internal/pycore_typeobject.h internal/pycore_function.h
internal/pycore_faulthandler.h
""".split()

_PRELUDE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <stddef.h>
#include <string.h>
#define KEY(k, v) printf("%s %lld\n", k, (long long)(v))
/* Where a field's bits lie: set it to all ones in an object of zeros, and look which bytes changed. */
static void show_bits(const char *name, const unsigned char *bytes, size_t size) {
    size_t first = 0, count = 0;
    for (size_t i = 0; i < size * 8; i++)
        if (bytes[i / 8] >> (i % 8) & 1) {
            if (!count) first = i;
            count++;
        }
    size_t base = first / 32 * 4; /* bit-fields of CPython sit in 32-bit units */
    printf("%s %zu\nshift.%s %zu\nwidth.%s %zu\n", name, base, name, first - base * 8, name, count);
}
"""

_ERROR = re.compile(r"^[^\n:]*probe\.c:(\d+):(?:\d+:)? error: (.*)$", re.MULTILINE)


class CompileError(Exception):
    """Raised when what fails to compile is not a probe: headers missing or broken."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One question: the key it answers and the C statement that prints the answer."""

    key: str
    statement: str


def parse(text: str) -> list[Probe]:
    """The probes of a probes.txt (its header says the syntax)."""
    probes: list[Probe] = []
    c_type = name = ""
    for raw in text.splitlines():
        line = raw.split("#", 1)[0].strip()
        if not line:
            continue
        if line.startswith("["):
            c_type, _, name = line.strip("[]").partition(" as ")
            name = name or c_type
            if c_type != "const":
                probes.append(Probe(f"sizeof.{name}", f'KEY("sizeof.{name}", sizeof({c_type}));'))
        elif c_type == "const":
            probes += _constants(line)
        else:
            for word in line.split():
                probes += _field(c_type, name, *word.split(":"))
    unique: dict[str, Probe] = {}
    for probe in probes:
        unique.setdefault(f"{probe.key} {probe.statement}", probe)
    return list(unique.values())


def _constants(line: str) -> Iterable[Probe]:
    pairs = [line.split("=", 1)] if "=" in line else [[w, w] for w in line.split()]
    for pair in pairs:
        *names, last = pair[0].split()
        for plain in names:  # names before "NAME = EXPRESSION" on one line stand for themselves
            yield Probe(f"const.{plain}", f'KEY("const.{plain}", {plain});')
        yield Probe(f"const.{last}", f'KEY("const.{last}", {pair[1].strip()});')


def _field(c_type: str, name: str, field: str, bits: str = "") -> Iterable[Probe]:
    key = f"{name}.{field}"
    if bits:
        yield Probe(
            key,
            f"{c_type} *x = calloc(1, sizeof *x); x->{field} -= 1; "
            f'show_bits("{key}", (unsigned char *)x, sizeof *x);',
        )
        return
    yield Probe(key, f'KEY("{key}", offsetof({c_type}, {field}));')
    size = f"sizeof((({c_type} *)0)->{field})"
    yield Probe(f"sizeof.{key}", f'if ({size} != 8) KEY("sizeof.{key}", {size});')


def ask(
    include: list[Path],
    probes: list[Probe],
    flavour: str,
    *,
    hex_version: int | None = None,
    compiler: str = "gcc",
) -> dict[str, int]:
    """Offsets, sizes and constants as the headers under ``include`` have them, for one flavour.

    ``include`` lists the -I folders, the one of ``Python.h`` first. ``hex_version`` makes transcribed.h
    answer for another patch release than the headers'. Raises CompileError when the headers do not compile.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "probe.c"), Path(folder, "probe")
        head = _head(include, flavour, hex_version)
        first = head.count("\n") + 1
        left = dict(enumerate(probes))
        while True:
            body = "".join(_line(i, left.get(i)) for i in range(len(probes)))
            calls = "".join(f"p{i}();" for i in left)
            source.write_text(f"{head}{body}int main(void) {{ {calls} return 0; }}\n")
            command = [compiler, "-w", "-O0", "-fmax-errors=0", "-o", str(binary), str(source)]
            command += [f"-I{p}" for p in [*include, *(i / "internal" for i in include), HERE]]
            done = subprocess.run(command, capture_output=True, text=True)
            if not done.returncode:
                break
            failed = {int(n) - first for n, _ in _ERROR.findall(done.stderr)} & left.keys()
            if not failed:
                raise CompileError(done.stderr[:2000])
            for i in failed:
                del left[i]
        out = subprocess.run([str(binary)], capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in (line.split() for line in out.splitlines())}


def _line(i: int, probe: Probe | None) -> str:
    return f"static void p{i}(void) {{ {probe.statement} }}\n" if probe else "\n"


def _head(include: list[Path], flavour: str, hex_version: int | None) -> str:
    define, undefine = FLAVOURS[flavour]
    lines = ["#define Py_BUILD_CORE 1", "#include <pyconfig.h>"]
    lines += [f"#undef {m}" for m in [*undefine, *define]]
    lines += [f"#define {m} 1" for m in define]
    if any("_PyObject_ALIGNMENT_SHIFT" in (i / "object.h").read_text() for i in include[:1]):
        # Debian's 3.13 aligns objects and PyGC_Head to four bytes (for m68k), which moves gc.generations. The
        # tables are CPython's own: pyport.h comes first, and its Py_ALIGNED, of no other use there, goes.
        lines += ["#include <patchlevel.h>", "#include <assert.h>", "#include <sys/types.h>"]
        lines += [
            "#include <inttypes.h>",
            "#include <limits.h>",
            "#include <stdint.h>",
            "#include <pyport.h>",
        ]
        lines += ["#undef Py_ALIGNED", "#define Py_ALIGNED(x)"]
    lines.append("#include <Python.h>")
    lines += [f'#include "{h}"' for h in _HEADERS if any((i / h).exists() for i in include)]
    if hex_version is not None:
        lines.append(f"#define HEX {hex_version:#x}")
    lines += [_PRELUDE, '#include "transcribed.h"']
    return "\n".join(lines) + "\n"
