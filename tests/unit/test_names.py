"""Promise: a function's name loses its own arguments and nothing else, whatever it looks like."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagtool.snapshot.names import without_arguments


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("poll", "poll"),
        ("std::mutex::lock()", "std::mutex::lock"),
        ("operator()", "operator()"),
        ("std::function<void (int)>::operator()(int) const", "std::function<void (int)>::operator()"),
        ("(anonymous namespace)::work(int)", "(anonymous namespace)::work"),
        ("main::{lambda()#4}::operator()() const", "main::{lambda()#4}::operator()"),
        ("A::operator<(A const&) const", "A::operator<"),
        ("A::operator<<(int)", "A::operator<<"),
        ("A::operator->() const", "A::operator->"),
        ("f<std::pair<int (*)(), int> >(int)", "f<std::pair<int (*)(), int> >"),
        ("<T as core::ops::FnOnce>::call_once", "<T as core::ops::FnOnce>::call_once"),
        ("(", "("),
        ("f(", "f"),
        ("(anonymous namespace", "(anonymous namespace"),
        (")>}f(", ")>}f"),
    ],
)
def test_names_lose_their_own_arguments_only(name, bare):
    assert without_arguments(name) == bare


@given(st.text(alphabet="ab:<>(){}[]-operator ,~", max_size=60))
def test_any_name_has_a_beginning(name):
    bare = without_arguments(name)
    assert name.startswith(bare)
    assert bool(bare) == bool(name)
