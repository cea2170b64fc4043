"""What is reached and what is not, who it belongs to, and the tables that come of it."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diagtool.capture.memory import AddressSpace
from diagtool.capture.model import Capture, CapturedThread, Mapping, ProcessInfo
from diagtool.capture.modules import Module
from diagtool.runtimes.native import fetching, native_heap
from diagtool.runtimes.native.allocators import foreign_allocators
from diagtool.runtimes.native.groups import class_name
from diagtool.runtimes.native.hanging import causes
from diagtool.runtimes.native.known import why_known
from diagtool.runtimes.native.memorymap import sealed, stacks_of
from diagtool.runtimes.native.reach import Edges, Targets, edges_between, mark, pointed_to
from unit import made_heaps as made
from unit.made_heaps import STACK, VERSIONS, Heap


def captured(heap: Heap, **registers: int) -> Capture:
    words = {"rsp": STACK + 0x1000, "fs_base": heap.thread, **registers}
    libc = Module("/lib/libc.so.6", made.LIBC, made.LIBC + 4 * made.PAGE, made.LIBC)
    libc.flags_at = lambda address: 6  # type: ignore[method-assign]
    return Capture(
        kind="core",
        process=ProcessInfo(1),
        threads=[CapturedThread(1, words)],
        mappings=heap.mappings(),
        modules=[libc],
        memory=heap.memory(),
    )


def kept_and_lost() -> tuple[Heap, list[int], list[int]]:
    """A heap with 40 blocks of 112 bytes that are kept in all possible ways, and 40 that are not."""
    heap = Heap(VERSIONS[3])
    arena = heap.main([(112, made.USED), (64, made.CACHED), (48, made.FAST), (112, made.USED)] * 40)
    blocks = [a for a, size, kind in arena.blocks if size == 112]
    kept, lost = blocks[0::2], blocks[1::2]
    heap.data.put(made.LIBC + 0x2000, kept[0])  # static data
    heap.stack.put(STACK + 0x1010, kept[1] + 40)  # a stack, into the middle
    heap.stack.put(STACK + 0x1000 - 128, kept[2])  # the red zone
    heap.at(kept[2]).put(kept[2] + 96, kept[3] + 103)  # the last word of a block, to the last byte of one
    for here, following in pairwise(kept[3:]):
        heap.at(here).put(here + 8, following)
    return heap, kept, lost


def test_every_kind_of_root_keeps_its_blocks() -> None:
    heap, kept, lost = kept_and_lost()
    found = native_heap(captured(heap, r15=kept[-1]))
    (group,) = found.unreachable
    assert (group.size, group.count, group.heads, group.bytes) == (112, len(lost), len(lost), 112 * len(lost))
    assert set(group.examples) <= set(lost)
    assert group.known is None and group.library is None


def test_dead_stack_free_blocks_and_bins_keep_nothing() -> None:
    heap, kept, lost = kept_and_lost()
    heap.stack.put(STACK + 0x800, lost[0])  # below the stack pointer
    free = [a for a, _, kind in heap.arenas[0].blocks if kind in (made.CACHED, made.FAST)]
    for place, target in zip(free, lost[1:], strict=False):
        heap.at(place).put(place + 16, target)  # what a freed block still says
    (group,) = native_heap(captured(heap, r15=kept[-1])).unreachable
    assert group.count == len(lost)


def test_a_free_chunk_in_a_bin_does_not_keep_the_block_before_it() -> None:
    heap = Heap(VERSIONS[3])
    arena = heap.main(
        [(112, made.USED), (256, made.FREE), (112, made.USED), (2000, made.FREE), (48, made.USED)]
    )
    found = native_heap(captured(heap, r15=arena.blocks[-1][0]))
    assert [(g.size, g.count) for g in found.unreachable] == [(112, 2)]


def test_lost_blocks_that_hang_on_others_are_no_heads() -> None:
    heap, kept, lost = kept_and_lost()
    for here, following in pairwise(lost[:10]):
        heap.at(here).put(here + 16, following)
    heap.at(lost[20]).put(lost[20] + 16, lost[20])  # to itself
    (group,) = native_heap(captured(heap, r15=kept[-1])).unreachable
    assert (group.count, group.heads) == (len(lost), len(lost) - 9)


def test_vector_registers_keep_blocks_where_a_capture_has_them() -> None:
    heap, kept, lost = kept_and_lost()
    capture = captured(heap, r15=kept[-1])
    if not hasattr(capture.threads[0], "vectors"):
        pytest.skip("captures have no vector registers")
    capture.threads[0].vectors = bytes(160) + lost[0].to_bytes(8, "little") + b"rest"
    (group,) = native_heap(capture).unreachable
    assert group.count == len(lost) - 1


def test_missing_registers_are_no_reason_to_call_something_lost() -> None:
    heap, _, _ = kept_and_lost()
    capture = captured(heap)
    capture.threads.append(CapturedThread(2))
    found = native_heap(capture)
    assert found.reachability.startswith("not judged") and found.unreachable == []


def test_what_is_in_a_broken_part_keeps_what_it_points_to() -> None:
    heap, kept, lost = kept_and_lost()
    victim = kept[20]
    heap.at(victim).put(victim - 8, 0x4141414141414141)
    heap.at(victim).put(victim + 32, lost[0])
    found = native_heap(captured(heap, r15=kept[-1]))
    (group,) = found.unreachable
    assert group.count == len(lost) - 1
    assert any("is broken at" in w for w in found.warnings)


def test_the_few_blocks_that_the_c_library_lost_are_known() -> None:
    heap, kept, lost = kept_and_lost()
    for block in lost[:3]:
        heap.at(block).put(block, made.LIBC + 0x3000)
    found = native_heap(captured(heap, r15=kept[-1]))
    assert [g.count for g in found.unreachable] == [len(lost) - 3]
    (group,) = found.known
    assert (group.count, group.library) == (3, "/lib/libc.so.6")
    assert group.known is not None and "C library" in group.known
    for block in lost:
        heap.at(block).put(block, made.LIBC + 0x3000)
    found = native_heap(captured(heap, r15=kept[-1]))
    assert [g.count for g in found.unreachable] == [len(lost)] and found.known == []


def test_a_core_without_some_of_its_memory_is_not_judged() -> None:
    heap, _, _ = kept_and_lost()
    capture = captured(heap)
    capture.mappings.append(Mapping(0x7F55_0000_0000, 0x7F55_0000_2000, "rw-p", 0, 0, ""))  # of vgetrandom
    assert native_heap(capture).reachability == "judged"
    capture.mappings.append(Mapping(0x7F56_0000_0000, 0x7F56_0001_0000, "rw-p", 0, 0, ""))
    found = native_heap(capture)
    assert "73,728 bytes" in found.reachability and found.unreachable == []


# -- marking --------------------------------------------------------------------------------------------


def edges(pairs: list[tuple[int, int, int]]) -> Edges:
    pairs = sorted(pairs)
    source, target, offset = (
        (np.array(c, dtype=np.int32) for c in zip(*pairs, strict=True))
        if pairs
        else (np.zeros(0, np.int32),) * 3
    )
    return Edges(source, target, offset)


def reached(count: int, roots: list[int], pairs: list[tuple[int, int, int]]) -> set[int]:
    following: dict[int, list[int]] = {}
    for a, b, _ in pairs:
        following.setdefault(a, []).append(b)
    seen, todo = set(roots), list(roots)
    while todo:
        for b in following.get(todo.pop(), []):
            if b not in seen:
                seen.add(b)
                todo.append(b)
    return seen


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 200), st.integers(0, 400), st.integers(0, 5), st.integers(0, 1 << 32))
def test_marking_reaches_what_a_search_reaches(count: int, arrows: int, roots: int, seed: int) -> None:
    rng = random.Random(seed)
    pairs = [(rng.randrange(count), rng.randrange(count), rng.choice([0, 8, 16])) for _ in range(arrows)]
    first = [rng.randrange(count) for _ in range(roots)]
    flags = np.zeros(count, dtype=np.bool_)
    flags[first] = True
    found = mark(flags, edges(pairs))
    assert found.complete
    assert set(np.flatnonzero(found.reached).tolist()) == reached(count, first, pairs)


@pytest.mark.parametrize("kind", ["single", "double", "backwards", "shuffled", "changing", "with leaves"])
def test_lists_of_any_length_take_few_steps(kind: str) -> None:
    count = 200_000
    order = np.arange(count)
    if kind == "backwards":
        order = order[::-1]
    if kind == "shuffled":
        order = np.random.default_rng(1).permutation(count)
    offset = np.where(order % 3 == 0, 8, 16) if kind == "changing" else np.full(count, 8)
    source, target, offsets = order[:-1], order[1:], offset[:-1]
    if kind == "double":
        source, target = np.concatenate([source, order[1:]]), np.concatenate([target, order[:-1]])
        offsets = np.concatenate([offsets, np.zeros(count - 1, np.int64)])
    if kind == "with leaves":
        source, target = np.concatenate([source, order]), np.concatenate([target, order + count])
        offsets = np.concatenate([offsets, np.zeros(count, np.int64)])
    total = count * (2 if kind == "with leaves" else 1)
    by = np.lexsort((offsets, source))
    found = Edges(*(c[by].astype(np.int32) for c in (source, target, offsets)))
    roots = np.zeros(total, dtype=np.bool_)
    roots[order[0]] = True
    marked = mark(roots, found)
    assert marked.reached.all()
    assert marked.steps < 1000


def test_pointers_are_found_from_their_first_to_their_last_byte() -> None:
    targets = Targets(np.array([0x1010, 0x1040], np.uint64), np.array([0x18, 0x28], np.uint64))
    words = np.array([0x100F, 0x1010, 0x1027, 0x1028, 0x1040, 0x1067, 0x1068, 0, (1 << 64) - 1], np.uint64)
    at, inside = targets.find(words)
    assert inside.tolist() == [False, True, True, False, True, True, False, False, False]
    assert at[inside].tolist() == [0, 0, 1, 1]
    assert set(np.flatnonzero(inside)) <= set(targets.likely(words)[0].tolist())


def test_no_blocks_at_all() -> None:
    targets = Targets(np.zeros(0, np.uint64), np.zeros(0, np.uint64))
    memory = AddressSpace()
    assert not len(pointed_to(memory, targets, [(0, 1 << 40)], [1], []))
    assert not len(edges_between(memory, targets, []))
    assert mark(np.zeros(0, np.bool_), edges([])).complete


# -- names, ranges, tables ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mangled", "name"),
    [
        ("3Foo", "Foo"),
        ("N3app4NodeE", "app::Node"),
        ("*N12_GLOBAL__N_13FooE", "_GLOBAL__N_1::Foo"),
        ("St9exception", "St9exception"),
        ("N3app3BoxIiEE", "N3app3BoxIiEE"),
        ("4Foo", "4Foo"),
        ("not a name", None),
        ("", None),
    ],
)
def test_classes_are_named(mangled: str, name: str | None) -> None:
    assert class_name(mangled) == name


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=6),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=6),
)
def test_ranges_less_others(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    from diagtool.capture.segments import merged, without

    a, b = merged((s, s + n) for s, n in first), merged((s, s + n) for s, n in second)
    left = [x for s, e in without(a, b) for x in range(s, e)]
    assert left == sorted({x for s, e in a for x in range(s, e)} - {x for s, e in b for x in range(s, e)})


def test_a_stack_is_known_by_the_thread_that_describes_it() -> None:
    heap = Heap()
    heap.main([(64, made.USED)])
    low = STACK
    heap.stack.put(heap.thread + 0x690, low, 2 * made.PAGE)
    capture = captured(heap)
    capture.mappings = [
        m if m.path != "[stack]" else Mapping(m.start, m.end, "rw-p", 0, 0, "") for m in capture.mappings
    ]
    stacks, dead = stacks_of(capture)
    assert stacks == [(low, low + 2 * made.PAGE)]
    assert dead == [(low, low + 0x1000 - 128)]


def test_memory_that_was_sealed_is_a_root() -> None:
    heap, kept, lost = kept_and_lost()
    area = made.Bytes(0x7F33_0000_0000, made.PAGE)
    area.put(area.start + 16, lost[5])
    heap.ranges.append(area)
    capture = captured(heap, r15=kept[-1])
    capture.mappings = [
        Mapping(m.start, m.end, "r--p", 0, 0, "") if m.start == area.start else m for m in capture.mappings
    ]
    assert sealed(capture) == [(area.start, area.end)]
    (group,) = native_heap(capture).unreachable
    assert group.count == len(lost) - 1


def area_with(heap: Heap, word: int, permissions: str, path: str = "", at: int = 16) -> Capture:
    """The capture of a heap beside which there is a page of memory with one word in it."""
    area = made.Bytes(0x7F33_0000_0000, made.PAGE)
    area.data[at : at + 8] = word.to_bytes(8, "little")
    heap.ranges.append(area)
    capture = captured(heap, r15=0)
    capture.mappings = [
        Mapping(m.start, m.end, permissions, 0, 0, path) if m.start == area.start else m
        for m in capture.mappings
    ]
    return capture


@pytest.mark.parametrize(
    ("permissions", "path", "at", "root"),
    [
        ("rw-p", "", 16, True),
        ("rw-s", "/dev/zero (deleted)", 16, True),
        ("rw-s", "/memfd:scoreboard (deleted)", 16, True),
        ("rw-s", "/srv/data.db", 16, False),
        ("rw-s", "/dev/nvidia0", 16, False),
        ("r-xp", "", 19, True),
        ("rwxp", "", 21, True),
        ("r-xp", "/usr/lib/libx.so", 16, False),
        ("rw-p", "", 19, False),
    ],
)
def test_where_a_pointer_keeps_a_block(permissions: str, path: str, at: int, root: bool) -> None:
    heap, kept, lost = kept_and_lost()
    (group,) = native_heap(area_with(heap, lost[5], permissions, path, at)).unreachable
    others = sum(a not in (lost[5], kept[-1]) for a in lost)
    assert group.count == others + (not root)


def test_upper_bits_of_a_pointer_may_hold_something_else() -> None:
    heap, _, lost = kept_and_lost()
    (group,) = native_heap(area_with(heap, lost[5] | 0xBEEF << 48, "rw-p")).unreachable
    assert group.count == len(lost) - 1


def test_what_was_not_copied_in_the_stop_is_no_ground_to_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    heap, _, _ = kept_and_lost()
    capture = captured(heap)
    capture.kind = "live"
    monkeypatch.setattr(fetching, "own_pages", lambda pid, spans: (list(spans), []))
    for name in ("left_out", "skipped"):
        area = made.Bytes(0x7F33_0000_0000, made.PAGE)
        heap.ranges.append(area)
        capture.mappings = heap.mappings()
        setattr(capture, name, [(area.start, area.end)])
        assert native_heap(capture).reachability.startswith("not judged: 4,096 bytes")
        assert native_heap(capture).unreachable == []
        setattr(capture, name, [])
    assert native_heap(capture).reachability == "judged"


def test_a_core_without_the_stack_of_a_thread_is_no_ground_to_judge() -> None:
    heap, _, _ = kept_and_lost()
    capture = captured(heap)
    assert native_heap(capture).reachability == "judged"
    stack = made.Bytes(0x7F44_0000_0000, 4 * made.PAGE)  # as gcore leaves it
    heap.ranges.append(stack)
    capture.mappings, capture.memory = heap.mappings(), heap.memory()
    words = {"rsp": stack.start + 0x1000, "fs_base": stack.end - 0x700}
    capture.threads.append(CapturedThread(2, words))
    assert native_heap(capture).reachability.startswith("not judged: 1 stacks of threads")
    stack.put(stack.start + 0x1010, 1)
    capture.memory = heap.memory()
    assert native_heap(capture).reachability == "judged"


def test_what_hangs_on_a_lost_block_is_told_with_it() -> None:
    heap = Heap(VERSIONS[3])
    arena = heap.main([(112, made.USED), (48, made.USED), (64, made.USED)] * 30)
    by_size = {size: [a for a, s, _ in arena.blocks if s == size] for size in (48, 64, 112)}
    for parent, child, grandchild in zip(by_size[112], by_size[48], by_size[64], strict=True):
        heap.at(parent).put(parent + 8, child)
        heap.at(child).put(child + 8, grandchild, parent)  # and back
    heap.at(by_size[64][7]).put(by_size[64][7] + 8, 0)
    found = native_heap(captured(heap))
    groups = {g.size: g for g in found.unreachable}
    assert {size: (g.count, g.heads) for size, g in groups.items()} == dict.fromkeys((48, 64, 112), (30, 0))
    (lost,) = found.to_rows()["native_lost"]
    assert (lost["count"], lost["hanging"], lost["bytes"]) == (30, 60, 30 * (112 + 48 + 64))


def test_tables_of_objects_go_by_the_library_of_these() -> None:
    heap = Heap(VERSIONS[3])
    arena = heap.main([(112, made.USED), (48, made.USED), (64, made.USED)] * 30)
    by_size = {size: [a for a, s, _ in arena.blocks if s == size] for size in (48, 64, 112)}
    for table, node, item in zip(by_size[112], by_size[48], by_size[64], strict=True):
        heap.at(table).put(table, node)
        heap.at(node).put(node, 0, item)
        heap.at(item).put(item, made.LIBC + 0x3000)
    capture = captured(heap)
    assert {g.size: (g.library, g.holds) for g in native_heap(capture).unreachable} == {
        112: (None, "/lib/libc.so.6"),
        48: (None, "/lib/libc.so.6"),
        64: ("/lib/libc.so.6", None),
    }
    (lost,) = native_heap(capture).to_rows()["native_lost"]
    assert lost["kind"] == "blocks of 112 bytes (with data of libc.so.6)"


def test_what_libraries_are_known_to_lose_is_no_leak_however_much_it_is() -> None:
    assert why_known("/x/libllvmlite.so", None, True, 5000) == why_known(None, "/x/libllvmlite.so", False, 9)
    assert why_known("/x/libworker.so", "/x/libllvmlite.so", True, 5000) is None


def test_a_ring_of_lost_blocks_is_all_lost() -> None:
    heap = Heap(VERSIONS[3])
    blocks = [a for a, size, _ in heap.main([(112, made.USED)] * 300).blocks if size == 112]
    for here, following in zip(blocks, [*blocks[1:], blocks[0]], strict=True):
        heap.at(here).put(here + 8, following)
    (lost,) = native_heap(captured(heap)).to_rows()["native_lost"]
    assert (lost["count"], lost["hanging"]) == (300, 0)


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39))), st.integers(1, 4))
def test_everything_that_is_lost_has_one_cause(count: int, pairs: list[tuple[int, int]], kinds: int) -> None:
    pairs = [(a, b) for a, b in pairs if a < count and b < count and a != b]
    source, target = (np.array([p[i] for p in pairs], np.int64) for i in range(2))
    heads = np.ones(count, np.bool_)
    heads[target] = False
    kind = np.arange(count, dtype=np.int64) % kinds
    cause = causes(kind, heads, source, target)
    assert set(cause.tolist()) <= set(kind.tolist())
    assert (cause[heads] == kind[heads]).all()


def test_rows_are_plain_and_add_up() -> None:
    heap, _, _ = kept_and_lost()
    heap.mmapped(200_000)
    found = native_heap(captured(heap))
    rows = found.to_rows()
    assert set(rows) == {
        "native_heap",
        "native_arenas",
        "native_sizes",
        "native_unreachable",
        "native_foreign",
        "native_lost",
        "native_warnings",
    }
    plain = (int, float, str, bool, type(None))
    assert all(isinstance(v, plain) for table in rows.values() for row in table for v in row.values())
    (total,) = rows["native_heap"]
    sizes = rows["native_sizes"]
    assert sum(row["used_bytes"] for row in sizes) == total["used"]  # type: ignore[misc]
    free = sum(row["free_bytes"] for row in sizes)  # type: ignore[misc]
    assert free + sum(a.top for a in found.arenas) == total["free"]
    assert all(row["low"] <= row["high"] for row in sizes)  # type: ignore[operator]
    assert total["mmapped_blocks"] == 1


def _module(path: str, *symbols: str) -> Module:
    module = Module(path, 0x1000, 0x2000, 0x1000)
    module.symbol = lambda name: 0x1000 if name in symbols else None  # type: ignore[method-assign]
    return module


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (_module("/usr/lib/libjemalloc.so.2"), "jemalloc"),
        (_module("/app/server", "_rjem_mallctl"), "jemalloc"),
        (_module("/usr/lib/libtcmalloc_minimal.so.4"), "tcmalloc"),
        (_module("/usr/lib/libmimalloc.so.2.1"), "mimalloc"),
        (_module("/usr/bin/python3.13t", "mi_version", "_PyRuntime", "_Py_brc_queue_object"), "mimalloc"),
        (_module("/usr/bin/python3.13", "mi_version", "_PyRuntime"), None),
        (_module("/lib/ld-musl-x86_64.so.1"), "musl"),
        (_module("/lib/libc.so.6"), None),
    ],
)
def test_other_allocators_are_recognised_and_sized(module: Module, name: str | None) -> None:
    mappings = [
        Mapping(0x10000, 0x20000, "rw-p", 0, 0, ""),
        Mapping(0x30000, 0x40000, "rw-p", 0, 0, "/a/file"),
        Mapping(0x50000, 0x60000, "rw-s", 0, 0, ""),
        Mapping(0x70000, 0x80000, "rw-p", 0, 0, "[stack]"),
    ]
    capture = Capture("core", ProcessInfo(1), [], mappings, [module], AddressSpace())
    found = native_heap(capture)
    assert found.allocator is None
    assert [f.name for f in found.foreign] == ([name] if name else [])
    assert [f.mapped for f in foreign_allocators(capture, [(0x10000, 0x14000)])] == ([0xC000] if name else [])
    assert all("not read" in f.note for f in found.foreign)
    assert bool(found.warnings) == (name is None)
