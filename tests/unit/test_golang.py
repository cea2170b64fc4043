"""What all sources of goroutines have in common: own frames without the runtime's at either end."""

from __future__ import annotations

import pytest

from diagtool.golang.goroutines import go_frame, own_part
from diagtool.golang.names import function_name
from diagtool.golang.waits import wait_of


@pytest.mark.parametrize(
    ("functions", "own"),
    [
        ("runtime.gopark runtime.chanrecv1 main.work runtime.goexit", "main.work"),
        ("runtime.gopark main.work main.serve.gowrap1 runtime.goexit", "main.work"),
        (
            "internal/sync.(*Mutex).Lock sync.(*Mutex).Lock main.a main.main runtime.main runtime.goexit",
            "main.a main.main",
        ),
        ("main.work main.gowrap", "main.work main.gowrap"),
        (
            "runtime.gopark main.f.func1 panic runtime.sigpanic main.f runtime.goexit",
            "main.f.func1 panic main.f",
        ),
        (
            "runtime.gopark runtime.bgsweep runtime.gcenable.gowrap1 runtime.goexit",
            "runtime.gopark runtime.bgsweep runtime.gcenable.gowrap1 runtime.goexit",
        ),
        (
            "runtime.gopark sync.runtime_SemacquireWaitGroup sync.(*WaitGroup).Wait main.main.gowrap1",
            "sync.runtime_SemacquireWaitGroup sync.(*WaitGroup).Wait",
        ),
        ("", ""),
    ],
)
def test_the_runtimes_frames_and_wrappers_are_no_part_of_a_trace(functions: str, own: str) -> None:
    frames = [go_frame(name, "x.go", 1) for name in functions.split()]
    assert [f.function for f in own_part(frames)] == own.split()


def test_a_panic_has_the_same_name_in_memory_as_in_tracebacks() -> None:
    assert function_name("runtime.gopanic") == "panic"


@pytest.mark.parametrize(
    ("reason", "functions", "wait"),
    [
        ("semacquire", "sync.runtime_SemacquireMutex sync.(*Mutex).lockSlow main.f", "sync.Mutex.Lock"),
        ("semacquire", "sync.runtime_SemacquireMutex sync.(*RWMutex).Lock main.f", "sync.RWMutex.Lock"),
        ("semacquire", "sync.runtime_SemacquireMutex sync.(*RWMutex).RLock main.f", "sync.RWMutex.RLock"),
        ("semacquire", "sync.runtime_Semacquire sync.(*WaitGroup).Wait main.f", "sync.WaitGroup.Wait"),
        ("semacquire", "sync.(*Mutex).Lock sync.(*RWMutex).Lock main.f", "sync.Mutex.Lock"),
        ("chan receive (leaked)", "main.f", "chan receive"),
        ("sync.WaitGroup.Wait (durable)", "main.f", "sync.WaitGroup.Wait"),
    ],
)
def test_where_the_runtime_says_only_semacquire_the_frames_tell(
    reason: str, functions: str, wait: str
) -> None:
    assert wait_of(reason, functions.split()) == wait
