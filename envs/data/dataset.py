"""What demonstrations and transitions have in common: spaces, and numbers that are read when they are asked for.

Shapes: `...` the dimensions of a batch, O observation numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn, Self

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ...models.spaces import observation_parts
from .checks import number_of_actions
from .columns import Columns
from .selection import Index

__all__ = ["Dataset", "when_read"]

Space = spaces.Space[Any]


class _WhenRead:
    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, data: Dataset | None, owner: type) -> Any:
        if data is None:  # asked of the class
            return self
        kept: dict[str, Any] = data.__dict__
        if self.name not in kept:
            kept[self.name] = data._read(self.name)
        value = kept[self.name]
        if kept.setdefault("_versions", {}).setdefault(self.name, version := _version(value)) != version:
            raise ValueError(
                f"the {self.name} of this data set were changed in place, which cannot be changed: "
                "change a copy, as in data.replace(...)"
            )
        return dict(value) if isinstance(value, dict) else value

    def __set__(self, data: Dataset, value: Any) -> NoReturn:
        """Only there so that every reading comes through `__get__`."""
        raise AttributeError(self.name)


def _version(value: Any) -> Any:
    """What is another one after a tensor has been written to."""
    if isinstance(value, dict):
        return [*map(_version, value.values())]
    return value._version if isinstance(value, Tensor) and not value.is_inference() else None


def when_read() -> Any:
    """An attribute that `Dataset._read` gives when it is first read, and that is kept then; a change is noticed."""
    return _WhenRead()


class Dataset:
    """Examples, of which an index chooses some. It cannot be changed.

    What a batch holds is put together when it is first read, and kept; nothing else is read or copied. Whoever writes
    to such a tensor gets a ValueError when it is read again.

    Attributes:
        observations: `[..., O]`, flattened (`pyrocontrol.models.flatten_observations`): floats, or bytes (uint8) where
            all parts of their space are bytes.
        parts: the parts of the observations by name, each `[..., *shape]`, in the shape and type of its space.
        actions: `[...]` or `[..., A]`, stored actions (`pyrocontrol.models.encode_actions`).
        acted: `[...]` bool, where an action was taken.
    """

    observations: Tensor = when_read()
    parts: dict[str, Tensor] = when_read()
    actions: Tensor = when_read()
    acted: Tensor = when_read()
    _source: Columns
    _rows: np.ndarray  # which of what there is in the source these are

    def _read(self, name: str) -> Any:
        """What has this name."""
        raise NotImplementedError

    def _settled(self) -> Self:
        """The same with everything in the source."""
        return self

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} cannot be changed: {name} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} cannot be changed: {name} cannot be deleted")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Index) -> Self:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Self]:
        return (self[index] for index in range(len(self)))

    @property
    def action_space(self) -> Space:
        """Discrete, MultiDiscrete or Box."""
        return self._source.action_space

    @property
    def observation_space(self) -> Space:
        """Of the environment."""
        return self._source.observation_space

    @property
    def observation_parts(self) -> dict[str, slice]:
        """Where in an observation each of its parts stands, by name; see `pyrocontrol.models.observation_parts`."""
        return observation_parts(self.observation_space)

    @property
    def observation_dtype(self) -> torch.dtype:
        """Type of the observations, for which none is read."""
        return self._settled()._source.columns["observations"].dtype

    @property
    def num_actions(self) -> int:
        """How many actions there are, the null not included.

        Raises:
            TypeError: unless the actions are Discrete.
        """
        return number_of_actions(self.action_space)

    @property
    def on_disk(self) -> bool:
        """Whether it is read from files when it is asked for."""
        return bool(self._source.readers)

    @property
    def device(self) -> torch.device:
        """Where the tensors are, or come to when they are read."""
        return self._source.device
