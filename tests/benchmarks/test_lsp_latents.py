"""How much of a direction is the latent's."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import pyrocontrol as pc


def test_shares_of_directions(benchmark: ModuleType) -> None:
    draw = np.random.default_rng(0)
    by_latent = np.repeat(draw.uniform(-np.pi, np.pi, (500, 1)), 4, 1)
    assert benchmark.shares(by_latent) == pytest.approx((1.0, 1.0), abs=0.02)
    by_chance = draw.uniform(-np.pi, np.pi, (500, 4))
    assert benchmark.shares(by_chance) == pytest.approx((1.0, 0.0), abs=0.05)
    # Half of the variance each, in the limit of small angles.
    mixed = 0.05 * (draw.standard_normal((2000, 1)) + draw.standard_normal((2000, 4)))
    assert benchmark.shares(mixed) == pytest.approx((0.005, 0.5), abs=0.03)


def test_rows_of_a_frozen_level(benchmark: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    levels = [pc.guides.FlowPolicy(2, 2), pc.guides.FlowPolicy(4, 2, squash=False)]
    run = tmp_path / "PointMaze" / "lsp-0-30-30-3+5" / "seed-5"
    run.mkdir(parents=True)
    pc.envs.Hierarchy(levels, [slice(2, None), None], observation_size=4).save(run / "hierarchy.pt")
    out = tmp_path / "latents.json"
    benchmark.main(benchmark.Arguments(runs=tmp_path, latents=3, episodes=2, steps=4, out=out))
    rows = json.loads(out.read_text())["rows"]
    assert {(item["task"], item["seed"]) for item in rows} == {("PointMove", 5)}
    assert [item["metric"] for item in rows[-2:]] == ["direction_spread", "direction_by_latent"]
    assert len(rows) == 2 * 3 * 2 + 2
    angles = np.radians([item["value"] for item in rows if item["metric"] == "direction"]).reshape(3, 2)
    assert [item["value"] for item in rows[-2:]] == pytest.approx(benchmark.shares(angles))
    # What is not here any more keeps its rows; what is measured again replaces them.
    run.rename(run.parent / "seed-3")
    for _ in range(2):
        benchmark.main(benchmark.Arguments(runs=tmp_path, latents=3, episodes=2, steps=4, out=out))
    again = json.loads(out.read_text())["rows"]
    assert len(again) == 2 * len(rows) and again[len(rows) :] == rows


def test_one_episode_says_nothing_of_a_variance(benchmark: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--episodes must be at least 2, got 1"):
        benchmark.main(benchmark.Arguments(runs=tmp_path, episodes=1, out=tmp_path / "x.json"))


def test_without_runs_it_says_so(benchmark: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="run lsp_maze.py first"):
        benchmark.main(benchmark.Arguments(runs=tmp_path, out=tmp_path / "x.json"))
    assert not [*tmp_path.iterdir()]
