"""A policy of the last few images: convolutions that the critics learn, and a normal distribution of the action.

Shapes: ``...`` a batch of any shape, B rows, F frames, H and W pixels, C channels, A action numbers, E features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ..._saved import Saved
from ..._verify import verify_least
from ...models.policies.level import check_box
from ...models.policies.policy import Acting
from .gaussian_policy import GaussianPolicy

__all__ = ["Convolutions", "Frames", "ImagePolicy"]

_SMALLEST = 15  # pixels a side, of which four convolutions leave one


class Frames(NamedTuple):
    """What an image policy remembers.

    Attributes:
        images: those before this one, oldest first, ``[B, F - 1, H W C]``.
        seen: whether there are any, bool ``[B]``; else the first image stands for them.
    """

    images: Tensor
    seen: Tensor


class Convolutions(Saved, nn.Module):
    """Four convolutions of 3 x 3, the first of which takes every other pixel, each with a ReLU: ``[..., size]``.

    Args:
        shape: of the images, ``(H, W, C)``, at least 15 pixels a side.
        frames: F, images that are read at once, as channels.
        depth: channels of each.

    Raises:
        ValueError: for images that are smaller.
    """

    def __init__(self, shape: Sequence[int], frames: int, depth: int) -> None:
        super().__init__()
        if min(shape[:2]) < _SMALLEST:
            raise ValueError(f"images must have at least {_SMALLEST} pixels a side, not {[*shape[:2]]}")
        layers: list[nn.Module] = []
        for number in range(4):
            inputs = depth if number else frames * shape[2]
            layers += [nn.Conv2d(inputs, depth, 3, stride=1 if number else 2), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        #: Numbers that come out.
        self.size = depth * math.prod((side - 3) // 2 - 5 for side in shape[:2])

    def forward(self, images: Tensor) -> Tensor:
        """Return what is in images ``[..., F, H, W, C]`` of 0 to 255, ``[..., size]``."""
        lead, weight = images.shape[:-4], next(self.parameters())
        rows = images.reshape(-1, *images.shape[-4:]).permute(0, 1, 4, 2, 3).flatten(1, 2)
        features: Tensor = self.layers(rows.to(weight.dtype) / 255)
        return features.reshape(*lead, self.size)


def features_of(size: int, features: int) -> nn.Sequential:
    """Return the layers from convolutions to features, which are within -1 and 1."""
    return nn.Sequential(nn.Linear(size, features), nn.LayerNorm(features), nn.Tanh())


class ImagePolicy(Acting, GaussianPolicy):
    """pi(a | the last F images): a controller, whose convolutions get no gradient from what it learns itself.

    The actor of I. Kostrikov, D. Yarats and R. Fergus, "Image Augmentation Is All You Need" (DrQ, 2020): convolutions
    that it shares with the critics, who learn them; features of its own; a squashed normal distribution.

    Args:
        observation_space: a Box of bytes, ``[H, W, C]``, one image.
        action_space: a Box of floats with bounds.
        frames: F. An episode's first image stands for those before it.
        depth: channels of each convolution.
        features: E.
        hidden: sizes of the hidden ReLU layers after the features.

    Raises:
        TypeError: for actions that are no Box of floats.
        ValueError: for other observations, images of less than 15 pixels a side, actions without bounds, or sizes that
            are not positive.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        frames: int = 3,
        depth: int = 32,
        features: int = 50,
        hidden: Sequence[int] = (1024, 1024),
    ) -> None:
        seen: Any = observation_space
        if not isinstance(seen, spaces.Box) or seen.dtype != np.uint8 or len(seen.shape) != 3:
            raise ValueError(f"observations must be a Box of bytes [H, W, C], one image, not {seen}")
        acted: Any = action_space
        check_box(acted, math.prod(acted.shape or ()))
        verify_least(1, frames=frames, depth=depth, features=features)
        super().__init__(features, acted.shape[0], hidden=hidden)
        self.observation_space, self.action_space, self.frames = seen, acted, frames
        self.observation_size, self.features = math.prod(seen.shape), features
        self.convolutions = Convolutions(seen.shape, frames, depth)
        self.reading = features_of(self.convolutions.size, features)
        for name in ("low", "high"):
            self.register_buffer(name, torch.as_tensor(getattr(acted, name)), persistent=False)

    # -- of stacks of images ----------------------------------------------------------------------------------------

    def condition(self, observations: Tensor) -> Tensor:
        """Return mean and log sigma at images ``[..., F, H, W, C]``, ``[..., 2 * A]``."""
        return super().condition(self.reading(self.convolutions(observations).detach()))

    def _checked(self, observations: Tensor) -> Tensor:
        wanted = (self.frames, *self.observation_space.shape)  # type: ignore[misc]
        if observations.shape[-4:] != wanted:
            raise ValueError(f"the ImagePolicy takes images [..., {wanted}], got shape {[*observations.shape]}")
        return observations

    # -- a controller -----------------------------------------------------------------------------------------------

    def begin(self, rows: int) -> Frames:
        """Return the state before an episode's first image."""
        images = self.low.new_zeros(rows, self.frames - 1, self.observation_size)
        return Frames(images, torch.zeros(rows, dtype=torch.bool, device=images.device))

    def step(self, inputs: Tensor, state: Frames, deterministic: bool) -> tuple[TorchDistribution, Frames]:
        """Return pi at flattened images ``[B, H W C]``, and the state after them."""
        now = inputs.unsqueeze(1)
        past = torch.where(state.seen[:, None, None], state.images.to(inputs), now)
        images = torch.cat([past, now], 1)
        distribution = self(images.unflatten(-1, self.observation_space.shape))
        return distribution, Frames(images[:, 1:], torch.ones_like(state.seen))

    def choose(self, distribution: TorchDistribution, deterministic: bool) -> Tensor:
        """Return actions ``[B, A]`` within the bounds of the action space."""
        action = distribution.mode if deterministic else distribution.sample()
        return self.low + (action + 1) * ((self.high - self.low) / 2)

    def within(self, env: Any) -> Any:
        """Return this policy, if it knows the environment's bounds.

        Raises:
            ValueError: if it does not: its actions would be out of scale.
        """
        if env.action_space != self.action_space:
            raise ValueError(f"the ImagePolicy acts in {self.action_space}, the environment in {env.action_space}")
        return self
