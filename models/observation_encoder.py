"""What a network reads of an observation: whole numbers scaled by their bounds, images through a small CNN.

Shapes: ``...`` a batch of any shape, O observation numbers, X numbers that are read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from .spaces import _leaves, observation_size

__all__ = ["ImageNetwork", "ObservationEncoder", "as_floats", "bounds_scaling", "make_observation_encoder", "observed"]

Space = spaces.Space[Any]

_SMALLEST = 8  # pixels a side that a CNN reads
_AUTOMATIC = 16  # pixels a side of whole numbers that one reads unasked
_LAST = 5  # pixels a side, at most, that the convolutions leave
_GREATEST = 2**24  # bounds beyond are those of the type, not of what is measured


class ObservationEncoder(nn.Module):
    """From flattened observations ``[..., O]``, floats or whole numbers, to what a network reads, ``[..., X]``.

    Args:
        space: of the observations.
        images: ``"cnn"`` reads each Box of two or three dimensions, of at least 8 pixels a side, by an
            :class:`ImageNetwork`; ``"auto"`` those of whole numbers and at least 16 pixels a side; ``"flat"`` none.
            All other numbers pass as they are.
        features: numbers that an image becomes.
        scale_images: scale whole numbers to 0 to 1 by the bounds of their Box: see :func:`bounds_scaling`.

    Attributes:
        size: X.
        groups: widths of the parts of what is read, which a :class:`~pyrocontrol.models.ControlProgram` weighs one
            against another: an image is one, every other number one by itself.

    Raises:
        ValueError: for another way to read images, or where there is no image for a CNN.

    Example:
        >>> encoder = ObservationEncoder(spaces.Box(0, 255, (64, 64, 3), np.uint8))
        >>> encoder(torch.zeros(5, 64 * 64 * 3, dtype=torch.uint8)).shape
        torch.Size([5, 128])
    """

    factor: Tensor | None
    offset: Tensor

    def __init__(self, space: Space, images: str = "auto", *, features: int = 128, scale_images: bool = True):
        super().__init__()
        if images not in ("auto", "cnn", "flat"):
            raise ValueError(f"an encoder of observations must be one of auto, cnn, flat, or a module, got {images!r}")
        self.images = nn.ModuleList()
        self.places: list[int] = []  # of the images among the parts
        self.widths: list[int] = []
        self.groups: tuple[int, ...] = ()
        for place, (_, leaf) in enumerate(_leaves(space)):
            width = observation_size(leaf)
            self.widths.append(width)
            if images != "flat" and _is_image(leaf, _AUTOMATIC if images == "auto" else _SMALLEST, images == "auto"):
                self.places.append(place)
                self.images.append(ImageNetwork(leaf.shape, features))  # type: ignore[arg-type]  # it has one
            self.groups += (features,) if self.places[-1:] == [place] else (1,) * width
        if images == "cnn" and not self.places:
            raise ValueError(f"there is no image of at least {_SMALLEST} pixels a side for a CNN in {space}")
        self.size = sum(self.groups)
        factor, offset = bounds_scaling(space) if scale_images else (torch.ones(0), torch.zeros(0))
        scaled = bool((factor != 1).any() or (offset != 0).any())
        # They follow from the space, so they are not saved.
        self.register_buffer("factor", factor if scaled else None, persistent=False)
        self.register_buffer("offset", offset, persistent=False)

    def forward(self, observations: Tensor) -> Tensor:
        """Return what a network reads of ``[..., O]``."""
        observations = as_floats(observations, self.offset)
        if self.factor is not None:
            observations = torch.addcmul(self.offset, observations, self.factor)
        if not self.places:
            return observations
        parts = list(observations.split(self.widths, -1))
        for place, network in zip(self.places, self.images, strict=True):
            parts[place] = network(parts[place])
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]

    @property
    def plain(self) -> bool:
        """Whether all numbers pass as they are."""
        return not self.places and self.factor is None

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"{sum(self.widths)} -> {self.size}"


class ImageNetwork(nn.Module):
    """A small CNN, ``[..., H * W * C] -> [..., features]``, for images of any size.

    Convolutions of 3 x 3, each of which halves the sides, with 16, 32, then 64 channels, until at most 5 x 5 pixels are
    left; a linear layer; a ReLU after each. D. Hafner et al., "Dream to Control" (2020), reads images so.

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


def bounds_scaling(space: Space) -> tuple[Tensor, Tensor]:
    """Return by what flattened observations are multiplied, and what is then added, ``[O]`` each.

    A number of a Box of whole numbers goes from its bounds to 0 to 1; all others, and those whose bounds are beyond
    2^24 or equal, stay as they are.
    """
    factors, offsets = [np.ones(0)], [np.zeros(0)]
    for _, leaf in _leaves(space):
        factor, offset = np.ones(width := observation_size(leaf)), np.zeros(width)
        if isinstance(leaf, spaces.Box) and leaf.dtype.kind in "iu":
            low, high = leaf.low.ravel().astype(np.float64), leaf.high.ravel().astype(np.float64)
            known = (low < high) & (low >= -_GREATEST) & (high <= _GREATEST)
            factor[known] = 1 / (high - low)[known]
            offset[known] = (-low * factor)[known]
        factors.append(factor)
        offsets.append(offset)
    kind = torch.get_default_dtype()
    return torch.as_tensor(np.concatenate(factors), dtype=kind), torch.as_tensor(np.concatenate(offsets), dtype=kind)


def make_observation_encoder(
    encoder: str | nn.Module | None, space: Space, scale_images: bool = True
) -> tuple[nn.Module, int]:
    """Return an encoder of observations, and how many numbers come out of it, X.

    Args:
        encoder: ``"auto"`` (or None), ``"cnn"`` or ``"flat"``, as for an :class:`ObservationEncoder`; or a module of
            floats ``[..., O] -> [..., X]``, which is tried on an observation.
        space: of the observations.
        scale_images: of a named encoder.

    Raises:
        ValueError: for another name, or a module that does not take such observations.
    """
    if encoder is None or isinstance(encoder, str):
        made = ObservationEncoder(space, encoder or "auto", scale_images=scale_images)
        return made, made.size
    like, size = next(encoder.parameters(), torch.empty(0)), observation_size(space)
    try:
        with torch.no_grad():
            return encoder, encoder(like.new_zeros(1, size)).shape[-1]
    except RuntimeError as error:
        raise ValueError(f"the encoder does not take observations of width {size}: {error}") from None


def as_floats(observations: Tensor, like: Tensor) -> Tensor:
    """Return whole numbers, such as bytes, as floats of the type of ``like``; floats as they are."""
    return observations if observations.is_floating_point() else observations.to(like.dtype)


def observed(size: int | None, space: Space | None) -> Space:
    """Return the space of observations, given itself, or as that of all vectors of ``size`` numbers.

    Raises:
        ValueError: if neither is given, or they disagree.
    """
    if space is None:
        if size is None:
            raise ValueError("give obs_size, or the observation_space")
        return spaces.Box(-np.inf, np.inf, (size,), np.float32)
    if size not in (None, found := observation_size(space)):
        raise ValueError(f"obs_size={size}, but the observation space has {found}")
    return space


def _is_image(leaf: Space, side: int, whole: bool) -> bool:
    """Whether a part is an image of at least ``side`` pixels a side, and of whole numbers if that is asked."""
    if not isinstance(leaf, spaces.Box) or len(leaf.shape) not in (2, 3) or whole and leaf.dtype.kind not in "iu":
        return False
    sides = leaf.shape[:2] if _channels_last(leaf.shape) else leaf.shape[-2:]
    return min(sides) >= side


def _channels_last(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[-1] <= shape[0]
