"""Machines that programs control: environments of algorithmic tasks, which the program itself declares done.

A task is a `Machine`: a state, numbered actions that change it, and a narrow view of it. `MachineEnv` makes of it a
Gymnasium environment that has one action more, the null: the program's own return, which ends the episode.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import gymnasium
import numpy as np
from gymnasium import spaces

from .._verify import verify_options

__all__ = ["Machine", "MachineEnv", "checked_index"]


class Machine(ABC):
    """The state of a task. Actions are numbered from 0; none of them ends it."""

    @abstractmethod
    def apply(self, action: int) -> None:
        """Take an action."""

    @abstractmethod
    def observe(self) -> np.ndarray:
        """What a program sees, `[O]` float32."""

    @abstractmethod
    def solved(self) -> bool:
        """Whether the task is done."""

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """What a person may want to know; `task` is the argument of the root procedure, if it takes one."""

    @abstractmethod
    def text(self) -> str:
        """The state in characters."""

    @abstractmethod
    def picture(self) -> np.ndarray:
        """The state as an image, `[H, W, 3]` uint8."""


M = TypeVar("M", bound=Machine)


class MachineEnv(gymnasium.Env[np.ndarray, Any], Generic[M]):
    """An environment around a machine; the null action ends the episode.

    Actions are `Discrete`, the null last, unless a subclass says otherwise. The reward is 1 at the null if the task is
    then done, and 0 everywhere else. There is no time limit; pass `max_episode_steps` to `gymnasium.make` for one.

    Args:
        observation_space: of what the machine shows.
        render_mode: `"ansi"` for text, `"rgb_array"` for a picture, or None.

    Raises:
        ValueError: for another render mode.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}
    #: How many actions there are, the null not counted, and how many numbers the argument of one has.
    num_actions: int
    argument_size = 0
    #: What `reset` takes among its options.
    known_options: tuple[str, ...] = ()

    def __init__(self, observation_space: spaces.Box, render_mode: str | None = None) -> None:
        if render_mode not in (None, "ansi", "rgb_array"):
            raise ValueError(f"render_mode must be None, 'ansi' or 'rgb_array', got {render_mode!r}")
        self.render_mode = render_mode
        self.observation_space = observation_space
        self.action_space: spaces.Space[Any] = spaces.Discrete(self.num_actions + 1)
        self._machine: M | None = None

    def _begin(self, options: dict[str, Any]) -> M:
        """The machine of a new episode: the instance that the options name, or one drawn by `self.np_random`.

        Args:
            options: of the reset; all are among `known_options`.
        """
        raise NotImplementedError

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Take the instance that `options` name, or draw one.

        Raises:
            ValueError: if an option is unknown or makes no sense.
        """
        given = verify_options(options, *self.known_options)
        super().reset(seed=seed)
        self._machine = self._begin(given)
        return self._machine.observe(), self._machine.info()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Apply one action; see the class for the reward."""
        machine = self._ready()
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is not in {self.action_space}")
        primitive = self._primitive(action)
        stops = primitive is None
        if primitive is not None:
            machine.apply(primitive)
        return machine.observe(), float(stops and machine.solved()), stops, False, machine.info()

    def encode_action(self, index: int, argument: Any = None) -> Any:
        """The element of the action space for what a program emits.

        Args:
            index: of the action, or `num_actions` for the null.
            argument: `[argument_size]`, unused where actions have no argument.

        Raises:
            ValueError: if there is no such action.
        """
        return np.int64(checked_index(index, self.num_actions))

    def _primitive(self, action: Any) -> int | None:
        """The machine's number for an element of the action space, or None for the null."""
        return None if action == self.num_actions else int(action)

    def _ready(self) -> M:
        if self._machine is None:
            raise RuntimeError("call reset before step or render")
        return self._machine

    def render(self) -> Any:
        """The machine: text for `"ansi"`, `[H, W, 3]` uint8 for `"rgb_array"`."""
        if self.render_mode is None:
            return None
        machine = self._ready()
        return machine.text() if self.render_mode == "ansi" else machine.picture()


def checked_index(index: int, num_actions: int) -> int:
    """The index of an action, the null included.

    Raises:
        ValueError: if there is no such action.
    """
    if not 0 <= int(index) <= num_actions:
        raise ValueError(f"action {index} is outside 0..{num_actions} ({num_actions} is the null)")
    return int(index)
