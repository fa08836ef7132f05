"""The training loop: steps of stochastic variational inference that can be watched, stopped and resumed."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol, Unpack, get_args

import numpy as np
import pyro
import torch
from pyro.infer import SVI
from torch import Tensor, nn
from torch.optim import Optimizer

from ..._random_state import keep_random_state, mixed
from ..._verify import verify_least, verify_seed
from . import checkpoint
from .interrupts import Interrupts
from .processes import on_cpu
from .run import Evaluate, Run, RunOptions, Training, to_device
from .updates import SVIUpdate, TorchUpdate, update_of

__all__ = ["Examples", "FitResult", "Reduction", "batches", "fit", "fit_described", "fingerprint", "in_precision"]


Reduction = Literal["sum", "mean"]


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
    clip: float | None = None,
    reduction: Reduction = "sum",
    evaluate: Evaluate | None = None,
    **options: Unpack[RunOptions],
) -> FitResult:
    """Train a model and a guide on shuffled batches of ``data``.

    A step is ``svi.step(batch)``, with the norm of the gradient clipped in between if asked. Batches of equal
    size are cut from an endless run of shuffled epochs; the order of an epoch depends on ``seed`` and its
    number alone.

    With ``out``, the run writes ``out/checkpoint.pt`` and ``out/tensorboard``, and a later call with the same
    arguments goes on from the checkpoint: on a CPU it comes to the same bits as a run that was never stopped.
    Saved are the modules' state, loose ``pyro.param`` values, the optimiser, the random state and the
    learning curve; what a model keeps in plain Python attributes is not. A checkpoint also describes what else decides
    the result: the objective, the optimiser with its groups, schedule and clipping, ``clip``, ``batch_size``, ``seed``,
    the data and the parts of the modules, with the plain attributes of your own: numbers, strings, tuples and tensors
    that do not change in training. A call that differs in one of them is refused, and told in which. Begin the name of
    an attribute with an underscore if the result does not depend on it. The folder belongs to the run as long as it
    lasts.

    The first Ctrl-C lets the step finish, saves, and returns; a second one drops the step that is under way.
    SIGTERM, by which schedulers end a process, does as Ctrl-C does, and takes its course then.

    A loss that ``loss_and_grads`` returns as a tensor stays on its GPU until it is logged, so that no step
    waits for the device; Pyro's own ELBOs return a float, which does wait. A `PyroLRScheduler` is advanced
    once a step.

    With ``fabric``, each process computes the loss and the gradients of its share of every batch, and all take the same
    step, by the gradient of the whole batch, which is clipped then. Modules and parameters begin as those of process 0.
    The random numbers of a step are a function of ``seed``, the step and the number of the process, so that any number
    of processes can go on from a checkpoint: as many, on a CPU, come to the same bits. Buffers
    that depend on the data, such as running means, are each process's own; saved are those of process 0. Ctrl-C or
    SIGTERM in one process stops all after the same step. If a process ends, the others raise.

    Args:
        svi: either Pyro's `SVI`, or a pair ``(loss, optimizer)``, where ``loss(batch)`` gives the scalar
            loss, such as ``elbo(program, guide)``, and one torch optimiser holds its parameters. The pair has
            less overhead. Modules, not their methods, make the loss: ``elbo(program.model, guide)`` does not
            list the program's parameters.
        data: a dataset such as `Demonstrations`. Every module behind the model, guide or loss that has a
            method ``check(data)`` is asked to check it before anything starts. What tells it from other data is
            its method ``fingerprint()``; a tensor or array needs none.
        steps: the step to train up to, counting those before a resume.
        batch_size: examples in a batch, at most ``len(data)``.
        seed: seeds torch, numpy and Python at step 0, and the order of the epochs.
        out: folder to write to; made if missing. None writes nothing.
        clip: greatest global norm of the gradient.
        reduction: what the loss is of its batch, where several processes share that: the "sum" over examples, as plates
            of the size of the batch make it, or their "mean", as plates of the size of the data do. A warning says so
            if it seems to be the other. What is in it beside, such as a penalty of weights, counts once for each share
            of a sum: have it proportional to the size of the batch.
        evaluate: called with the number of finished steps, returns named numbers to log.
        **options: see `RunOptions`: resume, device, progress, how often to save, log and evaluate, and functions that
            are told of it.

    Returns:
        Where the run got to; see `FitResult`.

    Raises:
        TypeError: ``svi`` is neither an `SVI` nor a pair of a loss and a torch optimiser, a number that should be
            whole is not, or the data is no dataset or not of the kind that the modules learn from.
        ValueError: an argument is out of range, the device cannot be used, ``out`` is a file, the modules are of
            several precisions, the optimiser of a pair holds no parameter of one of its modules,
            or the checkpoint is truncated, of another model, made under other settings (objective, optimiser,
            data) or already beyond ``steps``; nothing has been changed or written then. Or, at the first step of
            an `SVI`, the parameters of a module do not reach the optimiser.
        RuntimeError: another of several processes has ended or raised; the last checkpoint stands.
        FloatingPointError: the loss or a parameter is no longer finite; the last checkpoint, from before,
        stands.
        BlockingIOError: another run writes to ``out``; says which process, where and since when.
        OSError: ``out`` cannot be written, or the disk is full; names the file, and the last checkpoint stands.
    """
    return fit_described(
        svi,
        data,
        None,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        out=out,
        clip=clip,
        reduction=reduction,
        evaluate=evaluate,
        **options,
    )


def fit_described(
    svi: SVI | tuple[nn.Module, Optimizer],
    data: Examples,
    origin: dict[str, Any] | None,
    *,
    steps: int,
    batch_size: int,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    clip: float | None = None,
    reduction: Reduction = "sum",
    evaluate: Evaluate | None = None,
    **options: Unpack[RunOptions],
) -> FitResult:
    """Do as `fit` does. With ``origin``, the caller holds the folder's lock, and says what else decides the result."""
    verify_seed(seed)
    verify_least(1, batch_size=batch_size)
    _verify_dataset(data)
    if batch_size > len(data):
        raise ValueError(f"batch_size {batch_size} exceeds the {len(data)} examples there are")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive, not {clip}")
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be 'sum' or 'mean', not {reduction!r}")
    update = update_of(svi)
    data = in_precision(data, update.modules, stacklevel=4)
    constants = {} if out is None else checkpoint.constants(update.modules)
    for module in update.modules:
        _verify_data(module, data)
    settings: dict[str, Any] = dict(seed=seed, batch_size=batch_size, clip=clip, examples=len(data))
    if out is not None:
        settings |= {"data_fingerprint": fingerprint(data), "frozen": checkpoint.frozen(*update.modules)}
    settings |= update.settings() | (origin or {})
    run = _Fitting(update, data, reduction, settings, out, evaluate)
    run.constants = constants  # from before a check of theirs counted itself
    usual: RunOptions = {"checkpoint_every": 1000, "log_every": 50}
    training = Training(runs=[run], steps=steps, **usual | options)
    interrupts = training.interrupts
    if training.processes.count > batch_size:
        raise ValueError(f"batch_size is {batch_size}: {training.processes.count} processes cannot share that")
    training.train(lambda: run.advance(interrupts, training.log_every), int(seed), held=origin is not None)
    done = run.history
    return FitResult(done.step, done.curve(), done.seconds, interrupts.stop, done.evaluations)


def fingerprint(data: Any) -> str | None:
    """A short hash of data: its own, or that of a tensor or array; None where it has neither."""
    if callable(own := getattr(data, "fingerprint", None)):
        return str(own())
    return checkpoint.fingerprint(data) if isinstance(data, Tensor | np.ndarray) else None


class _Fitting(Run):
    """Updates on batches of examples."""

    needs = ("optimizer", "params")

    def __init__(self, update: SVIUpdate | TorchUpdate, data: Examples, reduction: Reduction, *given: Any) -> None:
        super().__init__(update.modules, *given)
        self.update, self.data, self.reduction = update, data, reduction
        self.device: str | torch.device | None = None
        self.lengths: Tensor | None = None
        self.size, self.clip = self.settings["batch_size"], self.settings["clip"]

    def open(self, device: str | torch.device | None, content: dict[str, Any] | None) -> None:
        self.device = device
        for module in self.modules:
            module.to(device)
        if content is not None:
            assert self.path is not None
            self.update.restore(self.path, content, lambda: self._batch(torch.arange(self.size)))
        if self.processes.count > 1:
            self._agree()
        stream = batches(int(self.settings["seed"]), len(self.data), self.size, self.history.step)
        self.batches = map(torch.from_numpy, stream)

    def state(self) -> dict[str, Any]:
        return self.update.state()

    def finite(self) -> bool:
        return self.update.finite()

    def advance(self, interrupts: Interrupts, log_every: int) -> bool:
        """Take a step; return False if a second Ctrl-C had it dropped."""
        put_back, history, processes = keep_random_state(), self.history, self.processes
        if processes.count == 1:
            interrupts.patience = 1
        else:  # no state to save but these numbers; and nobody drops a step that the others take
            pyro.set_rng_seed(mixed(int(self.settings["seed"]), history.step, processes.rank))
        try:
            share = processes.share(next(self.batches), self.lengths)
            loss = self.update.gradients(self._batch(share))
        except KeyboardInterrupt:  # what is saved is the end of the last step
            self.update.discard()
            put_back()
            interrupts.requests += 1
            return False
        finally:
            interrupts.patience = math.inf
        if processes.count > 1:
            weight = len(share) / self.size if self.reduction == "mean" else 1.0
            loss = self._joined(loss, weight, interrupts, log_every)
        if isinstance(loss, float) and not math.isfinite(loss):
            self.update.discard()
            raise self.not_finite(f"loss is {loss} at step {history.step + 1}")
        norm = self.update.apply(self.clip)
        if norm is not None:
            self.numbers = {"gradient_norm": norm}
        history.step += 1
        history.window += loss
        history.window_steps += 1
        return True

    def _agree(self) -> None:
        """Have in all processes what the leading one has: the same call, and the same numbers in all modules."""
        if isinstance(lengths := getattr(self.data, "lengths", None), Tensor):
            self.lengths = lengths.cpu()
        before = [copy.deepcopy(module.state_dict()) for module in self.modules]
        pyro.set_rng_seed(int(self.settings["seed"]))
        self.update.meet(self._batch(torch.arange(self.size)))
        store = dict(pyro.get_param_store().named_parameters())

        def mine() -> Any:
            if self.content is None:
                self._warn_of_reduction()
            states = [module.state_dict() | old for module, old in zip(self.modules, before, strict=True)]
            return on_cpu((self.settings | {"reduction": self.reduction}, states, store))

        settings, states, values = self.processes.led(mine)
        if unlike := checkpoint.difference(settings, self.settings | {"reduction": self.reduction}):
            raise ValueError(f"process {self.processes.rank} was not called as the leading one was: there is {unlike}")
        for module, state in zip(self.modules, states, strict=True):
            module.load_state_dict(state)
        with torch.no_grad():
            for name, value in store.items():
                value.copy_(values[name])

    def _warn_of_reduction(self) -> None:
        """Warn if the loss of a batch is that of its halves as the other reduction has it."""

        def loss_of(indices: Tensor) -> float:
            pyro.set_rng_seed(int(self.settings["seed"]))
            return float(self.update.loss_of(self._batch(indices)))

        whole, halves = loss_of(torch.arange(self.size)), torch.arange(self.size).tensor_split(2)
        losses = [loss_of(half) for half in halves]
        mean = sum(loss * len(half) / self.size for loss, half in zip(losses, halves, strict=True))
        off = {"sum": abs(whole - sum(losses)), "mean": abs(whole - mean)}
        other = "mean" if self.reduction == "sum" else "sum"
        if off[other] < 0.1 * off[self.reduction]:
            found = f"the loss of a batch is {whole:.4g}, those of its halves {losses[0]:.4g} and {losses[1]:.4g}"
            warnings.warn(f"{found}: so it is the {other} over examples; see reduction", stacklevel=2)

    def _joined(self, loss: float | Tensor, weight: float, interrupts: Interrupts, log_every: int) -> float | Tensor:
        """Put the gradients of the whole batch in the place of those of the share; return the loss of it all."""
        update, everything = self.update, self.update.everything
        reached = {*map(id, update.parameters)}
        if reached - {*map(id, everything)}:
            raise ValueError("a parameter was not there in the first run: several processes cannot share its gradient")
        for parameter in everything:
            if id(parameter) not in reached:
                parameter.grad = None
        precision, device = torch.promote_types(everything[0].dtype, torch.float32), everything[0].device
        told = torch.tensor([0.0, interrupts.requests > 0], dtype=precision, device=device)
        told[0] = loss * weight
        update.parameters = self.processes.join(everything, told, weight)
        if device.type == "cpu" or (self.history.step + 1) % log_every == 0:  # where the loss is read as well
            interrupts.shared = bool(told[1])
        return told[0].item() if device.type == "cpu" else told[0].double()

    def _batch(self, indices: Tensor) -> Any:
        return to_device(self.data[indices], self.device)


def batches(seed: int, examples: int, size: int, start: int) -> Iterator[np.ndarray]:
    """Indices ``[size]`` of each batch from step ``start`` on, cut from endless shuffled epochs."""

    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(examples)

    epoch, offset = divmod(start * size, examples)
    pool = order(epoch)[offset:]
    while True:
        if len(pool) < size:
            epoch += 1
            pool = np.concatenate([pool, order(epoch)])
        yield pool[:size]
        pool = pool[size:]


def _verify_dataset(data: Any) -> None:
    sized = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if not sized or isinstance(data, list | tuple | dict):  # those take no tensor of indices
        raise TypeError(
            "data must be a dataset that a tensor of indices picks a batch out of, such as Demonstrations, "
            f"not {type(data).__name__}"
        )


def in_precision(data: Any, modules: Sequence[nn.Module], stacklevel: int) -> Any:
    """Return data in the precision of the modules. A note says so where that rounds, as NumPy's float64 often is."""
    found = getattr(data, "observation_dtype", None)  # for which nothing is read from disk
    found = getattr(getattr(data, "observations", None), "dtype", None) if found is None else found
    wanted = {p.dtype for module in modules for p in module.parameters() if p.is_floating_point()}
    if not isinstance(found, torch.dtype) or not found.is_floating_point or not wanted or found in wanted:
        return data
    if len(wanted) > 1:
        names = " and ".join(sorted(map(str, wanted)))
        raise ValueError(f"the modules are {names}, the observations {found}: give all modules one precision")
    (dtype,) = wanted
    if torch.finfo(dtype).bits < torch.finfo(found).bits:
        warnings.warn(f"the data is {found}, the model {dtype}: the data is rounded to it", stacklevel=stacklevel)
    return data.to(dtype=dtype)


def _verify_data(module: nn.Module, data: Any) -> None:
    """Refuse data that ``module`` does not learn from, by its own check."""
    kind = type(module).__name__
    if callable(check := getattr(module, "check", None)):
        try:
            check(data)
        except AttributeError as error:
            if error.obj is not data:
                raise
            lacking = f"{type(data).__name__} has no attribute {error.name!r}"
            raise TypeError(f"data is not of the kind that the {kind} learns from: {lacking}") from error
