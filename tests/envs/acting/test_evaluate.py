"""What a policy's episodes come to."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from pyrocontrol.envs import evaluate_policy


class Countdown(gymnasium.Env[np.ndarray, int]):
    """Ends after as many steps as the episode's number, or on action 1, which is success; every step pays 2."""

    observation_space = spaces.Box(0, 10, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, losses: bool = True) -> None:
        self.episode, self.losses, self.seeds = 0, losses, []  # type: ignore[var-annotated]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.episode, self.left = self.episode + 1, self.episode + 1
        return np.full(1, self.left, np.float32), {}

    def step(self, action: int) -> Any:
        self.left -= 1
        info = {"is_success": bool(action)} | ({"imitation_loss": 0.5} if self.losses else {})
        return np.full(1, self.left, np.float32), 2.0, bool(action), self.left == 0, info


class Waits:
    """Waits a number of steps, counted in its state, and then acts."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        taken = 0 if state is None or bool(episode_start) else state
        return int(taken >= self.steps), taken + 1


def test_every_episode_counts() -> None:
    env = Countdown()
    found = evaluate_policy(env, Waits(2), 4, seed=7)
    assert env.seeds == [7, None, None, None]
    assert found["length"] == [1, 2, 3, 3]
    assert found["return"] == [2, 4, 6, 6]
    assert found["success"] == [0, 0, 1, 1]
    assert found["imitation_loss"] == [0.5, 1, 1.5, 1.5]


def test_only_what_the_task_reports() -> None:
    assert evaluate_policy(Countdown(losses=False), Waits(0), 1).keys() == {"return", "length", "success"}
    assert evaluate_policy(gymnasium.make("CartPole-v1"), Waits(0), 2).keys() == {"return", "length"}


def test_at_least_one_episode() -> None:
    with pytest.raises(ValueError, match="episodes must be at least 1"):
        evaluate_policy(Countdown(), Waits(0), 0)


def test_a_function_acts_and_what_cannot_act_is_refused() -> None:
    assert evaluate_policy(Countdown(), lambda seen: int(seen[0] <= 2), 3)["length"] == [1, 1, 2]
    with pytest.raises(TypeError, match="the int is no controller"):
        evaluate_policy(Countdown(), 3, 1)
