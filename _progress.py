"""How far something is: a progress bar, or lines off a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Self

__all__ = ["ProgressBar"]


class ProgressBar:
    """A bar on the standard error; off a terminal, a line for every tenth of the way.

    Args:
        unit: of what is counted, such as "episode".
        total: how many of it there are.
        shown: whether to show anything.

    Attributes:
        unit, total, shown: as given.
        done: how many of it are done.
    """

    def __init__(self, unit: str, total: int, shown: bool = True) -> None:
        self.unit, self.total, self.shown = unit, total, shown
        self.done = 0
        self._text: Callable[[], str] = str
        self._tenths, self._drawn = 0, time.perf_counter()
        self._console: Any = None
        self._bar: Any = None

    def __enter__(self) -> Self:
        if self.shown:
            from rich.console import Console  # here, because few need it
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._console = Console(stderr=True)
            if self._console.is_terminal:
                text = TextColumn("{task.description}")
                columns = (BarColumn(), MofNCompleteColumn(), text, TimeRemainingColumn())
                self._bar = Progress(*columns, console=self._console, auto_refresh=False)
                self._task = self._bar.add_task("", total=self.total)
                self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._draw()
            self._bar.stop()

    def show(self, done: int, text: Callable[[], str]) -> None:
        """Say how many are done, and what else there is to say; redraw, four times a second at most."""
        self.done, self._text = done, text
        if self._bar is not None:
            if time.perf_counter() - self._drawn > 0.25:
                self._draw()
        elif self._console is not None and (tenths := done * 10 // self.total) > self._tenths:
            self._tenths = tenths
            self._console.print(f"{self.unit} {done}/{self.total}  {text()}", highlight=False)

    def _draw(self) -> None:
        self._bar.update(self._task, completed=self.done, description=self._text(), refresh=True)
        self._drawn = time.perf_counter()
