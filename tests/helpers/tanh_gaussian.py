"""The smallest policies of the protocol: Gaussians of an observation, with or without tanh, and one without rsample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.transforms import TanhTransform
from torch import Tensor, nn


class TanhGaussian(nn.Module):
    """a = tanh(mu(s) + sigma(s) h), h ~ N(0, I); without the tanh if not ``squash``."""

    has_rsample = True

    def __init__(self, observation_size: int, action_size: int, hidden: int = 0, squash: bool = True):
        super().__init__()
        self.observation_size, self.action_size, self.squash, self.hidden = (
            observation_size,
            action_size,
            squash,
            hidden,
        )
        trunk = [nn.Linear(observation_size, hidden), nn.ReLU()] if hidden else []
        self.net = nn.Sequential(*trunk, nn.Linear(hidden or observation_size, 2 * action_size))

    def base(self, observations: Tensor) -> TorchDistribution:
        mean, log_scale = self.net(observations).chunk(2, -1)
        return dist.Normal(mean, log_scale.exp()).to_event(1)

    def forward(self, observations: Tensor) -> TorchDistribution:
        base = self.base(observations)
        return dist.TransformedDistribution(base, [TanhTransform(cache_size=1)]) if self.squash else base

    def draw(
        self, observations: Tensor, generator: torch.Generator | None = None, sample_shape: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor]:
        distribution = self(observations)
        actions = distribution.rsample(torch.Size(sample_shape))
        return actions, distribution.log_prob(actions)

    def mode(self, observations: Tensor) -> Tensor:
        mean = self.base(observations).mean
        return mean.tanh() if self.squash else mean

    def act(self, observation: Any, deterministic: bool = False) -> np.ndarray:
        with torch.no_grad():
            inputs = torch.as_tensor(observation, dtype=next(self.parameters()).dtype)
            action = self.mode(inputs) if deterministic else self.draw(inputs)[0]
        return action.numpy()

    def settings(self) -> dict[str, Any]:
        names = ("observation_size", "action_size", "hidden", "squash")
        return {name: getattr(self, name) for name in names}

    def signature(self) -> str:
        return f"{type(self).__name__}({self.settings()})"


class ScoreTanhGaussian(TanhGaussian):
    """The same distribution, whose draws carry no gradient of the parameters."""

    has_rsample = False

    def draw(
        self, observations: Tensor, generator: torch.Generator | None = None, sample_shape: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor]:
        distribution = self(observations)
        actions = distribution.sample(torch.Size(sample_shape))
        # A fresh distribution, so that the transform's cache does not hand out the graph of the draw.
        return actions, self(observations).log_prob(actions)
