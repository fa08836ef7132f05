"""Remake results/skills.json: skills that add up, on the Bullet humanoid, and the plot beside it.

    python benchmarks/skills.py                            # every run that is missing, then speed, then the plot
    python benchmarks/skills.py --composites spinkick --methods off tied --seeds 0 --jobs 1 --no-speed
    python benchmarks/skills.py --no-train --no-speed      # collect finished runs and plot

Each run is `examples/skills_humanoid.py` in a process of one thread, with a folder of its own under RUNS; a run that
was stopped goes on from its checkpoint. Runs are evaluated on composites that no run was trained on.

What the rows say: see `rows_of` in the example; for the speed rows, `speed` here. Those are measured on one thread,
what is compared interleaved in one process; every repeat is a row, its seed the number of the repeat.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyro
import torch
import tyro
from gymnasium import spaces
from torch import Tensor

import pyrocontrol as pc
from pyrocontrol.envs import point_skills
from pyrocontrol.inference import Summary, mean_interval, read_rows, row, select, summary, write_results
from training_runs import command_line, make, verify_known, with_table

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend has to be set first)

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "skills.json"
PAGE = HERE.parent / "docs" / "methods" / "skills.md"
PAPER = ["--axis", "time", "--no-origin", "--learning-rate", "1e-3", "--rotations", "quaternions"]  # what the paper has
METHODS: dict[str, list[str]] = {
    "additive": [],
    "additive-off": ["--mi", "off"],
    "additive-no-origin": ["--mi", "off", "--no-origin"],
    "additive-state": ["--mi", "off", "--gains", "state"],
    "additive-wavenet": ["--mi", "off", "--base", "wavenet"],
    "origin-alone": ["--mi", "off", "--axis", "time"],
    "off": [*PAPER, "--mi", "off"],
    "variational": [*PAPER, "--mi", "variational"],
    "nonvariational": [*PAPER, "--mi", "nonvariational"],
    "tied": [*PAPER, "--mi", "tied"],
    "infonce": [*PAPER, "--mi", "infonce"],
    "literal": [*PAPER, "--mi", "literal"],
    "tied-10": [*PAPER, "--mi", "tied", "--weight", "10"],
    "off-mlp": [*PAPER, "--mi", "off", "--axis", "mlp"],
    "off-residual": [*PAPER, "--mi", "off", "--residual"],
}
# By task, how the example names it; joints: without physics.
COMPOSITES: dict[str, list[str]] = {name: ["--composite", name] for name in ("spinkick", "backflip", "toy")}
SUMS = ("kick+spin+jump", "jump+roll")
COMPOSITES |= {name: ["--composite", name] for name in SUMS}
COMPOSITES |= {f"joints.{name}": ["--composite", name, "--joints"] for name in SUMS}
# Of the table.
RUNS: dict[str, tuple[str, ...]] = {
    "spinkick": ("additive-off", "off", "variational", "nonvariational", "tied", "off-mlp", "off-residual"),
    "backflip": ("additive-off", "off", "variational", "nonvariational", "tied", "off-mlp"),
    "toy": (
        *("additive", "additive-off", "additive-no-origin", "additive-state", "additive-wavenet", "origin-alone"),
        *("off", "variational", "nonvariational", "tied"),
    ),
    "kick+spin+jump": ("additive-off",),
} | {f"joints.{name}": ("additive-off",) for name in SUMS}
REFERENCES = ("mean-state", "teacher")
OTHER_DYNAMICS = (
    "off-mlp",
    "off-residual",
    "additive-state",
    "additive-wavenet",
    "origin-alone",
)  # in the table, not in the plot
# Of the table: name, metric and embedding.
COLUMNS = (
    ("sum", "state_mse", "sum"),
    ("encoded", "state_mse", "encoded"),
    ("part", "state_mse", "part"),
    ("own", "state_mse", "own"),
    ("embedding", "embedding_error", "sum"),
    ("cycle", "cycle_fraction", "sum"),
    ("tracking", "tracking_error", "sum"),
    ("nats", "dynamics_nats", "own"),
)
STATE, ACTION, BATCH, STEPS = 197, 36, 16, 45
SPEED = "speed"  # the task of the rows that are not of a run
CLIPS = ("joints.spinkick", "joints.backflip")  # of rows without a model
PAIRS = "pairs"  # of runs with pairs of the point's skills
SHOWN = (0, 5, 15)
LENGTHS = (15, 30, 45, 90, 180)
# By method, metric and setting.
Timed = dict[tuple[str, str, tuple[tuple[str, Any], ...]], Callable[[], object]]


@dataclass
class Arguments:
    """Which runs to make."""

    composites: tuple[str, ...] = tuple(RUNS)
    """which composites; there is also jump+roll, with physics"""
    methods: tuple[str, ...] | None = None
    """which methods; by default those that the table has of a composite"""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """trials"""
    jobs: int = 2
    """runs side by side"""
    runs: Path = HERE / "runs" / "skills"
    """where runs are kept"""
    train: bool = True
    """make the runs that are missing"""
    speed: bool = True
    """measure the speed"""
    repeats: int = 9
    """of each measurement of speed"""
    pairs: bool = True
    """make the runs with pairs shown that are missing"""
    clips: bool = True
    """compare the humanoid's clips with their sums"""


# -- runs -------------------------------------------------------------------------------------------------------------


def folder(runs: Path, composite: str, method: str, seed: int) -> Path:
    """Return the folder of one run."""
    return runs / f"{composite}-{method}-{seed}"


def run_of(item: dict[str, Any]) -> tuple[str, str, int]:
    """Return the run that a row is of."""
    return item["task"], item["setting"].get("run", item["method"]), item["seed"]


def run(arguments: Arguments, composite: str, method: str, seed: int) -> None:
    """Make one run unless it is there."""
    out = folder(arguments.runs, composite, method, seed)
    if (out / "result.json").exists() or (composite, method, seed) in {run_of(item) for item in read_rows(RESULTS)}:
        return
    given = [*METHODS[method]]
    given += [*COMPOSITES[composite], "--seed", str(seed), "--out", str(out)]
    coordinates = "quaternions" if "quaternions" in METHODS[method] else "vectors"
    given += ["--demos", str(arguments.runs / f"{composite}-{coordinates}.npz")]
    make(HERE.parent / "examples" / "skills_humanoid.py", given, out.name, out / "log.txt")


def collect(arguments: Arguments) -> list[dict[str, Any]]:
    """Return the rows of all finished runs under RUNS, by composite, method and seed."""
    rows = []
    referred: set[tuple[Any, ...]] = set()
    for path in sorted(arguments.runs.glob("*/result.json")):
        composite, _, method = path.parent.name.rsplit("-", 1)[0].partition("-")
        if method not in METHODS:
            continue
        content = json.loads(path.read_text())
        last = max(item["setting"].get("step", 0) for item in content["rows"])
        for item in content["rows"]:
            if item["method"] in REFERENCES:
                # It keeps its name, and is the same for all runs of a composite: the setting names the first of them.
                named = composite, item["method"], item["metric"], item["setting"].get("embedding")
                if named in referred:
                    continue
                referred.add(named)
            elif not _is_kept(item, last):
                continue
            own = item["method"] if item["method"] in REFERENCES else method
            made = {"revision": content["revision"], "run": method}
            rows.append(item | {"method": own, "task": composite, "setting": item["setting"] | made})
    return rows


def _is_kept(item: dict[str, Any], last: int) -> bool:
    """Whether a row is kept: everything of the last evaluation; of those before, what the plot shows."""
    shown = item["metric"] == "state_mse" and item["setting"].get("embedding") in ("sum", "encoded")
    return shown or item["setting"].get("step", last) == last


# -- speed ------------------------------------------------------------------------------------------------------------


def random_demonstrations(steps: int) -> pc.envs.Demonstrations:
    """Return random trajectories of the humanoid's sizes: what an update costs does not depend on their values."""
    rng = np.random.default_rng(0)
    box = spaces.Box(-1, 1, (ACTION,), np.float32)
    episodes = [
        pc.envs.Episode(
            rng.normal(size=(steps + 1, STATE)).astype(np.float32),
            rng.uniform(-1, 1, (steps, ACTION)).astype(np.float32),
        )
        for _ in range(BATCH)
    ]
    demos = pc.envs.Demonstrations.from_episodes(episodes, box)
    return demos.replace(task=torch.eye(2)[torch.arange(BATCH) % 2])


def skills_for(demos: pc.envs.Demonstrations, axis: str = "time") -> tuple[Any, Any]:
    """Return the example's model of the humanoid and its guide."""
    pyro.set_rng_seed(0)
    skills = pc.models.TrajectoryCVAE(demos.observation_space, demos.action_space, axis=axis)
    return skills, pc.guides.TrajectoryGuide(skills)


def update_of(demos: pc.envs.Demonstrations, kind: str, axis: str = "time") -> Callable[[], object]:
    """Return one training update on a batch of all demonstrations."""
    skills, guide = skills_for(demos, axis)
    tuples = 2 if kind == "infonce" else 8  # as in the example
    mi = pc.inference.MutualInformation(skills, guide, demos, ("a", "b"), names=("a", "b"), kind=kind, tuples=tuples)
    optimizer = pyro.optim.PyroOptim(torch.optim.Adam, {"lr": 1e-3})
    svi = pyro.infer.SVI(mi.model, guide, optimizer, pc.inference.StepwiseKL_ELBO())

    def update() -> object:
        pyro.clear_param_store()
        return svi.step(demos)

    return update


def evaluating_the_prefix(skills: Any, z: Tensor, first: Tensor, steps: int) -> Tensor:
    """Sample a trajectory as one would without a cache: the network is run over all states so far for each new one."""
    dynamics, states = skills.dynamics, first.unsqueeze(1)
    for _ in range(steps):
        features = dynamics.net(states, z)[:, -1]
        mean = dynamics.head.loc(features)
        s = torch.addcmul(mean, dynamics.head.scales(features), torch.randn_like(mean))
        states = torch.cat([states, s.unsqueeze(1)], 1)
    return states


def measured(timed: Timed, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield rows of seconds: every function once to warm up, then all in turn, again and again."""
    for function in timed.values():
        function()
    for repeat in range(repeats):
        for (method, metric, setting), function in timed.items():
            start = time.perf_counter()
            function()
            seconds = time.perf_counter() - start
            yield row(method, SPEED, metric, seconds, seed=repeat, seconds=seconds, **dict(setting))


def speed(repeats: int) -> list[dict[str, Any]]:
    """Return what updates and samples cost, in seconds.

    `update_seconds`, setting `batch`, `steps`, `axis`: one update of 16 trajectories of 197 state numbers, the method
    being the `mi` choice. `sample_seconds`, setting `steps`: 16 trajectories sampled from the dynamics, methods
    `cached` and `prefix`.
    """
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    demos = random_demonstrations(STEPS)
    at = (("batch", BATCH), ("steps", STEPS), ("axis", "time"))
    kinds = ("off", "variational", "nonvariational", "tied", "infonce")
    updates: Timed = {(kind, "update_seconds", at): update_of(demos, kind) for kind in kinds}
    rows = list(measured(updates, repeats))
    growth: Timed = {}
    for steps in LENGTHS:
        setting = (("batch", BATCH), ("steps", steps), ("axis", "time"))
        growth["tied", "update_seconds", setting] = update_of(random_demonstrations(steps), "tied")
    rows += [item for item in measured(growth, repeats) if item["setting"]["steps"] != STEPS]
    skills, _ = skills_for(demos)
    z, first = torch.randn(BATCH, skills.latent), torch.randn(BATCH, STATE)
    samples: Timed = {}
    for steps in LENGTHS:
        setting = (("batch", BATCH), ("steps", steps), ("axis", "time"))
        samples["cached", "sample_seconds", setting] = skills.dynamics_of(z, first, steps).sample
        prefix = functools.partial(evaluating_the_prefix, skills, z, first, steps)
        samples["prefix", "sample_seconds", setting] = prefix
    with torch.no_grad():
        rows += measured(samples, repeats)
    along, _ = skills_for(demos, "components")
    at = (("batch", BATCH), ("steps", STEPS), ("axis", "components"))
    slow: Timed = {
        ("off", "update_seconds", at): update_of(demos, "off", "components"),
        ("cached", "sample_seconds", at): along.dynamics_of(z, first, STEPS).sample,
    }
    return rows + list(measured(slow, min(repeats, 3)))


def report_speed(rows: list[dict[str, Any]]) -> None:
    """Print medians, and how many times faster than the prefix the cache is."""
    of: dict[tuple[Any, ...], list[float]] = {}
    for item in rows:
        if item["task"] == SPEED:
            key = item["metric"], item["setting"]["axis"], item["setting"]["steps"], item["method"]
            of.setdefault(key, []).append(item["value"])
    median = {key: float(np.median(values)) for key, values in of.items()}
    for key in sorted(median):
        print(f"{key[0]:>15} {key[1]:>10} T={key[2]:<4} {key[3]:>15} {median[key] * 1e3:9.1f} ms")
    for steps in LENGTHS:
        pair = [("sample_seconds", "time", steps, method) for method in ("prefix", "cached")]
        if all(key in median for key in pair):
            print(f"T={steps}: the cache is {median[pair[0]] / median[pair[1]]:.1f} times as fast as the prefix")


# -- without a model --------------------------------------------------------------------------------------------------


def sums_of_clips() -> list[dict[str, Any]]:
    """Return how far the clips' own sum is from the composite, by the angles of joints and without any model.

    Metric `state_mse` (rad^2), tasks `joints.spinkick` and `joints.backflip`. Methods: `clips`, the sum of the clips;
    `clips-fitted`, the best of all sums with weights and starts that are fitted to the composite itself, starts in
    steps of 0.1 s; `clips-part`, the best single clip; `mean-state`, the mean pose of the clips.
    """
    from pyrocontrol.envs.humanoid.experts import COMPOSITES as OF
    from pyrocontrol.envs.humanoid.joints import clip_vectors
    from pyrocontrol.envs.humanoid.motion import CONTROL_RATE, HumanoidMotion, joint_vectors

    rows = []
    for composite, parts in OF.items():
        clips = [HumanoidMotion.load(part) for part in parts]
        meant = clip_vectors(HumanoidMotion.load(composite))
        each = np.stack([clip_vectors(clip) for clip in clips])
        windows = [
            [
                joint_vectors([clip.at(start + tick / CONTROL_RATE) for tick in range(len(meant))])[1:].ravel()
                for start in np.arange(0, clip.seconds, 0.1)
            ]
            for clip in clips
        ]
        target, fitted = meant[1:].ravel(), math.inf
        for chosen in itertools.product(*windows):
            columns = np.stack(chosen, 1)
            weights = np.linalg.lstsq(columns, target, rcond=None)[0]
            fitted = min(fitted, float(np.square(columns @ weights - target).mean()))
        found = {
            "clips": np.square(each.sum(0) - meant)[1:].mean(),
            "clips-fitted": fitted,
            "clips-part": np.square(each - meant)[:, 1:].mean((1, 2)).min(),
            "mean-state": np.square(each.mean((0, 1)) - meant)[1:].mean(),
        }
        rows += [
            row(method, f"joints.{composite}", "state_mse", float(value), seed=0, seconds=0.0, embedding="sum")
            for method, value in found.items()
        ]
    return rows


# -- composites shown -------------------------------------------------------------------------------------------------


def pairs_of(seed: int) -> list[tuple[str, str]]:
    """Return all pairs of the point's skills, in the order in which they are shown; the last six never are."""
    pairs = list(itertools.combinations(point_skills.POINT_SKILLS, 2))
    return [pairs[index] for index in np.random.default_rng(seed).permutation(len(pairs))]


def with_pairs(method: str, shown: int, seed: int, updates: int = 1_000) -> list[dict[str, Any]]:
    """Return the rows of a model of the point's seven skills of which ``shown`` pairs were shown, too.

    Metric `state_mse` of six pairs that were not: setting `shown`, `embedding` `sum` (of the two, by `compose`) or
    `part` (the better of the two, pair by pair). Methods: `additive`, and `wavenet`, which does not add.
    """
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    began, names, pairs = time.perf_counter(), point_skills.POINT_SKILLS, pairs_of(seed)
    sets = [([*names, point_skills.REST], 10, 0), (["+".join(pair) for pair in pairs[:shown]], 5, 1)]
    episodes = [
        episode
        for skills, count, number in sets
        if skills
        for episode in point_skills.demonstrations(skills, count, seed=number, names=names).to_episodes()
    ]
    held_out = point_skills.demonstrations(["+".join(pair) for pair in pairs[-6:]], 3, seed=2, names=names)
    spaces_of = held_out.action_space, held_out.observation_space
    train = pc.envs.Demonstrations.from_episodes(episodes, *spaces_of).to(dtype=torch.float32)
    held_out = held_out.to(dtype=torch.float32)
    latent = 16
    axis = {
        "additive": lambda: pc.models.AdditiveDynamics(5, latent, horizon=30, basis=24),
        "wavenet": lambda: pc.models.WaveNetDynamics(5, latent, channels=32, features=64, dilations=(1, 2, 4, 8, 16)),
    }[method]()
    hidden = None if method == "additive" else (64, 64)
    skills = pc.models.TrajectoryCVAE(*spaces_of[::-1], latent=latent, hidden=hidden, axis=axis, names=names)
    skills.normalize(train)
    guide = pc.guides.TrajectoryGuide(skills, encoder_size=32)
    optimizer = pyro.optim.PyroOptim(torch.optim.Adam, {"lr": 3e-3})
    svi = pyro.infer.SVI(skills.model, guide, optimizer, pc.inference.StepwiseKL_ELBO())
    pc.inference.fit(svi, train, steps=updates, batch_size=16, seed=seed, clip=10.0, progress=False)
    with torch.no_grad():
        skills.settle(guide.posterior(train).mean, train.task)

    def errors(weights: list[dict[str, float]]) -> np.ndarray:
        z = torch.stack([skills.compose(each, anyway=True) for each in weights]).repeat_interleave(3, 0)
        made = skills.generate(z, held_out.observations[:, 0], 30)
        return (made - held_out.observations)[:, 1:].square().mean((1, 2)).unflatten(0, (6, 3)).mean(1).numpy()

    alone = [errors([{pair[place]: 1.0} for pair in pairs[-6:]]) for place in (0, 1)]
    found = {"sum": errors([dict.fromkeys(pair, 1.0) for pair in pairs[-6:]]), "part": np.minimum(*alone)}
    spent, setting = time.perf_counter() - began, {"shown": shown, "updates": updates}
    return [
        row(method, PAIRS, "state_mse", float(value.mean()), seed=seed, seconds=spent, embedding=kind, **setting)
        for kind, value in found.items()
    ]


def plot_pairs(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the error of sums that were not shown against the number of pairs that were, with 95% intervals."""
    found = [item for item in rows if item["task"] == PAIRS]
    if not found:
        return
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    lines = [("additive", "sum", "C0-"), ("wavenet", "sum", "C1-"), ("additive", "part", "k:")]
    for method, kind, style in lines:
        numbers = sorted({item["setting"]["shown"] for item in found if item["method"] == method})
        ends = [summary(found, method, "state_mse", shown=shown, embedding=kind) for shown in numbers]
        half = [0.0 if math.isnan(end.half) else end.half for end in ends]
        label = "better single part" if kind == "part" else f"sum, {method}"
        axes.errorbar(numbers, [end.mean for end in ends], half, fmt=style, label=label, capsize=3)
    axes.set(xlabel="pairs shown, of 15; six are held out", ylabel="state MSE of the held-out pairs", yscale="log")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


# -- what comes out ---------------------------------------------------------------------------------------------------


def main(arguments: Arguments) -> None:
    """Make the missing runs, measure the speed, then the results file and its plot."""
    verify_known("method", arguments.methods or (), [*METHODS])
    verify_known("composite", arguments.composites, [*COMPOSITES])
    if arguments.train:
        arguments.runs.mkdir(parents=True, exist_ok=True)
        # Seed by seed, so that what there is at any time is balanced.
        runs = [(c, m) for c in arguments.composites for m in arguments.methods or RUNS.get(c, ("additive-off",))]
        jobs = [(*run, seed) for seed in arguments.seeds for run in runs]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(lambda job: run(arguments, *job), jobs))
    rows = collect(arguments)
    # Runs made elsewhere, whose folders are not here, stay in the file; so does the speed, unless measured anew.
    made = {run_of(item) for item in rows}
    kept = [item for item in read_rows(RESULTS) if run_of(item) not in made]
    measured_anew = speed(arguments.repeats) if arguments.speed else []
    rows += [item for item in kept if not (measured_anew and item["task"] == SPEED)] + measured_anew
    if arguments.clips:
        rows = [item for item in rows if item["task"] not in CLIPS] + sums_of_clips()
    there = {(item["method"], item["setting"].get("shown"), item["seed"]) for item in rows if item["task"] == PAIRS}
    for seed, shown, method in itertools.product(arguments.seeds, SHOWN, ("additive", "wavenet")):
        if arguments.pairs and (method, shown, seed) not in there:
            rows += with_pairs(method, shown, seed)
            write_results(RESULTS, "skills", rows, command="python benchmarks/skills.py")
            print(f"{PAIRS}, {method}, {shown} shown, seed {seed}: done", flush=True)
    write_results(RESULTS, "skills", rows, command="python benchmarks/skills.py")
    report_speed(rows)
    print(table(rows))
    plot(rows, HERE / "results" / "skills.png")
    plot_pairs(rows, HERE / "results" / "skills_pairs.png")
    if arguments.runs == Arguments.runs:  # the whole set of runs, not somebody's trial
        PAGE.write_text(with_table(PAGE.read_text(), table(rows)))


def last_step(rows: list[dict[str, Any]], task: str, method: str) -> int | None:
    """Return the last update that a method's runs were evaluated at."""
    steps = [
        item["setting"]["step"]
        for item in rows
        if (item["task"], item["method"]) == (task, method) and "step" in item["setting"]
    ]
    return max(steps, default=None)


def table(rows: list[dict[str, Any]]) -> str:
    """Return what the runs end with, as a Markdown table: mean and 95% interval over seeds."""
    lines = ["| task | method (seeds) | less than off | " + " | ".join(name for name, _, _ in COLUMNS) + " |"]
    lines.append("|---|---|---|" + "---|" * len(COLUMNS))
    for task in COMPOSITES:
        found = [item for item in rows if item["task"] == task]
        plain = all_along(found, "off")
        for method in METHODS:
            step, along = last_step(rows, task, method), all_along(found, method)
            # Runs of a seed begin with the same weights and see the same batches.
            less = [plain[seed] - along[seed] for seed in sorted(along.keys() & plain.keys()) if method != "off"]
            ends = [summary(found, method, metric, step=step, embedding=kind) for _, metric, kind in COLUMNS]
            if along:
                cells = [_cell(each) for each in (mean_interval(less), *ends)]
                lines.append(f"| {task} | {method} ({len(along)}) | " + " | ".join(cells) + " |")
        for reference in REFERENCES:
            values = [
                select(found, reference, metric, embedding=_met_by(reference, kind)) for _, metric, kind in COLUMNS
            ]
            if any(values):
                cells = [f"{each[0]:.3g}" if each else "" for each in values]
                lines.append(f"| {task} | {reference} | | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def all_along(rows: list[dict[str, Any]], method: str) -> dict[int, float]:
    """Return for each seed the mean error of the sum over all evaluations: low if it is low soon."""
    of: dict[int, list[float]] = {}
    for item in rows:
        if (item["method"], item["metric"], item["setting"].get("embedding")) == (method, "state_mse", "sum"):
            of.setdefault(item["seed"], []).append(item["value"])
    return {seed: float(np.mean(values)) for seed, values in of.items()}


def _met_by(reference: str, kind: str) -> str | None:
    """The embedding under which a reference has its rows: it knows no embeddings."""
    return None if reference == "teacher" else "own" if kind == "own" else "composite" if kind == "sum" else "none"


def _cell(of: Summary) -> str:
    interval = "" if math.isnan(of.half) else f" ± {of.half:.2g}"
    return f"{of.mean:.3g}{interval}" if of.seeds else ""


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the error of generated states against updates, with 95% intervals over seeds."""
    tasks = [task for task in ("spinkick", "backflip", "toy") if any(item["task"] == task for item in rows)]
    if not tasks:
        return
    figure, grid = plt.subplots(2, len(tasks), figsize=(5 * len(tasks), 7), layout="constrained", squeeze=False)
    for column, task in enumerate(tasks):
        found = [item for item in rows if item["task"] == task]
        for axes, kind in zip(grid[:, column], ("sum", "encoded"), strict=True):
            for number, method in enumerate(method for method in METHODS if method not in OTHER_DYNAMICS):
                steps = sorted(
                    {
                        item["setting"]["step"]
                        for item in found
                        if item["method"] == method and item["metric"] == "state_mse" and "step" in item["setting"]
                    }
                )
                points = [summary(found, method, "state_mse", step=step, embedding=kind) for step in steps]
                if not steps:
                    continue
                # A single seed has no interval.
                mean, half = (np.nan_to_num([p[part] for p in points]) for part in (0, 1))
                axes.plot(steps, mean, color=f"C{number}", label=method)
                axes.fill_between(steps, mean - half, mean + half, color=f"C{number}", alpha=0.15, lw=0)
            base = select(found, "mean-state", "state_mse", embedding="composite")
            if base and not math.isnan(base[0]):
                axes.axhline(base[0], color="black", ls=":", lw=1, label="mean state of the training set")
            axes.set(xlabel="updates", ylabel="state MSE")
            what = "the sum of the sub-skills' embeddings" if kind == "sum" else "its own embedding"
            axes.set_title(f"{task}, generated from {what}", loc="left", fontsize=10)
    grid[0, -1].legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Arguments, args=command_line()))
