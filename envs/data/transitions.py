"""Transitions: single observations with the actions taken there, which is all that a reactive policy learns from.

Shapes: N transitions, O observation numbers, A action numbers, G goal numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ...models.space_json import space_to_json
from ...models.spaces import as_action_space, observation_size
from .checks import bytes_if_they_are, check_action_kind, observation_space_of, outside_space
from .columns import Column, Columns
from .dataset import Dataset, when_read
from .selection import Index, chosen_rows

if TYPE_CHECKING:
    from .demonstrations import Demonstrations

__all__ = ["Transitions"]

Space = spaces.Space[Any]
Goals = tuple[Tensor, np.ndarray] | None  # [K, G], and which of them are meant, [N]


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

    goals: Tensor | None = when_read()
    _there: Tensor = when_read()  # the rows, where the tensors are
    _goals: Goals
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
        _check_numbers("actions", actions, observations)
        _check_numbers("observations", observations, observations)
        if problem := outside_space(actions, action_space):
            raise ValueError(f"transition {problem[0]}: {problem[1]}")
        rows = {"observations": bytes_if_they_are(observations.clone(), space), "actions": actions.clone()}
        made = self._plain(rows, action_space, space)
        self.__dict__.update((made if goals is None else made.with_goals(goals)).__dict__)

    @classmethod
    def _of(
        cls, source: Columns, rows: np.ndarray, goals: Goals = None, traces: Demonstrations | None = None
    ) -> Transitions:
        """Some of what there is: unchecked, so that no minibatch pays for checks."""
        made = object.__new__(cls)
        made.__dict__.update(_source=source, _rows=rows, _goals=goals, _traces=traces)
        return made

    @classmethod
    def _plain(
        cls, rows: Mapping[str, Tensor], action_space: Space, observation_space: Space, goals: Tensor | None = None
    ) -> Transitions:
        """Those of tensors."""
        source = Columns(action_space, observation_space, {name: Column(value) for name, value in rows.items()})
        places = np.arange(len(rows["actions"]))
        return cls._of(source, places, None if goals is None else (goals, places))

    def _read(self, name: str) -> Any:
        source = self._source
        if name in ("observations", "actions", "parts"):
            return source.read(name, self._there)
        if name == "_there":
            return source.on_device(self._rows)
        if name == "goals":
            return self._goals and self._goals[0].index_select(0, source.on_device(self._goals[1]))
        return torch.ones(len(self), dtype=torch.bool, device=self.device)  # acted

    def __getitem__(self, index: Index) -> Transitions:
        """The chosen transitions. An int gives a batch of one.

        Args:
            index: int, slice, integer sequence or tensor, or boolean mask `[N]`.

        Raises:
            IndexError: if it points outside the data set.
            ValueError: if it chooses nothing.
        """
        goals = self._goals and (self._goals[0], chosen_rows(self._goals[1], index, "transition"))
        return self._of(self._source, chosen_rows(self._rows, index, "transition"), goals, self._traces)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: column.take(self._there) for name, column in self._source.columns.items() if name in _NAMES}

    def _replace(self, **changes: Tensor | None) -> Transitions:
        """A copy, in memory, with other observations, actions or goals: unchecked."""
        rows: dict[str, Any] = self._tensors() | {"goals": self.goals} | changes
        if "observations" in changes:
            rows.pop("bytes", None)
        return self._plain(rows, self.action_space, self.observation_space, rows.pop("goals"))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Transitions:
        """The same transitions on another device, or with their real numbers in another precision."""
        goals = None if self.goals is None else self.goals.to(device, dtype)
        if self._traces is not None:
            moved = self._traces.to(device, dtype)
            return self._of(moved._source, self._rows, None if goals is None else (goals, np.arange(len(self))), moved)
        rows = {name: Column(value).to(device, dtype).values for name, value in self._tensors().items()}
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
        _check_numbers("goals", goals, self._source)
        return self._of(self._source, self._rows, (goals.clone(), np.arange(len(self))), self._traces)

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
            dtype = self.observation_dtype if self.observation_dtype.is_floating_point else torch.float32
            digest.update(f"observations {dtype} {[len(self), observation_size(self.observation_space)]}".encode())
            self._source.hash_observations(digest, self._rows)
            numbers = {"actions": self.actions, **numbers}
        for name, value in numbers.items():
            if value is not None:
                digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._traces is not None:
            return _restored, (self._traces, self._rows, self._goals)
        return self._plain, (self._tensors(), self.action_space, self.observation_space, self.goals)

    def __repr__(self) -> str:
        goals = "" if self.goals is None else f", goals of {self.goals.shape[-1]} numbers"
        return (
            f"Transitions({len(self)}, {observation_size(self.observation_space)} observation numbers, "
            f"actions {self.action_space}{goals}, {'on disk' if self.on_disk else self.device})"
        )


_NAMES = ("observations", "bytes", "actions")


def _restored(traces: Demonstrations, rows: np.ndarray, goals: Goals) -> Transitions:
    """Those that were pickled, of files."""
    return Transitions._of(traces._source, rows, goals, traces)


def _check_numbers(name: str, value: Tensor, observations: Tensor | Columns) -> None:
    if value.device != observations.device:
        raise ValueError(f"{name} is on {value.device}, observations on {observations.device}")
    if name != "actions" and not bool((finite := torch.isfinite(value).all(-1)).all()):
        raise ValueError(f"transition {int((~finite).nonzero()[0])}: {name} hold NaN or an infinite number")
