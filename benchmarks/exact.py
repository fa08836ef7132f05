"""Remake results/exact.json: that the exact likelihood of call stacks is exact, what it costs, and the plot beside it.

    python benchmarks/exact.py              # about ten minutes on one core
    python benchmarks/exact.py --trees 20 --lengths 2 3 --mix 5 --levels 2 3

* `error`, and `relative_error` to the greatest number where that is more than 1: the greatest difference, over random
  small trees (two to five levels, counters, one-hot arguments and return values) and their traces, between the span
  recursion and the sum over all call stacks, all their states listed: of log p and of its gradients, in double
  precision, both in C and in NumPy.
* `z`: of importance sampling from a guide that was fitted to samples of the posterior, on lists of five digits:
  (estimate - exact) in its own standard errors, a row a trace.
* seconds of log p and of its gradient, megabytes of tables and of the process: of the longest trace of lists of every
  length, of batches of four of the paper's mix, and of one trace against the number of levels, of procedures that count
  and that do not.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib
import numpy as np
import pyro
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

import pyrocontrol as pc
from pyrocontrol._native import library
from pyrocontrol.envs.bubble_sort import demonstrations
from pyrocontrol.inference import read_rows, row, write_results
from pyrocontrol.inference.objectives import call_spans_kernel
from pyrocontrol.inference.objectives.call_spans import CallSpans
from pyrocontrol.inference.training.results import revision

HERE = Path(__file__).parent
matplotlib.use("Agg")
sys.path.append(str(HERE.parent / "tests" / "helpers"))
from matplotlib import pyplot as plt  # noqa: E402  (the backend has to be set first)
from small_programs import Case, random_case  # noqa: E402

from scripts import load_script  # noqa: E402
from training_runs import command_line  # noqa: E402

example = load_script("examples/bubble_sort.py")
METHOD, LONGEST = "hvil-exact", 9


@dataclass
class Arguments:
    """Check and time the exact likelihood of call stacks."""

    out: Path = HERE / "results" / "exact.json"
    """results file"""
    trees: int = 200
    """random trees"""
    lengths: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 20)
    """digits of the lists"""
    mix: int = 20
    """batches of four of the paper's mix"""
    levels: tuple[int, ...] = (2, 3, 4, 5, 6)
    """levels of a chain of procedures"""
    sampled: int = 20_000
    """call traces of importance sampling, for each of ten traces"""
    updates: int = 400
    """of the program, and of the guide that importance sampling draws from"""
    parts: tuple[str, ...] = ("costs", "errors", "sampled")
    """what to measure; rows of other parts stay in the file"""


def main(arguments: Arguments) -> None:
    """Measure, write, draw."""
    torch.set_num_threads(1)
    made = {
        "costs": lambda: costs(arguments),
        "errors": lambda: errors(arguments.trees),
        "sampled": lambda: sampled(arguments.sampled, arguments.updates),
    }
    metrics = {"errors": ("error", "relative_error"), "sampled": ("z",)}
    of = {metric: part for part, names in metrics.items() for metric in names}
    rows = [item for item in read_rows(arguments.out) if of.get(item["metric"], "costs") not in arguments.parts]
    for part in arguments.parts:
        for item in made[part]():
            item["setting"]["revision"] = revision()  # other parts may be of another one
            rows.append(item)
    write_results(arguments.out, "exact", rows, command="python " + " ".join(["benchmarks/exact.py", *sys.argv[1:]]))
    plot(rows, arguments.out.with_suffix(".png"))
    for item in rows:
        print(f"{item['metric']:>20} {item['value']:12.4g}  {item['setting']}")


def errors(trees: int) -> list[dict[str, Any]]:
    """Compare the recursion with the sum over all stacks."""
    torch.set_default_dtype(torch.float64)
    start = time.perf_counter()
    worst: dict[tuple[str, str, str], float] = {}
    for seed in range(trees):
        case = random_case(seed, longest=2 + seed % 2, traces=1)
        exact = case.enumerated().log_likelihood.sum()
        theirs = torch.cat([exact.detach().reshape(1), gradients(exact, case)])
        for engine in ("c", "numpy"):
            with mock.patch.object(call_spans_kernel, "library", {"c": library, "numpy": lambda *_: None}[engine]):
                found = case.spans().log_prob().sum()
                mine = torch.cat([found.detach().reshape(1), gradients(found, case)])
            for what, part in (("value", slice(0, 1)), ("gradient", slice(1, None))):
                error, size = float((mine - theirs)[part].abs().max()), float(theirs[part].abs().max())
                for metric, value in (("error", error), ("relative_error", error / max(size, 1))):
                    key = engine, what, metric
                    worst[key] = max(worst.get(key, 0.0), value)
    torch.set_default_dtype(torch.float32)
    seconds = time.perf_counter() - start
    return [
        row(METHOD, "random trees", metric, value, seed=0, seconds=seconds, engine=engine, of=what, trees=trees)
        for (engine, what, metric), value in worst.items()
    ]


def gradients(value: Tensor, case: Case) -> Tensor:
    """All gradients of a case's networks, in one vector."""
    parameters = [*case.process.parameters()]
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, parameters, strict=True)]
    )


def sampled(draws: int, updates: int) -> list[dict[str, Any]]:
    """Compare with importance sampling from a guide, fitted to samples of the posterior so that it misses no stack."""
    start = time.perf_counter()
    pyro.set_rng_seed(0)
    loss = example.build(example.Arguments(method="hvil"))
    program, guide = loss.model, loss.guide
    train, test = demonstrations(40, 0, max_length=5), demonstrations(10, 1, min_length=5, max_length=5)
    exactly = pc.inference.ExactLikelihood()(program)
    optimizer = torch.optim.Adam(exactly.parameters(), lr=3e-3)
    pc.inference.fit((exactly, optimizer), train, steps=updates, batch_size=4, progress=False)
    posterior = pc.inference.CallStackPosterior(program, test)
    optimizer = torch.optim.Adam(guide.parameters(), lr=3e-3)
    for update in range(updates):
        if update % 10 == 0:
            z = posterior.sample(4)
        optimizer.zero_grad()
        (-guide.posterior(test).log_prob(z).mean()).backward()
        optimizer.step()
    total = []
    with torch.no_grad():
        p, q = program.prior(test), guide.posterior(test)
        for _ in range(draws // 200):
            z = q.sample((200,))
            total.append(p.log_prob(z).double() - q.log_prob(z).double())
    ratio = (torch.cat(total) - posterior.log_likelihood).exp()
    z_scores = (ratio.mean(0) - 1) / (ratio.std(0) / len(ratio) ** 0.5)
    seconds = time.perf_counter() - start
    return [
        row(METHOD, "BubbleSort", "z", float(value), seed=b, seconds=seconds, draws=draws, length=5)
        for b, value in enumerate(z_scores)
    ]


def costs(arguments: Arguments) -> list[dict[str, Any]]:
    """Time log p and its gradient."""
    rows = []
    program = example.build(example.Arguments()).model
    for length in arguments.lengths:
        # Of a list in reverse order, every pair of which is swapped: the longest trace.
        traces = demonstrations(20, 0, min_length=length, max_length=length)
        longest = traces[traces.lengths.argmax()[None]]
        spans, forward, backward = timed(program, longest, repeats=3 if length > LONGEST else 5)
        setting = {"length": length, "actions": int(spans.lengths[0]), "batch": 1}
        rows += timing(forward, backward, spans.table_bytes(0), "BubbleSort", setting)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # of the whole process, shorter lists before
        rows.append(row(METHOD, "BubbleSort", "peak_megabytes", peak, seed=0, seconds=0.0, **setting))
    mix = demonstrations(160, 0)
    order = torch.randperm(160, generator=torch.Generator().manual_seed(0))
    found = [timed(program, mix[order[4 * i : 4 * i + 4]], repeats=1)[1:] for i in range(arguments.mix)]
    forward, backward = ([part[i][0] for part in found] for i in range(2))
    rows += timing(forward, backward, 0, "BubbleSort", {"batch": 4, "mix": True})
    for counts in ("", " counts"):
        for levels in arguments.levels:
            names = [f"p{i}" for i in range(levels)]
            lines = [f"{name}{counts} -> {child}, a, b" for name, child in zip(names, names[1:], strict=False)]
            tree = "\n".join(["actions: a, b", *lines, f"{names[-1]}{counts} -> a, b"])
            chain = pc.models.ControlProgram(tree, obs_size=3)
            rng = np.random.default_rng(0)
            actions, seen = [rng.integers(0, 2, 60)], [rng.normal(size=(61, 3)).astype(np.float32)]
            traces = pc.envs.from_arrays(seen, actions, action_space=2)
            spans, forward, backward = timed(chain, traces, repeats=3)
            setting = {"levels": levels, "counts": bool(counts), "actions": 60, "batch": 1}
            rows += timing(forward, backward, spans.table_bytes(0), "chain", setting)
    return rows


def timed(program: Any, traces: Any, repeats: int) -> tuple[CallSpans, list[float], list[float]]:
    """Return seconds of log p and of its gradient, repeat by repeat."""
    forward, backward = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        prior = program.prior(traces)
        arguments = F.pad(traces.arguments, (0, program.tree.arg_size - traces.arguments.shape[-1]))
        spans = CallSpans(program.process, prior.context, traces.actions, arguments)
        value = spans.log_prob().sum()
        between = time.perf_counter()
        value.backward()
        forward.append(between - start)
        backward.append(time.perf_counter() - between)
    return spans, forward, backward


def timing(
    forward: list[float], backward: list[float], size: int, task: str, setting: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the rows of one measurement, medians."""
    both = [a + b for a, b in zip(forward, backward, strict=True)]
    values = {
        "seconds": statistics.median(both),
        "forward_seconds": statistics.median(forward),
        "slowest_seconds": max(both),
        **({"table_megabytes": size / 1e6} if size else {}),
    }
    return [row(METHOD, task, name, value, seed=0, seconds=sum(both), **setting) for name, value in values.items()]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw time against the length of a trace, and against levels."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for metric, label in (("forward_seconds", "log p"), ("seconds", "log p and its gradient")):
        points = sorted(
            (item["setting"]["actions"], item["value"])
            for item in rows
            if item["metric"] == metric and "length" in item["setting"]
        )
        left.plot(*zip(*points, strict=True), "o-", label=label, markersize=4)
    left.set(xscale="log", yscale="log", xlabel="actions of a trace", ylabel="seconds, one core")
    left.set_title("BubbleSort: lists of 2 to 20 digits", loc="left")
    left.legend(frameon=False)
    for counts, label in ((False, "no procedure counts"), (True, "all count their steps")):
        points = sorted(
            (item["setting"]["levels"], item["value"])
            for item in rows
            if item["metric"] == "seconds" and item["setting"].get("counts") is counts
        )
        right.plot(*zip(*points, strict=True), "o-", label=label, markersize=4)
    right.set(yscale="log", xlabel="levels of a chain of procedures", ylabel="seconds, one core")
    right.set_title("60 actions that every level may take", loc="left")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Arguments, args=command_line()))
