"""How far something is: a progress bar, or lines off a terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Self

__all__ = ["ProgressBar"]

_SOON = 4.0  # seconds: off a terminal, a line with numbers comes then at the latest, where steps are shorter


class ProgressBar:
    """A bar on the standard error; off a terminal, a line at once, one soon, and one for every tenth of the way.

    Where all is done before, one line says so.

    Args:
        unit: of what is counted, such as "episode".
        total: how many of it there are.
        shown: whether to show anything.
        done: how many were done before.

    Attributes:
        unit, total, shown, done: as given; ``done`` counts on.
    """

    def __init__(self, unit: str, total: int, shown: bool = True, done: int = 0) -> None:
        self.unit, self.total, self.shown, self.done = unit, total, shown, done
        self._text: Callable[[], str] = str
        self._tenths = done * 10 // max(total, 1)
        self._drawn, self._soon = time.perf_counter(), math.inf
        self._console: Any = None
        self._bar: Any = None

    def __enter__(self) -> Self:
        if not self.shown:
            return self
        from rich.console import Console  # here, because few need it
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        if 0 < self.total <= self.done:
            self._print(": finished before; nothing to do")
        elif self._console.is_terminal:
            text = TextColumn("{task.description}")
            columns = (BarColumn(), MofNCompleteColumn(), text, TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, auto_refresh=False)
            self._task = self._bar.add_task("", total=self.total, completed=self.done)
            self._bar.start()
        else:
            self._print("")
            self._soon = time.perf_counter() + _SOON
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
        elif self._console is not None:
            tenths = done * 10 // self.total
            if tenths > self._tenths or time.perf_counter() > self._soon:
                self._tenths, self._soon = tenths, math.inf
                self._print(f"  {text()}")

    def _print(self, text: str) -> None:
        self._console.print(f"{self.unit} {self.done}/{self.total}{text}", highlight=False, soft_wrap=True)

    def _draw(self) -> None:
        self._bar.update(self._task, completed=self.done, description=self._text(), refresh=True)
        self._drawn = time.perf_counter()
