"""The example of skills: what it writes, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pyrocontrol.inference import read_rows

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("skills_humanoid", ROOT / "examples" / "skills_humanoid.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


def run(example: ModuleType, out: Path, **given: Any) -> list[dict[str, Any]]:
    """The rows of one run, on the same demonstrations every time."""
    demos = out.parent / "demonstrations.npz"
    example.main(example.Arguments(composite="toy", demos=demos, out=out, evaluate_every=2, **given))
    return read_rows(out / "result.json")


def test_a_run_writes_everything_and_goes_on_where_it_stopped(example: ModuleType, tmp_path: Path) -> None:
    whole = run(example, tmp_path / "whole", mi="tied", updates=4)
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {
        *("result.json", "checkpoint.pt", "tensorboard", "mse.png", "learning_curve.png", "embeddings.png"),
        *("interpolation.png", "generation.png", "generation.gif", "links.png"),
    }
    run(example, tmp_path / "stopped", mi="tied", updates=2)
    gone_on = run(example, tmp_path / "stopped", mi="tied", updates=4)

    def values(rows: list[dict[str, Any]]) -> list[Any]:
        return [[item[key] for key in ("method", "task", "setting", "seed", "metric", "value")] for item in rows]

    assert values(gone_on) == values(whole)
    finished = run(example, tmp_path / "whole", mi="tied", updates=4)
    assert values(finished) == values(whole)

    metrics = {(item["method"], item["metric"], item["setting"].get("embedding")) for item in whole}
    for metric in ("state_mse", "state_mse_scaled"):
        assert {("tied", metric, kind) for kind in ("sum", "encoded", "part", "own")} <= metrics
        assert {("mean-state", metric, kind) for kind in ("composite", "own")} <= metrics
    for metric in ("cycle_fraction", "tracking_error"):
        assert {("tied", metric, "sum"), ("tied", metric, "encoded"), ("teacher", metric, None)} <= metrics
    assert {
        item["setting"]["step"] for item in whole if item["metric"] == "state_mse" and item["method"] == "tied"
    } == {
        2,
        4,
    }
    estimates = {item["setting"]["estimate"] for item in whole if item["metric"] == "mutual_information"}
    assert {"infonce", "leave_one_out", "tied", "nonvariational", "literal"} <= estimates
    assert len(values(whole)) == len({str(line[:5]) for line in values(whole)}), "two rows of the same name"


def test_the_composite_is_not_trained_on(example: ModuleType) -> None:
    task = example.checked(example.Arguments())
    data = example.demonstrations(example.Arguments(), task)
    assert task.names == ("rise", "push", "toy")
    assert [
        data.train.task.sum(0).tolist(),
        data.held_out.task.sum(0).tolist(),
        data.composite.task.sum(0).tolist(),
    ] == [
        [20, 20, 0],
        [5, 5, 0],
        [0, 0, 5],
    ]
    everything = torch.cat([part.actions.flatten(1) for part in data])
    assert len(everything.unique(dim=0)) == 55, "the same noise twice"


@pytest.mark.parametrize("name", ["updates", "batch_size", "latent", "evaluate_every"])
def test_numbers_that_make_no_sense_are_refused(example: ModuleType, name: str) -> None:
    with pytest.raises(SystemExit, match=f"--{name.replace('_', '-')} must be at least 1"):
        example.main(example.Arguments(**{name: 0}))


def test_files_that_are_something_else_are_refused(example: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SystemExit, match="is a file, not a folder"):
        example.main(example.Arguments(out=tmp_path / "out"))
    other = example.point_skills.demonstrations(("rise", "push"), 2)
    other.save(tmp_path / "other.npz")
    with pytest.raises(SystemExit, match="does not hold the demonstrations of rise, push, toy"):
        example.main(example.Arguments(demos=tmp_path / "other.npz", out=tmp_path / "new"))
    assert not (tmp_path / "new").exists()
