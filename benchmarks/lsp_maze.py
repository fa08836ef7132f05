"""Remake results/lsp_maze.json: a level that moves and one that finds the way, against one level, and the plot.

    python benchmarks/lsp_maze.py                                              # the point: every run that is missing
    python benchmarks/lsp_maze.py --goals 0 --methods lsp scratch --seeds 0 --jobs 1
    python benchmarks/lsp_maze.py --task AntMaze --seeds 0 --pretrain 400000 --steps 300000
    python benchmarks/lsp_maze.py --no-train                                   # collect finished runs and plot

The seeds of a method are one run of `examples/lsp_maze.py`, in a process of one thread and with a folder of its own
under RUNS; one that was stopped goes on from its checkpoints. What is learnt on open floor is kept for all goals, as in
the paper, as long as the same seeds are missing.

The rows: `final_distance` to the goal where an episode ends (m) and `success`, the fraction of episodes that reach it,
at every evaluation, setting `goal` and `steps` (in the maze; `pretrain` of them before, on open floor).
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import tyro

from pyrocontrol.envs.point_maze import GOAL_RADIUS, GOAL_REWARD
from pyrocontrol.inference import mean_interval, read_rows, write_results
from training_runs import collect, command_line, make, on, uncommitted, verify_known, verify_usable, with_table

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend has to be set first)

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "lsp_maze.json"
PAGE = HERE.parent / "docs" / "methods" / "lsp.md"
# A single level has the default temperature, one that acts on latents that of the paper.
ONE = ("--levels", "1", "--temperature", "learned")
METHODS: dict[str, list[str]] = {
    "lsp": [],
    "lsp-sql": ["--learner", "sql"],
    "finetune": [*ONE],
    "finetune-motion": [*ONE, "--motion", "1"],
    "scratch": [*ONE],
    "scratch-motion": [*ONE, "--motion", "1"],
}
COMPARED = tuple(METHODS)
# Methods that go on from the same training on open floor.
FLOORS = {"lsp": "floor-lsp", "lsp-sql": "floor-sql", "finetune": "floor-one", "finetune-motion": "floor-one"}
# The same with the paper's form of the flow.
NARROW = "-flow-paper"
METHODS |= {name + NARROW: [*given, "--guide", "flow-paper"] for name, given in METHODS.items()}
FLOORS |= {name + NARROW: floor + NARROW for name, floor in FLOORS.items()}
# With as great a learning rate above as below; with bounds on what the critic of the level above can say.
BOUNDS = ["--value-range", "0", f"{GOAL_REWARD:g}"]
METHODS |= {"lsp-lr-1e-3": ["--lr", "1e-3"], "lsp-sql-bounded": [*METHODS["lsp-sql"], *BOUNDS]}
FLOORS |= {"lsp-lr-1e-3": FLOORS["lsp"], "lsp-sql-bounded": FLOORS["lsp-sql"]}
TASKS = ("PointMaze", "AntMaze")
# What the ant has besides: it learns to walk faster at a rate at which the critics of the level above run away.
ANT_SEVERAL, ANT_ONE = ["--floor-lr", "1e-3", *BOUNDS], ["--lr", "1e-3"]

Run = tuple[str, str, int, int, int, int]  # task, method, goal, steps on open floor and in the maze, seed


@dataclass
class Arguments:
    """Which runs to make."""

    task: Literal["PointMaze", "AntMaze"] = "PointMaze"
    """whose body"""
    methods: tuple[str, ...] = COMPARED
    """which methods; there are also those with -flow-paper, lsp-lr-1e-3 and lsp-sql-bounded"""
    goals: tuple[int, ...] = (0, 1, 2)
    """which goals"""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """trials"""
    pretrain: int = 30_000
    """environment steps on open floor, of the methods that have them"""
    steps: int = 30_000
    """environment steps in the maze"""
    jobs: int = 2
    """runs side by side"""
    runs: Path = HERE / "runs" / "lsp_maze"
    """where runs are kept"""
    train: bool = True
    """make the runs that are missing"""
    device: str = "cpu"
    """where to learn, on a GPU with the learners' steps as CUDA graphs"""


def main(arguments: Arguments) -> None:
    """Make the missing runs, then the results file, its plot and the page's tables."""
    verify_known("method", arguments.methods, [*METHODS])
    verify_usable(arguments.device)
    if arguments.train:
        there = {run_of(item) for item in read_rows(RESULTS) + collected(arguments.runs)}
        # Runs that share a floor follow each other.
        chains: dict[str, list[list[Run]]] = {}
        for method in arguments.methods:
            floor = arguments.pretrain if method in FLOORS else 0
            for goal in arguments.goals:
                jobs: list[Run] = [
                    (arguments.task, method, goal, floor, arguments.steps, seed) for seed in arguments.seeds
                ]
                if missing := [job for job in jobs if job not in there]:
                    chains.setdefault(FLOORS.get(method, method), []).append(missing)
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(lambda chain: run(arguments.runs, arguments.device, chain), chains.values()))
    rows = collected(arguments.runs)
    # Runs made elsewhere, whose folders are not here, stay in the file.
    made = {run_of(item) for item in rows}
    rows += [item for item in read_rows(RESULTS) if run_of(item) not in made]
    write_results(RESULTS, "lsp_maze", rows, command="python benchmarks/lsp_maze.py")
    print(table(rows))
    plot(rows, HERE / "results" / "lsp_maze.png")
    if arguments.runs == Arguments.runs:  # the whole set of runs, not somebody's trial
        PAGE.write_text(with_tables(PAGE.read_text(), rows))


def run_of(item: dict[str, Any]) -> Run:
    """Return the run that a row is of."""
    setting = item["setting"]
    return item["task"], item["method"], setting["goal"], setting["pretrain"], setting["budget"], item["seed"]


def run(runs: Path, device: str, chain: list[list[Run]]) -> None:
    """Make runs, those that differ in their seeds alone at once, the others one after the other."""
    for jobs in chain:
        task, method, goal, pretrain, steps, _ = jobs[0]
        seeds = [str(job[-1]) for job in jobs]
        together = "+".join(seeds)
        out = runs / task / f"{method}-{goal}-{pretrain}-{steps}-{together}"
        given = [*METHODS[method], *besides(task, method), "--compile", *on(device), "--task", task]
        given += ["--goal", str(goal), "--pretrain", str(pretrain)]
        given += ["--steps", str(steps), "--evaluate-every", str(max(1, steps // 10)), "--out", str(out)]
        if method in FLOORS:
            given += ["--pretrained", str(runs / task / f"{FLOORS[method]}-{pretrain}-{together}")]
        given += ["--seed", *seeds]
        make(HERE.parent / "examples" / "lsp_maze.py", given, f"{task}/{out.name}", out / "log.txt")


def besides(task: str, method: str) -> list[str]:
    """Return the options of a method that are the task's."""
    if task != "AntMaze" or "--lr" in METHODS[method]:
        return []
    return ANT_ONE if "--levels" in METHODS[method] else ANT_SEVERAL


def collected(runs: Path) -> list[dict[str, Any]]:
    """Return the rows of all finished runs, by task, method, goal and seed."""
    methods = [*METHODS]
    rows = collect(runs, methods, 4)
    return sorted(rows, key=lambda item: (item["task"], methods.index(item["method"]), *run_of(item)[2:]))


# -- what came out ----------------------------------------------------------------------------------------------------


def curves(rows: list[dict[str, Any]], task: str, goal: int, method: str, metric: str) -> dict[int, dict[int, float]]:
    """Return a metric by seed and step, of the runs with most steps."""
    of_method = [item for item in rows if (*run_of(item)[:3],) == (task, method, goal)]
    most = max((run_of(item)[3:5] for item in of_method), default=None)
    found: dict[int, dict[int, float]] = {}
    for item in of_method:
        if item["metric"] == metric and run_of(item)[3:5] == most:
            found.setdefault(item["seed"], {})[item["setting"]["steps"]] = item["value"]
    return {seed: dict(sorted(curve.items())) for seed, curve in found.items()}


def ends(rows: list[dict[str, Any]], task: str, goal: int, method: str) -> tuple[list[float], list[float], list[float]]:
    """Return the seeds' final distances at the end of the runs, success there, and its means over the runs."""
    distances, successes = (
        [*curves(rows, task, goal, method, name).values()] for name in ("final_distance", "success")
    )
    at_end = [[curve[max(curve)] for curve in found] for found in (distances, successes)]
    return at_end[0], at_end[1], [float(np.mean([*curve.values()])) for curve in successes]


def panels(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Return the tasks and goals that there are rows of."""
    return sorted(
        {(item["task"], item["setting"]["goal"]) for item in rows}, key=lambda of: (TASKS.index(of[0]), of[1])
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Return what the runs end with, as a Markdown table: mean, 95% interval where there are three seeds, and seeds."""
    lines = [
        "| task | goal | method (seeds) | final distance (m) | success | success, mean over the run |",
        "|---|---|---|---|---|---|",
    ]
    for task, goal in panels(rows):
        for method in METHODS:
            found = ends(rows, task, goal, method)
            if seeds := len(found[0]):
                cells = [_cell(values) for values in found]
                lines.append(f"| {task} | {goal} | {method} ({seeds}) | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *uncommitted(rows, "goal")])


def summary(rows: list[dict[str, Any]]) -> str:
    """Return means of the final distance, and of the success over the run, a goal a line, as a Markdown table."""
    lines = [f"| | {' | '.join(COMPARED)} |", "|---" * (len(COMPARED) + 1) + "|"]
    for task, goal in panels(rows):
        cells = []
        for method in COMPARED:
            distances, _, along = ends(rows, task, goal, method)
            cells.append(f"{np.mean(distances):.1f} m, {np.mean(along):.2f} ({len(along)})" if distances else "")
        lines.append(f"| {task}, goal {goal} | {' | '.join(cells)} |")
    return "\n".join(lines)


def with_tables(page: str, rows: list[dict[str, Any]]) -> str:
    """Return the page with both tables."""
    return with_table(with_table(page, summary(rows), "GOALS"), table(rows), "MAZE")


def _cell(values: list[float]) -> str:
    mean, half, seeds = mean_interval(values)
    return f"{mean:.2f}" + (f" ± {half:.2f}" if seeds >= 3 else "")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the final distance against environment steps in the maze, with 95% intervals but for variants."""
    shown = panels(rows)
    if not shown:
        return
    wide = min(3, len(shown))
    high = math.ceil(len(shown) / wide)
    figure, grid = plt.subplots(high, wide, figsize=(4.4 * wide, 3.6 * high), layout="constrained", squeeze=False)
    lines: dict[str, Any] = {}
    for axes, (task, goal) in zip(grid.flat, shown, strict=False):
        for number, method in enumerate(METHODS):
            seeds = curves(rows, task, goal, method, "final_distance")
            if not seeds:
                continue
            steps = sorted(set.intersection(*(set(curve) for curve in seeds.values())))
            points = [mean_interval([curve[step] for curve in seeds.values()]) for step in steps]
            mean, half = (np.nan_to_num([point[part] for point in points]) for part in (0, 1))
            color = f"C{number % len(COMPARED)}"
            style = "-" if method in COMPARED else "--" if NARROW in method else "-."
            (lines[method],) = axes.plot(steps, mean, style, color=color)
            if len(seeds) >= 3 and method in COMPARED:
                axes.fill_between(steps, mean - half, mean + half, color=color, alpha=0.12, lw=0)
        reached = axes.axhline(GOAL_RADIUS, color="black", ls=":", lw=1)
        axes.set(xlabel="environment steps in the maze", ylabel="distance to the goal at the end (m)", ylim=(0, 15))
        axes.set_title(f"{task}, goal {goal}", loc="left", fontsize=10)
        axes.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:.0f}k")
    for axes in grid.flat[len(shown) :]:
        axes.set_axis_off()
    lines["reached"] = reached
    figure.legend([*lines.values()], [*lines], loc="outside lower center", ncols=min(len(lines), 2 * wide), fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Arguments, args=command_line()))
