"""Episodes: a controller acts in an environment. This is the one place of the library where an environment steps.

``collect``, ``dagger``, ``evaluate_policy``, ``learn``, ``ControlProgram.execute`` and videos all run through it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple, SupportsFloat

import gymnasium
import numpy as np
from gymnasium import spaces

from ..._verify import verify_least
from ..spaces import SpaceError, action_size, encode_actions
from .controller import Controller, as_controller

__all__ = ["Episodes", "Execute", "Step", "verify_environment"]

Execute = Callable[[Any, Any, np.ndarray], Any]
"""Maps ``(observation, action, episode_start)`` to the action that is executed in place of the controller's."""


class Step(NamedTuple):
    """What one step of an environment was.

    Attributes:
        observation: before the step, in the environment's form, as are the others.
        action: what was executed.
        reward: of the step.
        next_observation: after it, also where the episode ended with it.
        terminated: whether the task ended.
        truncated: whether time ran out.
        info: of the step.
    """

    observation: Any
    action: Any
    reward: float
    next_observation: Any
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class Episodes:
    """An environment, one episode after another.

    :meth:`begin` an episode, then :meth:`step` with actions of your own, or iterate, and the controller acts::

        episodes = Episodes(env, policy, deterministic=True)
        episodes.begin(seed=0)
        total = sum(step.reward for step in episodes)

    Args:
        env: one Gymnasium environment.
        policy: see :func:`~pyrocontrol.models.as_controller`; None where actions come from elsewhere.
        deterministic: whether the controller takes its likeliest actions.
        execute: what is executed in place of the controller's actions; None for these themselves.
        max_steps: steps after which an episode is truncated; None leaves that to the environment.

    Attributes:
        number: of the episode, from 0; -1 before the first.
        steps: that it has had.
        total: the sum of its rewards.
        observation: the last one.
        info: the last one.
        state: of the controller.
        over: whether it has ended, or none was begun.
        doing: who is at work, for errors: the environment's reset, the policy, executing the action, the environment.

    Raises:
        TypeError: for a vector of environments, what is no environment, or what cannot act.
        ValueError: if ``max_steps`` is less than 1.
    """

    checked = False  # whether actions are
    single: tuple[int, ...] = ()  # shape of a stored one

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        policy: Any = None,
        *,
        deterministic: bool = False,
        execute: Execute | None = None,
        max_steps: int | None = None,
    ) -> None:
        verify_environment(env)
        if max_steps is not None:
            verify_least(1, max_steps=max_steps)
        self.env, self.deterministic, self.execute, self.max_steps = env, deterministic, execute, max_steps
        self.controller: Controller | None = None if policy is None else as_controller(policy, env)
        self.number, self.steps, self.total = -1, 0, 0.0
        self.observation: Any = None
        self.info: dict[str, Any] = {}
        self.state: Any = None
        self.over, self.doing = True, ""
        with suppress(TypeError):  # else it is no space of actions that can be stored: the environment has to check
            size = action_size(env.action_space)
            self.checked, self.single = True, (size,) if size or isinstance(env.action_space, spaces.Box) else ()

    def begin(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Reset the environment, and return the first observation of an episode.

        Args:
            seed: of the environment; None goes on with its random numbers.
            options: of the reset.
        """
        self.doing, self.over = "the environment's reset", True
        self.number, self.steps, self.total = self.number + 1, 0, 0.0
        self.observation, self.info = self.env.reset(seed=seed, options=options)
        initial = getattr(self.controller, "initial_state", None)
        self.state = initial(self.info) if callable(initial) else None
        self.over = False
        return self.observation

    def act(self) -> Any:
        """Ask the controller for its next action, and keep its state.

        Raises:
            SpaceError: for an action that is not in the environment's space (of a kind whose actions can be stored).
        """
        assert self.controller is not None, "there is no controller to ask"
        self.doing = "the policy"
        action, self.state = self.controller.predict(
            self.observation, self.state, np.array(self.steps == 0), self.deterministic
        )
        if self.checked and np.shape(encode_actions(self.env.action_space, action)) != self.single:
            raise SpaceError(f"one action was asked for, it gave an array of shape {[*np.shape(action)]}")
        return action

    def step(self, action: Any) -> Step:
        """Execute an action.

        Raises:
            RuntimeError: where no episode has begun, or it is over.
            TypeError: for a reward that is no number.
            FloatingPointError: for one that is not finite.
        """
        if self.over:
            raise RuntimeError("the episode is over: begin another one")
        self.doing = "the environment"
        before = self.observation
        reward: Any  # what an environment gives may be anything
        observation, reward, terminated, truncated, info = self.env.step(action)
        if np.shape(reward) != () or not isinstance(reward, SupportsFloat):
            raise TypeError(f"the reward is {reward!r}, not a number")
        if not math.isfinite(reward):
            raise FloatingPointError(f"the reward is {reward}")
        self.observation, self.info = observation, info
        self.steps, self.total = self.steps + 1, self.total + float(reward)
        late = self.max_steps is not None and self.steps >= self.max_steps and not terminated
        self.over = bool(terminated or truncated or late)
        return Step(before, action, float(reward), observation, bool(terminated), bool(truncated or late), info)

    def __iter__(self) -> Iterator[Step]:
        """Let the controller act until the episode is over; yield every step."""
        while not self.over:
            start = np.array(self.steps == 0)
            try:
                action = self.act()
                if self.execute is not None:
                    self.doing = "executing the action"
                    action = self.execute(self.observation, action, start)
                step = self.step(action)
            except Exception as error:
                error.add_note(f"in episode {self.number}, step {self.steps}: {self.doing}")
                raise
            yield step


def verify_environment(env: Any) -> None:
    """Make sure that something is one environment.

    Raises:
        TypeError: if it is a vector of environments, or none.
    """
    if isinstance(env, gymnasium.vector.VectorEnv):
        raise TypeError("one environment is acted in, not a vector of them: give one of its environments")
    if not all(hasattr(env, name) for name in ("reset", "step", "action_space", "observation_space")):
        kind = f"the text {env!r}" if isinstance(env, str) else type(env).__name__
        raise TypeError(f"env must be a Gymnasium environment, such as gymnasium.make returns, got {kind}")
