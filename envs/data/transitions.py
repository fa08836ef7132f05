"""Transitions: single observations with the actions taken there, which is all that a reactive policy learns from.

Shapes: N transitions, O observation numbers, A action numbers, G goal numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ...models.space_json import space_to_json
from ...models.spaces import as_action_space, observation_size
from .checks import bytes_if_they_are, check_action_kind, observation_space_of, outside_space
from .columns import Column, StoredColumn
from .dataset import Dataset, hash_observations
from .selection import Index, chosen_rows

if TYPE_CHECKING:
    from .demonstrations import Demonstrations

__all__ = ["Transitions"]

Space = spaces.Space[Any]


class Transitions(Dataset):
    """Pairs of an observation and the action taken there, in memory or on disk. A minibatch is of the same class.

    Those that `Demonstrations.transitions` gives share the memory or the files of the demonstrations. From files, a
    random batch is as many small reads: where these are larger than what the system caches of them, reading whole
    traces is many times faster for the same number of steps, and a reactive policy learns from these too.

    Args:
        observations: `[N, O]` floats, flattened, or bytes if all parts of their space are bytes.
        actions: `[N]` long for Discrete, `[N, A]` long for MultiDiscrete, `[N, A]` floats for Box: stored actions, see
            `pyrocontrol.models.encode_actions`.
        action_space: Discrete, MultiDiscrete or Box; an integer n stands for `Discrete(n)`.
        observation_space: None for plain vectors of any numbers.
        goals: `[N, G]` floats, what each action was to reach, or None.

    Raises:
        TypeError: if something else than tensors is given, or a space that is not supported.
        ValueError: naming the transition, if shapes or types disagree, an observation or goal is not finite, an action
            is outside its space, or if there are no transitions at all.
    """

    _shared: dict[str, Any]  # what all selections of these have
    _rows: np.ndarray  # [N], their slots in the columns
    _given: tuple[Tensor, np.ndarray] | None  # goals, and which of them these have, [N]
    _traces: Demonstrations | None  # where they come from, if that is on disk

    def __init__(
        self,
        observations: Tensor,
        actions: Tensor,
        action_space: Space | int,
        observation_space: Space | None = None,
        goals: Tensor | None = None,
    ) -> None:
        for name, value in (("observations", observations), ("actions", actions), ("goals", goals)):
            if not isinstance(value, Tensor) and (value is not None or name != "goals"):
                raise TypeError(f"{name} must be a tensor, got {type(value).__name__}; use torch.as_tensor")
        action_space = as_action_space(action_space)
        if observations.dim() != 2 or len(observations) == 0:
            raise ValueError(f"observations must have shape [N, O], N positive, got {tuple(observations.shape)}")
        space = observation_space_of(observations.dtype, observations.shape[1], observation_space)
        check_action_kind(actions.shape, actions.dtype, action_space, (len(observations),))
        if actions.device != observations.device:
            raise ValueError(f"actions is on {actions.device}, observations on {observations.device}")
        _check_finite("observations", observations)
        if problem := outside_space(actions, action_space):
            raise ValueError(f"transition {problem[0]}: {problem[1]}")
        rows = {"observations": bytes_if_they_are(observations, space), "actions": actions}
        made = self._plain(rows, action_space, space)
        self.__dict__.update((made if goals is None else made.with_goals(goals)).__dict__)

    @classmethod
    def _plain(
        cls, rows: Mapping[str, Tensor], action_space: Space, observation_space: Space, goals: Tensor | None = None
    ) -> Transitions:
        """Those of tensors."""
        columns, places = {name: Column(value) for name, value in rows.items()}, np.arange(len(rows["actions"]))
        return cls._of(columns, places, action_space, observation_space, None if goals is None else (goals, places))

    @classmethod
    def _of(
        cls,
        columns: Mapping[str, Column | StoredColumn],
        rows: np.ndarray,
        action_space: Space,
        observation_space: Space,
        given: tuple[Tensor, np.ndarray] | None = None,
        traces: Demonstrations | None = None,
    ) -> Transitions:
        shared = {"_columns": columns, "_traces": traces}
        return cls._with(shared | {"action_space": action_space, "observation_space": observation_space}, rows, given)

    @classmethod
    def _with(
        cls, shared: dict[str, Any], rows: np.ndarray, given: tuple[Tensor, np.ndarray] | None = None
    ) -> Transitions:
        """Some of those that share this: unchecked, so that no minibatch pays for checks."""
        made = object.__new__(cls)
        made.__dict__.update(shared, _shared=shared, _rows=rows, _given=given)
        return made

    @cached_property
    def actions(self) -> Tensor:
        """`[N]` or `[N, A]`, stored actions (`pyrocontrol.models.encode_actions`)."""
        return self._take("actions")

    @cached_property
    def goals(self) -> Tensor | None:
        """`[N, G]`, what each action was to reach; None without."""
        if self._given is None:
            return None
        goals, rows = self._given
        return goals.index_select(0, torch.from_numpy(rows).to(goals.device, non_blocking=True))

    @cached_property
    def acted(self) -> Tensor:
        """`[N]` bool: where an action was taken, which is everywhere."""
        return torch.ones(len(self), dtype=torch.bool, device=self.device)

    @property
    def device(self) -> torch.device:
        """Where the tensors are, or come to when they are read."""
        column = self._columns["actions"]
        return column.values.device if isinstance(column, Column) else torch.device(column.device or "cpu")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Index) -> Transitions:
        """The chosen transitions. An int gives a batch of one.

        Args:
            index: int, slice, integer sequence or tensor, or boolean mask `[N]`.

        Raises:
            IndexError: if it points outside the data set.
            ValueError: if it chooses nothing.
        """
        rows, given = chosen_rows(self._rows, index, "transition"), self._given
        given = given and (given[0], chosen_rows(given[1], index, "transition"))
        return self._with(self._shared, rows, given)

    def _take(self, name: str) -> Tensor:
        return self._columns[name].take(self._there)

    @cached_property
    def _there(self) -> Tensor:
        """The rows, where the tensors are."""
        rows, device = torch.from_numpy(self._rows), self.device
        return rows if device.type == "cpu" else rows.to(device, non_blocking=True)

    def _in_memory(self) -> dict[str, Tensor]:
        return {name: self._take(name) for name in ("observations", "bytes", "actions") if name in self._columns}

    def _replace(self, **changes: Tensor | None) -> Transitions:
        """A copy, in memory, with other observations, actions or goals: unchecked."""
        rows: dict[str, Any] = self._in_memory() | {"goals": self.goals} | changes
        if "observations" in changes:
            rows.pop("bytes", None)
        return self._plain(rows, self.action_space, self.observation_space, rows.pop("goals"))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Transitions:
        """The same transitions on another device, or with their real numbers in another precision."""
        goals = None if self.goals is None else self.goals.to(device, dtype)
        if self._traces is not None:
            moved = self._traces.to(device, dtype)
            given = None if goals is None else (goals, np.arange(len(self)))
            return self._of(moved._columns, self._rows, self.action_space, self.observation_space, given, moved)
        rows = {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in self._in_memory().items()
        }
        return self._plain(rows, self.action_space, self.observation_space, goals)

    def with_goals(self, goals: Tensor) -> Transitions:
        """The same transitions with other goals, `[N, G]` floats.

        Raises:
            ValueError: if they are not as many, not finite, not floats or elsewhere.
        """
        if goals.dim() != 2 or len(goals) != len(self):
            raise ValueError(f"goals must have shape [{len(self)}, G], got {tuple(goals.shape)}")
        if not goals.is_floating_point():
            raise ValueError(f"goals must be floating point, got {goals.dtype}")
        if goals.device != self.device:
            raise ValueError(f"goals is on {goals.device}, observations on {self.device}")
        _check_finite("goals", goals)
        return self._with(self._shared, self._rows, (goals, np.arange(len(self))))

    def fingerprint(self) -> str:
        """A short hash of the transitions and their spaces, the same on every device; on disk, of files and places."""
        digest, numbers = hashlib.blake2b(digest_size=8), {"goals": self.goals}
        if self._traces is not None:
            if self.goals is None and np.array_equal(self._rows, self._traces.transitions()._rows):
                return f"transitions-{self._traces.fingerprint()}"
            digest.update(self._traces.fingerprint().encode())
            numbers["rows"] = torch.from_numpy(self._rows)
        else:
            for space in (self.action_space, self.observation_space):
                digest.update(space_to_json(space).encode())
            seen = self._in_memory()
            numbers = {"actions": seen.pop("actions"), **numbers}
            dtype = seen["observations"].dtype if seen["observations"].is_floating_point() else torch.float32
            digest.update(f"observations {dtype} {[len(self), observation_size(self.observation_space)]}".encode())
            hash_observations(digest, seen, self._parts)
        for name, value in numbers.items():
            if value is not None:
                digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._traces is not None:
            return _restored, (self._traces, self._rows, self._given)
        return self._plain, (self._in_memory(), self.action_space, self.observation_space, self.goals)

    def __repr__(self) -> str:
        goals = "" if self.goals is None else f", goals of {self.goals.shape[-1]} numbers"
        return (
            f"Transitions({len(self)}, {observation_size(self.observation_space)} observation numbers, "
            f"actions {self.action_space}{goals}, {'on disk' if self.on_disk else self.device})"
        )


def _restored(traces: Demonstrations, rows: np.ndarray, given: tuple[Tensor, np.ndarray] | None) -> Transitions:
    """Those that were pickled, of files."""
    return Transitions._of(traces._columns, rows, traces.action_space, traces.observation_space, given, traces)


def _check_finite(name: str, value: Tensor) -> None:
    finite = torch.isfinite(value).all(-1)
    if not bool(finite.all()):
        raise ValueError(f"transition {int((~finite).nonzero()[0])}: {name} hold NaN or an infinite number")
