"""Where paths lead below another root directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from diagtool.paths import path_under


@pytest.mark.parametrize(
    ("path", "leads_to"),
    [
        ("/srv/app.py", "srv/app.py"),
        ("//srv//./app.py", "srv/app.py"),
        ("/../../srv/../etc/app.py", "etc/app.py"),
        ("/absolute/app.py", "releases/42/app.py"),
        ("/relative/app.py", "releases/42/app.py"),
        ("/climbing/app.py", "releases/42/app.py"),
        ("/doubled/app.py", "releases/42/app.py"),
        ("/srv/\ud800.py", "srv/\ud800.py"),
        ("/loop/app.py", None),
        ("/nul\0.py", None),
    ],
)
def test_paths_stay_below_the_root(tmp_path: Path, path: str, leads_to: str | None) -> None:
    (tmp_path / "releases/42").mkdir(parents=True)
    (tmp_path / "absolute").symlink_to("/releases/42")
    (tmp_path / "relative").symlink_to("releases/42")
    (tmp_path / "climbing").symlink_to("../../../../releases/42")
    (tmp_path / "doubled").symlink_to("//releases/42")
    (tmp_path / "loop").symlink_to("loop")
    assert path_under(str(tmp_path), path) == (None if leads_to is None else tmp_path / leads_to)
