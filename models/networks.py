"""Feed-forward networks of policies."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .causal import FeedForward

__all__ = ["mlp"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


def mlp(inputs: int, hidden: Sequence[int], activation: str = "tanh") -> FeedForward:
    """Return layers ``[..., inputs] -> [..., hidden[-1]]``, an activation after each; the identity without any.

    Raises:
        ValueError: for an unknown activation, or sizes that are not positive.
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
    if min(hidden, default=1) < 1:
        raise ValueError(f"hidden layers must have positive sizes, got {tuple(hidden)}")
    sizes = [inputs, *hidden]
    layers: list[nn.Module] = []
    for size, following in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(size, following), _ACTIVATIONS[activation]()]
    return FeedForward(*layers)
