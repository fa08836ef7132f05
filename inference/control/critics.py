"""Critics: several Q-functions, or state values, of equal shape, evaluated as one network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..._saved import Saved
from ..._verify import verify_least

__all__ = ["Critics", "TargetCopy"]


class Critics(Saved, nn.Module):
    """K equal networks of an observation and an action, their weights stacked: ``[..., O], [..., A] -> [K, ..., 1]``.

    A layer of all of them is one batched product, ``h_k = relu(W_k h_k + b_k)`` for every k at once, so that two
    critics cost little more than one. Each starts as ``nn.Linear`` layers do, independently of the others. With
    ``action_size=0`` they are values of states.

    Args:
        observation_size: O.
        action_size: A; 0 for state values.
        hidden: sizes of the hidden layers, with ReLU.
        count: K; 2 for the twin critics, whose minimum counters overestimation (S. Fujimoto, H. van Hoof and D. Meger,
            "Addressing Function Approximation Error in Actor-Critic Methods", 2018, eq. (10)).
        coordinates: what the networks read instead of actions ``[..., A]``, of the same shape; None for themselves.
        normalized: standardise each hidden layer before its ReLU (layer normalisation, without parameters). It bounds
            what the networks say far from all data, which matters with demonstrations among them (P. J. Ball et al.,
            "Efficient Online Reinforcement Learning with Offline Data", 2023).

    Raises:
        ValueError: for sizes that make no sense.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden: Sequence[int] = (128, 128),
        count: int = 2,
        coordinates: Callable[[Tensor], Tensor] | None = None,
        normalized: bool = False,
    ) -> None:
        super().__init__()
        if observation_size < 1 or action_size < 0:
            raise ValueError(f"no critic of {observation_size} observation and {action_size} action numbers")
        if min(hidden, default=1) < 1:
            raise ValueError(f"hidden layers must have positive sizes, got {tuple(hidden)}")
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count}")
        self.observation_size, self.action_size, self.count = observation_size, action_size, count
        self.hidden, self.coordinates, self.normalized = tuple(hidden), coordinates, normalized
        sizes = [observation_size + action_size, *hidden, 1]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for inputs, outputs in zip(sizes, sizes[1:], strict=False):
            bound = 1 / math.sqrt(inputs)  # nn.Linear's
            self.weights.append(nn.Parameter(torch.empty(count, inputs, outputs).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(count, 1, outputs).uniform_(-bound, bound)))

    def forward(self, observations: Tensor, actions: Tensor | None = None, *, frozen: bool = False) -> Tensor:
        """Return all values.

        Args:
            observations: ``[..., O]``.
            actions: ``[..., A]``, leading dimensions broadcast with those of the observations; None for state values.
            frozen: leave the parameters out of the graph: gradients reach the actions alone.

        Returns:
            ``[K, ...]``.
        """
        batch = seen = observations.shape[:-1]
        if actions is not None and seen != actions.shape[:-1]:
            batch = torch.broadcast_shapes(seen, actions.shape[:-1])
        layers: list[tuple[Tensor, Tensor]] = list(zip(self.weights, self.biases, strict=True))
        if frozen:
            layers = [(weight.detach(), bias.detach()) for weight, bias in layers]
        if actions is not None and self.coordinates is not None:
            actions = self.coordinates(actions)
        if actions is not None and len(layers) > 1 and (frozen or seen != batch):
            hidden = self._first_layer(observations, actions, *layers.pop(0)).reshape(self.count, batch.numel(), -1)
        else:
            if actions is not None:
                observations = torch.cat([observations.expand(*batch, -1), actions.expand(*batch, -1)], -1)
            hidden = observations.reshape(-1, observations.shape[-1]).expand(self.count, -1, -1)
        for weight, bias in layers[:-1]:
            hidden = self._activated(torch.baddbmm(bias, hidden, weight))
        weight, bias = layers[-1]
        # A matrix product with a single column is slower than this.
        values = (hidden * weight.mT).sum(-1) + bias.squeeze(-1)
        return values.reshape(self.count, *batch)

    def _first_layer(self, observations: Tensor, actions: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The first layer in two parts ``[K, ..., H]``: no gradient or repetition of what is of the observations."""
        dims = max(observations.dim(), actions.dim()) - 1

        def rows(values: Tensor) -> Tensor:
            return values.reshape(-1, values.shape[-1]).expand(self.count, -1, -1)

        def back(products: Tensor, values: Tensor) -> Tensor:
            return products.reshape(self.count, *(1,) * (dims - values.dim() + 1), *values.shape[:-1], -1)

        seen, acted = weight.split([self.observation_size, self.action_size], 1)
        of_observations = back(torch.baddbmm(bias, rows(observations), seen), observations)
        return self._activated(back(torch.bmm(rows(actions), acted), actions) + of_observations)

    def _activated(self, hidden: Tensor) -> Tensor:
        """What the next layer reads of a layer's outputs ``[K, ..., H]``."""
        return (functional.layer_norm(hidden, hidden.shape[-1:]) if self.normalized else hidden).relu_()

    def minimum(self, observations: Tensor, actions: Tensor | None = None, *, frozen: bool = False) -> Tensor:
        """Return ``min_k Q_k`` ``[...]``; of equal ones the gradient goes to all, in equal parts."""
        values = self(observations, actions, frozen=frozen)
        return values[0] if self.count == 1 else values.amin(0)

    def value_of_frozen(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Return ``min_k Q_k(s, a)`` ``[...]`` with gradients for the actions alone: what a policy learns from."""
        return self.minimum(observations, actions, frozen=True)

    def signature(self) -> str:
        """What two critics share exactly when they can share weights."""
        also = ", normalized=True" if self.normalized else ""
        return f"Critics({self.observation_size}, {self.action_size}, hidden={self.hidden}, count={self.count}{also})"


class TargetCopy:
    """Moves the parameters of a network towards another's: ``target += smoothing (source - target)``, every so often.

    ``smoothing=1, every=1000`` copies every 1000 updates; ``smoothing=0.01, every=1`` follows slowly.

    Args:
        smoothing: of one move, in (0, 1].
        every: updates between moves.

    Raises:
        ValueError: for numbers out of range.
    """

    def __init__(self, smoothing: float, every: int) -> None:
        if not 0 < smoothing <= 1:
            raise ValueError(f"smoothing must be in (0, 1], not {smoothing}")
        verify_least(1, target_every=every)
        self.smoothing, self.every = smoothing, every

    @torch.no_grad()
    def __call__(self, target: Iterable[Tensor], source: Iterable[Tensor], updates: int) -> None:
        """Move ``target``, in place, if it is due after so many updates."""
        if updates % self.every:
            return
        pairs = list(target), list(source)
        if self.smoothing == 1:
            torch._foreach_copy_(*pairs)  # exact, where interpolation rounds
        else:
            torch._foreach_lerp_(*pairs, self.smoothing)
