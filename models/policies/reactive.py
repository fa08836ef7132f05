"""Policies without memory: of the observation, or of the observation and a goal.

Shapes: B rows of a batch, O observation numbers, G goal numbers, X input numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Several
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ..heads import Head, make_head
from ..networks import mlp
from ..spaces import flatten_observations, observation_parts
from .policy import DirectPolicy, Space

__all__ = ["GoalConditionedPolicy", "ReactivePolicy"]


class ReactivePolicy(DirectPolicy):
    """pi(a_t | o_t): a network from the observation to a distribution of the action.

    It learns from `Demonstrations` and from `Transitions` alike.

    Args:
        observation_space: of the environment, or of the demonstrations.
        action_space: `Discrete`, `MultiDiscrete` of one dimension, or `Box` of floats.
        hidden: sizes of the hidden layers.
        activation: ``"tanh"`` or ``"relu"``.
        head: see :func:`~pyrocontrol.models.make_head`.
        normalize: data to :meth:`normalize` by.
        inputs: what a subclass's :meth:`inputs_of` returns, a space or X numbers; by default the observation.
        encoder: of the inputs; see :class:`Policy`.

    Raises:
        TypeError: for spaces of other kinds.
        ValueError: for an unknown head, activation or encoder.

    Example:
        >>> import gymnasium
        >>> policy = ReactivePolicy(gymnasium.spaces.Box(-1, 1, (3,)), gymnasium.spaces.Discrete(2))
        >>> action, state = policy.predict(np.zeros(3, np.float32), deterministic=True)
        >>> action in policy.action_space, state
        (True, None)
    """

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        *,
        hidden: Several[int] = (64, 64),
        activation: str = "tanh",
        head: str | Head = "auto",
        normalize: Any = None,
        inputs: int | Space | None = None,
        encoder: str | nn.Module = "auto",
    ):
        super().__init__(observation_space, action_space, inputs=inputs, encoder=encoder)
        self.hidden, self.activation = tuple(hidden), activation
        self.network = mlp(self.encoded_size, self.hidden, activation)
        self.head = make_head(head, self.hidden[-1] if self.hidden else self.encoded_size, action_space)
        if normalize is not None:
            self.normalize(normalize)

    def distribution(self, inputs: Tensor) -> TorchDistribution:
        """Return pi(a | o) at observations ``[..., O]``, batch shape ``[...]``."""
        return self.head(self.network(self.encoded(inputs)))

    def settings(self) -> dict[str, Any]:
        """What two policies share exactly when they can share weights, the spaces apart."""
        return {"hidden": self.hidden, "activation": self.activation, "head": self.head.signature()}


class GoalConditionedPolicy(ReactivePolicy):
    """pi(a_t | o_t, g): a reactive policy that is told the goal, learnt from `Transitions` with ``goals``.

    In the spaces of Gymnasium's goal environments, dicts with ``observation``, ``achieved_goal`` and ``desired_goal``,
    the desired goal of the observation is not read: the goal takes its place.

    Args:
        observation_space: of the environment, or of the demonstrations.
        action_space: `Discrete`, `MultiDiscrete` of one dimension, or `Box` of floats.
        goal_size: G, numbers of a goal.
        hidden: sizes of the hidden layers.
        activation: ``"tanh"`` or ``"relu"``.
        head: see :func:`~pyrocontrol.models.make_head`.
        normalize: data to :meth:`normalize` by.
        encoder: of the observation and the goal; see :class:`Policy`.

    Raises:
        TypeError: for spaces of other kinds.
        ValueError: for an unknown head, activation or encoder, or a goal without numbers.
    """

    columns: Tensor

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        goal_size: int,
        *,
        hidden: Several[int] = (64, 64),
        activation: str = "tanh",
        head: str | Head = "auto",
        normalize: Any = None,
        encoder: str | nn.Module = "auto",
    ):
        if goal_size < 1:
            raise ValueError(f"goal_size must be positive, got {goal_size}")
        goal, seen = spaces.Box(-np.inf, np.inf, (goal_size,)), [observation_space]
        if isinstance(observation_space, spaces.Dict):
            seen = [part for name, part in observation_space.spaces.items() if name != "desired_goal"]
        super().__init__(
            observation_space,
            action_space,
            hidden=hidden,
            activation=activation,
            head=head,
            inputs=spaces.Tuple((*seen, goal)),
            encoder=encoder,
        )
        self.goal_size, self.has_goal = goal_size, self.input_size < self.observation_size + goal_size
        parts = observation_parts(observation_space).items()
        kept = [part for name, part in parts if name.split(".")[0] != "desired_goal"]
        columns = torch.cat([torch.arange(part.start, part.stop) for part in kept])
        self.register_buffer("columns", columns, persistent=False)
        if normalize is not None:
            self.normalize(normalize)

    def distribution(self, inputs: Tensor, goals: Tensor | None = None) -> TorchDistribution:
        """Return pi(a | o, g) at observations ``[..., O]`` and goals ``[..., G]``, batch shape ``[...]``.

        Without goals, ``inputs`` ``[..., X]`` are both, as :meth:`inputs_of` gives them.
        """
        return super().distribution(inputs if goals is None else self._joined(inputs, goals))

    def inputs_of(self, batch: Any) -> Tensor:
        """Return observations and goals of a batch side by side, ``[..., X]``, not scaled."""
        return self._joined(batch.observations, self._goals_of(batch))

    def _goals_of(self, data: Any) -> Tensor:
        goals = getattr(data, "goals", None)
        if goals is None:
            raise ValueError(f"the {type(self).__name__} learns from transitions with goals; the data has none")
        return goals

    def _joined(self, observations: Tensor, goals: Tensor) -> Tensor:
        return torch.cat([observations[..., self.columns] if self.has_goal else observations, goals], -1)

    def check(self, data: Any) -> None:
        """Refuse data of another problem, before any training.

        Raises:
            ValueError: if observations or goals have another size, actions another space, or there are no goals.
        """
        super().check(data)
        goals = self._goals_of(data)
        if goals.shape[-1] != self.goal_size:
            raise ValueError(
                f"the {type(self).__name__} takes goals of {self.goal_size} numbers, the data has {goals.shape[-1]}"
            )

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        *,
        goal: Any = None,
    ) -> tuple[np.ndarray, Any]:
        """Return an action for an observation and a goal, or a batch of them; see :meth:`Policy.predict`.

        Args:
            observation: in the environment's form, one or a batch. A goal environment's dict serves also where the
                policy was made for its ``observation`` alone.
            state: not used.
            episode_start: not used.
            deterministic: take the likeliest action instead of a random one.
            goal: ``[G]`` (or one number, if G is 1), or ``[B, G]``; by default the ``desired_goal`` of the observation.

        Raises:
            ValueError: as :meth:`Policy.predict`, and if there is no goal, it has another size, or there are not as
                many as observations.
        """
        given, space = observation, self.observation_space
        if isinstance(given, Mapping):
            names = list(space.spaces) if isinstance(space, spaces.Dict) else ["observation"]
            if absent := [name for name in names if name not in given]:
                raise ValueError(f"the observation has no {', '.join(map(repr, absent))}")
            observation = {name: given[name] for name in names} if isinstance(space, spaces.Dict) else given[names[0]]
        flat = flatten_observations(space, observation)
        if goal is None:
            if not (isinstance(given, Mapping) and "desired_goal" in given):
                raise ValueError("there is no goal: give goal=..., or an observation with a desired_goal")
            goal = np.asarray(given["desired_goal"])
            goal = goal.reshape(goal.shape[: flat.ndim - 1] + (math.prod(goal.shape[flat.ndim - 1 :]),))
        if self.has_goal:
            flat = flat[..., self.columns.cpu().numpy()]
        goal = np.atleast_1d(np.asarray(goal, np.result_type(flat, np.float32)))
        if goal.shape[-1] != self.goal_size:
            raise ValueError(f"a goal has {self.goal_size} numbers, got {goal.shape[-1]}")
        if goal.ndim > 1 and goal.shape[:-1] != flat.shape[:-1]:
            raise ValueError(f"goals of shape {goal.shape} do not go with observations of batch {flat.shape[:-1]}")
        goal = np.broadcast_to(goal, flat.shape[:-1] + goal.shape[-1:])
        return self._act(np.concatenate([flat, goal], -1), state, episode_start, deterministic)

    def settings(self) -> dict[str, Any]:
        """What two policies share exactly when they can share weights, the spaces apart."""
        return {"goal_size": self.goal_size, **super().settings()}
