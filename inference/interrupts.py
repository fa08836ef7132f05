"""Ctrl-C that waits for the right moment."""

import math
import signal
import threading
from types import FrameType
from typing import Any, Self

__all__ = ["Interrupts"]


class Interrupts:
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
