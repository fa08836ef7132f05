"""Remake results/lsp.json: latent space policies on Gymnasium's tasks against what else there is, and the plot.

    python benchmarks/lsp.py                                          # every run that is missing, then the plot
    python benchmarks/lsp.py --tasks Ant-v5 --methods lsp ppo --seeds 0 --jobs 1 --no-speed
    python benchmarks/lsp.py --hierarchy                              # one level, two, four couplings: the ant
    python benchmarks/lsp.py --no-train --no-speed --no-still         # collect finished runs and plot

The seeds of a soft learner are one run of `examples/lsp_benchmark.py`, in a process of one thread and with a folder of
its own under RUNS; one that was stopped goes on from its checkpoints. DDPG and PPO are a run a seed.
One level and the lower of two go on from a finished run of one level and half the steps: their first half is that run.

The rows: `return` of every evaluation, setting `steps`, the same number of environment steps for every method; at the
end of a run we quote the mean over the evaluations in its last tenth. `return_mode`: without noise, at the end. Method
`still`: what the middle of every action's range returns, a row an episode.
`updates_per_second` and `speed_ratio`, task `speed`, are measured on one thread, interleaved in one process; every
repeat is a row, its seed the repeat's number. `inversion_error`, task `inversion`: how far actions in (-1, 1) are from
what their latents at the top of three frozen levels make of them again, at most.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium
import matplotlib
import numpy as np
import pyro
import torch
import tyro

import pyrocontrol as pc
from pyrocontrol.inference import mean_interval, read_rows, row, select, write_results
from pyrocontrol.inference.training.results import revision
from training_runs import collect, command_line, make, on, uncommitted, verify_known, verify_usable, with_table

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend has to be set first)

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "lsp.json"
PAGE = HERE.parent / "docs" / "methods" / "lsp.md"
SOFT = ("--start", "10000")  # as many steps before the first update for all
DRAWS = ("--particles", "4")  # actions of each state in the policy's loss; 1 otherwise, 4 for mixtures
SPLINE = "lsp-spline"  # which cannot be compiled
METHODS: dict[str, list[str]] = {
    "lsp": [*SOFT],
    "sac-gaussian": ["--guide", "gaussian", *SOFT],
    "sac-gmm": ["--guide", "mixture", *SOFT],
    "sac-gmm-1": ["--guide", "mixture", "--components", "1", *SOFT],
    "sql": ["--learner", "sql", *SOFT],
    "ddpg": ["--learner", "ddpg"],
    "ppo": ["--learner", "ppo"],
    SPLINE: ["--guide", "spline", *SOFT],
    "lsp-2": ["--levels", "2", *SOFT],
    "lsp-4-end-to-end": ["--couplings", "4", *SOFT],
    # A learning rate at which its critics on Humanoid do not run away, as they do at that of the others.
    "sac-gmm-3e-4": ["--guide", "mixture", "--lr", "3e-4", *SOFT],
    # Four draws; then, one after the other, what the paper has: 1000 steps before the first update, its form of the
    # policy, one draw, its learning rate.
    "lsp-4-draws": [*DRAWS, *SOFT],
    "lsp-start-1000": [*DRAWS],
    "sac-gmm-start-1000": ["--guide", "mixture", *DRAWS],
    "lsp-paper": ["--guide", "flow-paper", *DRAWS],
    "lsp-paper-1-draw": ["--guide", "flow-paper"],
    "lsp-paper-3e-4": ["--guide", "flow-paper", "--lr", "3e-4"],
}
BASELINES = ("ddpg", "ppo")
COMPARED = ("lsp", "sac-gmm", "sql", "ddpg", "ppo")
HIERARCHIES = ("lsp", "lsp-2", "lsp-4-end-to-end")
ONE_LEVEL_FIRST = ("lsp", "lsp-2")  # what their first half is: `lsp`
TASKS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Swimmer-v5", "Humanoid-v5")
STILL = "still"  # the method of rows of no policy
SPEED, INVERSION = "speed", "inversion"  # the tasks of the rows that are not of a run
FIRST_SEED = 10_000  # of the episodes of evaluations
BATCH, HIDDEN, OBSERVATIONS, ACTIONS = 128, 128, 17, 6  # the last two are HalfCheetah's

Run = tuple[str, str, int, int]


@dataclass
class Arguments:
    """Which runs to make."""

    tasks: tuple[str, ...] = TASKS[:4]
    """Gymnasium's ids"""
    methods: tuple[str, ...] = COMPARED
    """which methods; there are also sac-gaussian, sac-gmm-1 (one component), lsp-spline, lsp-2, lsp-4-end-to-end,
    sac-gmm-3e-4 (the paper's learning rate), lsp-4-draws, and with more and more of the paper's settings
    lsp-start-1000, sac-gmm-start-1000, lsp-paper, lsp-paper-1-draw, lsp-paper-3e-4"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """trials"""
    steps: int = 200_000
    """environment steps of each run, all levels together"""
    hierarchy: bool = False
    """in the place of these tasks and methods, one level, two, and four couplings on the ant, with twice the steps"""
    jobs: int = 2
    """runs side by side"""
    runs: Path = HERE / "runs" / "lsp"
    """where runs are kept"""
    train: bool = True
    """make the runs that are missing"""
    speed: bool = True
    """measure the speed, and the error of inversion"""
    still: bool = True
    """measure what standing still returns"""
    repeats: int = 15
    """of each measurement"""
    device: str = "cpu"
    """where soft learners learn, on a GPU with their steps as CUDA graphs, and where the speed is measured; rows of the
    speed elsewhere stay"""


def main(arguments: Arguments) -> None:
    """Make the missing runs, measure the speed, then the results file, its plot and the page's tables."""
    verify_known("method", arguments.methods, [*METHODS])
    verify_usable(arguments.device)
    if arguments.train:
        tasks, methods, steps = arguments.tasks, arguments.methods, arguments.steps
        if arguments.hierarchy:
            tasks, methods, steps = ("Ant-v5",), HIERARCHIES, 2 * steps
        there = {run_of(item) for item in read_rows(RESULTS) + collected(arguments.runs)}
        jobs: list[tuple[str, str, int, tuple[int, ...]]] = []
        for task in tasks:
            for method in methods:
                missing = [seed for seed in arguments.seeds if (task, method, steps, seed) not in there]
                # Soft learners learn all their seeds at once.
                parts = [(seed,) for seed in missing] if method in BASELINES else [tuple(missing)] if missing else []
                jobs += [(task, method, steps, part) for part in parts]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(lambda job: run(arguments.runs, arguments.device, *job), jobs))
    rows = collected(arguments.runs)
    # Runs made elsewhere, whose folders are not here, stay in the file; so does the speed, unless measured anew.
    made = {run_of(item) for item in rows}
    kept = [item for item in read_rows(RESULTS) if run_of(item) not in made]
    measured = speed(arguments.repeats, arguments.device) + inversion(arguments.repeats) if arguments.speed else []
    measured += standing_still() if arguments.still else []
    again = {measurement_of(item) for item in measured}
    rows += [item for item in kept if measurement_of(item) not in again] + measured
    write_results(RESULTS, "lsp", rows, command="python benchmarks/lsp.py")
    report_measured(rows)
    print(table(rows))
    plot(rows, HERE / "results" / "lsp.png")
    if arguments.runs == Arguments.runs:  # the whole set of runs, not somebody's trial
        PAGE.write_text(with_tables(PAGE.read_text(), rows))


# -- runs -------------------------------------------------------------------------------------------------------------


def run_of(item: dict[str, Any]) -> Run:
    """Return the run that a row is of: task, method, environment steps and seed."""
    return item["task"], item["method"], item["setting"].get("budget", 0), item["seed"]


def measurement_of(item: dict[str, Any]) -> tuple[str, bool, str | None]:
    """Return which measurement a row is of, if it is not of a run."""
    return item["task"], item["method"] == STILL, item["setting"].get("device")


def run(runs: Path, device: str, task: str, method: str, steps: int, seeds: tuple[int, ...]) -> None:
    """Make the runs of some seeds, soft learners' in one batch."""
    out = runs / task / f"{method}-{steps}-{'+'.join(map(str, seeds))}"
    given = [*METHODS[method], "--task", task, "--steps", str(steps), "--out", str(out), "--seed", *map(str, seeds)]
    given += ["--compile"] if method not in (*BASELINES, SPLINE) else []
    given += on(device) if method not in BASELINES else []
    if method in ONE_LEVEL_FIRST and not out.exists():
        take_on(runs / task / f"lsp-{steps // 2}-{'+'.join(map(str, seeds))}", out)
    make(HERE.parent / "examples" / "lsp_benchmark.py", given, f"{task}/{out.name}", out / "log.txt")


def take_on(finished: Path, out: Path) -> None:
    """Begin a run with what the lowest level of another has learnt, for all seeds, if that one is finished."""
    levels = [*finished.glob("**/level-0")]
    if levels and all((level.parent / "result.json").exists() for level in levels):
        part = out.with_name(f"{out.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        for level in levels:
            shutil.copytree(level, part / level.relative_to(finished))
        part.rename(out)


def collected(runs: Path) -> list[dict[str, Any]]:
    """Return the rows of all finished runs, by task, method, budget and seed."""
    methods = [*METHODS]
    rows = collect(runs, methods, 2)
    return sorted(rows, key=lambda item: (item["task"], methods.index(item["method"]), *run_of(item)[2:]))


# -- what came out ----------------------------------------------------------------------------------------------------


def curves(rows: list[dict[str, Any]], task: str, method: str, budget: int) -> dict[int, dict[int, float]]:
    """Return the return by seed and step."""
    found: dict[int, dict[int, float]] = {}
    for item in rows:
        if run_of(item)[:3] == (task, method, budget) and item["metric"] == "return":
            found.setdefault(item["seed"], {})[item["setting"]["steps"]] = item["value"]
    return found


def ends(rows: list[dict[str, Any]], task: str, method: str, budget: int) -> dict[int, float]:
    """Return for each seed the mean return of the evaluations in the last tenth of its steps."""
    return {
        seed: float(np.mean([value for step, value in curve.items() if step > 0.9 * budget]))
        for seed, curve in curves(rows, task, method, budget).items()
    }


def budgets(rows: list[dict[str, Any]], task: str) -> list[int]:
    """Return the numbers of steps for which a task was learnt."""
    return sorted({run_of(item)[2] for item in rows if item["task"] == task and item["method"] != STILL})


def table(rows: list[dict[str, Any]]) -> str:
    """Return what the runs end with, as a Markdown table: mean, 95% interval where there are three seeds, and seeds."""
    lines = ["| task | steps | method (seeds) | return | without noise |", "|---|---|---|---|---|"]
    for task in TASKS:
        if resting := select(rows, STILL, "return", task=task):
            lines.append(f"| {task} | 0 | {STILL} ({len(resting)} episodes) | {_cell(resting)} |  |")
        for budget in budgets(rows, task):
            for method in METHODS:
                if values := [*ends(rows, task, method, budget).values()]:
                    quiet = select(rows, method, "return_mode", task=task, budget=budget)
                    cells = f"{method} ({len(values)}) | {_cell(values)} | {_cell(quiet)}"
                    lines.append(f"| {task} | {budget:,} | {cells} |")
    return "\n".join([*lines, *uncommitted([item for item in rows if item["task"] in TASKS])])


def summary(rows: list[dict[str, Any]]) -> str:
    """Return how those compared end after the usual number of steps, a task a line, as a Markdown table."""
    lines = [f"| | {' | '.join(COMPARED)} | {STILL} |", "|---" * (len(COMPARED) + 2) + "|"]
    for task in TASKS:
        found = [[*ends(rows, task, method, Arguments.steps).values()] for method in COMPARED]
        cells = [f"{_cell(values)} ({len(values)})" if values else "" for values in found]
        cells.append(_cell(select(rows, STILL, "return", task=task)))
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


def with_tables(page: str, rows: list[dict[str, Any]]) -> str:
    """Return the page with both tables."""
    return with_table(with_table(page, summary(rows), "LSP"), table(rows))


def _cell(values: list[float]) -> str:
    mean, half, seeds = mean_interval(values)
    return "" if not seeds else f"{round(mean):,}" + (f" ± {half:,.0f}" if seeds >= 3 else "")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw return against environment steps, with 95% intervals over seeds where there are three, variants without."""
    panels = [(task, budget) for task in TASKS for budget in budgets(rows, task)]
    if not panels:
        return
    wide = min(3, len(panels))
    high = math.ceil(len(panels) / wide)
    figure, grid = plt.subplots(high, wide, figsize=(4.4 * wide, 3.4 * high), layout="constrained", squeeze=False)
    shown: dict[str, Any] = {}
    for axes, (task, budget) in zip(grid.flat, panels, strict=False):
        for number, method in enumerate(METHODS):
            seeds = curves(rows, task, method, budget)
            if not seeds:
                continue
            steps = sorted(set.intersection(*(set(curve) for curve in seeds.values())))
            points = [mean_interval([curve[step] for curve in seeds.values()]) for step in steps]
            mean, half = (np.nan_to_num([point[part] for point in points]) for part in (0, 1))
            variant = number >= 10  # there are no more colours: from here on their light halves
            color = plt.get_cmap("tab20")(2 * (number % 10) + variant)
            (shown[method],) = axes.plot(steps, mean, "--" if variant else "-", color=color, label=method)
            if variant:
                continue
            if len(seeds) >= 3:
                axes.fill_between(steps, mean - half, mean + half, color=color, alpha=0.15, lw=0)
            else:
                for curve in seeds.values():
                    axes.plot(steps, [curve[step] for step in steps], color=color, lw=0.6, alpha=0.6)
        if resting := select(rows, STILL, "return", task=task):
            shown[STILL] = axes.axhline(float(np.mean(resting)), color="black", ls=":", lw=1)
        axes.set_title(f"{task}, {budget // 1000}k steps", loc="left", fontsize=10)
        axes.set(xlabel="environment steps", ylabel="return")
        axes.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:.0f}k")
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    figure.legend([*shown.values()], [*shown], loc="outside lower center", ncols=min(len(shown), 3 * wide), fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


# -- standing still, speed and inversion ------------------------------------------------------------------------------


def standing_still(tasks: Sequence[str] = TASKS, episodes: int = 5) -> list[dict[str, Any]]:
    """Return what episodes return in which every action is in the middle of its range."""
    rows = []
    for task in tasks:
        with closing(gymnasium.make(task)) as env:
            box: Any = env.action_space
            start = time.perf_counter()
            found = pc.envs.evaluate_policy(env, lambda _, box=box: (box.low + box.high) / 2, episodes, seed=FIRST_SEED)
            seconds = time.perf_counter() - start
        rows += [row(STILL, task, "return", value, seed=n, seconds=seconds) for n, value in enumerate(found["return"])]
    return rows


def transitions(seed: int, device: str) -> Any:
    """Return a full replay."""
    memory = pc.inference.Replay(10_000, OBSERVATIONS, ACTIONS, seed=seed, device=device)
    draw = np.random.default_rng(seed)
    for _ in range(10_000):
        seen, following = draw.standard_normal((2, OBSERVATIONS)).astype(np.float32)
        action = draw.uniform(-1, 1, ACTIONS).astype(np.float32)
        memory.add(seen, action, draw.standard_normal(), following, False)
    return memory


def learner_of(policy: Any, device: str, capture: bool = False) -> Callable[[], object]:
    """Return an update of soft actor-critic, its batch drawn from a replay."""
    learner = pc.inference.SoftActorCritic(policy, OBSERVATIONS, ACTIONS, capture=capture).to(device)
    memory = transitions(0, device)
    return lambda: learner.update(memory.sample(BATCH))


def batch_of(seeds: int, device: str, **options: bool) -> Callable[[], object]:
    """Return an update of several learners with flows, each with batches of a replay of its own."""
    policies = [pc.guides.FlowPolicy(OBSERVATIONS, ACTIONS) for _ in range(seeds)]
    learners = [pc.inference.SoftActorCritic(policy, OBSERVATIONS, ACTIONS) for policy in policies]
    batch = pc.inference.SeedBatch(learners, **options).to(device)
    memories = [transitions(seed, device) for seed in range(seeds)]

    def update() -> object:
        given = zip(*(memory.sample(BATCH) for memory in memories), strict=True)
        return batch.update(pc.inference.ReplayBatch(*map(torch.stack, given)))

    return update


def stable_baselines(device: str) -> Callable[[], object]:
    """Return an update of stable-baselines3's SAC at the same sizes, its batch drawn from its replay."""
    import stable_baselines3 as sb3
    from stable_baselines3.common.logger import Logger

    env = gymnasium.make("HalfCheetah-v5")
    net: dict[str, Any] = {"net_arch": [HIDDEN, HIDDEN]}
    model = sb3.SAC("MlpPolicy", env, batch_size=BATCH, buffer_size=10_000, policy_kwargs=net, seed=0, device=device)
    model.set_logger(Logger(None, []))
    draw, memory = np.random.default_rng(0), model.replay_buffer
    assert memory is not None
    for _ in range(10_000):
        seen, following = draw.standard_normal((2, 1, OBSERVATIONS)).astype(np.float32)
        action = draw.uniform(-1, 1, (1, ACTIONS)).astype(np.float32)
        memory.add(seen, following, action, draw.standard_normal(1), np.zeros(1), [{}])
    return lambda: model.train(gradient_steps=1, batch_size=BATCH)


def speed(repeats: int, device: str = "cpu", updates: int = 200, compiled: bool = True) -> list[dict[str, Any]]:
    """Return updates a second of soft actor-critic, and `speed_ratio`, of ours to stable-baselines3's.

    ``lsp-compiled`` is one learner whose update is compiled, ``lsp-3-seeds`` and ``lsp-8-seeds`` are so many in one
    compiled update, which counts as so many. On a GPU the whole update is a CUDA graph of its kernels, those of torch
    in ``lsp-captured`` and ``lsp-8-seeds-captured``, in the others those of the compiler.
    """
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    kinds = {
        "sac-sb3": stable_baselines(device),
        "lsp": learner_of(pc.guides.FlowPolicy(OBSERVATIONS, ACTIONS), device),
        "sac-gaussian": learner_of(pc.guides.GaussianPolicy(OBSERVATIONS, ACTIONS), device),
    }
    counts = {"lsp-compiled": 1, "lsp-3-seeds": 3, "lsp-8-seeds": 8, "lsp-8-seeds-captured": 8}
    setting: dict[str, Any] = {"batch": BATCH, "hidden": HIDDEN, "device": torch.device(device).type}
    if setting["device"] == "cuda":
        kinds["lsp-captured"] = learner_of(pc.guides.FlowPolicy(OBSERVATIONS, ACTIONS), device, capture=True)
        kinds["lsp-8-seeds-captured"] = batch_of(counts["lsp-8-seeds-captured"], device, capture=True)
        # These stay in the file when others are made anew.
        setting |= {"gpu": torch.cuda.get_device_name(device), "torch": torch.__version__, "revision": revision()}
    if compiled:
        for method in ("lsp-compiled", "lsp-3-seeds", "lsp-8-seeds"):
            kinds[method] = batch_of(counts[method], device, compile=True, capture=True)
    rows = []
    for repeat in range(-1, repeats):  # the first is for warming up
        rates = {}
        for method, update in kinds.items():
            start = time.perf_counter()
            for _ in range(updates):
                update()
            if setting["device"] == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - start
            rates[method] = (counts.get(method, 1) * updates / seconds, seconds)
        if repeat < 0:
            continue
        for method, (rate, seconds) in rates.items():
            found = {"updates_per_second": rate, "speed_ratio": rate / rates["sac-sb3"][0]}
            rows += [
                row(method, SPEED, metric, value, seed=repeat, seconds=seconds, **setting)
                for metric, value in found.items()
                if (method, metric) != ("sac-sb3", "speed_ratio")
            ]
    return rows


def inversion(repeats: int, steps: int = 1000) -> list[dict[str, Any]]:
    """Return the errors of inverting episodes of random actions through three levels of random weights."""
    rows = []
    for repeat in range(repeats):
        torch.manual_seed(repeat)
        levels = [pc.guides.FlowPolicy(OBSERVATIONS, ACTIONS, squash=number == 0) for number in range(3)]
        with torch.no_grad():  # far from the identity, at which flows begin
            for parameter in (parameter for level in levels for parameter in level.parameters()):
                parameter.add_(0.3 * torch.randn_like(parameter))
        stack = pc.envs.Hierarchy(levels)
        seen, actions = torch.randn(steps, OBSERVATIONS), 2 * torch.rand(steps, ACTIONS) - 1
        start = time.perf_counter()
        again = stack.actions(stack.latents(actions, seen)[-1], seen)
        error, seconds = float((again - actions).abs().max()), time.perf_counter() - start
        rows.append(
            row("lsp", INVERSION, "inversion_error", error, seed=repeat, seconds=seconds, levels=3, steps=steps)
        )
    return rows


def report_measured(rows: list[dict[str, Any]]) -> None:
    """Print the medians of the rows that are not of a run."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for item in rows:
        if item["task"] in (SPEED, INVERSION):
            device = item["setting"].get("device", "")
            found.setdefault((item["method"], item["metric"], device), []).append(item["value"])
    for (method, metric, device), values in found.items():
        print(f"{method:20} {metric:20} {device:4} {median(values):8.4g}  ({min(values):.4g} to {max(values):.4g})")


if __name__ == "__main__":
    main(tyro.cli(Arguments, args=command_line()))
