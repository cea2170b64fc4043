"""Write the layout tables of Go's runtime, one JSON file a minor version, from debug information.

Usage: go.py [MINOR ...]

Builds a small program with each Go toolchain that is here (tools/fetch_go.py), for amd64 and arm64, and reads
offsets, constants and the texts of wait reasons from what the linker wrote. Runs nothing of what it builds.
Needs pyelftools, which is no dependency of the project: python -m venv, pip install pyelftools.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from elftools.dwarf.die import DIE  # type: ignore[import-not-found]
from elftools.elf.elffile import ELFFile  # type: ignore[import-not-found]

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from fetch_go import DEBIAN, WHEELS, toolchain  # noqa: E402

ROOT = HERE.parents[1]
OUT = ROOT / "src/diagtool/runtimes/golang/layouts"
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}

#: Uses all that the tables are about: the linker leaves out types that nothing needs.
PROGRAM = """
package main

import (
	"context"
	"net"
	"os"
	"runtime"
	"runtime/pprof"
	"sync"
	"time"
)

type reader interface{ Read([]byte) (int, error) }

func main() {
	var mu sync.Mutex
	var rw sync.RWMutex
	var wg sync.WaitGroup
	var once sync.Once
	var pool sync.Pool
	cond := sync.NewCond(&mu)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	inner, stop := context.WithCancel(context.WithValue(ctx, "k", 1))
	pprof.Do(inner, pprof.Labels("a", "b"), func(context.Context) {})
	ch := make(chan int, 1)
	tick := time.NewTicker(time.Second)
	m := map[string]int{"a": 1}
	wg.Add(1)
	go func() { defer wg.Done(); rw.RLock(); rw.RUnlock(); once.Do(cond.Signal) }()
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close()
	}
	r, _, _ := os.Pipe()
	var x reader = r
	x.Read(nil)
	runtime.SetFinalizer(&m, func(*map[string]int) {})
	runtime.GC()
	pool.Put(m)
	select {
	case <-ch:
	case <-tick.C:
	case <-inner.Done():
	}
	stop()
	rw.Lock()
	mu.Lock()
	cond.Wait()
	wg.Wait()
}
"""

#: What is kept. Fields of fields have names with dots.
STRUCTS = """
runtime.g runtime.m runtime.p runtime.gobuf runtime.stack runtime.schedt runtime.libcall runtime.gsignalStack
runtime.moduledata runtime.pcHeader runtime.functab runtime._func runtime.funcinl runtime.inlinedCall
runtime.findfuncbucket runtime.textsect runtime.modulehash runtime.itab runtime.iface runtime.eface
runtime._type runtime.itabTableType runtime.ptabEntry runtime.stkframe runtime._panic runtime._defer
runtime.hchan runtime.waitq runtime.sudog runtime.scase runtime.mutex runtime.rwmutex runtime.note
runtime.semaRoot runtime.semTable runtime.notifyList runtime.timer runtime.timers runtime.timerWhen
runtime.pollDesc runtime.pollCache runtime.mspan runtime.mheap runtime.heapArena runtime.mcentral
runtime.mcache runtime.spanSet runtime.mSpanList runtime.mSpanStateBox runtime.specialsIter runtime.special
runtime.specialfinalizer runtime.finalizer runtime.finblock runtime.arenaHint runtime.gcWork runtime.workType
runtime.hmap runtime.bmap runtime.bitvector runtime.stackObjectRecord runtime.ancestorInfo runtime.sysmontick
runtime.traceSchedResourceState runtime.pageAlloc runtime.addrRange runtime.addrRanges runtime.stackpoolItem
runtime.stackScanState runtime.coro runtime.synctestGroup runtime.synctestBubble runtime.cleanupBlock
runtime.mOS runtime.sigctxt runtime.gList runtime.gQueue runtime.maptype runtime.gcControllerState
runtime.mstats runtime.heapStatsDelta runtime.sigctxt runtime.cgoCallers runtime.timeTimer runtime.wbBuf
runtime.immortalWeakHandle runtime.limiterEvent runtime.gcControllerCommit runtime.persistentAlloc
internal/runtime/maps.Map internal/runtime/maps.table internal/runtime/maps.groupsReference
internal/runtime/maps.groupReference internal/runtime/maps.directory internal/runtime/gc.HeapArena
internal/abi.Type internal/abi.ITab internal/abi.ChanType internal/abi.PtrType internal/abi.SliceType
internal/abi.StructType internal/abi.StructField internal/abi.InterfaceType internal/abi.ArrayType
internal/abi.FuncType internal/abi.MapType internal/abi.SwissMapType internal/abi.OldMapType
internal/abi.UncommonType internal/abi.Name internal/abi.EmptyInterface internal/abi.NonEmptyInterface
runtime.chantype runtime.ptrtype runtime.slicetype runtime.structtype runtime.structfield
runtime.interfacetype runtime.arraytype runtime.functype runtime.uncommontype runtime.name
sync.Mutex sync.RWMutex sync.WaitGroup sync.Cond sync.Once sync.notifyList sync.Pool sync.poolLocal
internal/sync.Mutex internal/sync.HashTrieMap
internal/poll.FD internal/poll.pollDesc internal/poll.fdMutex os.file os.File
net.netFD net.conn net.TCPConn net.UDPConn net.UnixConn net.TCPListener
context.cancelCtx context.timerCtx context.valueCtx context.afterFuncCtx context.stopCtx
context.withoutCancelCtx time.Timer time.Ticker time.runtimeTimer time.Time
runtime/pprof.labelMap runtime/pprof.LabelSet runtime/pprof.label internal/runtime/pprof/label.Set
internal/runtime/pprof/label.List internal/profilelabel.Set
""".split()

CONSTANTS = re.compile(
    r"runtime\.(_G\w+|_P\w+|_SigUnblock|mSpan\w+|waitReason\w+|heapArena\w+|pageSize|_PageSize|_PageShift"
    r"|arenaL1\w+|arenaL2\w+|arenaBaseOffset|pagesPerArena|logHeapArenaBytes|numSpanClasses|_NumSizeClasses"
    r"|semTabSize|mutex\w+|funcID\w*|funcFlag\w*|_FUNCDATA\w+|_PCDATA\w+|tagBits|addrBits|taggedPointerBits"
    r"|gTrackingPeriod|pd\w+|poll\w+|timer\w+|maxProcs|heapAddrBits|arenaBits|mheapArena\w*)"
    r"|internal/abi\.(Func\w+|FUNCDATA\w+|PCDATA\w+|Kind\w*|TFlag\w+|Chan\w+|Uint|Array|Interface|Map|Pointer"
    r"|Slice|String|Struct|UnsafePointer)"
    r"|(internal/)?sync\.(mutex\w+|rwmutex\w+)|internal/poll\.mutex\w+"
    r"|internal/runtime/gc\.(\w+)"
)

_DEEPEST = 4  # dots in a name
_MOST_FIELDS = 400  # of one structure


def main() -> int:
    OUT.mkdir(parents=True, exist_ok=True)
    for minor in sys.argv[1:] or [*DEBIAN, *WHEELS]:
        root = toolchain(minor)
        if root is None:
            print(f"Go {minor} is not here", file=sys.stderr)
            continue
        tables = {machine: table(root, arch) for arch, machine in MACHINES.items()}
        version = subprocess.run(
            [root / "bin/go", "env", "GOVERSION"],
            env=_environment(root),
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        first = tables["x86_64"]
        other = {
            part: {k: v for k, v in tables["aarch64"][part].items() if first[part].get(k) != v}
            for part in ("fields", "constants")
        }
        other["absent"] = {
            part: [k for k in first[part] if k not in tables["aarch64"][part]]
            for part in ("fields", "constants")
        }
        out = {"version": version, "x86_64": first, "aarch64": other}
        path = OUT / f"go-{minor}.json"
        path.write_text(json.dumps(out, indent=0, sort_keys=True) + "\n")
        print(
            path,
            len(first["fields"]),
            "fields",
            len(first["constants"]),
            "constants",
            len(first["wait_reasons"]),
        )
    return 0


def _environment(root: Path, arch: str = "amd64") -> dict[str, str]:
    return {
        **os.environ,
        "GOROOT": str(root),
        "GOARCH": arch,
        "GOOS": "linux",
        "CGO_ENABLED": "0",
        "GO111MODULE": "off",
        "GOFLAGS": "",
        "GOTOOLCHAIN": "local",
        "GOCACHE": str(ROOT / ".cache/go-cache"),
    }


def table(root: Path, arch: str) -> dict[str, Any]:
    """Offsets, constants and wait reasons of one toolchain and machine."""
    with tempfile.TemporaryDirectory() as name:
        source, program = Path(name) / "main.go", Path(name) / "probe"
        source.write_text(PROGRAM)
        subprocess.run(
            [root / "bin/go", "build", "-ldflags=-compressdwarf=false", "-o", program, source],
            env=_environment(root, arch),
            cwd=name,
            check=True,
        )
        with program.open("rb") as file:
            return read(ELFFile(file))


def read(elf: ELFFile) -> dict[str, Any]:
    fields: dict[str, int] = {}
    constants: dict[str, int] = {}
    wanted = set(STRUCTS)
    for die in _top_level(elf):
        name = _text(die, "DW_AT_name")
        if die.tag == "DW_TAG_constant" and CONSTANTS.fullmatch(name):
            value = die.attributes.get("DW_AT_const_value")
            if value is not None and isinstance(value.value, int):
                constants[name] = value.value
        elif die.tag == "DW_TAG_structure_type" and name in wanted:
            fields[f"{name}:size"] = die.attributes["DW_AT_byte_size"].value
            for path, offset in islice(_members(die, "", 0, 0), _MOST_FIELDS):
                fields[f"{name}.{path}"] = offset
    return {
        "fields": fields,
        "constants": constants,
        "wait_reasons": _wait_reasons(elf),
    }


def _top_level(elf: ELFFile) -> Iterator[DIE]:
    for unit in elf.get_dwarf_info().iter_CUs():
        top = unit.get_top_DIE()
        for die in top.iter_children():
            if die.tag in ("DW_TAG_constant", "DW_TAG_structure_type"):
                yield die


def _text(die: DIE, attribute: str) -> str:
    value = die.attributes.get(attribute)
    return value.value.decode("utf-8", "replace") if value is not None else ""


def _members(die: DIE, prefix: str, base: int, depth: int) -> Iterator[tuple[str, int]]:
    for child in die.iter_children():
        if child.tag != "DW_TAG_member":
            continue
        name = _text(child, "DW_AT_name")
        offset = base + child.attributes["DW_AT_data_member_location"].value
        yield prefix + name, offset
        inner = child.get_DIE_from_attribute("DW_AT_type")
        while inner.tag == "DW_TAG_typedef" and "DW_AT_type" in inner.attributes:
            inner = inner.get_DIE_from_attribute("DW_AT_type")
        plain = _text(inner, "DW_AT_name")
        if (
            inner.tag == "DW_TAG_structure_type"
            and depth + 1 < _DEEPEST
            and not plain.startswith(("[]", "string"))
        ):
            yield from _members(inner, f"{prefix}{name}.", offset, depth + 1)


# An array of strings: (address, length) each. Where the program has a fixed address, they are in the file.
def _wait_reasons(elf: ELFFile) -> list[str]:
    symbol = elf.get_section_by_name(".symtab").get_symbol_by_name("runtime.waitReasonStrings")
    if not symbol:
        return []
    address, size = symbol[0]["st_value"], symbol[0]["st_size"]
    out = []
    for place, length in struct.iter_unpack("<QQ", _bytes_at(elf, address, size)):
        out.append(_bytes_at(elf, place, length).decode() if place else "")
    return out


def _bytes_at(elf: ELFFile, address: int, size: int) -> bytes:
    for segment in elf.iter_segments("PT_LOAD"):
        start = segment["p_vaddr"]
        if start <= address < start + segment["p_filesz"]:
            data: bytes = segment.data()
            return data[address - start : address - start + size]
    return b""


if __name__ == "__main__":
    raise SystemExit(main())
