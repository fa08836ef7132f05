"""Remake results/segmentation.json: what it takes to segment demonstrations into skills.

    python benchmarks/segmentation.py

The model, guide and training of examples/segment_skills.py, and the same with one part left out at a time. Each seed
has demonstrations, initial weights and batches of its own; all methods of a seed share the demonstrations. Draws the
plot beside the results, and writes the table of docs/your-own-method.md with ``--page``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import pyro
import torch
import tyro
from pyro.distributions import Categorical
from torch import Tensor, nn

from pyrocontrol._files import replacing, writing
from pyrocontrol.envs import Demonstrations
from pyrocontrol.inference import (
    StepwiseKL_ELBO,
    forward_log_likelihood,
    read_rows,
    row,
    select,
    summary,
    write_results,
)
from pyrocontrol.models import at_step, spread
from training_runs import command_line, with_table

HERE = Path(__file__).parent
matplotlib.use("Agg")
sys.path.append(str(HERE.parent / "examples"))
from matplotlib import pyplot as plt  # noqa: E402  (the backend has to be set first)

import segment_skills as example  # noqa: E402

PAGE = HERE.parent / "docs" / "your-own-method.md"


@dataclass
class Arguments:
    """Learn with everything, and with one part left out at a time."""

    out: Path = HERE / "results" / "segmentation.json"
    """results file"""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """of demonstrations, initial weights and batches"""
    demos: int = 100
    """demonstrations to learn from; as many are held out"""
    updates: int = 300
    """batches of 25 demonstrations"""
    page: bool = False
    """make nothing, write the table of the results there are into the page"""


class Alone(example.Skills):
    """A posterior that forgets what it has chosen: every step for itself."""

    def conditional(self, state: example.Running, context: example.Seen) -> Categorical:
        """What the demonstration says."""
        assert context.evidence is not None
        return Categorical(logits=at_step(context.evidence, state.step))


class Exact(nn.Module):
    """A loss without a guide: the skills are summed out."""

    def __init__(self, model: example.Hand):
        super().__init__()
        self.model = model

    def forward(self, batch: Demonstrations) -> Tensor:
        """Return -log p, nats, summed over demonstrations."""
        return -forward_log_likelihood(*example.chain(self.model, batch)).sum()


@dataclass
class Method:
    """A way of learning, everything as on the page unless told otherwise.

    Attributes:
        text: of the table.
        alone: the guide decides every step by itself.
        exact: no guide; the exact log-likelihood in the place of its bound.
    """

    text: str
    updates: int | None = None
    particles: int = 4
    baseline: bool = True
    rate: float = 0.01
    places: Callable[[Tensor, int], Tensor] = spread
    longest: int = 12
    alone: bool = False
    scaled: bool = True
    exact: bool = False


def at_random(points: Tensor, count: int) -> Tensor:
    """Return places from a standard normal."""
    return torch.randn(count, points.shape[1])


METHODS = {
    "all": Method("everything"),
    "no-baseline": Method("the same four samples, no baseline", baseline=False),
    "random-places": Method("initial places at random", places=at_random),
    "slow": Method("learning rate 0.001", rate=0.001),
    "raw": Method("the guide reads raw numbers", scaled=False),
    "alone": Method("a guide of steps by themselves", alone=True),
    "first": Method("one sample, places at random, rate 0.001", None, 1, False, 0.001, at_random),
    "markov": Method("a Markov chain: durations forgotten", longest=1),
    "exact": Method("no guide: the exact log-likelihood", exact=True),
    "untrained": Method("everything, before training", updates=0),
}
TEXTS = {name: method.text for name, method in METHODS.items()}
TEXTS |= {"k-means": "k-means on the velocities", "ceiling": "the true model's exact posterior"}


def learn(
    method: Method, demos: Demonstrations, held_out: Demonstrations, labels: list[Tensor], given: example.Arguments
) -> dict[str, float]:
    """Learn in one way; return the scores on held-out demonstrations."""
    places = len(example.PLACES)
    model = example.Hand(method.places(demos.observations[demos.mask], places), method.longest)
    guide = example.Reader(demos, places)
    guide.process = (Alone if method.alone else example.SkillsFound)(places, method.longest)
    if not method.scaled:
        guide.mean.zero_(), guide.scale.fill_(1)
    elbo = StepwiseKL_ELBO(method.particles, 1, vectorize_particles=method.baseline)
    updates = given.updates if method.updates is None else method.updates
    loss = Exact(model) if method.exact else elbo(model, guide)
    example.learn(loss, demos, replace(given, rate=method.rate, updates=updates), progress=False)
    return example.judge(model, None if method.exact else guide, held_out, labels)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table of the page: mean and half width of the 95% interval."""
    lines = ["| | accuracy | boundary F1 | bound, nats | exact, nats |", "|---|---|---|---|---|"]
    for method, text in TEXTS.items():
        cells = []
        for metric, digits in (("accuracy", 3), ("boundary_f1", 3), ("elbo", 1), ("log_likelihood", 1)):
            found = summary(rows, method, metric)
            cells.append(f"{found.mean:.{digits}f} ± {found.half:.{digits}f}" if found.seeds else "")
        lines.append(f"| {text} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draw the accuracy of every seed, and the means."""
    methods = [*TEXTS][::-1]
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for height, method in enumerate(methods):
        values = select(rows, method, "accuracy")
        axes.barh(height, summary(rows, method, "accuracy").mean, color="tab:blue" if method == "all" else "lightgrey")
        axes.plot(values, [height] * len(values), "k.", alpha=0.5)
    axes.set_yticks(range(len(methods)), [TEXTS[method] for method in methods])
    axes.set(xlabel="share of steps of held-out demonstrations with the right skill", xlim=(0, 1))
    with replacing(path) as (temporary,):
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def main(arguments: Arguments) -> None:
    """Learn in all ways with all seeds; write results, plot, and the page's table."""
    if arguments.page:
        page = with_table(PAGE.read_text(), table(read_rows(arguments.out)))
        with writing(PAGE) as file:
            file.write(page.encode())
        return
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        given = example.Arguments(demos=arguments.demos, updates=arguments.updates, seed=seed)
        demos, _ = example.demonstrate(given.demos, 2 * seed)
        held_out, labels = example.demonstrate(given.demos, 2 * seed + 1)
        pyro.set_rng_seed(seed)
        found = {name: (scores, 0.0) for name, scores in example.references(demos, held_out, labels).items()}
        for name, method in METHODS.items():
            pyro.set_rng_seed(seed)
            start = time.perf_counter()
            scores = learn(method, demos, held_out, labels, given)
            found[name] = scores, time.perf_counter() - start
            print(f"seed {seed} {name:>13}: " + ", ".join(f"{k} {v:.3f}" for k, v in scores.items()), flush=True)
        setting = {"demos": given.demos, "updates": given.updates}
        rows += [
            row(name, "places", metric, value, seed=seed, seconds=seconds, **setting)
            for name, (scores, seconds) in found.items()
            for metric, value in scores.items()
        ]
    write_results(arguments.out, "segmentation", rows)
    plot(arguments.out.with_suffix(".png"), rows)


if __name__ == "__main__":
    main(tyro.cli(Arguments, args=command_line()))
