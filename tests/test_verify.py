"""A folder is one run's."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pyrocontrol.inference import claim_folder


def test_a_folder_that_is_claimed_is_the_runs_own(tmp_path: Path) -> None:
    out = tmp_path / "new" / "run"
    for _ in range(2):  # the second time it goes on
        with claim_folder(out, {"guide": "flow", "seed": (0, 1), "scale": None}):
            pass
    assert json.loads((out / "settings.json").read_text()) == {"guide": "flow", "seed": [0, 1], "scale": None}
    other = r"run holds another run, with guide flow, not mixture; seed .0, 1., not .0.: "
    with pytest.raises(ValueError, match=other), claim_folder(out, {"guide": "mixture", "seed": (0,), "scale": None}):
        pass
    with claim_folder(out, {"guide": "flow", "since": "a later version"}):
        pass
    assert json.loads((out / "settings.json").read_text())["seed"] == [0, 1]
    assert [path.name for path in out.iterdir()] == ["settings.json"]


def test_a_folder_is_claimed_by_one_at_a_time(tmp_path: Path) -> None:
    with claim_folder(tmp_path / "run", {"seed": 0}):
        message = rf"settings.json: .*in use by process {os.getpid()} on "
        with pytest.raises(ValueError, match=message), claim_folder(tmp_path / "run", {"seed": 0}):
            pass
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["settings.json"]


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_is_given_up_if_nothing_came_of_the_run(tmp_path: Path, there: bool) -> None:
    out = tmp_path / "run"
    if there:
        out.mkdir()

    def fail(*names: str) -> None:
        with pytest.raises(ValueError, match="what is wrong"), claim_folder(out, {"seed": 0}):
            for name in names:
                (out / name).touch()
            raise ValueError("what is wrong")

    fail()
    assert out.exists() == there and not list(tmp_path.glob("run/*"))
    fail("checkpoint.pt")
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint.pt", "settings.json"]
    (out / "checkpoint.pt").unlink()
    fail()  # it was this run's before
    assert [path.name for path in out.iterdir()] == ["settings.json"]


@pytest.mark.parametrize(
    ("message", "given"),
    [
        ("is a file, not a folder", "file/run"),
        ("settings.json: Expecting", "torn"),
        ("settings.json: no settings of a run", "list"),
        ("settings.json: .*", "/proc/run"),
    ],
)
def test_a_folder_that_cannot_be_claimed_is_refused(tmp_path: Path, message: str, given: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "settings.json").write_text("{")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "settings.json").write_text("[1]")
    settings: dict[str, Any] = {"seed": 0}
    with pytest.raises(ValueError, match=message), claim_folder(tmp_path / given, settings):
        pass
    assert (tmp_path / "torn" / "settings.json").read_text() == "{"
