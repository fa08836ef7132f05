"""A run of training, of whatever kind: settings, checkpoint, resuming, Ctrl-C, display, evaluation, saving.

`fit` and `learn` say what a step is; all else of a run is here.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import pyro
import torch
from torch import Tensor, nn

from ..._files import locked, naming, settle
from ..._progress import ProgressBar
from ..._random_state import random_state, random_state_aside, set_random_state
from ..._verify import verify_device, verify_folder, verify_least
from . import checkpoint
from .interrupts import Interrupts
from .processes import Fabric, Processes
from .updates import all_finite

__all__ = ["Evaluate", "History", "Log", "Run", "RunOptions", "Training", "lock_of", "to_device"]

Evaluate = Callable[[int], dict[str, float]]
"""Given the number of finished steps, returns named numbers."""

Log = Callable[[int, dict[str, float]], object]
"""Told the number of finished steps, and named numbers."""


def lock_of(folder: str | os.PathLike[str]) -> AbstractContextManager[None]:
    """The lock by which a folder belongs to one run; see `locked`."""
    return locked(Path(folder) / ".lock")


def to_device(batch: Any, device: str | torch.device | None) -> Any:
    """A batch where the modules are, if it can be moved."""
    return batch.to(device) if device is not None and hasattr(batch, "to") else batch


class RunOptions(TypedDict, total=False):
    """Options of every training, by name.

    What a run logs can go elsewhere too, such as to Weights & Biases::

        run = wandb.init(project="sorting")
        log = lambda step, values: run.log(values, step=step)
        fit(svi, data, steps=10_000, batch_size=32, evaluate=evaluate, log=log, on_evaluation=log)

    ``evaluate`` and these functions are called with the random state set aside, so that they do not change the
    training. Ctrl-C ends a call at once, and where one raises, the run is saved first.

    Attributes:
        resume: go on from ``out/checkpoint.pt`` if it is there (True); False starts anew and overwrites it.
        device: where to move modules and data; None leaves them where they are (None).
        fabric: Lightning's, launched, whose processes train together (None: this one is alone); see `docs/scaling.md`.
            Its device is the device. Process 0 alone reads and writes ``out``, logs, evaluates and shows the bar.
        evaluate_every: steps between calls of ``evaluate`` (0); it is called after the last step in any case.
        on_evaluation: called with the step and what ``evaluate`` returned (None).
        checkpoint_every: steps between checkpoints (of `fit` 1000, of `learn` 10,000); of `fit`, 0 for one at the end.
        log: called with the step and named numbers, each time that there are some (None): the mean loss, the rate, the
            gradient's norm where it is clipped; of `learn`, what an update returns, ``return`` and ``length`` of a
            finished episode.
        log_every: steps between entries of the learning curve (of `fit` 50, of `learn` 1000).
        progress: show a bar with loss and rate, and the mean return of the last ten episodes; off a terminal, a line at
            once and one every tenth of the way (True).
    """

    resume: bool
    device: str | torch.device | None
    fabric: Fabric | None
    evaluate_every: int
    on_evaluation: Log | None
    checkpoint_every: int
    log: Log | None
    log_every: int
    progress: bool


@dataclass
class History:
    """Where a run is; all of it is written to the checkpoint."""

    step: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)
    window: float | Tensor = 0.0  # sum of the losses since the last entry of `losses`, a tensor on a GPU
    window_steps: int = 0
    seconds: float = 0.0
    evaluations: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def close_window(self) -> float:
        """Add the mean loss since the last entry to the learning curve, and return it."""
        mean = float(self.window) / self.window_steps
        self.losses.append((self.step, mean))
        self.window, self.window_steps = 0.0, 0
        return mean

    def curve(self) -> list[tuple[int, float]]:
        """Return the learning curve up to now."""
        tail = [(self.step, float(self.window) / self.window_steps)] if self.window_steps else []
        return self.losses + tail


class Run:
    """Something in training: where it is, its files, and what a kind of training has to add.

    Args:
        modules: what is saved.
        settings: what a checkpoint must share with this run to be gone on from.
        out: folder to write to; None writes nothing.
        evaluate: see `fit`.

    Attributes:
        path: of the checkpoint.
        content: of the checkpoint that the run goes on from, if there is one.
        history: where the run is.
        constants: see `checkpoint.constants`; those of the checkpoint if the run goes on from one.
        numbers: of the last step, logged beside the mean loss; tensors are read only then.
        values: to log when this step is over.
        room: steps that may pass without a checkpoint.
        label: what callbacks find among the numbers to tell it from other runs.
        saved_step: that the checkpoint is at, 0 if there is none.

    Raises:
        TypeError: if ``evaluate`` is no function.
        ValueError: if ``out`` is a file.
    """

    needs: tuple[str, ...] = ()  # what a checkpoint has to hold beside what all do
    processes = Processes()  # those that train it together

    def __init__(
        self,
        modules: Sequence[nn.Module],
        settings: dict[str, Any],
        out: str | os.PathLike[str] | None,
        evaluate: Evaluate | None,
    ) -> None:
        if evaluate is not None and not callable(evaluate):
            raise TypeError(f"evaluate must be a function of the number of steps, got {evaluate!r}")
        verify_folder(out)
        self.modules, self.settings, self.out, self.evaluate = modules, settings, out, evaluate
        self.constants = {} if out is None else checkpoint.constants(modules)
        self.path = None if out is None else Path(out) / "checkpoint.pt"
        self.content: dict[str, Any] | None = None
        self.history = History()
        self.numbers: dict[str, float | Tensor] = {}
        self.values: dict[str, float] = {}
        self.room = math.inf
        self.label: dict[str, float] = {}
        self._began = self._logged = (0, 0.0)  # step and seconds
        self.saved_step, self._saved_evaluations, self._wrote = 0, 0, False

    # What a kind of training has to say

    def verify_content(self, content: dict[str, Any]) -> None:
        """Refuse a checkpoint that cannot be gone on from; nothing is changed."""

    def open(self, device: str | torch.device | None, content: dict[str, Any] | None) -> None:
        """Move to the device, open files, and take up what the checkpoint holds beside the history."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What the checkpoint holds beside what it does of every run."""
        raise NotImplementedError

    def gather(self) -> None:
        """Have what other processes give to the state; all of them call it."""

    def finite(self) -> bool:
        """Whether all parameters are finite."""
        return all_finite([parameter for module in self.modules for parameter in module.parameters()])

    def was_saved(self) -> None:
        """Give up files that only the checkpoint before needed."""

    def told(self) -> list[str]:
        """What there is to show beside the steps."""
        seconds = self.history.seconds - self._began[1]
        loss = [f"loss {self.history.losses[-1][1]:.4g}"] if self.history.losses else []
        return loss + ([f"{(self.history.step - self._began[0]) / seconds:.1f} steps/s"] if seconds else [])

    # The same for all

    def find(self, steps: int) -> None:
        """Read the checkpoint, if there is one, and refuse that of another run; nothing is changed."""
        if self.path is not None and self.path.exists():
            content = checkpoint.read(self.path, "step", "modules", "history", "random", "settings", *self.needs)
            checkpoint.verify_settings(self.path, content, self.settings, steps)
            self.constants = checkpoint.verify_constants(self.path, content, self.constants)
            self.verify_content(content)
            self.content = content

    def begin(self, device: str | torch.device | None) -> None:
        """Be where the checkpoint is, or at the start."""
        if self.content is not None:
            self.history = History(**self.content["history"])
            self.remember_saved()
        self._began = self._logged = self.history.step, self.history.seconds
        self.open(device, self.content)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Have a folder, with TensorBoard's file open."""
        self._board: Any = None
        if self.path is None or not self.processes.leads:
            yield
            return
        from torch.utils.tensorboard import SummaryWriter  # here, because it takes a second

        folder = self.path.with_name("tensorboard")
        with naming(folder):
            # What a run that was cut short logged beyond its last checkpoint comes again.
            self._board = SummaryWriter(str(folder), purge_step=self.history.step + 1)
        try:
            yield
        finally:
            with naming(folder):
                self._board.close()

    def write(self, values: dict[str, float]) -> None:
        """Give numbers to TensorBoard."""
        if self._board is not None and self.path is not None:
            with naming(self.path.with_name("tensorboard")):
                for name, value in values.items():
                    self._board.add_scalar(name, value, self.history.step)

    def close_window(self) -> None:
        """Add to the learning curve, and to what is to be logged.

        Raises:
            FloatingPointError: if the mean loss is not finite.
        """
        mean, step, seconds = self.history.close_window(), self.history.step, self.history.seconds
        if not math.isfinite(mean):
            raise self.not_finite(f"mean loss is {mean} at step {step}")
        self.values |= {name: float(value) for name, value in self.numbers.items()} | {"loss": mean}
        if seconds > self._logged[1]:
            self.values["steps_per_second"] = (step - self._logged[0]) / (seconds - self._logged[1])
        self._logged = step, seconds

    def not_finite(self, what: str) -> FloatingPointError:
        """The error for a number that is not finite, which says what is kept."""
        return FloatingPointError(
            f"the {what}" + (f"; {self.path} holds step {self.saved_step}" if self._wrote else "")
        )

    def to_save(self, always: bool) -> dict[Path, dict[str, Any]]:
        """The content of the checkpoint by its path, unless what is there is the same.

        Raises:
            FloatingPointError: if that is not finite.
        """
        new = (self.history.step, len(self.history.evaluations)) != (self.saved_step, self._saved_evaluations)
        if self.path is None or not (new or always):
            return {}
        from ... import __version__  # the package is whole by now

        window = float(self.history.window)
        if not (math.isfinite(window) and self.finite()):
            raise self.not_finite(f"loss or a parameter is not finite at step {self.history.step}")
        now = checkpoint.constants(self.modules)
        content = {
            "version": __version__,
            "step": self.history.step,
            "modules": [checkpoint.snapshot(module) for module in self.modules],
            **self.state(),
            "history": {**vars(self.history), "window": window},
            "random": random_state(),
            "settings": self.settings,
            "constants": {name: value for name, value in self.constants.items() if now.get(name) == value},
        }
        return {self.path: content}

    def note_saved(self) -> None:
        """Remember that the checkpoint holds all there is."""
        self.remember_saved()
        self.was_saved()

    def remember_saved(self) -> None:
        """Remember that the checkpoint is at this step."""
        self.saved_step, self._saved_evaluations, self._wrote = self.history.step, len(self.history.evaluations), True


@dataclass(kw_only=True)
class Training:
    """Trains runs in step with each other; mostly it is one.

    Args:
        runs: those.
        steps: to train up to.
        interrupts: how often Ctrl-C was pressed, and how patient it is.

    The others are `RunOptions`.

    Raises:
        TypeError: if something is of the wrong kind.
        ValueError: if a number is out of range, or the device cannot be used.
    """

    runs: Sequence[Run]
    steps: int
    checkpoint_every: int
    log_every: int
    resume: bool = True
    device: str | torch.device | None = None
    fabric: Fabric | None = None
    evaluate_every: int = 0
    on_evaluation: Log | None = None
    log: Log | None = None
    progress: bool = True
    interrupts: Interrupts = field(default_factory=Interrupts)

    def __post_init__(self) -> None:
        every = {"evaluate_every": self.evaluate_every, "checkpoint_every": self.checkpoint_every}
        verify_least(0, steps=self.steps, **every)
        verify_least(1, log_every=self.log_every)
        self.processes = Processes(self.fabric, self.device)
        verify_device(self.processes.device)
        for run in self.runs:
            run.processes = self.processes
        self.interrupts.shared = False if self.processes.count > 1 else None
        for name, given in {"on_evaluation": self.on_evaluation, "log": self.log}.items():
            if given is not None and not callable(given):
                raise TypeError(f"{name} must be a function of the step and named numbers, got {given!r}")
        if self.evaluate_every and any(run.evaluate is None for run in self.runs):
            raise ValueError(f"evaluate_every is {self.evaluate_every}, but there is no evaluate to call")

    def train(self, advance: Callable[[], bool], seed: int, *, held: bool = False) -> None:
        """Go on from the checkpoints, if there are any, to the last step, or until Ctrl-C.

        Args:
            advance: takes a step of all runs, which their histories count; returns whether it was taken, not dropped.
            seed: of the random numbers, where there is no checkpoint.
            held: whether the caller holds the folders' locks.

        Raises:
            ValueError: for a checkpoint that cannot be gone on from, or several that are not at one step; nothing has
                been changed then.
            FloatingPointError: if something is not finite.
            BlockingIOError: if another run writes to one of the folders; says which.
            OSError: if a checkpoint cannot be written.
        """
        with ExitStack() as stack:
            self.processes.led(lambda: self._claim(stack, held))
            self._train(advance, seed)

    def _claim(self, stack: ExitStack, held: bool) -> None:
        paths = [run.path for run in self.runs if run.path is not None]
        for path in () if held else paths:
            stack.enter_context(lock_of(path.parent))
        settle(*paths)

    def _find(self) -> list[tuple[dict[str, Any] | None, dict[str, Any]]]:
        for run in self.runs:
            run.find(self.steps)
        return [(run.content, run.constants) for run in self.runs]

    def _train(self, advance: Callable[[], bool], seed: int) -> None:
        if self.resume:
            for run, found in zip(self.runs, self.processes.led(self._find), strict=True):
                run.content, run.constants = found
                if run.content is not None and not self.processes.leads:
                    run.verify_content(run.content)
        if len({run.content["step"] if run.content else 0 for run in self.runs}) > 1:
            at = ", ".join(f"{run.out} at {run.content['step'] if run.content else 0}" for run in self.runs)
            raise ValueError(f"runs of one batch must be at one step, not {at}; {checkpoint.ANEW}")
        for run in self.runs:
            run.begin(self.processes.device)
        first = self.runs[0]
        if first.content is None:
            pyro.set_rng_seed(seed)
        else:
            set_random_state(first.content["random"])
        with self.interrupts, ExitStack() as stack:
            shown = self.progress and self.processes.leads
            bar = stack.enter_context(ProgressBar("step", self.steps, shown, first.history.step))
            told = lambda: "  ".join(first.told())  # noqa: E731
            for run in self.runs:
                stack.enter_context(run.writing())
            if self._evaluation_is_due():
                self._evaluate()
            while first.history.step < self.steps and not self.interrupts.stop:
                started = time.perf_counter()
                if not advance():
                    break
                step = first.history.step
                if step % self.log_every == 0:
                    for run in self.runs:
                        if run.history.window_steps:
                            run.close_window()
                seconds = time.perf_counter() - started
                for run in self.runs:
                    run.history.seconds += seconds
                    if run.values:
                        self._log(run)
                bar.show(step, told)
                if self._evaluation_is_due():
                    self._evaluate()
                due = self.checkpoint_every and step % self.checkpoint_every == 0
                if due or step - first.saved_step >= first.room:
                    self.save()
            self.save()

    def save(self, always: bool = False) -> None:
        """Write the checkpoints of all runs, or none; `always` also where nothing is new."""
        for run in self.runs:
            run.gather()
        saved = self.processes.led(lambda: self._write(always))
        for run in self.runs if saved and not self.processes.leads else ():
            run.remember_saved()

    def _write(self, always: bool = False) -> bool:
        contents = [run.to_save(always) for run in self.runs]
        checkpoint.write_all({path: content for each in contents for path, content in each.items()})
        for run, content in zip(self.runs, contents, strict=True):
            if content:
                run.note_saved()
        return any(contents)

    def _log(self, run: Run) -> None:
        """Log the numbers of a step."""
        values, run.values = run.values, {}
        run.write(values)
        if self.log is not None and self.processes.leads:
            self._call(self.log, run.history.step, run.label | values)

    def _evaluation_is_due(self) -> bool:
        step, every = self.runs[0].history.step, self.evaluate_every
        return step == self.steps or (every > 0 and step % every == 0)

    def _evaluate(self) -> None:
        """Evaluate each run, unless that was done; note the results."""
        for run in self.runs:
            step, done = run.history.step, run.history.evaluations[-1][0] if run.history.evaluations else 0
            if run.evaluate is None or step == done or self.interrupts.stop:
                continue
            found = self.processes.led(partial(self._call, _floats, run.evaluate, step))
            if found is None:  # interrupted
                continue
            run.history.evaluations.append((step, found))
            run.write(found)
            if self.on_evaluation is not None and self.processes.leads:
                self._call(self.on_evaluation, step, run.label | found)

    def _call(self, function: Callable[..., Any], *given: Any) -> Any:
        """Call what the user gave.

        The random state is set aside. Ctrl-C ends the call at once, which then returns None, and counts as a request.
        If it raises, the runs are saved first.
        """
        patience = self.interrupts.patience
        self.interrupts.patience = 0  # no step is under way
        try:
            try:
                with random_state_aside():
                    return function(*given)
            finally:
                self.interrupts.patience = patience
        except KeyboardInterrupt:
            self.interrupts.requests += 1
        except Exception:
            self._write()  # the others are not at this place
            raise
        return None


def _floats(evaluate: Evaluate, step: int) -> dict[str, float]:
    return {name: float(value) for name, value in evaluate(step).items()}
