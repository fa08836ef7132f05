"""Ctrl-C, and the end of a process, that wait for the right moment."""

import math
import signal
import threading
from types import FrameType
from typing import Any, Self

__all__ = ["Interrupts"]


class Interrupts:
    """Turns Ctrl-C into a request, so that no update, evaluation entry or file is left half-done.

    So does it SIGTERM, by which schedulers end a process: it is taken for a Ctrl-C, and sent again when all is done.

    Attributes:
        requests: how often Ctrl-C was pressed.
        patience: presses beyond this many raise `KeyboardInterrupt` at once.
        shared: whether the processes that train together have agreed to stop; None for one that is alone.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.patience = math.inf
        self.shared: bool | None = None
        self.previous: dict[signal.Signals, Any] = {}
        self.ended = False

    @property
    def stop(self) -> bool:
        """Whether to end the run."""
        return self.requests > 0 if self.shared is None else self.shared

    def __enter__(self) -> Self:
        # Only the main thread may handle signals, and only it gets them; a background job ignores Ctrl-C.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self.previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if self.ended:
            signal.raise_signal(signal.SIGTERM)

    def _request(self, number: int, _frame: FrameType | None) -> None:
        self.requests += 1
        self.ended = self.ended or number == signal.SIGTERM
        if self.requests > self.patience:
            raise KeyboardInterrupt
