"""What demonstrations and transitions have in common: spaces, and numbers that are read when they are asked for.

Shapes: `...` the dimensions of a batch, R rows, O observation numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple, NoReturn, Self

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ...models.spaces import observation_bytes, observation_leaves, observation_parts
from .checks import number_of_actions
from .columns import Column, StoredColumn
from .selection import Index

__all__ = ["Dataset", "hash_observations"]

Space = spaces.Space[Any]


class _Part(NamedTuple):
    """A part of the observations: its space, the column it is kept in, and which numbers of the column's rows it is."""

    space: Space
    column: str
    numbers: slice


class Dataset:
    """Examples, of which an index chooses some. It cannot be changed.

    What a batch holds is put together when it is first read, and kept; nothing else is read or copied.
    """

    action_space: Space
    observation_space: Space
    _columns: Mapping[str, Column | StoredColumn]

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: Index) -> Self:
        raise NotImplementedError

    def _take(self, name: str) -> Tensor:
        """The rows of a column that this is made of, `[..., *]`."""
        raise NotImplementedError

    def _settled(self) -> Self:
        """The same with all that it is made of in columns."""
        return self

    def __iter__(self) -> Iterator[Self]:
        return (self[index] for index in range(len(self)))

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} cannot be changed: {name} cannot be set")

    @cached_property
    def observations(self) -> Tensor:
        """`[..., O]`, flattened (`pyrocontrol.models.flatten_observations`): floats, or bytes where all are bytes."""
        if "bytes" not in self._columns:
            return self._take("observations")
        return _together({name: self._take(name) for name in ("observations", "bytes")}, self._parts)

    @cached_property
    def parts(self) -> dict[str, Tensor]:
        """The parts of the observations by name, each `[..., *shape]`, in the shape and type of its space."""
        given = self._settled()
        rows = {name: given._take(name) for name in {part.column: None for part in given._parts.values()}}
        return {
            name: _in_space(part.space, rows[part.column][..., part.numbers]) for name, part in given._parts.items()
        }

    @property
    def observation_parts(self) -> dict[str, slice]:
        """Where in an observation each of its parts stands, by name; see `pyrocontrol.models.observation_parts`."""
        return observation_parts(self.observation_space)

    @property
    def num_actions(self) -> int:
        """How many actions there are, the null not included.

        Raises:
            TypeError: unless the actions are Discrete.
        """
        return number_of_actions(self.action_space)

    @property
    def observation_dtype(self) -> torch.dtype:
        """Type of `observations`, for which none is read."""
        return self._settled()._columns["observations"].dtype

    @property
    def on_disk(self) -> bool:
        """Whether it is read from files when it is asked for."""
        return isinstance(self._columns["actions"], StoredColumn)

    @cached_property
    def _parts(self) -> dict[str, _Part]:
        of_bytes, ends = observation_bytes(self.observation_space), {"observations": 0, "bytes": 0}
        leaves, found = observation_leaves(self.observation_space), {}
        for name, place in self.observation_parts.items():
            column = "bytes" if "bytes" in self._columns and of_bytes[place].any() else "observations"
            start = ends[column]
            ends[column] += place.stop - place.start
            found[name] = _Part(leaves[name], column, slice(start, ends[column]))
        return found


def hash_observations(digest: Any, rows: Mapping[str, Tensor], parts: Mapping[str, Any]) -> None:
    """Add observations to a hash as the floats that version 0.1 kept.

    Args:
        digest: of `hashlib`.
        rows: `[R, *]` of the columns that the observations are kept in.
        parts: what is where in them.
    """
    for some in zip(*(column.split(4096) for column in rows.values()), strict=True):
        flat = _together(dict(zip(rows, some, strict=True)), parts)
        digest.update((flat.float() if flat.dtype == torch.uint8 else flat).cpu().numpy().tobytes())


def _together(rows: Mapping[str, Tensor], parts: Mapping[str, _Part]) -> Tensor:
    """Observations `[..., O]` from the columns that they are kept in."""
    real = rows["observations"]
    if len(rows) == 1:
        return real
    return torch.cat([rows[part.column][..., part.numbers].to(real.dtype) for part in parts.values()], -1)


def _in_space(space: Space, flat: Tensor) -> Tensor:
    """A part of flattened observations `[..., width]` in the environment's form, `[..., *shape]`."""
    shape = (*flat.shape[:-1], *(space.shape or ()))
    dtype = torch.from_numpy(np.zeros(0, space.dtype)).dtype
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        counts = [int(space.n)] if isinstance(space, spaces.Discrete) else space.nvec.reshape(-1).tolist()
        chosen = torch.stack([onehot.argmax(-1) for onehot in flat.split(counts, -1)], -1)
        flat = chosen.view(shape) + torch.as_tensor(np.asarray(space.start), device=flat.device)
    return flat.reshape(shape).to(dtype)
