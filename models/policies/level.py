"""A level of a hierarchy: a policy that moves the latents of a level above to the actions of one below.

Shapes: O observation numbers, A action numbers, which are as many at all levels.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from torch import Tensor, nn

__all__ = ["Columns", "Level", "check_box", "check_module", "columns_of", "from_box", "frozen", "hold_of", "to_box"]

Columns = slice | Sequence[int] | None
"""Which numbers of an observation something sees; None for all of them."""


class Level(Protocol):
    """A policy that moves latents to actions, which an environment can embed; see `pyrocontrol.guides`.

    Attributes:
        observation_size: O.
        action_size: A, of the actions and the latents.
        squash: whether actions are within (-1, 1), as at the lowest level; otherwise they are latents of a level below.
        invertible: whether ``actions`` is invertible in the latents.
    """

    def signature(self) -> str:
        """Return what two levels share exactly when they can share weights."""

    observation_size: int
    action_size: int
    squash: bool
    invertible: bool

    def actions(self, latents: Tensor, observations: Tensor) -> Tensor:
        """Return a = f(h; s) ``[..., A]`` of latents ``[..., A]`` and observations ``[..., O]``."""


def check_module(policy: Any) -> None:
    """Refuse what is no torch module.

    Raises:
        TypeError: if it is none.
    """
    if not isinstance(policy, nn.Module):
        raise TypeError(f"a level must be a policy and a torch module, got {type(policy).__name__}")


def frozen(policy: Any) -> Any:
    """Return a copy of a policy that takes no gradients, in evaluation mode.

    Raises:
        TypeError: if it is no torch module.
    """
    check_module(policy)
    return copy.deepcopy(policy).eval().requires_grad_(False)


def hold_of(hold: Any) -> int:
    """Return for how many steps an action is held.

    Raises:
        TypeError: unless that is a whole number.
        ValueError: if it is less than 1.
    """
    try:
        found = operator.index(hold)
    except TypeError as error:
        raise TypeError(f"hold must be a whole number, got {hold!r}") from error
    if found < 1:
        raise ValueError(f"hold must be at least 1, got {hold}")
    return found


def columns_of(columns: Columns, size: int, seen: int) -> np.ndarray:
    """Return the indices of what is seen, ``[seen]``, of an observation of ``size`` numbers.

    Raises:
        TypeError: for what is neither a slice nor indices.
        ValueError: if there is no such number, or there are not ``seen`` of them.
    """
    if size > 2**24:  # of which no list is made before it is known that somebody sees them
        raise ValueError(f"an observation of {size} numbers is too long")
    try:
        found = np.arange(size)[
            slice(None) if columns is None else columns if isinstance(columns, slice) else [*columns]
        ]
    except TypeError as error:
        raise TypeError(f"what is seen must be a slice or indices, got {columns!r}") from error
    except IndexError as error:
        raise ValueError(f"{columns} are not all indices of an observation of {size} numbers") from error
    if len(found) != seen:
        raise ValueError(f"the policy takes observations of {seen} numbers, it is to see {len(found)} of {size}")
    return found


def to_box(actions: np.ndarray, box: spaces.Box) -> np.ndarray:
    """Return actions ``[..., A]`` in the bounds of a box, of normalised ones within -1 to 1, as `learn` makes them."""
    low, high = box.low, box.high
    return np.clip(low + (actions + 1) * ((high - low) / 2), low, high).astype(box.dtype)


def from_box(actions: np.ndarray, box: spaces.Box) -> np.ndarray:
    """Return normalised actions ``[..., A]`` float64, of ones in the bounds of a box."""
    low, high = box.low.astype(np.float64), box.high.astype(np.float64)
    return (np.asarray(actions, np.float64) - low) / ((high - low) / 2) - 1


def check_box(box: Any, size: int) -> None:
    """Refuse actions that a lowest level of ``size`` actions cannot be mapped to.

    Raises:
        TypeError: unless it is a Box of floats.
        ValueError: if it is of another size, or has not two bounds that are apart by a number.
    """
    if not isinstance(box, spaces.Box) or len(box.shape) != 1 or box.dtype.kind != "f":
        raise TypeError(f"the actions must be a Box of floats in one row, got {box}")
    if box.shape != (size,):
        raise ValueError(f"the policy acts with {size} numbers, the space of actions is of another size: {box}")
    with np.errstate(over="ignore"):
        between = box.high - box.low
    if not ((between > 0) & np.isfinite(between)).all():
        raise ValueError(f"the actions have no bounds to scale to: {box}")
