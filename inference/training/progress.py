"""Where a training run is, and how it is shown: a progress bar, lines off a terminal, TensorBoard."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from ..._random_state import random_state, set_random_state
from .interrupts import Interrupts

__all__ = ["Display", "History", "evaluate_if_due"]


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


class Display:
    """Progress bar (or lines, off a terminal) and TensorBoard."""

    def __init__(self, history: History, steps: int, path: Path | None, progress: bool) -> None:
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


def evaluate_if_due(
    evaluate: Callable[[int], dict[str, float]] | None,
    every: int,
    steps: int,
    history: History,
    display: Display,
    interrupts: Interrupts,
    save: Callable[[], None],
) -> None:
    """Evaluate every so often and at the last step, unless that was done; note the results in history and on display.

    The random state is set aside. Ctrl-C ends the evaluation at once, counts as a request, and leaves no entry. If the
    evaluation raises, the run is saved first.
    """
    if evaluate is None or not (history.step == steps or (every and history.step % every == 0)):
        return
    done = history.evaluations[-1][0] if history.evaluations else 0
    if history.step == done or interrupts.requests:
        return
    before, patience = random_state(), interrupts.patience
    interrupts.patience = 0  # no step is under way
    try:
        try:
            results = {name: float(value) for name, value in evaluate(history.step).items()}
        finally:
            interrupts.patience = patience
            set_random_state(before)
    except KeyboardInterrupt:
        interrupts.requests += 1
    except Exception:
        save()
        raise
    else:
        history.evaluations.append((history.step, results))
        display.scalars(history.step, results)
