"""Remake results/lsp_latents.json: what the latents of the maze's lowest levels decide.

    python benchmarks/lsp_latents.py     # after lsp_maze.py, from the hierarchies of its runs; a minute

The level that has learnt to move acts on open floor again, frozen, one latent kept from the beginning of an episode to
its end; the same episodes for every latent, which is drawn from N(0, I). If the latent is to be a direction, as the
paper has it ("motion in many different directions that is controllable by the lower layer's latent variables"),
episodes with one latent have to end in one direction, and those with another in another.

The rows, task PointMove or AntMove, a seed of training each: `direction` (degrees) and `distance` (m) from beginning to
end of every episode, settings `latent` and `episode` their numbers; `direction_spread`, the circular variance
V = 1 - |mean z|^2 of the directions z = exp(i angle) of all episodes, 0 where there is one and 1 where they are all
over the circle; `direction_by_latent`, the part of it that latents explain, 1 - W / V, with W the mean over latents of
the variance among the episodes of each. Both variances are unbiased: of nothing the part is 0, or a little less.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
import tyro

import pyrocontrol as pc
from pyrocontrol.inference import read_rows, row, write_results
from training_runs import command_line

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "lsp_latents.json"
# By maze: where its lowest level has learnt to move, and what that had been told.
FLOORS: dict[str, tuple[str, dict[str, Any]]] = {
    "PointMaze": ("PointMove", {}),
    "AntMaze": ("AntMove", {"upright": True}),
}


@dataclass
class Arguments:
    """Measure what latents decide."""

    runs: Path = HERE / "runs" / "lsp_maze"
    """where lsp_maze.py keeps its runs"""
    latents: int = 20
    """how many are drawn"""
    episodes: int = 5
    """with each of them, two or more"""
    steps: int = 200
    """of an episode, if it does not end before"""
    out: Path = RESULTS
    """results file"""


def main(arguments: Arguments) -> None:
    """Act, measure, write; rows of levels that are not here stay."""
    for name, least in {"latents": 2, "episodes": 2, "steps": 1}.items():
        if getattr(arguments, name) < least:
            raise SystemExit(f"--{name} must be at least {least}, got {getattr(arguments, name)}")
    torch.set_num_threads(1)
    rows = []
    for maze, (floor, given) in FLOORS.items():
        for path in hierarchies(arguments.runs / maze):
            rows += measured(path, floor, given, arguments)
    if not rows:
        raise SystemExit(f"no hierarchies in {arguments.runs}: run lsp_maze.py first")
    again = {(item["task"], item["seed"]) for item in rows}
    rows += [item for item in read_rows(arguments.out) if (item["task"], item["seed"]) not in again]
    write_results(arguments.out, "lsp_latents", rows, command="python benchmarks/lsp_latents.py")
    for item in rows:
        if "latent" not in item["setting"]:
            print(f"{item['task']:10} seed {item['seed']} {item['metric']:20} {item['value']:6.2f}")


def hierarchies(runs: Path) -> list[Path]:
    """Return the hierarchies of two levels of one goal, a seed each: goals share what is learnt on open floor."""
    for run in sorted(runs.glob("lsp-[0-9]-*")):
        if found := sorted([*run.glob("hierarchy.pt"), *run.glob("seed-*/hierarchy.pt")]):
            return found
    return []


def measured(path: Path, floor: str, given: dict[str, Any], arguments: Arguments) -> list[dict[str, Any]]:
    """Return the rows of the lowest level of a hierarchy."""
    policy: Any = pc.envs.Hierarchy.load(path).levels[0]
    name = path.parent.name
    seed = int(name.removeprefix("seed-") if name.startswith("seed-") else name.rsplit("-", 1)[1])
    setting = {"episodes": arguments.episodes, "latents": arguments.latents, "steps": arguments.steps} | given
    drawn = torch.randn((arguments.latents, policy.action_size), generator=torch.Generator().manual_seed(0))
    start, rows = time.perf_counter(), []
    moved = np.zeros((arguments.latents, arguments.episodes), complex)
    with closing(gymnasium.make(f"pyrocontrol/{floor}-v0", positions=False, **given)) as env:
        for number, latent in enumerate(drawn):
            for episode in range(arguments.episodes):
                before = time.perf_counter()
                x, y = way(env, policy, latent, episode, arguments.steps)
                moved[number, episode] = complex(x, y)
                values = {"direction": np.degrees(np.arctan2(y, x)), "distance": np.hypot(x, y)}
                seconds, numbers = time.perf_counter() - before, {"latent": number, "episode": episode}
                rows += [
                    row("lsp", floor, metric, float(value), seed=seed, seconds=seconds, **setting | numbers)
                    for metric, value in values.items()
                ]
    spread, explained = shares(np.angle(moved))
    seconds = time.perf_counter() - start
    for metric, value in {"direction_spread": spread, "direction_by_latent": explained}.items():
        rows.append(row("lsp", floor, metric, value, seed=seed, seconds=seconds, **setting))
    return rows


def way(env: gymnasium.Env[Any, Any], policy: Any, latent: torch.Tensor, episode: int, steps: int) -> np.ndarray:
    """Return how far and where one episode leads, ``[2]`` (m), one latent kept."""

    @torch.no_grad()
    def act(seen: np.ndarray) -> np.ndarray:
        return policy.actions(latent[None], torch.as_tensor(seen, dtype=torch.float32)[None])[0].numpy()

    acting = pc.models.Episodes(env, act, max_steps=steps)
    acting.begin(seed=episode)
    begin = acting.info["position"]
    (*_, last) = acting
    return np.asarray(last.info["position"]) - begin


def shares(angles: np.ndarray) -> tuple[float, float]:
    """Return the circular variance of angles ``[K, E]`` (radians), unbiased, and the part of it that rows explain."""
    unit = np.exp(1j * angles)
    total, within = (
        n / (n - 1) * (1 - np.abs(unit.mean(axis)) ** 2).mean() for n, axis in ((unit.size, None), (unit.shape[1], 1))
    )
    return float(total), float(1 - within / total)


if __name__ == "__main__":
    main(tyro.cli(Arguments, args=command_line()))
