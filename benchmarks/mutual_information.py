"""Remake results/mutual_information.json: every estimate of mutual information beside the truth, and the plot.

    python benchmarks/mutual_information.py

M parts z_i ~ N(0, s^2 I) in D dimensions, V = sum_i z_i and tau~ ~ N(V, r^2 I): I(V; tau~) = D/2 ln(1 + M s^2 / r^2).
The estimates are those of `pyrocontrol.inference`, each with a q of tau~ named in its setting:

- ``exact``: the posterior, of V for the bounds, of z_i for nonvariational and literal;
- ``fitted``: linear and Gaussian, by least squares on other draws;
- ``scaled``: the posterior of V with its mean times 0.8, a Q that is wrong;
- ``narrow``: the posterior of z_i with its deviation times 0.1.

Three tasks. ``gaussian``: over a range of noise r / s. ``gaussian_shrinking``: s = r, both smaller and smaller, where
the truth stays. ``gaussian_deviation``: s = r, with the deviation of q times a factor; the two with the first D and M.
All in float64, in nats.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
import tyro
from matplotlib import pyplot
from matplotlib.axes import Axes
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrocontrol.inference import mean_interval, read_rows, row, write_results
from pyrocontrol.inference.objectives.mutual_information import (
    entropy_of_sum,
    infonce,
    leave_one_out,
    literal,
    nonvariational,
    variational_bound,
)
from training_runs import command_line

HERE = Path(__file__).parent
SCALE = 0.1  # s
NOISES = (0.03, 0.1, 0.3, 1.0, 3.0)  # r / s
SHRINKING = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)  # s = r
FACTORS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
WRONG, NARROW = 0.8, 0.1


@dataclass
class Arguments:
    """How much to draw."""

    out: Path = HERE / "results" / "mutual_information.json"
    """the results file; the plot is written beside it"""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """of independent repeats"""
    draws: int = 4096
    """of V and tau~ an estimate"""
    samples: int = 16
    """K, the V that infonce and leave_one_out tell apart"""
    dims: tuple[int, ...] = (1, 8)
    """D"""
    parts: tuple[int, ...] = (2, 3)
    """M"""
    plot_only: bool = False
    """draw the plot of the rows that are there"""


class Toy(NamedTuple):
    """M parts of deviation s in D dimensions, and noise r / s."""

    s: float
    noise: float
    d: int
    m: int

    @property
    def r(self) -> float:
        """Deviation of tau~ about V."""
        return self.noise * self.s

    @property
    def information(self) -> float:
        """I(V; tau~)."""
        return 0.5 * self.d * math.log1p(self.m * self.s**2 / self.r**2)

    @property
    def entropy(self) -> Tensor:
        """H(V)."""
        return entropy_of_sum(dist.Normal(torch.zeros(self.m, self.d), self.s).to_event(1))

    @property
    def gain(self) -> float:
        """E[V | tau~] / tau~."""
        return self.m * self.s**2 / (self.m * self.s**2 + self.r**2)

    def draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return z ``[count, M, D]``, V and tau~ ``[count, D]``."""
        z = self.s * torch.randn(count, self.m, self.d)
        v = z.sum(1)
        return z, v, v + self.r * torch.randn_like(v)

    def whole(self, tau: Tensor, scaled: float = 1.0, factor: float = 1.0) -> TorchDistribution:
        """Return p(V | tau~), or one with its mean or its deviation multiplied."""
        deviation = self.s * math.sqrt(self.m * (1 - self.gain))
        return dist.Normal(scaled * self.gain * tau, factor * deviation).to_event(1)

    def part(self, tau: Tensor, factor: float = 1.0) -> TorchDistribution:
        """Return p(z_i | tau~), or one with its deviation multiplied."""
        deviation = self.s * math.sqrt(1 - self.gain / self.m)
        return dist.Normal(self.gain / self.m * tau, factor * deviation).to_event(1)

    def scores(self, v: Tensor, tau: Tensor, samples: int) -> Tensor:
        """Return ``log p(tau~_j | V_k)`` ``[.., K, K]`` of draws taken K at a time."""
        v, tau = (x.reshape(-1, samples, self.d) for x in (v, tau))
        return dist.Normal(v.unsqueeze(2), self.r).to_event(1).log_prob(tau.unsqueeze(1))


def fitted(v: Tensor, tau: Tensor) -> Callable[[Tensor], TorchDistribution]:
    """Return a linear Gaussian Q(V | tau~), by least squares: maximum likelihood."""

    def inputs(tau: Tensor) -> Tensor:
        return torch.cat([tau, torch.ones_like(tau[:, :1])], 1)

    weights = torch.linalg.lstsq(inputs(tau), v).solution
    deviation = (v - inputs(tau) @ weights).square().mean(0).sqrt()
    return lambda tau: dist.Normal(inputs(tau) @ weights, deviation).to_event(1)


def measured(toy: Toy, task: str, seed: int, arguments: Arguments, factor: float | None = None) -> list[dict[str, Any]]:
    """Return the rows of one toy and seed; with a factor, of the estimates that read a q, its deviation multiplied."""
    pyro.set_rng_seed(seed)
    q = fitted(*toy.draw(arguments.draws)[1:])
    z, v, tau = toy.draw(arguments.draws)
    entropy = toy.entropy
    estimates: dict[tuple[str, str], Callable[[], Tensor]]
    if factor is not None:
        estimates = {
            ("tied", "exact"): lambda: variational_bound(v, toy.whole(tau, factor=factor), entropy),
            ("nonvariational", "exact"): lambda: nonvariational(z, toy.part(tau, factor), entropy),
            ("literal", "exact"): lambda: literal(toy.part(tau, factor), toy.m, entropy),
        }
    else:
        estimates = {
            ("tied", "exact"): lambda: variational_bound(v, toy.whole(tau), entropy),
            ("variational", "fitted"): lambda: variational_bound(v, q(tau), entropy),
            ("variational", "scaled"): lambda: variational_bound(v, toy.whole(tau, WRONG), entropy),
            ("nonvariational", "exact"): lambda: nonvariational(z, toy.part(tau), entropy),
            ("literal", "exact"): lambda: literal(toy.part(tau), toy.m, entropy),
            ("literal", "narrow"): lambda: literal(toy.part(tau, NARROW), toy.m, entropy),
            ("infonce", "none"): lambda: infonce(toy.scores(v, tau, arguments.samples)),
            ("leave_one_out", "none"): lambda: leave_one_out(toy.scores(v, tau, arguments.samples)),
        }
    setting: dict[str, Any] = {"s": toy.s, "noise": toy.noise, "d": toy.d, "m": toy.m, "draws": arguments.draws}
    setting |= {"samples": arguments.samples} | ({} if factor is None else {"factor": factor})
    rows = []
    if seed == arguments.seeds[0]:
        rows.append(row("truth", task, "estimate", toy.information, seed=seed, seconds=0.0, q="none", **setting))
    for (method, name), estimate in estimates.items():
        start = time.perf_counter()
        value = float(estimate().mean())
        seconds = time.perf_counter() - start
        rows.append(row(method, task, "estimate", value, seed=seed, seconds=seconds, q=name, **setting))
    return rows


def measure(arguments: Arguments) -> list[dict[str, Any]]:
    """Return the rows of all tasks."""
    rows = []
    for seed in arguments.seeds:
        for d, m in itertools.product(arguments.dims, arguments.parts):
            for noise in NOISES:
                rows += measured(Toy(SCALE, noise, d, m), "gaussian", seed, arguments)
        d, m = arguments.dims[0], arguments.parts[0]
        for s in SHRINKING:
            rows += measured(Toy(s, 1.0, d, m), "gaussian_shrinking", seed, arguments)
        for factor in FACTORS:
            rows += measured(Toy(SCALE, 1.0, d, m), "gaussian_deviation", seed, arguments, factor)
    return rows


# Method, q, label, style of a line.
LINES = (
    ("tied", "exact", "tied, exact posterior", {"color": "tab:blue", "marker": "o"}),
    ("variational", "fitted", "variational, fitted", {"color": "tab:cyan", "marker": "x", "linestyle": "--"}),
    ("variational", "scaled", "variational, wrong Q", {"color": "tab:purple", "marker": "v"}),
    ("nonvariational", "exact", "nonvariational, exact posteriors", {"color": "tab:orange", "marker": "s"}),
    ("literal", "exact", "literal, exact posteriors", {"color": "tab:red", "marker": "^", "linestyle": ":"}),
    ("literal", "narrow", "literal, q ten times as narrow", {"color": "tab:red", "marker": "^"}),
)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw estimates against noise, all numbers shrinking, and the deviation of q."""
    sizes = sorted({sizes_of(item) for item in rows})
    small, large = sizes[0], sizes[-1]
    figure, axes = pyplot.subplots(1, 4, figsize=(16, 4.4), constrained_layout=True)
    panels = (
        (axes[0], "gaussian", "noise", small, "noise r / s (s = {s:g})"),
        (axes[1], "gaussian", "noise", large, "noise r / s (s = {s:g})"),
        (axes[2], "gaussian_shrinking", "s", small, "s = r: the truth stays"),
        (axes[3], "gaussian_deviation", "factor", small, "deviation of q, times its best (s = r = {s:g})"),
    )
    for axis, task, key, size, label in panels:
        chosen = [x for x in rows if x["task"] == task and sizes_of(x) == size]
        draw(axis, chosen, key, shown=LINES if task == "gaussian" else LINES[:1] + LINES[3:5])
        axis.set_xlabel(label.format(s=SCALE), fontsize=9)
        axis.set_title(f"D = {size[0]}, M = {size[1]}", loc="left", fontsize=10)
    axes[0].set_ylabel("estimate of I(V; tau~), nats")
    axes[2].invert_xaxis()
    # What is wrong without limit leaves the picture: a loose upper bound, a wrong Q, too narrow a q.
    for axis, task, _, size, _ in panels[:2]:
        top = max(x["value"] for x in rows if x["method"] == "truth" and x["task"] == task and sizes_of(x) == size)
        axis.set_ylim(-0.3 * top, 2 * top)
    axes[3].set_ylim(-4, 12)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def sizes_of(item: dict[str, Any]) -> tuple[int, int]:
    """D and M of a row."""
    return item["setting"]["d"], item["setting"]["m"]


def draw(axis: Axes, rows: list[dict[str, Any]], key: str, shown: tuple[Any, ...]) -> None:
    """Draw each estimate's mean and 95% interval over seeds; the truth; and between the two bounds, shaded."""

    def curve(method: str, q: str) -> tuple[list[float], list[float], list[float]]:
        values: dict[float, list[float]] = {}
        for item in rows:
            if item["method"] == method and item["setting"]["q"] == q:
                values.setdefault(item["setting"][key], []).append(item["value"])
        found = {x: mean_interval(values[x]) for x in sorted(values)}
        return list(found), [f.mean for f in found.values()], [f.half for f in found.values()]

    at, low, _ = curve("infonce", "none")
    if at:
        axis.fill_between(at, low, curve("leave_one_out", "none")[1], color="0.85", label="infonce to leave-one-out")
    for method, q, label, style in shown:
        at, mean, half = curve(method, q)
        axis.errorbar(at, mean, half, label=label, markersize=4, linewidth=1.2, capsize=2, **style)
    axis.plot(*curve("truth", "none")[:2], color="black", linewidth=5, alpha=0.35, label="truth", zorder=1.5)
    axis.set_xscale("log")
    axis.spines[["top", "right"]].set_visible(False)


def main(arguments: Arguments) -> None:
    """Measure, write the rows, draw the plot."""
    torch.set_num_threads(1)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        if not arguments.plot_only:
            write_results(arguments.out, "mutual_information", measure(arguments))
        plot(read_rows(arguments.out), arguments.out.with_suffix(".png"))
    finally:
        torch.set_default_dtype(default)


if __name__ == "__main__":
    main(tyro.cli(Arguments, args=command_line()))
