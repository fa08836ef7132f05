"""Spaces as arrays: observations of any environment as flat numbers, actions as numbers to store.

A policy reads observations as one vector ``[O]`` of numbers and emits actions as an index or a vector ``[A]``. These
functions take whole batches from the environment's form to these and back, bit for bit: every function takes one
element of a space or a batch with any leading dimensions (dicts of batches), and none loops over a batch.

Observations: a Box is flattened, a Discrete is one-hot, a MultiDiscrete is its one-hots side by side, a MultiBinary
its bits; Dict and Tuple are the parts of all of these side by side, in the order of the space.

Shapes: ``...`` leading dimensions of a batch (none for one element), ``O`` observation numbers, ``A`` action numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

__all__ = [
    "SpaceError",
    "action_size",
    "as_action_space",
    "boxes_of",
    "check_action_space",
    "decode_actions",
    "encode_actions",
    "flatten_observations",
    "observation_bytes",
    "observation_dtype",
    "observation_leaves",
    "observation_parts",
    "observation_size",
    "unflatten_observations",
]

Space = spaces.Space[Any]

# The greatest integers that the two floating types count up to without gaps.
_EXACT = {"float32": 2**24, "float64": 2**53}


class SpaceError(ValueError):
    """Something given is not in its space.

    Attributes:
        index: where in the batch, in its leading dimensions; ``()`` where it is one element, or all of them.
    """

    def __init__(self, message: str, index: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.index = index


# ---------------------------------------------------------------------- observations


def observation_size(space: Space) -> int:
    """Return ``O``, the width of a flattened observation.

    Raises:
        TypeError: for a space that has no flat form.
    """
    return sum(_width(leaf) for _, leaf in _leaves(space))


def observation_parts(space: Space) -> dict[str, slice]:
    """Return where in a flattened observation each part stands.

    Returns:
        Slices of ``0..O-1`` by name: ``"observation"`` for a space without parts, the keys of a Dict, the places of
        a Tuple, joined by dots where they are nested.

    Raises:
        TypeError: for a space that has no flat form, or two parts of one name.

    Example:
        >>> observation_parts(spaces.Dict(goal=spaces.Box(-1, 1, (2,)), room=spaces.Discrete(3)))
        {'goal': slice(0, 2, None), 'room': slice(2, 5, None)}
    """
    parts: dict[str, slice] = {}
    start = 0
    for name, leaf in observation_leaves(space).items():
        parts[name] = slice(start, start := start + _width(leaf))
    return parts


def observation_leaves(space: Space) -> dict[str, Space]:
    """Return the parts of a space that have no parts themselves, by name, in their order; see `observation_parts`.

    Raises:
        TypeError: for two parts of one name.
    """
    leaves: dict[str, Space] = {}
    for name, leaf in _leaves(space):
        if name in leaves:
            raise TypeError(f"two parts of the observation space are called {name!r}: {space}")
        leaves[name] = leaf
    return leaves


def boxes_of(space: Any, alone: str = "") -> dict[str, spaces.Box]:
    """Return the Boxes of a space by their names; the name of a space that is a Box itself is ``alone``.

    Raises:
        TypeError: for what is neither a Box nor a Dict of Boxes.
    """
    boxes = space.spaces if isinstance(space, spaces.Dict) else {alone: space}
    if not boxes or not all(isinstance(box, spaces.Box) for box in boxes.values()):
        raise TypeError(f"observations must be a Box or a Dict of Boxes, not {space}")
    return {**boxes}


def observation_dtype(space: Space) -> np.dtype[Any]:
    """Return the type of flattened observations.

    It is uint8 where every part is a Box of uint8, such as an image. Otherwise it is float32, or float64 where a part
    needs it: a Box of float64, or of integers beyond 2^24.

    Raises:
        TypeError: for a space that has no flat form.
    """
    if (of_bytes := observation_bytes(space)).size and of_bytes.all():
        return np.dtype(np.uint8)
    return np.dtype(np.float64 if any(_needs_double(leaf) for _, leaf in _leaves(space)) else np.float32)


def observation_bytes(space: Space) -> np.ndarray:
    """Return which numbers of a flattened observation are bytes, ``[O]`` bool: those of Boxes of uint8.

    Raises:
        TypeError: for a space that has no flat form.
    """
    leaves = [(_width(leaf), isinstance(leaf, spaces.Box) and leaf.dtype == np.uint8) for _, leaf in _leaves(space)]
    return np.concatenate([np.full(width, of_bytes) for width, of_bytes in leaves] or [np.zeros(0, bool)])


def flatten_observations(space: Space, observations: Any) -> np.ndarray:
    """Flatten one observation, or a batch of them.

    Values are cast to the types that the space declares: real numbers are rounded, and whole numbers are taken from
    any type that holds them. Bounds of a Box are not checked, as many environments overstep their own.

    Args:
        space: the observation space.
        observations: in the environment's form, with any leading dimensions; for a Dict a mapping of batches, for a
            Tuple a tuple or list of batches.

    Returns:
        ``[..., O]``, of type :func:`observation_dtype`; it may share memory with the observations.

    Raises:
        TypeError: for a space that has no flat form.
        SpaceError: for observations of another shape or kind than the space's, or outside a discrete part.
    """
    dtype = observation_dtype(space)
    flat = [_flatten_leaf(leaf, value, name, dtype) for name, leaf, value in _values(space, observations)]
    if len(flat) == 1:
        return flat[0]
    if not flat:
        raise TypeError(f"an observation space without parts has no flat form: {space}")
    leading = flat[0].shape[:-1]
    for (name, _), part in zip(_leaves(space), flat, strict=True):
        if part.shape[:-1] != leading:
            raise SpaceError(f"the part {name!r} has leading dimensions {part.shape[:-1]}, those before have {leading}")
    return np.concatenate(flat, -1)


def unflatten_observations(space: Space, flat: Any) -> Any:
    """Return flattened observations to the environment's form: the inverse of :func:`flatten_observations`.

    Args:
        space: the observation space.
        flat: ``[..., O]``.

    Returns:
        One observation, or a batch, in the space's own types.

    Raises:
        TypeError: for a space that has no flat form.
        SpaceError: for another width than the space's.
    """
    flat = np.asarray(flat)
    size = observation_size(space)
    if flat.ndim == 0 or flat.shape[-1] != size:
        raise SpaceError(f"flattened observations of this space must have shape [..., {size}], got {flat.shape}")
    return _unflatten(space, flat)


def _children(space: Space) -> list[tuple[Any, Space]] | None:
    """The parts of a Dict or Tuple, each with its key; None for a space without parts."""
    if isinstance(space, spaces.Dict):
        return list(space.spaces.items())
    return list(enumerate(space.spaces)) if isinstance(space, spaces.Tuple) else None


def _leaves(space: Space, name: str = "") -> Iterator[tuple[str, Space]]:
    """The parts of a space that have no parts themselves, with their names."""
    children = _children(space)
    if children is None:
        yield name or "observation", space
        return
    for key, part in children:
        yield from _leaves(part, f"{name}.{key}" if name else str(key))


def _values(space: Space, observations: Any, name: str = "") -> Iterator[tuple[str, Space, Any]]:
    """The same, each with its share of the observations."""
    children = _children(space)
    if children is None:
        yield name or "observation", space, observations
        return
    if isinstance(space, spaces.Dict):
        fits = isinstance(observations, Mapping) and observations.keys() == space.spaces.keys()
        wanted = f"a dict of {list(space.spaces)}"
        given = f"{list(observations)}" if isinstance(observations, Mapping) else _kind(observations)
    else:
        fits = isinstance(observations, tuple | list) and len(observations) == len(children)
        wanted = f"a tuple of {len(children)}"
        given = f"{len(observations)}" if isinstance(observations, tuple | list) else _kind(observations)
    if not fits:
        raise SpaceError(f"{_named(name)} must be {wanted}, got {given}")
    for key, part in children:
        yield from _values(part, observations[key], f"{name}.{key}" if name else str(key))


def _named(name: str) -> str:
    """A part of the observations, for an error."""
    return f"the part {name!r}" if name and name != "observation" else "an observation"


def _kind(value: Any) -> str:
    return type(value).__name__


def _width(leaf: Space) -> int:
    """How many numbers a part without parts becomes."""
    if isinstance(leaf, spaces.Box) and leaf.dtype.itemsize <= 8 or isinstance(leaf, spaces.MultiBinary):
        return int(np.prod(leaf.shape))
    if isinstance(leaf, spaces.Discrete):
        return int(leaf.n)
    if isinstance(leaf, spaces.MultiDiscrete):
        return int(leaf.nvec.sum())
    raise TypeError(
        "observation spaces are Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of these, "
        f"got {leaf} ({_kind(leaf)})"
    )


def _needs_double(leaf: Space) -> bool:
    _width(leaf)
    if not isinstance(leaf, spaces.Box) or leaf.dtype.kind == "b":
        return False
    if leaf.dtype.kind == "f":
        return leaf.dtype.itemsize == 8
    return bool(leaf.low.size) and max(-int(leaf.low.min()), int(leaf.high.max())) > _EXACT["float32"]


def _flatten_leaf(leaf: Space, given: Any, name: str, dtype: np.dtype[Any]) -> np.ndarray:
    """``[..., width]`` of one part."""
    value = _numbers(given, leaf.shape, _named(name))
    leading = value.shape[: value.ndim - len(leaf.shape or ())]
    if isinstance(leaf, spaces.Box | spaces.MultiBinary):
        if leaf.dtype.itemsize == 8 and leaf.dtype.kind in "iu":
            _refuse(np.abs(value.astype(np.float64)) > _EXACT["float64"], f"{_named(name)} is beyond 2^53", leaf.shape)
        if isinstance(leaf, spaces.MultiBinary):
            _refuse((value != 0) & (value != 1), f"{_named(name)} is outside {leaf}", leaf.shape)
        # What overflows becomes infinite, which the reader of the numbers refuses.
        with np.errstate(over="ignore", invalid="ignore"):
            cast = value.astype(leaf.dtype, copy=False)
        if leaf.dtype.kind != "f" and value.dtype != leaf.dtype:
            _refuse(cast != value, f"{_named(name)} must be of {leaf.dtype}, got {value.dtype}", leaf.shape, value)
        return cast.astype(dtype, copy=False).reshape((*leading, _width(leaf)))
    if value.dtype.kind == "f":
        raise SpaceError(f"{_named(name)} must be of {leaf.dtype}, got {value.dtype}")
    start, count = _range(leaf)
    index = value.astype(np.int64) - start
    _refuse((index < 0) | (index >= count), f"{_named(name)} is outside {leaf}", leaf.shape, value)
    counts = count.reshape(-1)
    places = index.reshape((*leading, len(counts))) + (np.cumsum(counts) - counts)
    onehot = np.zeros((*leading, int(counts.sum())), dtype)
    np.put_along_axis(onehot, places, 1, -1)
    return onehot


def _unflatten(space: Space, flat: np.ndarray) -> Any:
    """The inverse of flattening, for a part whose numbers are all of ``flat``."""
    children = _children(space)
    if children is not None:
        parts, start = {}, 0
        for key, part in children:
            width = observation_size(part)
            parts[key] = _unflatten(part, flat[..., start : start + width])
            start += width
        return parts if isinstance(space, spaces.Dict) else tuple(parts.values())
    leading = flat.shape[:-1]
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        first, counts = _range(space)
        ends = np.cumsum(counts.reshape(-1))
        chosen = np.stack([part.argmax(-1) for part in np.split(flat, ends[:-1], axis=-1)], -1)
        return (chosen.reshape((*leading, *(space.shape or ()))) + first).astype(space.dtype)[()]
    # Copied, so that nobody who changes an observation changes the data.
    return flat.reshape((*leading, *(space.shape or ()))).astype(space.dtype)


def _range(space: Space) -> tuple[np.ndarray, np.ndarray]:
    """The least value of each component of a Discrete or MultiDiscrete, and how many it has, as int64."""
    count = space.n if isinstance(space, spaces.Discrete) else space.nvec  # type: ignore[attr-defined]
    return np.asarray(space.start, np.int64), np.asarray(count, np.int64)  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- actions


def check_action_space(space: Space) -> None:
    """Refuse what is no space of actions that can be stored.

    Raises:
        TypeError: unless it is a Discrete, a MultiDiscrete of one dimension or a Box of floats.
    """
    if isinstance(space, spaces.Discrete):
        return
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1 and space.nvec.size:
        return
    if isinstance(space, spaces.Box) and space.dtype.kind == "f" and space.dtype.itemsize <= 8 and space.low.size:
        return
    raise TypeError(
        f"action spaces are Discrete, MultiDiscrete of one dimension, and Box of floats, got {space} ({_kind(space)})"
    )


def as_action_space(space: Space | int) -> Space:
    """Return an action space, from itself or from a number of actions.

    Args:
        space: a space of actions, or an integer of any kind, ``n`` for ``Discrete(n)``.

    Raises:
        TypeError: if it is neither.
        ValueError: for a number that is not positive.
    """
    if isinstance(space, spaces.Space):
        check_action_space(space)
        return space
    try:
        number = operator.index(space)
    except TypeError:
        raise TypeError(f"the action space must be a space or a number of actions, got {space!r}") from None
    if number < 1:
        raise ValueError(f"the number of actions must be positive, got {number}")
    return spaces.Discrete(number)


def action_size(space: Space) -> int:
    """Return ``A``, the width of a stored action; 0 for a Discrete, whose actions are stored as indices.

    Raises:
        TypeError: for a space that :func:`check_action_space` refuses.
    """
    check_action_space(space)
    return 0 if isinstance(space, spaces.Discrete) else int(np.prod(space.shape or ()))


def encode_actions(space: Space, actions: Any) -> np.ndarray:
    """Return actions in the form they are stored and learnt in.

    Args:
        space: the action space.
        actions: in the environment's form, one or a batch with any leading dimensions. Floats are cast to the type
            of a Box.

    Returns:
        Discrete: int64 ``[...]`` in ``0..n-1``; MultiDiscrete: int64 ``[..., A]``, each from 0; Box: ``[..., A]`` of
        the space's type.

    Raises:
        TypeError: for a space that :func:`check_action_space` refuses.
        SpaceError: for actions of another shape or kind, outside the space, NaN or infinite.
    """
    size = action_size(space)
    shape = space.shape or ()
    value = _numbers(actions, shape, "actions")
    leading = value.shape[: value.ndim - len(shape)]
    if isinstance(space, spaces.Box):
        if value.dtype.kind != "f" and value.size:
            raise SpaceError(f"actions must be floats, got {value.dtype}: the action space is {space}")
        with np.errstate(over="ignore"):
            stored = value.astype(space.dtype, copy=False).reshape((*leading, size))
        _refuse(~np.isfinite(stored), "the action is NaN or infinite", (size,))
        low, high = space.low.reshape(-1), space.high.reshape(-1)
        outside = (stored < low) | (stored > high)
        if outside.any():
            *where, component = (int(i) for i in np.argwhere(outside)[0])
            raise SpaceError(
                f"an action outside {low[component]:g}..{high[component]:g} "
                f"(component {component} is {stored[*where, component]:g})",
                tuple(where),
            )
        return stored
    if value.dtype.kind not in "iu" and value.size:
        raise SpaceError(f"actions must be integers, got {value.dtype}: the action space is {space}")
    start, count = _range(space)
    stored = value.astype(np.int64) - start
    outside = (stored < 0) | (stored >= count)
    if np.any(outside):
        where = [int(i) for i in np.argwhere(outside)[0]]
        place = tuple(where[-1:]) if shape else ()
        first = int(start[place])
        which = f"component {place[0]}" if shape else "it"
        raise SpaceError(
            f"an action outside {first}..{first + int(count[place]) - 1} ({which} is {int(value[tuple(where)])})",
            tuple(where[: len(leading)]),
        )
    return stored


def decode_actions(space: Space, stored: Any) -> np.ndarray:
    """Return stored actions in the environment's form: the inverse of :func:`encode_actions`.

    Args:
        space: the action space.
        stored: ``[...]`` for a Discrete, else ``[..., A]``.

    Returns:
        Of the space's type and shape, after any leading dimensions; a NumPy integer for one action of a Discrete.

    Raises:
        TypeError: for a space that :func:`check_action_space` refuses.
        SpaceError: for another width than the space's.
    """
    size, value = action_size(space), np.asarray(stored)
    if isinstance(space, spaces.Discrete):
        return (value + int(space.start)).astype(space.dtype)[()]
    if value.ndim == 0 or value.shape[-1] != size:
        raise SpaceError(f"stored actions of {space} must have shape [..., {size}], got {value.shape}")
    if isinstance(space, spaces.MultiDiscrete):
        return (value + space.start).astype(space.dtype)
    return value.reshape((*value.shape[:-1], *(space.shape or ()))).astype(space.dtype)


# ---------------------------------------------------------------------- checks


def _numbers(given: Any, shape: tuple[int, ...] | None, what: str) -> np.ndarray:
    """Anything as an array of numbers ``[..., *shape]``."""
    try:
        value = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors on a GPU or with a gradient
        raise SpaceError(f"{what} cannot be made an array: {error}") from error
    if value.dtype.kind not in "fiub":  # objects too, which are never looked into
        raise SpaceError(f"{what} must be numbers, got {value.dtype}")
    shape = shape or ()
    if value.ndim < len(shape) or value.shape[value.ndim - len(shape) :] != shape:
        wanted = ", ".join(["...", *map(str, shape)])
        raise SpaceError(f"{what} must have shape [{wanted}], got {value.shape}")
    return value


def _refuse(bad: np.ndarray, what: str, shape: tuple[int, ...] | None, value: np.ndarray | None = None) -> None:
    """Raise where ``bad`` ``[..., *shape]`` holds, naming the place in the leading dimensions."""
    if np.any(bad):
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        shown = "" if value is None else f" (it is {value[where]})"
        raise SpaceError(what + shown, where[: np.ndim(bad) - len(shape or ())])
