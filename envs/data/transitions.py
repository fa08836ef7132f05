"""Transitions: single observations with the actions taken there, which is all that a reactive policy learns from.

Shapes: N transitions, O observation numbers, A action numbers, G goal numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from ...models.space_json import space_to_json
from ...models.spaces import as_action_space
from .selection import Index, chosen_rows
from .space_checks import check_action_kind, number_of_actions, observation_space_of, outside_space

__all__ = ["Transitions"]

Space = spaces.Space[Any]


@dataclass(frozen=True, eq=False, repr=False)
class Transitions:
    """Pairs of an observation and the action taken there. A data set and a minibatch are the same class.

    Attributes:
        observations: `[N, O]` floats, flattened.
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

    observations: Tensor
    actions: Tensor
    action_space: Space
    observation_space: Space = None  # type: ignore[assignment]  # filled in below, so that readers find a space
    goals: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("observations", "actions", "goals"):
            value = getattr(self, name)
            if not isinstance(value, Tensor) and (value is not None or name != "goals"):
                raise TypeError(f"{name} must be a tensor, got {type(value).__name__}; use torch.as_tensor")
        object.__setattr__(self, "action_space", as_action_space(self.action_space))
        if self.observations.dim() != 2 or len(self.observations) == 0:
            raise ValueError(f"observations must have shape [N, O], N positive, got {tuple(self.observations.shape)}")
        space = observation_space_of(self.observations, self.observation_space)
        object.__setattr__(self, "observation_space", space)
        check_action_kind(self.actions, self.action_space, (len(self),))
        if self.goals is not None and (self.goals.dim() != 2 or len(self.goals) != len(self)):
            raise ValueError(f"goals must have shape [{len(self)}, G], got {tuple(self.goals.shape)}")
        for name, value in (("observations", self.observations), ("goals", self.goals)):
            if value is None:
                continue
            if not value.is_floating_point():
                raise ValueError(f"{name} must be floating point, got {value.dtype}")
            finite = torch.isfinite(value).all(-1)
            if not bool(finite.all()):
                raise ValueError(f"transition {int((~finite).nonzero()[0])}: {name} hold NaN or an infinite number")
        for name, value in (("actions", self.actions), ("goals", self.goals)):
            if value is not None and value.device != self.device:
                raise ValueError(f"{name} is on {value.device}, observations on {self.device}")
        if problem := outside_space(self.actions, self.action_space, self.acted):
            raise ValueError(f"transition {problem[0][0]}: {problem[1]}")

    @property
    def acted(self) -> Tensor:
        """`[N]` bool: where an action was taken, which is everywhere."""
        return torch.ones(len(self.observations), dtype=torch.bool, device=self.device)

    @property
    def num_actions(self) -> int:
        """How many actions there are.

        Raises:
            TypeError: unless the actions are Discrete.
        """
        return number_of_actions(self.action_space)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.observations.device

    def __len__(self) -> int:
        return self.observations.shape[0]

    def __iter__(self) -> Iterator[Transitions]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: Index) -> Transitions:
        """The chosen transitions. An int gives a batch of one.

        Args:
            index: int, slice, integer sequence or tensor, or boolean mask `[N]`.

        Raises:
            IndexError: if it points outside the data set.
            ValueError: if it chooses nothing.
        """
        rows = chosen_rows(index, len(self), "transition").to(self.device, non_blocking=True)
        return self._replace(
            observations=self.observations.index_select(0, rows),  # faster than indexing with a tensor
            actions=self.actions.index_select(0, rows),
            goals=None if self.goals is None else self.goals.index_select(0, rows),
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Transitions:
        """The same transitions on another device, or with their real numbers in another precision."""
        return self._replace(
            observations=self.observations.to(device, dtype),
            actions=self.actions.to(device, dtype if self.actions.is_floating_point() else None),
            goals=None if self.goals is None else self.goals.to(device, dtype),
        )

    def with_goals(self, goals: Tensor) -> Transitions:
        """The same transitions with other goals, `[N, G]` floats; checked as at construction.

        Raises:
            ValueError: if they are not as many, not finite, or not floats.
        """
        return Transitions(self.observations, self.actions, self.action_space, self.observation_space, goals)

    def fingerprint(self) -> str:
        """A short hash of the transitions and their spaces, the same on every device."""
        digest = hashlib.blake2b(digest_size=8)
        for space in (self.action_space, self.observation_space):
            digest.update(space_to_json(space).encode())
        for name, value in (("observations", self.observations), ("actions", self.actions), ("goals", self.goals)):
            if value is not None:
                digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def _replace(self, **changes: Any) -> Transitions:
        """A copy with other tensors, known to be good: unchecked, so that no minibatch pays for checks."""
        copy = object.__new__(Transitions)
        copy.__dict__.update({**self.__dict__, **changes})
        return copy

    def __repr__(self) -> str:
        goals = "" if self.goals is None else f", goals of {self.goals.shape[-1]} numbers"
        return (
            f"Transitions({len(self)}, {self.observations.shape[-1]} observation numbers, "
            f"actions {self.action_space}{goals}, {self.device})"
        )
