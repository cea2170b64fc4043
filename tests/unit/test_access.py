"""Why a process may not be read: the first thing in the way is named, with what to do about it."""

from __future__ import annotations

import errno
import subprocess
import sys
from typing import Any

import pytest

from diagtool.capture import doctor, procfs, ptrace
from diagtool.capture.access import Access, refused


def access(**changes: Any) -> Access:
    usual: dict[str, Any] = {
        "our_uid": 1000,
        "their_uids": (1000, 1000, 1000),
        "capable": False,
        "same_user_namespace": True,
        "yama": None,
        "descendant": False,
        "seccomp": 0,
        "dumpable": True,
    }
    return Access(**{**usual, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"yama": 0},
        {"yama": 1, "descendant": True},
        {"capable": True, "their_uids": (0, 0, 0)},
        {"capable": True, "yama": 2},
        {"capable": True, "dumpable": False},
        {"dumpable": None},
    ],
)
def test_nothing_is_in_the_way(changes: dict[str, Any]) -> None:
    assert access(**changes).obstacle() is None


@pytest.mark.parametrize(
    ("changes", "what", "help"),
    [
        ({"their_uids": (0, 0, 0)}, "belongs to uid 0, we are uid 1000", "sudo"),
        ({"their_uids": (1000, 0, 0)}, "belongs to uid 1000", "root"),
        ({"their_uids": ()}, "uid unknown", "root"),
        ({"yama": 1}, "ptrace_scope 1", "kernel.yama.ptrace_scope=0"),
        ({"yama": 2, "descendant": True}, "ptrace_scope 2", "root"),
        ({"yama": 2, "descendant": True}, "to root only", "root"),
        ({"yama": 3, "capable": True}, "ptrace_scope 3", "core"),
        ({"yama": 3}, "ptrace_scope 3", "core"),
        ({"yama": 3, "their_uids": (0, 0, 0)}, "ptrace_scope 3", "core"),
        ({"dumpable": False}, "not dumpable", "root"),
        ({"seccomp": 2}, "seccomp", "--cap-add SYS_PTRACE"),
        ({"seccomp": 2, "capable": True}, "seccomp", "--cap-add SYS_PTRACE"),
        ({"capable": True, "same_user_namespace": False, "their_uids": (0, 0, 0)}, "namespace", "host"),
        ({"capable": True, "same_user_namespace": False}, "namespace", "host"),
    ],
)
def test_what_is_in_the_way(changes: dict[str, Any], what: str, help: str) -> None:
    found = access(**changes).obstacle()
    assert found is not None
    assert what in found[0]
    assert help in found[1]


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ("user:[4026531837]", "user:[4026531837]", True),
        ("user:[4026532001]", "user:[4026531837]", False),
        ("user:[4026531837]", None, None),
        ("user:[4026532001]", None, False),
        (None, None, None),
    ],
)
def test_root_of_a_container_may_not_look_outside(
    ours: str | None, theirs: str | None, same: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = {"/proc/self/ns/user": ours, "/proc/7/ns/user": theirs}
    monkeypatch.setattr(procfs, "try_readlink", links.get)
    assert Access.of(7).same_user_namespace is same


def test_with_the_capability_a_refusal_is_a_security_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """No capability is missing: nobody is sent to get one."""
    monkeypatch.setattr(Access, "of", lambda pid: access(capable=True))
    error = refused(7, PermissionError(errno.EACCES, ""))
    assert str(error) == "process 7 may not be read: permission denied"
    assert "security module" in error.hint and "core" in error.hint
    monkeypatch.setattr(Access, "of", lambda pid: access())
    assert "diagtool doctor 7" in refused(7, PermissionError(errno.EACCES, "")).hint


def test_doctor_never_says_yes_where_nothing_can_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a seccomp filter /proc/PID/mem can be opened all the same."""
    monkeypatch.setattr(ptrace, "seize", lambda pid: errno.EPERM)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        try:
            checks = doctor.examine(process.pid)
        finally:
            process.communicate(b"\n")
    assert [c.ok for c in checks if c.name == "ptrace"] == [False]
    assert (checks[-1].name, checks[-1].ok) == ("access", False)
