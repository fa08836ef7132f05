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

__all__ = ["BestFit", "fit_best"]

Trained = SVI | tuple[nn.Module, Optimizer]


class BestFit(NamedTuple):
    """What came of several starts.

    Attributes:
        svi: what was made for the best start, trained.
        start: its number.
        objectives: the loss an example, after the trial of every start: of those before an interruption.
        result: of the best start's training, or of the trial that was interrupted.
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
    trial_data: Examples | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    clip: float | None = None,
    **options: Unpack[RunOptions],
) -> BestFit:
    """Train several starts for a while, and go on with the one whose loss of all data is least.

    Which start is the best is decided by what is minimised, on training data alone.

    Args:
        make: returns what :func:`fit` trains, from a number to seed its initial weights by: ``seed``, ``seed + 1``, ...
        data: see :func:`fit`.
        starts: how many.
        trial_steps: updates of every start.
        steps: updates of the best one afterwards.
        batch_size: see :func:`fit`.
        trial_data: what the starts are tried on, such as the shorter traces; by default all data.
        seed: of the first start, and of the batches of all of them.
        out: folder to write to, the trials in ``out/trial-0`` and on. A later call with the same arguments goes on
            where the first was stopped.
        clip: see :func:`fit`.
        **options: see `RunOptions`.

    Raises:
        ValueError: see :func:`fit`; or if there is no start.
    """
    verify_least(1, starts=starts, trial_steps=trial_steps)
    tried = data if trial_data is None else trial_data
    given: Any = {"batch_size": batch_size, "seed": seed, "clip": clip, **options}
    made, objectives = [], []
    for start in range(starts):
        torch.manual_seed(seed + start)
        made.append(make(seed + start))
        folder = None if out is None else Path(out) / f"trial-{start}"
        result = fit(made[start], tried, steps=trial_steps, out=folder, **given)
        objectives.append(_objective(made[start], tried, batch_size))
        if result.interrupted:
            return BestFit(made[start], start, objectives, result)
    best = min(range(starts), key=lambda start: objectives[start])
    return BestFit(made[best], best, objectives, fit(made[best], data, steps=steps, out=out, **given))


@torch.no_grad()
def _objective(svi: Trained, data: Examples, batch_size: int) -> float:
    """The loss of all data, an example."""
    batches = [data[index] for index in torch.arange(len(data)).split(batch_size)]
    losses = [svi.evaluate_loss(batch) if isinstance(svi, SVI) else float(svi[0](batch)) for batch in batches]
    return sum(losses) / len(data)
