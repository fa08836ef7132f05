"""Replay: the transitions of an off-policy learner, in memory or in a file that outlives the process."""

from __future__ import annotations

from typing import NamedTuple, Unpack

import numpy as np
import torch
from torch import Tensor

from ..._verify import verify_least
from .ring import ReplayOptions, Ring

__all__ = ["Replay", "ReplayBatch"]


class ReplayBatch(NamedTuple):
    """A batch of transitions, as a replay draws it.

    Attributes:
        observations: s ``[B, O]``.
        actions: a ``[B, A]``, normalised.
        rewards: r ``[B]``.
        next_observations: s' ``[B, O]``: what the step led to, also where the episode ended with it.
        terminated: ``[B]`` 1 where the task ended, so that nothing follows; 0 else, also where time ran out.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    terminated: Tensor


class Replay(Ring):
    """The last ``capacity`` transitions, uniform batches of which are drawn with replacement.

    A transition is one row ``(s, a, s', r, terminated)`` of one dtype; see `Ring` for how rows are kept.

    Args:
        capacity: greatest number of transitions to draw from.
        observation_size: O.
        action_size: A.
        **options: see `ReplayOptions`.

    Attributes:
        total: transitions added so far, those that were overwritten counted.

    Raises:
        TypeError: for sizes that are not whole.
        ValueError: for sizes that are not positive, or more transitions than fit into memory.
        OSError: the file cannot be written, or the disk has no room for its first rows; :meth:`add` raises it for
            later ones.
    """

    def __init__(
        self,
        capacity: int,
        observation_size: int,
        action_size: int,
        **options: Unpack[ReplayOptions],
    ) -> None:
        verify_least(1, observation_size=observation_size, action_size=action_size)
        self.observation_size, self.action_size = observation_size, action_size
        sizes: dict[str, tuple[int, ...]] = {
            "observations": (observation_size,),
            "actions": (action_size,),
            "next_observations": (observation_size,),
        }
        sizes |= {"rewards": (), "terminated": ()}
        fields = {name: (None, shape) for name, shape in sizes.items()}
        super().__init__(capacity, fields, {"O": observation_size, "A": action_size}, **options)

    def add(
        self,
        observation: np.ndarray,
        action: np.ndarray,
        reward: float,
        next_observation: np.ndarray,
        terminated: bool,
        truncated: bool = False,
        first: bool = False,
    ) -> None:
        """Add one transition; the oldest gives way if there is no room.

        Args:
            observation: s ``[O]``.
            action: a ``[A]``, normalised.
            reward: r.
            next_observation: s' ``[O]``, the true one, never that of a reset.
            terminated: whether the task ended, not whether time ran out.
            truncated: whether time ran out: nothing to a transition, which is complete.
            first: whether an episode began with it: nothing to a transition either.

        Raises:
            OSError: the disk has no room for it; nothing is changed then.
        """
        self._append(observation, action, next_observation, reward, terminated)

    def sample(self, batch_size: int) -> ReplayBatch:
        """Return ``batch_size`` transitions, drawn with replacement, independent of the ring's later contents.

        Raises:
            ValueError: if there are no transitions yet.
        """
        count = len(self)
        if not count:
            raise ValueError("an empty replay has nothing to draw")
        indices = torch.randint(count, (batch_size,), generator=self.generator, device=self.device)
        if self.total > self.capacity:
            indices += self.total - count
            indices %= len(self._rows)
        return self._batch(self._drawn.index_select(0, indices))

    def _batch(self, rows: Tensor) -> ReplayBatch:
        """Return rows ``[B, width]`` as transitions."""
        observations, actions, next_observations, rewards, terminated = self._split(rows)
        return ReplayBatch(observations, actions, rewards, next_observations, terminated)
