"""Observations as a world model reads and predicts them: vectors in units of the data, images around 0.

Shapes: ``...`` a batch of any shape, O numbers of all observations in one row, H x W x C an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from gymnasium import spaces
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from .._saved import Saved
from .spaces import boxes_of, observation_leaves, observation_size

__all__ = ["ImageDecoder", "ImageEncoder", "Readings"]

Seen = Tensor | Mapping[str, Tensor]

_CLIP = 10.0  # standard deviations
_LEAST = 1e-2  # of a standard deviation, in the units of the largest of its part


class Readings(Saved, nn.Module):
    """From observations of a space to what a world model has, ``x``; by name where there are several.

    Bytes go from 0 to 255 to -0.5 to 0.5. Floats become ``(x - mean) / std``, within 10, with the moments of
    :meth:`standardize`; before, they are as they are.

    Args:
        space: a Box, or a Dict of Boxes.

    Raises:
        TypeError: for another space.
        ValueError: for a Box that is neither floats in one row nor bytes ``[H, W, C]``.
    """

    #: Whether the moments are known.
    standardized: Tensor

    def __init__(self, space: spaces.Space[Any]):
        super().__init__()
        boxes = boxes_of(space, alone="observations")
        for name, box in boxes.items():
            kind, rank = box.dtype.kind if box.dtype is not None else "", len(box.shape or ())
            if (kind, rank) != ("f", 1) and not (box.dtype == np.uint8 and rank == 3):
                raise ValueError(f"{name} must be floats in one row or bytes [H, W, C], not {box}")
        self.register_buffer("standardized", torch.zeros((), dtype=torch.bool))
        self.space: Any = space
        self.boxes: dict[str, Any] = boxes
        for name, box in self.vectors.items():
            self.register_buffer(f"mean_{name}", torch.zeros(box.shape))
            self.register_buffer(f"std_{name}", torch.ones(box.shape))

    @property
    def vectors(self) -> dict[str, Any]:
        """The Boxes that are no images."""
        return {name: box for name, box in self.boxes.items() if box.dtype.kind == "f"}

    @property
    def images(self) -> dict[str, Any]:
        """The Boxes of bytes."""
        return {name: box for name, box in self.boxes.items() if box.dtype.kind != "f"}

    def named(self, observations: Any) -> dict[str, Any]:
        """Return the parts of observations by name, the only one as ``observations``."""
        return dict(observations) if isinstance(observations, Mapping) else {"observations": observations}

    def standardize(self, observations: Any) -> None:
        """Let the moments be those of observations ``[N, ...]``, arrays or tensors, unless they are known already.

        What was learnt in some units goes on in them.
        Numbers that hardly vary are scaled as if they did by a hundredth of what the most varying one does.
        """
        if self.standardized:
            return
        self.standardized.fill_(True)
        for name in self.vectors:
            values = torch.as_tensor(self.named(observations)[name], dtype=torch.float64)
            std = values.std(0, correction=0)
            least = max(_LEAST * float(std.max()), 1e-6)
            getattr(self, f"mean_{name}").copy_(values.mean(0))
            getattr(self, f"std_{name}").copy_(std.clamp(min=least))

    def forward(self, observations: Seen) -> Seen:
        """Return what a world model has of observations ``[..., *shape]``."""
        found = {name: self._read(name, values) for name, values in self.named(observations).items()}
        return found if isinstance(self.space, spaces.Dict) else found["observations"]

    def _read(self, name: str, values: Tensor) -> Tensor:
        if name not in self.vectors:
            return values.to(torch.get_default_dtype()) / 255 - 0.5
        mean, std = getattr(self, f"mean_{name}"), getattr(self, f"std_{name}")
        return ((values - mean) / std).clamp(-_CLIP, _CLIP)

    def unflatten(self, flat: Tensor) -> Seen:
        """Return observations ``[..., *shape]`` of flattened ones ``[..., O]``."""
        leaves = observation_leaves(self.space)
        parts = flat.split([observation_size(leaf) for leaf in leaves.values()], -1)
        found = {
            name.strip("."): part.unflatten(-1, leaf.shape or ()) if len(leaf.shape or ()) != 1 else part
            for (name, leaf), part in zip(leaves.items(), parts, strict=True)
        }
        return found if isinstance(self.space, spaces.Dict) else next(iter(found.values()))

    def picture(self, x: Tensor) -> np.ndarray:
        """Return images ``[..., H, W, C]`` of bytes of what stands for them, such as the mean of a decoder."""
        return ((x + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


class ImageEncoder(Saved, nn.Module):
    """Four convolutions of 4 x 4, each halving the sides, ``[..., 64, 64, C] -> [..., 32 depth]``.

    The encoder of D. Ha and J. Schmidhuber, "World Models" (2018), which PlaNet, Dreamer and VMIL have at depth 32.

    Args:
        channels: C.
        depth: channels of the first layer; each layer doubles them.
    """

    def __init__(self, channels: int = 3, depth: int = 32):
        super().__init__()
        widths = [channels, depth, 2 * depth, 4 * depth, 8 * depth]
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.size = 32 * depth

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of images."""
        rows = self.layers(images.flatten(0, -4).movedim(-1, 1))
        return rows.reshape(*images.shape[:-3], self.size)


class ImageDecoder(Saved, nn.Module):
    """p(x_t | h_t, z_t) of images of 64 x 64: a normal of unit variance around what deconvolutions make of a state.

    Args:
        inputs: F.
        channels: C.
        depth: as of the encoder.
    """

    def __init__(self, inputs: int, channels: int = 3, depth: int = 32):
        super().__init__()
        self.first = nn.Linear(inputs, 32 * depth)
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(32 * depth, 4 * depth, 5, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(4 * depth, 2 * depth, 5, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * depth, depth, 6, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(depth, channels, 6, stride=2),
        )

    def mean(self, features: Tensor) -> Tensor:
        """Return the images ``[..., 64, 64, C]`` at features ``[..., F]``."""
        rows = self.first(features.flatten(0, -2))[..., None, None]
        return self.layers(rows).movedim(1, -1).unflatten(0, features.shape[:-1])

    def forward(self, features: Tensor) -> TorchDistribution:
        """Return the distribution at features ``[..., F]``, batch shape ``[...]``."""
        mean = self.mean(features)
        return dist.Normal(mean, torch.ones_like(mean)).to_event(3)
