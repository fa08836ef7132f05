"""Replay of sequences: windows of episodes, for learners of dynamics, with images kept as the bytes they are."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.utils import _pytree as pytree

from ..._verify import verify_least
from ...models.spaces import boxes_of
from .observed import keep
from .ring import ReplayOptions, Ring

__all__ = ["SequenceBatch", "SequenceReplay"]


class SequenceBatch(NamedTuple):
    """Windows of L consecutive observations of one episode each, as a replay draws them.

    The step at observation t leads to observation t + 1. The step at the last observation of a window leads out of it:
    its action, reward and end are there, what it led to is not. At an episode's last observation no step was taken:
    action, reward and ``terminated`` are 0 there, which can only be at the end of a window.

    Attributes:
        observations: x ``[B, L, *shape]`` in the dtype of the space; of a Dict, a dict of these.
        actions: a ``[B, L, A]``, normalised, each taken at its observation.
        rewards: r ``[B, L]``, of the step at each observation.
        first: bool ``[B, L]``: an episode begins at this observation, which can only be the first of a window.
        terminated: ``[B, L]`` 1 where the task ended with the step at this observation; 0 else, also where time ran
            out.
    """

    observations: Tensor | dict[str, Tensor]
    actions: Tensor
    rewards: Tensor
    first: Tensor
    terminated: Tensor


class SequenceReplay(Ring):
    """The last ``capacity`` observations, with what was done at each; windows of L of them are drawn uniformly.

    Every window of L consecutive observations of one episode is as likely as every other, whatever episode it is of.
    Observations keep the dtype of their space: an image of uint8 is its bytes in memory, in the file and in the batch.
    The last observation of an episode is a row of its own, with no action. See `Ring` for how rows are kept.

    An episode of fewer than L observations has no window: it is kept and never drawn from. The first such episode gives
    a RuntimeWarning. It is no error, as an environment may end an episode early now and then, after hours of others.

    A learner asks `learn` for it::

        def make_replay(self, capacity, **options):
            return SequenceReplay(capacity, self.observation_space, self.action_size, length=50, **options)

    Args:
        capacity: greatest number of observations to draw from.
        observation_space: a Box of any shape and dtype, or a Dict of Boxes.
        action_size: A.
        length: L.
        **options: see `ReplayOptions`; ``dtype`` is of actions, rewards and ends.

    Attributes:
        total: rows added so far, those that were overwritten counted: one a step, and one for an episode's end.

    Raises:
        TypeError: for another space, or sizes that are not whole.
        ValueError: for sizes that are not positive, a length beyond the capacity, or more observations than fit into
            memory.
        OSError: the file cannot be written, or the disk has no room for its first rows; :meth:`add` raises it for
            later ones.
    """

    rows_are = "observations"

    def __init__(
        self,
        capacity: int,
        observation_space: spaces.Space[Any],
        action_size: int,
        length: int,
        **options: Unpack[ReplayOptions],
    ) -> None:
        verify_least(1, action_size=action_size, length=length)
        if length > capacity:
            raise ValueError(f"a window of {length} observations does not fit into a capacity of {capacity}")
        self.observation_space, self.action_size, self.length = observation_space, action_size, length
        fields: dict[str, tuple[np.dtype[Any] | None, tuple[int, ...]]] = {
            f"observations {name}".strip(): (box.dtype, box.shape) for name, box in boxes_of(observation_space).items()
        }
        fields |= {"actions": (None, (action_size,)), "rewards": (None, ()), "terminated": (None, ())}
        fields |= {"first": (np.dtype(bool), ())}
        super().__init__(capacity, fields, {"A": action_size, "L": length}, rows_per_add=2, **options)
        # Numbers of the rows at which windows start, oldest first, in a ring: the last of all that were ever made.
        self._starts = np.zeros(len(self._rows), np.int64)
        source = torch.from_numpy(self._starts)
        self._start_source, self._start_drawn = source, source.to(self.device)
        self._made = self._gone = 0  # windows, ever
        self._warned = False
        self._began, self._over = 0, True  # the number of the row that the episode began with; whether it has ended
        self._within = torch.arange(length, device=self.device)

    @property
    def windows(self) -> int:
        """How many different windows can be drawn."""
        return self._made - self._gone

    def add(
        self,
        observation: Any,
        action: np.ndarray,
        reward: float,
        next_observation: Any,
        terminated: bool,
        truncated: bool = False,
        *,
        first: bool,
    ) -> None:
        """Add one step of an episode; the oldest rows give way if there is no room.

        Args:
            observation: x, of the space; of a Dict, a dict.
            action: a ``[A]``, normalised.
            reward: r.
            next_observation: what the step led to, the true one, never that of a reset. It is kept by this call where
                the episode is over, else by the next one.
            terminated: whether the task ended.
            truncated: whether time ran out.
            first: whether the episode began at this observation. An episode that was broken off needs no end.

        Raises:
            ValueError: for observations of another shape or dtype than the space's, an action of another size, or a
                step that follows none.
            OSError: the disk has no room for it; nothing is changed then.
        """
        if self._over and not first:
            raise ValueError("no episode is under way: a step that does not follow one must be the first")
        if np.shape(action) != (self.action_size,):
            raise ValueError(f"the action has shape {[*np.shape(action)]}, not [{self.action_size}]")
        over = terminated or truncated
        seen = self._parts_of(observation)
        last = self._parts_of(next_observation) if over else []
        self._make_room(self.total)
        self._make_room(self.total + over)
        if first:
            self._began = self.total
        self._over = over
        self._add_row(*seen, action, reward, terminated, first)
        if over:
            self._add_row(*last, 0.0, 0.0, False, False)
            if (count := self.total - self._began) < self.length and not self._warned:
                self._warned = True
                warnings.warn(
                    f"an episode of {count} observations has no window of {self.length}: such are never drawn from",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def _parts_of(self, observation: Any) -> list[np.ndarray]:
        kept = keep(self.observation_space, observation)
        return [*kept.values()] if isinstance(kept, dict) else [kept]

    def _add_row(self, *values: Any) -> None:
        self._append(*values)
        start, oldest = self.total - self.length, self.total - len(self)
        while self.windows and self._starts[self._gone % len(self._starts)] < oldest:
            self._gone += 1
        if start >= self._began:
            place = self._made % len(self._starts)
            self._starts[place] = start
            if self._start_drawn is not self._start_source:
                self._start_drawn[place].copy_(self._start_source[place])
            self._made += 1

    def sample(self, batch_size: int) -> SequenceBatch:
        """Return ``batch_size`` windows, drawn with replacement, independent of the ring's later contents.

        Raises:
            ValueError: if there is no window yet.
        """
        if not self.windows:
            raise ValueError(
                f"there is no window of {self.length} observations to draw: "
                f"no episode among the last {len(self)} observations is as long"
            )
        drawn = torch.randint(self.windows, (batch_size,), generator=self.generator, device=self.device)
        starts = self._start_drawn[(drawn + self._gone) % len(self._starts)]
        rows = (starts.unsqueeze(1) + self._within) % len(self._rows)
        batch = self._batch(self._drawn.index_select(0, rows.flatten()))
        return pytree.tree_map(lambda part: part.unflatten(0, rows.shape), batch)

    def _batch(self, rows: Tensor) -> SequenceBatch:
        """Return rows ``[N, width]``, one after another, as one sequence ``[N, ...]``."""
        *seen, actions, rewards, terminated, first = self._split(rows)
        names = [*boxes_of(self.observation_space)]
        observations = seen[0] if names == [""] else dict(zip(names, seen, strict=True))
        return SequenceBatch(observations, actions, rewards, first, terminated)

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state of :meth:`state`; see `Ring.restore`."""
        super().restore(state)
        numbers = np.arange(self.total - len(self), self.total)
        # What begins where the last window of the ring began, or further back, began there for all that counts.
        began = np.where(self._records["first"][numbers % len(self._rows)], numbers, numbers[:1])
        began = np.maximum.accumulate(began)
        starts = numbers[numbers - began >= self.length - 1] - (self.length - 1)
        self._starts[: len(starts)] = starts
        self._start_drawn.copy_(self._start_source)
        self._made, self._gone = len(starts), 0
        self._began = int(began[-1]) if len(began) else 0
        self._over = bool(state["over"])

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: a few numbers, and without a file the rows too."""
        return super().state() | {"over": self._over}
