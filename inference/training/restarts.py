"""Several starts of one training, of which the best by its own objective goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
from pyro.infer import SVI
from torch import nn
from torch.optim import Optimizer

from ..._verify import verify_least
from .fit import Examples, FitResult, fit
from .run import RunOptions
from .updates import update_of

__all__ = ["BestFit", "fit_best"]

Trained = SVI | tuple[nn.Module, Optimizer]


class BestFit(NamedTuple):
    """What came of several starts.

    Attributes:
        svi: what was made for the best start, trained.
        start: its number.
        objectives: the loss of all data an example, in nats, after the trial of every start; NaN for starts that were
            not tried because the run was interrupted.
        result: of the best start's training.
    """

    svi: Trained
    start: int
    objectives: list[float]
    result: FitResult


def fit_best(
    make: Callable[[int], Trained],
    data: Examples,
    *,
    starts: int,
    trial_steps: int,
    steps: int,
    batch_size: int,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    clip: float | None = None,
    **options: Unpack[RunOptions],
) -> BestFit:
    """Train several starts for a while, and go on with the one whose loss of all data is least.

    Which start is the best is decided by what is minimised, on the training data alone.

    Args:
        make: returns what :func:`fit` trains, from a number to seed its initial weights by: ``seed``, ``seed + 1``, ...
        data: see :func:`fit`.
        starts: how many.
        trial_steps: updates of every start.
        steps: updates of the best one, those of its trial counted.
        batch_size: see :func:`fit`.
        seed: of the first start, and of the batches of all of them.
        out: folder to write to, each start in its own, ``out/start-0`` and on. A later call with the same arguments goes
            on where the first was stopped.
        clip: see :func:`fit`.
        **options: see `RunOptions`.

    Raises:
        ValueError: see :func:`fit`; or if there is no start, or trials are longer than the whole.
    """
    verify_least(1, starts=starts, trial_steps=trial_steps)
    if trial_steps > steps:
        raise ValueError(f"a trial of {trial_steps} steps is longer than the whole training of {steps}")

    def folder(start: int) -> Path | None:
        return None if out is None else Path(out) / f"start-{start}"

    def train(svi: Trained, start: int, until: int) -> FitResult:
        given: Any = {"steps": until, "batch_size": batch_size, "seed": seed, "out": folder(start), "clip": clip}
        return fit(svi, data, **given, **options)

    made, objectives = [], []
    for start in range(starts):
        torch.manual_seed(seed + start)
        made.append(make(seed + start))
        result = train(made[start], start, trial_steps)
        objectives.append(_objective(made[start], data, batch_size))
        if result.interrupted:
            objectives += [float("nan")] * (starts - start - 1)
            return BestFit(made[start], start, objectives, result)
    best = min(range(starts), key=lambda start: objectives[start])
    return BestFit(made[best], best, objectives, train(made[best], best, steps))


@torch.no_grad()
def _objective(svi: Trained, data: Examples, batch_size: int) -> float:
    """The loss of all data, an example."""
    update = update_of(svi)
    batches = torch.arange(len(data)).split(batch_size)
    return sum(float(update.loss_of(data[batch])) for batch in batches) / len(data)
