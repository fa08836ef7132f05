"""Remake results/bounds.json: how far the stepwise ELBO is below log p, and which structure each of the two finds.

    python benchmarks/bounds.py                # about half an hour on two cores
    python benchmarks/bounds.py --seeds 0 --updates 500

BubbleSort, lists of 2 to 5 digits. Every 250 updates, of all training traces: log p, the exact value of the guide's
ELBO and the gap between the two (nats a trace), and boundary_f1: of the likeliest call stacks given x (`posterior`), of
the program's own greedy calls (`own`) and of the guide's (`guide`). Methods:

* `hvil`: the stepwise ELBO; `hvil-exact`: the exact likelihood; same initial weights, prior, learning rates, batches;
* `hvil-after-exact`: from the program that the exact likelihood found, a guide is first fitted alone
  (`hvil-after-exact-guide`); then both go on with the stepwise ELBO: whether the bound keeps what it does not find;
* `hvil-exact-after-teacher`: from a program fitted to annotated traces (`annotated`), the exact likelihood without
  annotations: whether the teacher's program is an optimum of it, prior included;
* `hvil-exact-` and what is otherwise: `hot`, the temperature falls from 4 to 1 in the first half of training; `cold`,
  it rises from 1/2; `all-penalized`, the sparsity prior is on the last call too; `no-bias`, no procedure begins as a
  short one.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import pyro
import torch
import tyro

import pyrocontrol as pc
from pyrocontrol.envs import Demonstrations
from pyrocontrol.envs.bubble_sort import BUBBLE_SORT_TREE, demonstrations
from pyrocontrol.inference import row, write_results
from training_runs import command_line

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend has to be set first)

HERE = Path(__file__).parent
DEMOS, LONGEST, BATCH, SPARSITY, RETURN_BIAS, RATES = 40, 5, 4, 3.0, 2.0, (1e-2, 3e-3)
OBSERVATION = (("digit", 10), (None, 1), ("digit", 10), (None, 1))
EVERY = 250


@dataclass
class Arguments:
    """Train by the bound and by what it bounds."""

    out: Path = HERE / "results" / "bounds.json"
    """results file"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """of traces, initial weights and batches"""
    updates: int = 2_000
    """batches of 4 traces, for every method"""
    jobs: int = 2
    """seeds side by side"""


def main(arguments: Arguments) -> None:
    """Train, write, draw."""
    given = [replace(arguments, seeds=(seed,)) for seed in arguments.seeds]
    rows = []
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        for found in pool.map(train, given):
            rows += found
    write(rows, arguments.out)


def write(rows: list[dict[str, Any]], out: Path) -> None:
    """Write the results file and draw the plot beside it."""
    write_results(out, "bounds", rows, command="python benchmarks/bounds.py")
    plot(rows, out.with_suffix(".png"))


def train(arguments: Arguments) -> list[dict[str, Any]]:
    """Return the rows of one seed."""
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    (seed,), updates = arguments.seeds, arguments.updates
    traces = demonstrations(DEMOS, seed, max_length=LONGEST, annotate=True)
    assert traces.calls is not None
    teacher = pc.models.CallTrace.batch(pc.models.ProcedureTree.parse(BUBBLE_SORT_TREE), traces.calls.clamp(min=0))
    plain = traces.replace(calls=None)
    start = time.perf_counter()
    rows: list[dict[str, Any]] = []

    def measure(method: str, step: int, program: Any, guide: Any) -> None:
        posterior = pc.inference.CallStackPosterior(program, plain)
        values = {"log_likelihood": float(posterior.log_likelihood.mean()), "entropy": float(posterior.entropy.mean())}
        calls = {"posterior": posterior.likeliest(), "own": program.greedy_calls(plain)}
        if guide is not None:
            calls["guide"] = guide.infer(plain)
            values["elbo"] = float(posterior.elbo(guide).mean())
            values["gap"] = values["log_likelihood"] - values["elbo"]
            values["inclusive_kl"] = float(posterior.inclusive_kl(guide).mean())
        prior = SPARSITY / DEMOS * float(program.penalty().detach())
        values["objective"] = prior - values["log_likelihood"]
        values["exact_match"] = pc.inference.exact_match(program, plain)
        setting = {"step": step, "demos": DEMOS, "max_length": LONGEST, "sparsity": SPARSITY}
        seconds = time.perf_counter() - start
        rows.extend(
            row(method, "BubbleSort", name, value, seed=seed, seconds=seconds, **setting)
            for name, value in values.items()
        )
        for of, found in calls.items():
            score = pc.inference.boundary_f1(found, teacher)["boundary_f1"]
            rows.append(row(method, "BubbleSort", "boundary_f1", score, seed=seed, seconds=seconds, of=of, **setting))

    def learn(
        method: str, loss: Any, data: Demonstrations, program: Any, guide: Any, held: bool = False, hot: float = 1.0
    ) -> None:
        parameters = guide.parameters() if held else [p for p in loss.parameters() if p.requires_grad]
        table = {id(p) for p in program.encoder.parameters()}
        every = list(parameters)
        groups = [
            {"params": [p for p in every if id(p) in table], "lr": RATES[0]},
            {"params": [p for p in every if id(p) not in table], "lr": RATES[1]},
        ]
        optimizer = torch.optim.Adam([group for group in groups if group["params"]])
        measure(method, 0, program, guide)
        for step, batch in enumerate(batches(data, seed, updates), 1):
            if hot != 1:
                loss.elbo.temperature = 1 + (hot - 1) * max(0.0, 1 - 2 * step / updates)
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()
            if step % EVERY == 0:
                measure(method, step, program, guide)

    def program_and_guide(**changes: Any) -> tuple[Any, Any]:
        pyro.set_rng_seed(seed)
        given: dict[str, Any] = {"sparsity": SPARSITY, "unpenalized": ("last",), "return_bias": RETURN_BIAS} | changes
        program = pc.models.ControlProgram(
            BUBBLE_SORT_TREE,
            obs_size=22,
            argument_hidden=(16,),
            activation="tanh",
            encoder=pc.models.FieldEncoder(OBSERVATION),
            num_traces=DEMOS,
            **given,
        )
        return program, pc.guides.CallStackGuide(program)

    stepwise, exact = pc.inference.StepwiseKL_ELBO(), pc.inference.ExactLikelihood()
    program, guide = program_and_guide()
    learn("hvil", stepwise(program, guide), plain, program, guide)
    program, guide = program_and_guide()
    learn("hvil-exact", exact(program), plain, program, None)
    # A guide for the program that was found, then both.
    learn("hvil-after-exact-guide", stepwise(program, guide), plain, program, guide, held=True)
    learn("hvil-after-exact", stepwise(program, guide), plain, program, guide)
    program, _ = program_and_guide()
    learn("annotated", exact(program), traces, program, None)
    learn("hvil-exact-after-teacher", exact(program), plain, program, None)
    for name, changes, hot in (
        ("hot", {}, 4.0),
        ("cold", {}, 0.5),
        ("all-penalized", {"unpenalized": ()}, 1.0),
        ("no-bias", {"return_bias": 0.0}, 1.0),
    ):
        program, _ = program_and_guide(**changes)
        learn(f"hvil-exact-{name}", pc.inference.ExactLikelihood()(program), plain, program, None, hot=hot)
    return rows


def batches(traces: Demonstrations, seed: int, updates: int) -> Iterator[Demonstrations]:
    """Yield shuffled batches, epoch after epoch."""
    generator, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
    for _ in range(updates):
        if len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(traces), generator=generator)])
        yield traces[order[:BATCH]]
        order = order[BATCH:]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw log p and the ELBO along training, the gap, and the structure of either."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")

    def draw(axes: Any, method: str, metric: str, label: str, color: str, style: str = "-", **setting: Any) -> None:
        found: dict[int, list[float]] = {}
        for item in rows:
            if item["method"] == method and item["metric"] == metric:
                if all(item["setting"].get(key) == value for key, value in setting.items()):
                    found.setdefault(item["setting"]["step"], []).append(item["value"])
        if found:
            steps = sorted(found)
            axes.plot(steps, [sum(found[s]) / len(found[s]) for s in steps], style, color=color, label=label)

    draw(left, "hvil-exact", "log_likelihood", "log p, exact training", "C0")
    draw(left, "hvil", "log_likelihood", "log p, stepwise training", "C1")
    draw(left, "hvil", "elbo", "ELBO, stepwise training", "C1", "--")
    left.set(xlabel="update", ylabel="nats a trace", ylim=(-40, 1))
    draw(middle, "hvil", "gap", "KL(q || posterior)", "C1")
    draw(middle, "hvil", "inclusive_kl", "KL(posterior || q)", "C1", "--")
    middle.set(xlabel="update", ylabel="nats a trace", yscale="log")
    for method, label, color in (
        ("hvil-exact", "exact", "C0"),
        ("hvil", "stepwise", "C1"),
        ("hvil-after-exact", "stepwise, from the exact one", "C2"),
        ("hvil-exact-after-teacher", "exact, from the teacher's", "C3"),
    ):
        draw(right, method, "boundary_f1", label, color, of="posterior")
        draw(right, method, "boundary_f1", "", color, "--", of="own")
    right.set(xlabel="update", ylabel="boundary F1", ylim=(0, 1.03))
    for axes, title in ((left, "training traces"), (middle, "the gap"), (right, "structure (dashed: own calls)")):
        axes.set_title(title, loc="left")
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Arguments, args=command_line()))
