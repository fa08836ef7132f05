"""Spaces as JSON text, for files that must load without executing anything."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from gymnasium import spaces

from .._limits import json_of
from .._saved import writable

__all__ = ["space_from_json", "space_to_json", "verify_size"]

Space = spaces.Space[Any]


def space_to_json(space: Space) -> str:
    """Return a space as text that :func:`space_from_json` reads; equal spaces, of equal order, have equal texts.

    Args:
        space: Box, Discrete, MultiDiscrete, MultiBinary, or Dict (with names as keys) or Tuple of these.

    Raises:
        TypeError: for any other space.

    Example:
        >>> space_to_json(spaces.Discrete(3))
        '{"type": "Discrete", "n": 3, "start": 0, "dtype": "int64"}'
    """
    return json.dumps(_described(space))


def space_from_json(text: str, largest: int = 2**24) -> Space:
    """Return the space that a text of :func:`space_to_json` describes.

    Args:
        text: of JSON.
        largest: see `verify_size`.

    Raises:
        ValueError: if it describes none, or a larger one.
    """
    try:
        kind = json_of(text)
        verify_size(kind, largest)
        return _space(kind)
    except Exception as error:  # gymnasium raises several kinds, by what it is given
        raise ValueError(f"no description of a space: {text[:200]!r} ({type(error).__name__}: {error})") from error


def verify_size(kind: Any, largest: int = 2**24) -> None:
    """Refuse the description of a space that is too large, before it is made.

    Args:
        kind: what a JSON text says of the space, in our form or Minari's.
        largest: how many bytes an element may have; a byte for each number of a discrete part, which are one-hot. A
            few dozen bytes of text describe a space of any size.

    Raises:
        ValueError: if it has more.
    """
    if (size := _bytes(kind)) > largest:
        raise ValueError(f"a space of {size} bytes is larger than the {largest} that it may be here")


def _bytes(kind: Any) -> int:
    """How many bytes an element of a space has."""
    if not isinstance(kind, dict):
        raise TypeError(f"a space is described by a dict, not by a {type(kind).__name__}")
    if (parts := kind.get("spaces", kind.get("subspaces"))) is not None:
        parts = parts.values() if isinstance(parts, dict) else parts
        return sum(_bytes(part[-1] if isinstance(part, list) else part) for part in parts)
    if "nvec" in kind:
        return int(abs(np.array(kind["nvec"], object)).sum())
    each = np.dtype(kind["dtype"]).itemsize if "shape" in kind else 1
    return each * abs(int(np.array(kind.get("shape", kind.get("n", 1)), object).prod()))


def _described(space: Space) -> dict[str, Any]:
    kind: dict[str, Any] = {"type": type(space).__name__}
    if isinstance(space, spaces.Box):
        bounds = {"low": _bound(space.low, space.bounded_below), "high": _bound(space.high, space.bounded_above)}
        return kind | {"shape": list(space.shape), "dtype": space.dtype.name, **bounds}
    if isinstance(space, spaces.Discrete):
        return kind | {"n": int(space.n), "start": int(space.start), "dtype": np.dtype(space.dtype).name}
    if isinstance(space, spaces.MultiDiscrete):
        numbers = {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
        return kind | {**numbers, "dtype": np.dtype(space.dtype).name}
    if isinstance(space, spaces.MultiBinary):
        return kind | {"n": space.n if isinstance(space.n, int) else list(space.n)}
    if isinstance(space, spaces.Dict):
        if wrong := [key for key in space.spaces if not isinstance(key, str)]:
            raise TypeError(f"the keys of a Dict space must be strings, got {wrong[0]!r}")
        return kind | {"spaces": [[key, _described(part)] for key, part in space.spaces.items()]}
    if isinstance(space, spaces.Tuple):
        return kind | {"spaces": [_described(part) for part in space.spaces]}
    raise TypeError(f"a space of this kind cannot be described: {space} ({type(space).__name__})")


def _bound(bound: np.ndarray, bounded: np.ndarray) -> Any:
    """One number where all are equal, as they mostly are, else nested lists; infinite ones as JSON strings."""
    if bound.dtype.kind in "iu" and bound.size and not bounded.any():
        return "inf" if bound.flat[0] > 0 else "-inf"
    if bound.size and (bound == bound.flat[0]).all():
        bound = bound.reshape(-1)[0]

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return plain(bound.tolist())


def _space(kind: dict[str, Any]) -> Space:
    name = kind["type"]
    if name == "Box":
        shape, dtype = tuple(kind["shape"]), np.dtype(kind["dtype"])
        return spaces.Box(_array(kind["low"], shape, dtype), _array(kind["high"], shape, dtype), shape, dtype)
    if name == "Discrete":
        return spaces.Discrete(kind["n"], start=kind["start"], dtype=kind["dtype"])
    if name == "MultiDiscrete":
        return spaces.MultiDiscrete(kind["nvec"], start=kind["start"], dtype=kind["dtype"])
    if name == "MultiBinary":
        return spaces.MultiBinary(kind["n"])
    if name == "Dict":
        return spaces.Dict([(key, _space(part)) for key, part in kind["spaces"]])  # a list keeps its order
    if name == "Tuple":
        return spaces.Tuple([_space(part) for part in kind["spaces"]])
    raise ValueError(f"there is no space {name!r}")


def _array(bound: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """A bound as gymnasium takes it; no bound on integers is an infinite float there."""
    if dtype.kind in "iu" and isinstance(bound, str):
        return float(bound)

    def numbers(value: Any) -> Any:
        return [numbers(item) for item in value] if isinstance(value, list) else dtype.type(value)

    return np.broadcast_to(np.array(numbers(bound), dtype), shape).copy()


writable("space", spaces.Space, space_to_json, space_from_json)
