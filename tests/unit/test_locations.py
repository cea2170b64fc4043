"""Where findings are in a repository: by names alone, with mappings for containers, never by a guess."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_snapshots import FETCH, GET, LEAF, finding, report

from diagtool.report.locations import Locations
from diagtool.snapshot.model import Frame, Target

HERE = Locations(Path("/srv"))
AWAY = Locations(Path("/elsewhere"))


@pytest.mark.parametrize(
    ("file", "path"),
    [
        ("/srv/app/worker.py", "app/worker.py"),
        ("/srv//app/./worker.py", "app/worker.py"),
        ("/srv/../etc/passwd", None),
        ("/srvx/app/worker.py", None),
        ("/app/src/x.py", "src/x.py"),
        ("/app", None),
        ("/opt/lib/y.py", "vendor/lib/y.py"),
        ("/evil/../../x.py", None),
        ("<string>", None),
        ("", None),
        ("/srv/a\0b", None),
        ("worker.py", None),
    ],
)
def test_paths(file: str, path: str | None) -> None:
    maps = (("/app", "."), ("/opt/lib", "vendor/lib"), ("/evil/", "../.."))
    assert Locations(Path("/srv"), maps).path(file) == path


def test_a_mapping_may_name_the_folder_as_it_is_here() -> None:
    assert Locations(Path("/srv"), [("/app", "/srv/shop")]).path("/app/x.py") == "shop/x.py"
    assert Locations(Path("/srv"), [("/app", "/other")]).path("/app/x.py") is None


def test_relative_names_are_below_the_root_if_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.py").write_text("")
    here = Locations(tmp_path)
    assert here.path("x.py") == "x.py" and here.path("./x.py") == "x.py"
    assert here.path("y.py") is None and here.path("../x.py") is None


def test_a_link_to_the_repository_is_the_repository(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    here = Locations(tmp_path / "link")
    assert here.path(str(tmp_path / "real/x.py")) == here.path(str(tmp_path / "link/x.py")) == "x.py"


def test_what_could_be_the_repository_is_named_and_not_taken(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    here = Locations(tmp_path)
    said = here.warning(report())
    assert said is not None and said.endswith("--map FROM=TO says what a container calls it")
    (tmp_path / "app/worker.py").touch()
    said = here.warning(report())
    assert said is not None and said.endswith("if /srv is the repository, say so with --map /srv=.")
    assert here.main(finding()) is None
    assert Locations(tmp_path, [("/srv", ".")]).warning(report()) is None


def test_libraries_are_no_place_for_an_annotation() -> None:
    library = Frame("get", "/srv/.venv/lib/python3.12/site-packages/x/y.py", 5)
    main = HERE.main(finding(frames=(library, GET, LEAF)))
    assert main is not None and (main.path, main.line) == ("app/worker.py", 41)
    assert HERE.main(finding(frames=(library, GET), created_by=(library, FETCH))) is not None
    assert HERE.main(finding(frames=(library, GET), created_by=None)) is None


def test_the_script_stands_for_what_is_nowhere(tmp_path: Path) -> None:
    (tmp_path / "serve.py").write_text("")
    target = Target("live", exe="/usr/bin/python3", cmdline=["python3", "serve.py"])
    assert Locations(tmp_path).fallback(target) == "serve.py"
    assert AWAY.fallback(target) == "python3" and AWAY.fallback(Target("core")) == "process"
