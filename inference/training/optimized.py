"""Modules with an optimiser of their own, whose state is theirs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ..._saved import Saved

__all__ = ["Optimized"]


class Optimized(Saved, nn.Module):
    """A module that updates itself: the optimiser's state and the number of updates are in its ``state_dict``.

    A subclass makes the ``optimizer`` of parameters that it has, and counts.
    """

    optimizer: torch.optim.Optimizer
    #: Updates so far.
    updates: int = 0

    def get_extra_state(self) -> dict[str, Any]:
        """Return the state that is in no tensor of the modules."""
        return {"updates": self.updates, "optimizer": self.optimizer.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go back to a state of :meth:`get_extra_state`, sharing nothing with it."""
        self.updates = int(state["updates"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        super()._apply(*args, **kwargs)
        if hasattr(self, "optimizer"):  # whose state moves where the parameters are
            self.optimizer.load_state_dict(self.optimizer.state_dict())
        return self
