"""The training loop: steps of stochastic variational inference that can be watched, stopped and resumed."""

import functools
import inspect
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.elbo import ELBO, ELBOModule
from pyro.infer.util import zero_grads
from pyro.optim import PyroLRScheduler
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from . import checkpoint
from .checkpoint import load_checkpoint

__all__ = ["Examples", "FitResult", "fit", "load_checkpoint"]


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
        TypeError: ``svi`` is neither an `SVI` nor a pair of a loss and a torch optimiser, or the data is no
            dataset or not of the kind that the modules learn from.
        ValueError: an argument is out of range, the data is of another precision than the modules, the
            optimiser of a pair holds no parameter of one of its modules, or the checkpoint is truncated, of
            another model, made under other settings (objective, optimiser, data) or already beyond ``steps``;
            nothing has been changed or written then. Or, at the first step of an `SVI`, the parameters of a
            module do not reach the optimiser.
        FloatingPointError: the loss or a parameter is no longer finite; the last checkpoint, from before,
        stands.
    """
    _verify_least(0, steps=steps, seed=seed, evaluate_every=evaluate_every, checkpoint_every=checkpoint_every)
    _verify_least(1, batch_size=batch_size, log_every=log_every)
    _verify_dataset(data)
    if batch_size > len(data):
        raise ValueError(f"batch_size {batch_size} exceeds the {len(data)} examples there are")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive, not {clip}")
    if evaluate_every and evaluate is None:
        raise ValueError(f"evaluate_every is {evaluate_every}, but there is no evaluate to call")
    update = _update(svi)
    for module in update.modules:
        _verify_data(module, data)
    path = None if out is None else Path(out) / "checkpoint.pt"
    settings = dict(seed=seed, batch_size=batch_size, clip=clip, examples=len(data))
    if path is not None and callable(fingerprint := getattr(data, "fingerprint", None)):
        settings["data_fingerprint"] = fingerprint()
    settings |= update.settings()
    for module in update.modules:
        module.to(device)
    history = _History()
    if path is not None and resume and path.exists():
        content = checkpoint.read(path)
        _compare(path, content, settings, steps)
        update.restore(path, content, lambda: _batch(data, torch.arange(batch_size), device))
        history = _History(**content["history"])
        checkpoint.set_random_state(content["random"])
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
            "random": checkpoint.random_state(),
            "settings": settings,
        }
        checkpoint.write(path, content)
        saved = (history.step, len(history.evaluations))

    def evaluate_if_due() -> None:
        due = history.step == steps or (evaluate_every and history.step % evaluate_every == 0)
        done = history.evaluations[-1][0] if history.evaluations else 0
        if evaluate is None or not due or history.step == done or interrupts.requests:
            return
        before = checkpoint.random_state()
        interrupts.patience = 0  # no step is under way, so Ctrl-C may act at once
        try:
            results = {name: float(value) for name, value in evaluate(history.step).items()}
        except KeyboardInterrupt:
            interrupts.requests += 1
        else:
            history.evaluations.append((history.step, results))
            display.scalars(history.step, results)
        finally:
            interrupts.patience = math.inf
            checkpoint.set_random_state(before)

    batches = _batches(len(data), batch_size, seed, history.step)
    with _Interrupts() as interrupts, _Display(history, steps, path, progress) as display:
        evaluate_if_due()
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
            evaluate_if_due()
            if checkpoint_every and history.step % checkpoint_every == 0:
                save()
        save()
    tail = [(history.step, float(history.window) / history.window_steps)] if history.window_steps else []
    losses = history.losses + tail
    return FitResult(history.step, losses, history.seconds, interrupts.requests > 0, history.evaluations)


def _verify_least(least: int, **arguments: int) -> None:
    for name, value in arguments.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")


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
    observations = getattr(data, "observations", None)
    if isinstance(observations, Tensor) and observations.is_floating_point():
        dtypes = list(dict.fromkeys(p.dtype for p in module.parameters() if p.is_floating_point()))
        if dtypes and observations.dtype not in dtypes:
            raise ValueError(
                f"the observations are {observations.dtype}, the parameters of the {kind} {dtypes[0]}: "
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


def _update(svi: Any) -> "_SVIUpdate | _TorchUpdate":
    if isinstance(svi, SVI):
        return _SVIUpdate(svi)
    if isinstance(svi, tuple) and len(svi) == 2 and callable(svi[0]) and isinstance(svi[1], Optimizer):
        return _TorchUpdate(*svi)
    given = f"({', '.join(type(e).__name__ for e in svi)})" if isinstance(svi, tuple) else type(svi).__name__
    raise TypeError(f"pass an SVI or a pair (loss, optimizer) with a torch optimiser, not {given}")


@dataclass
class _History:
    """Where a run is; all of it is written to the checkpoint."""

    step: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)
    window: float | Tensor = 0.0  # sum of the losses since the last entry of `losses`, a tensor on a GPU
    window_steps: int = 0
    seconds: float = 0.0
    evaluations: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def close_window(self) -> float:
        mean = float(self.window) / self.window_steps
        self.losses.append((self.step, mean))
        self.window, self.window_steps = 0.0, 0
        return mean


class _SVIUpdate:
    """The halves of ``SVI.step``, gradients and update, with room to clip and to stop in between."""

    def __init__(self, svi: SVI) -> None:
        self.svi = svi
        self.modules = _modules(svi.model, svi.guide, svi.loss_and_grads)
        self.parameters: list[Tensor] = []  # those of the last step
        self.verified = False

    def settings(self) -> dict[str, Any]:
        optim = self.svi.optim
        options = _plain(optim.pt_optim_args)
        return {**_objective(self.svi.loss), "optimizer": optim.pt_optim_constructor.__name__, **options}

    def gradients(self, batch: Any) -> float | Tensor:
        with poutine.trace(param_only=True) as capture:
            try:
                loss = self.svi.loss_and_grads(self.svi.model, self.svi.guide, batch)
            finally:  # a dict keeps the order, hence the bits of the norm; SVI's set does not
                sites = capture.trace.nodes.values()
                values: list[Any] = [site["value"] for site in sites]
                self.parameters = list(dict.fromkeys(value.unconstrained() for value in values))
        if not self.verified:
            self._verify_trained(capture.trace.nodes)
        return _value(loss)

    def apply(self, clip: float | None) -> Tensor | None:
        norm = None if clip is None else clip_grad_norm_(self.parameters, clip)
        self.svi.optim(self.parameters)
        zero_grads(self.parameters)
        if isinstance(self.svi.optim, PyroLRScheduler):
            self.svi.optim.step()
        return norm

    def discard(self) -> None:
        zero_grads(self.parameters)

    def state(self) -> dict[str, Any]:
        optim = self.svi.optim
        # State that waits belongs to parameters that no step since the resume has met.
        return {
            "params": {name: value.detach() for name, value in self._loose().items()},
            "optimizer": {**optim._state_waiting_to_be_consumed, **optim.get_state()},
        }

    def restore(self, path: Path, content: dict[str, Any], first_batch: Callable[[], Any]) -> None:
        store, optim = pyro.get_param_store(), self.svi.optim
        entries = sum(len(module.state_dict()) for module in self.modules)
        lazy = entries < sum(len(module["state"]) for module in content["modules"])
        if not lazy:
            checkpoint.match(path, self.modules, content["modules"])
        # A model made anew in this process would find the old one's parameters under its names.
        own = self._own()
        for name, value in list(store.named_parameters()):
            if name in content["optimizer"] and id(value) not in own:
                del store[name]
        if lazy or content["params"]:
            with torch.no_grad():  # makes the parameters that only a first run makes
                self.svi.loss(self.svi.model, self.svi.guide, first_batch())
        matched = checkpoint.match(path, self.modules, content["modules"])
        loose = dict(store.named_parameters())
        for name, value in content["params"].items():
            if name not in loose or loose[name].shape != value.shape:
                raise ValueError(f"{path} is a checkpoint of another model: nothing here takes its {name}")
        checkpoint.apply(matched)
        with torch.no_grad():
            for name, value in content["params"].items():
                loose[name].copy_(value)
        optim.optim_objs.clear()
        optim.grad_clip.clear()
        optim._state_waiting_to_be_consumed.clear()
        optim.set_state(content["optimizer"])

    def finite(self) -> bool:
        return _finite([*(p for m in self.modules for p in m.parameters()), *self._loose().values()])

    def _own(self) -> set[int]:
        return {id(parameter) for module in self.modules for parameter in module.parameters()}

    def _loose(self) -> dict[str, Tensor]:
        """Unconstrained values, by name, of the optimised parameters that no module holds."""
        own, store = self._own(), pyro.get_param_store()
        return {str(store.param_name(p)): p for p in self.svi.optim.optim_objs if id(p) not in own}

    def _verify_trained(self, names: Collection[str]) -> None:
        """Refuse what Pyro passes over in silence: a module whose gradients no optimiser sees."""
        remedy = "call pyro.module(name, self) in the model or guide"
        if not self.parameters:
            raise ValueError(f"no parameter reaches the optimiser: {remedy}")
        reached = {id(parameter) for parameter in self.parameters}
        for module in _modules(self.svi.model, self.svi.guide):
            parameters = dict(module.named_parameters())
            if any(id(p) in reached for p in parameters.values()):
                continue
            if all(p.grad is None for p in parameters.values()):  # frozen, or not used in this step
                continue
            stale = [name for name in names if name.split("$$$")[-1] in parameters]
            if stale:
                remedy = f"Pyro's parameter store has another module's {stale[0]}; call pyro.clear_param_store()"
            raise ValueError(f"no parameter of the {type(module).__name__} reaches the optimiser: {remedy}")
        self.verified = True


class _TorchUpdate:
    """A differentiable loss and one torch optimiser over its parameters."""

    def __init__(self, loss: nn.Module, optimizer: Optimizer) -> None:
        self.loss, self.optimizer = loss, optimizer
        self.modules = _modules(loss)
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        own = {id(parameter) for module in self.modules for parameter in module.parameters()}
        if foreign := sum(id(parameter) not in own for parameter in self.parameters):
            raise ValueError(f"the optimiser holds {foreign} parameters that no module behind the loss holds")
        held = {id(parameter) for parameter in self.parameters}
        for module in self.modules:
            trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
            if trainable and not any(id(parameter) in held for parameter in trainable):
                raise ValueError(
                    f"no parameter of the {type(module).__name__} is in the optimiser: use elbo(program, guide), not "
                    "elbo(program.model, guide), and an optimiser of all its parameters(), or freeze the module with "
                    "requires_grad_(False)"
                )

    def settings(self) -> dict[str, Any]:
        options = _plain(self.optimizer.defaults)
        return {**_objective(self.loss), "optimizer": f"torch {type(self.optimizer).__name__}", **options}

    def gradients(self, batch: Any) -> float | Tensor:
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        loss.backward()
        return _value(loss)

    def apply(self, clip: float | None) -> Tensor | None:
        norm = None if clip is None else clip_grad_norm_(self.parameters, clip)
        self.optimizer.step()
        return norm

    def discard(self) -> None:
        self.optimizer.zero_grad()

    def state(self) -> dict[str, Any]:
        return {"params": {}, "optimizer": self.optimizer.state_dict()}

    def restore(self, path: Path, content: dict[str, Any], first_batch: Callable[[], Any]) -> None:
        matched = checkpoint.match(path, self.modules, content["modules"])
        groups = content["optimizer"]["param_groups"]
        if [len(g["params"]) for g in groups] != [len(g["params"]) for g in self.optimizer.param_groups]:
            raise ValueError(f"{path} is a checkpoint of another optimiser: its parameter groups differ")
        checkpoint.apply(matched)
        self.optimizer.load_state_dict(content["optimizer"])

    def finite(self) -> bool:
        return _finite(self.parameters)


class _Interrupts:
    """Turns Ctrl-C into a request, so that no update, evaluation entry or file is left half-done.

    Attributes:
        requests: how often Ctrl-C was pressed.
        patience: presses beyond this many raise `KeyboardInterrupt` at once.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.patience = math.inf
        self.previous: Any = None

    def __enter__(self) -> Self:
        # Only the main thread may handle signals, and only it gets them; a background job ignores Ctrl-C.
        if threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None):
                self.previous = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self.requests += 1
        if self.requests > self.patience:
            raise KeyboardInterrupt


class _Display:
    """Progress bar (or lines, off a terminal) and TensorBoard."""

    def __init__(self, history: _History, steps: int, path: Path | None, progress: bool) -> None:
        self.history, self.steps, self.path, self.progress = history, steps, path, progress
        self.start = self.shown = history.step
        self.seconds = history.seconds  # training time before this run
        self.logged = (history.step, history.seconds)
        self.drawn = 0.0
        self.bar: Any = None
        self.console: Any = None
        self.writer: Any = None

    def __enter__(self) -> Self:
        if self.path is not None:
            from torch.utils.tensorboard import SummaryWriter  # here, because it takes a second

            self.path.parent.mkdir(parents=True, exist_ok=True)
            folder = str(self.path.with_name("tensorboard"))
            # What a run that was cut short logged beyond its last checkpoint comes again.
            self.writer = SummaryWriter(folder, purge_step=self.start + 1)
        if self.progress:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self.console = Console(stderr=True)
            if self.console.is_terminal:
                numbers = TextColumn("{task.description}")
                columns = (BarColumn(), MofNCompleteColumn(), numbers, TimeRemainingColumn())
                self.bar = Progress(*columns, console=self.console, auto_refresh=False)
                self.task = self.bar.add_task("", total=self.steps, completed=self.start)
                self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self._draw()
            self.bar.stop()
        if self.writer is not None:
            self.writer.close()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log numbers of one step to TensorBoard, with the rate since the last loss beside a loss."""
        if self.writer is None:
            return
        if "loss" in values:
            before, seconds = self.logged
            self.logged = (step, self.history.seconds)
            if self.history.seconds > seconds:
                values = values | {"steps_per_second": (step - before) / (self.history.seconds - seconds)}
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def tick(self) -> None:
        """Redraw, four times a second at most; off a terminal, print a line every tenth of the way."""
        if self.bar is not None:
            if time.perf_counter() - self.drawn > 0.25:
                self._draw()
        elif self.console is not None:
            step = self.history.step
            if step * 10 // self.steps > self.shown * 10 // self.steps:
                self.shown = step
                self.console.print(f"step {step}/{self.steps}  {self._text()}", highlight=False)

    def _draw(self) -> None:
        self.bar.update(self.task, completed=self.history.step, description=self._text(), refresh=True)
        self.drawn = time.perf_counter()

    def _text(self) -> str:
        loss = f"loss {self.history.losses[-1][1]:.4g}  " if self.history.losses else ""
        seconds = self.history.seconds - self.seconds
        return loss + (f"{(self.history.step - self.start) / seconds:.1f} steps/s" if seconds else "")


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


def _modules(*callables: Any) -> list[nn.Module]:
    """The modules behind models, guides and losses: themselves, or what a method or handler is bound to."""
    found: dict[int, nn.Module] = {}

    def visit(thing: Any) -> None:
        if isinstance(thing, ELBOModule):
            visit(thing.model)
            visit(thing.guide)
            visit(thing.elbo)
        elif isinstance(thing, nn.Module):
            found.setdefault(id(thing), thing)
        elif isinstance(thing, functools.partial):  # also what poutine's handlers return
            for inner in (thing.func, *thing.args, *thing.keywords.values()):
                visit(inner)
        elif inspect.ismethod(thing):
            visit(thing.__self__)

    for thing in callables:
        visit(thing)
    return list(found.values())


def _value(loss: Any) -> float | Tensor:
    """A loss as a float, or as a detached tensor where reading it would wait for a GPU; tuples are summed."""
    if isinstance(loss, tuple):  # ReweightedWakeSleep
        loss = sum(loss)
    if isinstance(loss, Tensor):
        return loss.item() if loss.device.type == "cpu" else loss.detach().double()
    return float(loss)


def _objective(loss: Any) -> dict[str, Any]:
    """What is minimised, to be saved and compared: the class of an ELBO and its options, or another loss's name."""
    elbo = loss.elbo if isinstance(loss, ELBOModule) else getattr(loss, "__self__", loss)
    if not isinstance(elbo, ELBO):
        return {"loss": getattr(loss, "__qualname__", type(loss).__name__)}
    # Plates may nest as deep as a first run finds, and warnings change no number.
    aside = ("max_plate_nesting", "strict_enumeration_warning", "ignore_jit_warnings")
    options = {k: v for k, v in _plain(vars(elbo)).items() if k not in aside and not k.startswith("_")}
    return {"loss": type(elbo).__name__, **{f"loss.{name}": value for name, value in options.items()}}


def _plain(options: Any) -> dict[str, Any]:
    """Those options of an optimiser or an ELBO that can be saved and compared."""
    kinds = (bool, int, float, str, tuple)
    return {k: v for k, v in options.items() if isinstance(v, kinds)} if isinstance(options, dict) else {}


def _compare(path: Path, content: dict[str, Any], settings: dict[str, Any], steps: int) -> None:
    """Raises `ValueError` where a checkpoint cannot be gone on from under ``settings`` up to ``steps``."""
    saved, hint = content["settings"], "pass resume=False to start anew, or another out"
    for name in {**saved, **settings}:
        was, wanted = saved.get(name), settings.get(name)
        if was != wanted:
            raise ValueError(f"{path} was made with {name}={was}, not {wanted}; {hint}")
    if content["step"] > steps:
        raise ValueError(f"{path} is at step {content['step']}, beyond steps={steps}; {hint}")


def _finite(parameters: list[Tensor]) -> bool:
    return not parameters or bool(torch.stack([parameter.isfinite().all() for parameter in parameters]).all())


def _not_finite(what: str, path: Path | None, saved: int) -> FloatingPointError:
    kept = f"; {path} holds step {saved}" if path is not None and saved else ""
    return FloatingPointError(f"the {what}{kept}")
