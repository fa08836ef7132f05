"""Remake results/estimators.json: how noisy the estimators of the ELBO are, and the plot beside it.

    python benchmarks/estimators.py

Three parts. The variance of the guide's gradient (the trace of its covariance) and the standard deviation of the loss
of StepwiseKL_ELBO and of Pyro's own ELBOs, with random weights: on a plain loop of discrete sites with observations
(``chain``), and on the call stacks of a batch of BubbleSort demonstrations (``bubble_sort``), which are one site, so
that TraceGraph_ELBO has nothing to take apart there. And Appendix B of Fox et al. (2018): the estimated derivative by
the probability eps of a choice that the posterior all but excludes (``rare_choice``), whose plain score-function
estimate points the wrong way whenever the choice is not drawn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import pyro
import pyro.distributions as dist
import torch
import tyro
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from torch import Tensor

from pyrocontrol.envs import bubble_sort
from pyrocontrol.guides import CallStackGuide
from pyrocontrol.inference import StepwiseKL_ELBO, read_rows, row, write_results
from pyrocontrol.models import ControlProgram

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "estimators.json"
ELBOS: dict[str, Callable[[], Any]] = {
    "StepwiseKL_ELBO": StepwiseKL_ELBO,
    "StepwiseKL_ELBO(score='full')": lambda: StepwiseKL_ELBO(score="full"),
    "TraceGraph_ELBO": TraceGraph_ELBO,
    "Trace_ELBO": Trace_ELBO,
}
STEPS, STATES = 10, 3
PRIOR = (1e-12, 0.3, 0.7 - 1e-12)  # p(z, x) of choices 0 and 1, and of one that the guide excludes


@dataclass
class Arguments:
    """How much to draw."""

    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """sets of random weights"""
    chain_samples: int = 250
    """gradients of the chain an estimator"""
    stack_samples: int = 150
    """gradients of the call stacks an estimator"""
    rare_samples: int = 10_000
    """estimates for each probability of the rare choice"""
    batch: int = 4
    """samples averaged in one estimate of the rare choice, the batch size of the paper"""
    plot_only: bool = False
    """draw the plot of the rows that are there"""


Task = tuple[Callable[..., Any], Callable[..., Any], list[Tensor], tuple[Any, ...]]


def chain(seed: int) -> Task:
    """A plain loop of ten discrete sites, each observed through noise; the guide is a chain too."""
    pyro.set_rng_seed(seed)
    first, following, emission = torch.randn(STATES), torch.randn(STATES, STATES), torch.randn(STATES)
    q = torch.randn(STEPS, STATES, STATES, requires_grad=True)
    data = torch.randn(STEPS)

    def model() -> None:
        z: Any = None
        for t in range(STEPS):
            z = pyro.sample(f"z{t}", dist.Categorical(logits=first if z is None else following[z]))
            pyro.sample(f"x{t}", dist.Normal(emission[z], 1.0), obs=data[t])

    def guide() -> None:
        z = torch.tensor(0)
        for t in range(STEPS):
            z = pyro.sample(f"z{t}", dist.Categorical(logits=q[t][z]))

    return model, guide, [q], ()


def call_stacks(seed: int) -> Task:
    """The control program of BubbleSort on four demonstrations of three to five digits."""
    pyro.set_rng_seed(seed)
    traces = bubble_sort.demonstrations(4, seed, min_length=3, max_length=5)
    program = ControlProgram(bubble_sort.BUBBLE_SORT_TREE, obs_size=bubble_sort.OBSERVATION_SIZE)
    guide = CallStackGuide(program)
    return program.model, guide, list(guide.parameters()), (traces,)


def measure(elbo: Any, task: Task, samples: int) -> tuple[float, float, float, float]:
    """Return the trace of the gradient's covariance, its mean's norm, and the loss's deviation and mean."""
    model, guide, parameters, args = task
    count, mean, squares, losses = 0, torch.zeros(()), torch.zeros(()), []
    for _ in range(samples):
        for parameter in parameters:
            parameter.grad = None
        losses.append(float(elbo.loss_and_grads(model, guide, *args)))
        gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).double()
        count += 1
        # Welford's recurrence: the covariance is small beside what squares of gradients would lose.
        difference = gradient - mean
        mean = mean + difference / count
        squares = squares + difference * (gradient - mean)
    loss = torch.tensor(losses, dtype=torch.float64)
    variance = float(squares.sum()) / (count - 1)
    return variance, float(mean.norm()), float(loss.std()), float(loss.mean())


def variances(arguments: Arguments) -> list[dict[str, Any]]:
    """Return the rows of ``chain`` and ``bubble_sort``."""
    rows = []
    tasks = {
        "chain": (chain, arguments.chain_samples, {"steps": STEPS, "states": STATES}),
        "bubble_sort": (call_stacks, arguments.stack_samples, {"traces": 4, "min_length": 3, "max_length": 5}),
    }
    for name, (build, samples, setting) in tasks.items():
        for seed in arguments.seeds:
            task = build(seed)
            for method, make in ELBOS.items():
                pyro.clear_param_store()
                pyro.set_rng_seed(1000 + seed)
                start = time.perf_counter()
                metrics = measure(make(), with_parameters(task), samples)
                seconds = time.perf_counter() - start
                names = ("gradient_variance", "gradient_mean_norm", "loss_std", "loss_mean")
                for metric, value in zip(names, metrics, strict=True):
                    rows.append(
                        row(method, name, metric, value, seed=seed, seconds=seconds, samples=samples, **setting)
                    )
                print(f"{name} {seed} {method}: {metrics[0]:.4g}, loss {metrics[3]:.4g} +- {metrics[2]:.4g}")
    return rows


def with_parameters(task: Task) -> Task:
    """Give the trace a parameter, without which Pyro's own ELBOs do not take gradients."""
    model, guide, parameters, args = task

    def registered(*args: Any) -> Any:
        pyro.param("registered", torch.zeros(()))
        return guide(*args)

    return model, registered, parameters, args


def rare_choice(arguments: Arguments) -> list[dict[str, Any]]:
    """Return the rows of ``rare_choice``: the exact derivative by eps, and quantiles of estimates of it."""
    rows = []
    prior = torch.tensor(PRIOR, dtype=torch.float64)
    for exponent in range(2, 15):
        eps = 10 ** (-exponent / 2)
        exact = math.log(PRIOR[0] / eps) - math.log(PRIOR[1] / (1 - eps))

        def add(method: str, metric: str, value: float, seconds: float, eps: float = eps) -> None:
            setting = {"eps": eps, "batch": arguments.batch, "samples": arguments.rare_samples}
            rows.append(row(method, "rare_choice", metric, value, seed=0, seconds=seconds, **setting))

        add("exact", "derivative", exact, 0.0)
        for method, make in (("Trace_ELBO", Trace_ELBO), ("StepwiseKL_ELBO", StepwiseKL_ELBO)):
            pyro.set_rng_seed(0)
            start = time.perf_counter()
            estimates = derivatives(make(), prior, eps, arguments.batch, arguments.rare_samples)
            seconds = time.perf_counter() - start
            add(method, "derivative_mean", float(estimates.mean()), seconds)
            for quantile in (0.05, 0.5, 0.95):
                add(method, f"derivative_q{quantile:.2f}", float(estimates.quantile(quantile)), seconds)
            wrong = (estimates.sign() != math.copysign(1, exact)).double().mean()
            add(method, "wrong_sign", float(wrong), seconds)
    return rows


def derivatives(elbo: Any, prior: Tensor, eps: float, batch: int, samples: int) -> Tensor:
    """Return independent estimates ``[samples]`` of the ELBO's derivative by eps, each a mean over a batch."""
    # One eps for every element of every batch: their gradients are the single estimates.
    epsilon = torch.full((samples, batch), eps, dtype=torch.float64, requires_grad=True)

    def sites(probabilities: Tensor) -> None:
        with pyro.plate("samples", samples, dim=-2), pyro.plate("batch", batch, dim=-1):
            pyro.sample("z", dist.Categorical(probabilities))

    def guide() -> None:
        sites(torch.stack([epsilon, 1 - epsilon, torch.zeros_like(epsilon)], -1))

    loss = elbo.differentiable_loss(lambda: sites(prior), guide)
    return -torch.autograd.grad(loss, epsilon)[0].mean(-1)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the variances and Appendix B."""
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.2), width_ratios=[1, 1, 1.3], constrained_layout=True)
    titles = {"chain": "A loop of ten discrete sites", "bubble_sort": "BubbleSort call stacks, 3 to 5 digits"}
    for axis, (task, title) in zip(axes, titles.items(), strict=False):
        draw_variances(axis, [item for item in rows if item["task"] == task])
        axis.set_title(title, loc="left", fontsize=10)
    axes[1].set_yticklabels([])
    draw_rare_choice(axes[2], [item for item in rows if item["task"] == "rare_choice"])
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def draw_variances(axis: Axes, rows: list[dict[str, Any]]) -> None:
    """Draw a dot a seed, and the geometric mean."""
    variance = {
        method: [item["value"] for item in rows if item["method"] == method and item["metric"] == "gradient_variance"]
        for method in ELBOS
    }
    for height, (method, values) in enumerate(variance.items()):
        mean = math.exp(sum(map(math.log, values)) / len(values))
        colour = "tab:blue" if method == "StepwiseKL_ELBO" else "tab:grey"
        axis.plot(values, [height] * len(values), "o", color=colour, alpha=0.5, markersize=5)
        axis.plot([mean], [height], "|", color=colour, markersize=22, markeredgewidth=2)
        axis.annotate(f"{mean:.3g}", (mean, height), (0, 14), textcoords="offset points", ha="center", fontsize=8)
    axis.set_yticks(range(len(variance)), [method.replace("(", "\n(") for method in variance], fontsize=8)
    axis.set_ylim(len(variance) - 0.5, -0.6)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("variance of the guide's gradient (a dot a seed)")
    axis.spines[["top", "right"]].set_visible(False)


def draw_rare_choice(axis: Axes, rows: list[dict[str, Any]]) -> None:
    """Draw the exact derivative and the middle 90% of its estimates against eps."""

    def curve(method: str, metric: str) -> tuple[list[float], list[float]]:
        found = [item for item in rows if item["method"] == method and item["metric"] == metric]
        return [item["setting"]["eps"] for item in found], [item["value"] for item in found]

    eps, low = curve("Trace_ELBO", "derivative_q0.05")
    _, high = curve("Trace_ELBO", "derivative_q0.95")
    axis.fill_between(eps, low, high, color="tab:orange", alpha=0.25, linewidth=0)
    axis.plot(*curve("Trace_ELBO", "derivative_q0.50"), color="tab:orange", label="Trace_ELBO, median and 90%")
    axis.plot(*curve("StepwiseKL_ELBO", "derivative_q0.50"), color="tab:blue", label="StepwiseKL_ELBO, any sample")
    axis.plot(*curve("exact", "derivative"), "k:", label="exact")
    axis.axhline(0, color="black", linewidth=0.6)
    axis.set_xscale("log")
    axis.set_yscale("symlog", linthresh=1)
    axis.invert_xaxis()
    axis.set_xlabel(r"$\epsilon$, the guide's probability of the rare choice")
    axis.set_ylabel(r"estimate of $\partial_\epsilon$ ELBO (above 0 is wrong)", fontsize=9)
    axis.set_title("Appendix B: rare choices", loc="left", fontsize=10)
    axis.legend(fontsize=8, frameon=False, loc="center right")
    axis.spines[["top", "right"]].set_visible(False)


def main(arguments: Arguments) -> None:
    """Measure, write the rows, draw the plot."""
    torch.set_num_threads(1)
    if not arguments.plot_only:
        rows = variances(arguments) + rare_choice(arguments)
        write_results(RESULTS, "estimators", rows)
    plot(read_rows(RESULTS), RESULTS.with_suffix(".png"))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
