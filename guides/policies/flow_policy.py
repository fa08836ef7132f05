"""The policy of latent space policies: a conditional RealNVP from noise to actions.

T. Haarnoja, K. Hartikainen, P. Abbeel, S. Levine (2018), "Latent space policies for hierarchical reinforcement
learning", sections 5.2 and 6.1; couplings as in L. Dinh, J. Sohl-Dickstein, S. Bengio (2017), "Density estimation using
Real NVP", equations 7 and 8, with networks that also read an embedding of the observation.

Shapes: ``...`` a batch of any shape, N rows of it, O observation numbers, A action numbers, L couplings of U units a
network, P passive numbers of a coupling, and A - P active ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...models.networks import mlp
from .action_policy import LatentPolicy, condition_network

__all__ = ["FlowPolicy"]

# Scales and shifts are small at first, so that few actions start on the edge, where tanh has no gradient.
_NEAR_IDENTITY = 0.1


class Coupling(nn.Module):
    """One coupling, ``y = x exp(s) + t`` of the active numbers x; s and t depend on the passive ones and the embedding.

    The networks of s and of t have U tanh units each and share nothing. They are kept as one stack of two, so that one
    batched product computes both. What the embedding adds, and the units' biases, come from outside, where they are
    computed for all couplings at once.

    Args:
        passive: P, 0 where there is a single number.
        active: numbers that are changed.
        units: U, of each of the two networks.
        fan_in: numbers that the first layers read, the embedding included, by which weights are drawn.
    """

    def __init__(self, passive: int, active: int, units: int, fan_in: int):
        super().__init__()
        self.inner = nn.Parameter(_uniform(fan_in, 2, passive, units)) if passive else None
        self.outer = nn.Parameter(_NEAR_IDENTITY * _uniform(units, 2, units, active))
        self.bias = nn.Parameter(torch.zeros(2, 1, active))

    def forward(self, passive: Tensor, sums: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return s and t ``[N, A - P]``.

        Args:
            passive: ``[N, P]``.
            sums: ``[2, N, U]``, to add to the units before the tanh.
            offset: ``[N, A - P]``, to add to t; None for nothing.
        """
        if self.inner is not None:
            sums = torch.baddbmm(sums, passive.expand(2, *passive.shape), self.inner)
        scale, shift = torch.baddbmm(self.bias, sums.tanh(), self.outer).unbind(0)
        return scale, shift if offset is None else shift + offset


class FlowPolicy(LatentPolicy):
    """pi(a | s) by a conditional RealNVP, ``a = tanh u(h; s), h ~ N(0, I)``.

    The observation is embedded by ReLU layers. Couplings change the second part of the vector given the first, and the
    first given the second, in turn (parts of A // 2 and A - A // 2 numbers), by

        s = S tanh(V x' + W e + b) + c,    t = T tanh(V' x' + W' e + b') + c' + B e

    of the passive numbers x' and the embedding e. Scales are not clipped; bounded units bound them. A single number has
    no other to depend on: there every coupling is an affine map given by the embedding. One coupling alone leaves the
    first part of the latents as it is.

    :meth:`paper` makes the form that the paper used: couplings of A units without B e, and an embedding of but 2A
    numbers. All that an observation can say about an action goes through A bounded units there: see the page of the
    method for what that costs.

    Args:
        observation_size: O.
        action_size: A.
        couplings: L.
        hidden: sizes of the hidden layers, the last of which is the embedding.
        units: U, tanh units of each of a coupling's two networks.
        embedding_size: numbers of another layer after the hidden ones, which is the embedding instead: ReLUs at the
            lowest level of a hierarchy, linear at the upper ones (``squash=False``), as in the authors' code.
        linear: whether shifts have the part B e.
        squash: whether actions are squashed into (-1, 1)^A by tanh, as at the lowest level of a hierarchy.

    Raises:
        ValueError: for sizes that are not positive.

    Example:
        >>> policy = FlowPolicy(17, 6)
        >>> observations = torch.randn(128, 17)
        >>> actions, log_prob = policy.draw(observations)
        >>> actions.shape, log_prob.shape
        (torch.Size([128, 6]), torch.Size([128]))
        >>> latents = policy.latents(actions, observations)
        >>> torch.allclose(policy.actions(latents, observations), actions, atol=1e-5)
        True
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        *,
        couplings: int = 2,
        hidden: Sequence[int] = (128, 128),
        units: int = 16,
        embedding_size: int | None = None,
        linear: bool = True,
        squash: bool = True,
    ):
        super().__init__(observation_size, action_size, squash=squash)
        for name, number in {"couplings": couplings, "units": units, "embedding_size": embedding_size}.items():
            if number is not None and number < 1:
                raise ValueError(f"{name} must be positive, got {number}")
        self.couplings, self.hidden, self.units = couplings, tuple(hidden), units
        self.embedding_size, self.linear = embedding_size, linear
        if embedding_size is None:
            self.embedding: nn.Sequential = mlp(observation_size, self.hidden, "relu")
        else:
            self.embedding = condition_network(observation_size, self.hidden, embedding_size)
            if squash:
                self.embedding.append(nn.ReLU())
        embedding = [observation_size, *hidden][-1] if embedding_size is None else embedding_size
        #: Sizes of the two parts; a single number is one part, active in every coupling.
        self.parts = [action_size // 2, action_size - action_size // 2] if action_size > 1 else [1]
        passive: list[int] = []
        self.layers = nn.ModuleList()
        for number in range(couplings):
            passive.append(self.parts[number % 2] if action_size > 1 else 0)
            self.layers.append(Coupling(passive[-1], action_size - passive[-1], units, passive[-1] + embedding))
        # What all couplings are given of the embedding: sums for the units, and then B e.
        self._sizes = [couplings * 2 * units] + [action_size - count for count in passive if linear]
        self.conditioner = nn.Linear(embedding, sum(self._sizes))
        with torch.no_grad():
            for parameter in self.conditioner.parameters():
                parameter[self._sizes[0] :].mul_(_NEAR_IDENTITY)

    @classmethod
    def paper(cls, observation_size: int, action_size: int, **given: Any) -> FlowPolicy:
        """Return the form that the paper used: A units a network, an embedding of 2A numbers, no linear part.

        With few actions that is few, and a ReLU of the embedding may be 0 at every observation from the start.

        Args:
            observation_size: O.
            action_size: A.
            given: ``couplings``, ``hidden`` and ``squash``.
        """
        narrow: dict[str, Any] = {"units": action_size, "embedding_size": 2 * action_size, "linear": False}
        return cls(observation_size, action_size, **narrow, **given)

    def condition(self, observations: Tensor) -> Tensor:
        """Return what observations ``[..., O]`` add to the units and to the shifts of all couplings, ``[..., C]``."""
        return self.conditioner(self.embedding(observations))

    def push(self, latents: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return raw actions u(h; c) ``[..., A]`` and ``log |det du / dh|`` ``[...]``, of one batch shape for both."""
        parts, scales = self._split(latents), []
        for i, added in enumerate(self._added(condition)):
            scale, shift = self.layers[i](parts[i % len(parts)], *added)
            active = (i + 1) % len(parts)
            parts[active] = torch.addcmul(shift, parts[active], scale.exp())
            scales.append(scale)
        return self._joined(latents, parts, scales)

    def pull(self, raw: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents h(u; c) ``[..., A]`` and ``log |det du / dh|`` ``[...]``, of one batch shape for both."""
        parts, scales = self._split(raw), []
        for i, added in reversed(list(enumerate(self._added(condition)))):
            scale, shift = self.layers[i](parts[i % len(parts)], *added)
            active = (i + 1) % len(parts)
            parts[active] = (parts[active] - shift) * scale.neg().exp()
            scales.append(scale)
        return self._joined(raw, parts, scales)

    def _added(self, condition: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """For each coupling sums ``[2, N, U]`` for its units and ``[N, A - P]`` for its shifts, None without."""
        sums, *offsets = condition.reshape(-1, condition.shape[-1]).split(self._sizes, -1)
        of_each = sums.reshape(-1, self.couplings, 2, self.units).permute(1, 2, 0, 3).unbind(0)
        return [*zip(of_each, offsets if self.linear else [None] * self.couplings, strict=True)]

    def _split(self, values: Tensor) -> list[Tensor]:
        """The parts, ``[N, A // 2]`` and ``[N, A - A // 2]``."""
        return list(values.reshape(-1, self.action_size).split(self.parts, -1))

    def _joined(self, values: Tensor, parts: list[Tensor], scales: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The parts together, in the shape of ``values``, and the sum of all scales."""
        found = torch.cat(parts, -1).reshape(values.shape)
        return found, torch.cat(scales, -1).sum(-1).reshape(values.shape[:-1])


def _uniform(fan_in: int, *shape: int) -> Tensor:
    """Weights drawn as in `nn.Linear`: uniform within ``1 / sqrt(fan_in)``."""
    reach = 1 / math.sqrt(fan_in)
    return torch.empty(shape).uniform_(-reach, reach)
