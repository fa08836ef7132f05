"""What a network reads of an observation: whole numbers scaled by their bounds, images through a small CNN.

Shapes: ``...`` a batch of any shape, O observation numbers, X numbers that are read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from .._saved import Saved
from .spaces import observation_leaves, observation_size

__all__ = ["ImageNetwork", "ObservationEncoder", "as_floats", "make_observation_encoder", "observed"]

Space = spaces.Space[Any]

_SMALLEST = 8  # pixels a side that a CNN reads
_AUTOMATIC = 16  # pixels a side of whole numbers that one reads unasked
_LAST = 5  # pixels a side, at most, that the convolutions leave
_GREATEST = 2**24  # bounds beyond are those of the type, not of what is measured


class ObservationEncoder(Saved, nn.Module):
    """From flattened observations ``[..., O]``, floats or whole numbers, to what a network reads, ``[..., X]``.

    Args:
        space: of the observations.
        images: ``"cnn"`` reads each Box of two or three dimensions, of at least 8 pixels a side, by an
            :class:`ImageNetwork`; ``"auto"`` those of whole numbers and at least 16 pixels a side; ``"flat"`` none.
            All other numbers pass as they are.
        features: numbers that an image becomes.
        scale_images: bring the whole numbers of a Box, such as pixels, from its bounds to 0 to 1; not those whose
            bounds are beyond 2^24.

    Attributes:
        size: X.
        groups: widths of the parts of what is read, which a :class:`~pyrocontrol.models.ControlProgram` weighs one
            against another: an image is one, every other number one by itself.
        plain: whether all numbers pass as they are.

    Raises:
        ValueError: for another way to read images, or where there is no image for a CNN.

    Example:
        >>> encoder = ObservationEncoder(spaces.Box(0, 255, (64, 64, 3), np.uint8))
        >>> encoder(torch.zeros(5, 64 * 64 * 3, dtype=torch.uint8)).shape
        torch.Size([5, 128])
    """

    #: Observations are multiplied by the first and added to the second, `[O]`. They follow from the space.
    factor: Tensor
    offset: Tensor

    def __init__(self, space: Space, images: str = "auto", *, features: int = 128, scale_images: bool = True):
        super().__init__()
        if images not in ("auto", "cnn", "flat"):
            raise ValueError(f"an encoder of observations must be one of auto, cnn, flat, or a module, got {images!r}")
        leaves = [*observation_leaves(space).values()]
        self.widths = [observation_size(leaf) for leaf in leaves]
        networks, groups, scales = [], [], []
        for leaf, width in zip(leaves, self.widths, strict=True):
            is_image = images != "flat" and _is_image(leaf, images == "auto")
            networks.append(ImageNetwork(leaf.shape or (), features) if is_image else nn.Identity())
            groups += [features] if is_image else [1] * width
            scales.append(_scale(leaf, width) if scale_images else (np.ones(width), np.zeros(width)))
        self.groups, self.size = tuple(groups), sum(groups)
        has_image = any(isinstance(network, ImageNetwork) for network in networks)
        self.parts = nn.ModuleList(networks) if has_image else None
        if images == "cnn" and not has_image:
            raise ValueError(f"there is no image of at least {_SMALLEST} pixels a side for a CNN in {space}")
        for name, parts in zip(("factor", "offset"), zip(*scales, strict=True), strict=True):
            values = torch.as_tensor(np.concatenate(parts), dtype=torch.get_default_dtype())
            self.register_buffer(name, values, persistent=False)
        self.plain = not has_image and bool((self.factor == 1).all() and (self.offset == 0).all())

    def forward(self, observations: Tensor) -> Tensor:
        """Return what a network reads of ``[..., O]``."""
        if observations.shape[-1] != len(self.factor):
            raise RuntimeError(f"observations of {len(self.factor)} numbers are needed, got {observations.shape[-1]}")
        observations = as_floats(observations, self.factor)
        return observations if self.plain else self.read(torch.addcmul(self.offset, observations, self.factor))

    def read(self, scaled: Tensor) -> Tensor:
        """Return the same of observations ``[..., O]`` that are scaled already, in this or another way."""
        if self.parts is None:
            return scaled
        each = zip(self.parts, scaled.split(self.widths, -1), strict=True)
        return torch.cat([network(part) for network, part in each], -1)

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"{sum(self.widths)} -> {self.size}"


class ImageNetwork(nn.Module):
    """A small CNN, ``[..., H * W * C] -> [..., features]``, for images of any size.

    Convolutions of 3 x 3, each of which halves the sides, with 16, 32, then 64 channels, until at most 5 x 5 pixels are
    left; a linear layer; a ReLU after each: like the encoder of D. Hafner et al., "Dream to Control" (2020), smaller.

    Args:
        shape: ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)``: the channels are at the smaller end.
        features: numbers that come out.
    """

    def __init__(self, shape: tuple[int, ...], features: int):
        super().__init__()
        self.shape, self.last, self.features = shape, _channels_last(shape), features
        *sides, channels = shape if self.last else (*shape[-2:], shape[0] if len(shape) > 2 else 1)
        layers: list[nn.Module] = []
        width = 16
        while max(sides) > _LAST:
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU()]
            sides, channels, width = [(side + 1) // 2 for side in sides], width, min(2 * width, 64)
        self.network = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(channels * sides[0] * sides[1], features), nn.ReLU()
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of flattened images."""
        rows = images.reshape(-1, *(self.shape if len(self.shape) > 2 else (1, *self.shape)))
        return self.network(rows.movedim(-1, 1) if self.last else rows).reshape(*images.shape[:-1], self.features)


def make_observation_encoder(encoder: str | nn.Module | None, space: Space) -> tuple[nn.Module, int]:
    """Return an encoder of observations, and how many numbers come out of it, X.

    Args:
        encoder: ``"auto"`` (or None), ``"cnn"`` or ``"flat"``, as for an :class:`ObservationEncoder`; or a module of
            floats ``[..., O] -> [..., X]``, which is tried on an observation.
        space: of the observations.

    Raises:
        ValueError: for another name, or a module that does not take such observations.
    """
    if encoder is None or isinstance(encoder, str):
        made = ObservationEncoder(space, encoder or "auto")
        return made, made.size
    like, size = next(encoder.parameters(), torch.empty(0)), observation_size(space)
    try:
        with torch.no_grad():
            return encoder, encoder(like.new_zeros(2, size)).shape[-1]
    except RuntimeError as error:
        raise ValueError(f"the encoder does not take observations of width {size}: {error}") from None


_LARGEST = 2**24  # numbers of an observation


def as_floats(observations: Tensor, like: Tensor) -> Tensor:
    """Return whole numbers, such as bytes, as floats of the type of ``like``; floats as they are."""
    return observations if observations.is_floating_point() else observations.to(like.dtype)


def observed(size: int | None, space: Space | None) -> Space:
    """Return the space of observations, given itself, or as that of all vectors of ``size`` numbers.

    Raises:
        ValueError: if neither is given, they disagree, or the size is beyond any observation's.
    """
    if space is None:
        if size is None:
            raise ValueError("give obs_size, or the observation_space")
        if not 0 <= size <= _LARGEST:
            raise ValueError(f"obs_size must be between 0 and {_LARGEST}, got {size}")
        return spaces.Box(-np.inf, np.inf, (size,), np.float32)
    if size not in (None, found := observation_size(space)):
        raise ValueError(f"obs_size={size}, but the observation space has {found}")
    return space


def _scale(leaf: Space, width: int) -> tuple[np.ndarray, np.ndarray]:
    """By what a part is multiplied, and what is then added."""
    factor, offset = np.ones(width), np.zeros(width)
    if isinstance(leaf, spaces.Box) and leaf.dtype.kind in "iu":
        low, high = leaf.low.ravel().astype(np.float64), leaf.high.ravel().astype(np.float64)
        known = (low < high) & (low >= -_GREATEST) & (high <= _GREATEST)
        factor[known] = 1 / (high - low)[known]
        offset[known] = (-low * factor)[known]
    return factor, offset


def _is_image(leaf: Space, unasked: bool) -> bool:
    """Whether a part is read as an image."""
    if not isinstance(leaf, spaces.Box) or len(leaf.shape) not in (2, 3) or unasked and leaf.dtype.kind not in "iu":
        return False
    sides = leaf.shape[:2] if _channels_last(leaf.shape) else leaf.shape[-2:]
    return min(sides) >= (_AUTOMATIC if unasked else _SMALLEST)


def _channels_last(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[-1] <= shape[0]
