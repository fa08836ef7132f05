"""Observations as they are kept: an array in the dtype of its Box, or a dict of such arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from ...models.spaces import boxes_of

__all__ = ["Observation", "fits", "keep"]

Observation = np.ndarray | dict[str, np.ndarray]


def fits(space: Any, seen: Any) -> bool:
    """Whether observations of a space ``seen`` can be kept as those of ``space``: equal shapes and dtypes.

    Floating point numbers of another precision are rounded, and so fit.
    """
    try:
        wanted, found = boxes_of(space), boxes_of(seen)
    except TypeError:
        return False
    return wanted.keys() == found.keys() and all(
        box.shape == found[name].shape
        and (box.dtype == found[name].dtype or box.dtype.kind == found[name].dtype.kind == "f")
        for name, box in wanted.items()
    )


def keep(space: spaces.Space[Any], observation: Any) -> Observation:
    """Return a copy of an observation, as environments may use their array again.

    Raises:
        ValueError: for another shape than the space has, another dtype where it is not of floats, or other names.
        FloatingPointError: for what is not finite.
    """
    if not isinstance(space, spaces.Dict):
        return _kept(space, observation, "observation")
    given = observation if isinstance(observation, Mapping) else {}
    if given.keys() != space.spaces.keys():
        what = [*given] if given else type(observation).__name__
        raise ValueError(f"the observation is {what}, not a dict of {[*space.spaces]}")
    return {name: _kept(box, given[name], f"observation's {name!r}") for name, box in space.spaces.items()}


def _kept(box: Any, observation: Any, what: str) -> np.ndarray:
    if np.shape(observation) != box.shape:
        raise ValueError(f"the {what} has shape {[*np.shape(observation)]}, not {[*box.shape]}")
    if box.dtype.kind != "f":
        if (dtype := np.asarray(observation).dtype) != box.dtype:
            raise ValueError(f"the {what} is of {dtype}, not {box.dtype}")
        return np.array(observation)
    with np.errstate(over="ignore"):
        seen = np.array(observation, box.dtype)
    if not np.isfinite(seen).all():
        raise FloatingPointError(f"the {what} is {observation}, not finite in {box.dtype}")
    return seen
