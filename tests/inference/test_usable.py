"""A folder is one run's."""

import json
from pathlib import Path
from typing import Any

import pytest

from pyrocontrol.inference import claim_folder


def test_a_folder_that_is_claimed_is_the_runs_own(tmp_path: Path) -> None:
    out = tmp_path / "new" / "run"
    for _ in range(2):  # the second time it goes on
        claim_folder(out, {"guide": "flow", "seed": (0, 1), "scale": None})
    assert json.loads((out / "settings.json").read_text()) == {"guide": "flow", "seed": [0, 1], "scale": None}
    with pytest.raises(
        ValueError, match=r"run holds another run, with guide flow, not mixture; seed .0, 1., not .0.: "
    ):
        claim_folder(out, {"guide": "mixture", "seed": (0,), "scale": None})
    claim_folder(out, {"guide": "flow", "since": "a later version"})
    assert json.loads((out / "settings.json").read_text())["seed"] == [0, 1]
    assert [path.name for path in out.iterdir()] == ["settings.json"]


@pytest.mark.parametrize(
    ("message", "given"),
    [
        ("is a file, not a folder", "file/run"),
        ("settings.json: Expecting", "torn"),
        ("settings.json: .*", "/proc/run"),
    ],
)
def test_a_folder_that_cannot_be_claimed_is_refused(tmp_path: Path, message: str, given: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "settings.json").write_text("{")
    settings: dict[str, Any] = {"seed": 0}
    with pytest.raises(ValueError, match=message):
        claim_folder(tmp_path / given, settings)
    assert (tmp_path / "torn" / "settings.json").read_text() == "{"
