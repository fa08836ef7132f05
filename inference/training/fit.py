"""The training loop: steps of stochastic variational inference that can be watched, stopped and resumed."""

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyro
import torch
from pyro.infer import SVI
from torch import Tensor, nn
from torch.optim import Optimizer

from ..._random_state import random_state, set_random_state
from ..._verify import verify_device, verify_folder, verify_least, verify_seed
from . import checkpoint
from .interrupts import Interrupts
from .progress import Display, History, evaluate_if_due
from .updates import update_of

__all__ = ["Examples", "FitResult", "fit"]


class Examples(Protocol):
    """What can be learnt from: a sized collection that an index tensor picks a batch out of."""

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, indices: Any, /) -> Any:
        """The batch at ``indices``, a long tensor [B] on the CPU; it may have a method ``to(device)``."""


class FitResult(NamedTuple):
    """What a training run came to.

    Attributes:
        step: finished steps, counting those before a resume.
        losses: the learning curve: (step, mean loss since the entry before).
        seconds: wall-clock time spent training, evaluations left out, counting the time before a resume.
        interrupted: whether Ctrl-C ended the run before its last step.
        evaluations: (step, what ``evaluate`` returned).
    """

    step: int
    losses: list[tuple[int, float]]
    seconds: float
    interrupted: bool
    evaluations: list[tuple[int, dict[str, float]]]


def fit(
    svi: SVI | tuple[nn.Module, Optimizer],
    data: Examples,
    *,
    steps: int,
    batch_size: int,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    device: str | torch.device | None = None,
    clip: float | None = None,
    evaluate: Callable[[int], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    checkpoint_every: int = 1000,
    log_every: int = 50,
    progress: bool = True,
) -> FitResult:
    """Train a model and a guide on shuffled batches of ``data``.

    A step is ``svi.step(batch)``, with the norm of the gradient clipped in between if asked. Batches of equal
    size are cut from an endless run of shuffled epochs; the order of an epoch depends on ``seed`` and its
    number alone.

    With ``out``, the run writes ``out/checkpoint.pt`` and ``out/tensorboard``, and a later call with the same
    arguments goes on from the checkpoint: on a CPU it comes to the same bits as a run that was never stopped.
    Saved are the modules' state, loose ``pyro.param`` values, the optimiser, the random state and the
    learning curve; what a model keeps in plain Python attributes is not. The random state is set aside during
    ``evaluate``, so evaluating more or less often does not change the training.

    The first Ctrl-C lets the step finish, saves, and returns; a second one drops the step that is under way.
    SIGTERM, by which schedulers end a process, does as Ctrl-C does, and takes its course then.

    A loss that ``loss_and_grads`` returns as a tensor stays on its GPU until it is logged, so that no step
    waits for the device; Pyro's own ELBOs return a float, which does wait. A `PyroLRScheduler` is advanced
    once a step.

    Args:
        svi: either Pyro's `SVI`, or a pair ``(loss, optimizer)``, where ``loss(batch)`` gives the scalar
            loss, such as ``elbo(program, guide)``, and one torch optimiser holds its parameters. The pair has
            less overhead. Modules, not their methods, make the loss: ``elbo(program.model, guide)`` does not
            list the program's parameters.
        data: a dataset such as `Demonstrations`. Every module behind the model, guide or loss that has a
            method ``check(data)`` is asked to check it before anything starts. Where it has a method
            ``fingerprint()``, a checkpoint is gone on from with equal data only.
        steps: the step to train up to, counting those before a resume.
        batch_size: examples in a batch, at most ``len(data)``.
        seed: seeds torch, numpy and Python at step 0, and the order of the epochs.
        out: folder to write to; made if missing. None writes nothing.
        resume: go on from ``out/checkpoint.pt`` if it is there; False starts anew and overwrites it.
        device: where to move the modules and each batch; None leaves both where they are.
        clip: greatest global norm of the gradient.
        evaluate: called with the number of finished steps, returns named numbers to log.
        evaluate_every: steps between calls of ``evaluate``; it is called after the last step in any case.
        checkpoint_every: steps between checkpoints; 0 for only one at the end.
        log_every: steps between entries of the learning curve.
        progress: show a bar with loss and rate; off a terminal, a line every tenth of the way.

    Returns:
        Where the run got to; see `FitResult`.

    Raises:
        TypeError: ``svi`` is neither an `SVI` nor a pair of a loss and a torch optimiser, a number that should be
            whole is not, or the data is no dataset or not of the kind that the modules learn from.
        ValueError: an argument is out of range, the device cannot be used, ``out`` is a file, the data is of
            another precision than the modules, the optimiser of a pair holds no parameter of one of its modules,
            or the checkpoint is truncated, of another model, made under other settings (objective, optimiser,
            data) or already beyond ``steps``; nothing has been changed or written then. Or, at the first step of
            an `SVI`, the parameters of a module do not reach the optimiser.
        FloatingPointError: the loss or a parameter is no longer finite; the last checkpoint, from before,
        stands.
    """
    verify_seed(seed)
    verify_least(0, steps=steps, evaluate_every=evaluate_every, checkpoint_every=checkpoint_every)
    verify_least(1, batch_size=batch_size, log_every=log_every)
    _verify_dataset(data)
    verify_device(device)
    verify_folder(out)
    if batch_size > len(data):
        raise ValueError(f"batch_size {batch_size} exceeds the {len(data)} examples there are")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive, not {clip}")
    if evaluate_every and evaluate is None:
        raise ValueError(f"evaluate_every is {evaluate_every}, but there is no evaluate to call")
    update = update_of(svi)
    for module in update.modules:
        _verify_data(module, data)
    path = None if out is None else Path(out) / "checkpoint.pt"
    settings = dict(seed=seed, batch_size=batch_size, clip=clip, examples=len(data))
    if path is not None and callable(fingerprint := getattr(data, "fingerprint", None)):
        settings["data_fingerprint"] = fingerprint()
    settings |= update.settings()
    for module in update.modules:
        module.to(device)
    history = History()
    if path is not None and resume and path.exists():
        content = checkpoint.read(path, "settings", "step", "modules", "history", "random")
        checkpoint.verify_settings(path, content, settings, steps)
        update.restore(path, content, lambda: _batch(data, torch.arange(batch_size), device))
        history = History(**content["history"])
        set_random_state(content["random"])
    else:
        pyro.set_rng_seed(int(seed))

    saved = (history.step, len(history.evaluations))

    def save() -> None:
        nonlocal saved
        if path is None or saved == (history.step, len(history.evaluations)):
            return
        window = float(history.window)
        if not (math.isfinite(window) and update.finite()):
            raise _not_finite(f"loss or a parameter is not finite at step {history.step}", path, saved[0])
        content = {
            "step": history.step,
            "modules": [checkpoint.snapshot(module) for module in update.modules],
            **update.state(),
            "history": {**vars(history), "window": window},
            "random": random_state(),
            "settings": settings,
        }
        checkpoint.write(path, content)
        saved = (history.step, len(history.evaluations))

    def evaluate_now() -> None:
        evaluate_if_due(evaluate, evaluate_every, steps, history, display, interrupts, save)

    batches = _batches(len(data), batch_size, seed, history.step)
    with Interrupts() as interrupts, Display(history, steps, path, progress) as display:
        evaluate_now()
        while history.step < steps and not interrupts.requests:
            started = time.perf_counter()
            before = torch.get_rng_state()
            interrupts.patience = 1
            try:
                loss = update.gradients(_batch(data, next(batches), device))
            except KeyboardInterrupt:  # drop this step: what is saved is the end of the last one
                update.discard()
                torch.set_rng_state(before)
                interrupts.requests += 1
                break
            finally:
                interrupts.patience = math.inf
            if isinstance(loss, float) and not math.isfinite(loss):
                update.discard()
                raise _not_finite(f"loss is {loss} at step {history.step + 1}", path, saved[0])
            norm = update.apply(clip)
            history.step += 1
            history.window += loss
            history.window_steps += 1
            if history.step % log_every == 0:
                mean = history.close_window()
                if not math.isfinite(mean):
                    raise _not_finite(f"mean loss is {mean} at step {history.step}", path, saved[0])
                gradient = {} if norm is None else {"gradient_norm": float(norm)}
                display.scalars(history.step, {"loss": mean} | gradient)
            history.seconds += time.perf_counter() - started
            display.tick()
            evaluate_now()
            if checkpoint_every and history.step % checkpoint_every == 0:
                save()
        save()
    tail = [(history.step, float(history.window) / history.window_steps)] if history.window_steps else []
    losses = history.losses + tail
    return FitResult(history.step, losses, history.seconds, interrupts.requests > 0, history.evaluations)


def _verify_dataset(data: Any) -> None:
    sized = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if not sized or isinstance(data, list | tuple | dict):  # those take no tensor of indices
        raise TypeError(
            "data must be a dataset that a tensor of indices picks a batch out of, such as Demonstrations, "
            f"not {type(data).__name__}"
        )


def _verify_data(module: nn.Module, data: Any) -> None:
    """Refuse data that ``module`` cannot learn from: of another precision, or refused by its own check."""
    kind = type(module).__name__
    found = getattr(data, "observation_dtype", None)  # for which nothing is read from disk
    found = getattr(getattr(data, "observations", None), "dtype", None) if found is None else found
    if isinstance(found, torch.dtype) and found.is_floating_point:
        dtypes = list(dict.fromkeys(p.dtype for p in module.parameters() if p.is_floating_point()))
        if dtypes and found not in dtypes:
            raise ValueError(
                f"the observations are {found}, the parameters of the {kind} {dtypes[0]}: "
                f"use data.to(dtype={dtypes[0]})"
            )
    if callable(check := getattr(module, "check", None)):
        try:
            check(data)
        except AttributeError as error:
            if error.obj is not data:
                raise
            lacking = f"{type(data).__name__} has no attribute {error.name!r}"
            raise TypeError(f"data is not of the kind that the {kind} learns from: {lacking}") from error


def _batches(examples: int, batch_size: int, seed: int, start: int) -> Iterator[Tensor]:
    """Indices [batch_size] of each batch from step ``start`` on, cut from endless shuffled epochs."""

    def order(epoch: int) -> Tensor:
        return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(examples))

    epoch, offset = divmod(start * batch_size, examples)
    pool = order(epoch)[offset:]
    while True:
        if len(pool) < batch_size:
            epoch += 1
            pool = torch.cat([pool, order(epoch)])
        yield pool[:batch_size]
        pool = pool[batch_size:]


def _batch(data: Examples, indices: Tensor, device: str | torch.device | None) -> Any:
    batch = data[indices]
    return batch.to(device) if device is not None and hasattr(batch, "to") else batch


def _not_finite(what: str, path: Path | None, saved: int) -> FloatingPointError:
    kept = f"; {path} holds step {saved}" if path is not None and saved else ""
    return FloatingPointError(f"the {what}{kept}")
