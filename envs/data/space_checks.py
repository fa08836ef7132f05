"""What tensors of flattened observations and of stored actions must look like.

Shapes: `...` the dimensions of a batch, O observation numbers, A action numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ...models.spaces import action_size, observation_size

__all__ = ["check_action_kind", "number_of_actions", "observation_space_of", "outside_space"]

Space = spaces.Space[Any]


def observation_space_of(observations: Tensor, space: Space | None) -> Space:
    """Return the space of flattened observations `[..., O]`: the given one, by default all vectors of their type.

    Raises:
        TypeError: for a space that has no flat form.
        ValueError: for a space of another width, or observations that are not floating point.
    """
    if not observations.is_floating_point():
        raise ValueError(f"observations must be floating point, got {observations.dtype}")
    width = observations.shape[-1]
    if space is None:
        dtype = np.float64 if observations.dtype == torch.float64 else np.float32
        return spaces.Box(-np.inf, np.inf, (width,), dtype)
    if observation_size(space) != width:
        raise ValueError(f"the observations have width {width}, their space {observation_size(space)}: {space}")
    return space


def number_of_actions(space: Space) -> int:
    """Return n of a Discrete.

    Raises:
        TypeError: for another space.
    """
    if not isinstance(space, spaces.Discrete):
        raise TypeError(f"only Discrete actions are numbered and have a null, these are {space}")
    return int(space.n)


def check_action_kind(actions: Tensor, space: Space, batch: tuple[int, ...]) -> None:
    """Refuse stored actions of another shape or type than their space's.

    Raises:
        ValueError: unless they are `[*batch]` long for a Discrete, `[*batch, A]` long for a MultiDiscrete, or
            `[*batch, A]` floats for a Box.
    """
    size = action_size(space)
    shape = batch if isinstance(space, spaces.Discrete) else (*batch, size)
    if actions.shape != shape:
        raise ValueError(f"actions must have shape {list(shape)}, got {tuple(actions.shape)}: the space is {space}")
    if isinstance(space, spaces.Box):
        if not actions.is_floating_point():
            raise ValueError(f"actions must be floating point, got {actions.dtype}: the space is {space}")
    elif actions.dtype != torch.long:
        raise ValueError(f"actions must be long integers, got {actions.dtype}")


def outside_space(actions: Tensor, space: Space, taken: Tensor) -> tuple[tuple[int, ...], str] | None:
    """Find the first action that is not in its space.

    Args:
        actions: as :func:`check_action_kind` wants them.
        space: their space.
        taken: bool `[...]`, the actions to look at.

    Returns:
        Its place in the batch and what is wrong with it, or None.
    """
    if isinstance(space, spaces.Box):
        infinite = taken & ~torch.isfinite(actions).all(-1)
        place = _first(infinite)
        if place is not None:
            return place, "the action is NaN or infinite"
        # Rounded as the actions were if they are now of another precision; rounding keeps the order of numbers.
        low, high = (
            torch.as_tensor(bound.reshape(-1), dtype=actions.dtype, device=actions.device)
            for bound in (space.low, space.high)
        )
        outside = (actions < low) | (actions > high)
    elif isinstance(space, spaces.MultiDiscrete):
        high = torch.as_tensor(space.nvec.astype("int64"), device=actions.device) - 1
        low = torch.zeros_like(high)
        outside = (actions < low) | (actions > high)
    else:
        last = int(space.n) - 1  # type: ignore[attr-defined]
        place = _first(taken & ((actions < 0) | (actions > last)))
        return None if place is None else (place, f"an action outside 0..{last} (it is {int(actions[place])})")
    place = _first(taken.unsqueeze(-1) & outside)
    if place is None:
        return None
    *where, component = place
    bounds = f"{low[component].item():g}..{high[component].item():g}"
    return tuple(where), f"an action outside {bounds} (component {component} is {actions[place].item():g})"


def _first(bad: Tensor) -> tuple[int, ...] | None:
    """Where the first true element is, or None."""
    return tuple(torch.nonzero(bad)[0].tolist()) if bool(bad.any()) else None
