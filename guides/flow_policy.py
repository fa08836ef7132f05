"""The policy of latent space policies: a conditional RealNVP from noise to actions.

T. Haarnoja, K. Hartikainen, P. Abbeel, S. Levine (2018), "Latent space policies for hierarchical reinforcement
learning", sections 5.2 and 6.1; couplings as in L. Dinh, J. Sohl-Dickstein, S. Bengio (2017), "Density estimation using
Real NVP", equations 7 and 8, with networks that also read an embedding of the observation.

Shapes: ``...`` a batch of any shape, N rows of it, O observation numbers, A action numbers, L couplings, P passive
numbers of a coupling, and A - P active ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .action_policy import LatentPolicy, condition_network

__all__ = ["FlowPolicy"]


class Coupling(nn.Module):
    """One coupling, ``y = x exp(s) + t`` of the active numbers x; s and t depend on the passive ones and the embedding.

    The networks of s and of t have A tanh units each and share nothing. They are kept as one stack of two, so that one
    batched product computes both. What the embedding, and the bias, add to the units comes from outside, where it is
    computed for all couplings at once.

    Args:
        passive: P, 0 where there is a single number.
        active: numbers that are changed.
        units: A, of each of the two networks.
        fan_in: numbers that the first layers read, the embedding included, by which weights are drawn.
    """

    def __init__(self, passive: int, active: int, units: int, fan_in: int):
        super().__init__()
        self.inner = nn.Parameter(_uniform(fan_in, 2, passive, units)) if passive else None
        # Near the identity at first, so that few actions start on the edge, where tanh has no gradient.
        self.outer = nn.Parameter(0.1 * _uniform(units, 2, units, active))
        self.bias = nn.Parameter(torch.zeros(2, 1, active))

    def forward(self, passive: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return s and t ``[N, A - P]`` of passive numbers ``[N, P]``, given sums ``[2, N, A]`` to add to the units."""
        if self.inner is not None:
            condition = torch.baddbmm(condition, passive.expand(2, *passive.shape), self.inner)
        scale, shift = torch.baddbmm(self.bias, condition.tanh(), self.outer).unbind(0)
        return scale, shift


class FlowPolicy(LatentPolicy):
    """pi(a | s) by a conditional RealNVP, ``a = tanh u(h; s), h ~ N(0, I)``.

    The observation is embedded by ReLU layers. Couplings change the second part of the vector given the
    first, and the first given the second, in turn (parts of A // 2 and A - A // 2 numbers); scales are not clipped.
    A single number has no other to depend on: there every coupling is an affine map given by the embedding. One
    coupling alone leaves the first part of the latents as it is.

    Args:
        observation_size: O.
        action_size: A.
        couplings: L.
        hidden: sizes of the hidden layers of the embedding.
        embedding_size: numbers of the embedding, by default 2A, as in the paper. With few actions that is few, and a
            ReLU's may be 0 at every observation from the start: then ask for more.
        squash: whether actions are squashed into (-1, 1)^A by tanh, as at the lowest level of a hierarchy. There the
            embedding ends in a ReLU, at the upper levels it is linear, as in the authors' code.

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
        embedding_size: int | None = None,
        squash: bool = True,
    ):
        super().__init__(observation_size, action_size, squash=squash)
        if couplings < 1:
            raise ValueError(f"couplings must be positive, got {couplings}")
        self.couplings, self.hidden = couplings, tuple(hidden)
        embedding = 2 * action_size if embedding_size is None else embedding_size
        if embedding < 1:
            raise ValueError(f"embedding_size must be positive, got {embedding_size}")
        self.embedding_size = embedding
        self.embedding = condition_network(observation_size, self.hidden, embedding)
        if squash:
            self.embedding.append(nn.ReLU())
        # The couplings' first layers, as far as they read the embedding, and their biases.
        self.conditioner = nn.Linear(embedding, couplings * 2 * action_size)
        #: Sizes of the two parts; a single number is one part, active in every coupling.
        self.parts = [action_size // 2, action_size - action_size // 2] if action_size > 1 else [1]
        passive = [self.parts[i % 2] if action_size > 1 else 0 for i in range(couplings)]
        self.layers = nn.ModuleList(
            Coupling(count, action_size - count, action_size, count + embedding) for count in passive
        )

    def condition(self, observations: Tensor) -> Tensor:
        """Return what observations ``[..., O]`` add to the units of all couplings, ``[..., L * 2 * A]``."""
        return self.conditioner(self.embedding(observations))

    def push(self, latents: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return raw actions u(h; c) ``[..., A]`` and ``log |det du / dh|`` ``[...]``, of one batch shape for both."""
        parts, scales = self._split(latents), []
        for i, sums in enumerate(self._sums(condition)):
            scale, shift = self.layers[i](parts[i % len(parts)], sums)
            active = (i + 1) % len(parts)
            parts[active] = torch.addcmul(shift, parts[active], scale.exp())
            scales.append(scale)
        return self._joined(latents, parts, scales)

    def pull(self, raw: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents h(u; c) ``[..., A]`` and ``log |det du / dh|`` ``[...]``, of one batch shape for both."""
        parts, scales = self._split(raw), []
        for i, sums in reversed(list(enumerate(self._sums(condition)))):
            scale, shift = self.layers[i](parts[i % len(parts)], sums)
            active = (i + 1) % len(parts)
            parts[active] = (parts[active] - shift) * scale.neg().exp()
            scales.append(scale)
        return self._joined(raw, parts, scales)

    def settings(self) -> dict[str, Any]:
        """Return the arguments that make another policy of this kind."""
        given = {"couplings": self.couplings, "hidden": list(self.hidden), "embedding_size": self.embedding_size}
        return {**super().settings(), **given}

    def _sums(self, condition: Tensor) -> tuple[Tensor, ...]:
        """The condition of each coupling, ``[2, N, A]``."""
        rows = condition.reshape(-1, self.couplings, 2, self.action_size)
        return rows.permute(1, 2, 0, 3).unbind(0)

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
