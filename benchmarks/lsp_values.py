"""Remake results/lsp_values.json: what soft Q-learning takes the states of the point's maze to be worth.

    python benchmarks/lsp_values.py     # after lsp_maze.py, from the checkpoints and replays of its runs; a minute

The soft values V(s) of the level above, by its target critic at the end of a run, at all states that the run has been
in, by how far they are from the goal. An episode returns 1000 where it gets there and 0 where it does not: V, at most
that of the greatest return, is 1000 next to the goal and less elsewhere. What is above is the critic's error.

The rows, task PointMaze, methods `lsp-sql` and `lsp-sql-bounded` of lsp_maze.py, a seed of training each, settings
`goal` and `nearest` and `farthest` (m): `soft_value`, the mean over the states at that distance, and `impossible`, the
fraction of them at which it is above 1000.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

import pyrocontrol as pc
from pyrocontrol.envs.point_maze import GOAL_REWARD, GOALS
from pyrocontrol.inference import read_rows, row, write_results
from pyrocontrol.inference.training import checkpoint
from training_runs import command_line

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "lsp_values.json"
BOUNDS: dict[str, tuple[float, float] | None] = {"lsp-sql": None, "lsp-sql-bounded": (0.0, GOAL_REWARD)}
DISTANCES = (0.0, 3.0, 6.0, 8.0, 10.0, 20.0)  # m
SIZES = (4, 2)  # of a point: observations and actions


@dataclass
class Arguments:
    """Measure what states are taken to be worth."""

    runs: Path = HERE / "runs" / "lsp_maze"
    """where lsp_maze.py keeps its runs"""
    out: Path = RESULTS
    """results file"""


def main(arguments: Arguments) -> None:
    """Load, measure, write; rows of runs that are not here stay."""
    torch.set_num_threads(1)
    rows = []
    for method in BOUNDS:
        for path in finished(arguments.runs, method):
            rows += measured(path, method)
    if not rows:
        raise SystemExit(f"no finished runs in {arguments.runs}: run lsp_maze.py first")
    again = {run_of(item) for item in rows}
    rows += [item for item in read_rows(arguments.out) if run_of(item) not in again]
    write_results(arguments.out, "lsp_values", rows, command="python benchmarks/lsp_values.py")
    for item in rows:
        near, far = (item["setting"][name] for name in ("nearest", "farthest"))
        what = f"{item['method']:16} goal {item['setting']['goal']} seed {item['seed']} {near:4} to {far:4} m"
        print(f"{what} {item['metric']:10} {item['value']:8.2f}")


def finished(runs: Path, method: str) -> list[Path]:
    """Return the checkpoints of the upper levels of a method's finished runs."""
    found = sorted((runs / "PointMaze").glob(f"{method}-[0-9]-*/**/level-1/checkpoint.pt"))
    return [path for path in found if (path.parents[1] / "result.json").exists()]


def run_of(item: dict[str, Any]) -> tuple[str, int, int]:
    """Return the run that a row is of."""
    return item["method"], item["setting"]["goal"], item["seed"]


def measured(path: Path, method: str) -> list[dict[str, Any]]:
    """Return the rows of one seed of a run, of the checkpoint of its upper level."""
    start = time.perf_counter()
    name = path.parent.parent.name  # seed-N, or the run's, which ends with it
    run = path.parents[2].name if name.startswith("seed-") else name
    goal, seed = int(run.removeprefix(f"{method}-").split("-")[0]), int(name.rsplit("-", 1)[1])
    policy = pc.guides.FlowPolicy(*SIZES, squash=False)
    prior = pc.models.GaussianPrior(SIZES[1])
    given: dict[str, Any] = {"fixed_latent": True, "value_range": BOUNDS[method]}
    learner = pc.inference.SoftQLearning(policy, *SIZES, prior=prior, **given)
    pc.inference.load_checkpoint(path, learner)
    content = checkpoint.read(path, "replay", "file")
    capacity, spare, *_ = content["replay"]["sizes"]
    memory = pc.inference.Replay(capacity, *SIZES, seed=0, path=path.with_name(content["file"]), spare=spare)
    memory.restore(content["replay"])
    seen = memory.latest(len(memory)).observations
    torch.manual_seed(0)
    values = learner.soft_value(seen).numpy()
    away = np.linalg.norm(seen[:, :2].numpy() - np.array(GOALS[goal]), axis=1)
    rows = []
    for nearest, farthest in pairwise(DISTANCES):
        found = values[(nearest <= away) & (away < farthest)]
        if not len(found):
            continue
        seconds, setting = time.perf_counter() - start, {"goal": goal, "nearest": nearest, "farthest": farthest}
        for metric, value in {"soft_value": found.mean(), "impossible": (found > GOAL_REWARD).mean()}.items():
            rows.append(row(method, "PointMaze", metric, float(value), seed=seed, seconds=seconds, **setting))
    return rows


if __name__ == "__main__":
    main(tyro.cli(Arguments, args=command_line()))
