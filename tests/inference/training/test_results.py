"""Results files: complete, and there whole or not at all."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyrocontrol.inference import mean_interval, read_rows, row, summary, write_results
from pyrocontrol.inference.training import results
from pyrocontrol.inference.training.results import ROW_FIELDS


@pytest.fixture(autouse=True)
def revision_anew() -> Iterator[None]:
    results.revision.cache_clear()
    yield
    results.revision.cache_clear()


def rows(count: int = 3) -> list[dict[str, Any]]:
    return [
        row("hvil", "bubble_sort", "exact_match", seed / 7, seed=seed, seconds=1.5, demos=40) for seed in range(count)
    ]


def test_a_row_has_the_form_of_all_rows(check_row: Callable[[dict[str, Any]], None]) -> None:
    one = rows(1)[0]
    check_row(one)
    assert tuple(one) == ROW_FIELDS
    assert one["setting"] == {"demos": 40}


def test_summaries() -> None:
    rows = [
        {"method": "a", "metric": "m", "task": "t", "setting": {"demos": 1}, "seed": seed, "value": value}
        for seed, value in enumerate([0.5, 0.7, 0.9])
    ]
    rows.append(rows[0] | {"setting": {"demos": 1, "length": 10}, "value": 0.0})
    mean, half, seeds = summary(rows, "a", "m", demos=1, length=None)
    assert seeds == 3 and mean == pytest.approx(0.7) and half == pytest.approx(4.303 * 0.2 / math.sqrt(3))
    assert summary(rows, "b", "m")[2] == 0
    assert summary(rows, "a", "m", task="t", demos=1, length=None) == (mean, half, seeds)
    assert summary(rows, "a", "m", task="another")[2] == 0
    assert math.isnan(mean_interval([1.0]).half) and mean_interval([1.0]).mean == 1.0


def test_a_file_holds_what_made_it(tmp_path: Path, check_results: Callable[[dict[str, Any]], None]) -> None:
    path = tmp_path / "new" / "folder" / "results.json"
    assert read_rows(path) == []
    write_results(path, "bubble_sort", rows(), command="python examples/bubble_sort.py --demos 40")
    results = json.loads(path.read_text())
    check_results(results)
    assert results["name"] == "bubble_sort"
    assert results["command"] == "python examples/bubble_sort.py --demos 40"
    assert {"python", "torch", "pyro-ppl"} <= results["versions"].keys()
    assert read_rows(path) == rows()  # to the last digit
    assert len(path.read_text().splitlines()) < 40  # one row a line, so that changes read well
    write_results(path, "bubble_sort", rows(1))
    assert read_rows(path) == rows(1)
    assert json.loads(path.read_text())["command"].startswith("python ")
    assert os.listdir(path.parent) == ["results.json"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("field", ROW_FIELDS)
def test_rows_that_lack_a_field_are_refused(field: str, tmp_path: Path) -> None:
    bad = rows()
    del bad[1][field]
    with pytest.raises(ValueError, match=f"row 1 lacks {field}"):
        write_results(tmp_path / "results.json", "name", bad)
    assert not list(tmp_path.iterdir())


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        write_results(tmp_path / "results.json", "name", [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("trouble", ["row", "rename"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    write_results(path, "name", rows())
    before = path.read_bytes()
    new = rows(2)
    if trouble == "row":
        new[1]["value"] = object()  # cannot be written, which shows when the first row has been

    else:

        def replace(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", replace)
    with pytest.raises((TypeError, KeyboardInterrupt)):
        write_results(path, "name", new)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["results.json"]


def test_without_git_the_revision_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", run)
    write_results(tmp_path / "results.json", "name", rows())
    assert json.loads((tmp_path / "results.json").read_text())["revision"] == "unknown"


def test_changes_count_but_those_of_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "inference" / "results.py"
    result = tmp_path / "benchmarks" / "results" / "a.json"
    for path in (module, result):
        path.parent.mkdir(parents=True)
        path.touch()
    monkeypatch.setattr(results, "__file__", str(module))
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    result.write_text("{}")
    clean = results.revision()
    assert len(clean) == 40
    module.write_text("changed")
    assert results.revision() == clean  # of what this process has loaded
    results.revision.cache_clear()
    assert results.revision() == f"{clean}+changes"
