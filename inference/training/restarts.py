"""Several starts of one training, of which the best by its own objective goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import pyro
import torch
from pyro.infer import SVI
from torch import nn
from torch.optim import Optimizer

from ..._random_state import random_state_aside
from ..._verify import verify_folder, verify_least
from . import checkpoint
from .fit import Examples, FitResult, Reduction, fingerprint, fit, fit_described, in_precision
from .processes import Processes
from .run import RunOptions, lock_of, to_device
from .updates import update_of

__all__ = ["BestFit", "fit_best"]

Trained = SVI | tuple[nn.Module, Optimizer]
_SAMPLES = 8  # of a loss that is sampled


class BestFit(NamedTuple):
    """What came of several starts.

    Attributes:
        trained: what was made for the best start, trained.
        start: its number.
        losses: the loss per example of the trial data, after the trial of every start; of an interrupted call, of
            those whose trials were over.
        result: of the best start's training, or of the trial that was interrupted.
    """

    trained: Trained
    start: int
    losses: list[float]
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
    reduction: Reduction = "sum",
    **options: Unpack[RunOptions],
) -> BestFit:
    """Train several starts for a while, and go on with the one whose loss per example of the trial data is least.

    Which start is the best is decided by what is minimised, on training data alone. A loss that is sampled, such as a
    variational bound, is the mean of eight samples, with the same random numbers for every start.

    Args:
        make: returns what :func:`fit` trains, from a number to seed its initial weights by: ``seed``, ``seed + 1``, ...
        data: see :func:`fit`.
        starts: how many.
        trial_steps: updates of every start.
        steps: updates of the best one after its trial.
        batch_size: see :func:`fit`.
        trial_data: what the starts are tried on, such as the shorter traces; by default all data.
        seed: of the first start, and of the batches of all of them.
        out: folder to write to, the trials in ``out/trial-0`` and on. A later call with the same arguments goes on
            where the first was stopped; one with other ``starts``, ``trial_steps`` or ``trial_data`` is refused. The
            folder belongs to the call as long as it lasts.
        clip: see :func:`fit`.
        reduction: see :func:`fit`.
        **options: see `RunOptions`.

    Raises:
        ValueError: see :func:`fit`; or if there is no start.
        BlockingIOError: another run writes to ``out``.
    """
    verify_least(1, starts=starts, trial_steps=trial_steps)
    verify_least(0, steps=steps)
    verify_folder(out)
    tried = data if trial_data is None else trial_data
    given: Any = {"batch_size": batch_size, "seed": seed, "clip": clip, "reduction": reduction, **options}
    processes = Processes(options.get("fabric"), options.get("device"))
    origin: dict[str, Any] = {"starts": starts, "trial_steps": trial_steps}
    made, losses = list[Trained](), list[float]()
    with ExitStack() as stack:
        if out is not None:
            processes.led(lambda: stack.enter_context(lock_of(out)))
        for start in range(starts):
            torch.manual_seed(seed + start)
            made.append(make(seed + start))
            if start == 0:
                tried = in_precision(tried, update_of(made[0]).modules, stacklevel=3)
                if out is not None:
                    origin["trial_data"] = fingerprint(tried)
                    if options.get("resume", True):
                        processes.led(partial(_verify_origin, Path(out) / "checkpoint.pt", origin))
            folder = None if out is None else Path(out) / f"trial-{start}"
            result = fit(made[start], tried, steps=trial_steps, out=folder, **given)
            try:
                if not result.interrupted:
                    loss = partial(_loss, made[start], tried, batch_size, seed, processes.device)
                    losses.append(processes.led(loss))
            except KeyboardInterrupt:  # the trial is saved
                result = result._replace(interrupted=True)
            if result.interrupted:
                return BestFit(made[start], start, losses, result)
        best = min(range(starts), key=lambda start: losses[start])
        result = fit_described(made[best], data, origin | {"start": best}, steps=steps, out=out, **given)
        return BestFit(made[best], best, losses, result)


def _verify_origin(path: Path, origin: dict[str, Any]) -> None:
    """Refuse the checkpoint of other starts before any of them is tried."""
    if path.exists():
        saved = checkpoint.read(path, "settings")["settings"]
        if unlike := checkpoint.difference({name: saved.get(name) for name in origin}, origin):
            raise ValueError(f"{path} was made with {unlike}; {checkpoint.ANEW}")


def _loss(trained: Trained, data: Examples, batch_size: int, seed: int, device: str | torch.device | None) -> float:
    """The loss per example: once where it is exact, which two samples that agree say, else the mean of several."""
    update = update_of(trained)
    batches = torch.arange(len(data)).split(batch_size)

    def once() -> float:
        return sum(float(update.loss_of(to_device(data[index], device))) for index in batches) / len(data)

    with random_state_aside():
        pyro.set_rng_seed(seed)
        samples = [once(), once()]
        if samples[0] != samples[1]:
            samples += [once() for _ in range(_SAMPLES - 2)]
    return sum(samples) / len(samples)
