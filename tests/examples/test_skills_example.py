"""The example of skills: what it writes, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pyrocontrol import load
from pyrocontrol.inference import read_rows
from scripts import load_script


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_script("examples/skills_humanoid.py")


def run(example: ModuleType, out: Path, **given: Any) -> list[dict[str, Any]]:
    """The rows of one run, on the same demonstrations every time."""
    demos = out.parent / "demonstrations.npz"
    example.main(example.Arguments(composite="toy", demos=demos, out=out, evaluate_every=2, **given))
    return read_rows(out / "result.json")


def test_a_run_writes_everything_and_goes_on_where_it_stopped(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("TRAIN", 8), ("HELD_OUT", 2), ("COMPOSITE", 2)):
        monkeypatch.setattr(example, name, size)
    whole = run(example, tmp_path / "whole", mi="tied", updates=4)
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {
        *(
            "result.json",
            "checkpoint.pt",
            "skills.pt",
            "tensorboard",
            "mse.png",
            "learning_curve.png",
            "embeddings.png",
        ),
        *("interpolation.png", "generation.png", "generation.gif", "links.png"),
    }
    both = load(tmp_path / "whole" / "skills.pt").compose({"rise": 1.0, "push": 1.0})
    assert both.isfinite().all() and both.norm() > 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example, "draw", lambda *given: None)
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
    assert (*task.skills, task.idle) == ("rise", "push", "rest")
    assert [
        data.train.task.sum(0).tolist(),
        data.held_out.task.sum(0).tolist(),
        data.composite.task.sum(0).tolist(),
    ] == [
        [20, 20],
        [5, 5],
        [5, 5],
    ]
    assert [len(part) for part in data] == [60, 10, 5], "doing nothing is shown to train on"
    everything = torch.cat([part.actions.flatten(1) for part in data])
    assert len(everything.unique(dim=0)) == 75, "the same noise twice"
    assert len(example.demonstrations(example.Arguments(origin=False), task).train) == 40


def test_files_that_are_something_else_are_refused(example: ModuleType, tmp_path: Path) -> None:
    def refused(match: str, **given: Any) -> None:
        with pytest.raises(SystemExit, match=match):
            example.main(example.Arguments(**{"out": tmp_path / "new"} | given))
        assert not (tmp_path / "new").exists()

    (tmp_path / "file").write_text("a file")
    refused("file is a file, not a folder", out=tmp_path / "file")
    refused("file is a file, not a folder", out=tmp_path / "file" / "deeper")
    refused("file is a file, not a folder", demos=tmp_path / "file" / "demos.npz")
    refused("is a folder, not a file", demos=tmp_path)
    refused("cannot be read", demos=tmp_path / "file")
    # The same number of demonstrations, of other skills: nothing in the file itself would tell.
    task = example.task_of("toy")
    other = task._replace(composite="slalom", skills=("rise", "push", "weave"))
    example.demonstrations(example.Arguments(demos=tmp_path / "other.npz"), other)
    refused("does not hold the demonstrations of rise, push, rest, toy", demos=tmp_path / "other.npz")
    (tmp_path / "other.json").unlink()
    refused("does not hold the demonstrations of rise, push, rest, toy", demos=tmp_path / "other.npz")


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"weight": -1.0}, "--weight must be at least 0, got -1"),
    ({"beta": float("nan")}, "--beta must be at least 0, got nan"),
    ({"free_bits": float("inf")}, "--free-bits must be at least 0, got inf"),
    ({"warmup": -1}, "--warmup must be at least 0, got -1"),
    ({"seed": -1}, "--seed must be at least 0, got -1"),
    ({"updates": 0}, "--updates must be at least 1, got 0"),
    ({"batch_size": 100}, "--batch-size 100 exceeds the 60 demonstrations"),
    ({"learning_rate": 0.0}, "--learning-rate must be positive and finite, got 0"),
    ({"base": "linear", "axis": "time"}, "--base and --gains are for --axis additive"),
    ({"composite": "kick"}, "--composite kick: there are toy, spinkick, backflip, and sums such as"),
    ({"composite": "stand+kick", "joints": True}, r"--composite stand\+kick: there are toy"),
    ({"composite": "kick+kick", "joints": True}, "sums such as kick.spin, of skills each once"),
    ({"composite": "kick+"}, r"--composite kick\+: at least one skill is needed, with a name"),
    ({"device": "gpu"}, "device gpu cannot be used"),
    ({"residual": True, "axis": "mlp"}, "--residual is for --axis time"),
    ({"batch_size": 0}, "--batch-size must be at least 1"),
    ({"latent": 0}, "--latent must be at least 1"),
    ({"evaluate_every": 0}, "--evaluate-every must be at least 1"),
]


def test_bad_options_are_refused(example: ModuleType, tmp_path: Path) -> None:
    for given, message in BAD_OPTIONS:
        with pytest.raises(SystemExit, match=message):
            example.main(example.Arguments(out=tmp_path / "new", **given))
            pytest.fail(f"taken: {given}")
        assert not (tmp_path / "new").exists()


def test_the_folder_of_another_run_is_refused(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "draw", lambda *given: None)
    run(example, tmp_path / "out", mi="off", updates=1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*")}
    with pytest.raises(SystemExit, match="--out .*out: "):
        run(example, tmp_path / "out", mi="tied", updates=1)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*")}


def test_what_is_assisted_is_said(example: ModuleType) -> None:
    assert example.task_of("toy").assisted == ()
    pytest.importorskip("pybullet")
    assert example.task_of("spinkick").assisted == ("kick", "spin", "stand")
    assert example.task_of("backflip").assisted == ("roll", "stand")
    assert "jump+roll" in example.task_of("jump+roll").assisted
