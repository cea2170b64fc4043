"""Names of functions as their programmers wrote them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagtool.capture.demangle import demangle, language_of


@pytest.mark.parametrize(
    ("symbol", "name", "language"),
    [
        ("_ZN3app4PoolIiE8wait_forEi", "app::Pool<int>::wait_for(int)", "c++"),
        ("_RNvCskwGfYPst2Cb_3foo16example_function", "foo::example_function", "rust"),
        ("_ZN4core3fmt9Formatter3pad17h0123456789abcdefE", "core::fmt::Formatter::pad", "rust"),
        (
            "_ZN4test19_$LT$Foo$u20$as$GT$4call17h0123456789abcdefE",
            "test::<Foo as>::call",
            "rust",
        ),
        (
            "_ZN3std2rt10lang_start28_$u7b$$u7b$closure$u7d$$u7d$17hb6e30565f2a810ddE.llvm.1764614",
            "std::rt::lang_start::{{closure}}",
            "rust",
        ),
        ("_RNvCskwGfYPst2Cb_3foo3bar.llvm.17646", "foo::bar", "rust"),
        ("pthread_mutex_lock@GLIBC_2.2.5", "pthread_mutex_lock", "c"),
        ("__GI___nanosleep", "__nanosleep", "c"),
        ("_Znonsense", "_Znonsense", "c++"),
        ("", "", "c"),
    ],
)
def test_names_are_those_of_the_source(symbol: str, name: str, language: str) -> None:
    assert demangle(symbol) == name
    assert language_of(symbol) == language


def test_long_names_are_cut() -> None:
    assert len(demangle("_Z1fI" + "i" * 3000 + "Evv")) <= 300
    assert len(demangle("x" * 10_000)) <= 300


@given(st.sampled_from(["_Z", "_ZN", "_R", "_RNv", ""]), st.text(max_size=60))
def test_garbage_stays_a_name(prefix: str, rest: str) -> None:
    assert len(demangle(prefix + rest)) <= 300
