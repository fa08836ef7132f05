"""Causal networks: read all at once where a sequence is given, stepped where each position depends on the last.

Shapes: B sequences, T positions, X input numbers, C condition numbers, F output numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["GRU", "LSTM", "Causal", "FeedForward", "joined"]


class Causal(nn.Module):
    """A network along a sequence, whose output at a position depends on the inputs up to it.

    The outputs of :meth:`step`, from :meth:`begin` on, are those of :meth:`forward`.
    """

    def begin(self, rows: int, condition: Tensor | None = None) -> Any:
        """Return the state before the first position of B = ``rows`` sequences, given a condition ``[B, C]``."""
        raise NotImplementedError

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return the output ``[B, F]`` of the next position ``[B, X]``, and the state after it."""
        raise NotImplementedError

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the outputs ``[B, T, F]`` of all positions ``[B, T, X]``, given a condition ``[B, C]``."""
        raise NotImplementedError

    def reader(self, rows: int, condition: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Return what maps positions ``[B, X]``, in turn, to outputs ``[B, F]``: :meth:`step` with the state inside."""
        state = self.begin(rows, condition)

        def read(x: Tensor) -> Tensor:
            nonlocal state
            output, state = self.step(x, state)
            return output

        return read


class FeedForward(nn.Sequential, Causal):
    """Layers that see one position, and the condition beside it: its state is the condition.

    Positions may have any batch shape: ``[..., T, X]`` with conditions ``[..., C]``, or ``[..., X]`` without.
    """

    def begin(self, rows: int, condition: Tensor | None = None) -> Tensor | None:
        """Return the condition."""
        return condition

    def step(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the output at a position, and the condition."""
        return super().forward(x if state is None else joined(x, state)), state

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the outputs at all positions."""
        return super().forward(x if condition is None else joined(x, condition.unsqueeze(-2)))


class _Recurrent(nn.RNNBase, Causal):
    """Recurrent layers without a condition. The state is what the layers carry, each ``[B, layers, hidden]``."""

    def __init__(self, inputs: int, hidden: int, layers: int = 1):
        super().__init__(inputs, hidden, layers, batch_first=True)  # type: ignore[arg-type]  # the mode is a subclass's

    def begin(self, rows: int, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return zeros."""
        zeros = next(self.parameters()).new_zeros(rows, self.num_layers, self.hidden_size)
        return (zeros, zeros) if self.mode == "LSTM" else (zeros,)

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the last layer's output, and the state after it."""
        hidden: Any = tuple(leaf.transpose(0, 1).contiguous() for leaf in state)
        output, hidden = super().forward(x.unsqueeze(1), hidden if self.mode == "LSTM" else hidden[0])
        leaves = hidden if self.mode == "LSTM" else (hidden,)
        return output[:, 0], tuple(leaf.transpose(0, 1) for leaf in leaves)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the last layer's outputs."""
        return super().forward(x)[0]


class LSTM(_Recurrent, nn.LSTM):  # type: ignore[misc]  # forward returns outputs alone
    """Long short-term memory; its state is two tensors."""


class GRU(_Recurrent, nn.GRU):  # type: ignore[misc]  # forward returns outputs alone
    """Gated recurrent units; the state is one tensor."""


def joined(x: Tensor, y: Tensor) -> Tensor:
    """Return ``[..., X]`` and ``[..., Y]`` side by side, their batches broadcast."""
    batch = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])
    return torch.cat([x.expand(*batch, -1), y.expand(*batch, -1)], -1)
