"""Remake results/estimators.json: how noisy the estimators of the ELBO are, and the plot beside it.

    python benchmarks/estimators.py

The variance of the guide's gradient (the trace of its covariance), the standard deviation of the loss and the processor
time of a gradient, of StepwiseKL_ELBO and of Pyro's own ELBOs, with random weights:

* ``chain``: a plain loop of discrete sites with observations;
* ``bubble_sort``: the call stacks of a batch of BubbleSort demonstrations, which are one site. TraceGraph_ELBO has
  nothing to take apart there, so that it equals Trace_ELBO and is left out;
* ``bubble_sort_loop``: shorter call stacks, for StepwiseKL_ELBO as one site, for Pyro's own as a plain loop of sites, a
  site a step. There TraceGraph_ELBO takes the steps apart, and variance times time says what that is worth.

And Appendix B of Fox et al. (2018): the estimated derivative by the probability eps of a choice that the posterior all
but excludes (``rare_choice``), whose plain score-function estimate points the wrong way unless the choice is drawn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
from speed import SiteLoopGuide, SiteLoopModel
from torch import Tensor

from pyrocontrol.envs import bubble_sort
from pyrocontrol.guides import CallStackGuide
from pyrocontrol.inference import StepwiseKL_ELBO, read_rows, row, select, write_results
from pyrocontrol.models import ControlProgram
from training_runs import command_line

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "estimators.json"
ELBOS: dict[str, Callable[[], Any]] = {
    "StepwiseKL_ELBO": StepwiseKL_ELBO,
    "StepwiseKL_ELBO(score='full')": lambda: StepwiseKL_ELBO(score="full"),
    "TraceGraph_ELBO": TraceGraph_ELBO,
    "Trace_ELBO": Trace_ELBO,
}
STACKS = ("StepwiseKL_ELBO", "StepwiseKL_ELBO(score='full')", "Trace_ELBO")  # one site: see above
LOOPS = ("StepwiseKL_ELBO", "TraceGraph_ELBO", "Trace_ELBO")
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
    loop_samples: int = 40
    """gradients of the shorter call stacks an estimator"""
    rare_samples: int = 10_000
    """estimates for each probability of the rare choice"""
    batch: int = 4
    """samples averaged in one estimate of the rare choice, the batch size of the paper"""
    plot_only: bool = False
    """draw the plot of the rows that are there"""


Task = tuple[Callable[..., Any], Callable[..., Any], list[Tensor], tuple[Any, ...]]


def chain(seed: int, method: str) -> Task:
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


def call_stacks(seed: int, method: str, lengths: tuple[int, int] = (3, 5), *, loop: bool = False) -> Task:
    """The control program of BubbleSort on four demonstrations; Pyro's own ELBOs get a site a step if asked."""
    pyro.set_rng_seed(seed)
    traces = bubble_sort.demonstrations(4, seed, min_length=lengths[0], max_length=lengths[1])
    program = ControlProgram(bubble_sort.BUBBLE_SORT_TREE, obs_size=bubble_sort.OBSERVATION_SIZE)
    guide = CallStackGuide(program)
    parameters: list[Tensor] = list(guide.parameters())
    if loop and method != "StepwiseKL_ELBO":
        return SiteLoopModel(program), SiteLoopGuide(guide), parameters, (traces,)
    return program.model, guide, parameters, (traces,)


def measure(elbo: Any, task: Task, samples: int) -> dict[str, float]:
    """Return the trace of the gradient's covariance, its mean's norm, the loss's deviation and mean, and the time."""
    model, guide, parameters, args = task
    count, mean, squares, losses, seconds = 0, torch.zeros(()), torch.zeros(()), [], 0.0
    elbo.loss_and_grads(model, guide, *args)  # the first compiles, and finds dependencies
    for _ in range(samples):
        for parameter in parameters:
            parameter.grad = None
        begun = time.process_time()
        losses.append(float(elbo.loss_and_grads(model, guide, *args)))
        seconds += time.process_time() - begun
        gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).double()
        count += 1
        # Welford's recurrence: the covariance is small beside what squares of gradients would lose.
        difference = gradient - mean
        mean = mean + difference / count
        squares = squares + difference * (gradient - mean)
    loss = torch.tensor(losses, dtype=torch.float64)
    return {
        "gradient_variance": float(squares.sum()) / (count - 1),
        "gradient_mean_norm": float(mean.norm()),
        "loss_std": float(loss.std()),
        "loss_mean": float(loss.mean()),
        "gradient_cpu_seconds": seconds / count,
    }


def variances(arguments: Arguments) -> list[dict[str, Any]]:
    """Return the rows of ``chain``, ``bubble_sort`` and ``bubble_sort_loop``."""
    rows = []
    stacks: dict[str, Any] = {"traces": 4, "min_length": 3, "max_length": 5}
    short: dict[str, Any] = {"traces": 4, "min_length": 2, "max_length": 2}
    tasks: dict[str, tuple[Callable[[int, str], Task], tuple[str, ...], int, dict[str, Any]]] = {
        "chain": (chain, tuple(ELBOS), arguments.chain_samples, {"steps": STEPS, "states": STATES}),
        "bubble_sort": (call_stacks, STACKS, arguments.stack_samples, stacks),
        "bubble_sort_loop": (partial(call_stacks, lengths=(2, 2), loop=True), LOOPS, arguments.loop_samples, short),
    }
    for name, (build, methods, samples, setting) in tasks.items():
        for seed in arguments.seeds:
            for method in methods:
                pyro.clear_param_store()
                task = with_parameters(build(seed, method))
                pyro.set_rng_seed(1000 + seed)
                start = time.perf_counter()
                metrics = measure(ELBOS[method](), task, samples)
                seconds = time.perf_counter() - start
                for metric, value in metrics.items():
                    rows.append(
                        row(method, name, metric, value, seed=seed, seconds=seconds, samples=samples, **setting)
                    )
                print(f"{name} {seed} {method}: " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()), flush=True)
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
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7), constrained_layout=True)
    titles = {
        "chain": "A loop of ten discrete sites",
        "bubble_sort": "BubbleSort call stacks, 3 to 5 digits, one site",
        "bubble_sort_loop": "2 digits: one site for ours, a site a step for Pyro's",
    }
    for axis, (task, title) in zip(axes.flat, titles.items(), strict=False):
        draw_variances(axis, [item for item in rows if item["task"] == task])
        axis.set_title(title, loc="left", fontsize=10)
    draw_rare_choice(axes[1, 1], [item for item in rows if item["task"] == "rare_choice"])
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def geometric_mean(rows: list[dict[str, Any]], method: str, metric: str) -> float:
    """Return the geometric mean over the seeds."""
    values = select(rows, method, metric)
    return math.exp(sum(map(math.log, values)) / len(values))


def draw_variances(axis: Axes, rows: list[dict[str, Any]]) -> None:
    """Draw a dot a seed, the geometric mean, and beside it the time of a gradient."""
    methods = [method for method in ELBOS if select(rows, method, "gradient_variance")]
    for height, method in enumerate(methods):
        values, mean = select(rows, method, "gradient_variance"), geometric_mean(rows, method, "gradient_variance")
        label = f"{mean:.3g} ({1e3 * geometric_mean(rows, method, 'gradient_cpu_seconds'):.3g} ms)"
        colour = "tab:blue" if method == "StepwiseKL_ELBO" else "tab:grey"
        axis.plot(values, [height] * len(values), "o", color=colour, alpha=0.5, markersize=5)
        axis.plot([mean], [height], "|", color=colour, markersize=22, markeredgewidth=2)
        axis.annotate(label, (mean, height), (0, 14), textcoords="offset points", ha="center", fontsize=8)
    axis.set_yticks(range(len(methods)), [method.replace("(", "\n(") for method in methods], fontsize=8)
    axis.set_ylim(len(methods) - 0.5, -0.6)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("variance of the guide's gradient (a dot a seed; time of one)", fontsize=9)
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
        with pyro.validation_enabled(False):
            rows = variances(arguments) + rare_choice(arguments)
        write_results(RESULTS, "estimators", rows)
    rows = read_rows(RESULTS)
    plot(rows, RESULTS.with_suffix(".png"))
    for task in ("chain", "bubble_sort", "bubble_sort_loop"):
        found = [item for item in rows if item["task"] == task]
        for method in (method for method in ELBOS if select(found, method, "gradient_variance")):
            variance, seconds = (
                geometric_mean(found, method, metric) / geometric_mean(found, "Trace_ELBO", metric)
                for metric in ("gradient_variance", "gradient_cpu_seconds")
            )
            print(f"{task} {method}: variance {variance:.3g}, time {seconds:.3g}, both {variance * seconds:.3g} times")


if __name__ == "__main__":
    main(tyro.cli(Arguments, args=command_line()))
