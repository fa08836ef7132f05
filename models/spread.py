"""Where parameters of several parts of a model begin: spread over the data."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["spread"]


def spread(points: Tensor, count: int) -> Tensor:
    """Draw points far from each other: a start for the means of a mixture, the goals of skills, or other parts alike.

    Parts that begin alike stay alike, for each then explains everything a little. The first point is drawn at random,
    each later one with a probability proportional to its squared distance from the nearest drawn before (k-means++,
    D. Arthur and S. Vassilvitskii, 2007). Randomness is torch's own.

    Args:
        points: ``[N, D]``, in units in which distances mean something.
        count: K, how many to draw.

    Returns:
        ``[K, D]``, all different.

    Raises:
        ValueError: if the points are no finite ``[N, D]``, or fewer than K of them are different.
    """
    if points.dim() != 2 or not points.isfinite().all():
        raise ValueError(f"points must be finite and have shape [N, D], got {tuple(points.shape)}")
    if count < 1:
        raise ValueError(f"at least one point must be drawn, not {count}")
    distance = points.new_ones(len(points))
    drawn: list[Tensor] = []
    while len(drawn) < count:
        if not distance.any():
            raise ValueError(f"{count} different points are needed, there are {len(drawn)}")
        drawn.append(points[torch.multinomial(distance, 1)])
        nearest = (points - drawn[-1]).square().sum(-1)
        distance = nearest if len(drawn) == 1 else distance.minimum(nearest)
    return torch.cat(drawn)
