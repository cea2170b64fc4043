"""Mapped ELF files: where they are, which they are, what their symbols are."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diagtool.capture.memory import AddressSpace, Segment
from diagtool.capture.model import Mapping
from diagtool.capture.modules import Module, modules_from_mappings
from elfwriter import PAGE, STB_GLOBAL, STB_LOCAL, STT_FUNC, STT_OBJECT, STT_TLS, Library

AT = 0x7F00_0000_0000
PATH = "/opt/app/libthing.so.1"


def library(**changes: object) -> Library:
    return Library(
        dynamic=[
            ("imported", STT_FUNC, STB_GLOBAL, 0, 0),
            ("my_PyRuntime", STT_OBJECT, STB_GLOBAL, 3 * PAGE + 64, 8),
            ("_PyRuntime", STT_OBJECT, STB_GLOBAL, 3 * PAGE, 64),
            ("run", STT_FUNC, STB_GLOBAL, PAGE + 0x100, 0x80),
            ("a_tls_variable", STT_TLS, STB_GLOBAL, 0x10, 8),
        ],
        static=[
            ("hidden", STT_FUNC, STB_LOCAL, PAGE + 0x200, 0x40),
            ("both", STT_FUNC, STB_LOCAL, PAGE + 0x300, 0x40),
            ("both", STT_FUNC, STB_GLOBAL, PAGE + 0x340, 0x40),
            ("run", STT_FUNC, STB_GLOBAL, PAGE + 0x100, 0x80),
        ],
        soname="libthing.so.1",
        **changes,  # type: ignore[arg-type]
    )


def mappings(at: int = AT, path: str = PATH) -> list[Mapping]:
    parts = ((0, "r--p"), (PAGE, "r-xp"), (2 * PAGE, "r--p"), (3 * PAGE, "rw-p"))
    return [Mapping(at + o, at + o + PAGE, p, o, 1, path) for o, p in parts]


def memory_of(*contents: tuple[int, bytes]) -> AddressSpace:
    space = AddressSpace()
    for at, data in contents:
        number = space.add_buffer(np.frombuffer(data, dtype=np.uint8))
        space.add_segments([Segment(at, at + len(data), number, 0)])
    return space


def opener_of(path: Path) -> Callable[[Mapping], int | None]:
    return lambda mapping: os.open(path, os.O_RDONLY) if mapping.path == PATH else None


def no_file(mapping: Mapping) -> None:
    return None


def only(modules: list[Module]) -> Module:
    assert len(modules) == 1, modules
    return modules[0]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "libthing.so.1"
    path.write_bytes(library().build())
    return path


def check_dynamic(module: Module) -> None:
    assert module.symbol("_PyRuntime") == AT + 3 * PAGE
    assert module.symbol("my_PyRuntime") == AT + 3 * PAGE + 64
    assert module.symbol("run") == AT + PAGE + 0x100
    assert module.symbol("imported") is None, "what is imported is defined elsewhere"
    assert module.symbol("a_tls_variable") is None, "an offset into thread-local storage is no address"
    assert module.symbol("absent") is None
    assert module.symbol("") is None
    assert module.soname == "libthing.so.1"
    assert module.symbol_at(AT + PAGE + 0x100) == ("run", 0)
    assert module.symbol_at(AT + PAGE + 0x17F) == ("run", 0x7F)
    assert module.symbol_at(AT + PAGE + 0x180) is None
    assert module.symbol_at(AT + 8) is None
    assert module.symbol_at(0) is None


def test_symbols_and_sections_come_from_the_file(file: Path) -> None:
    module = only(modules_from_mappings(mappings(), memory_of(), opener_of(file)))
    assert (module.path, module.start, module.bias) == (PATH, AT, AT)
    assert module.end == AT + 5 * PAGE, "the .bss is part of the module"
    assert module.contains(AT) and not module.contains(AT + 5 * PAGE)
    assert module.build_id == "11" * 20
    check_dynamic(module)
    assert module.symbol("hidden") == AT + PAGE + 0x200
    assert module.symbol("both") == AT + PAGE + 0x340, "global before local"
    assert module.symbol_at(AT + PAGE + 0x201) == ("hidden", 1)
    assert module.section(".rodata") == (AT + 2 * PAGE, PAGE)
    assert module.section(".symtab") is None, "not loaded"
    assert module.section(".absent") is None


@pytest.mark.parametrize("hashes", ["gnu", "sysv", None])
@pytest.mark.parametrize("relocated", [0, AT])
def test_dynamic_symbols_come_from_memory_where_there_is_no_file(hashes: str | None, relocated: int) -> None:
    image = library(hash=hashes, relocated_by=relocated, sections=False).build()
    module = only(modules_from_mappings(mappings(), memory_of((AT, image)), no_file))
    check_dynamic(module)
    assert module.build_id == "11" * 20
    assert module.symbol("hidden") is None
    assert module.section(".rodata") is None


def test_a_position_dependent_executable_has_no_bias(tmp_path: Path) -> None:
    base = 0x400000
    image = Library(base=base, dynamic=[("main", STT_FUNC, STB_GLOBAL, base + PAGE, 16)]).build()
    (tmp_path / "app").write_bytes(image)
    module = only(modules_from_mappings(mappings(base), memory_of(), opener_of(tmp_path / "app")))
    assert module.bias == 0
    assert module.symbol("main") == base + PAGE
    assert module.symbol_at(base + PAGE + 15) == ("main", 15)


def test_a_prelinked_library_that_was_moved_has_the_difference_as_bias(tmp_path: Path) -> None:
    base = 0x3000_0000
    image = Library(base=base, dynamic=[("f", STT_FUNC, STB_GLOBAL, base + PAGE, 16)]).build()
    (tmp_path / "lib").write_bytes(image)
    module = only(modules_from_mappings(mappings(), memory_of(), opener_of(tmp_path / "lib")))
    assert module.bias == AT - base
    assert module.symbol("f") == AT + PAGE


def test_a_library_that_is_loaded_twice_is_two_modules(file: Path) -> None:
    second = AT + (1 << 30)
    both = modules_from_mappings(mappings() + mappings(second), memory_of(), opener_of(file))
    assert [m.symbol("run") for m in both] == [AT + PAGE + 0x100, second + PAGE + 0x100]


def test_a_library_that_the_program_reads_as_data_is_no_module(file: Path) -> None:
    """An executable mapping makes a module; the whole file mapped read-only does not, before or behind it."""
    size = file.stat().st_size + PAGE - 1 & -PAGE
    for at in (AT - (1 << 30), AT + (1 << 30)):
        data = Mapping(at, at + size, "r--p", 0, 1, PATH)
        module = only(modules_from_mappings([data, *mappings()], memory_of(), opener_of(file)))
        assert module.start == AT
    assert modules_from_mappings([data], memory_of((at, file.read_bytes())), opener_of(file)) == []


def test_data_files_and_anonymous_memory_are_no_modules(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"no elf" * 1000)
    maps = [
        Mapping(AT, AT + PAGE, "r-xp", 0, 1, PATH),
        Mapping(AT + PAGE, AT + 2 * PAGE, "rwxp", 0, 0, ""),
        Mapping(AT + 2 * PAGE, AT + 3 * PAGE, "rw-p", 0, 0, "[heap]"),
    ]
    assert modules_from_mappings(maps, memory_of(), opener_of(tmp_path / "data")) == []


def test_the_vdso_is_read_from_memory_with_its_sections() -> None:
    image = library(sections=True).build()
    whole = image + bytes(-len(image) % PAGE)
    maps = [Mapping(AT, AT + len(whole), "r-xp", 0, 0, "[vdso]")]
    module = only(modules_from_mappings(maps, memory_of((AT, whole)), no_file))
    check_dynamic(module)
    assert module.path == "[vdso]"
    assert module.section(".rodata") == (AT + 2 * PAGE, PAGE)


def test_a_file_with_another_build_id_is_not_used_and_a_warning_has_both(tmp_path: Path) -> None:
    (tmp_path / "lib").write_bytes(library(build_id=b"\x22" * 20).build())
    there = library(sections=False).build()
    warnings: list[str] = []
    module = only(
        modules_from_mappings(mappings(), memory_of((AT, there)), opener_of(tmp_path / "lib"), warnings)
    )
    assert module.file is None
    assert module.build_id == "11" * 20
    assert module.symbol("hidden") is None
    assert module.symbol("run") == AT + PAGE + 0x100, "what is in memory still serves"
    assert (
        len(warnings) == 1 and "11" * 20 in warnings[0] and "22" * 20 in warnings[0] and PATH in warnings[0]
    )


def test_without_build_ids_the_first_page_decides(tmp_path: Path) -> None:
    same = library(build_id=None)
    other = library(build_id=None, entry=0x1234)
    for image, used in ((same, True), (other, False)):
        (tmp_path / "lib").write_bytes(image.build())
        warnings: list[str] = []
        modules = modules_from_mappings(
            mappings(), memory_of((AT, same.build()[:PAGE])), opener_of(tmp_path / "lib"), warnings
        )
        assert (only(modules).file is not None) == used
        assert bool(warnings) != used


def test_a_stripped_file_without_section_headers_has_its_dynamic_symbols(tmp_path: Path) -> None:
    (tmp_path / "lib").write_bytes(library(sections=False).build())
    module = only(modules_from_mappings(mappings(), memory_of(), opener_of(tmp_path / "lib")))
    check_dynamic(module)
    assert module.section(".rodata") is None


def test_thousands_of_mappings_of_one_path_are_no_quadratic_search(file: Path) -> None:
    maps = [Mapping(AT + 2 * i * PAGE, AT + (2 * i + 1) * PAGE, "", 0, 0, PATH) for i in range(20_000)]
    assert modules_from_mappings(maps, memory_of(), opener_of(file)) == []


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damaged_files_and_memory_never_raise(data: st.DataObject) -> None:
    """Any bytes of an ELF file replaced: modules, symbols, sections and build-ids are wrong, or none."""
    image = bytearray(library().build())
    places = st.integers(0, 700) | st.integers(0, len(image) - 1)
    for at in data.draw(st.lists(places, min_size=1, max_size=8)):
        value = data.draw(
            st.sampled_from([b"\xff", b"\x00", b"\xff" * 8, b"\x01", struct.pack("<Q", 1 << 63)])
        )
        image[at : at + len(value)] = value
    image = image[: data.draw(st.integers(0, len(image)) | st.just(len(image)))]
    whole = bytes(image) + bytes(-len(image) % PAGE)
    maps = data.draw(st.sampled_from([mappings(), [Mapping(AT, AT + len(whole), "r-xp", 0, 0, "[vdso]")]]))
    for module in modules_from_mappings(maps, memory_of((AT, whole)) if whole else memory_of(), no_file):
        assert module.build_id is None or len(module.build_id) <= 128
        for name in ("run", "_PyRuntime", "hidden", "absent"):
            module.symbol(name)
        for offset in (0, PAGE + 0x110, 1 << 40):
            module.symbol_at(module.start + offset)
        module.section(".rodata")
        assert isinstance(module.soname, str)
