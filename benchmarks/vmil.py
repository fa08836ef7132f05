"""Remake results/vmil.json: imitation from a few demonstrations, with world models and without, and the plot.

    python benchmarks/vmil.py                                        # every run that is missing, then the plot
    python benchmarks/vmil.py --tasks walker-walk --methods observed dac --seeds 0 1 --steps 30000 --jobs 2
    python benchmarks/vmil.py --no-train                             # collect finished runs, measure the bounds, plot

Each run is `examples/vmil.py` in a process of one thread, with a folder of its own under RUNS; one that was stopped
goes on from its checkpoint. Rows: `return` at every evaluation (ten episodes, actions drawn), setting `frames`, two of
a step on DM Control; `test_return` and `test_success` of 50 episodes at the end, and those of the likeliest actions,
`..._of_mode`; `expert`, the mean return of the demonstrations; `foreseen`, the error of open-loop prediction, and
`foreseen_by_copying`, that of the last observation. Task `linear-gaussian`: the `evidence` log p(x) by the Kalman
filter, and the ELBOs of the exact posterior and of the filtering one, nats.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import linear_gaussian
import matplotlib
import numpy as np
import torch
import tyro

from pyrocontrol.inference import StepwiseKL_ELBO, read_rows, row, write_results
from training_runs import collect, command_line, make, verify_known, with_table

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend has to be set first)

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "vmil.json", HERE.parent / "docs" / "methods" / "vmil.md"
METHODS: dict[str, list[str]] = {
    "observed": ["--method", "observed"],
    "vmil": ["--method", "vmil"],
    "dac": ["--method", "dac"],
    "sqil": ["--method", "sqil"],
    "bc": ["--method", "bc"],
    "observed-penalty": ["--method", "observed", "--judge", "penalty"],
    "dac-penalty": ["--method", "dac", "--judge", "penalty"],
    "observed-density": ["--method", "observed", "--judge", "density"],
    "vmil-features": ["--method", "vmil", "--judged", "features"],
}


@dataclass
class Arguments:
    """Which runs to make."""

    tasks: tuple[str, ...] = ("walker-walk", "cheetah-run")
    """tasks of the example"""
    methods: tuple[str, ...] = ("observed", "vmil", "dac", "sqil", "bc")
    """which methods"""
    demos: tuple[int, ...] = (1,)
    """numbers of demonstrations"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """trials"""
    steps: int = 75_000
    """environment steps; a run of fewer steps can be gone on from with more"""
    jobs: int = 2
    """runs side by side"""
    data: Path = HERE / "runs" / "demonstrations"
    """where demonstrations are kept"""
    runs: Path = HERE / "runs" / "vmil"
    """where runs are kept"""
    train: bool = True
    """make the runs that are missing (else only collect and plot)"""


def run(arguments: Arguments, task: str, method: str, demos: int, seed: int) -> None:
    """Make one run, or go on with it."""
    out = arguments.runs / task / f"{method}-{demos}-{seed}"
    given = [*METHODS[method], "--task", task, "--demos", str(demos), "--seed", str(seed), "--out", str(out)]
    given += ["--steps", str(arguments.steps), "--data", str(arguments.data)]
    make(HERE.parent / "examples" / "vmil.py", given, f"{task} {out.name}", out / "log.txt")


def run_of(item: dict[str, Any]) -> tuple[Any, ...]:
    """Return the run that a row is of."""
    return item["task"], item["method"], item["setting"].get("demos"), item["seed"]


def score(
    rows: list[dict[str, Any]], task: str, method: str, demos: int, metric: str = "return"
) -> dict[int, dict[int, float]]:
    """Return by seed and frames the return over the experts'."""
    found: dict[int, dict[int, float]] = {}
    for item in rows:
        if item["task"] == task and item["method"] == method and item["metric"] == metric:
            if item["setting"]["demos"] == demos:
                experts = [
                    other["value"] for other in rows if other["metric"] == "expert" and run_of(other) == run_of(item)
                ]
                found.setdefault(item["seed"], {})[item["setting"]["frames"]] = item["value"] / experts[0]
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Return the returns over the expert's as a Markdown table, at 60,000 frames and over the last third."""
    heads = ["task", "demonstrations", "method", "at 60,000 frames", "last third", "of the best"]
    heads += ["in training, last third", "frames", "seeds", "success in the test"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    kinds = {(item["task"], item["setting"]["demos"], item["method"]) for item in rows if item["metric"] == "return"}
    for task, demos, method in sorted(kinds, key=lambda kind: (kind[0], kind[1], [*METHODS].index(kind[2]))):
        by_seed = score(rows, task, method, demos)
        at, late, share, last = [], [], [], []
        for curve in by_seed.values():
            frames = sorted(curve)
            last.append(frames[-1])
            at += [curve[60_000]] if 60_000 in curve else []
            third = [curve[n] for n in frames if n >= frames[-1] * 2 / 3]
            late.append(float(np.mean(third)))
            share.append(late[-1] / max(curve.values()))
        training = [
            float(np.mean([value for n, value in curve.items() if n >= max(curve) * 2 / 3]))
            for curve in score(rows, task, method, demos, "training_return").values()
        ]
        cells = [task, str(demos), method]
        cells += [f"{np.mean(values):.2f}" if values else "" for values in (at, late, share, training)]
        lines.append(
            "| " + " | ".join([*cells, f"{min(last):,}", str(len(by_seed)), success(rows, task, method, demos)]) + " |"
        )
    return "\n".join(lines)


def success(rows: list[dict[str, Any]], task: str, method: str, demos: int) -> str:
    """Return the share of test episodes that succeeded, with its 95% interval (Wilson's), or nothing."""
    kind = task, method, "test_success", demos
    found = [
        item["value"]
        for item in rows
        if (item["task"], item["method"], item["metric"], item["setting"].get("demos")) == kind
    ]
    if not found:
        return ""
    share, count, z = np.mean(found), len(found), 1.96
    middle, width = share + z**2 / (2 * count), z * np.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    low, high = ((middle + side * width) / (1 + z**2 / count) for side in (-1, 1))
    return f"{share:.2f} ({low:.2f} to {high:.2f})"


def bounds(particles: int = 4000) -> list[dict[str, Any]]:
    """Return the evidence of a linear-Gaussian system, and the ELBOs of two posteriors, in double precision."""
    began, rows = time.perf_counter(), []
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    x, actions = linear_gaussian.data(8, 20)

    def add(method: str, metric: str, value: float) -> None:
        spent = time.perf_counter() - began
        rows.append(row(method, "linear-gaussian", metric, value, seed=0, seconds=spent, rows=8, steps=20))

    add("kalman-filter", "evidence", linear_gaussian.evidence(x, actions))
    for method, ahead in (("exact posterior", True), ("filtering posterior", False)):
        elbo = StepwiseKL_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
        add(method, "elbo", -elbo.loss(*linear_gaussian.system(ahead), x, actions))
    # Every sample of log p(x, z) - log q(z) is the evidence where q is the posterior.
    single = StepwiseKL_ELBO(max_plate_nesting=1).loss(*linear_gaussian.system(True, analytic=False), x, actions)
    add("exact posterior, one sampled log-ratio", "elbo", -single)
    torch.set_default_dtype(default)
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw return over the expert's against frames, a panel a task and number of demonstrations."""
    kinds = sorted({(item["task"], item["setting"]["demos"]) for item in rows if item["metric"] == "return"})
    figure, axes = plt.subplots(1, len(kinds), figsize=(4.5 * len(kinds), 3.6), squeeze=False, layout="constrained")
    for axis, (task, demos) in zip(axes[0], kinds, strict=True):
        for number, method in enumerate(METHODS):
            by_seed = score(rows, task, method, demos)
            if not by_seed:
                continue
            color = f"C{number}"
            if method == "bc":
                axis.axhline(np.mean([curve[0] for curve in by_seed.values()]), color=color, ls=":", label="bc")
                continue
            for curve in by_seed.values():
                axis.plot([*curve], [*curve.values()], color=color, alpha=0.3, linewidth=1)
            shared = sorted(set.intersection(*(set(curve) for curve in by_seed.values())))
            mean = [np.mean([curve[n] for curve in by_seed.values()]) for n in shared]
            axis.plot(shared, mean, color=color, label=f"{method} ({len(by_seed)})")
        axis.axhline(1, color="0.7", linewidth=1)
        axis.set_title(f"{task}, {demos} demonstration{'s' if demos > 1 else ''}", loc="left", fontsize=10)
        axis.xaxis.set_major_formatter(lambda frames, _: f"{frames / 1000:g}")
        axis.set(xlabel="frames, in thousands", ylabel="return over the expert's", ylim=(-0.03, 1.1))
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: Arguments) -> None:
    """Make the missing runs, then the results file, its plot and the page's table."""
    verify_known("method", arguments.methods, [*METHODS])
    if arguments.train:
        # Seed by seed, so that what there is at any time is balanced.
        jobs = [
            (t, m, d, s)
            for s in arguments.seeds
            for d in arguments.demos
            for t in arguments.tasks
            for m in arguments.methods
        ]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(lambda job: run(arguments, *job), jobs))
    rows = collect(arguments.runs, [*METHODS], 2)
    made = {run_of(item) for item in rows}
    rows += [item for item in read_rows(RESULTS) if run_of(item) not in made and item["task"] != "linear-gaussian"]
    rows.sort(key=lambda item: (*map(str, run_of(item)), item["setting"].get("frames", 0)))
    write_results(RESULTS, "vmil", rows + bounds(), command="python benchmarks/vmil.py")
    plot(rows, RESULTS.with_suffix(".png"))
    print(table(rows))
    if arguments.runs == Arguments.runs:  # the whole set of runs, not somebody's trial
        PAGE.write_text(with_table(PAGE.read_text(), table(rows)))


if __name__ == "__main__":
    main(tyro.cli(Arguments, args=command_line()))
